"""FedAsync by hand, its three discounts, and what it refuses."""

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from strategies.fedasync import FedAsync
from tests.strategies._timed import trace
from tests.strategies._toy import Masks, ToyGrid, federate, model, quadratic

OFFERED = [(0, 1), (2,), (1,), (3,)]
"""0 and 1 start at 0 s, 2 at 1 s, 1 again at 2 s, 3 at 3 s; 0 and 1 both arrive at 3 s."""


def test_the_model_is_mixed_with_each_reply_as_it_arrives():
    strategy = FedAsync(concurrency=2, alpha=0.5, staleness="constant")
    x, seconds, asked = trace(strategy, OFFERED)
    assert seconds == [1.0, 2.0, 3.0, 3.0]
    assert asked == [[0, 1], [2], [1], [3]]
    # y_1 = 3; y_2 = 1.75 from 1.5; y_0 = 4 from 0; y_1 = 3.8125 from 1.625
    assert x == [1.5, 1.625, 2.8125, 3.3125]


def test_staleness_counts_the_models_since_the_start():
    deltas = FedAsync(concurrency=2, alpha=0.5, update="delta")
    x, _, _ = trace(deltas, OFFERED)
    third = 1.625 + 0.5 * 4 / np.sqrt(3)  # client 0 has missed two models, client 1 one
    assert x == pytest.approx([1.5, 1.625, third, third + 0.5 * 2.1875 / np.sqrt(2)], rel=1e-15)
    hinge = FedAsync(concurrency=2, alpha=0.5, staleness="hinge", a=2, b=1)
    x, _, _ = trace(hinge, OFFERED)
    third = 1.625 * 5 / 6 + 4 / 6
    assert x == pytest.approx([1.5, 1.625, third, (third + 3.8125) / 2], rel=1e-15)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ({"staleness": "constant"}, [1, 1, 1, 1]),
        ({"staleness": "polynomial", "a": 1}, [1, 1 / 2, 1 / 5, 1 / 10]),
        ({"staleness": "hinge", "a": 10, "b": 4}, [1, 1, 1, 1 / 51]),
    ],
)
def test_discounts(values, weights):
    strategy = FedAsync(**values)
    assert [strategy.discount(tau) for tau in (0, 1, 4, 9)] == pytest.approx(weights, rel=1e-15)


def test_one_client_in_flight_is_sequential_averaging():
    """Always fresh: alpha = 1 leaves the reply's model, whoever it is of."""
    x, seconds, _ = trace(FedAsync(concurrency=1, alpha=1.0), [(0,), (1,), (3,)])
    assert x == [4.0, 5.0, 10.5]
    assert seconds == [3.0, 4.0, 4.5]


def test_a_failed_client_is_replaced_and_time_stands_where_nobody_is_in_flight():
    def only_odd(message):
        client = message.metadata.dst_node_id % 4
        return [quadratic(message, centre=8.0)] if client % 2 else []

    x, seconds, admitted = trace(FedAsync(concurrency=2), [(0, 2), (0, 1), ()], only_odd)
    assert admitted == [[], [1], []]
    assert x[0] == 0.0 and x[1] == x[2] > 0
    assert seconds == [0.0, 1.0, 1.0]


def test_who_starts_is_a_keyed_draw_among_the_idle():
    strategy = federate(FedAsync(concurrency=3), Masks(np.ones((2, 9))))
    first = strategy.chosen(1, np.arange(9))
    assert len(first) == 3 and (np.diff(first) > 0).all()
    assert (strategy.chosen(1, np.arange(9)) == first).all()
    draws = {tuple(strategy.chosen(r, np.arange(9))) for r in range(1, 40)}
    assert len(draws) > 20
    for client in first.tolist()[:2]:
        strategy._flight.add(client, 1.0, 0, {})
    for r in range(1, 20):
        (asked,) = strategy.chosen(r, np.arange(9))
        assert asked not in first[:2]


def test_without_arrival_times_it_says_what_to_set():
    from tests.strategies._toy import finish, loop

    grid = ToyGrid(4, lambda message: [quadratic(message, centre=1.0)])
    run = loop(FedAsync(), grid, Masks(np.ones((1, 4))))
    run.meter = None
    with pytest.raises(ConfigError, match="devices=unequal"):
        finish(run, model(0.0))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "set devices=unequal"),
        (["devices=equal", "privacy=user_dp", "privacy.epsilon=8"], "one noisy mean of all"),
        (["devices=equal", "privacy=local_dp", "privacy.epsilon=8"], "privacy=none"),
        (["devices=equal", "evaluation.decomposition=true"], "decomposition=false"),
    ],
)
@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_what_does_not_go_with_it_is_refused(name, words, match):
    with pytest.raises(ConfigError, match=match):
        Simulation(compose("quickstart", [f"strategy={name}", *words])).check()
