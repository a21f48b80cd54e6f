"""Parts that belong to no scenario: chosen on the command line alone, from a group of their own.

`fedsim audit scenario=X audit=canaries audit.canaries=500`: what is done to a run is not what the
run is, so it stands in no scenario and does not enter the configuration's hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim import catalog
from fedsim.config import specs
from fedsim.config.overrides import OPTION, parse
from fedsim.config.sources import parse_yaml
from fedsim.config.targets import instantiate
from fedsim.errors import ConfigError, did_you_mean


def split(group: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the words that choose or change a part of `group`, the others)."""
    own = [word for word in words if word.startswith((f"{group}=", f"{group}."))]
    return own, [word for word in words if word not in own]


def build_apart(
    group: str, words: Sequence[str], *, default: str, plugins: Sequence[str] = ()
) -> tuple[dict[str, Any], Any]:
    """Return the checked values of a part, and the part.

    Args:
        group: Of `catalog.APART`.
        words: `<group>=<name>` and `<group>.<key>=<value>`.
        default: The part's name where none is given.
        plugins: Further package prefixes that its `_target_` may name.

    Raises:
        ConfigError: There is no such part, or a key or value of it is wrong.
    """
    names = [word.partition("=")[2] for word in words if word.startswith(f"{group}=")]
    name = names[-1] if names else default
    known = {entry.name: entry.path for entry in catalog.entries(group)}
    if not OPTION.fullmatch(name) or name not in known:
        raise ConfigError(
            f"{group}={name[:100]}: there is no such part{did_you_mean(name, known)} "
            f"(fedsim list {group} shows those that are)"
        )
    values = parse_yaml(known[name].read_text(encoding="utf-8"), f"{group}/{name}.yaml")
    _, changes = parse([word for word in words if not word.startswith(f"{group}=")])
    for change in changes:
        if len(change.path) != 2 or change.delete:
            raise ConfigError(f"{change.text!r}: keys of {group} are set as {group}.<key>=<value>")
        values[change.path[1]] = change.value
    checked = specs.check(specs.expand(values, group, plugins), group, plugins)
    return checked, instantiate(checked, group, plugins)
