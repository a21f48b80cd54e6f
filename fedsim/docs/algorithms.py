"""A page for each algorithm: what it is, its formula, source, differences, keys, and results.

All of it comes from the algorithm's own header and YAML files; several YAML files of one module are
presets, and share its page.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

from fedsim import catalog
from fedsim.catalog import Entry
from fedsim.docs.concepts import block

_ARXIV = re.compile(r"(?<!\[)(?:arXiv:)?\b(\d{4}\.\d{4,5})\b")


def pages(home: Path, group: str) -> dict[str, str]:
    """Return the pages of a group's algorithms that are ours."""
    modules: dict[str, list[Entry]] = {}
    for entry in catalog.entries(group):
        module = _target(entry).rpartition(".")[0]
        if module.split(".")[0] in ("strategies", "privacy"):
            modules.setdefault(module, []).append(entry)
    return {
        f"{group}/{module.rpartition('.')[2]}.md": _page(home, group, module, entries)
        for module, entries in modules.items()
    }


def listing(group: str) -> str:
    """Return the table of a group's parts, or of the scenarios."""
    entries = catalog.scenarios() if group == "scenarios" else catalog.entries(group)
    key = "scenario" if group == "scenarios" else group
    lines = [f"# {group.capitalize()}", "", "| name | what it is |", "| --- | --- |"]
    for entry in entries:
        module = _target(entry).rpartition(".")[0] if group != "scenarios" else ""
        name = f"`{key}={entry.name}`"
        if group in ("strategy", "privacy") and module.startswith(("strategies.", "privacy.")):
            name = f"[{name}](/{group}/{module.rpartition('.')[2]}.md)"
        trust = f"<br>Trusted: {entry.trust}" if entry.trust else ""
        lines.append(f"| {name} | {_cited(entry.summary)}{trust} |")
    return "\n".join(lines) + "\n"


def _page(home: Path, group: str, module: str, entries: list[Entry]) -> str:
    source = f"{module.replace('.', '/')}.py"
    doc = ast.get_docstring(ast.parse((home / source).read_text(encoding="utf-8"))) or ""
    lines = [f"# {_title(entries)}", "", *block(doc), ""]
    papers = dict.fromkeys(_ARXIV.findall(doc))
    if papers:
        found = ", ".join(f"[arXiv:{number}](https://arxiv.org/abs/{number})" for number in papers)
        lines += [f"Papers: {found}", ""]
    lines += [f"Source: `{source}`", ""]
    for entry in entries:
        lines += [f"## `{group}={entry.name}`", "", _cited(entry.summary), ""]
        if entry.trust:
            lines += [f"Trusted: {entry.trust}", ""]
        text = entry.path.read_text(encoding="utf-8").split("\n")
        body = [line for line in text if not line.startswith("#")]
        lines += ["```yaml", *("\n".join(body).strip().split("\n")), "```", ""]
        command = "run" if group == "strategy" else "plan"
        words = entry.example or f"scenario=quickstart {group}={entry.name}"
        lines += ["```", f"fedsim {command} {words}", "```", ""]
    lines += _results(home, [entry.name for entry in entries])
    return "\n".join(lines) + "\n"


def _title(entries: list[Entry]) -> str:
    shortest = min(entries, key=lambda entry: len(entry.name))
    head = re.split(r"[:,(;]", shortest.summary)[0].strip()
    return head if 2 < len(head) <= 40 else shortest.name


def _results(home: Path, names: list[str]) -> list[str]:
    """Return the result pages that speak of an algorithm, with the first one's picture."""
    lines = []
    pictured = False
    word = re.compile(rf"`(?:\w+=)?(?:{'|'.join(map(re.escape, names))})`|=(?:{'|'.join(names)})\b")
    for path in sorted((home / "results").glob("*/README.md")):
        text = path.read_text(encoding="utf-8")
        own = path.parent.name in names
        if not own and not word.search(text):
            continue
        place = path.relative_to(home).as_posix()
        lines.append(f"- [{text.partition(chr(10))[0].lstrip('# ')}](/{place})")
        picture = re.search(r"!\[([^\]]*)\]\(([^)]+\.png)\)", text)
        if picture and (own or not pictured):
            pictured = True
            lines += ["", f"![{picture[1]}](/{path.parent.relative_to(home)}/{picture[2]})", ""]
    return ["## Results", "", *lines] if lines else []


def _cited(summary: str) -> str:
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", summary).replace("|", "\\|")


def _target(entry: Entry) -> str:
    content = yaml.safe_load(entry.path.read_text(encoding="utf-8"))
    return str(content.get("_target_", "")) if isinstance(content, dict) else ""
