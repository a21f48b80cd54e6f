"""The tutorials run, cell by cell, in a small size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "results" / "tutorials"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_there_are_three() -> None:
    assert [script.name[0] for script in SCRIPTS] == ["1", "2", "3"]
    for script in SCRIPTS:
        assert script.name in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_report(run: Path) -> Path:  # tests/report has its own
        (run / "report.html").write_text("a report")
        return run / "report.html"

    monkeypatch.setattr("fedsim.report.html.write_report", write_report)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTORIAL_ROUNDS", "2")
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = runpy.run_path(str(script))
    out = capsys.readouterr().out
    if script.name.startswith("1"):
        assert len(found["curves"].axes[0].lines) == 2
        assert "report: results/runs/quickstart/" in out
    elif script.name.startswith("2"):
        assert "differential privacy per user" in out
        assert (tmp_path / out.splitlines()[-1]).is_file()
    else:
        assert "strategy.step: -1.0 is out of range; allowed: (0, inf)" in out
        assert "signed_mean under attack: 0." in out
