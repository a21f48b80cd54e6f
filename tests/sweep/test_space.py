"""The words of a search, and the points that are made of what a sampler draws."""

from __future__ import annotations

import pytest

from fedsim.errors import ConfigError
from fedsim.sweep.space import parse

HEAD = "scenario=quickstart"


def test_each_kind_of_dimension() -> None:
    words = ["client.lr=tag(log,interval(0.01,1))", "privacy.clip_norm=interval(1,4)"]
    words += ["client.epochs=int(interval(1,5))", "client.batch_size=8,16", "rounds=range(5,20,5)"]
    space = parse([HEAD, "privacy=user_dp", *words, "strategy=glob(fedav*)"])
    lr, clip, epochs, batch, rounds, strategy = space.dimensions
    assert (lr.low, lr.high, lr.log, lr.whole) == (0.01, 1.0, True, False)
    assert (clip.low, clip.high, clip.log, clip.whole) == (1.0, 4.0, False, False)
    assert (epochs.low, epochs.high, epochs.whole) == (1, 5, True)
    assert batch.options == ("8", "16") and not batch.ordered
    assert rounds.options == ("5", "10", "15") and rounds.ordered
    assert "fedavg" in strategy.options
    assert space.fixed == ("privacy=user_dp",)


def test_a_point_is_what_a_user_would_type() -> None:
    space = parse([HEAD, "seed=3", "client.lr=interval(0.1,0.3)", "rounds=range(5,20,5)"])
    point = space.point({"client.lr": 0.123456789, "rounds": 2})
    assert point.overrides == ("seed=3", "client.lr=0.123457", "rounds=15")
    assert point.axes == {"client.lr": "0.123457", "rounds": "15"}
    assert parse([HEAD, "+a=1,2"]).point({"a": "2"}).overrides == ("+a=2",)


def test_a_rounded_number_stays_within_its_interval() -> None:
    space = parse([HEAD, "client.lr=interval(0.12345612,0.5)"])
    assert space.point({"client.lr": 0.12345612}).axes == {"client.lr": "0.12345612"}


def test_the_corners_use_every_end_and_option() -> None:
    space = parse([HEAD, "client.lr=interval(0.1,0.3)", "client.batch_size=8,16,32"])
    points = space.corners()
    assert {point.axes["client.lr"] for point in points} == {"0.1", "0.3"}
    assert {point.axes["client.batch_size"] for point in points} == {"8", "16", "32"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([HEAD], "nothing varies"),
        (["client.lr=interval(0,1)"], "needs one scenario=NAME"),
        (["scenario=quickstart,regression", "client.lr=interval(0,1)"], "needs one scenario=NAME"),
        ([HEAD, "client.lr=interval(1,0.1)"], "up to a larger one"),
        ([HEAD, "client.lr=tag(log,interval(0,1))"], "numbers above 0"),
        ([HEAD, "client.lr=tag(fast,interval(0.1,1))"], "the one tag is log"),
        ([HEAD, "client.lr=interval(0.1,1)", "client.lr=0.1,1"], "given twice"),
        ([HEAD, "client.lr=interval(0.1,1)", "seed=0,1"], "a search compares points of one seed"),
        ([HEAD, "client.lr=interval(0.1,1)", "and", "rounds=1,2"], "one space"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(words)
