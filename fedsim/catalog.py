"""What there is to choose from: scenarios, and the parts of each group, read from their YAML files.

`fedsim list`, shell completion and `--help` use this file, so it imports the standard library only;
`keys` alone looks into the targets themselves, and imports them when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.config import Config
    from fedsim.config.targets import Field

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
    "engine",
    "topology",
)
"""The groups of parts, in the order in which a scenario lists them."""

_BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scenario, or one part of a group.

    Attributes:
        name: What to type: `scenario=<name>`, or `<group>=<name>`.
        summary: The first line of the file, if that is a comment; else empty.
        path: The YAML file.
    """

    name: str
    summary: str
    path: Path


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


def groups() -> tuple[str, ...]:
    """Return the names of the groups of parts."""
    return GROUPS


def entries(group: str, root: Path | None = None) -> list[Entry]:
    """Return the parts of a group, by name.

    Args:
        group: One of `groups()`; any other has no parts.
        root: The scenarios folder; the packaged one by default.
    """
    return _entries((root or ROOT) / group) if group in GROUPS else []


def scenarios(root: Path | None = None) -> list[Entry]:
    """Return the scenarios, by name; without `base`, which is what the others extend."""
    return [entry for entry in _entries(root or ROOT) if entry.name != _BASE]


def keys(config: Config) -> list[Key]:
    """Return every key that `config` may set, in the order of the schema."""
    from fedsim.config.settings import SECTIONS, Scenario
    from fedsim.config.targets import fields_of

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
    from fedsim.config.targets import fields_of, locate

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
    from fedsim.config.specs import plain
    from fedsim.parts import describe

    return Key(
        path=path,
        type=describe(field.annotation),
        default="???" if field.required else plain(field.default),
        value=value,
        description=field.description,
    )


def _entries(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.glob("*.yaml") if file.is_file())
    return [Entry(name=file.stem, summary=_summary(file), path=file) for file in files]


def _summary(file: Path) -> str:
    # A damaged file must not hide the others from a listing; `compose` is where it is refused.
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline(1000).strip()
    except OSError:
        return ""
    return first.lstrip("#").strip() if first.startswith("#") else ""
