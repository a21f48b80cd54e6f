"""FedBuff by hand; with a buffer of one it is FedAsync; with everybody in step it is FedAvg."""

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.simulation import Simulation
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from tests.strategies._timed import in_turn, trace
from tests.strategies._toy import equal


def test_two_replies_make_a_model_and_a_freed_place_is_taken_at_once():
    x, seconds, asked = trace(in_turn(FedBuff(concurrency=2, buffer=2)), [(0, 1, 2), (1, 3), (2,)])
    # 0 and 1 start at 0 s, 2 as 1 is done at 1 s: 1 and 2 arrive, at 1 and 2 s, both fresh.
    # Then 1 starts at 2 s, and as 0 is done at 3 s, 3: 0, stale by one, and 1 arrive at 3 s.
    # Then 2 starts at 3 s: 3, stale by one, and 2 arrive at 3.5 and 4 s.
    assert asked == [[0, 1, 2], [1, 3], [2]]
    assert seconds == [2.0, 3.0, 4.0]
    second = 2 + (4 / np.sqrt(2) + 2) / 2
    third = second + (7 / np.sqrt(2) + (2 - second) / 2) / 2
    assert x == pytest.approx([2.0, second, third], rel=1e-15)
    x, _, _ = trace(
        in_turn(FedBuff(concurrency=2, buffer=2, discount=False, server_lr=0.5)),
        [(0, 1, 2), (1, 3)],
    )
    assert x == [1.0, 1.0 + 0.5 * (4 + 2.5) / 2]


def test_a_buffer_of_everybody_in_flight_is_fedavg_of_uniform_weights():
    offered = [(0, 1, 2, 3)] * 5
    x, seconds, _ = trace(FedBuff(concurrency=4, buffer=4), offered)
    one, _, _ = trace_of_fedavg(offered)
    assert x == pytest.approx(one, rel=1e-15)
    assert seconds == [3.0, 6.0, 9.0, 12.0, 15.0]  # the slowest's, each time


def trace_of_fedavg(offered):
    return trace(FedAvg(weighting="uniform"), offered)


def ends(engine, *words):
    own = ["rounds=12", "participation=full", "partition.num_clients=14", "model.hidden=[8]"]
    own += ["strategy.concurrency=6", "devices=unequal", "client.epochs=1", "device=cpu"]
    simulation = Simulation(compose("quickstart", [*own, *words, f"engine={engine}"]))
    return list(simulation.loop.run(simulation.runtime.initial_params()))


def test_a_buffer_of_one_is_fedasync_to_the_bit():
    """FedAsync of `update: delta`, `staleness: polynomial`, a = 1/2 and alpha = the server's rate;
    the same who starts, models and clock."""
    same = ["strategy.update=delta", "strategy.staleness=polynomial", "strategy.a=0.5"]
    one = ends("cohort", "strategy=fedbuff", "strategy.buffer=1", "strategy.server_lr=0.7")
    other = ends("cohort", "strategy=fedasync", "strategy.alpha=0.7", *same)
    for (a, told), (b, others) in zip(one, other, strict=True):
        assert equal(a, b)
        assert told.admitted == others.admitted
        assert told.simulated_seconds == others.simulated_seconds
    mixed = ends("cohort", "strategy=fedasync", "strategy.alpha=0.7", "strategy.update=model")
    assert not equal(mixed[-1][0], one[-1][0])  # the paper's rule is another


def test_it_takes_less_simulated_time_than_waiting_for_the_slowest():
    """The same number of replies in each model."""
    words = ["strategy=fedbuff", "strategy.buffer=5"]
    *_, (_, fast) = ends("cohort", *words)
    own = ["rounds=12", "partition.num_clients=14", "participation.clients_per_round=5"]
    own += ["model.hidden=[8]", "devices=unequal", "client.epochs=1", "device=cpu"]
    simulation = Simulation(compose("quickstart", own))
    *_, (_, slow) = simulation.loop.run(simulation.runtime.initial_params())
    assert fast.simulated_seconds < 0.8 * slow.simulated_seconds
