"""The summaries that a released object can hold, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.errors import ConfigError, did_you_mean
from privacy.similarity.base import Summary
from privacy.similarity.bernstein import Bernstein
from privacy.similarity.classes import PerClass
from privacy.similarity.gaussian_process import GaussianProcess
from privacy.similarity.lsq import LSQ
from privacy.similarity.moments import EvenPower, InnerProduct, SquaredDistance
from privacy.similarity.projection import Projected
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.tree import Tree

KINDS: dict[str, type[Summary]] = {
    kind.__name__: kind
    for kind in (
        Tree,
        InnerProduct,
        SquaredDistance,
        EvenPower,
        Projected,
        RandomFeatures,
        GaussianProcess,
        LSQ,
        Bernstein,
        PerClass,
    )
}


def from_json(data: Any) -> Summary:
    """Make the summary that `Summary.to_json` wrote.

    Raises:
        ConfigError: It is no such thing.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise ConfigError(f"kind: {kind!r} is no summary{hint}; known: {', '.join(KINDS)}")
    values = {name: value for name, value in data.items() if name != "kind"}
    if "inner" in values:
        values["inner"] = from_json(values["inner"])
    return KINDS[kind].read(values)
