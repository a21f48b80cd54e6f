"""`${...}` and `???` in a composed tree: resolved, or a message that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim.config.targets import KeyedError
from fedsim.errors import ConfigError

# A resolver may fail with an error of its own kind, e.g. `${oc.decode:...}` of a bad literal.
_FAILURES = (OmegaConfBaseException, RecursionError, ValueError, TypeError)


def resolve(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tree` with every `${...}` replaced by what it refers to.

    Raises:
        KeyedError: A value is `???`, refers to nothing, or cannot be told from a reference.
    """
    _find_missing(tree, "")
    try:
        values = OmegaConf.to_container(OmegaConf.create(dict(tree)), resolve=True)
    except _FAILURES as error:
        raise _culprit(tree, error) from error
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping of keys to values")
    _refuse_leftovers(values, "")
    return {str(key): value for key, value in values.items()}


def _find_missing(value: Any, path: str) -> None:
    for key, item in _items(value):
        where = _join(path, key)
        if item == "???":
            reason = f"required, but not set; add {where}=<value>"
            raise KeyedError(where, reason, verb="required")
        _find_missing(item, where)


def _culprit(tree: Mapping[str, Any], error: Exception) -> KeyedError:
    """Name the first key whose `${...}` fails by itself."""
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str) and "${" in value:
            try:
                config = OmegaConf.create(dict(tree))
                OmegaConf.select(config, path, throw_on_missing=True)
            except _FAILURES as reason:
                return KeyedError(path, f"cannot resolve {value!r}: {_first_line(reason)}")
        stack.extend((_join(path, key), item) for key, item in reversed(_items(value)))
    return KeyedError("scenario", f"cannot be resolved: {_first_line(error)}")


def _refuse_leftovers(value: Any, path: str) -> None:
    # A value that still looks like a reference would be resolved when it is read back.
    if isinstance(value, str) and "${" in value:
        raise KeyedError(path, f"{value!r}: a value may not hold '${{'")
    for key, item in _items(value):
        _refuse_leftovers(item, _join(path, key))


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []
