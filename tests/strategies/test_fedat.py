"""FedAT by hand, its tiers, and one tier, which is FedProx to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError, ResumeError
from fedsim.plan import plan
from fedsim.simulation import Simulation
from strategies.fedat import FedAT
from tests.strategies._timed import trace
from tests.strategies._toy import equal, everyone, federate, quadratic

ALL = (0, 1, 2, 3)


def test_two_tiers_of_two_by_hand():
    """3 and 1 are done within 1 s, 2 and 0 within 3 s; a client's y is halfway to 8, 6, 2, 16."""
    strategy = FedAT(tiers=2, lam=0.0)
    x, seconds, asked = trace(strategy, [ALL] * 6)
    assert strategy.tier_N.tolist() == [1, 0, 1, 0]
    assert asked == [[0, 1, 2, 3], [1, 3], [1, 3], [1, 3], [0, 2], [1, 3]]
    # The fast tier comes with 5.5, from 0, at 1, 2, 3 and 4 s, the slow one with 2.5 at 3 s: after
    # the fast one's third, to whose weight it then adds 1 and gets 3. It goes on from 3.25.
    assert seconds == [1.0, 2.0, 3.0, 3.0, 4.0, 5.0]
    fifth = (1 * 5.5 + 4 * 2.5) / 5
    fast = (fifth + 11) / 2
    assert x == pytest.approx([0, 0, 0, 3.25, fifth, (fast + 5 * 2.5) / 6], rel=1e-15)
    # The slow one's next, from 3.25, comes at 6 s, after the fast one's sixth.
    x, seconds, _ = trace(FedAT(tiers=2, lam=0.0), [ALL] * 8)
    assert seconds[6:] == [6.0, 6.0]
    last = (x[5] + 11) / 2
    assert x[7] == pytest.approx((2 * last + 6 * (3.25 + 5) / 2) / 8, rel=1e-15)


def test_within_a_tier_clients_are_weighted_by_their_samples():
    def stepped(message):
        client = message.metadata.dst_node_id % 4
        return [quadratic(message, centre=2.0 * client, examples=1 + client)]

    x, _, _ = trace(FedAT(tiers=1), [ALL], stepped)
    assert x == [(2 * 1 + 3 * 2 + 4 * 3) / 10]
    x, _, _ = trace(FedAT(tiers=1, weighting="uniform"), [ALL], stepped)
    assert x == [1.5]


def test_a_tier_without_replies_is_left_out_until_the_next_update():
    """The slow tier has nobody at first, then one client; the clock stands where no tier runs."""
    x, seconds, asked = trace(FedAT(tiers=2, lam=0.0), [(), (1, 3), (1, 2), (1,)])
    assert asked == [[], [1, 3], [1, 2], [1]]
    assert seconds == [0.0, 1.0, 2.0, 2.0]  # 2 begins at 1 s
    assert x == [0.0, 0.0, 0.0, pytest.approx((1 * 3 + 2 * 1) / 3, rel=1e-15)]


def test_tiers_are_of_equal_numbers_fastest_first():
    strategy = federate(FedAT(tiers=3, clients_per_tier=2), everyone(8))
    slow_first = np.array([9.0, 1, 1, 5, 3, 3, 8, 0])
    strategy.federation = replace(strategy.federation, latencies=lambda: slow_first)
    assert strategy.tier_N.tolist() == [2, 0, 0, 1, 1, 1, 2, 0]
    asked = [strategy.chosen(r, np.arange(8)) for r in range(1, 30)]
    assert {len(clients) for clients in asked} == {6}
    assert all(np.bincount(strategy.tier_N[clients]).tolist() == [2, 2, 2] for clients in asked)
    assert len({tuple(clients) for clients in asked}) > 5
    few = federate(FedAT(tiers=5), everyone(4))
    with pytest.raises(ConfigError, match="5 tiers of 4 clients; allowed: 1 to 4"):
        few.chosen(1, np.arange(4))


WORDS = ["rounds=6", "partition.num_clients=14", "participation.clients_per_round=7", "seed=3",
         "model.hidden=[8]", "device=cpu", "client.epochs=1", "devices=unequal"]  # fmt: skip


def ends(*words):
    simulation = Simulation(compose("quickstart", [*WORDS, *words]))
    return list(simulation.loop.run(simulation.runtime.initial_params()))


@pytest.mark.parametrize(
    ("engine", "lam", "twin"),
    [
        ("in_process", 0, ["strategy=fedavg"]),
        ("cohort", 0.4, ["strategy=fedprox", "strategy.mu=0.4"]),
    ],
)
def test_one_tier_is_fedprox_on_the_same_clock_bit_for_bit(lam, twin, engine):
    own = ["strategy=fedat", "strategy.tiers=1", "strategy.clients_per_tier=null"]
    one = ends(*own, f"strategy.lam={lam}", f"engine={engine}")
    other = ends(*twin, f"engine={engine}")
    for (a, told), (b, others) in zip(one, other, strict=True):
        assert equal(a, b)
        assert told.admitted == others.admitted
        assert told.simulated_seconds == others.simulated_seconds
    assert not equal(one[0][0], one[-1][0])


def test_tiers_are_those_of_the_devices_and_the_plan_counts_their_clients():
    words = ["strategy=fedat", "strategy.tiers=2", "participation=full", "strategy.lam=0"]
    words += ["strategy.clients_per_tier=3"]
    simulation = Simulation(compose("quickstart", [*WORDS[:2], *WORDS[3:], *words]))
    expected, strategy = simulation.meter.latencies(), simulation.strategy
    assert expected[strategy.tier_N == 0].max() <= expected[strategy.tier_N == 1].min()
    reports = [r for _, r in simulation.loop.run(simulation.runtime.initial_params())]
    assert [r.asked for r in reports[1:]] == [6, 3, 3, 3, 3, 3]
    for report in reports[1:]:
        told = report.footprint["train"]
        clients = np.array(told["client-index"], int)
        assert told["seconds"] == pytest.approx(expected[clients], rel=0.02)  # the config, metrics
    planned = Simulation(compose("quickstart", [*WORDS[:2], *WORDS[3:], *words]))
    assert plan(planned).clients_per_round == 21 / 6


def test_the_state_of_other_tiers_is_refused():
    strategy = FedAT(tiers=2)
    trace(strategy, [ALL])
    with pytest.raises(ResumeError, match="with 3 tiers"):
        FedAT(tiers=3).load_state_dict(strategy.state_dict())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "set devices=unequal"),
        (["devices=equal", "privacy=user_dp", "privacy.epsilon=8"], "one noisy mean of all"),
    ],
)
def test_what_does_not_go_with_it_is_refused(words, match):
    with pytest.raises(ConfigError, match=match):
        Simulation(compose("quickstart", ["strategy=fedat", *words])).check()
