"""The loop of a sweep, with a pool that runs nothing: what is started, and what is written down."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.errors import ConfigError, ResumeError
from fedsim.sweep import front
from fedsim.sweep.folder import SweepFolder
from fedsim.sweep.front import Choice
from fedsim.sweep.point import Job
from fedsim.sweep.processes import Pool

from .made_up import private, write_run

WORDS = ["scenario=quickstart", "rounds=2", "client.lr=0.1,0.2", "seed=0,1"]


class Made(Pool):
    """Writes a run folder for each point, or does what it is told to."""

    def __init__(self, slots: int = 2) -> None:
        self.started: list[str] = []
        self.jobs: dict[int, Job] = {}
        self.most, self._slots = 0, slots
        self.codes: dict[str, tuple[int, str]] = {}
        self.press: list[str] = []
        self.killed = False

    @property
    def slots(self) -> int:
        return self._slots

    def start(self, number: int, job: Job, log: Path) -> None:
        lr, seed = job.overrides[1][-3:], job.overrides[2][-1]
        self.started.append(f"{lr}/{seed}")
        self.jobs[number] = job
        self.most = max(self.most, len(self.jobs))
        for _ in range(self.press.count(f"{lr}/{seed}")):
            os.kill(os.getpid(), signal.SIGINT)

    def ended(self) -> Iterator[tuple[int, int, str]]:
        for number, job in list(self.jobs.items()):
            del self.jobs[number]
            code, why = self.codes.get(self.started[-1 - len(self.jobs)], (0, ""))
            if Path(job.stop).exists():
                code, why = 130, "interrupted"
            if code in (0, 3) and not Path(job.run).exists():
                write_run(Path(job.run), 0.5, private(1.0))
                (Path(job.run) / "report.html").write_text("a report")
            yield number, code, why

    def kill(self) -> None:
        self.killed = True
        self.jobs.clear()


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.chdir(tmp_path)
    made = Made()
    monkeypatch.setattr(front, "_pool", lambda *_: made)
    # A report takes longer than all the rest; it has tests of its own.
    monkeypatch.setattr(front, "write_sweep_report", lambda path: path / "report.html")
    return made


def go(*words: str, resume: Path | None = None, **options: bool) -> int:
    return front.sweep(words, resume, Choice(**options))


def sweeps() -> list[SweepFolder]:
    heads = sorted(Path().glob("results/sweeps/*/*/sweep.yaml"))
    return [SweepFolder.open(head.parent) for head in heads]


def statuses() -> list[str]:
    return [entry.status for entry in sweeps()[-1].entries]


def test_every_point_runs_once_and_no_more_than_fit(
    pool: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(*WORDS) == 0
    assert sorted(pool.started) == ["0.1/0", "0.1/1", "0.2/0", "0.2/1"]
    assert pool.most == 2
    assert statuses() == ["finished"] * 4
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("4 points, 2 at once: results/sweeps/quickstart/")
    assert out[1].endswith("finished  round 2/2  accuracy 50.00 %  epsilon 1 (delta 1e-05)")
    assert out[-2] == "4 of 4 points done" and out[-1].startswith("report:  results/sweeps/")


def test_typed_again_it_runs_only_what_is_left(pool: Made) -> None:
    pool.codes["0.2/0"] = (1, "client trouble")
    assert go(*WORDS) == 1
    assert statuses() == ["finished", "finished", "failed", "finished"]
    pool.started.clear()
    pool.codes.clear()
    assert go(*WORDS[::-1]) == 0, "in whatever order it is typed"
    assert pool.started == ["0.2/0"]
    assert len(sweeps()) == 1 and statuses() == ["finished"] * 4
    pool.started.clear()
    assert go(resume=sweeps()[0].path) == 0
    assert pool.started == []


def test_failed_points_come_last_with_reason_and_command(
    pool: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.codes["0.1/1"] = (1, "client trouble")
    pool.codes["0.2/0"] = (-9, "its process was killed by SIGKILL")
    assert go(*WORDS) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "2 of 4 points failed:"
    assert err[1] == "  2  client.lr=0.1 seed=1: client trouble"
    assert err[2].strip() == "fedsim run scenario=quickstart rounds=2 client.lr=0.1 seed=1"
    assert "killed by SIGKILL" in err[3]
    assert err[5] == f"go on with: fedsim sweep --resume {sweeps()[0].path}"


def test_a_spent_budget_is_an_end_not_a_failure(pool: Made) -> None:
    pool.codes["0.1/1"] = (3, "budget")
    assert go(*WORDS) == 0
    assert statuses()[1] == "budget"
    pool.started.clear()
    assert go(*WORDS) == 0
    assert pool.started == []


def test_a_grown_grid_takes_over_what_was_run(
    pool: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(*WORDS) == 0
    pool.started.clear()
    grown = [*WORDS[:3], "seed=0,1,2"]
    assert go(*grown) == 0
    assert sorted(pool.started) == ["0.1/2", "0.2/2"]
    assert "4 points were run by an earlier sweep" in capsys.readouterr().out
    old, new = sorted(sweeps(), key=lambda sweep: len(sweep.entries))
    assert new.entries[0].taken_from == old.path.name
    first = new.run_of(new.entries[0])
    assert first == old.run_of(old.entries[0]) and first is not None
    pool.started.clear()
    assert go(*WORDS, fresh=True) == 0
    assert len(pool.started) == 4 and len(sweeps()) == 3


def test_a_run_that_was_removed_is_run_again(pool: Made) -> None:
    assert go(*WORDS) == 0
    (sweep,) = sweeps()
    run = sweep.run_of(sweep.entries[1])
    assert run is not None
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    pool.started.clear()
    assert go(*WORDS) == 0
    assert pool.started == ["0.1/1"] and run.is_dir()


def test_a_run_that_ended_just_before_a_kill_is_not_run_again(pool: Made) -> None:
    assert go(*WORDS) == 0
    (sweep,) = sweeps()
    lines = (sweep.path / "points.jsonl").read_text().splitlines(keepends=True)
    finished = [i for i, line in enumerate(lines) if '"finished"' in line]
    (sweep.path / "points.jsonl").write_text("".join(lines[: finished[-1]]))
    pool.started.clear()
    assert go(*WORDS) == 0
    assert pool.started == [] and statuses() == ["finished"] * 4
    (sweep.path / "points.jsonl").write_text("".join(lines[: finished[-1]]))
    last = sweep.entries[json.loads(lines[finished[-1]])["point"] - 1]
    run = sweep.run_of(last)
    assert run is not None
    os.utime(run / "report.html", ns=(0, 0))  # of an earlier sitting: it is yet to be written
    assert go(*WORDS) == 0
    assert len(pool.started) == 1


def test_a_changed_scenario_is_refused(pool: Made, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [quickstart, _self_]\nrounds: 2\n")
    pool.codes["0.1/0"] = (1, "trouble")
    words = [f"scenario={own}", *WORDS[1:]]
    assert go(*words) == 1
    own.write_text("defaults: [quickstart, _self_]\nclient: {epochs: 2}\n")
    with pytest.raises(ResumeError, match="was changed since the sweep began: point 1"):
        go(resume=sweeps()[0].path)
    with pytest.raises(ConfigError, match="--resume goes on with the points"):
        go("seed=3", resume=sweeps()[0].path)


def test_the_first_ctrl_c_lets_points_finish_their_round(
    pool: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    pool.press = ["0.1/1"]
    assert go(*WORDS) == 130
    assert statuses() == ["interrupted", "interrupted", "planned", "planned"]
    told = capfd.readouterr()
    assert "press Ctrl-C again" in told.err
    assert f"stopped; go on with: fedsim sweep --resume {sweeps()[0].path}" in told.err
    assert not sweeps()[0].stop_file.exists()
    pool.press = []
    assert go(*WORDS) == 0


def test_the_second_ctrl_c_kills_them(pool: Made) -> None:
    pool.press = ["0.1/1", "0.1/1"]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as error:
        go(*WORDS)
    assert pool.killed and signal.getsignal(signal.SIGINT) is before
    assert any("fedsim sweep --resume" in note for note in error.value.__notes__)


def test_as_json(pool: Made, capsys: pytest.CaptureFixture[str]) -> None:
    pool.codes["0.1/1"] = (1, "client trouble")
    assert go(*WORDS, as_json=True) == 1
    *events, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["status"] for e in events].count("started") == 4
    done = [event for event in events if event["status"] == "finished"]
    assert len(done) == 3 and done[0]["value"] == 0.5 and done[0]["metric"] == "accuracy"
    assert (end["points"], end["done"]) == (4, 3)
    assert end["failed"][0]["reason"] == "client trouble"
    assert end["failed"][0]["command"].startswith("fedsim run scenario=quickstart")


def test_nothing_is_written_where_a_point_is_wrong(pool: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="point 1 of 4"):
        go(*WORDS, "roudns=3")
    assert list(tmp_path.iterdir()) == [] and pool.started == []


def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--ray auto: Ray is not installed here"):
        front.sweep(WORDS, None, Choice(ray="auto"))
