"""Every scenario and every part that ships runs for a moment, through the real code path.

What needs a data file that is not here is skipped, with the error that a user would get as reason.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from safetensors.torch import save_file

from fedsim import catalog
from fedsim.config import build_part, compose
from fedsim.engines import ray_start
from fedsim.errors import DataError
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke
from tests.contract._discover import NAMES, QUERIES

ENGINES = ("cohort", "in_process")
SCENARIOS = [entry.name for entry in catalog.scenarios()]
ON_RAY = [("fedau_digits", "ray"), ("quickstart", "ray_cohort")]
"""A few: each starts processes. `ray` keeps a node for every client, too many for `million`."""
STARTED = {("engine", name) for name in ("deployment", "ray", "ray_cohort")}
"""These start processes; their own tests do that."""
PARTS = [
    (group, entry.name)
    for group in catalog.GROUPS
    for entry in catalog.entries(group)
    if (group, entry.name) not in STARTED
    # Whole runs of these are in tests/contract.
    if group != "strategy" or entry.name not in {*NAMES, *QUERIES}
]

CLIENTS, COHORT = "partition.num_clients=4", "participation.clients_per_round=3"
IMAGES = ["data.image=true"]
PEOPLE = ["data=table", "data.file={folder}/people.csv", "data.user=user"]
TOKENS = [
    *("data=table", "data.file={folder}/tokens.csv", "data.scale=tokens"),
    *("model.width=8", "model.heads=2", "model.pool=last"),
]
ITEMS = ["data=zipf", "data.sizes=[40,30,20,10]", "model=none", "participation=full"]
WITH: dict[tuple[str, str], list[str]] = {
    **{
        ("data", name): ["strategy=pem", "model=none"]
        for name in ("zipf", "baby_names", "shakespeare_words")
    },
    ("strategy", "kernel_density"): ["model=none", "participation=full", "strategy.features=32"],
    ("privacy", "similarity_noise"): [
        *("strategy=kernel_density", "model=none", "participation=full", "strategy.features=32"),
    ],
    ("model", "none"): [*ITEMS[:2], "strategy=pem", "participation=full"],
    ("privacy", "local_reports"): [*ITEMS, "strategy=pem"],
    ("privacy", "sample_threshold"): [*ITEMS, "strategy=triehh"],
    **{
        ("data", name): ["strategy=aggregate", "model=linear"]
        for name in ("bags", "bags_adult", "bags_california", "bags_fashion_mnist")
    },
    ("privacy", "aggregate_labels"): ["data=bags", "data.clip=3", "strategy=aggregate"],
    ("strategy", "least_squares"): ["data=bags", "model=linear"],
    ("privacy", "diff2"): ["strategy=diff2", "participation=full"],
    ("data", "table"): [*PEOPLE[1:], "model=linear"],
    ("data", "shakespeare"): ["model=transformer", "model.width=8"],
    ("data", "sentence_polarity"): ["model=text_classifier", "model.width=8"],
    **{
        ("data", name): ["model=linear"]
        for name in ("california_housing", "diabetes", "adult", "adult_binary", "retinamnist")
    },
    ("partition", "natural"): [*PEOPLE, "partition.num_clients=null"],
    ("partition", "rotation"): IMAGES,
    ("participation", "uniform"): [COHORT],
    **{("pace", name): ["devices=equal"] for name in ("deadline", "over_selection")},
    **{
        ("topology", name): ["strategy=dsgd", *more]
        for name, more in {
            "ring": [],
            "torus": [],
            "random_regular": ["topology.degree=3"],
            "erdos_renyi": [],
            "small_world": ["topology.neighbours=2"],
            "graphml": ["topology.path={folder}/graph.graphml"],
        }.items()
    },
    ("participation", "trace"): ["participation.path={folder}/trace.csv"],
    ("participation", "diurnal"): ["devices=equal"],
    ("participation", "intervals"): [
        *("devices=equal", "participation.path={folder}/intervals.csv"),
    ],
    ("devices", "csv"): ["devices.path={folder}/devices.csv"],
    **{("model", name): IMAGES for name in ("cnn", "cnn_cifar10", "cnn_cifar100", "cnn_svhn")},
    ("model", "resnet"): IMAGES,
    ("model", "transformer"): TOKENS,
    ("model", "text_classifier"): TOKENS[:5],
    ("model", "pretrained"): [*TOKENS[:3], "model.file={folder}/start.safetensors"],
    ("model", "lora"): [*TOKENS[:3], "model.base.file={folder}/start.safetensors"],
}
"""What a part needs beside itself, over `base`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files for the parts that read one."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    people = [f"{rng.normal():.3f},{rng.normal():.3f},{i % 3},u{i % 5}" for i in range(80)]
    (folder / "people.csv").write_text("\n".join(["a,b,y,user", *people]) + "\n")
    tokens = [",".join(map(str, [*rng.integers(9, size=6), i % 2])) for i in range(80)]
    (folder / "tokens.csv").write_text("\n".join(["a,b,c,d,e,f,y", *tokens]) + "\n")
    (folder / "trace.csv").write_text("round,client\n1,0\n1,2\n")
    (folder / "intervals.csv").write_text("client,start,end\n0,0,10\n2,5,9\n")
    (folder / "devices.csv").write_text("flops,down,up,memory\n1e9,1e6,1e6,1e8\n")
    nx.write_graphml(nx.path_graph(4), folder / "graph.graphml")
    words = [word.format(folder=folder) for word in [CLIENTS, COHORT, *TOKENS[:3]]]
    simulation = Simulation(compose("base", [*words, "model=text_classifier"]))
    save_file(simulation.runtime.initial_params(), folder / "start.safetensors")
    return folder


def starts(spec: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield (key, scenario) where a model starts from the newest run of another scenario."""
    if spec.get("file"):
        folder = Path(spec["file"])
        if folder.parts[:2] == ("results", "runs"):
            yield f"{path}.file", folder.name
    if "base" in spec:
        yield from starts(spec["base"], f"{path}.base")


def smoke(scenario: str, words: list[str], root: Path) -> list[RoundReport]:
    """Do what `fedsim run --smoke` does."""
    words = [*words, "device=cpu", f"output.root={root}"]
    config = compose(scenario, words)
    for key, first in starts(config.values["model"], "model"):
        smoke(first, words, root)  # what would have left the weights that this one starts from
        config = compose(scenario, [*words, f"{key}={next((root / first).iterdir())}"])
    simulation = Simulation(config, Smoke())
    try:
        assert simulation.loop
    except DataError as error:
        if not any(
            words in str(error) for words in ("is needed, and no data", "is missing; looked")
        ):
            raise
        pytest.skip(str(error))
    run = Run(simulation=simulation, folder=RunFolder.create(config, smoke=True))
    with closing(simulation):
        reports = list(run.start())
    assert (run.folder.path / "model.safetensors").is_file()
    return reports


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs_on_every_engine(scenario: str, engine: str, tmp_path: Path) -> None:
    started = time.process_time()
    reports = smoke(scenario, [f"engine={engine}"], tmp_path)
    private = scenario.startswith(("dp_", "diff2_"))
    # Private ones import Opacus (2 s) and try the model's gradients first; SemiPFL's server trains.
    more = private or scenario.startswith("semipfl_")
    assert time.process_time() - started < (15 if more else 5)
    last = reports[-1]
    assert last.server_round == 1
    assert len(last.admitted) == last.asked == 2
    assert not last.rejected
    if asks := last.central.keys() & {"f1", "rmse"}:  # questions, and trains nothing
        assert all(0 <= last.central[name] < np.inf for name in asks)
        assert last.central.get("f1", 0.0) <= 1
        return
    # A private run shows no training loss of its clients.
    assert private or last.train["train-loss"] > 0
    assert last.central["loss"] > 0


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason=f"Ray is not installed: {ray_start.INSTALL}"
)
@pytest.mark.parametrize(("scenario", "engine"), ON_RAY)
def test_a_few_scenarios_run_on_ray(scenario: str, engine: str, tmp_path: Path) -> None:
    reports = smoke(scenario, [f"engine={engine}", "engine.actors=1"], tmp_path)
    last = reports[-1]
    assert len(last.admitted) == last.asked == 2
    assert not last.rejected


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_says_what_to_expect(scenario: str) -> None:
    text = (catalog.ROOT / f"{scenario}.yaml").read_text()
    assert "\n# Expected: " in text


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_part_runs(group: str, name: str, folder: Path, tmp_path: Path) -> None:
    if name == "huggingface":  # would download; tests/data/test_huggingface.py has it read files
        assert build_part(compose("base", ["data=huggingface"]), "data").dataset == "ylecun/mnist"
        return
    more = [word.format(folder=folder) for word in WITH.get((group, name), [])]
    whole = group == "participation" or "participation=full" in more
    small = [CLIENTS] if whole else [CLIENTS, COHORT]
    reports = smoke("base", [*small, f"{group}={name}", *more], tmp_path)
    last = reports[-1]
    assert last.server_round == 1
    assert len(last.admitted) == last.asked > 0
    assert not last.rejected


@pytest.mark.parametrize("file", sorted(catalog.ROOT.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_says_what_it_is(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert 20 <= len(first) <= 160
