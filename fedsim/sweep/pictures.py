"""The pictures of a sweep: utility over epsilon with the Pareto front, or utility over an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.report import figures
from fedsim.report.figures import (
    BLACK,
    BLUE,
    FULL,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Mark,
)
from fedsim.report.measures import axis_label, is_fraction, lower_is_better, scale, word
from fedsim.sweep.settings import Setting, pareto

MARKS = (
    Mark(BLUE, "-", "o"),
    Mark(VERMILLION, "--", "s"),
    Mark(GREEN, "-.", "^"),
    Mark(PURPLE, ":", "D"),
    Mark(ORANGE, (0, (5, 1, 1, 1, 1, 1)), "v"),  # type: ignore[arg-type]
    Mark(SKY, (0, (1, 1)), "P"),  # type: ignore[arg-type]
)
MOST_ROWS = 40
"""More settings than this are too many for one picture of rows: the best are shown."""

_LOG_FROM = 8.0
_EPSILON = "epsilon"

Curves = dict[str, list[tuple[float, Setting]]]
"""Label -> (place on the axis, setting), by place."""


def privacy_utility(
    settings: Sequence[Setting], blind: Sequence[Setting], name: str = "utility"
) -> str:
    """Draw utility over epsilon as SVG.

    Args:
        settings: Of one metric, with epsilons of one meaning.
        blind: Those without an epsilon, of the same metric: drawn as levels.
        name: Of the picture, unique in the page.
    """
    metric = settings[0].metric
    driver = _driver(settings, _EPSILON)
    same = _same(settings)
    curves: Curves = {}
    for setting in settings:
        if setting.epsilon is not None:
            place = setting.epsilon.value
            curves.setdefault(_rest(setting, driver, same), []).append((place, setting))
    front = [(s.epsilon.value, s.mean) for s in pareto(settings) if s.epsilon is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_curves(axes, curves, metric)
        _draw_front(axes, front, metric)
        for setting, line in zip(blind, (":", "-.", "--"), strict=False):
            text = figures.label(f"no epsilon: {setting.label}", 60)
            axes.axhline(setting.mean * scale(metric), color="#57606a", linestyle=line, label=text)
        axes.set_xlabel("epsilon (smaller is more private)")
        _finish(axes, curves, metric)

    return figures.svg(name, (FULL, 4.6), draw)


def over_axis(settings: Sequence[Setting], name: str = "grid") -> tuple[str, str]:
    """Draw utility over the grid as SVG; return it, and what it shows in a few words."""
    metric = settings[0].metric
    driver = _driver(settings, "")
    if driver is None:
        return _rows(settings, metric, name), "utility of each setting"
    same = _same(settings)
    curves: Curves = {}
    for setting in settings:
        place = _number(setting.axes.get(driver))
        if place is not None:
            curves.setdefault(_rest(setting, driver, same), []).append((place, setting))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_curves(axes, curves, metric)
        axes.set_xlabel(figures.label(driver))
        _finish(axes, curves, metric)

    return figures.svg(name, (FULL, 4.2), draw), f"utility over {driver}"


def _rows(settings: Sequence[Setting], metric: str, name: str) -> str:
    """Draw a row for each setting, the best on top."""
    worst_first = sorted(settings, key=lambda s: s.mean, reverse=lower_is_better(metric))
    shown = worst_first[-MOST_ROWS:]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        times = scale(metric)
        for row, setting in enumerate(shown):
            spread = setting.deviation if len(setting.value_S) > 1 else 0.0
            axes.errorbar(
                setting.mean * times, row, xerr=spread * times, color=BLUE, fmt="o", capsize=3
            )
            axes.plot(
                setting.value_S * times, np.full(len(setting.value_S), row), "|", color=BLACK, ms=7
            )
        names = [figures.label(s.label or "all", 60) for s in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel(figures.label(axis_label(metric)))
        axes.set_title(_title(metric))

    return figures.svg(name, (FULL, 1.2 + 0.27 * len(shown)), draw)


def _driver(settings: Sequence[Setting], wanted: str) -> str | None:
    """Return the axis along which a curve runs: the wanted one, else the first that is numeric."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.axes))
    if wanted:
        for key in keys:
            if key.rpartition(".")[2] == wanted:
                return key
    for key in keys:
        values = {setting.axes[key] for setting in settings if key in setting.axes}
        if len(values) > 1 and all(_number(value) is not None for value in values):
            return key
    return None


def _same(settings: Sequence[Setting]) -> set[str]:
    """Return the axes along which these settings do not differ."""
    keys = {key for setting in settings for key in setting.axes}
    return {key for key in keys if len({setting.axes.get(key) for setting in settings}) == 1}


def _rest(setting: Setting, driver: str | None, same: set[str]) -> str:
    """Return what names a curve: all axes but the one that it runs along, and what all share."""
    left = {k: v for k, v in setting.axes.items() if k != driver and k not in same}
    return " ".join(f"{key}={value}" for key, value in left.items())


def _number(value: str | None) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _draw_curves(axes: Axes, curves: Curves, metric: str) -> None:
    times = scale(metric)
    for index, (label, points) in enumerate(curves.items()):
        points.sort(key=lambda point: point[0])
        place_M = np.array([place for place, _ in points])
        mean_M = np.array([setting.mean for _, setting in points]) * times
        spread_M = np.nan_to_num([setting.deviation for _, setting in points]) * times
        known = index < len(MARKS)
        mark = MARKS[index] if known else Mark(GREY, "-", ".")
        if spread_M.any():
            low_M, high_M = mean_M - spread_M, mean_M + spread_M
            axes.fill_between(place_M, low_M, high_M, color=mark.colour, alpha=0.14, linewidth=0)
            for edge_M in (low_M, high_M):
                axes.plot(place_M, edge_M, color=mark.colour, linewidth=0.6, linestyle=":")
        axes.plot(
            place_M,
            mean_M,
            color=mark.colour,
            linestyle=mark.line,
            marker=mark.marker,
            markersize=5.5,
            label=figures.label(label or "mean over seeds", 60) if known else None,
        )


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]], metric: str) -> None:
    """Ring the settings that no other beats, and draw the steps between them."""
    epsilon_M = [epsilon for epsilon, _ in front]
    value_M = [value * scale(metric) for _, value in front]
    if len(front) > 1:
        axes.step(
            epsilon_M, value_M, where="post", color=BLACK, linewidth=0.9, linestyle=(0, (2, 2))
        )
    axes.plot(
        epsilon_M,
        value_M,
        "o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=BLACK,
        markeredgewidth=1.2,
        label="Pareto front",
    )


def _finish(axes: Axes, curves: Curves, metric: str) -> None:
    place_M = np.array([place for points in curves.values() for place, _ in points])
    if len(place_M) and place_M.min() > 0 and place_M.max() / place_M.min() >= _LOG_FROM:
        axes.set_xscale("log")
        axes.set_xticks(np.unique(place_M), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if len(np.unique(place_M)) > 10:
            axes.set_xticks(np.unique(place_M)[:: len(np.unique(place_M)) // 8 + 1])
    axes.set_ylabel(figures.label(axis_label(metric)))
    axes.set_title(_title(metric))
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0
        )


def _title(metric: str) -> str:
    shown = figures.label(word(metric)).strip()
    better = "lower" if lower_is_better(metric) else "higher"
    share = "" if not is_fraction(metric) else " in percent"
    return f"{shown[:1].upper()}{shown[1:]}{share} ({better} is better)"
