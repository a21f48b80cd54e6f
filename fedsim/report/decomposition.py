"""The loss of each round's model, and the three terms that it is the sum of."""

from __future__ import annotations

from matplotlib.figure import Figure

from fedsim.report import figures
from fedsim.report.figures import BLACK, BLUE, FULL, GREEN, VERMILLION, Mark
from fedsim.report.round_columns import Rounds, Series

# The names are those of `fedsim.decomposition`; a report reads files and imports no model code.
TERMS = {
    "loss": ("loss of the round's model", Mark(BLACK, "-", "o")),
    "loss-local": ("local", Mark(GREEN, "-.", "^")),
    "loss-shift": ("distribution shift", Mark(VERMILLION, "--", "s")),
    "loss-aggregation": ("aggregation", Mark(BLUE, ":", "D")),
}


def decomposition_terms(rounds: Rounds) -> dict[str, Series] | None:
    """Return the sum and its terms by their names in words; None if one was never finite."""
    measured = rounds.metrics["diagnostics"]
    terms = {
        words: measured[name].finite() for name, (words, _) in TERMS.items() if name in measured
    }
    complete = len(terms) == len(TERMS) and all(len(series.round_M) for series in terms.values())
    return terms if complete else None


def decomposition_curves(terms: dict[str, Series]) -> str:
    """Draw the sum and its terms as SVG."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=figures.GREY, linewidth=1)
        for (words, series), (_, mark) in zip(terms.items(), TERMS.values(), strict=True):
            axes.plot(
                series.round_M,
                series.value_M,
                color=mark.colour,
                linestyle=mark.line,
                marker=mark.marker,
                markevery=max(1, len(series.round_M) // 12),
                label=words,
            )
        axes.set_ylabel("loss")
        axes.margins(x=0.02)
        figures.round_axis(axes)
        figure.legend(loc="outside lower center", ncols=len(terms))

    return figures.svg("decomposition", (FULL, 3.4), draw)
