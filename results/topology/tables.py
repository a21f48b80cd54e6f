"""The tables and the picture of `reproduce.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Runs = dict[str, list[dict[str, Any]]]


def scores(runs: list[dict[str, Any]]) -> np.ndarray:
    """Return accuracies in percent, `[seeds, times]`."""
    return np.array([run["accuracy"] for run in runs])


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Return mean ± standard deviation over seeds."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):{form}} ± {deviation:{form}}"


def reached(run: dict[str, Any], target: float) -> int | None:
    """Return the first score that reaches a target and is not below it at the next one."""
    good = np.array(run["accuracy"]) >= target
    lasting = np.flatnonzero(good[:-1] & good[1:])
    return int(lasting[0]) if len(lasting) else None


def cell(runs: list[dict[str, Any]], target: float, every: int) -> tuple[str, str]:
    """Return (seconds, megabytes) to a target, of those seeds that reach it."""
    at = [(run, reached(run, target)) for run in runs]
    found = [(run, k) for run, k in at if k is not None]
    if not found:
        return "–", "–"
    few = f" ({len(found)} of {len(runs)})" if len(found) < len(runs) else ""
    seconds = spread([k * every for _, k in found], ".0f") + few
    return seconds, spread([run["megabytes"][k] for run, k in found], ".0f") + few


def tables(
    own: Runs,
    tuning: dict[str, dict[float, dict[str, Any]]],
    every: int,
    shown: Sequence[int],
    targets: Sequence[float],
) -> str:
    """Return all tables in Markdown.

    Args:
        own: Method -> its runs, a seed each.
        tuning: Method -> learning rate -> its run on the tuning seed.
        every: Simulated seconds between two scores.
        shown: At which of them the table has a column.
        targets: Accuracies in percent.
    """
    seeds = len(next(iter(own.values())))
    out = [
        f"### Test accuracy, %, at equal simulated time; mean ± standard deviation, {seeds} seeds"
    ]
    out += [
        "",
        "| method | "
        + " | ".join(f"{t} s" for t in shown)
        + " | mean of the last quarter | models | MB over links |",
    ]
    out += ["| --- |" + " ---: |" * (len(shown) + 3)]
    for method, runs in own.items():
        cells = [spread(scores(runs)[:, t // every]) for t in shown]
        late = scores(runs)[:, 3 * shown[-1] // every // 4 :].mean(1)
        cells += [spread(late)]
        cells += [f"{np.mean([run[c][-1] for run in runs]):,.0f}" for c in ("rounds", "megabytes")]
        out.append(f"| {method} | " + " | ".join(cells) + " |")
    out += ["", "### The nodes' own models: mean over nodes, and the worst node", ""]
    out += [
        "| method | " + " | ".join(f"{t} s" for t in shown) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for method, runs in own.items():
        if runs[0]["nodes"]:
            both = [np.mean([run["nodes"][str(t)] for run in runs], 0) for t in shown]
            out.append(f"| {method} | " + " | ".join(f"{m:.1f}, {w:.1f}" for m, w in both) + " |")
    out += ["", "### Simulated seconds, and MB over links, to a test accuracy that lasts", ""]
    heads = [f"{t:g} %: {unit}" for t in targets for unit in ("s", "MB")]
    out += ["| method | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for method, runs in own.items():
        cells = [text for target in targets for text in cell(runs, target, every)]
        out.append(f"| {method} | " + " | ".join(cells) + " |")
    rates = sorted(next(iter(tuning.values())))
    out += [
        "",
        "### Tuning: accuracy at the end (mean over time), %, by learning rate, one other seed",
        "",
    ]
    out += ["| method | " + " | ".join(f"{lr:g}" for lr in rates) + " | chosen |"]
    out += ["| --- |" + " ---: |" * (len(rates) + 1)]
    for method, of in tuning.items():
        cells = [
            f"{of[lr]['accuracy'][-1]:.1f} ({np.mean(of[lr]['accuracy']):.1f})" for lr in rates
        ]
        out.append(f"| {method} | " + " | ".join(cells) + f" | {own[method][0]['lr']:g} |")
    return "\n".join(out) + "\n"


def draw(own: Runs, every: int, path: Path) -> None:
    """Draw accuracy over simulated time and over bytes, with the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    over_time, over_bytes = figure.subplots(1, 2, sharey=True)
    for i, (method, runs) in enumerate(own.items()):
        score_ST = scores(runs)
        time_T = np.arange(score_ST.shape[1]) * every
        over_time.plot(time_T, score_ST.mean(0), color=f"C{i}", label=method)
        over_time.fill_between(
            time_T, score_ST.min(0), score_ST.max(0), color=f"C{i}", alpha=0.15, lw=0
        )
        megabytes_T = np.mean([run["megabytes"] for run in runs], 0)
        over_bytes.plot(megabytes_T, score_ST.mean(0), color=f"C{i}", label=method)
    over_time.set(xlabel="simulated time (s)", ylabel="test accuracy (%)", ylim=(40, 90))
    over_bytes.set(
        xlabel="MB over all links, mean of the seeds (log)", xscale="log", xlim=(30, None)
    )
    over_time.legend(fontsize=9)
    for panel in (over_time, over_bytes):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
