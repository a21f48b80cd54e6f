"""The report of a sweep: `report.html`, `points.csv` and `summary.json` in the sweep's folder.

Made of the sweep's and the runs' folders alone, so it can be written at any time.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.files import write_atomic
from fedsim.report import page
from fedsim.report.measures import scale, show, show_seconds, word
from fedsim.report.page import Html
from fedsim.sweep.folder import FAILED, PRUNED, SweepFolder
from fedsim.sweep.outcome import TERMS
from fedsim.sweep.pictures import over_axis, privacy_utility
from fedsim.sweep.settings import (
    Setting,
    SweepRun,
    best,
    by_meaning,
    pareto,
    read_runs,
    settings_of,
)
from fedsim.sweep.table import WORDS
from fedsim.sweep.tuning import TuningCost, describe, tuning_cost

_MOST_ROWS = 500


def write_sweep_report(path: Path) -> Path:
    """Write `report.html`, `points.csv` and `summary.json` into a sweep's folder.

    Args:
        path: The folder of a sweep: finished, stopped, or still going on.

    Returns:
        The path of the report.

    Raises:
        ResumeError: It is not a sweep's folder, or it is damaged.
        OSError: The folder cannot be written to.
    """
    folder = SweepFolder.open(path)
    runs = read_runs(folder)
    settings = settings_of(runs)
    _write(path / "points.csv", points_csv(runs))
    _write(path / "summary.json", json.dumps(summary(folder, runs, settings), indent=1) + "\n")
    _write(path / "report.html", render(folder, runs, settings))
    return path / "report.html"


def points_csv(runs: Sequence[SweepRun]) -> str:
    """Return one row per point and metric; a point without results has one row, without metric."""
    keys = list(dict.fromkeys(key for run in runs for key in run.entry.point.axes))
    head = ["point", "status", "scenario", *keys, "metric", "value", "round", "epsilon", *TERMS]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*head, "seconds", "hash", "run"])
    for run in runs:
        entry, outcome = run.entry, run.outcome
        start = [entry.number, entry.status, entry.point.scenario]
        start += [entry.point.axes.get(key, "") for key in keys]
        terms = dict(outcome.epsilon.terms) if outcome.epsilon else {}
        cost = [outcome.epsilon.value if outcome.epsilon else ""]
        cost += [terms.get(name, "") for name in TERMS]
        end = [outcome.seconds, entry.hash, entry.run or ""]
        for metric, (value, server_round) in (outcome.metrics or {"": (math.nan, 0)}).items():
            measured = [metric, value, server_round] if metric else ["", "", ""]
            writer.writerow([*start, *measured, *cost, *end])
    return buffer.getvalue()


def summary(
    folder: SweepFolder, runs: Sequence[SweepRun], settings: Sequence[Setting]
) -> dict[str, Any]:
    """Return the figures of the report for machines."""
    front = _fronts(settings)
    return {
        "name": folder.head().get("name"),
        "points": len(runs),
        "done": sum(run.done for run in runs),
        "failed": [
            {
                "point": run.entry.number,
                "axes": run.entry.point.axes,
                "reason": run.entry.reason,
                "command": run.entry.point.command,
            }
            for run in runs
            if run.entry.status == FAILED
        ],
        "settings": [
            {
                "axes": setting.axes,
                "metric": setting.metric or None,
                "value": _value(setting),
                "mean": _finite(setting.mean),
                "std": _finite(setting.deviation),
                "seeds": len(setting.value_S),
                "not_finite": setting.left_out,
                "privacy": setting.epsilon
                and {"epsilon": setting.epsilon.value, **dict(setting.epsilon.terms)},
                "pareto": any(setting is other for other in front),
            }
            for setting in settings
        ],
        "tuning": [
            {
                "runs": cost.runs,
                "epsilon_of_one_run": cost.single.value,
                "terms_of_one_run": dict(cost.single.terms),
                "composed_epsilon": cost.composed,
                "composed_delta": cost.composed_delta,
                "best_of_epsilon": cost.best_of,
                "best_of_mean_runs": cost.best_of_runs,
                "statement": describe(cost, searched="search" in folder.head()),
            }
            for cost in tuning_costs(runs)
        ],
    }


def tuning_costs(runs: Sequence[SweepRun]) -> list[TuningCost]:
    """Return the cost of choosing, for each unit and neighbouring relation: these can be summed."""
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for run in runs:
        if run.outcome.epsilon is not None:
            terms = dict(run.outcome.epsilon.terms)
            groups.setdefault((terms["unit"], terms["relation"]), []).append(run)
    costs = [tuning_cost(group) for group in groups.values()]
    return [cost for cost in costs if cost is not None]


def render(folder: SweepFolder, runs: Sequence[SweepRun], settings: Sequence[Setting]) -> str:
    """Return the report as HTML."""
    head = folder.head()
    name = str(head.get("name", folder.path.name))
    return page.document(
        f"{name}: {len(runs)} points (fedsim sweep)",
        _top(name, runs, settings),
        _problems(runs),
        _pictures(runs, settings, searched="search" in head),
        _by_setting(settings),
        _all_points(folder, runs),
        _repeat(head),
        page.element(
            "footer",
            "Made by fedsim from the run folders of the sweep ",
            page.element("code", folder.path.resolve().name),
            "; every metric of every point is in ",
            page.element("code", "points.csv"),
            " beside this file.",
        ),
    )


def _top(name: str, runs: Sequence[SweepRun], settings: Sequence[Setting]) -> Html:
    done = sum(run.done for run in runs)
    failed = sum(run.entry.status == FAILED for run in runs)
    pruned = sum(run.entry.status == PRUNED for run in runs)
    over = done + pruned == len(runs)
    state = "finished" if over else f"{done} of {len(runs)} done"
    css = "good" if over else "warn" if failed else "wait"
    title = page.element(
        "div",
        page.element("h1", name),
        page.element("span", state, css=f"state {css}"),
        css="title",
    )
    seeds = max((setting.planned for setting in settings), default=0)
    note = f"{len(settings)} settings, up to {seeds} seeds each; {failed} failed"
    note += f"; {pruned} stopped early, as another point was better" if pruned else ""
    tiles = [("Points", f"{done} of {len(runs)}", note)]
    for metric in _metrics(settings):
        top = best(settings, metric)
        if top is not None:
            tiles.append((f"Best {word(metric)}", _value(top), top.label or "the only setting"))
    seconds = sum(run.outcome.seconds for run in runs)
    tiles.append(("Computing", show_seconds(seconds), "wall time of all runs, added up"))
    above = page.element("p", "fedsim sweep report", css="over")
    return page.element("header", above, title, page.tiles(tiles))


def _problems(runs: Sequence[SweepRun]) -> Html:
    boxes: list[str] = []
    failed = [run for run in runs if run.entry.status == FAILED]
    if failed:
        lines = [
            page.join(
                [
                    page.text(f"{run.entry.point.label}: {run.entry.reason} "),
                    page.element("code", run.entry.point.command),
                ]
            )
            for run in failed[:_MOST_ROWS]
        ]
        lead = page.element("p", "These points failed; each with the command that repeats it:")
        boxes.append(page.element("div", lead, page.items(lines), css="box warn"))
    told = [
        f"{run.entry.point.label}: {run.outcome.epsilon_problem}"
        for run in runs
        if run.outcome.epsilon_problem
    ]
    commits = sorted({run.outcome.commit for run in runs if run.done and run.outcome.commit})
    if len(commits) > 1:
        told.append(
            "The runs were made by different versions of the code, and may differ by that: "
            + ", ".join(f"{commit[:12]}{commit[40:]}" for commit in commits)
        )
    if told:
        boxes.append(page.element("div", page.items(told[:_MOST_ROWS]), css="box warn"))
    return page.join(boxes)


def _pictures(runs: Sequence[SweepRun], settings: Sequence[Setting], *, searched: bool) -> Html:
    sections: list[Html] = []
    for metric in _metrics(settings):
        able = [s for s in settings if s.metric == metric and len(s.value_S)]
        blind = [s for s in able if all(_no_epsilon(run) for run in s.runs)]
        meanings = by_meaning(able)
        for kind, group in meanings.items():
            name = f"utility{_letter(len(sections))}"
            drawn = page.figure(
                privacy_utility(group, blind if len(blind) <= 3 else [], name),
                "Mean over seeds, with a band of one standard deviation. Ringed: settings that no "
                "other one beats in both privacy and utility.",
                f"Curves of {word(metric)} over epsilon",
            )
            meaning = ", ".join(f"{key}: {value}" for key, value in kind)
            box = page.element("p", f"Epsilon at {meaning}.\n{_ways(group)}", css="statement")
            sections.append(
                page.section(
                    f"Privacy and utility: {word(metric)}",
                    page.element("div", box, css="box"),
                    drawn,
                )
            )
        if len(able) > 1 and not meanings:
            picture, words = over_axis(able, f"grid{_letter(len(sections))}")
            caption = (
                "Mean over seeds; the bands or bars are one standard deviation, short black lines "
                "single seeds."
            )
            drawn = page.figure(picture, caption, f"{word(metric)}: {words}")
            sections.append(page.section(f"The grid: {word(metric)}", drawn))
    costs = [page.element("p", describe(cost, searched=searched)) for cost in tuning_costs(runs)]
    unknown = sum(run.outcome.epsilon_problem is not None for run in runs)
    if costs and unknown:
        more = (
            f"{unknown} runs whose epsilon is not shown are not counted: it costs more than that."
        )
        costs.append(page.element("p", more))
    if costs:
        box = page.element("div", *costs, css="box warn")
        sections.append(page.section("What choosing the best costs", box))
    return page.join(sections)


def _by_setting(settings: Sequence[Setting]) -> Html:
    keys = list(dict.fromkeys(key for setting in settings for key in setting.axes))
    private = any(setting.epsilon for setting in settings)
    front = _fronts(settings)
    head = [*keys, "metric", "mean ± std", "seeds", *(["epsilon", "front"] if private else [])]
    rows = []
    for setting in settings[:_MOST_ROWS]:
        row = [setting.axes.get(key, "") for key in keys]
        seeds = f"{len(setting.value_S)} of {setting.planned}"
        if setting.left_out:
            seeds += f" ({setting.left_out} not finite)"
        row += [word(setting.metric), _value(setting), seeds]
        if private:
            cost = setting.epsilon
            row.append(f"{cost.value:.3g} (delta {cost.delta:g})" if cost else "")
            row.append("yes" if any(setting is other for other in front) else "")
        rows.append(row)
    note = (
        "Mean and standard deviation (n - 1) over seeds of the latest value of the headline metric."
    )
    return page.section("By setting", page.table(head, rows), page.element("p", note))


def _all_points(folder: SweepFolder, runs: Sequence[SweepRun]) -> Html:
    rows = []
    for run in runs[:_MOST_ROWS]:
        outcome = run.outcome
        known = outcome.name is not None and outcome.value is not None
        rows.append(
            [
                str(run.entry.number),
                run.entry.point.label,
                WORDS.get(run.entry.status, run.entry.status),
                f"{outcome.server_round} of {run.entry.rounds}",
                f"{word(outcome.name or '')} {show(outcome.name or '', outcome.value or 0.0)}"
                if known
                else "",
                f"{outcome.epsilon.value:.3g} (delta {outcome.epsilon.delta:g})"
                if outcome.epsilon
                else "",
                page.element("code", run.entry.run or ""),
            ]
        )
    head = ["", "point", "status", "round", "latest", "epsilon", "run folder"]
    if not any(row[5] for row in rows):
        head.pop(5)
        rows = [[*row[:5], row[6]] for row in rows]
    more = len(runs) - len(rows)
    note = page.element("p", f"{more} more are in points.csv.") if more else ""
    return page.details(f"All {len(runs)} points", page.join([page.table(head, rows), note]))


def _repeat(head: dict[str, Any]) -> Html:
    command = head.get("command")
    words = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    lead = "The command as it was typed; typed again, it runs only what has not been run:"
    return page.section("To repeat this sweep", page.element("p", lead), page.element("pre", words))


def _ways(settings: Sequence[Setting]) -> str:
    """Return how the epsilons of one kind were arrived at, each way once."""
    lines = []
    for name in ("sampling", "accountant"):
        found = [dict(s.epsilon.terms)[name] for s in settings if s.epsilon]
        values = list(dict.fromkeys(found))
        more = f"; and {len(values) - 3} more, see points.csv" if len(values) > 3 else ""
        lines.append(f"{name.capitalize()}: {'; '.join(values[:3])}{more}.")
    return "\n".join(lines)


def _no_epsilon(run: SweepRun) -> bool:
    return run.outcome.epsilon is None and run.outcome.epsilon_problem is None


def _letter(number: int) -> str:
    return chr(ord("a") + number % 26) * (1 + number // 26)


def _metrics(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(setting.metric for setting in settings if setting.metric))


def _fronts(settings: Sequence[Setting]) -> list[Setting]:
    found: list[Setting] = []
    for metric in _metrics(settings):
        for group in by_meaning([s for s in settings if s.metric == metric]).values():
            found += pareto(group)
    return found


def _value(setting: Setting) -> str:
    if not len(setting.value_S):
        return ""
    mean = show(setting.metric, setting.mean)
    if math.isnan(setting.deviation):
        return mean
    times = scale(setting.metric)
    digits = f"{setting.deviation * times:.2f}" if times != 1 else f"{setting.deviation:.2g}"
    return f"{mean.removesuffix(' %')} ± {digits}{' %' if times != 1 else ''}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode("utf-8", "replace"))
