"""Renyi DP and Opacus' accountants beside ours: valid, looser; Opacus' GDP, which is neither."""

import numpy as np
import pytest
from opacus.accountants.analysis import rdp as opacus_rdp

from fedsim.errors import ConfigError
from privacy.accountant import epsilon, prv, rdp
from privacy.accounting.rdp import ORDERS, rdp_curve
from privacy.events import Event, Laplace
from tests.privacy._events import ADD, REPLACE, TABLE, fixed, gaussian, laplace, poisson, pure


@pytest.mark.parametrize("row", TABLE)
def test_opacus_renyi_agrees(row):
    z, q, count, d, *_, published = TABLE[row][:8]
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))  # Opacus' default
    curve = opacus_rdp.compute_rdp(q=q, noise_multiplier=z, steps=count, orders=orders)
    theirs, _ = opacus_rdp.get_privacy_spent(orders=orders, rdp=curve, delta=d)
    assert theirs == pytest.approx(published, abs=6e-6)
    assert rdp([poisson(z, q, count)], delta=d, relation=ADD) == pytest.approx(theirs, rel=3e-3)


@pytest.mark.parametrize("row", ["A", "D", "E"])
def test_opacus_prv_brackets_ours(row):
    z, q, count, d, tight, *_, loose, _ = TABLE[row]
    found = prv([poisson(z, q, count)], delta=d, relation=ADD)
    assert found == pytest.approx(loose, abs=6e-6)
    assert found - 0.012 < tight < found


@pytest.mark.nightly
@pytest.mark.parametrize("row", TABLE)
def test_opacus_prv_with_a_finer_error(row):
    z, q, count, d, _, _, _, _, loose, fine = TABLE[row]
    events = [poisson(z, q, count)]
    assert prv(events, delta=d, relation=ADD) == pytest.approx(loose, abs=6e-6)
    found = prv(events, delta=d, relation=ADD, error=0.001)
    assert found == pytest.approx(fine, abs=6e-6)
    assert found - 0.002 < epsilon(events, delta=d, relation=ADD).epsilon < found


def test_opacus_gdp_is_below_the_truth_which_is_why_it_is_not_offered():
    from opacus.accountants.analysis import gdp

    z, q, count, d, tight, *_ = TABLE["A"]
    mu = gdp.compute_mu_poisson(steps=count, noise_multiplier=z, sample_rate=q)
    assert gdp.eps_from_mu(mu=mu, delta=d) == pytest.approx(1.61771, abs=6e-6)
    assert gdp.eps_from_mu(mu=mu, delta=d) < 0.9 * tight


@pytest.mark.parametrize(
    "events", [[laplace(1.0)], [pure(1.0)], [fixed(1.0, 5, 10)], [gaussian(1.0), laplace(1.0)]]
)
def test_opacus_is_asked_only_what_it_knows(events):
    with pytest.raises(ConfigError, match="Opacus"):
        prv(events, delta=1e-5, relation=REPLACE if events[0].sampling else ADD)


def test_renyi_curves_by_hand():
    at = int(np.flatnonzero(ORDERS == 2.0)[0])
    # Gaussian: alpha / (2 z^2); replacement halves z.
    assert rdp_curve([gaussian(2.0, 3)], ADD)[at] == pytest.approx(3 * 2 / 8)
    assert rdp_curve([gaussian(2.0, 3)], REPLACE)[at] == pytest.approx(3 * 2 / 2)
    # Poisson-sampled at order 2: log(1 + q^2 (e^(1/z^2) - 1)).
    exact = np.log1p(0.01 * np.expm1(0.25))
    assert rdp_curve([poisson(2.0, 0.1, 5)], ADD)[at] == pytest.approx(5 * exact)
    # Laplace at order 2: log(2/3 e^(1/b) + 1/3 e^(-2/b)).
    b = 1.5
    exact = np.log(2 / 3 * np.exp(1 / b) + 1 / 3 * np.exp(-2 / b))
    assert rdp_curve([Event(mechanism=Laplace(scale=b))], ADD)[at] == pytest.approx(exact)


@pytest.mark.parametrize(
    ("events", "relation"),
    [
        ([laplace(2.0, 20)], ADD),
        ([laplace(2.0, 20)], REPLACE),
        ([pure(0.3, 20)], REPLACE),
        ([fixed(2.0, 5, 50, 20)], REPLACE),
        ([gaussian(5.0, 4), poisson(1.0, 0.1, 20), pure(0.2, 3)], ADD),
    ],
)
def test_the_claim_is_at_most_renyis(events, relation):
    claim = epsilon(events, delta=1e-5, relation=relation).epsilon
    other = rdp(events, delta=1e-5, relation=relation)
    assert 0.3 * other < claim < other
