"""Hydra's grammar, sorted into choices and changes, and changes applied to a plain tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.config.overrides import apply, parse
from fedsim.errors import ConfigError

TOY = Path(__file__).parent.parent / "assets" / "toylab"


@pytest.fixture(autouse=True)
def _toylab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))


def tree() -> dict[str, Any]:
    return {
        "rounds": 3,
        "plugins": ["toylab."],
        "evaluation": {"every": 2},
        "partition": {"_target_": "toylab.Skewed", "alpha": 0.5},
        "client": {"_target_": "toylab.tripwire", "deep": {"a": [1, 2]}},
    }


def change(*texts: str) -> dict[str, Any]:
    return apply(tree(), parse(texts)[1])


def test_choices_and_changes_are_told_apart() -> None:
    choices, changes = parse(["strategy=fedau", "rounds=3", "data='mnist'", "data.root=x", "~seed"])
    assert choices == {"strategy": "fedau", "data": "mnist"}
    assert [(c.key, c.value, c.delete) for c in changes] == [
        ("rounds", 3, False),
        ("data.root", "x", False),
        ("seed", None, True),
    ]
    assert parse(["privacy=on", "data=123", "engine=1e3"])[0] == {
        "privacy": "on",
        "data": "123",
        "engine": "1e3",
    }
    assert parse(["data=a", "data=b"])[0] == {"data": "b"}, "the last one counts"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ("a=null", None),
        ("a=", ""),
        ("a='1'", "1"),
        ('a="x, y"', "x, y"),
        ("a=[1,'b',[c]]", [1, "b", ["c"]]),
        ("a={b:1,c:{d:'e'}}", {"b": 1, "c": {"d": "e"}}),
        ("a=${b}", "${b}"),
        ("a=int(3.0)", 3),
    ],
)
def test_values_are_those_of_hydras_grammar(text: str, value: Any) -> None:
    assert parse([text])[1][0].value == value


@pytest.mark.parametrize(
    "text", ["", "=[", "a=[", "a='b", "a={b}c", "a=f(x)", "a b=1", "a==[", "@"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read override"):
        parse([text])


def test_a_word_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a\.b' has no value; write a\.b=VALUE"):
        parse(["a.b"])


@pytest.mark.parametrize("text", ["a=" + "9" * 5000, "a=" + "[" * 1500, "a=" + "x" * 10])
def test_absurd_values_end_in_an_error_or_a_value(text: str) -> None:
    try:
        parse([text])
    except ConfigError as error:
        assert len(str(error)) < 600


@pytest.mark.parametrize(
    "text", ["a=1,2", "a=choice(1,2)", "a=range(1,3)", "a=interval(0,1)", "a=glob(*)", "data=a,b"]
)
def test_sweeps_are_sent_to_the_sweep_command(text: str) -> None:
    with pytest.raises(ConfigError, match="asks for several runs"):
        parse([text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~data", "a run needs a data"),
        ("~data=digits", "a run needs a data"),
        ("data={a:1}", "data takes the name of one part"),
        ("data=[a]", "data takes the name of one part"),
        ("data=../../x", "is not a part's name"),
        ("data=a/b", "is not a part's name"),
        ("data=a.b", "is not a part's name"),
        ("data=", "is not a part's name"),
        ("data='a b'", "is not a part's name"),
        ("data=${x}", "is not a part's name"),
        ("data@x=digits", "a key is written with dots alone"),
        ("data/sub=digits", "a key is written with dots alone"),
        ("hydra/launcher=basic", "a key is written with dots alone"),
    ],
)
def test_groups_take_one_plain_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([text])


def test_changes_leave_the_tree_they_came_from() -> None:
    before = tree()
    apply(before, parse(["rounds=4", "partition.alpha=1", "client.deep.a.0=9"])[1])
    assert before == tree()


def test_changes_go_in_order_and_mappings_are_merged() -> None:
    assert change("rounds=4", "rounds=5")["rounds"] == 5
    assert change("evaluation={central:false}")["evaluation"] == {"every": 2, "central": False}
    assert change("client.deep.a.1=9")["client"]["deep"] == {"a": [1, 9]}
    assert change("+client.new.x=1")["client"]["new"] == {"x": 1}, "it takes any key"
    assert change("client.deep={b:1}")["client"]["deep"] == {"a": [1, 2], "b": 1}
    assert change("client.deep={_target_:toylab.Sgd}")["client"]["deep"] == {
        "_target_": "toylab.Sgd"
    }
    assert change("~partition.alpha")["partition"] == {"_target_": "toylab.Skewed"}
    assert change("partition.weights.0=7")["partition"]["weights"] == [7, 2.0]
    assert change("client.deep={3:1}")["client"]["deep"] == {"a": [1, 2], 3: 1}
    assert change("checkpoint.keep=3")["checkpoint"] == {"keep": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope=1", "nope: unknown key"),
        ("nope.x=1", "nope: unknown key"),
        ("evaluation.nope=1", "evaluation.nope: unknown key"),
        ("evaluation={nope:1}", "evaluation.nope: unknown key"),
        ("partition.nope=1", "partition.nope: unknown key"),
        ("~partition.nope", "partition.nope: unknown key"),
        ("partition.nope.x=1", "partition.nope: unknown key"),
        ("model.nope=1", "model.nope: unknown key"),
        ("rounds.x=1", "rounds: 3 has no keys"),
        ("client.deep.a.2=1", "client.deep.a.2: no such item; client.deep.a has 2"),
        ("client.deep.a.x=1", "client.deep.a.x: no such item"),
        ("client.deep.a.99999999999=1", "client.deep.a.99999999999: no such item"),
        ("~client.deep.a.0", "client.deep.a.0: items of a list cannot be deleted"),
        ("~partition.alpha=3", "partition.alpha: is 0.5, not 3: kept"),
    ],
)
def test_keys_that_do_not_exist_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        change(text)
    assert str(raised.value).startswith(message)
