"""From `scenario=<name or path>` and overrides to a checked configuration, and to its parts.

Two stages. Hydra composes the YAML files with the parts that were chosen (`strategy=fedau`). Then
every other override is applied to the keys that the parts declare, defaults are filled in, `${...}`
is resolved and each value is checked; what nothing reads is refused, not ignored.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim import sources, specs
from fedsim.catalog import GROUPS
from fedsim.errors import ConfigError, did_you_mean
from fedsim.overrides import Change, apply, parse
from fedsim.scenario import SECTIONS, Scenario
from fedsim.targets import KeyedError, UnknownKeyError, fields_of, instantiate, locate

Where = Callable[[str], str | None]
"""Gives the file or "command line" that sets a key; asked only when there is an error to tell."""

_BASES: dict[str, tuple[str, ...]] = {
    "data": ("fedsim.data.dataset.DataPart",),
    "partition": ("fedsim.partition.base.PartitionPart",),
    "participation": ("fedsim.participation.base.ParticipationPart",),
    "model": ("fedsim.models.base.ModelPart", "torch.nn.Module"),
    "strategy": ("flwr.serverapp.strategy.Strategy",),
}
"""What a part must be, for the groups whose contract is a class."""


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
        kept = {k: v for k, v in self.values.items() if k not in ("output", "checkpoint")}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return a file that `from_yaml` reads, and that is itself a scenario."""
        head = f"# scenario: {json.dumps(self.scenario)}\n# overrides: "
        body = OmegaConf.to_yaml(OmegaConf.create(self.values))
        return f"{head}{json.dumps(self.overrides)}\n{body}"

    @classmethod
    def from_yaml(cls, text: str, label: str = "config.yaml") -> Config:
        """Read what `to_yaml` wrote, and check it again.

        Args:
            text: The file's content.
            label: The file's name, for messages.

        Raises:
            ConfigError: It is not a configuration, or no longer a valid one.
        """
        tree = sources.parse_yaml(text, label)
        head = dict(line[2:].split(": ", 1) for line in text.split("\n")[:2] if ": " in line)
        try:
            scenario = json.loads(head.get("scenario", json.dumps(str(tree.get("name")))))
            overrides = tuple(json.loads(head.get("overrides", "[]")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{label}: its first two lines are damaged: {error}") from error
        if not all(isinstance(item, str) for item in (scenario, *overrides)):
            raise ConfigError(f"{label}: its first two lines are damaged: expected text")
        return cls(scenario, overrides, assemble(tree, (), lambda path: label))


def compose(scenario: str, overrides: Sequence[str] = (), *, root: Path | None = None) -> Config:
    """Compose and check a scenario.

    Args:
        scenario: The name of a scenario in `root`, or the path of a `.yaml` file anywhere, whose
            own folder is then searched for parts, too (and first).
        overrides: In Hydra's grammar, e.g. `["strategy=fedau", "partition.alpha=0.1"]`.
        root: The scenarios folder; the packaged one by default.

    Raises:
        ConfigError: Anything about it is wrong; the message names the key, where it was set, and
            what is allowed.
    """
    choices, changes = parse(overrides)
    source = sources.find(scenario, root)
    tree = sources.load(source, choices)
    if "name" not in source.keys:
        tree["name"] = source.file.stem
    set_here = [change.key for change in changes]

    def where(path: str) -> str | None:
        if any(f"{path}.".startswith((f"{key}.", f"{key}[")) for key in set_here):
            return "command line"
        return sources.origin(source, choices, path.split("[")[0])

    try:
        return Config(scenario, tuple(overrides), assemble(tree, changes, where))
    except UnknownKeyError:
        raise
    except RecursionError as error:
        shown = source.show(source.file)
        raise ConfigError(f"{shown}: values are nested too deeply") from error


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
        place = where(error.path)
        raise ConfigError(f"{error} (set in {place})" if place else str(error)) from error
    except RecursionError as error:
        raise ConfigError("values are nested too deeply, or refer to themselves") from error


def _assemble(tree: Mapping[Any, Any], changes: Sequence[Change]) -> dict[str, Any]:
    specs.check_plain(tree, "")
    tree = apply(dict(tree), changes)
    specs.check_plain(tree, "")
    specs.refuse_unknown(tree, (*fields_of(Scenario), *GROUPS), "", "a scenario")
    plugins = _plugins(tree)
    for name in SECTIONS:
        if isinstance(tree.get(name, {}), dict):
            tree[name] = specs.fill(tree.get(name, {}), fields_of(SECTIONS[name]))
    for group in GROUPS:
        tree[group] = specs.expand(_part(tree, group), group, plugins)
    tree = specs.fill(tree, {n: f for n, f in fields_of(Scenario).items() if n not in SECTIONS})
    values = _resolve(tree)
    specs.check_plain(values, "")
    return _check(values, plugins)


def _plugins(tree: Mapping[str, Any]) -> list[str]:
    plugins = tree.get("plugins", [])
    specs.check_fields({"plugins": plugins}, {"plugins": fields_of(Scenario)["plugins"]}, "", True)
    return list(plugins)


def _part(tree: Mapping[str, Any], group: str) -> dict[str, Any]:
    part = tree.get(group)
    if part is None:
        raise KeyedError(
            group, f"not set, and a run needs one; begin with 'defaults: [base, _self_]' or {group}="
        )
    if not isinstance(part, dict):
        raise KeyedError(group, f"{part!r} is not a part; choose one with {group}=<name>")
    if "_target_" not in part:
        raise KeyedError(group, f"no '_target_' among {', '.join(map(str, part)) or 'no keys'}")
    return part


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    config = OmegaConf.create(tree)
    _find_missing(tree, "")
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        raise _bad_interpolation(config, tree, error) from error
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping of keys to values")
    return {str(key): value for key, value in values.items()}


def _find_missing(value: Any, path: str) -> None:
    for key, item in _items(value):
        where = f"{path}{key}"
        if item == "???":
            raise KeyedError(where, f"required, but not set; add {where}=<value>")
        _find_missing(item, f"{where}.")


def _bad_interpolation(config: DictConfig, tree: Any, error: Exception) -> KeyedError:
    """Name the first key whose `${...}` fails by itself."""
    stack = [("", tree)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(config, path, throw_on_missing=True)
            except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as reason:
                text = str(reason).split("\n")[0]
                return KeyedError(path, f"cannot resolve {value!r}: {text}")
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in _items(value)]
        stack.extend(reversed(items))
    return KeyedError("scenario", f"cannot be resolved: {str(error).splitlines()[0]}")


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _check(values: dict[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        checked[name] = specs.check_section(section, values[name], name)
    fields = fields_of(Scenario)
    scalars = specs.check_fields(values, fields, "", everything=True)
    sections = {name: section(**checked[name]) for name, section in SECTIONS.items()}
    specs.instantiate_section(Scenario, scalars | sections, "")
    checked = scalars | checked
    for group in GROUPS:
        target = locate(values[group]["_target_"], plugins, f"{group}._target_")
        bases = tuple(map(_import, _BASES.get(group, ())))
        if bases and isinstance(target, type) and not issubclass(target, bases):
            raise _not_a(group, values[group]["_target_"])
        checked[group] = specs.check(values[group], group, plugins)
    _refuse_dollars(checked, "")
    return checked


def _refuse_dollars(value: Any, path: str) -> None:
    # A value that still looks like an interpolation would be resolved when it is read back.
    if isinstance(value, str) and "${" in value:
        raise KeyedError(path, f"{value!r}: a value may not hold '${{'")
    for key, item in _items(value):
        _refuse_dollars(item, f"{path}.{key}" if path else str(key))


def _not_a(group: str, target: str) -> KeyedError:
    allowed = " or ".join(_BASES[group])
    return KeyedError(f"{group}._target_", f"{target!r} is not a {group} part (a {allowed})")


def _import(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def _unknown(error: UnknownKeyError, tree: Mapping[Any, Any], where: Where) -> str:
    """Say which key was probably meant and where that one lives, or what keys there are."""
    place = where(error.path)
    text = f"unknown key '{error.path}'"
    if place not in (None, "command line"):
        text += f" (set in {place})"
    nearby = [f"{error.parent}.{key}" if error.parent else key for key in error.known]
    near = did_you_mean(error.path, nearby) if did_you_mean(error.word, error.known) else ""
    if not near:
        leaves = {path.rpartition(".")[2]: path for path in reversed(_paths(tree))}
        leaf = did_you_mean(error.word, leaves)
        near = f"; did you mean '{leaves[leaf.split(chr(39))[1]]}'?" if leaf else ""
    if near:
        home = where(near.split("'")[1])
        return f"{text}{near} ({home or error.owner})"
    return f"{text}; keys of {error.owner}: {', '.join(error.known) or 'none'}"


def _paths(tree: Mapping[Any, Any]) -> list[str]:
    """Return the paths of all keys of sections and parts, as far as they can be told."""
    found = [f"{name}.{key}" for name in SECTIONS for key in fields_of(SECTIONS[name])]
    for group in GROUPS:
        part = tree.get(group)
        if specs.is_spec(part):
            try:
                target = locate(part["_target_"], tuple(tree.get("plugins") or ()))
            except (ConfigError, TypeError):
                continue
            found += [f"{group}.{key}" for key in fields_of(target)]
    return found
