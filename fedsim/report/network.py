"""Who is linked to whom, and what each link has carried, as `graph.json` has it.

Shapes: N nodes, M links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_NODES, _MOST_LINKS = 100_000, 500_000
_MOST = 1e30
_LONGEST = 80


@dataclass(frozen=True, kw_only=True)
class Network:
    """A graph with its traffic.

    Attributes:
        names: Of the nodes; a client's is its index in words.
        roles: Of the nodes: `client`, `edge`, `server`, or whatever the file says.
        ends_M2: The two nodes of each link, int64.
        bytes_M: What it has carried, both ways.
        bandwidth_M: Bytes per second; infinite without a limit.
        latency_M: Seconds.
        loss_M: Share of messages lost.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]
    ends_M2: np.ndarray
    bytes_M: np.ndarray
    bandwidth_M: np.ndarray
    latency_M: np.ndarray
    loss_M: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def read_network(content: dict[str, Any]) -> Network:
    """Return what the file's content says.

    Raises:
        ValueError: It is no such graph; says why.
        KeyError, TypeError: Likewise.
    """
    nodes, edges = _list(content, "nodes", _MOST_NODES), _list(content, "edges", _MOST_LINKS)
    at: dict[str, int] = {}
    for node in nodes:
        name = _name(node["id"])
        if name in at:
            raise ValueError(f"node {name!r} is there twice")
        at[name] = len(at)
    ends = []
    for edge in edges:
        a, b = _name(edge["a"]), _name(edge["b"])
        if a not in at or b not in at:
            raise ValueError(f"the link {a!r} - {b!r} has an end that is no node")
        ends.append((at[a], at[b]))
    ends_M2 = np.array(ends, np.int64).reshape(-1, 2)
    keys = {(min(pair), max(pair)) for pair in ends}
    if len(keys) != len(ends) or any(a == b for a, b in ends):
        raise ValueError("a link is there twice, or joins a node to itself")
    return Network(
        names=tuple(at),
        roles=tuple(_name(node["role"]) for node in nodes),
        ends_M2=ends_M2,
        bytes_M=_column(edges, "bytes", 0.0),
        bandwidth_M=_column(edges, "bandwidth", math.inf),
        latency_M=_column(edges, "latency", 0.0),
        loss_M=_column(edges, "loss", 0.0, 1.0),
    )


def _list(content: dict[str, Any], key: str, most: int) -> list[Any]:
    value = content[key]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(f"'{key}' is no list of objects")
    if len(value) > most:
        raise ValueError(f"'{key}' are more than {most:,}")
    return value


def _name(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError("an id or a role is neither text nor a whole number")
    return str(value)[:_LONGEST]


def _column(edges: list[Any], key: str, missing: float, most: float = _MOST) -> np.ndarray:
    values = [edge.get(key) for edge in edges]
    column = np.array([missing if v is None else _number(key, v) for v in values], np.float64)
    if not ((column >= 0) & ((column <= most) | (column == missing))).all():
        raise ValueError(f"a link's {key} is negative or too large")
    return column


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a link's {key} is no number")
    return float(value)
