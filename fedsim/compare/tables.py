"""The figures of a comparison: rows for the page, a CSV file and a LaTeX table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.compare.members import Comparison, Group
from fedsim.compare.pictures import fair
from fedsim.report.measures import MEASURED_BY, headline, is_fraction, is_shown, scale, word
from fedsim.report.round_columns import GROUPS, drawable
from fedsim.sweep.outcome import TERMS, Epsilon

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"ε": r"$\varepsilon$", "δ": r"$\delta$", "±": r"$\pm$", "…": r"\dots{}"}
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a setting has come to.

    Attributes:
        group: The setting.
        where, metric: The headline metric, and the group of metrics that it is of; empty if none.
        value_S: Its latest value, of each seed that has a finite one.
        worst: Mean of the clients' worst tenth; None where clients were not evaluated.
        epsilon: None without one, and where the seeds' have different terms.
        rounds: Of the seed that is furthest.
        seconds: Wall time of a run, mean over seeds.
    """

    group: Group
    where: str
    metric: str
    value_S: np.ndarray
    worst: float | None
    epsilon: Epsilon | None
    rounds: int
    seconds: float

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return float(self.value_S.mean()) if len(self.value_S) else math.nan

    @property
    def deviation(self) -> float:
        """Of a sample; NaN for fewer than two seeds."""
        return float(self.value_S.std(ddof=1)) if len(self.value_S) > 1 else math.nan

    def value(self) -> str:
        """Mean ± deviation as a reader wants it, without unit."""
        times = scale(self.metric)
        if not len(self.value_S):
            return "-"
        digits = ".2f" if is_fraction(self.metric) else ".4g"
        text = f"{self.mean * times:{digits}}"
        return text if math.isnan(self.deviation) else f"{text} ± {self.deviation * times:.2g}"

    def worst_value(self) -> str:
        """The worst tenth likewise."""
        if self.worst is None:
            return "-"
        digits = ".2f" if is_fraction(self.metric) else ".4g"
        return f"{self.worst * scale(self.metric):{digits}}"


def figures_of(comparison: Comparison) -> list[Figures]:
    """Return what each setting has come to."""
    return [_figures(group) for group in comparison.groups]


def _figures(group: Group) -> Figures:
    heads = [headline(member.data.rounds) for member in group.members]
    first = next((head for head in heads if head is not None), None)
    metric = first.name if first else ""
    same = [h.final for h in heads if h is not None and (h.group, h.name) == _of(first)]
    value_S = np.array(same, np.float64)
    spread = fair(group, metric) if metric else None
    runs = [member.data.rounds for member in group.members]
    return Figures(
        group=group,
        where=first.group if first else "",
        metric=metric,
        value_S=value_S[drawable(value_S)],
        worst=spread.worst if spread else None,
        epsilon=group.setting.epsilon,
        rounds=max(rounds.last for rounds in runs),
        seconds=float(np.mean([rounds.seconds_R.sum() for rounds in runs])),
    )


def _of(head: object) -> tuple[str, str]:
    return getattr(head, "group", ""), getattr(head, "name", "")


def head_and_rows(found: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Return the table of results: column names, and a row for each setting."""
    metrics = list(dict.fromkeys(each.metric for each in found if each.metric))
    one = metrics[0] if len(metrics) == 1 else None
    unit = " (%)" if one and is_fraction(one) else ""
    private, fair_ = any(each.epsilon for each in found), any(e.worst is not None for e in found)
    head = ["setting", "seeds", f"{word(one)}{unit}" if one else "metric"]
    head += [f"worst 10 % of clients{unit}"] if fair_ else []
    head += ["ε", "δ"] if private else []
    head += ["rounds", "seconds"]
    rows = []
    for each in found:
        value = each.value() if one else f"{word(each.metric)} {each.value()}"
        row = [each.group.name, str(len(each.group.members)), value]
        row += [each.worst_value()] if fair_ else []
        if private:
            cost = each.epsilon
            row += [f"{cost.value:.3g}", f"{cost.delta:g}"] if cost else ["-", "-"]
        rows.append([*row, f"{each.rounds:,}", f"{each.seconds:.3g}"])
    return head, rows


def results_csv(found: Sequence[Figures]) -> str:
    """Return the table of results in full precision; a cell is empty where there is nothing."""
    keys = list(dict.fromkeys(key for each in found for key in each.group.setting.axes))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ["setting", *keys, "seeds", "measured", "metric", "mean", "std", "worst_decile"]
    writer.writerow([*columns, "epsilon", *TERMS, "rounds", "seconds"])
    for each in found:
        terms = dict(each.epsilon.terms) if each.epsilon else {}
        axes = [each.group.setting.axes.get(key, "") for key in keys]
        values = [each.mean, each.deviation, each.worst if each.worst is not None else math.nan]
        shown = ["" if math.isnan(value) else value for value in values]
        cost = [each.epsilon.value if each.epsilon else "", *(terms.get(t, "") for t in TERMS)]
        row = [each.group.name, *axes, len(each.group.members), each.where, each.metric, *shown]
        writer.writerow([*row, *cost, each.rounds, each.seconds])
    return buffer.getvalue()


def curves_csv(comparison: Comparison) -> str:
    """Return every measured value of every run, one row each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["setting", "seed", "run", "measured", "metric", "round", "value"])
    for group in comparison.groups:
        for member in group.members:
            data = member.data
            start = [group.name, data.setting("seed"), data.path.name]
            for where in GROUPS:
                for metric, series in data.rounds.metrics[where].items():
                    if is_shown(metric):
                        for at, value in series.by_round().items():
                            writer.writerow([*start, where, metric, at, value])
    return buffer.getvalue()


def results_tex(found: Sequence[Figures]) -> str:
    """Return the table of results for LaTeX (package booktabs)."""
    head, rows = head_and_rows(found)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    measured = next((MEASURED_BY[each.where] for each in found if each.where in MEASURED_BY), "")
    note = f"% Latest value {measured}; mean and standard deviation (n - 1) over seeds."
    kinds = {each.epsilon.meaning for each in found if each.epsilon}
    notes = [note, *(f"% epsilon at {meaning}" for meaning in sorted(kinds))]
    return "\n".join(
        [
            *notes,
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
