"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands._calls import TINY, call


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test: runs go to `results/runs` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    return tmp_path


@pytest.fixture
def real_report() -> None:
    """For the tests that want one."""


@pytest.fixture(autouse=True)
def _cheap_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report takes longer than these runs do."""

    def write_report(run: Path) -> Path:
        (run / "report.html").write_text("a report")
        return run / "report.html"

    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("fedsim.report.html.write_report", write_report)


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Notes what `fedsim deploy` would start, and starts nothing."""
    started: list[object] = []

    def start(sitting: object, nodes: int, **settings: object) -> None:
        started.append((sitting, nodes, settings["secure"]))

    def refused(*words: object, **_: object) -> None:
        raise AssertionError(f"started {words}")

    monkeypatch.setattr("fedsim.deploy.front.run_locally", start)
    monkeypatch.setattr("fedsim.deploy.local.subprocess.Popen", refused)
    monkeypatch.setattr("fedsim.deploy.submission.subprocess.run", refused)
    return started


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert call("run", *TINY, f"output.root={root}").exit_code == 0
    (folder,) = (path.parent for path in root.rglob("config.yaml"))
    return folder
