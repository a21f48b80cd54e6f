"""Which key was probably meant, where one that nothing reads was set."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fedsim import catalog
from fedsim.catalog import GROUPS
from fedsim.config.settings import SECTIONS, plugins_of
from fedsim.config.targets import UnknownKeyError, fields_of, locate
from fedsim.errors import ConfigError

_ELSEWHERE = {
    "learning_rate": "lr",
    "local_epochs": "epochs",
    "num_epochs": "epochs",
    "local_steps": "steps",
    "bs": "batch_size",
    "local_batch_size": "batch_size",
    "num_rounds": "rounds",
    "n_rounds": "rounds",
    "n_clients": "num_clients",
    "min_clients": "clients_per_round",
    "fraction_fit": "fraction",
    "fraction_train": "fraction",
    "eps": "epsilon",
    "target_epsilon": "epsilon",
    "max_grad_norm": "clip_norm",
}
"""What other tools call some of our keys."""


def suggest(error: UnknownKeyError, tree: Mapping[Any, Any]) -> tuple[list[str], str]:
    """Return (paths of the key that was probably meant, or else a hint in words, or neither).

    In this order: what others call a key of the same part; a part of the same group that has the
    key; the same word elsewhere; a part of any group that has it; a like word here, then elsewhere.
    """
    meant = _ELSEWHERE.get(error.word.lower(), error.word)
    here = {k: [f"{error.parent}.{k}" if error.parent else k] for k in error.known}
    if meant in here:
        return here[meant], ""
    in_a_part = error.parent in GROUPS
    if in_a_part and (hint := _other_parts([error.parent], meant)):
        return [], hint
    elsewhere: dict[str, list[str]] = {}
    for path in _paths(tree):
        elsewhere.setdefault(path.rpartition(".")[2], []).append(path)
    if same := [path for path in elsewhere.get(meant, []) if path != error.path]:
        return same, ""
    if not error.parent and (hint := _other_parts(GROUPS, meant)):
        return [], hint
    for known in (here, elsewhere):
        near = difflib.get_close_matches(error.word, list(known), n=1, cutoff=0.6)
        if near and known[near[0]] != [error.path]:
            return known[near[0]], ""
    return [], ""


def parts_with(group: str, key: str) -> list[str]:
    """Return the packaged parts of a group that have a key."""
    return [entry.name for entry in catalog.entries(group) if key in _keys(entry)]


def _other_parts(groups: Sequence[str], key: str) -> str:
    """Say which parts have a key that no chosen one has; empty if none does."""
    for group in groups:
        if names := parts_with(group, key):
            return f"{group}.{key} is a key of {group}={_either(names)}; choose one of these"
    return ""


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _keys(entry: catalog.Entry) -> set[str]:
    try:
        content = yaml.safe_load(entry.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return set()
    return set(map(str, content)) if isinstance(content, dict) else set()


def _paths(tree: Mapping[Any, Any]) -> list[str]:
    """Return the paths of all keys of parts and sections, as far as they can be told."""
    found = []
    for group in GROUPS:
        try:
            target = locate(tree[group]["_target_"], plugins_of(tree))
        except (ConfigError, LookupError, TypeError):
            continue
        found += [f"{group}.{key}" for key in fields_of(target)]
    return found + [f"{name}.{key}" for name in SECTIONS for key in fields_of(SECTIONS[name])]
