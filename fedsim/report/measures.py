"""What a metric's name tells: which way is better, how it is written; and a run's headline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedsim.report.round_columns import By, PerClient, Rounds, Series

_FRACTIONS = ("accuracy", "precision", "recall", "f1", "auc")
_LOWER_IS_BETTER = ("loss", "mse", "mae", "rmse", "error", "perplexity")
_ABBREVIATIONS = ("mse", "mae", "rmse", "auc", "f1")
_HEADLINES = ("accuracy", "mse", "loss")

MEASURED_BY = {
    "central": "on the central test set",
    "clients": "on the clients' own held-out samples, weighted by samples",
    "train": "during local training",
}
"""Where a group of metrics was measured."""

COST_WORDS: dict[By, str] = {
    "round": "round",
    "time": "wall time",
    "simulated": "simulated time",
    "bytes": "bytes moved",
}
COST_AXIS: dict[By, str] = {
    "round": "round",
    "time": "wall time of the rounds so far (s)",
    "simulated": "simulated time (s)",
    "bytes": "moved to and from clients so far (MB)",
}
"""What a metric is drawn over, and how its axis is named."""

COST_NOTES: dict[By, str] = {
    "simulated": "On devices of the scenario's profile; the server's own work takes no time.",
    "bytes": "Of all messages of training and evaluation, as Flower encodes them.",
}
"""What to know of an axis that needs a device profile."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The figure by which a run is judged.

    Attributes:
        group, name: Which metric.
        final, final_round: Its latest value.
        best, best_round: Its best value, None if none was finite.
    """

    group: str
    name: str
    final: float
    final_round: int
    best: float | None
    best_round: int | None


def headline(rounds: Rounds) -> Headline | None:
    """Return a run's headline: accuracy, else mse, else loss; central where it was measured."""
    for group in ("central", "clients", "train"):
        series = {k: v for k, v in rounds.metrics[group].items() if is_shown(k)}
        if not series:
            continue
        name = str(headline_name(series))
        best = _best(name, series[name])
        return Headline(
            group=group,
            name=name,
            final=float(series[name].value_M[-1]),
            final_round=int(series[name].round_M[-1]),
            best=best[1] if best else None,
            best_round=best[0] if best else None,
        )
    return None


def headline_name(names: Iterable[str]) -> str | None:
    """Return the metric by which a run is judged, of those of one group; None if none counts."""
    shown = [name for name in names if is_shown(name)]
    return next((name for name in _HEADLINES if name in shown), next(iter(shown), None))


def _best(name: str, series: Series) -> tuple[int, float] | None:
    """Return (round, value) of the first round with the best finite value."""
    finite = series.finite()
    if not len(finite.value_M):
        return None
    worth_M = -finite.value_M if lower_is_better(name) else finite.value_M
    at = int(np.argmax(worth_M))
    return int(finite.round_M[at]), float(finite.value_M[at])


def best_round(name: str, evaluated: Iterable[PerClient]) -> PerClient | None:
    """Return the first round of those whose mean over clients is best; None if none is finite."""
    found: tuple[float, PerClient] | None = None
    for one in evaluated:
        mean = float(one.values[name].mean()) if name in one.values else math.nan
        worth = -mean if lower_is_better(name) else mean
        if math.isfinite(mean) and (found is None or worth > found[0]):
            found = worth, one
    return found[1] if found else None


def is_shown(name: str) -> bool:
    """Whether a metric belongs in a table: not a weight, and never an epsilon without its terms."""
    return name != "num-examples" and "epsilon" not in name.lower()


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better."""
    return any(word in name.lower() for word in _LOWER_IS_BETTER)


def is_fraction(name: str) -> bool:
    """Whether a metric lies between 0 and 1 and is written in percent."""
    return any(word in name.lower() for word in _FRACTIONS)


def scale(name: str) -> float:
    """Return by what a metric is multiplied before it is drawn."""
    return 100.0 if is_fraction(name) else 1.0


def word(name: str) -> str:
    """Return a metric's name as a reader writes it.

    Example:
        >>> word("mse"), word("accuracy")
        ('MSE', 'accuracy')
    """
    return name.upper() if name in _ABBREVIATIONS else name


def axis_label(name: str) -> str:
    """Return a metric's name with its unit."""
    return f"{word(name)} (%)" if is_fraction(name) else word(name)


def show(name: str, value: float) -> str:
    """Return a value as a reader wants it.

    Example:
        >>> show("accuracy", 0.91234), show("mse", 0.0123456), show("loss", float("nan"))
        ('91.23 %', '0.01235', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{100 * value:.2f} %" if is_fraction(name) else f"{value:#.4g}".rstrip(".")


def show_seconds(seconds: float) -> str:
    """Return a duration.

    Example:
        >>> show_seconds(0.0421), show_seconds(75.2), show_seconds(3725)
        ('0.042 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
