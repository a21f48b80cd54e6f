"""Plain mappings against what they describe: fill in defaults, refuse unknown keys, check types.

A *spec* is a mapping with `_target_`; a *section* is a mapping whose schema is known from its place
(`evaluation:` ...). Both are checked here, and nothing is made except cheap dataclasses, whose own
checks across fields are part of the check.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim import parts
from fedsim.config.targets import (
    SPECIAL,
    Field,
    KeyedError,
    Target,
    UnknownKeyError,
    fields_of,
    instantiate,
    locate,
    signature,
    takes_any_key,
)
from fedsim.errors import ConfigError

_TOP = "scenario"
_SIMPLE = (bool, int, float, str, type(None))
_INT_LIMIT = 2**63
"""Larger integers fit no array and no file format; refused before they reach one."""


def is_spec(value: Any) -> bool:
    """Return whether a value describes an object to be made."""
    return isinstance(value, Mapping) and "_target_" in value


def expand(value: Any, path: str, plugins: Sequence[str]) -> Any:
    """Return a copy of `value` in which every spec lists all the fields of its target.

    Works before `${...}` is resolved, so that one part may refer to another's default.

    Raises:
        KeyedError: A target is refused, or does not know a key.
    """
    if isinstance(value, list):
        return [expand(item, f"{path}[{i}]", plugins) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    given = {key: expand(item, f"{path}.{key}", plugins) for key, item in value.items()}
    if "_target_" not in value:
        return given
    target = locate(value["_target_"], plugins, f"{path}._target_")
    given.pop("_target_")
    fields = open_fields(target, value, path)
    if not takes_any_key(target):
        refuse_unknown(given, (*fields, *SPECIAL), path, value["_target_"])
    return {"_target_": value["_target_"], **fill(given, fields)}


def fill(given: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return `given` in the order of `fields`, with the defaults that plain containers can hold."""
    filled: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            filled[name] = given[name]
        elif not field.required and _holds(plain(field.default)):
            filled[name] = plain(field.default)
    return filled | {key: item for key, item in given.items() if key not in filled}


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], path: str, owner: str) -> None:
    """Raise `UnknownKeyError` for the first key that is not in `known`."""
    for key in given:
        if key not in known:
            shown = [name for name in known if name not in SPECIAL]
            raise UnknownKeyError(f"{path}.{key}" if path else str(key), shown, owner)


def open_fields(target: Target, spec: Mapping[str, Any], path: str) -> dict[str, Field]:
    """Return the fields of a target that its `_args_` leave open."""
    fields = fields_of(target)
    args = spec.get("_args_", [])
    if not isinstance(args, list):
        raise KeyedError(f"{path}._args_", f"{args!r} is not allowed; expected a list")
    try:
        bound = signature(target).bind_partial(*args).arguments
    except TypeError as error:
        raise KeyedError(f"{path}._args_", f"{spec['_target_']}: {error}") from None
    return {name: field for name, field in fields.items() if name not in bound}


def check(value: Any, path: str, plugins: Sequence[str]) -> Any:
    """Return `value`, resolved and expanded, with every field checked and converted.

    Raises:
        KeyedError: A required field is missing, or a value is not of its type or range, or the
            fields contradict each other.
    """
    if isinstance(value, list):
        return [check(item, f"{path}[{i}]", plugins) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    checked = {key: check(item, f"{path}.{key}", plugins) for key, item in value.items()}
    if "_target_" not in value:
        return checked
    target = locate(value["_target_"], plugins, f"{path}._target_")
    everything = dataclasses.is_dataclass(target)
    checked |= check_fields(checked, open_fields(target, value, path), path, everything)
    if _is_light(checked, plugins):
        instantiate(checked, path, plugins)
    return checked


def check_section(section: type[parts.Part], value: Any, path: str) -> dict[str, Any]:
    """Return a section with its defaults, checked.

    Raises:
        KeyedError: As `expand` and `check`.
    """
    if not isinstance(value, Mapping):
        raise KeyedError(path, f"{value!r} is not allowed; expected a mapping")
    fields = fields_of(section)
    refuse_unknown(value, tuple(fields), path, path)
    checked = check_fields(fill(value, fields), fields, path, everything=True)
    instantiate_section(section, checked, path)
    return checked


def instantiate_section(
    section: type[parts.Part], values: Mapping[str, Any], path: str
) -> parts.Part:
    """Make a section; its own checks' messages get the path in front."""
    try:
        return section(**values)
    except KeyedError:
        raise
    except ConfigError as error:
        field, _, reason = str(error).partition(": ")
        raise KeyedError(f"{path}.{field}" if path else field, reason) from None


def check_fields(
    given: Mapping[str, Any], fields: Mapping[str, Field], path: str, everything: bool
) -> dict[str, Any]:
    """Return the fields of `given` as their annotations ask for, in plain containers.

    Args:
        given: Field values.
        fields: Their declarations.
        path: Where they are, for messages; empty at the top level.
        everything: Check all annotations (ours), or only plain scalars (third-party targets, whose
            annotations may say less than they accept).
    """
    checked: dict[str, Any] = {}
    for name, field in fields.items():
        where = f"{path}.{name}" if path else name
        if name not in given:
            if field.required:
                kind = parts.describe(field.annotation)
                raise KeyedError(where, f"required, but not set; expected {kind}")
            continue
        value = given[name]
        if everything or (_is_simple(field.annotation) and not is_spec(value)):
            value = _convert(where, value, field.annotation)
        checked[name] = value
    return checked


def _convert(path: str, value: Any, annotation: Any) -> Any:
    try:
        return plain(parts.convert(path, value, annotation))
    except ConfigError as error:
        exact, _, reason = str(error).partition(": ")
        if not exact.startswith(path):
            raise KeyedError(path, str(error)) from None
        if exact == path and "; expected " in reason:  # tell the range with the type
            reason = f"{reason.rpartition('; expected ')[0]}; expected {parts.describe(annotation)}"
        raise KeyedError(exact, reason) from None


def check_plain(value: Any, path: str) -> None:
    """Refuse what a configuration file, its hash or a later reader could not hold.

    Raises:
        KeyedError: A value that is not null, bool, int, float, str, list or mapping; an integer
            beyond 64 bits; a key that is not a word; text that is not valid Unicode.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise KeyedError(path or _TOP, f"key {key!r} is not allowed; expected text")
            check_plain(key, path or _TOP)
            check_plain(item, f"{path}.{key}" if path else str(key))
        if len({type(key) for key in value}) > 1:
            raise KeyedError(path or _TOP, "keys must be all text or all integers")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_plain(item, f"{path}[{i}]")
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and _is_broken(value)):
            raise KeyedError(path, f"{value!r} is not valid text")
    elif isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise KeyedError(path, "the integer is too large; allowed: 64 bits")
    elif not isinstance(value, _SIMPLE):
        raise KeyedError(path, f"a {type(value).__name__} is not allowed here")


def plain(value: Any) -> Any:
    """Return `value` with tuples as lists and mappings as dicts, as a YAML file holds them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _holds(value: Any) -> bool:
    """Return whether a default can stand in a file: no functions, no objects."""
    if isinstance(value, dict):
        return all(isinstance(k, (str, int)) and _holds(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_holds(item) for item in value)
    return type(value) in _SIMPLE


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_simple(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(_is_simple(option) for option in typing.get_args(annotation))
    return annotation is None or annotation in _SIMPLE


def _is_light(value: Any, plugins: Sequence[str]) -> bool:
    """Return whether making `value` makes dataclasses only, which costs and touches nothing."""
    if isinstance(value, list):
        return all(_is_light(item, plugins) for item in value)
    if not isinstance(value, Mapping):
        return True
    if is_spec(value) and not dataclasses.is_dataclass(locate(value["_target_"], plugins)):
        return False
    return all(_is_light(item, plugins) for item in value.values())
