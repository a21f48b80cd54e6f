"""What holds of whole runs of every strategy: the same on both engines, and over a checkpoint."""

from pathlib import Path

import pytest

from fedsim.config import compose
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.records import Params
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.contract._discover import (
    ASYNCHRONOUS,
    CODED,
    EVERYBODY,
    NAMES,
    OURS,
    short,
    topology,
)
from tests.helpers import distance

WORDS = [
    *("rounds=4", "partition.num_clients=14", "participation.clients_per_round=11", "seed=5"),
    *("model.hidden=[8]", "client.epochs=1", "client.batch_size=20", "client.lr=0.05"),
    *("partition.holdout=0.2", "evaluation.clients=cohort", "device=cpu", "checkpoint.every=1"),
    *("precision=float64", "partition.alpha=1"),
]
"""Ragged clients in part, scored on their own samples. In float64, so that no rule that picks among
updates picks another for a rounding error."""

OF_WINDOWS = [
    *("data=wearable", "data.subjects=12", "data.windows=36", "data.labelled=0.5"),
    *("model=autoencoder", "model.latent=4"),
]
"""What trains autoencoders needs data of the server's own."""

MORE = {
    **{
        name: [*OF_WINDOWS, *(f"strategy.{key}={value}" for key, value in short(name).items())]
        for name in CODED
    },
    **{name: ["devices=unequal"] for name in ASYNCHRONOUS},
    # With the default of 5 tiers, the fastest has no weight until the slowest has come.
    "fedat": ["devices=equal", "strategy.tiers=2"],
    "semifl": OF_WINDOWS,
    "semipfl_released_code": [*OF_WINDOWS, "model.output=tanh"],
    "bulyan": ["strategy.num_malicious=1"],
    "krum": ["strategy.num_malicious=2"],
    "multikrum": ["strategy.num_malicious=2"],
    "fedld_released_code": ["client.warmup_rounds=0"],
}


def words(name: str, root: Path) -> list[str]:
    if name in EVERYBODY:
        given = [word for word in WORDS if not word.startswith("participation")]
        own = ["participation=full", f"strategy={name}", f"output.root={root}"]
        return [*given, *own, "strategy.clip_gradients=3"]
    return [*WORDS, f"strategy={name}", f"output.root={root}", *MORE.get(name, []), *topology(name)]


@pytest.mark.parametrize("name", NAMES)
def test_the_cohort_engine_ends_as_the_sequential_one(name: str, tmp_path: Path) -> None:
    ends: list[Params] = []
    scores: list[dict[str, float]] = []
    for engine in ("in_process", "cohort"):
        config = compose("quickstart", [*words(name, tmp_path), f"engine={engine}"])
        simulation = Simulation(config)
        start = simulation.runtime.initial_params()
        *_, (end, report) = simulation.loop.run(start)
        assert distance(end, start) > 1e-4
        assert len(report.admitted) > (0 if name in ASYNCHRONOUS else 2)
        ends.append(end)
        scores.append(report.clients)
    assert distance(ends[1], ends[0]) < 1e-9
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    config = compose("quickstart", words(name, tmp_path))
    whole = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    list(whole.start())
    stops = iter([False, False, True])  # after rounds 0, 1 and 2
    folder = RunFolder.create(config)
    cut = Run(simulation=Simulation(config), folder=folder, stop=lambda: next(stops))
    assert [report.server_round for report in cut.start()] == [0, 1, 2]
    opened = RunFolder.open(folder.path)
    rest = Run(simulation=Simulation(opened.config()), folder=opened)
    assert [report.server_round for report in rest.resume()] == [3, 4]
    ends = [path / "model.safetensors" for path in (whole.folder.path, folder.path)]
    assert sha256(ends[0].read_bytes()) == sha256(ends[1].read_bytes())
