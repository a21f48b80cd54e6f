"""From `scenario=<name or path>` and overrides to a checked configuration, and to its parts.

Two stages. Hydra composes the YAML files with the parts that were chosen (`strategy=fedau`). Then
every other override is applied to the keys that the parts declare, defaults are filled in, `${...}`
is resolved and each value is checked; what nothing reads is refused, not ignored.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedsim.catalog import GROUPS
from fedsim.config import sources, specs
from fedsim.config.interpolation import resolve
from fedsim.config.overrides import Change, apply, parse
from fedsim.config.settings import SECTIONS, Scenario, plugins_of
from fedsim.config.suggest import suggest
from fedsim.config.targets import KeyedError, UnknownKeyError, fields_of, instantiate, locate
from fedsim.errors import ConfigError

Where = Callable[[str], str | None]
"""Gives the file (or "command line") that sets a key; asked only when there is an error to tell."""

_COMMAND_LINE = "command line"

_BASES: dict[str, tuple[str, ...]] = {
    "data": ("fedsim.data.dataset.DataPart",),
    "partition": ("fedsim.partition.base.PartitionPart",),
    "participation": ("fedsim.participation.base.ParticipationPart",),
    "model": ("fedsim.models.base.ModelPart", "torch.nn.Module"),
    "strategy": ("flwr.serverapp.strategy.Strategy",),
    "compression": ("fedsim.compression.base.CompressionPart",),
    "devices": ("fedsim.devices.base.DevicesPart",),
    "pace": ("fedsim.pace.base.PacePart",),
    "attack": ("fedsim.attack.base.AttackPart",),
}
"""What a part of each group must be."""

_IMPLIED: dict[str, dict[str, Any]] = {
    "devices": {"_target_": "fedsim.devices.none.Unprofiled"},
    "pace": {"_target_": "fedsim.pace.patient.Patient"},
    "compression": {"_target_": "fedsim.compression.none.Uncompressed"},
}
"""Groups that came later: what a configuration without them means, whose hash stays what it was."""

_IMPLIED_KEYS: dict[str, dict[str, Any]] = {
    "devices": {"memory": None, "memory_spread": 0.0},
}
"""Keys of parts that came later, likewise."""

_BREAKS = "\x85\u2028\u2029\ufeff"
"""What YAML takes for the end of a line, or of a file, and its writer does not escape."""


@dataclass(frozen=True)
class Config:
    """A scenario, composed and checked.

    Attributes:
        scenario: As it was asked for: a name or a path.
        overrides: As they were typed.
        values: Plain containers: every key of the scenario and of its parts, defaults included.
    """

    scenario: str
    overrides: tuple[str, ...]
    values: dict[str, Any]

    @property
    def settings(self) -> Scenario:
        """The keys that belong to no part, typed."""
        values = {name: self.values[name] for name in fields_of(Scenario)}
        return Scenario(**(values | {n: s(**values[n]) for n, s in SECTIONS.items()}))

    @property
    def plugins(self) -> tuple[str, ...]:
        """Further package prefixes that targets may have."""
        return tuple(self.values["plugins"])

    @property
    def hash(self) -> str:
        """SHA-256 of the values that decide a run's result: not `output`, not `checkpoint`."""
        kept = {
            key: _without_implied(key, value)
            for key, value in self.values.items()
            if key not in ("output", "checkpoint") and value != _IMPLIED.get(key)
        }
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return a file that `from_yaml` reads, and that is itself a scenario."""
        head = f"# scenario: {json.dumps(self.scenario)}\n# overrides: "
        body = OmegaConf.to_yaml(OmegaConf.create(self.values))
        if any(character in body for character in _BREAKS):  # read back, they would be line ends
            body = json.dumps(self.values) + "\n"  # which is YAML, too, with all of them escaped
        return f"{head}{json.dumps(self.overrides)}\n{body}"

    @classmethod
    def from_yaml(
        cls, text: str, label: str = "config.yaml", changes: Sequence[Change] = ()
    ) -> Config:
        """Read what `to_yaml` wrote, and check it again.

        Args:
            text: The file's content.
            label: The file's name, for messages.
            changes: Values that hold here instead of those in the file.

        Raises:
            ConfigError: It is not a configuration, or no longer a valid one.
        """
        tree = sources.parse_yaml(text, label)
        lines = [line for line in text.split("\n")[:2] if line.startswith("# ") and ": " in line]
        head = dict(line[2:].split(": ", 1) for line in lines)
        try:
            scenario = json.loads(head.get("scenario", json.dumps(str(tree.get("name")))))
            overrides = tuple(json.loads(head.get("overrides", "[]")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{label}: its first two lines are damaged: {error}") from error
        if not all(isinstance(item, str) for item in (scenario, *overrides)):
            raise ConfigError(f"{label}: its first two lines are damaged: expected text")
        return cls(scenario, overrides, assemble(tree, changes, lambda path: label))


Loaded = dict[tuple[str, tuple[tuple[str, str], ...]], tuple[sources.Source, dict[str, Any]]]
"""The files behind (scenario, choices of parts), composed; see `compose`."""


def compose(
    scenario: str,
    overrides: Sequence[str] = (),
    *,
    root: Path | None = None,
    loaded: Loaded | None = None,
) -> Config:
    """Compose and check a scenario.

    Args:
        scenario: The name of a scenario in `root`, or the path of a `.yaml` file anywhere, whose
            own folder is then searched for parts, too (and first).
        overrides: In Hydra's grammar, e.g. `["strategy=fedau", "partition.alpha=0.1"]`.
        root: The scenarios folder; the packaged one by default.
        loaded: What earlier calls have read, which this one adds to: many points of one scenario
            read its files once. None reads them afresh.

    Raises:
        ConfigError: Anything about it is wrong; the message names the key, where it was set, and
            what is allowed.
    """
    choices, changes = parse(overrides)
    key = (scenario, tuple(sorted(choices.items())))
    if loaded is not None and key in loaded:
        source, tree = loaded[key]
    else:
        source = sources.find(scenario, root)
        tree = sources.load(source, choices)
        if loaded is not None:
            loaded[key] = source, tree
    if "name" not in source.keys:
        tree = {**tree, "name": source.file.stem}
    set_here = [change.key for change in changes]

    def where(path: str) -> str | None:
        path = re.sub(r"\[(\d+)\]", r".\1", path)
        if any(f"{path}.".startswith(f"{key}.") for key in set_here):
            return _COMMAND_LINE
        return sources.origin(source, choices, path)

    return Config(scenario, tuple(overrides), assemble(tree, changes, where))


def build_part(config: Config, group: str) -> Any:
    """Make the part of a group.

    Raises:
        ConfigError: The part cannot be made, or is not one of this group.
    """
    part = instantiate(config.values[group], group, config.plugins)
    bases = tuple(map(_import, _BASES.get(group, ())))
    if bases and not isinstance(part, bases):
        raise _not_a(group, config.values[group]["_target_"])
    return part


def assemble(tree: Mapping[Any, Any], changes: Sequence[Change], where: Where) -> dict[str, Any]:
    """Turn composed YAML into checked values.

    Args:
        tree: Plain containers, `${...}` not yet resolved.
        changes: Overrides of values.
        where: Says who set a key, for messages.

    Raises:
        ConfigError: A value, key or target is wrong.
    """
    try:
        return _assemble(tree, changes)
    except UnknownKeyError as error:
        raise ConfigError(_unknown(error, tree, where)) from None
    except KeyedError as error:
        raise ConfigError(f"{error}{_place(error.verb, where(error.path))}") from error
    except RecursionError as error:
        raise ConfigError("values are nested too deeply, or refer to themselves") from error


def _assemble(tree: Mapping[Any, Any], changes: Sequence[Change]) -> dict[str, Any]:
    specs.check_plain(tree, "")
    tree = apply(dict(tree), changes)
    specs.check_plain(tree, "")
    tree = {**{group: dict(part) for group, part in _IMPLIED.items()}, **tree}
    schema = fields_of(Scenario)
    specs.refuse_unknown(tree, (*schema, *GROUPS), "", "a scenario")
    plugins = plugins_of(tree)
    for name, section in SECTIONS.items():
        given = tree.get(name, {})
        tree[name] = specs.fill(given, fields_of(section)) if isinstance(given, dict) else given
    for group in GROUPS:
        _check_part(tree, group, plugins)
        tree[group] = specs.expand(tree[group], group, plugins)
    values = resolve(specs.fill(tree, schema))
    specs.check_plain(values, "")
    checked = _check(values, plugins)
    specs.check_plain(checked, "")  # 1e300 is plain, and so large an integer is not
    return checked


def _check_part(tree: Mapping[str, Any], group: str, plugins: Sequence[str]) -> None:
    part = tree.get(group)
    if part is None:
        raise KeyedError(group, f"a run needs one; extend 'base', or add {group}=<name>")
    if not isinstance(part, dict):
        raise KeyedError(group, f"{part!r} is not a part; choose one with {group}=<name>")
    if "_target_" not in part:
        raise KeyedError(group, f"has no '_target_', so it is no part; add {group}=<name>")
    target = locate(part["_target_"], plugins, f"{group}._target_")
    bases = tuple(map(_import, _BASES.get(group, ())))
    if bases and isinstance(target, type) and not issubclass(target, bases):
        raise _not_a(group, part["_target_"])


def _check(values: Mapping[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    sections = {n: specs.check_section(s, values[n], n) for n, s in SECTIONS.items()}
    scalars = specs.check_fields(values, fields_of(Scenario), "", everything=True)
    made = {name: section(**sections[name]) for name, section in SECTIONS.items()}
    specs.instantiate_section(Scenario, scalars | made, "")
    checked = scalars | sections
    for group in GROUPS:
        # Expanded once more: a reference may have brought in a part of its own.
        expanded = specs.expand(values[group], group, plugins)
        checked[group] = specs.check(expanded, group, plugins)
    return checked


def _without_implied(group: str, part: Any) -> Any:
    later = _IMPLIED_KEYS.get(group)
    if later is None or not isinstance(part, dict):
        return part
    return {k: v for k, v in part.items() if k not in later or v != later[k]}


def _not_a(group: str, target: str) -> KeyedError:
    allowed = " or ".join(_BASES[group])
    return KeyedError(f"{group}._target_", f"{target!r} is not a {group} part (a {allowed})")


def _import(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def _place(verb: str, place: str | None) -> str:
    if place is None:
        return ""
    return f" ({verb} on the {place})" if place == _COMMAND_LINE else f" ({verb} in {place})"


def _unknown(error: UnknownKeyError, tree: Mapping[Any, Any], where: Where) -> str:
    """Say which key was probably meant and where that one lives, or what keys there are."""
    text = f"unknown key '{error.path}'"
    place = where(error.path)
    if place not in (None, _COMMAND_LINE):
        home = where(f"{error.parent}._target_") if error.parent in GROUPS else place
        other = f", but the part is from {home}" if home not in (None, place) else ""
        text += f" (set in {place}{other})"
    near, hint = suggest(error, tree)
    if near:
        meant = " or ".join(f"'{path}'" for path in near)
        return f"{text}; did you mean {meant}? ({where(near[0]) or error.owner})"
    if hint:
        return f"{text}; {hint}"
    return f"{text}; keys of {error.owner}: {', '.join(error.known) or 'none'}"
