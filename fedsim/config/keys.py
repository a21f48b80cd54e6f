"""Every key that a composed scenario may set: what `fedsim list scenario=NAME --keys` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.catalog import GROUPS
from fedsim.config.composition import Config
from fedsim.config.settings import SECTIONS, Scenario
from fedsim.config.specs import plain
from fedsim.config.targets import Field, fields_of, locate
from fedsim.parts import describe


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key that a scenario may set.

    Attributes:
        path: As it is typed on the command line, e.g. `partition.num_clients`.
        type: Type and range in words.
        default: What holds if nothing sets it; `"???"` where there is no default.
        value: What this scenario sets it to.
        description: What the part says of it, or empty.
    """

    path: str
    type: str
    default: Any
    value: Any
    description: str


def keys(config: Config) -> list[Key]:
    """Return every key that `config` may set, in the order of the schema."""
    found: list[Key] = []
    for name, field in fields_of(Scenario).items():
        if name in SECTIONS:
            section = fields_of(SECTIONS[name])
            found.extend(_keys(section, config.values[name], name, config.plugins))
        else:
            found.append(_key(name, field, config.values[name]))
    for group in GROUPS:
        found.extend(_part_keys(config.values[group], group, config.plugins))
    return found


def _part_keys(spec: Mapping[str, Any], path: str, plugins: tuple[str, ...]) -> Iterator[Key]:
    fields = fields_of(locate(spec["_target_"], plugins))
    yield from _keys(fields, spec, path, plugins)


def _keys(
    fields: Mapping[str, Field], values: Mapping[str, Any], path: str, plugins: tuple[str, ...]
) -> Iterator[Key]:
    for name, field in fields.items():
        value = values.get(name)
        yield _key(f"{path}.{name}", field, value)
        if isinstance(value, Mapping) and "_target_" in value:
            yield from _part_keys(value, f"{path}.{name}", plugins)


def _key(path: str, field: Field, value: Any) -> Key:
    return Key(
        path=path,
        type=describe(field.annotation),
        default="???" if field.required else plain(field.default),
        value=value,
        description=field.description,
    )
