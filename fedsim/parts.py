"""What a scenario is composed of: dataclasses whose fields are the YAML keys.

A part declares each field once, with its type and its range; the same declaration checks a value
that came from YAML, from an override or from Python, and is what `fedsim list ... --keys` prints.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fedsim.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The allowed interval of a number, put beside its type with `Annotated`.

    Example:
        >>> str(Range(gt=0, le=1))
        '(0, 1]'
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return not (
            (isinstance(value, float) and math.isnan(value))
            or (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )

    def __str__(self) -> str:
        low = f"[{self.ge}" if self.ge is not None else f"({'-inf' if self.gt is None else self.gt}"
        high = f"{self.le}]" if self.le is not None else f"{'inf' if self.lt is None else self.lt})"
        return f"{low}, {high}"


class Part:
    """Base of all parts: a dataclass that checks its own fields when it is made.

    Sub-classes are `@dataclass(frozen=True, kw_only=True)`; one that adds a `__post_init__` for
    checks across fields calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(part: Any) -> None:
    """Check (and where lossless, convert) every field of a dataclass instance.

    Raises:
        ConfigError: A field has the wrong type or is out of range. The message starts with the
            field's name, so that a caller who knows the path can put it in front.
    """
    for name, annotation in field_types(part.__class__).items():
        value = convert(name, getattr(part, name), annotation)
        object.__setattr__(part, name, value)


@cache
def field_types(part: type) -> dict[str, Any]:
    """Return {field: annotation} of the init fields of a dataclass, `Annotated` kept."""
    hints = typing.get_type_hints(part, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(part) if f.init}


def convert(name: str, value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation` asks for, or raise `ConfigError` naming `name`.

    Understands bool, int, float, str, None, Literal, Optional and unions, list, tuple, Mapping and
    `Annotated[..., Range]`. Other annotations (classes, Any) accept any value. An int is accepted
    where a float is asked for, a whole float (1e6) where an int is; nothing else is converted:
    YAML already types its scalars.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        value = convert(name, value, base)
        for extra in extras:
            if isinstance(extra, Range) and value is not None:
                for number in value if isinstance(value, (list, tuple)) else (value,):
                    if number not in extra:
                        raise ConfigError(f"{name}: {number!r} is out of range; allowed: {extra}")
        return value
    if origin in (Union, types.UnionType):
        reasons = []
        for option in get_args(annotation):
            try:
                return convert(name, value, option)
            except ConfigError as error:
                reasons.append(error)
        # An out-of-range value of the right type deserves that message, not the union's.
        for reason in reasons:
            if "out of range" in str(reason):
                raise reason
        raise _mismatch(name, value, annotation)
    if origin is Literal:
        # By type too: True is not 1.
        if any(type(value) is type(option) and value == option for option in get_args(annotation)):
            return value
        raise _mismatch(name, value, annotation)
    if origin in (list, tuple, Sequence):
        return _sequence(name, value, annotation, origin)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(name, value, annotation)
        key_type, item_type = get_args(annotation)
        return {
            convert(f"key of {name}", k, key_type): convert(f"{name}.{k}", v, item_type)
            for k, v in value.items()
        }
    return _scalar(name, value, annotation)


def _sequence(name: str, value: Any, annotation: Any, origin: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _mismatch(name, value, annotation)
    item_types = get_args(annotation)
    if origin is tuple and not (len(item_types) == 2 and item_types[1] is Ellipsis):
        if len(value) != len(item_types):
            raise _mismatch(name, value, annotation)
        pairs = zip(value, item_types, strict=True)
        return tuple(convert(f"{name}[{i}]", v, t) for i, (v, t) in enumerate(pairs))
    items = [convert(f"{name}[{i}]", v, item_types[0]) for i, v in enumerate(value)]
    return items if origin is list else tuple(items)


def _scalar(name: str, value: Any, annotation: Any) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _mismatch(name, value, annotation) from None
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if annotation in (int, float) and isinstance(value, bool):
        raise _mismatch(name, value, annotation)
    if annotation in (bool, int, float, str) and not isinstance(value, annotation):
        raise _mismatch(name, value, annotation)
    if annotation in (None, type(None)) and value is not None:
        raise _mismatch(name, value, annotation)
    return value


def _mismatch(name: str, value: Any, annotation: Any) -> ConfigError:
    return ConfigError(f"{name}: {value!r} is not allowed; expected {describe(annotation)}")


def describe(annotation: Any) -> str:
    """Return a field's type and range in words, e.g. `"float in (0, inf) or null"`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        ranges = [f" in {extra}" for extra in extras if isinstance(extra, Range)]
        return describe(base) + "".join(ranges)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(annotation))
    if origin in (list, tuple, Sequence):
        items = [describe(a) for a in get_args(annotation) if a is not Ellipsis]
        return f"a list of {', '.join(items)}"
    if origin in (dict, Mapping):
        return "a mapping"
    if annotation in (None, type(None)):
        return "null"
    if annotation is bool:
        return "true or false"
    return getattr(annotation, "__name__", str(annotation))
