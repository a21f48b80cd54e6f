"""Every strategy that a scenario can name, made from its YAML file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import yaml
from flwr.serverapp.strategy import Strategy

from fedsim.asynchronous import AsynchronousStrategy
from fedsim.query import QueryStrategy
from fedsim.strategy import FedsimStrategy

FOLDER = Path(__file__).parents[2] / "scenarios" / "strategy"
LINEAR_ONLY = {"least_squares"}
"""A closed form for one linear layer: no toy model has it. tests/strategies has its own tests."""

EVERYBODY = {"diff2", "dp_gd", "bvr_l_sgd"}
"""They refuse clients that are drawn."""


def spec(name: str) -> dict[str, object]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def kind(name: str) -> type[Strategy]:
    module, _, cls = str(spec(name)["_target_"]).rpartition(".")
    found: type[Strategy] = getattr(import_module(module), cls)
    return found


OF_VECTORS = {"kernel_density"}
"""Asks one question about vectors, not about items: tests/strategies/test_kernel_density.py."""

ASKING = {p.stem for p in FOLDER.glob("*.yaml") if issubclass(kind(p.stem), QueryStrategy)}
QUERIES = sorted(ASKING - OF_VECTORS)
"""Those that ask questions and train nothing: tests/contract/test_queries.py."""

NAMES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - LINEAR_ONLY - ASKING)


def make(name: str, **changes: object) -> Strategy:
    """Make one strategy with the values of its file."""
    fields = {**spec(name), **changes}
    del fields["_target_"]
    return kind(name)(**fields)


def is_ours(name: str) -> bool:
    return str(spec(name)["_target_"]).startswith("strategies.")


ASYNCHRONOUS = [name for name in NAMES if issubclass(kind(name), AsynchronousStrategy)]
"""They need devices, and in a round they ask those alone who are not busy."""

EVERY_ROUND = [name for name in NAMES if name not in ASYNCHRONOUS]
"""They ask all who take part in a round, and use the replies in it."""

OURS = [name for name in NAMES if is_ours(name)]
FLOWERS = [name for name in NAMES if not is_ours(name)]

TOPOLOGY = {"peer": "ring", "hierarchical": "hierarchical"}
"""A topology of each kind that is not `base`'s."""


def topology(name: str) -> list[str]:
    """Return the words that give a strategy the topology that its class says it needs."""
    found = kind(name)
    if not issubclass(found, FedsimStrategy) or "star" in found.topologies:
        return []
    return [f"topology={TOPOLOGY[min(found.topologies)]}"]


SEMIPFL = ("semipfl", "semipfl_paper", "semipfl_released_code")
CODED = {*SEMIPFL, "fedavg_autoencoder", "fedprox_autoencoder"}
"""Their clients train autoencoders: where there is a real model, it must be one."""


def short(name: str) -> dict[str, object]:
    """Return fields that keep the scoring of one of these short."""
    return {"base_epochs": 1, "mix_epochs" if name in SEMIPFL else "tune_epochs": 2}
