import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.report.round_columns import GROUPS, read_rounds


def lines(*rounds):
    return [json.dumps(line).encode() + b"\n" for line in rounds]


def test_lines_become_columns():
    rounds, problems = read_rounds(
        lines(
            {"server_round": 0, "central": {"accuracy": 0.1}, "seconds": 0.5},
            {
                "server_round": 1,
                "asked": 4,
                "admitted": [0, 3],
                "rejected": {"error": 1},
                "details": ["reply of 2 rejected (error): out of memory"],
                "train": {"train-loss": 2.0},
                "seconds": 1.5,
            },
            {
                "server_round": 2,
                "asked": 3,
                "admitted": [1],
                "rejected": {"error": 1, "stale": 1},
                "train": {"train-loss": 1.0},
                "central": {"accuracy": 0.4},
                "seconds": 2.5,
            },
        )
    )
    assert problems == []
    assert rounds.round_R.tolist() == [0, 1, 2] and rounds.last == 2
    assert rounds.asked_R.tolist() == [0, 4, 3]
    assert rounds.admitted_R.tolist() == [0, 2, 1]
    assert [clients.tolist() for clients in rounds.admitted] == [[], [0, 3], [1]]
    assert {k: v.tolist() for k, v in rounds.rejected.items()} == {
        "error": [0, 1, 1],
        "stale": [0, 0, 1],
    }
    assert rounds.rejected_R.tolist() == [0, 1, 2]
    assert rounds.seconds_R.tolist() == [0.5, 1.5, 2.5]
    assert rounds.metrics["central"]["accuracy"].by_round() == {0: 0.1, 2: 0.4}
    assert rounds.metrics["train"]["train-loss"].by_round() == {1: 2.0, 2: 1.0}
    assert rounds.metrics["clients"] == {} and rounds.latest is None
    assert rounds.details == ((1, "reply of 2 rejected (error): out of memory"),)


def test_per_client_metrics_are_kept_as_spread_and_latest_values():
    # Percentiles of 0, 1, ..., 10 are whole: the 10th is 1 and the 90th is 9.
    own = [float(k) for k in range(11)]
    rounds, _ = read_rounds(
        lines(
            {"server_round": 1, "per_client": {"client-index": own, "mse": own}},
            {
                "server_round": 2,
                "per_client": {"client-index": [4.0, 7.0, 9.0], "mse": [1.0, None, 3.0]},
            },
            {"server_round": 3},
        )
    )
    spread = rounds.spread["mse"]
    assert spread.round_M.tolist() == [1, 2]
    assert spread.mean_M.tolist() == [5.0, 2.0]
    np.testing.assert_allclose(spread.low_M, [1.0, 1.2], rtol=1e-15)
    np.testing.assert_allclose(spread.high_M, [9.0, 2.8], rtol=1e-15)
    assert rounds.latest.server_round == 2
    assert rounds.latest.client_K.tolist() == [4, 7, 9]
    np.testing.assert_array_equal(rounds.latest.values["mse"], [1.0, np.nan, 3.0])


def test_a_column_that_does_not_match_the_clients_is_left_out():
    per_client = {"client-index": [0.0, 1.0], "mse": [1.0], "loss": [2.0, 3.0]}
    rounds, _ = read_rounds(lines({"server_round": 1, "per_client": per_client}))
    assert set(rounds.latest.values) == {"loss"}


def test_values_that_are_not_finite_are_kept_but_not_drawn():
    text = b'{"server_round": %d, "central": {"loss": %s}}\n'
    values = (b"NaN", b"Infinity", b"null", b"1e101", b"-1e100")
    rounds, problems = read_rounds(text % (r, value) for r, value in enumerate(values))
    series = rounds.metrics["central"]["loss"]
    assert problems == []
    np.testing.assert_array_equal(series.value_M, [np.nan, np.inf, np.nan, 1e101, -1e100])
    assert series.finite().round_M.tolist() == [4]


def test_a_torn_last_line_is_left_out_without_a_word():
    whole = lines({"server_round": 1}, {"server_round": 2, "seconds": 1.0})
    for cut in range(1, len(whole[1]) - 1):  # the whole line lacking only its end is whole
        rounds, problems = read_rounds([whole[0], whole[1][:cut]])
        assert (rounds.last, problems) == (1, []), whole[1][:cut]
    assert read_rounds([whole[0], whole[1][:-1]])[0].last == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b"\n",
        b"[1]\n",
        b'{"round": 1}\n',
        b'{"server_round": -1}\n',
        b'{"server_round": true}\n',
        b'{"server_round": 1.5}\n',
        b'{"server_round": 4294967296}\n',
        b'{"server_round": 2, "admitted": 3}\n',
        b'{"server_round": 2, "admitted": ["a"]}\n',
        b'{"server_round": 2, "rejected": {"error": -1}}\n',
        b'{"server_round": 2, "central": [0.5]}\n',
        b'{"server_round": 2, "central": {"accuracy": "0.5"}}\n',
        b'{"server_round": 2, "central": {"accuracy": 1%s}}\n' % (b"0" * 400),
        b'{"server_round": 2, "per_client": {"client-index": [0], "mse": 3}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(damage):
    rounds, problems = read_rounds([*lines({"server_round": 1}), damage, b'{"server_round": 3}\n'])
    assert rounds.round_R.tolist() == [1, 3]
    assert problems == ["1 line left out as unreadable: 2"]


def test_the_later_of_two_lines_for_a_round_counts():
    rounds, problems = read_rounds(
        lines(
            {"server_round": 2, "asked": 1},
            {"server_round": 1, "asked": 2},
            {"server_round": 2, "asked": 3},
        )
    )
    assert rounds.round_R.tolist() == [1, 2] and rounds.asked_R.tolist() == [2, 3]
    assert problems == ["1 round given twice; the later line counts"]


def test_no_lines():
    rounds, problems = read_rounds([])
    assert rounds.last == 0 and problems == []
    assert rounds.rejected_R.tolist() == [] and rounds.admitted_R.tolist() == []
    assert set(rounds.metrics) == set(GROUPS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ("server_round", "asked", "admitted", "rejected", "details", "central", "per_client")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.integers(0, 5))
def test_any_line_is_either_read_or_named(line, server_round):
    rounds, problems = read_rounds(lines({"server_round": server_round, **line}))
    assert len(rounds.round_R) + len(problems) == 1
