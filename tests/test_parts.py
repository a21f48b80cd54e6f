"""The one check behind all values, wherever they come from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range, convert, describe, field_types

Rate = Annotated[float, Range(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Example(Part):
    rate: Rate = 0.5
    count: Annotated[int, Range(ge=1)] | None = None
    kind: Literal["a", "b"] = "a"
    sizes: Annotated[list[int], Range(ge=0)] = field(default_factory=list)
    hidden: int = field(default=3, init=False)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "text"),
    [
        ({"ge": 0, "le": 1}, [0, 1, 0.5], [-1e-9, 1.0000001], "[0, 1]"),
        ({"gt": 0, "lt": 1}, [1e-300, 0.999], [0, 1], "(0, 1)"),
        ({"ge": 1}, [1, math.inf], [0.999, -math.inf], "[1, inf)"),
        ({"lt": 0}, [-1], [0], "(-inf, 0)"),
        ({}, [-math.inf, 0, math.inf], [], "(-inf, inf)"),
    ],
)
def test_range(limits, inside, outside, text):
    interval = Range(**limits)
    assert str(interval) == text
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert math.nan not in interval
    assert (10**400 in interval) == (math.inf in interval)


@pytest.mark.parametrize(
    ("annotation", "given_value", "expected"),
    [
        (float, 3, 3.0),
        (int, 1e6, 1_000_000),
        (int, -0.0, 0),
        (bool, True, True),
        (str, "", ""),
        (float | None, None, None),
        (int | str, "x", "x"),
        (list[int], (1, 2.0), [1, 2]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Sequence[float], [1], (1.0,)),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (Mapping[str, list[int]], {"a": [1.0]}, {"a": [1]}),
        (Literal["a", 1], 1, 1),
        (Any, object, object),
        (Callable[[], int], len, len),
    ],
)
def test_convert(annotation, given_value, expected):
    result = convert("x", given_value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, "3"),
        (float, True),
        (float, 10**400),
        (int, 1.5),
        (int, math.inf),
        (int, math.nan),
        (int, True),
        (bool, 1),
        (str, 3),
        (type(None), 0),
        (list[int], "12"),
        (list[int], b"12"),
        (list[int], 3),
        (list[int], [1, "a"]),
        (tuple[int, str], [1]),
        (tuple[int, str], [1, "a", 2]),
        (dict[str, int], [("a", 1)]),
        (dict[str, int], {1: 1}),
        (Literal["a", "b"], "c"),
        (Literal[1], 1.0),
        (Literal[1], True),
        (Literal["a"], ["a"]),
        (int | None, "a"),
        (Rate, 0.0),
        (Rate, math.nan),
        (Annotated[int, Range(ge=1)] | None, 0),
        (Annotated[list[float], Range(ge=0)], [1, -1]),
    ],
)
def test_convert_refuses(annotation, value):
    with pytest.raises(ConfigError, match=r"^(key of )?client\.x"):
        convert("client.x", value, annotation)


def test_messages_say_where_what_and_which():
    with pytest.raises(ConfigError) as caught:
        Example(rate=2)
    assert str(caught.value) == "rate: 2.0 is out of range; allowed: (0, 1]"
    with pytest.raises(ConfigError) as caught:
        Example(kind="c")
    assert str(caught.value) == "kind: 'c' is not allowed; expected one of a, b"
    with pytest.raises(ConfigError) as caught:
        Example(sizes=[1, "two"])
    assert str(caught.value) == "sizes[1]: 'two' is not allowed; expected int"
    with pytest.raises(ConfigError) as caught:
        Example(count=0)  # the range, not the union, is what the reader wants to hear of
    assert str(caught.value) == "count: 0 is out of range; allowed: [1, inf)"


def test_a_part_holds_what_its_types_say():
    part = Example(rate=1, count=3.0, sizes=(1, 2))
    assert (part.rate, part.count, part.sizes) == (1.0, 3, [1, 2])
    assert isinstance(part.rate, float)
    assert isinstance(part.count, int)


def test_field_types_are_those_of_the_yaml_keys():
    assert list(field_types(Example)) == ["rate", "count", "kind", "sizes"]
    assert field_types(Example)["rate"] == Rate


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Rate, "float in (0, 1]"),
        (Rate | None, "float in (0, 1] or null"),
        (Annotated[int, Range(ge=1)] | None, "int in [1, inf) or null"),
        (Literal["a", "b"], "one of a, b"),
        (list[int], "a list of int"),
        (tuple[int, ...], "a list of int"),
        (tuple[int, str], "a list of int, str"),
        (dict[str, int], "a mapping"),
        (Example, "Example"),
    ],
)
def test_describe(annotation, text):
    assert describe(annotation) == text


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(10**300, 10**400),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
TYPES = st.sampled_from(
    [
        *(float, int, str, bool, Rate, Rate | None, int | str | None, Literal["a", 1, None]),
        *(list[int], list[Rate], tuple[int, str], tuple[float, ...], dict[str, list[float]]),
        *(Annotated[list[float], Range(ge=0)], Annotated[int, Range(ge=1)] | None),
    ]
)


@settings(max_examples=500, deadline=None, database=None)
@given(VALUES, TYPES)
def test_any_value_is_converted_for_good_or_refused(value, annotation):
    try:
        once = convert("x", value, annotation)
    except ConfigError as error:
        assert "x" in str(error)
        return
    assert convert("x", once, annotation) == once
