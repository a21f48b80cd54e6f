"""What there is to choose from: scenarios, and the parts of each group, read from their YAML files.

`fedsim list` and `--help` use this file, so it imports the standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "scenarios"
"""The packaged scenarios; they sit beside `fedsim` in every kind of install."""

GROUPS = (
    "data",
    "partition",
    "participation",
    "model",
    "strategy",
    "client",
    "privacy",
    "compression",
    "engine",
    "topology",
    "devices",
    "pace",
    "attack",
)
"""The groups of parts, in the order in which a scenario lists them."""

APART = ("audit",)
"""Groups of parts that no scenario holds: what a command does with a run."""

_BASE = "base"

_SAYS = re.compile(r"# (?:Trust|Try): ")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scenario, or one part of a group.

    Attributes:
        name: What to type: `scenario=<name>`, or `<group>=<name>`.
        summary: The first line of the file, if that is a comment; else empty.
        path: The YAML file.
        trust: Who is trusted with what, where a comment below it says it (`# Trust: ...`).
        example: What to type to try a part that not every scenario takes, where a comment says it
            (`# Try: scenario=... ...`).
    """

    name: str
    summary: str
    path: Path
    trust: str = ""
    example: str = ""

    @property
    def paper(self) -> str:
        """The paper that the summary cites, or an empty string."""
        cited = re.findall(r"\(([^()]*(?:arXiv:|\b(?:19|20)\d\d)[^()]*)\)", self.summary)
        return cited[-1] if cited else ""


def groups() -> tuple[str, ...]:
    """Return the names of the groups of parts."""
    return GROUPS


def entries(group: str, root: Path | None = None) -> list[Entry]:
    """Return the parts of a group, by name.

    Args:
        group: One of `groups()` or `APART`; any other has no parts.
        root: The scenarios folder; the packaged one by default.
    """
    return _entries((root or ROOT) / group) if group in (*GROUPS, *APART) else []


def scenarios(root: Path | None = None) -> list[Entry]:
    """Return the scenarios, by name; without `base`, which is what the others extend."""
    return [entry for entry in _entries(root or ROOT) if entry.name != _BASE]


def _entries(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.glob("*.yaml") if file.is_file())
    return [_entry(file) for file in files]


def _entry(file: Path) -> Entry:
    # A damaged file must not hide the others from a listing; `compose` is where it is refused.
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            head = [lines.readline(1000).strip() for _ in range(3)]
    except OSError:
        head = [""]
    summary = head[0].lstrip("#").strip() if head[0].startswith("#") else ""
    said = dict(line.removeprefix("# ").split(": ", 1) for line in head[1:] if _SAYS.match(line))
    return Entry(
        name=file.stem,
        summary=summary,
        path=file,
        trust=said.get("Trust", ""),
        example=said.get("Try", ""),
    )
