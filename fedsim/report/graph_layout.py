"""Where the nodes of a network are drawn: the same graph lies the same in every picture.

    star              the server in the middle, its clients on circles around it
    hierarchical      the cloud in the middle, edge servers on a circle, behind each its clients
    torus             a grid; links that go around leave it at its borders
    ring, or nearly   a circle, in the order of the nodes
    anything else     by forces (Kamada and Kawai, or springs where that would take long)

Shapes: N nodes, M links.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.report.network import Network

_MOST_KAMADA_KAWAI = 100
_FEW = 400
"""Springs of more nodes than these are given fewer steps."""
_NEAR = 3
"""A link joins neighbours on a circle if its ends are at most so many places apart."""

Place = tuple[np.ndarray, np.ndarray | None]
"""(positions `[N, 2]`, for links that leave a grid: bool `[M]`)."""


def layout(network: Network) -> Place:
    """Return where nodes lie, within the unit square around 0 or a little beyond."""
    count, ends_M2 = len(network), network.ends_M2
    server = [i for i, role in enumerate(network.roles) if role == "server"]
    if len(server) == 1:
        return _tree(network, server[0]), None
    columns = _columns(count, ends_M2)
    if columns is not None:
        index_N = np.arange(count)
        rows = count // columns
        x_N, y_N = index_N % columns, index_N // columns
        place_N2 = np.stack([x_N - (columns - 1) / 2, (rows - 1) / 2 - y_N], 1)
        step_M2 = np.abs(place_N2[ends_M2[:, 0]] - place_N2[ends_M2[:, 1]])
        return place_N2 * 2 / max(rows, columns, 2), step_M2.max(1) > 1
    apart_M = np.abs(ends_M2[:, 0] - ends_M2[:, 1])
    apart_M = np.minimum(apart_M, count - apart_M)
    if len(apart_M) and count > 2 * _NEAR and (apart_M <= _NEAR).mean() >= 0.5:
        return _circle(count), None
    return _by_forces(count, ends_M2), None


def _circle(count: int) -> np.ndarray:
    """Return places on a circle, clockwise from the top."""
    angle_N = np.pi / 2 - 2 * np.pi * np.arange(count) / max(1, count)
    return np.stack([np.cos(angle_N), np.sin(angle_N)], 1)


def _columns(count: int, ends_M2: np.ndarray) -> int | None:
    """Return the columns of the torus that the links are those of, from 3 x 3 on; else None."""
    links = {(min(a, b), max(a, b)) for a, b in ends_M2.tolist()}
    if len(links) != 2 * count:
        return None
    index_N = np.arange(count)
    for columns in range(3, count // 3 + 1):
        if count % columns:
            continue
        right_N = index_N // columns * columns + (index_N + 1) % columns
        below_N = (index_N + columns) % count
        pairs = [*zip(index_N, right_N, strict=True), *zip(index_N, below_N, strict=True)]
        if {(int(min(pair)), int(max(pair))) for pair in pairs} == links:
            return columns
    return None


def _tree(network: Network, server: int) -> np.ndarray:
    """Return places around a server; behind each edge server, those that only it leads to."""
    neighbours: list[list[int]] = [[] for _ in network.names]
    for a, b in network.ends_M2.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    edges = [i for i, role in enumerate(network.roles) if role == "edge"]
    place_N2 = np.zeros((len(network), 2))
    others = [i for i in range(len(network)) if i != server and network.roles[i] != "edge"]
    if not edges:
        place_N2[others] = _rings(len(others))
        return place_N2
    mine: dict[int, list[int]] = {edge: [] for edge in edges}
    loose: list[int] = []
    for node in others:
        leads = [n for n in neighbours[node] if n in mine]
        (mine[leads[0]] if leads else loose).append(node)
    width = {edge: max(1, len(nodes)) for edge, nodes in mine.items()}
    total, start = sum(width.values()) + len(loose), 0.0
    for edge, nodes in mine.items():
        sector = 2 * np.pi * width[edge] / total
        middle = np.pi / 2 - start - sector / 2
        place_N2[edge] = 0.42 * math.cos(middle), 0.42 * math.sin(middle)
        place_N2[nodes] = _sector(len(nodes), middle, 0.9 * sector)
        start += sector
    place_N2[loose] = _sector(len(loose), np.pi / 2 - (start + 2 * np.pi) / 2, 2 * np.pi - start)
    return place_N2


def _rings(count: int) -> np.ndarray:
    """Return places on as few circles as give each node its room, from the inside out."""
    rings = max(1, math.ceil(math.sqrt(count / 90)))
    radius_R = np.linspace(1.0 if rings == 1 else 0.45, 1.0, rings)
    share_R = np.floor(count * np.cumsum(radius_R) / radius_R.sum()).astype(int)
    sizes_R = np.diff([0, *share_R[:-1], count])
    turns = [(np.arange(size) + 0.5 * (ring % 2)) / size for ring, size in enumerate(sizes_R)]
    angle_N = np.pi / 2 - 2 * np.pi * np.concatenate(turns)
    radius_N = np.repeat(radius_R, sizes_R)[:, None]
    place_N2: np.ndarray = radius_N * np.stack([np.cos(angle_N), np.sin(angle_N)], 1)
    return place_N2


def _sector(count: int, middle: float, sector: float) -> np.ndarray:
    """Return places between two rays, on arcs from the outside in, in the order of a reader."""
    rows = max(1, math.ceil(math.sqrt(count / (30 * max(sector, 0.05)))))
    per_row = math.ceil(count / rows)
    index_N = np.arange(count)
    row_N, at_N = index_N // max(1, per_row), index_N % max(1, per_row)
    in_row_N = np.minimum(per_row, count - row_N * per_row)
    turn_N = middle + sector / 2 - sector * (at_N + 0.5) / np.maximum(1, in_row_N)
    radius_N = 1.0 - 0.38 * row_N / max(1, rows)
    place_N2: np.ndarray = radius_N[:, None] * np.stack([np.cos(turn_N), np.sin(turn_N)], 1)
    return place_N2


def _by_forces(count: int, ends_M2: np.ndarray) -> np.ndarray:
    import networkx as nx  # a tenth of a second, which few reports need

    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(ends_M2.tolist())
    if count <= _MOST_KAMADA_KAWAI and count > 2 and nx.is_connected(graph):
        at = nx.kamada_kawai_layout(graph)
    else:
        at = nx.spring_layout(graph, seed=0, iterations=50 if count <= _FEW else 20)
    place_N2 = np.array([at[node] for node in range(count)], np.float64).reshape(count, 2)
    reach = float(np.abs(place_N2).max(initial=0.0))
    return place_N2 / reach if reach > 0 else place_N2
