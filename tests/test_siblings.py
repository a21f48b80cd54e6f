"""A foreign `strategies`, `privacy` or `scenarios` on the path is refused, and told what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]


def start(*path: Path, home: Path = HOME) -> subprocess.CompletedProcess[str]:
    """Import fedsim in a fresh interpreter with some folders before fedsim's own on the path.

    Without site-packages (-S): an editable install would lend its own siblings.
    """
    places = os.pathsep.join(map(str, [*path, home]))
    return subprocess.run(
        [sys.executable, "-S", "-c", "import fedsim, sys; print('torch' in sys.modules)"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": places, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_our_own_are_accepted_and_importing_fedsim_is_light() -> None:
    done = start()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["strategies", "privacy", "scenarios"])
def test_a_foreign_module_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    done = start(tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: '{name}' is imported from {tmp_path}/{name}.py, which is not fedsim's. "
        f"Rename your {name}.py, or uninstall the other distribution."
    )


def test_a_foreign_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("")
    done = start(tmp_path)
    assert done.returncode == 1
    assert "Rename your strategies.py" in done.stderr


def test_a_folder_that_is_no_package_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "strategies").mkdir()
    assert start(tmp_path).returncode == 0


def test_a_foreign_module_behind_ours_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "strategies.py").write_text("")
    assert start(HOME, tmp_path).returncode == 0


def test_a_missing_sibling_is_named(tmp_path: Path) -> None:
    (tmp_path / "fedsim").mkdir()
    shutil.copy(HOME / "fedsim" / "__init__.py", tmp_path / "fedsim")
    done = start(home=tmp_path)
    assert done.returncode == 1
    assert "package 'strategies' is missing beside" in done.stderr
    assert "install the distribution fedsim-lab again" in done.stderr
