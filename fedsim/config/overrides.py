"""Overrides from the command line: Hydra's grammar, applied to keys that exist.

`<group>=<name>` chooses a part and is Hydra's business. Everything else sets one key of the schema,
whether or not a YAML file lists it, so `key=`, `+key=` and `++key=` mean the same here; `~key` puts
a key back to its default.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fedsim.catalog import GROUPS
from fedsim.config import specs
from fedsim.config.settings import SECTIONS, Scenario, plugins_of
from fedsim.config.targets import SPECIAL, Field, KeyedError, fields_of, locate, takes_any_key
from fedsim.errors import ConfigError

OPTION = re.compile(r"[A-Za-z0-9_]+")
"""A part's name: also the name of its file, hence no dots and no slashes."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One override of a value.

    Attributes:
        text: As typed.
        path: The key, split at its dots.
        value: The new value, in plain containers; the expected old one (or None) of a deletion.
        delete: Whether to go back to the default.
    """

    text: str
    path: tuple[str, ...]
    value: Any
    delete: bool

    @property
    def key(self) -> str:
        """The key as typed."""
        return ".".join(self.path)


def parse(overrides: Sequence[str]) -> tuple[dict[str, str], list[Change]]:
    """Sort overrides into choices of parts, {group: name}, and changes of values.

    Raises:
        ConfigError: One is not in Hydra's grammar, is a sweep, or names a group wrongly.
    """
    parser = OverridesParser.create()
    choices: dict[str, str] = {}
    changes: list[Change] = []
    for text in overrides:
        parsed = _parse(parser, text)
        if parsed.key_or_group in GROUPS:
            choices[parsed.key_or_group] = _option(parsed, text)
        else:
            path = tuple(parsed.key_or_group.split("."))
            value = parsed.value()
            changes.append(Change(text=text, path=path, value=value, delete=parsed.is_delete()))
    return choices, changes


def _parse(parser: OverridesParser, text: str) -> Override:
    parsed = read(parser, text)
    if parsed.is_sweep_override():
        a_list = "" if parsed.key_or_group in GROUPS else f" a list is {parsed.key_or_group}=[a,b],"
        raise ConfigError(
            f"{text!r} asks for several runs; fedsim sweep takes several values, fedsim run one;"
            f"{a_list} a decimal has a point, as in 0.1"
        )
    return parsed


def read(parser: OverridesParser, text: str) -> Override:
    """Read one override, which may ask for several values.

    Raises:
        ConfigError: It is not in Hydra's grammar, or its key is not written with dots alone.
    """
    if re.fullmatch(r"[A-Za-z_][\w.]*", text):
        raise ConfigError(f"{text!r} has no value; write {text}=VALUE")
    try:
        parsed = parser.parse_override(text)
    # ValueError: an integer of more digits than Python reads; RecursionError: too many brackets.
    except (HydraException, ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"cannot read override {text[:200]!r}: {reason[:200]}; write key=value, and quote "
            "special characters: key='a, b'"
        ) from error
    if parsed.package is not None or "/" in parsed.key_or_group:
        raise ConfigError(f"{text!r}: a key is written with dots alone, as in partition.alpha=0.5")
    return parsed


def _option(parsed: Override, text: str) -> str:
    group = parsed.key_or_group
    if parsed.is_delete():
        raise ConfigError(f"{text!r}: a run needs a {group}; choose one with {group}=<name>")
    value = parsed.value()
    if isinstance(value, (dict, list)):
        raise ConfigError(
            f"{text!r}: {group} takes the name of one part; its keys are set one by one, as in "
            f"{group}.<key>=<value>"
        )
    option = value if isinstance(value, str) else parsed.get_value_string()
    if not OPTION.fullmatch(option):
        raise ConfigError(
            f"{group}={option!r} is not a part's name; expected letters, digits and '_'"
        )
    return option


def apply(tree: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """Return a copy of the composed tree with `changes` made, in order.

    Args:
        tree: Plain containers, `${...}` not yet resolved.
        changes: What to set. Plugins and targets go first: they say which other keys exist.

    Raises:
        KeyedError: A key does not exist.
    """
    tree = copy.deepcopy(tree)

    def rank(change: Change) -> int:
        return 0 if change.path == ("plugins",) else 1 if change.path[-1] == "_target_" else 2

    for change in sorted(changes, key=rank):
        _change(tree, change)
    return tree


def _change(tree: dict[str, Any], change: Change) -> None:
    plugins = plugins_of(tree)
    node: Any = tree
    for depth, key in enumerate(change.path[:-1]):
        path = ".".join(change.path[:depth])
        node = _child(node, key, path, plugins)
    path, last = ".".join(change.path[:-1]), change.path[-1]
    known = _known(node, path, plugins)
    if isinstance(node, list):
        index = _index(node, last, path)
        if change.delete:
            raise KeyedError(change.key, "items of a list cannot be deleted; write the whole list")
        node[index] = change.value
        return
    if known is not None:
        specs.refuse_unknown({last: None}, tuple(known), path, _owner(node, path))
    if change.delete:
        if change.value is not None and node.get(last) != change.value:
            raise KeyedError(change.key, f"is {node.get(last)!r}, not {change.value!r}: kept")
        node.pop(last, None)
    elif _merges(node.get(last), change.value):
        for key, value in change.value.items():
            if isinstance(key, str):
                path_to = (*change.path, key)
                _change(tree, Change(text=change.text, path=path_to, value=value, delete=False))
            else:  # only a mapping of free keys may have it; the check of its type will tell
                node[last][key] = value
    else:
        node[last] = change.value


def _merges(old: Any, new: Any) -> bool:
    """Return whether a mapping is merged into the old one, as Hydra does, or takes its place."""
    return isinstance(old, dict) and isinstance(new, dict) and "_target_" not in new


def _child(node: Any, key: str, path: str, plugins: Sequence[str]) -> Any:
    known = _known(node, path, plugins)
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if known is not None:
        specs.refuse_unknown({key: None}, tuple(known), path, _owner(node, path))
    if key not in node:
        node[key] = _default(key, known, at_top=path == "")
    return node[key]


def _default(key: str, known: Mapping[str, Field | None] | None, at_top: bool) -> Any:
    """Return what a key that no file sets begins as, so that a key below it can be set."""
    if known is None or (at_top and (key in SECTIONS or key in GROUPS)):
        return {}
    field = known[key]
    return None if field is None or field.required else specs.plain(field.default)


def _known(node: Any, path: str, plugins: Sequence[str]) -> dict[str, Field | None] | None:
    """Return the keys that `node` may have, or None where it may have any."""
    if isinstance(node, list):
        return None
    if not isinstance(node, dict):
        raise KeyedError(path, f"{node!r} has no keys of its own; set it as a whole")
    if path == "":
        return {**fields_of(Scenario), **dict.fromkeys(GROUPS)}
    if path in SECTIONS:
        return dict(fields_of(SECTIONS[path]))
    if not specs.is_spec(node):
        return dict.fromkeys(SPECIAL) if path in GROUPS else None
    target = locate(node["_target_"], plugins, f"{path}._target_")
    if takes_any_key(target):
        return None
    return {**fields_of(target), **dict.fromkeys(SPECIAL)}


def _owner(node: Any, path: str) -> str:
    return str(node["_target_"]) if specs.is_spec(node) else path or "a scenario"


def _index(node: list[Any], key: str, path: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= len(node):
        raise KeyedError(f"{path}.{key}", f"no such item; {path} has {len(node)}")
    return int(key)
