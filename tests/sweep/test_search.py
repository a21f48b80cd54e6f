"""Searches with made-up runs: what is drawn, told, stopped and gone on with; and one real run."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.results import SUMMARY
from fedsim.sweep import front
from fedsim.sweep.folder import SweepFolder
from fedsim.sweep.front import Choice
from fedsim.sweep.outcome import read_outcome
from fedsim.sweep.point import Job, run_point
from fedsim.sweep.processes import Pool
from fedsim.sweep.pruning import Curve, Goal, Rule, kind_of, read_curve, write_finished
from fedsim.sweep.search import JOURNAL

from .made_up import TERMS

SCENARIO = ["scenario=quickstart", "rounds=8", "privacy=user_dp", "privacy.epsilon=null"]
WORDS = [*SCENARIO, "client.lr=tag(log,interval(0.01,1))"]
WORDS += ["privacy.noise_multiplier=interval(0.5,4)"]


class Made(Pool):
    """Writes runs with a known front, round by round, each looking at the rule as a real one does.

    Args:
        die: Kill this process, as a kill -9 would, when so many points have been started.
        slots: How many at once.
    """

    def __init__(self, die: int = 0, slots: int = 1) -> None:
        self.jobs: dict[int, Job] = {}
        self.started: list[int] = []
        self.fail: list[int] = []
        self._die, self._slots = die, slots

    @property
    def slots(self) -> int:
        return self._slots

    def start(self, number: int, job: Job, log: Path) -> None:
        self.started.append(number)
        self.jobs[number] = job
        if self._die == len(self.started):
            os.kill(os.getpid(), signal.SIGKILL)

    def ended(self) -> Iterator[tuple[int, int, str]]:
        for number, job in list(self.jobs.items()):
            del self.jobs[number]
            yield (number, 1, "trouble") if number in self.fail else (number, made_run(job), "")

    def kill(self) -> None:
        self.jobs.clear()


def made_run(job: Job) -> int:
    axes = dict(word.split("=") for word in job.overrides)
    lr, sigma = float(axes["client.lr"]), float(axes.get("privacy.noise_multiplier", 1.0))
    run = Path(job.run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("")
    (run / "privacy.json").write_text(json.dumps({"epsilon": 99.0, **TERMS}))
    rule = Rule.from_json(job.rule) if job.rule else None
    for server_round in range(9):
        top = math.exp(-(math.log(lr / 0.1) ** 2)) * (1 - 0.3 / (1 + sigma))
        value, epsilon = top * server_round / 8, 0.2 * server_round / sigma
        report = {"server_round": server_round, "central": {"accuracy": value}, "epsilon": epsilon}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(report) + "\n")
        if rule is not None and rule.stops(run):
            return 130
    claim = {"epsilon": epsilon, **TERMS}
    (run / SUMMARY).write_text(json.dumps({"status": "finished", "privacy": claim}))
    (run / "report.html").write_text("a report")
    return 0


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedsim.sweep.runner.LOOK_S", 0.001)
    monkeypatch.setattr(front, "write_sweep_report", lambda path: path / "report.html")


@pytest.fixture
def optuna() -> object:
    return pytest.importorskip("optuna", reason="Optuna is an extra: search")


def go(pool: Made, monkeypatch: pytest.MonkeyPatch, *words: str, **options: object) -> SweepFolder:
    monkeypatch.setattr(front, "_pool", lambda *_: pool)
    choice = Choice(**{"search": 12, **options})  # type: ignore[arg-type]
    assert front.sweep(words or WORDS, None, choice) == (1 if pool.fail else 0)
    return latest()


def latest() -> SweepFolder:
    heads = Path().glob("results/sweeps/*/*/sweep.yaml")
    return SweepFolder.open(max(heads, key=lambda head: head.stat().st_mtime_ns).parent)


def points(folder: SweepFolder) -> list[tuple[dict[str, str], str, str | None]]:
    return [(entry.point.axes, entry.status, entry.reason) for entry in folder.entries]


def curve(folder: SweepFolder, number: int) -> Curve:
    run = folder.run_of(folder.entries[number - 1])
    assert run is not None
    return read_curve(run, number, Goal(), kind_of(read_outcome(run).epsilon))


def test_every_run_that_was_stopped_was_beaten_by_a_finished_one(
    optuna: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = go(Made(), monkeypatch, search=24)
    assert len(folder.entries) == 24 and {e.status for e in folder.entries} == {
        "finished",
        "pruned",
    }
    finished = [curve(folder, e.number) for e in folder.entries if e.status == "finished"]
    stopped = [curve(folder, e.number) for e in folder.entries if e.status == "pruned"]
    assert len(stopped) > 5 and len(finished) > 3
    for run in stopped:
        at = max(run.at)
        assert 2 <= at < 8, "after a quarter of the rounds, before the end"
        u, e = run.at[at]
        assert any(
            o.at[at][0] >= u and o.at[at][1] <= e and o.at[at] != (u, e)
            for o in finished
            if o.number < run.number
        ), f"point {run.number} was on the front at round {at}"
    pool = Made()
    unpruned = go(pool, monkeypatch, search=24, warmup=0)
    assert {e.status for e in unpruned.entries} == {"finished"}
    assert not any(job.rule for job in pool.jobs.values())


def test_the_same_command_draws_the_same_points_killed_or_not(
    optuna: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = points(go(Made(), monkeypatch))
    assert len({str(axes) for axes, *_ in whole}) == 12
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    started = []
    for die in (3, 5):
        pid = os.fork()
        if pid == 0:
            try:
                go(Made(die=die), monkeypatch)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        started.append(len(latest().entries))
    assert started == [3, 7]
    journal = latest().path / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code":')  # as a kill in the middle of a write would leave it
    last = Made()
    assert points(go(last, monkeypatch)) == whole
    assert last.started == list(range(7, 13)), "no point is run twice, and none is lost"
    again = Made()
    assert points(go(again, monkeypatch)) == whole and again.started == []
    assert len(list(Path().glob("results/sweeps/*/*"))) == 1
    more = Made()
    grown = points(go(more, monkeypatch, search=14))
    assert grown[:12] == whole and more.started == [13, 14]
    assert points(go(Made(), monkeypatch, sampler_seed=1))[0] != whole[0]


def test_a_point_that_is_there_is_told_and_not_run_again(
    optuna: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SCENARIO, "privacy.noise_multiplier=1", "client.lr=0.1,0.5"]
    pool = Made(slots=3)
    folder = go(pool, monkeypatch, *words, search=8, warmup=0)
    assert sorted(pool.started) == [1, 2] and len(folder.entries) == 2
    import optuna as library

    storage = library.storages.JournalStorage(
        library.storages.journal.JournalFileBackend(str(folder.path / JOURNAL))
    )
    trials = library.load_study(study_name="search", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
    for trial in trials:
        number = next(
            e.number
            for e in folder.entries
            if e.point.axes["client.lr"] == trial.params["client.lr"]
        )
        assert tuple(trial.values) == pytest.approx(curve(folder, number).at[8])
    other = Made()
    taken = go(other, monkeypatch, *words, search=8, warmup=0, sampler_seed=5)
    assert other.started == [] and all(e.taken_from == folder.path.name for e in taken.entries)


def test_failed_points_are_told_and_listed(
    optuna: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = Made()
    pool.fail = [2]
    folder = go(pool, monkeypatch, search=4)
    assert [e.status for e in folder.entries].count("failed") == 1
    assert "1 of 4 points failed:" in capsys.readouterr().err


def test_without_privacy_there_is_one_objective(
    optuna: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["scenario=quickstart", "rounds=8", "client.lr=tag(log,interval(0.01,1))"]
    folder = go(Made(), monkeypatch, *words, search=10, metric="accuracy:max")
    head = folder.head()["search"]
    assert head["private"] is False and head["metric"] == "accuracy:max"
    assert {e.status for e in folder.entries} == {"finished", "pruned"}


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ([*WORDS, "roudns=3"], {}, "roudns"),
        ([*SCENARIO, "client.lr=interval(-1,1)"], {}, "client.lr"),
        (WORDS, {"metric": "accuracy:up"}, "NAME:min or NAME:max"),
        (WORDS, {"search": None, "metric": "loss"}, "goes with --search N alone"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    optuna: object, words: list[str], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        front.sweep(words, None, Choice(**{"search": 3, **options}))  # type: ignore[arg-type]
    assert list(Path().iterdir()) == []


def test_optuna_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Optuna is not installed here.*\n.*'\.\[search\]'"):
        front.sweep(WORDS, None, Choice(search=3))


def test_a_real_run_stops_itself_after_the_round_at_which_it_is_beaten(tmp_path: Path) -> None:
    words = (
        "device=cpu",
        "model=linear",
        "client.epochs=1",
        "rounds=5",
        "partition.num_clients=10",
    )
    job = Job(
        scenario="quickstart",
        overrides=words,
        hash=compose("quickstart", words).hash,
        run=str(tmp_path / "run"),
        stop=str(tmp_path / "stop"),
        rule=Rule(
            finished=tmp_path / "finished.json",
            mark=tmp_path / "mark",
            number=2,
            warmup=2,
            rounds=5,
            goal=Goal(),
        ).to_json(),
    )
    best = Curve(number=1, at={3: (1.0, 0.0)}, name="accuracy")
    write_finished(tmp_path / "finished.json", [best])
    code, _ = run_point(job)
    assert code == 130
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["server_round"] == 3
    assert (tmp_path / "mark").read_text().startswith("at round 3 point 1 had accuracy 1, and")
