"""The state of a third-party Flower strategy, read from and put back into its attributes.

Flower's strategies have no `state_dict`; what they carry from round to round are numbers, arrays,
lists and dictionaries of arrays, and `ArrayRecord`s. Anything else an attribute may hold (functions,
names of record keys) comes from the scenario and does not change.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsim.errors import ResumeError
from fedsim.strategy import FedsimStrategy, State

_SHAPES = "attributes"


def state_of(strategy: Strategy) -> State:
    """Return a strategy's state as plain arrays and numbers."""
    if isinstance(strategy, FedsimStrategy):
        return strategy.state_dict()
    arrays: dict[str, np.ndarray] = {}
    shapes = {name: _take(name, value, arrays) for name, value in sorted(vars(strategy).items())}
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
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
    arrays = {name: np.array(value) for name, value in state.items()}
    if _SHAPES not in arrays:
        raise ResumeError(f"the checkpoint holds no state of {type(strategy).__name__}")
    shapes: dict[str, Any] = json.loads(arrays.pop(_SHAPES).tobytes())
    if unknown := sorted(set(shapes) - set(vars(strategy))):
        raise ResumeError(f"{type(strategy).__name__} has no attribute {unknown[0]!r}")
    for name, shape in shapes.items():
        setattr(strategy, name, _give(name, shape, arrays))


def _take(name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a JSON description of a value, its arrays moved to `arrays`; None if not state."""
    if isinstance(value, (bool, int, float)):
        return {"number": value}
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {"array": name}
    if isinstance(value, ArrayRecord):
        items = {key: array.numpy() for key, array in value.items()}
        return {"record": [[k, _take(f"{name}/{k}", v, arrays)] for k, v in items.items()]}
    if isinstance(value, dict):
        parts = [[k, _take(f"{name}/{k}", v, arrays)] for k, v in value.items()]
        known = all(isinstance(k, str) and shape is not None for k, shape in parts)
        return {"dict": parts} if known else None
    if isinstance(value, list):
        shapes = [_take(f"{name}/{i}", v, arrays) for i, v in enumerate(value)]
        return {"list": shapes} if all(shape is not None for shape in shapes) else None
    return None


def _give(name: str, shape: Any, arrays: dict[str, np.ndarray]) -> Any:
    (kind, content), *_ = shape.items()
    if kind == "number":
        return content
    if kind == "array":
        return arrays[content]
    if kind == "list":
        return [_give(name, part, arrays) for part in content]
    items = {key: _give(name, part, arrays) for key, part in content}
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in items.items()})
    return items
