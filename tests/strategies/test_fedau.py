"""FedAU against its paper: weight traces by hand, exact limits, known fixed points."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError, ResumeError
from fedsim.records import Chunk
from fedsim.strategy import Round
from strategies.average_all import AverageAll
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from strategies.known_probability import KnownProbability
from tests.strategies._toy import Masks, Stacked, chunk, drive, drive_fast, federate, model

MASK = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0]
THIRDS, QUARTERS = 7 / 3, 9 / 4

CENTRES = np.array([0.0, 1.0, 2.0, 10.0])
RATES = np.array([0.9, 0.5, 0.2, 0.05])


def step(strategy, server_round, num_clients, replies=(), params=None):
    params = params or model(0.0)
    context = Round(
        server_round=server_round,
        num_clients=num_clients,
        asked=np.arange(num_clients),
        params=params,
    )
    return strategy.aggregate(context, Stacked(*replies))


def weight_trace(mask, cutoff):
    """The weight that one client has in each round of `mask`, and after it."""
    strategy = FedAU(cutoff=cutoff)
    trace = []
    for server_round, active in enumerate(mask, start=1):
        replies = [chunk([0], torch.ones(1, 1, dtype=torch.float64))] * active
        moved = step(strategy, server_round, 1, replies)["x"].item()
        read = strategy.weights(server_round + 1).item()
        trace.append((moved, read))
    return trace


def eager_weights(mask, cutoff):
    """The recursion as the paper writes it, ticking every client every round; exact fractions."""
    weight, closed, gap, trace = Fraction(1), 0, 0, [Fraction(1)]
    for active in mask:
        gap += 1
        if active or (cutoff is not None and gap >= cutoff):
            weight = Fraction(gap) if closed == 0 else (closed * weight + gap) / (closed + 1)
            closed, gap = closed + 1, 0
        trace.append(weight)
    return trace


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [
        (None, [1, 1, 1, 3, 2, 2, 2, 2, 2, 3, 3]),
        (100_000, [1, 1, 1, 3, 2, 2, 2, 2, 2, 3, 3]),
        (3, [1, 1, 1, 3, 2, 2, 2, THIRDS, THIRDS, QUARTERS, QUARTERS]),
        (1, [1] * 11),
    ],
)
def test_weight_trace_by_hand(cutoff, expected):
    """The client's update is 1 and N is 1, so the model's move is the weight that was used."""
    trace = weight_trace(MASK, cutoff)
    assert [read for _, read in trace] == expected[1:]
    assert [moved for moved, _ in trace] == [w * a for w, a in zip(expected, MASK, strict=False)]
    assert eager_weights(MASK, cutoff) == [Fraction(w).limit_denominator(9) for w in expected]


def test_activity_at_the_cutoff_closes_one_interval():
    strategy = FedAU(cutoff=3)
    for server_round, active in enumerate([0, 0, 1, 0, 0, 1], start=1):
        step(strategy, server_round, 1, [chunk([0], torch.ones(1, 1))] * active, model(0.0))
    assert strategy.state_dict()["closed"].tolist() == [2]
    assert strategy.weights(7).tolist() == [3.0]


def test_the_first_participation_counts_with_weight_one():
    strategy = FedAU()
    for server_round in range(1, 10):
        step(strategy, server_round, 1)
    assert step(strategy, 10, 1, [chunk([0], torch.ones(1, 1).double())])["x"].item() == 1.0
    assert strategy.weights(11).item() == 10.0


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=40)
    ),
    st.one_of(st.none(), st.integers(1, 8)),
)
def test_lazy_equals_eager(masks, cutoff):
    """Weights and model of every round, against ticking every client every round."""
    masks = np.array(masks, bool)
    rounds, clients = masks.shape
    eager_TN = np.array([eager_weights(masks[:, k], cutoff) for k in range(clients)], float).T
    centres = np.arange(1.0, clients + 1)
    strategy = FedAU(cutoff=cutoff, server_lr=0.5)
    trace = drive_fast(strategy, masks, centres, lr=0.1)
    x = 0.0
    for t in range(rounds):
        x += 0.5 / clients * np.sum(eager_TN[t] * masks[t] * 0.1 * (centres - x))
        assert trace[t] == pytest.approx(x, rel=1e-12)
    np.testing.assert_allclose(strategy.weights(rounds + 1), eager_TN[rounds], rtol=1e-12)


def test_the_short_driver_is_the_real_path():
    masks = np.random.default_rng(0).random((60, 4)) < RATES
    short = drive_fast(FedAU(cutoff=5), masks, CENTRES, 0.1)
    np.testing.assert_array_equal(drive(FedAU(cutoff=5), masks, CENTRES, 0.1), short)


def periodic(rounds):
    """A takes part in every round, B in every fourth."""
    masks = np.ones((rounds, 2), bool)
    masks[:, 1] = np.arange(1, rounds + 1) % 4 == 0
    return masks


@pytest.mark.parametrize("rounds", [10_000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_periodic_participation_reaches_the_unweighted_optimum(rounds):
    """A's optimum is 0 and B's 8: uniform over clients 4; weighted by participation 1.6."""
    strategy = FedAU()
    trace = drive_fast(strategy, periodic(rounds), np.array([0.0, 8.0]), lr=1e-3)
    assert trace[-1] == pytest.approx(4.004, abs=0.001)
    assert strategy.weights(rounds + 1).tolist() == [1.0, 4.0]


def test_periodic_participation_biases_the_average_over_all():
    trace = drive_fast(AverageAll(), periodic(6000), np.array([0.0, 8.0]), lr=4e-3)
    assert trace[-1] == pytest.approx(1.6, abs=0.02)


def fixed_point(weights_N):
    """Where the expected update of weighted quadratics vanishes, for small steps."""
    return float(weights_N @ CENTRES / weights_N.sum())


def expected_weight(rates, cutoff):
    return 1 / rates if cutoff is None else (1 - (1 - rates) ** cutoff) / rates


def mean_update(make, x, masks, weights):
    """The update expected over `masks` of a strategy without memory, at model `x`."""
    rows = torch.as_tensor(CENTRES)[:, None] - x
    moves = []
    for mask in masks:
        who = np.flatnonzero(mask)
        strategy = federate(make(), Masks([mask], RATES))
        replies = [chunk(who, x + rows[who])] * bool(len(who))
        moves.append(step(strategy, 1, 4, replies, model(x))["x"].item() - x)
    return float(weights @ np.array(moves))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (AverageAll, 0.848485),
        (lambda: FedAvg(weighting="uniform"), 0.663245),
        (KnownProbability, 3.25),
    ],
)
def test_fixed_points_of_the_baselines_by_enumerating_masks(make, expected):
    masks = np.array(list(product([False, True], repeat=4)))
    chances = np.prod(np.where(masks, RATES, 1 - RATES), axis=1)
    at_0, at_1 = (mean_update(make, x, masks, chances) for x in (0.0, 1.0))
    assert at_0 / (at_0 - at_1) == pytest.approx(expected, abs=5e-7)  # the update is linear in x


@pytest.mark.parametrize(("cutoff", "expected"), [(5, 1.595792), (50, 3.117613), (None, 3.25)])
def test_fixed_points_of_fedau_follow_from_its_mean_weights(cutoff, expected):
    weights = RATES * expected_weight(RATES, cutoff)
    assert fixed_point(weights) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("make", "expected", "rounds"),
    [
        (AverageAll, 0.848485, 3000),
        (lambda: FedAvg(weighting="uniform"), 0.663245, 3000),
        (KnownProbability, 3.25, 12_000),
        (lambda: FedAU(cutoff=5), 1.595792, 3000),
        (lambda: FedAU(cutoff=50), 3.117613, 6000),
        (lambda: FedAU(), 3.25, 6000),
    ],
)
def test_simulated_bernoulli_participation_reaches_the_fixed_point(make, expected, rounds):
    masks = np.random.default_rng(3).random((rounds, 4)) < RATES
    trace = drive_fast(make(), masks, CENTRES, lr=0.01)
    assert trace[rounds // 2 :].mean() == pytest.approx(expected, abs=0.2)


def mean_interval(rate, cutoff, clients=24_000, visits=25):
    """Mean of FedAU's closed intervals, each client stopping at its `visits`-th participation.

    So stopped, the number of intervals is not cut off in a way that favours short ones.
    """
    rng = np.random.default_rng(int(1000 * rate))
    rounds = rng.geometric(rate, (clients, visits)).cumsum(1)
    order = np.argsort(rounds, axis=None, kind="stable")
    owner, when = order // visits, rounds.ravel()[order]
    strategy, params = FedAU(cutoff=cutoff), model(0.0)
    starts = np.flatnonzero(np.diff(when, prepend=0))
    for start, end in zip(starts, [*starts[1:], len(when)], strict=True):
        who = owner[start:end]
        reply = Chunk(client_index=who, arrays={"x": torch.zeros(len(who), 1).double()})
        step(strategy, int(when[start]), clients, [reply], params)
    state = strategy.state_dict()
    assert state["last"].tolist() == rounds[:, -1].tolist()
    return np.average(state["mean"], weights=state["closed"])


@pytest.mark.parametrize("cutoff", [1, 5, 50, None])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_mean_weight_under_bernoulli_participation(rate, cutoff):
    expected = expected_weight(rate, cutoff)
    assert mean_interval(rate, cutoff) == pytest.approx(expected, rel=0.004)


def test_cutoff_one_is_the_average_over_all():
    masks = np.random.default_rng(1).random((200, 4)) < 0.4
    masks[17] = False
    np.testing.assert_array_equal(
        drive(FedAU(cutoff=1, server_lr=2.0), masks, CENTRES, 0.1),
        drive(AverageAll(server_lr=2.0), masks, CENTRES, 0.1),
    )


def test_a_rejected_reply_counts_as_absence():
    strategy = FedAU()
    for server_round in range(1, 4):
        step(strategy, server_round, 2, [chunk([0], torch.ones(1, 1).double())])
    assert strategy.weights(4).tolist() == [1.0, 1.0]
    step(strategy, 4, 2, [chunk([0, 1], torch.ones(2, 1).double())])
    assert strategy.weights(5).tolist() == [1.0, 4.0]


def test_state_is_a_snapshot():
    strategy = FedAU()
    step(strategy, 1, 2, [chunk([0, 1], torch.ones(2, 1).double())])
    before = strategy.state_dict()
    step(strategy, 7, 2, [chunk([0], torch.ones(1, 1).double())])
    assert before["last"].tolist() == [1, 1]
    assert before["closed"].tolist() == [1, 1]


def test_foreign_state_is_refused():
    with pytest.raises(ResumeError, match=r"last, closed, mean.*momentum"):
        FedAU().load_state_dict({"momentum": np.zeros(3)})


def test_state_of_another_population_is_refused():
    strategy = FedAU()
    strategy.load_state_dict(
        {"last": np.zeros(5, int), "closed": np.zeros(5, int), "mean": np.ones(5)}
    )
    with pytest.raises(ResumeError, match="5 clients, but there are 2"):
        step(strategy, 1, 2)


@pytest.mark.parametrize("settings", [{"cutoff": 0}, {"cutoff": 2.5}, {"server_lr": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FedAU(**settings)


def test_known_probability_needs_to_know():
    with pytest.raises(ConfigError, match="give one per client"):
        step(KnownProbability(), 1, 2)
    with pytest.raises(ConfigError, match="3 values for 2 clients"):
        step(KnownProbability(rates=[0.5, 0.5, 0.5]), 1, 2)


def test_known_probability_with_listed_rates():
    replies = [chunk([0, 1], torch.tensor([[1.0], [1.0]]).double())]
    moved = step(KnownProbability(rates=[0.5, 0.25]), 1, 2, replies)["x"].item()
    assert moved == 3.0  # (1/0.5 + 1/0.25) / 2
