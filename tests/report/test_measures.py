import json

import pytest

from fedsim.report import measures
from fedsim.report.measures import headline, lower_is_better, show, show_seconds
from fedsim.report.round_columns import read_rounds


def rounds_of(*lines):
    return read_rounds([json.dumps(line).encode() + b"\n" for line in lines])[0]


def central(*values, name="accuracy"):
    return rounds_of(
        *({"server_round": r, "central": {"loss": 1.0, name: v}} for r, v in enumerate(values))
    )


def test_headline_is_the_last_value_and_the_first_best():
    head = headline(central(0.1, 0.7, 0.7, 0.6))
    assert (head.group, head.name) == ("central", "accuracy")
    assert (head.final, head.final_round, head.best, head.best_round) == (0.6, 3, 0.7, 1)


def test_of_an_error_the_least_is_best():
    head = headline(central(4.0, 1.5, 2.0, name="mse"))
    assert (head.name, head.final, head.best, head.best_round) == ("mse", 2.0, 1.5, 1)


def test_a_diverged_run_ends_in_what_it_ended_in():
    head = headline(central(0.5, float("nan")))
    assert show(head.name, head.final) == "not a number"
    assert (head.best, head.best_round) == (0.5, 0)
    head = headline(central(float("inf"), float("nan"), name="mse"))
    assert head.best is None and head.best_round is None


def test_without_a_central_test_set_the_clients_then_training_are_judged_by():
    line = {"server_round": 1, "clients": {"num-examples": 5.0, "accuracy": 0.3}}
    assert headline(rounds_of(line)).group == "clients"
    head = headline(rounds_of({"server_round": 1, "train": {"train-loss": 2.0}}))
    assert (head.group, head.name) == ("train", "train-loss")
    assert headline(rounds_of({"server_round": 1})) is None


def test_an_epsilon_is_no_headline():
    line = {"server_round": 1, "central": {"epsilon": 1.0}, "clients": {"num-examples": 3.0}}
    assert headline(rounds_of(line)) is None


@pytest.mark.parametrize(
    ("name", "lower"), [("accuracy", False), ("mse", True), ("train-loss", True), ("f1", False)]
)
def test_which_way_is_better(name, lower):
    assert lower_is_better(name) is lower


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 1.0, "100.00 %"),
        ("balanced-accuracy", 0.98765, "98.77 %"),
        ("mse", 0.304, "0.3040"),
        ("loss", 1234.4, "1234"),
        ("loss", 1e30, "1.000e+30"),
        ("loss", float("inf"), "infinite"),
        ("accuracy", float("-inf"), "minus infinite"),
    ],
)
def test_how_a_value_is_written(name, value, text):
    assert show(name, value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (9.94, "9.9 s"), (59.9, "60 s"), (59.96, "1 min 0 s"), (3599.7, "1 h 0 min")],
)
def test_how_a_duration_is_written(seconds, text):
    assert show_seconds(seconds) == text


def test_words():
    assert measures.axis_label("auc") == "AUC (%)" and measures.axis_label("mse") == "MSE"
    assert not measures.is_shown("num-examples") and measures.is_shown("accuracy")
