"""The virtual clock: a four-client example by hand, and runs that are cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedsim.clock import Clock
from fedsim.config import compose
from fedsim.devices.base import Fleet
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation

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


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_four_clients_by_hand(engine: str) -> None:
    """64 inputs, 10 outputs: training takes 2·2·640 operations a sample, scoring one 2·640."""
    simulation = four(f"engine={engine}")
    sizes = [len(simulation.partition.indices(k)) for k in range(4)]
    trained = [len(simulation.runtime.samples(k)) for k in range(4)]
    now = 0.0
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        for exchange in ("train", "evaluate"):
            told = report.footprint[exchange]
            work = [
                2 * 2 * 640 * n if exchange == "train" else 2 * 640 * (size - n)
                for n, size in zip(trained, sizes, strict=True)
            ]
            assert told["flops"] == work
            down, up = told["bytes-down"], told["bytes-up"]
            now += max(
                down[0] / 1024 + work[0] / 1048576 + up[0] / 256,
                down[1] / 16384 + work[1] / 65536 + up[1] / 8192,
                down[2] / 4096 + work[2] / 262144 + up[2] / 128,
                down[3] / 2048 + work[3] / 16777216 + up[3] / 512,
            )
        assert report.simulated_seconds == now
    assert report.server_round == 2 and now > 40  # 2640 bytes and more at 128 a second


def test_scores_within_training_replies_make_the_round_one_exchange() -> None:
    *_, (_, report) = (run := four("evaluation.fused=true")).loop.run(run.runtime.initial_params())
    assert list(report.footprint) == ["train"]
    assert report.simulated_seconds == pytest.approx(2 * max(report.footprint["train"]["seconds"]))


def test_a_resumed_run_has_the_same_clock_and_lines(tmp_path: Path) -> None:
    """Checkpoints come every second round, and the run is cut after the third.

    Of a synchronous strategy, tests/participation/test_timed.py shows it.
    """
    words = [*WORDS, "rounds=5", "strategy=fedbuff", "participation=full", "devices=unequal"]
    words += ["strategy.concurrency=3", "strategy.buffer=2"]
    words += ["checkpoint.every=2", f"output.root={tmp_path}"]
    config = compose("quickstart", words)
    whole = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    list(whole.start())
    folder = RunFolder.create(config)
    for report in (cut := Run(simulation=Simulation(config), folder=folder).start()):
        if report.server_round == 3:
            cut.close()
            break
    opened = RunFolder.open(folder.path)
    list(Run(simulation=Simulation(opened.config()), folder=opened).resume())

    def told(run: RunFolder) -> list[dict[str, object]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in run.rounds()]

    assert told(opened) == told(whole.folder)
    times = [line["simulated_seconds"] for line in told(opened)]
    assert all(a < b for a, b in pairwise(times))  # type: ignore[operator]
    models = [(f.path / "model.safetensors").read_bytes() for f in (opened, whole.folder)]
    assert models[0] == models[1]


def test_an_asynchronous_round_of_everybody_ends_with_the_slowest_reply_and_no_evaluation() -> None:
    simulation = four("strategy=fedbuff", "strategy.concurrency=4", "strategy.buffer=4")
    (_, first), _ = simulation.loop.run(simulation.runtime.initial_params())
    assert set(first.footprint) == {"train", "evaluate"}
    assert first.simulated_seconds == max(first.footprint["train"]["seconds"])
