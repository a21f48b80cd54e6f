"""What holds of every strategy that `scenarios/strategy` offers, ours and Flower's."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from flwr.app import Array
from torch import Tensor

from fedsim import third_party
from fedsim.errors import ResumeError
from fedsim.participation.base import Schedule
from fedsim.strategy import FedsimStrategy, Round
from fedsim.third_party import StrategyError
from tests.contract._discover import EVERY_ROUND, FLOWERS, NAMES, OURS, make, spec
from tests.faults._bad import BAD
from tests.strategies._toy import (
    Masks,
    ToyGrid,
    equal,
    everyone,
    federate,
    finish,
    loop,
    quadratic,
)

CLIENTS = 12
START = {"x": torch.tensor([0.5, -1.0, 2.0]), "w": torch.ones(2, 2)}


def client(message):
    index = message.metadata.dst_node_id % CLIENTS
    return [quadratic(message, centre=index / 7, lr=0.3, examples=1 + index % 3)]


def run(strategy, masks, *, params=START, answer=client, done=0, rounds=None, shuffle=None):
    grid = ToyGrid(masks.shape[1], answer)
    if shuffle is not None:
        plain, rng = grid.execute, np.random.default_rng(shuffle)

        def shuffled(messages):
            replies = list(plain(messages))
            return [replies[k] for k in rng.permutation(len(replies))]

        grid.execute = shuffled
    return finish(loop(strategy, grid, Masks(masks), rounds=rounds), params, done)


def mask(*clients):
    row = np.zeros(CLIENTS, bool)
    row[list(clients)] = True
    return row


@pytest.mark.parametrize("name", OURS)
def test_who_runs_without_a_server_says_what_moves_instead(name):
    kind = type(make(name))
    if "peer" in kind.topologies:
        assert kind.traffic is not FedsimStrategy.traffic


def test_there_is_something_to_test():
    assert {"fedavg", "fedau", "average_all", "known_probability"} <= set(OURS)
    assert {"krum", "bulyan", "geometric_median"} <= set(OURS)
    assert {"flower_fedavg", "fedmedian", "fedadam"} <= set(FLOWERS)


MINIMUM = {"krum": 5, "multikrum": 5, "bulyan": 7}
"""2f + 3 and 4f + 3 replies with f = 1: with fewer they keep the model, as their papers ask."""


@pytest.mark.parametrize("count", [1, 2, 3, CLIENTS])
@pytest.mark.parametrize("name", EVERY_ROUND)
def test_any_number_of_replies_makes_a_finite_model_of_the_same_kind(name, count):
    masks = np.tile(mask(*range(count)), (3, 1))
    params, reports = run(make(name), masks)
    assert [len(report.admitted) for report in reports] == [count] * 3
    for key, like in START.items():
        assert params[key].shape == like.shape
        assert params[key].dtype == like.dtype
        assert torch.isfinite(params[key]).all()
    assert equal(params, START) == (count < MINIMUM.get(name, 1))


@pytest.mark.parametrize("name", NAMES)
def test_nobody_asked_leaves_the_model(name):
    params, reports = run(make(name), np.zeros((3, CLIENTS), bool))
    assert equal(params, START)
    assert [(r.asked, r.admitted, r.rejected) for r in reports] == [(0, [], {})] * 3


@pytest.mark.parametrize("name", EVERY_ROUND)
def test_nobody_replies_leaves_the_model(name):
    params, reports = run(make(name), np.ones((2, CLIENTS), bool), answer=lambda message: [])
    assert equal(params, START)
    assert [(r.asked, r.admitted) for r in reports] == [(CLIENTS, [])] * 2


@pytest.mark.parametrize("name", EVERY_ROUND)
def test_only_bad_replies_leave_the_model(name):
    params, reports = run(make(name), np.ones((2, CLIENTS), bool), answer=BAD["weight"]["negative"])
    assert equal(params, START)
    assert [r.rejected for r in reports] == [{"weight": CLIENTS}] * 2


@pytest.mark.parametrize("name", EVERY_ROUND)
def test_empty_rounds_between_others(name):
    """What an absent round does to the next one: FedAU's intervals grow, MIFA's model moves."""
    masks = np.array([mask(*range(9)), mask(), mask(*range(9))])
    params, reports = run(make(name), masks)
    assert [report.asked for report in reports] == [9, 0, 9]
    assert all(torch.isfinite(tensor).all() for tensor in params.values())
    assert not equal(params, START)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_replies_does_not_matter(name):
    """The network's order is any; float sums must not show it."""
    masks = np.ones((4, CLIENTS), bool)
    results = [run(make(name), masks, shuffle=shuffle)[0] for shuffle in (None, 1, 2)]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


@pytest.mark.parametrize("name", NAMES)
def test_clients_are_reported_by_their_index(name):
    """Also where a strategy of Flower's samples by itself."""
    masks = np.array([mask(2, 3, 5, 7, 8, 9, 11)])
    _, (report,) = run(make(name), masks)
    assert report.admitted == [2, 3, 5, 7, 8, 9, 11]


def masks_of(rounds):
    rates = np.linspace(0.55, 0.95, CLIENTS)
    return np.random.default_rng(5).random((rounds, CLIENTS)) < rates


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name):
    """Six rounds are three, the state put into a fresh object, and three more; to the bit."""
    masks = masks_of(6)
    whole, _ = run(make(name), masks)
    first = make(name)
    params, _ = run(first, masks, rounds=3)
    state = third_party.state_of(first)
    second = make(name)
    if isinstance(second, FedsimStrategy):
        second.load_state_dict({key: _copy(value) for key, value in state.items()})
    else:
        third_party.restore(second, state)
    run(first, masks, params=params, done=3)  # the old object going on must not reach the new one
    resumed, _ = run(second, masks, params=params, done=3)
    assert equal(resumed, whole)


def _copy(value):
    """A state as a checkpoint gives it back: arrays become tensors."""
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", OURS)
def test_each_client_is_sent_its_own_rows_before_and_after_a_resume(name):
    """In training and in evaluation, whoever else is asked; all of it comes back from the state."""
    first, second = make(name), make(name)
    masks = masks_of(3)
    masks[:, 7] = False  # who has never taken part
    params, _ = run(first, masks)
    second.load_state_dict({key: _copy(value) for key, value in first.state_dict().items()})
    federate(second, Masks(masks))

    def payloads(strategy, *clients):
        asked = np.array(clients)
        context = Round(server_round=4, num_clients=CLIENTS, asked=asked, params=params)
        sent = [strategy.client_payload(context), strategy.evaluation_payload(context)]
        sent = [payload(asked) if callable(payload) else payload for payload in sent]
        for payload in sent:
            for rows in payload.values():
                assert len(rows) == len(asked)
                assert torch.isfinite(rows).all()
        return sent

    everyone = payloads(first, *range(CLIENTS))
    for strategy in (first, second):
        for payload, whole in zip(payloads(strategy, 2, 7, 8), everyone, strict=True):
            assert equal(payload, {key: rows[[2, 7, 8]] for key, rows in whole.items()})


@pytest.mark.parametrize("name", NAMES)
def test_state_is_arrays_and_numbers(name):
    strategy = make(name)
    run(strategy, masks_of(3))
    for key, value in third_party.state_of(strategy).items():
        assert isinstance(key, str)
        assert isinstance(value, (Tensor, np.ndarray, int, float))
        if isinstance(value, np.ndarray):
            assert value.dtype.kind in "biuf"


@pytest.mark.parametrize("name", OURS)
def test_state_of_another_strategy_is_refused(name):
    with pytest.raises(ResumeError):
        make(name).load_state_dict({"momentum": np.zeros(2), "rounds": 3})


@pytest.mark.parametrize("name", NAMES)
def test_the_model_that_was_sent_is_not_written_to(name):
    params = {key: tensor.clone() for key, tensor in START.items()}
    run(make(name), np.ones((3, CLIENTS), bool), params=params)
    assert equal(params, START)


BUFFERED = {**START, "seen": torch.tensor(10)}


def counting(message):
    reply = client(message)[0]
    if "seen" not in reply.content["arrays"]:  # who sends each client its own asks for floats only
        return [reply]
    seen = reply.content["arrays"]["seen"].numpy() + 1 + message.metadata.dst_node_id % 2
    reply.content["arrays"]["seen"] = Array(np.asarray(seen))
    return [reply]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qfedavg"])
def test_integer_buffers_stay_integers(name):
    params, _ = run(make(name), np.ones((2, CLIENTS), bool), params=BUFFERED, answer=counting)
    assert params["seen"].dtype == torch.int64
    assert params["seen"].item() >= 10


def test_qfedavg_cannot_do_integers_and_is_named():
    """Flower's code multiplies the arrays in place by a float."""
    with pytest.raises(StrategyError, match="QFedAvg failed in round 1 on 12 good replies"):
        run(make("qfedavg"), np.ones((1, CLIENTS), bool), params=BUFFERED, answer=counting)


@pytest.mark.parametrize("name", OURS)
def test_float64_models(name):
    start = {key: tensor.double() for key, tensor in START.items()}
    params, _ = run(make(name), np.ones((2, CLIENTS), bool), params=start)
    assert all(tensor.dtype == torch.float64 for tensor in params.values())


@pytest.mark.parametrize("name", OURS)
def test_settings_are_the_keys_of_the_file(name):
    assert {"_target_", *(f.name for f in fields(make(name)))} == set(spec(name))


@pytest.mark.parametrize("name", OURS)
def test_a_summary_is_logged(name, caplog):
    with caplog.at_level("INFO", logger="fedsim.strategy"):
        make(name).summary()
    assert all(f".{f.name} = " in caplog.text for f in fields(make(name)))


def test_schedules_of_the_tests_are_schedules():
    assert isinstance(everyone(3), Schedule)
