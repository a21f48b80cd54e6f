"""The state of a third-party Flower strategy, read from and put back into its attributes.

Flower's strategies have no `state_dict`; what they carry from round to round are numbers, bytes,
arrays, lists and dictionaries of these, and `ArrayRecord`s; a wrapper also carries the strategy
that it wraps. Anything else an attribute may hold (functions, names of record keys) comes from the
scenario and does not change.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.errors import ResumeError
from fedsim.strategy import FedsimStrategy, State

_SHAPES = "attributes"


def state_of(strategy: Strategy) -> State:
    """Return a strategy's state as plain arrays and numbers."""
    if isinstance(strategy, FedsimStrategy):
        return strategy.state_dict()
    arrays: dict[str, np.ndarray] = {}
    shapes = _take_all(strategy, "", arrays)
    encoded = np.frombuffer(json.dumps(shapes, sort_keys=True).encode(), np.uint8).copy()
    return {_SHAPES: encoded, **arrays}


def restore(strategy: Strategy, state: State) -> None:
    """Put back what `state_of` returned.

    Raises:
        ResumeError: The state is not this strategy's.
    """
    if isinstance(strategy, FedsimStrategy):
        strategy.load_state_dict(state)
        return
    arrays = {
        name: value.numpy().copy() if isinstance(value, Tensor) else np.array(value)
        for name, value in state.items()
    }
    if _SHAPES not in arrays:
        raise ResumeError(f"the checkpoint holds no state of {type(strategy).__name__}")
    _give_all(strategy, json.loads(arrays.pop(_SHAPES).tobytes()), arrays)


def _take_all(strategy: Strategy, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a JSON description of a strategy's attributes, their arrays moved to `arrays`."""
    attributes = sorted(vars(strategy).items())
    shapes = {name: _take(f"{prefix}{name}", value, arrays) for name, value in attributes}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _give_all(strategy: Strategy, shapes: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    if unknown := sorted(set(shapes) - set(vars(strategy))):
        raise ResumeError(f"{type(strategy).__name__} has no attribute {unknown[0]!r}")
    for name, shape in shapes.items():
        inner = getattr(strategy, name)
        if "strategy" not in shape:
            setattr(strategy, name, _give(shape, arrays))
        elif isinstance(inner, Strategy):
            _give_all(inner, shape["strategy"], arrays)
        else:
            raise ResumeError(f"{type(strategy).__name__}.{name} is no strategy any more")


def _take(name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a JSON description of a value, its arrays moved to `arrays`; None if not state."""
    if isinstance(value, Strategy):  # within a wrapper, such as those for differential privacy
        return {"strategy": _take_all(value, f"{name}/", arrays)}
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biuf":
            return None
        arrays[name] = np.array(value, value.dtype.newbyteorder("="))
        # NumPy computes with its own scalars in their own precision, not in the other operand's.
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    if isinstance(value, (bool, int, float)):
        return {"number": value}
    if isinstance(value, bytes):
        arrays[name] = np.frombuffer(value, np.uint8).copy()
        return {"bytes": name}
    if isinstance(value, ArrayRecord):
        items = {key: array.numpy() for key, array in value.items()}
        return {"record": [[k, _take(f"{name}/{k}", v, arrays)] for k, v in items.items()]}
    if isinstance(value, dict):
        parts = [[k, _take(f"{name}/{k}", v, arrays)] for k, v in value.items()]
        known = all(isinstance(k, (str, int)) and shape is not None for k, shape in parts)
        return {"dict": parts} if known else None
    if type(value) in (list, tuple):
        shapes = [_take(f"{name}/{i}", v, arrays) for i, v in enumerate(value)]
        known = all(shape is not None for shape in shapes)
        return {type(value).__name__: shapes} if known else None
    return None


def _give(shape: Any, arrays: dict[str, np.ndarray]) -> Any:
    (kind, content), *_ = shape.items()
    if kind == "number":
        return content
    if kind in ("array", "scalar", "bytes"):
        array = arrays[content]
        return array if kind == "array" else array[()] if kind == "scalar" else array.tobytes()
    if kind in ("list", "tuple"):
        items = [_give(part, arrays) for part in content]
        return items if kind == "list" else tuple(items)
    named = {key: _give(part, arrays) for key, part in content}
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in named.items()})
    return named
