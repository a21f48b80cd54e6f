"""What the shell offers when a word is half typed: scenarios, groups, keys and their values.

A shell waits for each answer, so nothing that a scenario names is imported: parts are YAML files,
and the fields of a part are read from the source of its class.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import click

from fedsim import catalog
from fedsim.catalog import APART, GROUPS

HOME = catalog.ROOT.parent
_SETTINGS = "fedsim.config.settings.Scenario"
_PACKAGES = ("fedsim.", "strategies.", "privacy.")

Choices = dict[str, list[str]]
"""key -> the values to offer."""


def complete_overrides(ctx: click.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return (word, help) for what a half-typed `key=value` may become."""
    given = [w for value in ctx.params.values() if isinstance(value, (list, tuple)) for w in value]
    words, begun = rejoin([str(word) for word in given], incomplete)
    apart = APART if ctx.info_name in APART else ()
    found = list(candidates(words, begun, apart))
    # A shell that splits words at "=" replaces what is behind it only.
    cut = len(begun) - (0 if incomplete == "=" else len(incomplete))
    return [(word[cut:], text) for word, text in found]


def complete_groups(ctx: click.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return what `fedsim list` may be followed by: a group, or `scenario=NAME`."""
    groups = ["scenarios", *GROUPS, *APART]
    found = [(group, f"list {group}") for group in groups if group.startswith(incomplete)]
    return found + complete_overrides(ctx, incomplete)


def rejoin(words: Sequence[str], incomplete: str) -> tuple[list[str], str]:
    """Undo how bash splits words at "=".

    Example:
        >>> rejoin(["scenario", "=", "quickstart", "strategy", "="], "fed")
        (['scenario=quickstart'], 'strategy=fed')
    """
    joined: list[str] = []
    for word in (*words, incomplete):
        if joined and (word == "=" or joined[-1].endswith("=")) and "=" not in word[1:]:
            joined[-1] += word
        else:
            joined.append(word)
    return joined[:-1], joined[-1]


def candidates(
    words: Sequence[str], begun: str, apart: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (word, help) for each word that `begun` may become.

    Args:
        words: What was typed before.
        begun: The word so far.
        apart: Groups that no scenario holds, which this command takes, too.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "scenario" not in given and not begun.startswith("scenario="):
        if "scenario=".startswith(begun):
            yield from _entries("scenario", catalog.scenarios(), "")
        return
    key, is_value, value = begun.partition("=")
    if key == "scenario":
        yield from _entries("scenario", catalog.scenarios(), value)
        return
    groups = (*GROUPS, *apart)
    if is_value and key in groups:
        yield from _entries(key, catalog.entries(key), value)
        return
    known = {group: "" for group in groups} | dict.fromkeys(keys(given, apart), "")
    if is_value:
        chosen = keys(given, apart).get(key, [])
        yield from ((f"{key}={choice}", "") for choice in chosen if choice.startswith(value))
        return
    near = [name for name in known if name.startswith(key)]
    if len(near) == 1:  # what ends in "=" alone would be followed by a space
        yield from candidates(words, f"{near[0]}=", apart)
    else:
        yield from ((f"{name}=", "") for name in near)


def keys(given: Mapping[str, str], apart: Sequence[str] = ()) -> Choices:
    """Return the keys of a scenario, each with the values to offer: its choices, or its own.

    Keys of parts inside parts (`data.source.name`) are left out.

    Args:
        given: The words so far, key -> value; `scenario` among them.
        apart: Groups that no scenario holds.
    """
    file = catalog.ROOT / f"{given.get('scenario', '')}.yaml"
    file = file if file.is_file() else Path(given.get("scenario", ""))
    chosen, values = _chosen(file)
    for group in (*GROUPS, *apart):
        if group in given:
            chosen[group] = given[group]
    found: Choices = {}
    for name, choices in fields(_SETTINGS).items():
        section = choices[0] if choices and "." in choices[0] else ""
        inner = fields(section) if section else {}
        found |= {f"{name}.{key}": inner[key] for key in inner} if inner else {name: choices}
    for group, name in chosen.items():
        part = _part(group, name)
        found |= {f"{group}.{key}": choices for key, choices in part.items()}
    own = {key: values[key] for key in found if key in values and len(found[key]) <= 1}
    return found | own


def _entries(key: str, entries: Sequence[catalog.Entry], value: str) -> Iterator[tuple[str, str]]:
    for entry in entries:
        if entry.name.startswith(value):
            yield f"{key}={entry.name}", entry.summary


def _chosen(file: Path) -> tuple[dict[str, str], Choices]:
    """Return the parts that a scenario's file chooses, and the values that it sets itself."""
    chosen: dict[str, str] = {}
    values: Choices = {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return chosen, values
    head, _, body = text.partition("_self_")
    for extended in re.findall(r"^ *- (\w+) *(?:#.*)?$", head, re.M):
        base, inner = _chosen(file.parent / f"{extended}.yaml")
        if not base and file.parent != catalog.ROOT:
            base, inner = _chosen(catalog.ROOT / f"{extended}.yaml")
        chosen, values = {**chosen, **base}, {**values, **inner}
    chosen |= dict(re.findall(r"^ *- (?:override )?/?(\w+): *(\w+)", head, re.M))
    section = ""
    for indent, key, value in re.findall(r"^( *)(\w+):[ ]*([^#\n]*)", body, re.M):
        section = section if indent else key
        path = f"{section}.{key}" if indent else key
        if value.strip() and not value.strip().startswith(("{", "&", "|", ">")):
            values[path] = [value.strip().replace(" ", "")]
    return {group: name for group, name in chosen.items() if group in GROUPS}, values


def _part(group: str, name: str) -> Choices:
    """Return the keys of a part: those of its class, and the values of its file."""
    file = catalog.ROOT / group / f"{name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    pairs = dict(re.findall(r"^(\w+):[ ]*([^#\n]*)", text, re.M))
    listed = {k: [v.strip().replace(" ", "")] if v.strip() else [] for k, v in pairs.items()}
    declared = fields(listed.pop("_target_", [""])[0])
    return {key: declared.get(key) or listed.get(key, []) for key in {**declared, **listed}}


@cache
def fields(target: str) -> Choices:
    """Return the fields of a class of ours, bases first, each with its choices if it has a few.

    For a field that is a section of the settings, that is the section's dotted name.

    Example:
        >>> fields("strategies.fedavg.FedAvg")["weighting"]
        ['examples', 'uniform']
    """
    module, _, name = target.rpartition(".")
    path = HOME.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not target.startswith(_PACKAGES) or not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    origin = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return fields(origin[name]) if name in origin else {}
    found: Choices = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name):
            found |= fields(origin.get(base.id, f"{module}.{base.id}"))
    is_dataclass = any("dataclass" in ast.unparse(d) for d in classes[name].decorator_list)
    for node in classes[name].body if is_dataclass else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            hidden = node.target.id.startswith("_") or "ClassVar" in annotation
            hidden = hidden or "init=False" in (ast.unparse(node.value) if node.value else "")
            if not hidden:
                section = origin.get(annotation, f"{module}.{annotation}")
                is_section = target == _SETTINGS and bool(fields(section))
                found[node.target.id] = [section] if is_section else _choices(node.annotation)
    return found


def _choices(annotation: ast.expr) -> list[str]:
    found: list[str] = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            found += [str(c.value) for c in ast.walk(node.slice) if isinstance(c, ast.Constant)]
        elif isinstance(node, ast.Name) and node.id == "bool":
            found += ["true", "false"]
    return found
