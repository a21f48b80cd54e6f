"""`fedsim new`: what it writes runs at once, in a copy of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim import scaffold
from fedsim.cli import app
from fedsim.errors import ConfigError

HOME = Path(__file__).parents[2]
PACKAGES = ("fedsim", "strategies", "privacy", "scenarios", "tests")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with one new thing of each kind."""
    root = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(
            HOME / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "runs")
        )
    shutil.copy(HOME / "pyproject.toml", root)
    for kind in scaffold.KINDS:
        scaffold.new(kind, f"brand_new_{kind}", root)
    return root


def pytest_in(root: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    words = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_what_is_new_passes_its_own_tests_and_runs(checkout: Path) -> None:
    out = pytest_in(
        checkout,
        "tests/strategies/test_brand_new_strategy.py",
        "tests/privacy/test_brand_new_mechanism.py",
        "tests/test_scenarios.py",
        "-k",
        "brand_new and not every_part",
    )
    assert "9 passed" in out  # own 1 + 2; 2 engines, 1 expectation, 3 first lines


@pytest.mark.nightly
def test_what_is_new_keeps_the_contracts(checkout: Path) -> None:
    assert "passed" in pytest_in(checkout, "tests/contract", "-k", "brand_new")


def test_what_is_new_is_clean(checkout: Path) -> None:
    files = [str(path) for path in checkout.rglob("*brand_new*.py")]
    assert len(files) == 4
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", *files],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_the_command_says_what_it_wrote_and_what_to_type_next(tmp_path: Path) -> None:
    for folder in ("scenarios", "tests"):
        (tmp_path / folder).mkdir()
    words = ["new", "strategy", "my_own", "--root", str(tmp_path), "--json"]
    told = json.loads(CliRunner().invoke(app, words).stdout)
    assert [Path(file).relative_to(tmp_path).as_posix() for file in told["files"]] == [
        "strategies/my_own.py",
        "scenarios/strategy/my_own.yaml",
        "tests/strategies/test_my_own.py",
    ]
    assert "class MyOwn(FedsimStrategy)" in Path(told["files"][0]).read_text()
    assert told["next"][1] == "fedsim run scenario=quickstart strategy=my_own"
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "is there already; choose another name" in again.stderr


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("stratgy", "x", "'stratgy' cannot be made; did you mean 'strategy'?"),
        ("strategy", "My-Own", "'My-Own' is not a name; expected lower case"),
        ("strategy", "lambda", "'lambda' is not a name"),
        ("strategy", "../x", "is not a name"),
        ("strategy", "mine", "is no checkout of fedsim"),
    ],
)
def test_what_cannot_be_made(kind: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        scaffold.new(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []
