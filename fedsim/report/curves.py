"""The curves of a run: the test metric and the losses by round; the metric by time and by bytes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report import figures
from fedsim.report.figures import CENTRAL, CLIENTS, HALF, TRAIN, Mark
from fedsim.report.measures import (
    COST_AXIS,
    COST_WORDS,
    MEASURED_BY,
    Headline,
    axis_label,
    is_fraction,
    lower_is_better,
    scale,
    word,
)
from fedsim.report.round_columns import By, Rounds, Series, Spread

TRAIN_LOSS = "train-loss"

_SIZE = (HALF, 3.5)
_LOG_FROM = 50.0
"""A curve whose largest value is this many times its smallest is drawn on a logarithmic axis."""


def metric_curves(rounds: Rounds, head: Headline) -> str:
    """Draw the headline metric as SVG: central, and the clients' mean with its 10-90 % band."""
    name = head.name

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        spread = rounds.spread.get(name)
        if spread is not None:
            _draw_band(axes, name, spread)
        elif name in rounds.metrics["clients"]:
            _draw(axes, name, rounds.metrics["clients"][name], CLIENTS, "clients, by samples")
        if name in rounds.metrics["central"]:
            _draw(axes, name, rounds.metrics["central"][name], CENTRAL, "central test set")
        elif head.group == "train":
            _draw(axes, name, rounds.metrics["train"][name], TRAIN, "local training")
        if head.best is not None and head.best_round is not None and head.group != "train":
            best = head.best * scale(name)
            text = f"best, round {head.best_round}"
            axes.plot([head.best_round], [best], "D", ms=8, mfc="none", mec="black", label=text)
        axes.set_ylabel(figures.label(axis_label(name)))
        better = "lower" if lower_is_better(name) else "higher"
        shown = figures.label(word(name)).strip()
        axes.set_title(f"{shown[:1].upper()}{shown[1:]} ({better} is better)")
        figures.round_axis(axes)
        _finish(axes, name)

    return figures.svg("metric", _SIZE, draw, fixed=True)


def loss_curves(rounds: Rounds, head: Headline) -> str | None:
    """Draw the losses as SVG; None if there is none beside the headline metric."""
    curves = [
        (rounds.metrics["train"].get(TRAIN_LOSS), TRAIN, "training, mean of local steps", "train"),
        (rounds.metrics["central"].get("loss"), CENTRAL, "central test set", "central"),
        (rounds.metrics["clients"].get("loss"), CLIENTS, "clients' held-out", "clients"),
    ]
    # A regression's test loss is its mean squared error: one picture of it is enough.
    wanted = ("train",) if head.name in ("mse", "loss") else ("train", "central", "clients")
    shown = [(c, mark, text) for c, mark, text, group in curves if c and group in wanted]
    if not shown or head.group == "train":
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        for series, mark, text in shown:
            _draw(axes, "loss", series, mark, text)
        axes.set_ylabel("loss")
        axes.set_title("Loss (lower is better)")
        figures.round_axis(axes)
        _finish(axes, "loss")

    return figures.svg("loss", _SIZE, draw, fixed=True)


def cost_curves(rounds: Rounds, head: Headline, by: By) -> str | None:
    """Draw the headline metric over what the rounds took, as SVG; None where that is unknown."""
    place_R, series = rounds.places(by), rounds.metrics[head.group].get(head.name)
    if place_R is None or series is None:
        return None
    finite = series.finite()
    place_M = place_R[np.searchsorted(rounds.round_R, finite.round_M)]
    mark = {"central": CENTRAL, "clients": CLIENTS}.get(head.group, TRAIN)

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        _draw(axes, head.name, Series(place_M, finite.value_M), mark, MEASURED_BY[head.group])
        axes.set_xlabel(COST_AXIS[by])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, prune="upper"))  # no label past the edge
        axes.set_ylabel(figures.label(axis_label(head.name)))
        shown = figures.label(word(head.name)).strip()
        axes.set_title(f"{shown[:1].upper()}{shown[1:]} by {COST_WORDS[by]}")
        _finish(axes, head.name)

    return figures.svg(by, _SIZE, draw, fixed=True)


def diagnostic_curve(order: int, name: str, series: Series) -> str:
    """Draw one diagnostic as SVG: the `order`-th of the page, of fewer than 26."""

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        _draw(axes, name, series.finite(), CENTRAL, figures.label(name.replace("-", " ")))
        axes.set_title(figures.label(name.replace("-", " ")).strip().capitalize())
        figures.round_axis(axes)
        _finish(axes, name)

    return figures.svg(f"diagnostic{chr(ord('A') + order)}", _SIZE, draw, fixed=True)


def _axes(figure: Figure) -> Axes:
    """Return axes that lie alike in both pictures, which stand side by side."""
    figure.subplots_adjust(left=0.13, right=0.985, top=0.92, bottom=0.29)
    axes = figure.subplots()
    axes.margins(x=0.02)
    return axes


def _draw(axes: Axes, name: str, series: Series, mark: Mark, text: str) -> None:
    finite = series.finite()
    axes.plot(
        finite.round_M,
        finite.value_M * scale(name),
        color=mark.colour,
        linestyle=mark.line,
        marker=mark.marker,
        markevery=max(1, len(finite.round_M) // 12),
        label=text,
    )


def _draw_band(axes: Axes, name: str, spread: Spread) -> None:
    times = scale(name)
    low_M, high_M = spread.low_M * times, spread.high_M * times
    axes.fill_between(
        spread.round_M,
        low_M,
        high_M,
        color=CLIENTS.colour,
        alpha=0.16,
        linewidth=0,
        label="10-90 % of clients",
    )
    for edge_M in (low_M, high_M):
        axes.plot(spread.round_M, edge_M, color=CLIENTS.colour, linewidth=0.6, linestyle=":")
    _draw(axes, name, Series(spread.round_M, spread.mean_M), CLIENTS, "mean over clients")


def _finish(axes: Axes, name: str) -> None:
    """Choose the axis for what was drawn, and place the legend beside it rather than over it."""
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axes.lines]
    value = np.concatenate(drawn) if drawn else np.empty(0)
    if not len(value):
        axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
        return
    low, high = float(value.min()), float(value.max())
    if not is_fraction(name) and low > 0 and high / low >= _LOG_FROM:
        axes.set_yscale("log")
        # Plain numbers: the default 10^x labels are mathematics, which pages here do not parse.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
        )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=2)
