"""The page of a comparison, and the files beside it. Made of run folders and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fedsim.compare import pictures, tables
from fedsim.compare.members import Comparison, compare
from fedsim.compare.pictures import Picture
from fedsim.compare.tables import Figures
from fedsim.errors import ConfigError
from fedsim.files import write_atomic
from fedsim.report import figures, page
from fedsim.report.measures import MEASURED_BY, lower_is_better, show_seconds, word
from fedsim.report.page import Html
from fedsim.report.round_columns import By
from fedsim.sweep.pictures import privacy_utility
from fedsim.sweep.settings import by_meaning

REPORTS = Path("results/reports")
_MOST_GROUPS = 60
_DIFF_COLUMNS = 8


def write_comparison(paths: Sequence[Path], folder: Path | None = None) -> Path:
    """Write `report.html`, and its pictures and tables as PNG, CSV and LaTeX files.

    Args:
        paths: Folders of runs and of sweeps.
        folder: Where to; by default one in `results/reports`, named after what is compared.

    Returns:
        The path of the page.

    Raises:
        ResumeError: One of them is neither a run nor a sweep.
        ConfigError: There is nothing to compare, or it cannot be written there.
    """
    comparison = compare(paths)
    found = tables.figures_of(comparison)
    if folder is None:
        names = "\n".join(sorted(str(m.data.path.resolve()) for m in comparison.members))
        folder = REPORTS / f"{len(comparison.members)}-runs_{_digest(names)}"
    drawn = _pictures(comparison, found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            write_atomic(folder / f"{picture.name}.png", figures.png(picture.size, picture.draw))
        _write(folder / "results.csv", tables.results_csv(found))
        _write(folder / "results.tex", tables.results_tex(found))
        _write(folder / "curves.csv", tables.curves_csv(comparison))
        _write(folder / "report.html", render(comparison, found, drawn))
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written in {folder} ({error.strerror}); choose another folder "
            "with --out DIR"
        ) from error
    return folder / "report.html"


def render(comparison: Comparison, found: Sequence[Figures], drawn: Sequence[Picture]) -> str:
    """Return the page as HTML."""
    count = len(comparison.members)
    by_name = {picture.name: picture for picture in drawn}
    other = ("fairness", "participation", "holdings")
    learning = [picture for name, picture in by_name.items() if name not in other]
    return page.document(
        f"{count} runs compared (fedsim)",
        _top(comparison, found),
        _problems(comparison),
        _results(found),
        _section("Learning curves", *learning),
        _privacy_utility(comparison),
        _section("Fairness over clients", by_name.get("fairness")),
        _differences(comparison),
        _section("Who took part", by_name.get("participation")),
        _section("Who holds what", by_name.get("holdings")),
        _privacy(comparison),
        _environment(comparison),
        _runs(comparison),
        page.element(
            "footer",
            "Made by fedsim from run folders alone; the pictures are beside this file as PNG, the "
            "figures in ",
            page.element("code", "results.csv"),
            ", ",
            page.element("code", "results.tex"),
            " and ",
            page.element("code", "curves.csv"),
            ".",
        ),
    )


def _pictures(comparison: Comparison, found: Sequence[Figures]) -> list[Picture]:
    drawn: dict[str, Picture | None] = {}
    for each in found:
        if each.metric and f"{each.metric}-rounds" not in drawn:
            for by in get_args(By):
                key = f"{each.metric}-{'rounds' if by == 'round' else by}"
                drawn[key] = pictures.curves(comparison, each.where, each.metric, by=by)
            drawn.setdefault("fairness", pictures.evenness(comparison, each.metric))
    drawn["participation"] = pictures.participation(comparison)
    drawn["holdings"] = pictures.holdings(comparison)
    return [picture for picture in drawn.values() if picture is not None]


def _top(comparison: Comparison, found: Sequence[Figures]) -> Html:
    runs, groups = len(comparison.members), len(comparison.groups)
    title = page.element("div", page.element("h1", _title(comparison)), css="title")
    tiles = [("Runs", f"{runs:,}", f"{groups:,} settings, by seed")]
    for metric in dict.fromkeys(each.metric for each in found if each.metric):
        able = [each for each in found if each.metric == metric and len(each.value_S)]
        if able:
            choose = min if lower_is_better(metric) else max
            top = choose(able, key=lambda each: each.mean)
            tiles.append((f"Best {word(metric)}", top.value(), top.group.name))
            fair = [each for each in able if each.worst is not None]
            if fair:
                top = choose(fair, key=lambda each: each.worst or 0.0)
                tiles.append(("Best worst tenth", top.worst_value(), top.group.name))
    seconds = sum(float(m.data.rounds.seconds_R.sum()) for m in comparison.members)
    tiles.append(("Computing", show_seconds(seconds), "wall time of all runs, added up"))
    over = page.element("p", "fedsim report: runs beside each other", css="over")
    return page.element("header", over, title, page.tiles(tiles))


def _title(comparison: Comparison) -> str:
    names = list(dict.fromkeys(member.data.name for member in comparison.members))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _problems(comparison: Comparison) -> Html:
    told = [
        f"{member.data.path.name}: {problem}"
        for member in comparison.members
        for problem in member.data.problems
    ]
    told += [
        f"{member.data.path.name}: {member.run.outcome.epsilon_problem}"
        for member in comparison.members
        if member.run.outcome.epsilon_problem
    ]
    if comparison.skipped:
        told.append(f"{comparison.skipped} points of the sweeps have no run, and are left out.")
    for name, values in _environments(comparison).items():
        if name in ("commit", "versions", "device") and len(values) > 1:
            told.append(f"The runs differ in {name}, and may differ by that; see Environment.")
    return page.element("div", page.items(told), css="box warn") if told else Html("")


def _results(found: Sequence[Figures]) -> Html:
    head, rows = tables.head_and_rows(found)
    measured = dict.fromkeys(MEASURED_BY[e.where] for e in found if e.where in MEASURED_BY)
    note = f"The latest value {' or '.join(measured)}; ± is the standard deviation over seeds."
    private = any(each.epsilon for each in found)
    more = " What each ε promises is said under Privacy." if private else ""
    return page.section(
        "Results", page.table(head, rows, named=True), page.element("p", note + more)
    )


def _section(title: str, *drawn: Picture | None) -> Html:
    parts = [
        page.figure(figures.svg(_letters(p.name), p.size, p.draw), p.caption, p.words)
        for p in drawn
        if p is not None
    ]
    return page.section(title, *parts) if parts else Html("")


def _privacy_utility(comparison: Comparison) -> Html:
    settings = [group.setting for group in comparison.groups]
    parts: list[Html] = []
    for metric in dict.fromkeys(setting.metric for setting in settings):
        able = [s for s in settings if s.metric == metric and len(s.value_S)]
        blind = [s for s in able if s.epsilon is None and not _claims(s.runs)]
        for kind, group in by_meaning(able).items():
            name = f"utility{'abcdefgh'[len(parts) % 8]}"
            meaning = ", ".join(f"{key}: {value}" for key, value in kind)
            parts.append(
                page.figure(
                    privacy_utility(group, blind if len(blind) <= 3 else [], name),
                    f"Epsilon at {meaning}. Mean over seeds, with a band of one standard "
                    "deviation. Ringed: settings that no other one beats in both. Choosing the "
                    "best of several private runs costs more than its own epsilon.",
                    f"{word(metric)} over epsilon",
                )
            )
    return page.section("Privacy and utility", *parts) if parts else Html("")


def _claims(runs: Sequence[object]) -> bool:
    outcomes = [getattr(run, "outcome", None) for run in runs]
    return any(o is not None and (o.epsilon or o.epsilon_problem) for o in outcomes)


def _differences(comparison: Comparison) -> Html:
    title = "What differs between the settings"
    if not comparison.diff:
        words = "Nothing but the seed: the configurations are the same."
        return page.section(title, page.element("p", words))
    parts = []
    groups = comparison.groups
    for start in range(0, min(len(groups), _MOST_GROUPS), _DIFF_COLUMNS):
        names = [group.name for group in groups[start : start + _DIFF_COLUMNS]]
        rows = []
        for key, values in comparison.diff.items():
            cells = values[start : start + _DIFF_COLUMNS]
            rows.append([key, *(_cell(key, cell) for cell in cells)])
        parts.append(page.table(["key", *names], rows, named=True))
    parts.append(page.element("p", "A dash: the setting has no such key."))
    return page.section(title, *parts)


def _cell(key: str, value: str | None) -> str:
    if value is None:
        return "-"
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _privacy(comparison: Comparison) -> Html:
    said: dict[str, list[str]] = {}
    for group in comparison.groups:
        for member in group.members:
            text = member.data.privacy or "Nothing was said: nothing may be claimed of its privacy."
            names = said.setdefault(text, [])
            if group.name not in names:
                names.append(group.name)
    boxes = [
        page.element(
            "div",
            page.element(
                "p", "; ".join(names[:12]) + (" ..." if len(names) > 12 else ""), css="over"
            ),
            page.element("p", text, css="statement"),
            css="box",
        )
        for text, names in said.items()
    ]
    return page.section("Privacy", *boxes)


def _environments(comparison: Comparison) -> dict[str, dict[str, int]]:
    """Return {what: {value: number of runs}}."""
    found: dict[str, dict[str, int]] = {}
    for member in comparison.members:
        about = member.data.environment
        git = about.get("git")
        commit = str(git.get("commit", "")) if isinstance(git, dict) else ""
        changed = " with changes" if isinstance(git, dict) and git.get("changed") else ""
        versions = about.get("versions")
        pairs = {
            "commit": f"{commit[:12]}{changed}" or "unknown",
            "versions": ", ".join(f"{k} {v}" for k, v in versions.items())
            if isinstance(versions, dict)
            else "unknown",
            "device": f"{about.get('device', 'unknown')} ({about.get('device_name', '?')})",
            "python": str(about.get("python", "unknown")),
            "platform": str(about.get("platform", "unknown")),
        }
        for name, value in pairs.items():
            counts = found.setdefault(name, {})
            counts[value] = counts.get(value, 0) + 1
    return found


def _environment(comparison: Comparison) -> Html:
    pairs = {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{value}: {count} runs" for value, count in values.items())
        for name, values in _environments(comparison).items()
    }
    return page.section("Environment", page.facts(pairs))


def _runs(comparison: Comparison) -> Html:
    rows = [
        [
            group.name,
            str(member.data.setting("seed")),
            str(member.data.summary.get("status") or "unfinished"),
            f"{member.data.rounds.last:,}",
            page.element("code", str(member.data.path)),
        ]
        for group in comparison.groups
        for member in group.members
    ]
    table = page.table(["setting", "seed", "status", "rounds", "run folder"], rows, named=True)
    return page.details(f"All {len(rows)} runs", table)


def _letters(name: str) -> str:
    return "".join(c if c.isascii() and c.isalpha() else "x" for c in name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode("utf-8", "replace"))
