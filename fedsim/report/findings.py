"""What a run of questions has found: the tables and graphs of `findings.json`, as it stands there.

A graph is laid out layer by layer from the left (networkx' multipartite layout); each kind of node
has a colour and a shape of its own, so that a print in grey still reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.report import figures, page
from fedsim.report.page import Html

MOST_NODES = 1500
"""More nodes than these are not drawn."""

_LOOKS = (("o", figures.BLUE), ("s", "#8b949e"), ("X", figures.VERMILLION), ("D", figures.ORANGE))


@dataclass(frozen=True, kw_only=True)
class DrawnGraph:
    """A graph as it is drawn; see `fedsim.query.Graph`."""

    nodes: Mapping[str, tuple[str, str]]
    edges: list[tuple[str, str]]
    layers: Mapping[str, int]
    kinds: Mapping[str, str]


def findings(content: Mapping[str, Any]) -> Html:
    """Return the section; nothing where a run has found nothing, or its file is not as it was."""
    parts: list[Html] = []
    for number, graph in enumerate(_list(content.get("graphs"))):
        try:
            drawn = _graph(graph)
        except (KeyError, TypeError, ValueError, AttributeError):
            parts.append(page.element("p", "A picture is missing: its data are damaged."))
            continue
        title = str(graph.get("title", ""))
        parts.append(page.element("h3", title))
        if len(drawn.nodes) > MOST_NODES:
            words = f"Not drawn: {len(drawn.nodes):,} nodes are more than a picture can show."
            parts.append(page.element("p", words))
            continue
        # Letters only, as `figures.svg` asks for.
        svg = graph_svg(f"graph{'abcdefgh'[number % 8]}", drawn)
        parts.append(page.figure(svg, str(graph.get("caption", "")), title))
    for table in _list(content.get("tables")):
        if not isinstance(table, dict):
            continue
        head = [str(name) for name in _list(table.get("head"))]
        rows = [[str(cell) for cell in _list(row)] for row in _list(table.get("rows"))]
        parts += [page.element("h3", str(table.get("title", ""))), page.table(head, rows)]
    return page.section("What was found", *parts) if parts else Html("")


def graph_svg(name: str, graph: DrawnGraph) -> str:
    """Draw a graph as SVG."""
    widest = max(_widths(graph.layers), default=1)
    size = (figures.FULL, min(14.0, max(3.0, 0.17 * widest + 0.8)))

    def draw(figure: Figure) -> None:
        draw_graph(figure.subplots(), graph)

    return figures.svg(name, size, draw)


def draw_graph(axes: Axes, graph: DrawnGraph) -> None:
    """Draw a graph into axes of any figure."""
    places = layout(graph)
    axes.set_axis_off()
    for start, end in graph.edges:
        (x0, y0), (x1, y1) = places[start], places[end]
        axes.plot([x0, x1], [y0, y1], color="#c9cdd2", linewidth=0.7, zorder=1)
    for (kind, words), (marker, colour) in zip(graph.kinds.items(), _LOOKS, strict=False):
        where = [places[n] for n, (_, its) in graph.nodes.items() if its == kind]
        if where:
            x, y = zip(*where, strict=True)
            label = figures.label(words, 80)
            axes.scatter(x, y, s=18, marker=marker, color=colour, zorder=2, label=label)
    deepest = max(graph.layers.values(), default=0)
    for node, (text, _) in graph.nodes.items():
        if text and graph.layers[node] == deepest:
            x_0, y_0 = places[node]
            axes.annotate(
                figures.label(text, 24),
                (x_0, y_0),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
            )
    axes.margins(x=0.08)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=9)


def layout(graph: DrawnGraph) -> dict[str, tuple[float, float]]:
    """Return where each node goes: its layer from the left, children near their parents."""
    import networkx as nx  # a tenth of a second, which few reports need

    drawn = nx.DiGraph()
    drawn.add_nodes_from(graph.nodes)
    drawn.add_edges_from(graph.edges)
    # In the order of a walk from the roots, so that no two edges of a tree cross.
    roots = sorted(n for n, degree in drawn.in_degree() if degree == 0)
    layers: dict[int, list[str]] = {}
    for root in roots:
        for node in nx.dfs_preorder_nodes(drawn, root):
            layers.setdefault(graph.layers[node], []).append(node)
    at = nx.multipartite_layout(drawn, subset_key=layers)
    return {str(node): (float(x), -float(y)) for node, (x, y) in at.items()}


def _widths(layers: Mapping[str, int]) -> list[int]:
    counts: dict[int, int] = {}
    for layer in layers.values():
        counts[layer] = counts.get(layer, 0) + 1
    return list(counts.values())


def _graph(content: Mapping[str, Any]) -> DrawnGraph:
    nodes = {str(n): (str(pair[0]), str(pair[1])) for n, pair in content["nodes"].items()}
    layers = {str(n): int(layer) for n, layer in content["layers"].items()}
    edges = [(str(a), str(b)) for a, b in content["edges"]]
    if set(layers) != set(nodes) or any(end not in nodes for edge in edges for end in edge):
        raise ValueError("the graph's parts do not fit each other")
    kinds = {str(kind): str(words) for kind, words in content["kinds"]}
    return DrawnGraph(nodes=nodes, edges=edges, layers=layers, kinds=kinds)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
