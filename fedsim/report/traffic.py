"""The network drawn with its traffic: what each link has carried, as width and shade.

Shapes: N nodes, M links.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial import cKDTree

from fedsim.report import figures, page
from fedsim.report.graph_layout import layout
from fedsim.report.heatmap import tick_step
from fedsim.report.network import Network
from fedsim.report.page import Html

MOST_NODES, MOST_LINKS = 1500, 10_000
"""A larger network is not drawn."""
BUSIEST = 10
"""Links that are listed."""
_MOST_LABELS = 24
_MOST_PATHS = 1500
"""More links than these become one image inside the picture, which is smaller than their paths."""

_LOOKS = {
    "client": ("o", figures.BLUE, "client"),
    "edge": ("s", figures.ORANGE, "edge server"),
    "server": ("D", figures.VERMILLION, "server"),
}
_OTHER = ("X", figures.BLACK, "other")
_SHADES = LinearSegmentedColormap.from_list("traffic", ["#c3cad1", "#6d7d8b", "#1c2b36"])
"""From light to dark, in grey too; nodes have the colours."""
_NOTHING = "#9aa3ab"
_SIDE = 430.0
"""About how many points a picture is wide and high."""


def traffic(network: Network | None) -> Html:
    """Return the section; nothing without a graph."""
    if network is None or not len(network):
        return Html("")
    words = describe(network)
    lead = page.element("p", words)
    if len(network) > MOST_NODES or len(network.bytes_M) > MOST_LINKS:
        why = page.element("p", "Not drawn: the network is larger than a picture can show.")
        return page.section("Links and their traffic", lead, why, _busiest(network))
    svg = figures.svg("network", (figures.FULL, 7.6), lambda figure: draw(figure, network))
    caption = (
        "Width and shade tell what a link has carried over the whole run, both ways together, "
        "what was sent again after a loss included."
    )
    drawn = page.figure(svg, caption, f"Graph of the network. {words}")
    return page.section("Links and their traffic", lead, drawn, _busiest(network))


def describe(network: Network) -> str:
    """Return the picture in words."""
    counts = [
        f"{count:,} {name}{'' if count == 1 else 's'}"
        for role, name in [*((role, look[2]) for role, look in _LOOKS.items()), (None, "other")]
        if (count := _count(network, role))
    ]
    links = len(network.bytes_M)
    words = f"{', '.join(counts)}; {links:,} link{'' if links == 1 else 's'}"
    if not network.bytes_M.any():
        return f"{words}, which have carried nothing."
    busiest = int(np.argmax(network.bytes_M))
    return (
        f"{words}, which have carried {show_bytes(float(network.bytes_M.sum()))} in all. Most: "
        f"{_link(network, busiest)}, {show_bytes(float(network.bytes_M[busiest]))}."
    )


def draw(figure: Figure, network: Network) -> None:
    """Draw the network into a figure."""
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    place_N2, leaves_M = layout(network)
    thickest = _draw_links(axes, network, place_N2, leaves_M)
    _draw_nodes(axes, network, place_N2)
    axes.margins(0.06)
    handles = [*_node_keys(network), *_link_keys(network, thickest)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _draw_links(
    axes: Axes, network: Network, place_N2: np.ndarray, leaves_M: np.ndarray | None
) -> float:
    """Draw all links; return how thick the busiest is."""
    order_M = np.argsort(network.bytes_M, kind="stable")  # the busiest on top
    from_M2, to_M2 = (place_N2[network.ends_M2[order_M, end]] for end in (0, 1))
    lines = np.stack([from_M2, to_M2], 1)
    share_M = _share(network)[order_M]
    if leaves_M is not None:
        lines, share_M = _around(lines, share_M, leaves_M[order_M])
    many, thickest = len(lines) > _MOST_PATHS, _thickest(lines)
    used = share_M > 0
    idle = LineCollection(list(lines[~used]), linewidths=0.7, colors=_NOTHING, linestyles=":")
    busy = LineCollection(
        list(lines[used]), linewidths=_width(thickest, share_M[used]), colors=_SHADES(share_M[used])
    )
    for links in (idle, busy):
        links.set(zorder=1, rasterized=many)
        axes.add_collection(links)
    axes.autoscale_view()
    return thickest


def _thickest(lines: np.ndarray) -> float:
    """Return the width of the busiest link, in points: such that all leave half the picture."""
    length = float(np.linalg.norm(lines[:, 0] - lines[:, 1], axis=1).sum()) * _SIDE / 2
    return float(np.clip(0.5 * _SIDE**2 / max(length, 1.0), 1.2, 4.5))


def _width(thickest: float, share_M: np.ndarray) -> np.ndarray:
    width_M: np.ndarray = thickest * (0.1 + 0.9 * share_M)
    return width_M


def _around(
    lines: np.ndarray, share_M: np.ndarray, leaves_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a link that goes around a grid by a stub at each of its ends."""
    inside, around = lines[~leaves_M], lines[leaves_M]
    step = np.sign(around[:, 1] - around[:, 0]) * _spacing(inside) * 0.45
    stubs = [
        np.stack([around[:, 0], around[:, 0] - step], 1),
        np.stack([around[:, 1], around[:, 1] + step], 1),
    ]
    shares = [share_M[~leaves_M], share_M[leaves_M], share_M[leaves_M]]
    return np.concatenate([inside, *stubs]), np.concatenate(shares)


def _spacing(lines: np.ndarray) -> float:
    return float(np.abs(lines[:, 0] - lines[:, 1]).sum(1).min(initial=1.0))


def _draw_nodes(axes: Axes, network: Network, place_N2: np.ndarray) -> None:
    roles = np.array(network.roles, dtype=object)
    size = _node_size(place_N2)
    for role, (marker, colour, _) in [*_LOOKS.items(), (None, _OTHER)]:
        mine = roles == role if role else ~np.isin(roles, list(_LOOKS))
        if mine.any():
            own = size if role == "client" else max(size, 90.0)
            axes.scatter(
                place_N2[mine, 0],
                place_N2[mine, 1],
                s=own,
                marker=marker,
                color=colour,
                edgecolors="white",
                linewidths=0.6 if own > 12 else 0.0,
                zorder=2,
            )
    clients = np.flatnonzero(roles == "client")
    inside = len(clients) <= _MOST_LABELS
    for node in clients[:: tick_step(len(clients), _MOST_LABELS)].tolist():
        _label(axes, network.names[node], place_N2[node], inside)
    others = np.flatnonzero(roles != "client")
    if len(others) <= _MOST_LABELS:
        for node in others.tolist():
            _label(axes, network.names[node], place_N2[node], False)


def _node_size(place_N2: np.ndarray) -> float:
    """Return the area of a client's mark, in square points, that leaves its links to be seen."""
    if len(place_N2) < 2:
        return 190.0
    near_N = cKDTree(place_N2).query(place_N2, k=2)[0][:, 1]
    reach = max(1e-9, float(np.ptp(place_N2, axis=0).max()))
    room = float(np.median(near_N)) / reach * _SIDE
    return float(np.clip((0.55 * room) ** 2, 0.6, 190))


def _label(axes: Axes, name: str, place_2: np.ndarray, inside: bool) -> None:
    if inside and len(name) <= 3:
        axes.annotate(
            figures.label(name), tuple(place_2), ha="center", va="center", fontsize=8, color="white"
        )
        return
    axes.annotate(
        figures.label(name, 16),
        tuple(place_2),
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=8,
        bbox={
            "boxstyle": "round,pad=0.12",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.8,
        },
        zorder=3,
    )


def _share(network: Network) -> np.ndarray:
    """Return each link's traffic as a share of the busiest's, `[M]`, by its square root."""
    most = network.bytes_M.max(initial=0.0)
    share_M: np.ndarray = (
        np.sqrt(network.bytes_M / most) if most > 0 else np.zeros(len(network.bytes_M))
    )
    return share_M


def _node_keys(network: Network) -> list[Line2D]:
    keys = []
    for role, (marker, colour, name) in [*_LOOKS.items(), (None, _OTHER)]:
        count = _count(network, role)
        if count:
            text = f"{count:,} {name}{'' if count == 1 else 's'}"
            keys.append(
                Line2D([], [], linestyle="", marker=marker, markersize=8, color=colour, label=text)
            )
    return keys


def _link_keys(network: Network, thickest: float) -> list[Line2D]:
    used_M = network.bytes_M[network.bytes_M > 0]
    keys = []
    if len(used_M):
        most = float(used_M.max())
        value_V = np.unique([float(used_M.min()), float(np.median(used_M)), most])
        share_V = np.sqrt(value_V / most)
        for value, share, width in zip(value_V, share_V, _width(thickest, share_V), strict=True):
            text = show_bytes(float(value))
            keys.append(Line2D([], [], color=_SHADES(share), linewidth=width, label=text))
    if len(used_M) < len(network.bytes_M):
        keys.append(Line2D([], [], color=_NOTHING, linestyle=":", label="nothing"))
    return keys


def _busiest(network: Network) -> Html:
    """Return the table of the busiest links."""
    order_M = np.argsort(-network.bytes_M, kind="stable")[:BUSIEST]
    rows = [
        [
            _link(network, m),
            show_bytes(float(network.bytes_M[m])),
            "no limit"
            if np.isinf(network.bandwidth_M[m])
            else f"{show_bytes(float(network.bandwidth_M[m]))}/s",
            f"{1000 * network.latency_M[m]:.4g} ms",
            f"{100 * network.loss_M[m]:.3g} %",
        ]
        for m in order_M.tolist()
    ]
    head = ["link", "carried", "bandwidth", "latency", "messages lost"]
    title = f"The {len(rows)} busiest links" if len(rows) < len(network.bytes_M) else "All links"
    return page.details(title, page.table(head, rows, named=True)) if rows else Html("")


def _count(network: Network, role: str | None) -> int:
    if role is None:
        return sum(mine not in _LOOKS for mine in network.roles)
    return network.roles.count(role)


def _link(network: Network, m: int) -> str:
    a, b = (network.names[int(end)] for end in network.ends_M2[m])
    return f"{a} - {b}"


def show_bytes(count: float) -> str:
    """Return a number of bytes.

    Example:
        >>> show_bytes(0), show_bytes(999), show_bytes(1_234_567), show_bytes(5e12)
        ('0 B', '999 B', '1.23 MB', '5 TB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:,.0f} {unit}"
