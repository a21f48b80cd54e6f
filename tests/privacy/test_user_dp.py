"""User-level DP: its arithmetic, its sensitivity, its denominators, its adaptive norm."""

import math

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.client import ClientHalf, LocalSGD
from fedsim.errors import ConfigError
from fedsim.models.linear import LinearModel
from fedsim.participation.base import Population
from fedsim.participation.bernoulli import Bernoulli
from fedsim.participation.full import Full
from fedsim.participation.uniform import Uniform
from fedsim.records import NUM_EXAMPLES, Chunk, Replies
from privacy.accountant import epsilon
from privacy.clipped_sum import CLIP_NORM
from privacy.events import Event, FixedSize, Gaussian, Poisson
from privacy.normal import keyed
from privacy.updates import clipped_rows, shrink_
from privacy.user_dp import WITHIN, UserDP
from strategies.fedavg import FedAvg
from strategies.median import Median
from strategies.scaffold import Scaffold
from tests.helpers import classification
from tests.privacy._dp import private_runtime, setting, within_four

WORK = LocalSGD(lr=0.1, batch_size=4)
N = 20


def population(count=N):
    return Population(num_clients=count, seed=0, label_histogram=lambda: np.ones((count, 2)))


def bernoulli(rate=0.25, count=N):
    return Bernoulli(rate=rate).bind(population(count))


def bind(part, *, count=N, schedule=None, strategy=None, **values):
    data = classification()
    schedule = schedule or bernoulli(count=count)
    strategy = strategy or FedAvg()
    return part.bind(
        setting(data, WORK, num_clients=count, schedule=schedule, strategy=strategy, **values)
    )


class Given(Replies):
    """Replies that are made up: one chunk."""

    def __iter__(self):
        raise NotImplementedError

    def __init__(self, models, within=None, examples=None):
        self.models, self.within, self.examples = models, within, examples

    def chunks(self):
        count = len(next(iter(self.models.values())))
        examples = np.ones(count) if self.examples is None else self.examples
        arrays = {} if self.within is None else {WITHIN: self.within}
        yield Chunk(
            client_index=np.arange(count),
            arrays=self.models,
            client_arrays=arrays,
            metrics={NUM_EXAMPLES: examples},
        )


class NoReplies(Given):
    def __init__(self):
        pass

    def chunks(self):
        yield from ()


def noise_of(server_round, size):
    return keyed(0, server_round, 2**32 - 1, "privacy=user_dp").normal(size, dtype=torch.float64)


X = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}


def released(protection, server_round, updates):
    """The update of the one model that the strategy sees."""
    models = {"w": X["w"] + torch.as_tensor(updates, dtype=torch.float64).view(-1, 3)}
    replies = Given(models) if len(models["w"]) else NoReplies()
    (chunk,) = protection.receive(server_round, X, replies).chunks()
    assert chunk.metrics[NUM_EXAMPLES].tolist() == [1.0]
    return chunk.arrays["w"][0] - X["w"]


def test_a_round_by_hand():
    """Two of twenty clients at rate 1/4: one clipped from 5 to 2, over m = 5 whoever replies."""
    protection = bind(UserDP(noise_multiplier=0.5, clip_norm=2.0))
    total = torch.tensor([0.6 * 2, 0.8 * 2, 0.0 - 1.0], dtype=torch.float64)
    expected = (total + 0.5 * 2.0 * noise_of(3, 3)) / 5
    found = released(protection, 3, [[3.0, 4.0, 0.0], [0.0, 0.0, -1.0]])
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_nobody_replies_and_noise_is_released_all_the_same():
    protection = bind(UserDP(noise_multiplier=0.5, clip_norm=2.0))
    found = released(protection, 1, [])
    assert torch.allclose(found, 0.5 * 2.0 * noise_of(1, 3) / 5, rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "planned"),
    [(bernoulli(), 5.0), (Uniform(clients_per_round=3).bind(population()), 3.0),
     (Full().bind(population()), 20.0)],
)  # fmt: skip
def test_the_denominator_is_what_was_planned(schedule, planned):
    protection = bind(UserDP(noise_multiplier=0.0, clip_norm=10.0), schedule=schedule)
    one = released(protection, 1, [[1.0, 2.0, 2.0]])
    many = released(protection, 1, [[1.0, 2.0, 2.0]] * 7)
    expected = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / planned
    assert torch.allclose(one, expected, rtol=1e-12)
    assert torch.allclose(many, 7 * expected, rtol=1e-12)


def test_the_noise_has_the_claimed_size():
    """10^6 numbers: 0.31 % either way."""
    protection = bind(UserDP(noise_multiplier=1.3, clip_norm=0.5))
    x = {"w": torch.zeros(1_000_000, dtype=torch.float64)}
    (chunk,) = protection.receive(1, x, NoReplies()).chunks()
    std = float(chunk.arrays["w"].std()) * 5 / (1.3 * 0.5)
    assert within_four(std, 1.0, 1 / math.sqrt(2e6))
    (other,) = protection.receive(2, x, NoReplies()).chunks()
    both = torch.stack([chunk.arrays["w"][0], other.arrays["w"][0]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5e-3


# --- sensitivity ---------------------------------------------------------------------------------

number = st.one_of(
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, 1e30, -3e38, 1e-42, -1e-45, 1e-20, math.nan, math.inf]),
)
row = st.lists(number, min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(row, min_size=1, max_size=4), row, st.floats(1e-3, 1e3), st.booleans())
def test_one_client_moves_the_sum_by_at_most_c(rows, other, clip_norm, double):
    """Client and server together, on updates that are zero, huge, denormal or no numbers."""
    dtype = torch.float64 if double else torch.float32
    start = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=dtype)}

    def total(updates):
        weights = {"w": start["w"] + torch.tensor(updates, dtype=dtype).view(-1, 3)}
        shrink_(weights, start, clip_norm, np.ones(len(updates)))
        good = torch.isfinite(weights["w"]).all(1)  # what admission lets through
        chunk = Chunk(
            client_index=np.arange(int(good.sum())), arrays={"w": weights["w"][good]}, metrics={}
        )
        clipped = clipped_rows(chunk, start, clip_norm)
        assert bool((clipped.norm(dim=1) <= clip_norm * (1 + 1e-9)).all())
        return clipped.sum(0)

    whole, less, changed = total(rows), total(rows[:-1]), total([*rows[:-1], other])
    assert bool(torch.isfinite(whole).all())
    assert float((whole - less).norm()) <= clip_norm * (1 + 1e-6)
    assert float((whole - changed).norm()) <= 2 * clip_norm * (1 + 1e-6)


def test_clients_that_do_not_clip_are_clipped_by_the_server():
    """An attacker's 1e30 is worth C; the same in float32 chunks."""
    protection = bind(UserDP(noise_multiplier=0.0, clip_norm=2.0))
    assert float(released(protection, 1, [[1e30, 0.0, 0.0]]).norm()) == pytest.approx(0.4)
    assert float(released(protection, 1, [[1e200, 0.0, 0.0]]).norm()) <= 0.4 * (1 + 1e-12)


def test_the_weight_of_a_client_is_capped_and_its_size_kept_to_itself():
    data = classification()
    part = UserDP(noise_multiplier=1.0, clip_norm=2.0, weight_cap=10.0)
    protection = private_runtime(data, LinearModel(), part).protection
    start = {"w": torch.zeros(3, dtype=torch.float64)}
    weights = {"w": torch.tensor([[0.0, 6.0, 0.0]] * 3, dtype=torch.float64)}
    samples = np.array([5, 10, 1000])
    sent = protection.seal_(weights, start, np.arange(3), 1, samples, {CLIP_NORM: 2.0})
    assert weights["w"][:, 1].tolist() == pytest.approx([1.0, 2.0, 2.0])
    assert sent == {}
    assert protection.public_examples == 1.0


# --- what it costs -------------------------------------------------------------------------------


def test_cohorts_of_fixed_size_are_accounted_as_such():
    """Five times what Poisson cohorts of the same size cost."""
    schedule = Uniform(clients_per_round=10).bind(population(100))
    part = UserDP(noise_multiplier=1.0, delta=1e-3)
    fixed = bind(part, count=100, schedule=schedule, rounds=100).planned()
    assert fixed.relation == "replace_one"
    assert fixed.epsilon == pytest.approx(25.39, rel=2e-3)
    assert "fixed size" in fixed.accountant
    event = Event(mechanism=Gaussian(noise_multiplier=1.0), count=100,
                  sampling=FixedSize(size=10, population=100))  # fmt: skip
    assert fixed.epsilon == epsilon([event], delta=1e-3, relation="replace_one").epsilon
    with pytest.raises(ConfigError, match="add_remove is not accounted"):
        bind(UserDP(noise_multiplier=1.0, relation="add_remove"), schedule=schedule, count=100)
    poisson = bind(part, count=100, schedule=bernoulli(0.1, 100), rounds=100).planned()
    assert poisson.relation == "add_remove"
    assert poisson.epsilon == pytest.approx(4.784, rel=2e-3)


def test_without_sampling_each_client_is_charged_its_own_rounds():
    protection = bind(UserDP(noise_multiplier=2.0), schedule=Full().bind(population()), rounds=9)
    for server_round, clients in ((1, [0, 1]), (2, [1, 2]), (3, [])):
        for line in protection.releases(server_round, np.array(clients, np.int64)):
            protection.record({"round": server_round, **line})
    event = Event(mechanism=Gaussian(noise_multiplier=2.0), count=2)
    assert (
        protection.statement().epsilon
        == epsilon([event], delta=1e-5, relation="add_remove").epsilon
    )
    assert "in 2 rounds of the client that takes part most" in protection.statement().sampling


def test_an_empty_cohort_is_charged_where_it_was_drawn():
    """Under Poisson sampling, that nobody was drawn is one of the outcomes paid for."""
    (line,) = bind(UserDP(noise_multiplier=1.0)).releases(1, np.arange(0))
    assert Event.from_json(line["events"][0]).sampling == Poisson(rate=0.25)


# --- the adaptive norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.05, 20.0])
def test_the_norm_goes_to_the_quantile_from_both_sides(start):
    """Norms 0.5 ... 1.5 evenly, twenty times too small and too large: near their median after."""
    part = UserDP(noise_multiplier=0.3, clipping="adaptive", clip_norm=start, count_noise=1.0)
    protection = bind(part, schedule=Full().bind(population()))
    sizes = torch.linspace(0.5, 1.5, N, dtype=torch.float64)
    for server_round in range(1, 81):
        weights = {"w": X["w"] + sizes.unsqueeze(1) * torch.tensor([0.0, 1.0, 0.0]).double()}
        told = dict(protection.told())
        sent = protection.seal_(weights, X, np.arange(N), server_round, np.ones(N, int), told)
        protection.receive(server_round, X, Given(weights, within=sent[WITHIN]))
    assert 0.8 < protection.clip_norm < 1.25


def test_the_count_of_the_adaptive_norm_by_hand():
    part = UserDP(noise_multiplier=0.8, clipping="adaptive", clip_norm=2.0, count_noise=3.0,
                  target_quantile=0.6, clip_lr=0.5)  # fmt: skip
    protection = bind(part)
    z = (0.8**-2 - 6.0**-2) ** -0.5
    assert protection.noise_multiplier == pytest.approx(z, rel=1e-12)
    source = keyed(0, 4, 2**32 - 1, "privacy=user_dp")
    noise, count = (source.normal(size, dtype=torch.float64) for size in (3, 1))
    within = torch.tensor([[1.0], [0.0], [1.0]])
    models = {"w": X["w"].repeat(3, 1)}
    (chunk,) = protection.receive(4, X, Given(models, within=within)).chunks()
    assert torch.allclose(chunk.arrays["w"][0] - X["w"], z * 2.0 * noise / 5, rtol=1e-9)
    fraction = 0.5 + (2 - 1.5 + 3.0 * float(count)) / 5
    assert protection.clip_norm == pytest.approx(2.0 * math.exp(-0.5 * (fraction - 0.6)), rel=1e-9)
    assert protection.told() == {CLIP_NORM: protection.clip_norm}
    other = bind(part)
    other.load_state_dict(protection.state_dict())
    assert other.clip_norm == protection.clip_norm


# --- what is refused -----------------------------------------------------------------------------


class Sends(ClientHalf):
    def upload(self, params, context):
        return {"more": params["weight"]}


def test_what_looks_at_clients_is_refused():
    part = UserDP(noise_multiplier=1.0)
    for strategy in (Median(), Scaffold()):
        with pytest.raises(ConfigError, match="looks at each client's update"):
            bind(part, strategy=strategy)
    with pytest.raises(ConfigError, match="fraction_train"):
        bind(part, strategy=FedAdam(fraction_train=0.5))
    bind(part, strategy=FedAdam(fraction_train=1.0))
    with pytest.raises(ConfigError, match="more than a clipped update"):
        private_runtime(classification(), LinearModel(), part, half=Sends())
    with pytest.raises(ConfigError, match="on real devices"):
        bind(UserDP(noise_multiplier=1.0, noise_source="keyed"), deployed=True)
