"""The pictures of a comparison. Each is drawn into a figure, for the page (SVG) or a file (PNG).

A setting keeps its colour, line and marker in all of them; past eight settings they repeat, and
the tables tell the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.compare.members import Comparison, Group
from fedsim.report import figures
from fedsim.report.fairness import Fairness, fairness
from fedsim.report.figures import BLACK, FULL, Mark
from fedsim.report.heatmap import draw_cells
from fedsim.report.measures import (
    COST_AXIS,
    COST_NOTES,
    COST_WORDS,
    axis_label,
    is_shown,
    lower_is_better,
    scale,
    word,
)
from fedsim.report.participation import raster
from fedsim.report.round_columns import By
from fedsim.report.run_folder import RunData
from fedsim.sweep.pictures import MARKS

_MARKS = (*MARKS, Mark(BLACK, "-", "x"), Mark(figures.YELLOW, "-.", "*"))
MOST_RASTERS = 6
_NOTES = {"time": "Compares what ran on like machines only.", **COST_NOTES}

Draw = Callable[[Figure], None]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        name: Of the file, and of its ids in the page.
        size: Inches.
        draw: Draws into a figure.
        words: What it shows, in a line.
        caption: How to read it.
    """

    name: str
    size: tuple[float, float]
    draw: Draw
    words: str
    caption: str = ""


def mark(index: int) -> Mark:
    """Return how a setting is drawn."""
    return _MARKS[index % len(_MARKS)]


@dataclass(frozen=True)
class Curve:
    """One metric of a setting over its seeds: `[M]` each, spread zero for a single seed."""

    place_M: np.ndarray
    mean_M: np.ndarray
    spread_M: np.ndarray


def curve(group: Group, where: str, metric: str, *, by: By = "round") -> Curve | None:
    """Return mean and standard deviation over seeds, of the rounds that every seed measured."""
    series = []
    for member in group.members:
        one = member.data.rounds.metrics[where].get(metric)
        if one is None or not len(one.finite().round_M):
            continue
        if member.data.rounds.places(by) is None:
            continue
        series.append((member.data, one.finite()))
    if not series:
        return None
    common = series[0][1].round_M
    for _, one in series[1:]:
        common = np.intersect1d(common, one.round_M)
    if not len(common):
        return None
    value_SM = np.array([one.value_M[np.isin(one.round_M, common)] for _, one in series])
    spread_M = value_SM.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(common))
    place_M = np.mean([_places(data, common, by) for data, _ in series], axis=0)
    return Curve(place_M, value_SM.mean(axis=0), spread_M)


def _places(data: RunData, round_M: np.ndarray, by: By) -> np.ndarray:
    """Return where rounds lie on an axis, at their end."""
    place_R = data.rounds.places(by)
    if place_R is None:
        raise ValueError(f"{data.path} does not know where its rounds lie by {by}")
    places: np.ndarray = place_R[np.searchsorted(data.rounds.round_R, round_M)]
    return places


def curves(comparison: Comparison, where: str, metric: str, *, by: By) -> Picture | None:
    """Return the curves of all settings that measured a metric."""
    found = [(i, g, curve(g, where, metric, by=by)) for i, g in _numbered(comparison)]
    drawn = [(i, g, c) for i, g, c in found if c is not None]
    if not drawn:
        return None
    times = scale(metric)
    seeds = max(len(group.members) for _, group, _ in drawn)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, group, each in drawn:
            look = mark(index)
            mean_M, spread_M = each.mean_M * times, each.spread_M * times
            if spread_M.any():
                axes.fill_between(
                    each.place_M,
                    mean_M - spread_M,
                    mean_M + spread_M,
                    color=look.colour,
                    alpha=0.14,
                    linewidth=0,
                )
            axes.plot(
                each.place_M,
                mean_M,
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markevery=(index % 5, max(1, len(mean_M) // 9)),
                label=figures.label(group.name, 60),
            )
        axes.margins(x=0.02)
        axes.set_ylabel(figures.label(axis_label(metric)))
        if by == "round":
            figures.round_axis(axes)
        else:
            axes.set_xlabel(COST_AXIS[by])
        axes.set_title(_title(metric))
        _legend(figure, axes, len(drawn))

    band = "Mean over seeds; the band is one standard deviation. " if seeds > 1 else ""
    if seeds > 1 and by != "round":
        band += "A round lies at the mean of its places over seeds. "
    note = _NOTES.get(by, "")
    return Picture(
        name=f"{metric.replace('-', '_')}_{'rounds' if by == 'round' else by}",
        size=(FULL, 4.3),
        draw=draw,
        words=f"{word(metric)} by {COST_WORDS[by]}, {len(drawn)} settings",
        caption=band + note,
    )


def evenness(comparison: Comparison, metric: str) -> Picture | None:
    """Return the spread of the clients' own metrics, a box for each setting."""
    found = [(i, g, fair(g, metric)) for i, g in _numbered(comparison)]
    drawn = [(i, g, f) for i, g, f in found if f is not None]
    if not drawn:
        return None
    times = scale(metric)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        boxes = axes.boxplot(
            [each.value_K * times for _, _, each in drawn],
            orientation="horizontal",
            whis=(10, 90),
            widths=0.55,
            patch_artist=True,
            medianprops={"color": BLACK, "linewidth": 1.6},
            flierprops={"marker": ".", "markersize": 3, "alpha": 0.5},
        )
        for (index, _, _), box in zip(drawn, boxes["boxes"], strict=True):
            box.set_facecolor(mark(index).colour)
            box.set_alpha(0.45)
        for row, (_, _, each) in enumerate(drawn, start=1):
            axes.plot(
                each.mean * times, row, "o", color=BLACK, ms=5, label="mean" if row == 1 else None
            )
            axes.plot(
                each.worst * times,
                row,
                "D",
                mfc="white",
                mec=BLACK,
                ms=6,
                label="mean of the worst 10 %" if row == 1 else None,
            )
        names = [figures.label(group.name, 44) for _, group, _ in drawn]
        axes.set_yticks(range(1, len(drawn) + 1), names)
        axes.invert_yaxis()
        axes.set_xlabel(figures.label(f"clients' own {axis_label(metric)}"))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16 - 0.2 / len(drawn)), ncols=2)

    return Picture(
        name="fairness",
        size=(FULL, 1.7 + 0.42 * len(drawn)),
        draw=draw,
        words=f"Boxes of the clients' own {word(metric)}",
        caption="Box: the middle half of the clients, of all seeds; line: median; whiskers: 10th "
        "and 90th percentile; dots: the clients beyond.",
    )


def fair(group: Group, metric: str) -> Fairness | None:
    """Return the spread over clients when they were last evaluated, all seeds together."""
    values = [
        member.data.rounds.latest.values[metric]
        for member in group.members
        if member.data.rounds.latest is not None and metric in member.data.rounds.latest.values
    ]
    return fairness(metric, np.concatenate(values)) if values and is_shown(metric) else None


def participation(comparison: Comparison) -> Picture | None:
    """Return who took part: a raster for each setting's first run, of the first six."""
    able = [
        (group, group.members[0].data)
        for group in comparison.groups
        if group.members[0].data.rounds.last
    ]
    kept: list[tuple[str, RunData]] = []
    seen: dict[tuple[bytes, ...], int] = {}
    for group, data in able:
        key = tuple(clients.tobytes() for clients in data.rounds.admitted)
        if key in seen:
            name, first = kept[seen[key]]
            kept[seen[key]] = (f"{name}; {group.name}", first)
        else:
            seen[key] = len(kept)
            kept.append((group.name, data))
    if not kept:
        return None
    shown = kept[:MOST_RASTERS]
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, (name, data) in zip(grid.flat, shown, strict=False):
            seen = max((int(c.max()) + 1 for c in data.rounds.admitted if len(c)), default=1)
            picture = raster(data.rounds, data.num_clients or seen)
            axes.grid(False)
            axes.imshow(
                picture.share_KT,
                aspect="auto",
                interpolation="none",
                cmap="Blues",
                vmin=0,
                vmax=max(float(picture.share_KT.max()), 1e-12),
                extent=(
                    picture.round_edges[0] - 0.5,
                    picture.round_edges[-1] - 0.5,
                    picture.client_edges[-1] - 0.5,
                    picture.client_edges[0] - 0.5,
                ),
            )
            title = "all settings" if len(kept) == 1 else name
            axes.set_title(figures.label(title, 52 if columns > 1 else 110), fontsize=9.5)
            axes.set_ylabel("client")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            figures.round_axis(axes)

    more = (
        f" {len(kept) - len(shown)} more are in the runs' own reports."
        if len(kept) > len(shown)
        else ""
    )
    return Picture(
        name="participation",
        size=(FULL, 0.4 + 2.5 * rows),
        draw=draw,
        words="Who took part, by client and round",
        caption="Dark: the client's reply was used in that round (first seed). Settings in which "
        f"the same clients took part share a picture.{more}",
    )


def holdings(comparison: Comparison) -> Picture | None:
    """Return who holds what: a heat map for each partition that there is, of the first four."""
    kept: dict[bytes, tuple[list[str], RunData]] = {}
    for group in comparison.groups:
        data = group.members[0].data
        if data.holdings is not None:
            table = data.holdings.histogram_KC
            kept.setdefault(table.tobytes() + str(table.shape).encode(), ([], data))[0].append(
                group.name
            )
    if not kept:
        return None
    shown = list(kept.values())[:4]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(shown), 1, squeeze=False)
        for axes, (names, data) in zip(grid.flat, shown, strict=True):
            held = data.holdings
            if held is None:
                continue
            axes.grid(False)
            draw_cells(axes, held.histogram_KC, [figures.label(n, 20) for n in held.class_names])
            title = "all settings" if len(kept) == 1 else "; ".join(names)
            axes.set_title(figures.label(title, 90), fontsize=9.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))

    more = (
        f" {len(kept) - len(shown)} more partitions are in the runs' own reports."
        if len(kept) > 4
        else ""
    )
    return Picture(
        name="holdings",
        size=(FULL, 0.3 + 3.1 * len(shown)),
        draw=draw,
        words="Heat map of the samples of each class at each client",
        caption=f"Of each setting's first seed; white is none.{more}",
    )


def _numbered(comparison: Comparison) -> Sequence[tuple[int, Group]]:
    return list(enumerate(comparison.groups))


def _legend(figure: Figure, axes: Axes, count: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, count))


def _title(metric: str) -> str:
    shown = figures.label(word(metric)).strip()
    better = "lower" if lower_is_better(metric) else "higher"
    return f"{shown[:1].upper()}{shown[1:]} ({better} is better)"
