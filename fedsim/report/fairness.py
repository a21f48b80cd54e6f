"""How evenly a model serves its clients: the spread of one metric over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report import figures
from fedsim.report.figures import BLUE, HALF, VERMILLION
from fedsim.report.measures import axis_label, lower_is_better, scale, show
from fedsim.report.round_columns import drawable


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """One metric over K clients, each counted once whatever its size.

    Attributes:
        value_K: The finite values, worst first.
        left_out: Clients whose value is not finite.
        worst, best: Mean of the worst and of the best tenth (at least one client).
    """

    name: str
    value_K: np.ndarray
    left_out: int
    worst: float
    best: float

    @property
    def mean(self) -> float:
        """Mean over clients."""
        return float(self.value_K.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation over clients."""
        return float(self.value_K.std())


def fairness(name: str, value_K: np.ndarray) -> Fairness | None:
    """Return the spread of a metric over clients; None if no value is finite."""
    finite_K = np.sort(value_K[drawable(value_K)])
    if not len(finite_K):
        return None
    worst_first_K = finite_K[::-1] if lower_is_better(name) else finite_K
    tenth = math.ceil(len(finite_K) / 10)
    return Fairness(
        name=name,
        value_K=worst_first_K,
        left_out=len(value_K) - len(finite_K),
        worst=float(worst_first_K[:tenth].mean()),
        best=float(worst_first_K[-tenth:].mean()),
    )


def fairness_histogram(spread: Fairness, name: str = "") -> str:
    """Draw the clients' values, their mean and the mean of the worst tenth, as SVG.

    `name` tells several in one page apart.
    """
    times = scale(spread.name)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bins = min(20, max(5, math.isqrt(len(spread.value_K)) * 2))
        axes.hist(spread.value_K * times, bins=bins, color=BLUE, alpha=0.45, edgecolor=BLUE)
        for value, text, colour, line in (
            (spread.mean, "mean", "black", "-"),
            (spread.worst, "mean of the worst 10 %", VERMILLION, "--"),
        ):
            words = f"{text}: {show(spread.name, value)}"
            axes.axvline(value * times, color=colour, linestyle=line, label=words)
        axes.set_xlabel(figures.label(axis_label(spread.name)))
        axes.set_ylabel("clients")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    return figures.svg("fairness" + "".join(filter(str.isalnum, name)), (HALF, 3.3), draw)
