"""The report of one run: a single HTML file, made of the run folder's files and nothing else."""

from __future__ import annotations

from pathlib import Path

from fedsim.files import write_atomic
from fedsim.report import findings, page, repeat, sections, traffic
from fedsim.report.curves_csv import curves_csv
from fedsim.report.holdings import holdings_png
from fedsim.report.measures import headline, show, word
from fedsim.report.run_folder import RunData


def write_report(run: Path) -> Path:
    """Write `report.html`, `curves.csv` and `partition.png` into a run folder, over older ones.

    Args:
        run: The folder of a run: finished, stopped, or still going on.

    Returns:
        The path of the report.

    Raises:
        ConfigError: There is no such folder.
        OSError: The folder cannot be written to.
    """
    data = RunData.read(run)
    _write(run / "curves.csv", curves_csv(data.rounds))
    if data.holdings is not None:
        write_atomic(run / "partition.png", holdings_png(data.holdings))
    _write(run / "report.html", render(data))
    return run / "report.html"


def render(data: RunData) -> str:
    """Return the report as HTML."""
    head = headline(data.rounds)
    figure = f": {word(head.name)} {show(head.name, head.final)}" if head else ""
    return page.document(
        f"{data.name}{figure} (fedsim)",
        sections.top(data, head),
        sections.problems(data),
        sections.curves(data, head),
        findings.findings(data.findings),
        sections.decomposition(data),
        sections.diagnostics(data),
        sections.privacy(data),
        sections.audit(data),
        sections.who_took_part(data),
        sections.who_holds_what(data),
        sections.evenness(data, head),
        sections.footprint(data),
        traffic.traffic(data.network),
        sections.last_rounds(data),
        repeat.repeat(data),
        repeat.bottom(data),
    )


def _write(path: Path, text: str) -> None:
    # A file may hold half of a surrogate pair, which UTF-8 cannot.
    write_atomic(path, text.encode("utf-8", "replace"))
