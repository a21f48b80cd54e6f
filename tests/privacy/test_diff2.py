"""The noise of DIFF2: what it is solved for, and what is refused."""

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedsim.errors import BudgetError, ConfigError
from fedsim.models.linear import LinearModel
from fedsim.partition.base import ArrayPartition
from fedsim.records import to_record
from privacy.accountant import epsilon
from privacy.clipped_strategy import Visit
from privacy.diff2 import Diff2DP
from privacy.diff2_schedule import Releases, published, published_epsilon, tight
from privacy.events import Event, Gaussian
from strategies.bvr_l_sgd import BvrLSGD
from strategies.diff2 import Diff2
from tests.helpers import RAGGED, regression
from tests.privacy._dp import private_runtime, setting
from tests.strategies._toy import Masks, Nodes, Stacked, chunk, federate, model

GRID = [(rounds, restart) for rounds in (500, 2000) for restart in (1, 6, 16, 60, 200)]
RHO = {1.0: 0.03056, 3.0: 0.22425, 5.0: 0.55097}
"""zCDP that converts to (epsilon, 1e-5): what a looser analysis would allow."""


def bind(rounds, restart, *, strategy=None, **values):
    part = Diff2DP(**{"epsilon": 3.0, **values})
    strategy = strategy or Diff2(restart=restart)
    return part.bind(setting(regression(), None, strategy=strategy, rounds=rounds))


@pytest.mark.parametrize("relation", ["replace_one", "add_remove"])
@pytest.mark.parametrize(("rounds", "restart"), GRID)
def test_solved_noise_meets_its_target_with_the_restarts_there_are(rounds, restart, relation):
    """Acceptance 4, by the exact profile; and below the noise that zCDP would ask for."""
    made = bind(rounds, restart, relation=relation, examples=9000)
    plan, restarts = made.schedule, math.ceil(rounds / restart)
    assert (plan.restarts, plan.differences) == (restarts, rounds - restarts)
    assert 3.0 * (1 - 1e-3) < made.planned().epsilon <= 3.0
    sensitivity = 2 if relation == "replace_one" else 1
    share = 0.8 if restart > 1 else 1.0
    loose = sensitivity * math.sqrt(restarts / (2 * share * RHO[3.0]))
    assert 0.85 * loose < plan.restart_noise < loose
    if restart > 1:
        loose = sensitivity * math.sqrt((rounds - restarts) / (2 * 0.2 * RHO[3.0]))
        assert 0.85 * loose < plan.difference_noise < loose


def test_the_split_is_of_the_squared_cost():
    plan = bind(100, 10, noise_multiplier=2.0, epsilon=None, split=0.6).schedule
    assert plan.restarts / plan.restart_noise**2 == pytest.approx(0.6 / 4)
    assert plan.differences / plan.difference_noise**2 == pytest.approx(0.4 / 4)
    other = bind(1, 10, noise_multiplier=2.0, epsilon=None).schedule
    assert (other.restart_noise, other.difference_noise) == (2.0, 0.0)


@pytest.mark.parametrize(("rounds", "restart"), GRID)
def test_published_noise_and_what_its_own_analysis_makes_of_it(rounds, restart):
    own = published_epsilon(rounds, restart, epsilon=3.0, delta=1e-5)
    made = bind(rounds, restart, calibration="published")
    flagged = [note for note in made.planned().notes if "published analysis" in note]
    assert bool(flagged) == (own > 3.0)
    assert made.planned().epsilon < 3.0  # the exact profile needs less than Renyi of one order
    known = {(500, 60): 3.03, (500, 200): 3.18}
    if (rounds, restart) in known:
        assert own == pytest.approx(known[rounds, restart], abs=0.005)
    if (rounds, restart) in [(500, 1), (2000, 1), (2000, 16), (2000, 200)]:
        assert own <= 3.0


def test_published_noise_by_its_formula():
    plan = published(500, 10, epsilon=3.0, delta=1e-5)
    assert plan.restart_noise**2 == pytest.approx(4 * 1.25 * 9 * 500 / (10 * 3))
    assert plan.difference_noise**2 == pytest.approx(4 * 5 * 9 * 500 / 3)
    alone = published(500, 1, epsilon=3.0, delta=1e-5)
    assert alone.restart_noise**2 == pytest.approx(4 * 9 * 500 / 3)
    for target, ratio in ((3.0, 0.86), (5.0, 0.87)):
        solved = bind(1000, 10, epsilon=target).schedule
        theirs = published(1000, 10, epsilon=target, delta=1e-5)
        assert solved.restart_noise / theirs.restart_noise < ratio


def test_the_ledger_adds_up_to_the_plan():
    strategy = Diff2(restart=4)
    made = bind(10, 4, strategy=strategy)
    for server_round in range(1, 11):
        strategy.restarting = (server_round - 1) % 4 == 0
        lines = made.releases(server_round, [0])
        made.afford(lines)
        for line in lines:
            made.record(line)
    assert made.spent() == pytest.approx(made.planned().epsilon, rel=1e-12)
    assert made.statement().epsilon == made.spent()
    events = made.schedule.events()
    assert made.spent() == epsilon(events, delta=1e-5, relation="replace_one").epsilon
    strategy.restarting = False
    with pytest.raises(BudgetError, match="round 11 would bring"):
        made.afford([{"round": 11, **made.releases(11, [0])[0]}])


def test_the_plan_says_noise_split_and_cost():
    words = str(bind(100, 10).planned())
    for part in ("10 restarts (N sigma1", "90 rounds (N sigma2", "rho", "80% of the budget"):
        assert part in words
    assert "replacing one example" in words and "no sampling" in words
    strategy = Diff2(restart=10)
    held = private_runtime(
        *(regression(), LinearModel(), Diff2DP(epsilon=3.0)),
        half=strategy.client_half,
        strategy=strategy,
        rounds=100,
    )
    plan, words = held.protection.schedule, str(held.protection.planned())  # N is known now
    for name, noise in (("sigma1", plan.restart_noise), ("sigma2", plan.difference_noise)):
        assert f", {name} = {noise / sum(RAGGED):.4g}, rho {2 / noise**2:.3g} each" in words


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epsilon": None}, "set one of them"),
        ({"calibration": "published", "relation": "add_remove"}, "for replace_one"),
        ({"calibration": "published", "noise_multiplier": 1.0}, "formula of epsilon"),
        ({"relation": "add_remove"}, "set a public one"),
        ({"min_survivors": 9, "trust": "distributed"}, "at most that many"),
    ],
)
def test_what_cannot_be_claimed_is_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        bind(10, 2, **values)


def test_what_does_not_go_with_the_run_is_refused():
    uneven = Diff2(min_examples=3)
    with pytest.raises(ConfigError, match="how many its client holds"):
        bind(10, 2, strategy=uneven, relation="add_remove", examples=100)
    part = Diff2DP(epsilon=1.0, trust="distributed")
    with pytest.raises(ConfigError, match="simulated in one process"):
        part.bind(setting(regression(), None, strategy=Diff2(), deployed=True))
    with pytest.raises(ConfigError, match="use strategy=diff2"):
        part.bind(setting(regression(), None))


# --- local steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["replace_one"])
@pytest.mark.parametrize(("rounds", "restart"), GRID)
def test_solved_noise_with_local_steps_meets_its_target(rounds, restart, relation):
    """R estimates and R local rounds of the drawn client: three shares of one budget."""
    strategy = BvrLSGD(restart=restart, local_steps=3, local_batches=2)
    made = bind(2 * rounds, restart, strategy=strategy, relation=relation)
    plan, restarts = made.schedule, math.ceil(rounds / restart)
    assert (plan.restarts, plan.differences) == (restarts, rounds - restarts)
    assert rounds / 8 * 3 / 2 < plan.visits < rounds / 8 * 3 / 2 * 1.9  # 8 clients, the luckiest
    assert 3.0 * (1 - 1e-3) < made.planned().epsilon <= 3.0
    share = 0.8 * (0.8 if restart > 1 else 1.0)
    costs = [count / noise**2 for noise, count in plan.pairs() if count]
    assert costs[0] / sum(costs) == pytest.approx(share)
    assert costs[-1] / sum(costs) == pytest.approx(0.2)
    # zCDP, which converts to more: rho = 4 / (2 z²) for each release.
    assert 0.6 * RHO[3.0] < sum(2 * cost for cost in costs) < 1.4 * RHO[3.0]


def test_what_a_batch_is_charged_by_hand():
    """z = 2, 4, 5 for restarts, differences, steps: 1/z² adds up to 3/4 + 5/16 + 7/25."""
    plan = tight(
        Releases(restarts=3, differences=5, visits=7), noise=1.0, split=0.5, local_split=0.25
    )
    assert plan.restart_noise**2 == pytest.approx(3 / (0.5 * 0.75))
    assert plan.difference_noise**2 == pytest.approx(5 / (0.5 * 0.75))
    assert plan.local_noise**2 == pytest.approx(7 / 0.25)
    assert [event.count for event in plan.events()] == [3, 5, 7]


def test_visits_are_counted_by_batch_and_the_most_visited_is_claimed():
    strategy = BvrLSGD(restart=4, local_batches=3)
    made = bind(40, 4, strategy=strategy)
    rounds = [(1, (0, 1)), (2, (0, 0, 1)), (1, (2, 0)), (1, (1, 1, 1))]
    for server_round, (worker, batches) in enumerate(rounds, 1):
        strategy.visit = Visit(worker=worker, batches=batches)
        (line,) = made.releases(server_round, np.arange(8))
        assert line["clients"] == [worker] and line["batches"] == list(batches)
        assert line["events"][0]["count"] == max(batches.count(batch) for batch in batches)
        made.record({"round": server_round, **line})
    # Client 1: batch 0 twice, 1 four times, 2 once. Client 2: batch 0 twice, 1 once.
    noise = Gaussian(noise_multiplier=made.schedule.local_noise)
    expected = epsilon([Event(mechanism=noise, count=4)], delta=1e-5, relation="replace_one")
    assert made.spent() == expected.epsilon == made.statement().epsilon


def test_the_ledger_with_local_steps_adds_up_to_the_plan():
    """Driven by the strategy's own draws, over all rounds."""
    strategy = BvrLSGD(restart=4, local_steps=3, local_batches=2)
    federate(strategy, Masks(np.ones((60, 8))))
    made = bind(60, 4, strategy=strategy)
    params = model(1.0, 1.0)
    for server_round in range(1, 61):
        strategy.configure_train(
            server_round, to_record(params, zero_copy=True), ConfigRecord(), Nodes()
        )
        lines = [{"round": server_round, **line} for line in made.releases(server_round, [0])]
        made.afford(lines)
        for line in lines:
            made.record(line)
        rows = torch.zeros(8, 2, dtype=torch.float64)
        made.sizes_N = np.ones(8)
        params = strategy.aggregate(strategy._round, Stacked(chunk(np.arange(8), rows)))
    assert made.spent() == pytest.approx(made.planned().epsilon, rel=1e-12)
    strategy.visit = Visit(worker=0, batches=(0,) * 50)
    with pytest.raises(BudgetError, match="over the budget"):
        made.afford([{"round": 61, **made.releases(61, [0])[0]}])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"calibration": "published"}, "use privacy.calibration=tight"),
        ({"relation": "add_remove", "examples": 9000}, "share a batch"),
    ],
)
def test_what_is_not_proved_of_local_steps_is_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        bind(10, 2, strategy=BvrLSGD(restart=2), **values)


def test_the_plan_says_what_local_steps_cost():
    words = str(bind(100, 10, strategy=BvrLSGD(restart=10)).planned())
    for part in ("by the client itself", "b sigma3 = ", "64% of the budget", "20% for local"):
        assert part in words


def test_records_that_two_clients_hold_are_refused():
    strategy = Diff2(restart=2)
    data = regression()
    twice = ArrayPartition(np.array([0, 1, 2, 2, 3]), np.array([0, 3, 5]))
    runtime = private_runtime(
        data, LinearModel(), Diff2DP(epsilon=3.0), half=strategy.client_half, strategy=strategy
    )
    runtime.partition = twice
    with pytest.raises(ConfigError, match="held by several clients"):
        runtime.protection.check(runtime)
