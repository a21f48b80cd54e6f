"""Every strategy that a scenario can name, made from its YAML file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import yaml
from flwr.serverapp.strategy import Strategy

FOLDER = Path(__file__).parents[2] / "scenarios" / "strategy"
LINEAR_ONLY = {"least_squares"}
"""A closed form for one linear layer: no toy model has it. tests/strategies has its own tests."""

EVERYBODY = {"diff2", "dp_gd", "bvr_l_sgd"}
"""They refuse clients that are drawn."""

NAMES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - LINEAR_ONLY)


def spec(name: str) -> dict[str, object]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def make(name: str, **changes: object) -> Strategy:
    """Make one strategy with the values of its file."""
    fields = {**spec(name), **changes}
    module, _, cls = str(fields.pop("_target_")).rpartition(".")
    return getattr(import_module(module), cls)(**fields)


def is_ours(name: str) -> bool:
    return str(spec(name)["_target_"]).startswith("strategies.")


OURS = [name for name in NAMES if is_ours(name)]
FLOWERS = [name for name in NAMES if not is_ours(name)]
