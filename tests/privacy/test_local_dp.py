"""Local DP on updates: what each client sends is noised before it leaves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedsim.client import ClientHalf, LocalSGD
from fedsim.errors import ConfigError
from fedsim.models.linear import LinearModel
from privacy.local_dp import LocalDP
from privacy.normal import keyed
from strategies.scaffold import Scaffold
from tests.helpers import classification
from tests.privacy._dp import private_runtime, setting, within_four

WORK = LocalSGD(lr=0.1, batch_size=4)


def bind(part, **values):
    return part.bind(setting(classification(), WORK, **values))


def sealed(protection, updates, *, server_round=1, clients=None):
    updates = torch.as_tensor(updates, dtype=torch.float64)
    start = {"w": torch.ones(updates.shape[1], dtype=torch.float64), "steps": torch.tensor(3)}
    weights = {"w": start["w"] + updates, "steps": torch.full((len(updates),), 7)}
    who = np.arange(len(updates)) if clients is None else np.array(clients)
    samples = np.full(len(updates), 9)
    assert protection.seal_(weights, start, who, server_round, samples, {}) == {}
    assert weights["steps"].tolist() == [3] * len(updates)  # integers tell nothing
    return weights["w"] - start["w"]


def test_an_update_by_hand():
    protection = bind(LocalDP(noise_multiplier=1.5, clip_norm=2.0))
    found = sealed(protection, [[3.0, 4.0], [0.3, 0.4]], clients=[5, 2], server_round=4)
    for row, (client, update) in enumerate([(5, [1.2, 1.6]), (2, [0.3, 0.4])]):
        noise = keyed(0, 4, client, "local").normal(2, dtype=torch.float64)
        expected = torch.tensor(update, dtype=torch.float64) + 1.5 * 2.0 * noise
        assert torch.allclose(found[row], expected, rtol=1e-12, atol=1e-14)


def test_the_noise_has_the_claimed_size_and_clients_do_not_share_it():
    protection = bind(LocalDP(noise_multiplier=1.5, clip_norm=0.2))
    rows = sealed(protection, np.zeros((2, 500_000)))
    assert within_four(float(rows.std()) / 0.3, 1.0, 1 / math.sqrt(2e6))
    assert abs(float(torch.corrcoef(rows)[0, 1])) < 5 / math.sqrt(500_000)


number = st.one_of(
    st.floats(-10, 10, width=32), st.sampled_from([0.0, 1e30, -3e38, 1e-42, math.nan])
)
row = st.lists(number, min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(row, row, st.floats(1e-3, 1e3))
def test_two_updates_of_one_client_differ_by_at_most_2c(first, second, clip_norm):
    protection = bind(LocalDP(noise_multiplier=0.0, clip_norm=clip_norm))
    a, b = (sealed(protection, [update])[0] for update in (first, second))
    for value, update in ((a, first), (b, second)):
        assert bool(torch.isfinite(value).all()) or not np.isfinite(update).all()
    if bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        assert float((a - b).norm()) <= 2 * clip_norm * (1 + 1e-6) + 1e-12


def test_epsilon_is_solved_by_the_exact_profile():
    """One round at sensitivity 2C: δ(ε) of the Gaussian mechanism with μ = 2 / z, exactly."""
    protection = bind(LocalDP(epsilon=2.0, delta=1e-5), rounds=1)
    mu = 2 / protection.noise_multiplier
    delta = norm.cdf(mu / 2 - 2.0 / mu) - math.exp(2.0) * norm.cdf(-mu / 2 - 2.0 / mu)
    assert delta == pytest.approx(1e-5, rel=1e-3)
    assert delta <= 1e-5
    twice = bind(LocalDP(epsilon=2.0, delta=1e-5), rounds=4)
    assert twice.noise_multiplier == pytest.approx(2 * protection.noise_multiplier, rel=1e-4)


def test_each_client_is_charged_its_own_rounds():
    protection = bind(LocalDP(noise_multiplier=5.0), rounds=9)
    for server_round, clients in ((1, [0, 3]), (2, [3])):
        for line in protection.releases(server_round, np.array(clients)):
            protection.record(line)
    one = bind(LocalDP(noise_multiplier=5.0), rounds=2).planned()
    assert protection.statement().epsilon == pytest.approx(one.epsilon, rel=1e-12)
    assert protection.statement().relation == "replace_one"


class Keeps(ClientHalf):
    def gradient(self, params, batch, context):
        return super().gradient(params, batch, context)


def test_a_half_that_sends_more_than_its_model_is_refused():
    data, part = classification(), LocalDP(noise_multiplier=1.0)
    for half in (Scaffold().client_half, Keeps()):
        with pytest.raises(ConfigError, match="more than a clipped update"):
            private_runtime(data, LinearModel(), part, half=half)
    with pytest.raises(ConfigError, match="on real devices"):
        bind(LocalDP(noise_multiplier=1.0, noise_source="keyed"), deployed=True)


def test_who_has_no_samples_replies_like_all_others():
    assert LocalDP.hides_sizes
