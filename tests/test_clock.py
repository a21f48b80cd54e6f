"""The virtual clock: a four-client example by hand, and runs that are cut."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedsim.checkpoint import encode
from fedsim.clock import Clock
from fedsim.config import compose
from fedsim.devices.base import Fleet
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.helpers import distance, whole_and_resumed

WORDS = ["device=cpu", "evaluation.central=false", "partition.num_clients=4", "partition=iid"]


def columns(seconds: list[float], up: list[float]) -> dict[str, list[float]]:
    return {"client-index": [0.0, 1.0], "seconds": seconds, "bytes-up": up}


def test_an_exchange_lasts_until_the_last_reply_that_came() -> None:
    clock = Clock()
    assert clock.seconds == 0
    clock.advance([columns([2.0, 3.0], [1, 1]), columns([0.25, 0.5], [1, 1])])
    assert clock.seconds == 3.5
    clock.advance([columns([1.0, 9.0], [1, 0])])  # the slow one has sent nothing
    assert clock.seconds == 4.5
    clock.advance([columns([1.0, 9.0], [0, 0])])
    clock.advance([])
    assert clock.seconds == 4.5


def test_what_cannot_be_told_stays_so() -> None:
    clock = Clock()
    clock.advance([columns([2.0, 3.0], [1, 1]), {"bytes-up": [1.0]}])
    assert clock.seconds is None
    clock.advance([columns([2.0, 3.0], [1, 1])])
    assert clock.seconds is None


def four(*words: str) -> Simulation:
    """A run of four clients whose speeds are powers of two, so that seconds are exact."""
    own = ["rounds=2", "model=linear", "participation=full", "partition.holdout=0.2"]
    own += ["client.epochs=1", "evaluation.clients=cohort", "devices=equal"]
    simulation = Simulation(compose("quickstart", [*WORDS, *own, *words]))
    assert simulation.meter is not None
    simulation.meter.fleet = Fleet(
        flops_N=np.array([2.0**20, 2.0**16, 2.0**18, 2.0**24]),
        down_N=np.array([2.0**10, 2.0**14, 2.0**12, 2.0**11]),
        up_N=np.array([2.0**8, 2.0**13, 2.0**7, 2.0**9]),
    )
    return simulation


EVERYBODY, KEPT = [0, 1, 2, 3], ["pace.late=keep", "pace.discount=1"]
PACES: dict[str, tuple[list[str], list[tuple[list[int], list[int], int, int | str]]]] = {
    # Replies take 15.5, 11.1, 27.1 and 7.5 s, evaluations 3.4.
    # Each round: who is asked, whose replies are used, how many are late, and who ends the exchange
    # ("D": the deadline).
    "patient": ([], [(EVERYBODY, EVERYBODY, 0, 2)] * 3),
    "a late deadline": (["deadline", "pace.seconds=28"], [(EVERYBODY, EVERYBODY, 0, 2)] * 3),
    "a deadline": (["deadline", "pace.seconds=12"], [(EVERYBODY, [1, 3], 2, "D")] * 3),
    "three": (["over_selection", "pace.replies=3"], [(EVERYBODY, [0, 1, 3], 1, 0)] * 3),
    "half": (["over_selection", "pace.over=1"], [(EVERYBODY, [1, 3], 2, 1)] * 3),
    "three by then": (
        ["over_selection", "pace.replies=3", "pace.seconds=12"],
        [(EVERYBODY, [1, 3], 2, "D")] * 3,
    ),
    # 0 arrives at 15.5 s, in round 2 (14.5 to 25.6); 2 at 27.1, while that is evaluated.
    "kept": (
        ["over_selection", "pace.replies=2", *KEPT],
        [(EVERYBODY, [1, 3], 2, 1), ([1, 3], [1, 3, 0], 0, 1), ([0, 1, 3], [1, 3, 2], 1, 1)],
    ),
    # Round 2 (15.4 to 26.5) does not wait for the deadline, as both who are asked are in.
    "kept from a deadline": (
        ["deadline", "pace.seconds=12", *KEPT],
        [(EVERYBODY, [1, 3], 2, "D"), ([1, 3], [1, 3, 0], 0, 1), ([0, 1, 3], [1, 3, 2], 1, "D")],
    ),
}


@pytest.mark.parametrize("pace", PACES)
def test_four_clients_by_hand(pace: str) -> None:
    """64 inputs, 10 outputs: training takes 2·2·640 operations a sample, scoring one 2·640. Exact,
    on both engines. Evaluations are not hurried, and are of all four."""
    words, rounds = PACES[pace]
    words = [f"pace={word}" if i == 0 else word for i, word in enumerate(words)]
    models = []
    for engine in ("cohort", "in_process"):
        simulation = four(f"engine={engine}", "rounds=3", *words)
        trained = [len(simulation.runtime.samples(k)) for k in range(4)]
        held = [len(simulation.partition.indices(k)) - n for k, n in enumerate(trained)]
        told = list(simulation.loop.run(simulation.runtime.initial_params()))
        now = 0.0
        for (_, report), (asked, used, late, last) in zip(told, rounds, strict=True):
            train = report.footprint["train"]
            down, up = (dict(zip(asked, train[f"bytes-{w}"], strict=True)) for w in ("down", "up"))
            seconds = {
                k: down[k] / (1024, 16384, 4096, 2048)[k]
                + 2 * 2 * 640 * trained[k] / (1048576, 65536, 262144, 16777216)[k]
                + up[k] / (256, 8192, 128, 512)[k]
                for k in asked
            }
            assert train["client-index"] == asked and train["seconds"] == [*seconds.values()]
            assert train["flops"] == [2 * 2 * 640 * trained[k] for k in asked]
            assert report.footprint["evaluate"]["flops"] == [2 * 640 * n for n in held]
            now += 12.0 if isinstance(last, str) else seconds[last]
            now += max(report.footprint["evaluate"]["seconds"])
            assert report.simulated_seconds == now
            assert report.admitted == used and report.late == late and not report.rejected
            assert report.arrived_late == (len(used) == 3 and "kept" in pace)
        models.append(told[-1][0])
    assert distance(*models) < 1e-6


PATIENT = {
    "a deadline without end": ["pace=deadline", "pace.seconds=inf"],
    "all that are asked": ["pace=over_selection", "pace.replies=5"],
    "nobody beyond": ["pace=over_selection", "pace.over=0", "pace.seconds=1e9"],
    "keeping, and nobody is late": ["pace=deadline", "pace.seconds=1e9", "pace.late=keep"],
}


def lines(*words: str) -> list[tuple[dict[str, object], bytes]]:
    """Return a small run's reports and models, after each round."""
    own = ["rounds=3", "partition.num_clients=9", "participation.clients_per_round=5",
           "model.hidden=[8]", "devices=unequal", "device=cpu", "engine.chunk=2",
           "client.epochs=1"]  # fmt: skip
    simulation = Simulation(compose("quickstart", [*own, *words]))
    told = []
    for model, report in simulation.loop.run(simulation.runtime.initial_params()):
        values = {k: v for k, v in asdict(report).items() if k != "seconds"}
        told.append((values, encode(model)))
    return told


def test_with_nobody_late_a_run_is_the_patient_one_to_the_bit() -> None:
    patient = lines()
    for how, words in PATIENT.items():
        assert lines(*words) == patient, how
    assert lines("pace=over_selection", "pace.replies=4") != patient


@pytest.mark.parametrize("word", ["compression=top_k", "strategy=flower_fedavg"])
def test_who_is_used_depends_neither_on_engine_nor_on_chunks(word: str) -> None:
    """Also where less than a model is sent, and for Flower's own strategies, which see messages."""
    words = [word, "pace=over_selection", "pace.replies=3", "evaluation.every=9"]

    def who(*more: str) -> list[object]:
        told = [line for line, _ in lines(*words, *more)]
        return [(sorted(r["admitted"]), r["late"], r["simulated_seconds"]) for r in told]  # type: ignore[call-overload]

    cohort = who()
    assert [late for _, late, _ in cohort] == [0, 2, 2, 2]  # type: ignore[misc]
    assert who("engine.chunk=9") == who("engine.plan=sequential") == cohort


def test_scores_within_training_replies_make_the_round_one_exchange() -> None:
    *_, (_, report) = (run := four("evaluation.fused=true")).loop.run(run.runtime.initial_params())
    assert list(report.footprint) == ["train"]
    assert report.simulated_seconds == pytest.approx(2 * max(report.footprint["train"]["seconds"]))


@pytest.mark.parametrize(
    "strategy",
    [
        ["fedbuff", "strategy.concurrency=3", "strategy.buffer=2"],
        ["fedprox", "pace=over_selection", "pace.replies=1", *KEPT],
    ],
    ids=lambda strategy: strategy[0],
)
def test_a_resumed_run_has_the_same_clock_and_lines(strategy: list[str], tmp_path: Path) -> None:
    """Checkpoints come every second round, and the run is cut after the third.

    Of a synchronous strategy without a pace, tests/participation/test_timed.py shows it.
    """
    words = [*WORDS, "rounds=5", "participation=full", "devices=unequal", "checkpoint.every=2"]
    words += [f"strategy={strategy[0]}", *strategy[1:], f"output.root={tmp_path}"]
    config = compose("quickstart", words)
    whole, resumed = whole_and_resumed(config, cut_after=3)

    def told(run: RunFolder) -> list[dict[str, object]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in run.rounds()]

    assert told(resumed) == told(whole)
    times = [line["simulated_seconds"] for line in told(resumed)]
    assert all(a < b for a, b in pairwise(times))  # type: ignore[operator]
    if "pace.late=keep" in words:  # replies were on their way at the checkpoint, and came later
        assert [line["late"] for line in told(resumed)][1:3] != [0, 0]
        assert sum(line["arrived_late"] for line in told(resumed)[3:]) > 0  # type: ignore[misc]
    models = [(f.path / "model.safetensors").read_bytes() for f in (resumed, whole)]
    assert models[0] == models[1]


def test_an_asynchronous_round_of_everybody_ends_with_the_slowest_reply_and_no_evaluation() -> None:
    simulation = four("strategy=fedbuff", "strategy.concurrency=4", "strategy.buffer=4")
    (_, first), _ = simulation.loop.run(simulation.runtime.initial_params())
    assert set(first.footprint) == {"train", "evaluate"}
    assert first.simulated_seconds == max(first.footprint["train"]["seconds"])
