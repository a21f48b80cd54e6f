"""Pages on how fedsim works: the headers of the modules that hold it together."""

from __future__ import annotations

import ast
import re
from pathlib import Path

MODULES = {
    "fedsim/rounds.py": "The round loop",
    "fedsim/config/composition.py": "Scenarios",
    "fedsim/strategy.py": "Strategies",
    "fedsim/client/half.py": "What a client does",
    "fedsim/records.py": "Messages and records",
    "fedsim/engines/base.py": "Engines",
    "fedsim/engines/cohort.py": "The cohort engine",
    "fedsim/participation/base.py": "Participation",
    "fedsim/partition/base.py": "Partitions",
    "fedsim/admission.py": "Admission",
    "fedsim/pace/base.py": "Pace: deadlines and over-selection",
    "fedsim/seeds.py": "Randomness",
    "fedsim/protection/base.py": "Privacy mechanisms",
    "fedsim/protection/ledger.py": "The ledger",
    "privacy/events.py": "Privacy events",
    "privacy/accountant.py": "The accountant",
    "fedsim/results.py": "The run folder",
    "fedsim/checkpoint.py": "Checkpoints",
    "fedsim/attack/base.py": "Attackers",
    "fedsim/auditing/base.py": "Audits",
    "fedsim/notebook.py": "From Python",
}
"""In reading order."""


def pages(home: Path) -> dict[str, str]:
    """Return a page for each module: its header, and what it offers."""
    found = {}
    for module, title in MODULES.items():
        tree = ast.parse((home / module).read_text(encoding="utf-8"))
        lines = [f"# {title}", "", *block(ast.get_docstring(tree) or ""), ""]
        lines += [f"Source: `{module}`", ""]
        for node in tree.body:
            public = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"
            if public and isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                lines += _offer(node)
        found[f"concepts/{Path(module).with_suffix('').as_posix().replace('/', '_')}.md"] = (
            "\n".join(lines) + "\n"
        )
    return found


def block(doc: str) -> list[str]:
    """Return a docstring as Markdown: paragraphs as prose, what is laid out by spaces as it is."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc.strip("\n")):
        inner = paragraph.split("\n")
        if any(line.startswith("  ") for line in inner):
            lines += ["```text", *inner, "```", ""]
        else:
            lines += [*map(_prose, inner), ""]
    return lines[:-1]


def _prose(line: str) -> str:
    """Return a line without what Markdown would take for its own; code stays as it is."""
    words = re.split(r"(`[^`]*`)", line)
    return "".join(w if w.startswith("`") else re.sub(r"([*<|])", r"\\\1", w) for w in words)


def _offer(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    lines = [f"## {kind} `{node.name}`", "", *block(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        methods = [
            f"- `{inner.name}`: {(ast.get_docstring(inner) or '').partition(chr(10))[0]}"
            for inner in node.body
            if isinstance(inner, ast.FunctionDef)
            and inner.name[0] != "_"
            and ast.get_docstring(inner)
        ]
        lines += [*methods, ""] if methods else []
    return lines
