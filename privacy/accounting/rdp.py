"""Renyi DP: never tight, but known for mechanisms whose loss distribution is not.

Mironov (arXiv:1702.07476); the curve of each release from dp-accounting or `discrete.py`, summed;
converted by Canonne, Kamath, Steinke (arXiv:2004.00010), Proposition 12:

    epsilon = min over alpha of  D_alpha + log(1 - 1/alpha) - log(alpha delta) / (alpha - 1)

For integer noise this is what is claimed; for everything else it is a cross-check.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as rdp_accountant

from fedsim.errors import ConfigError
from privacy.accounting.discrete import Curve, extra_rdp
from privacy.accounting.pld import RELATIONS, refused
from privacy.accounting.pure import pure_epsilon
from privacy.events import (
    Event,
    FixedSize,
    Gaussian,
    Laplace,
    Poisson,
    PureDP,
    Relation,
    Unsampled,
)

ORDERS = np.array(rdp_accountant.DEFAULT_RDP_ORDERS, dtype=np.float64)


def rdp_curve(events: Sequence[Event], relation: Relation) -> Curve:
    """Return the summed Renyi divergence of `events` at `ORDERS`.

    Raises:
        ConfigError: No proved curve for a combination.
    """
    accountant = rdp_accountant.RdpAccountant(ORDERS, RELATIONS[relation])
    extra = np.zeros_like(ORDERS)
    for event in events:
        curve = _own_curve(event, relation)
        if curve is not None:
            extra += event.count * curve
        else:
            with _without_warnings():
                accountant.compose(dp_event(event, relation), event.count)
    return np.asarray(accountant.rdp + extra)


def rdp_epsilon(curve: Curve, delta: float) -> float:
    """Return the epsilon at `delta` of a curve over `ORDERS`."""
    return float(rdp_accountant.compute_epsilon(ORDERS, curve, delta)[0])


def rdp_delta(curve: Curve, epsilon: float) -> float:
    """Return the delta at `epsilon` of a curve over `ORDERS`."""
    if np.isinf(curve).all():
        return 1.0
    return float(rdp_accountant.compute_delta(ORDERS, curve, epsilon)[0])


def dp_event(event: Event, relation: Relation) -> Any:
    """Return dp-accounting's event of ONE of our event's releases.

    Its noise multipliers are in units of the sensitivity, which replacement doubles.

    Raises:
        ConfigError: dp-accounting's Renyi accountant does not support it.
    """
    mechanism, sampling = event.mechanism, event.sampling
    sensitivity = 1.0 if relation == "add_remove" else 2.0
    inner: Any
    if isinstance(mechanism, Gaussian):
        inner = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier / sensitivity)
    elif isinstance(mechanism, Laplace) and isinstance(sampling, Unsampled):
        inner = dp_accounting.LaplaceDpEvent(mechanism.scale / sensitivity)
    else:
        raise refused(mechanism, sampling, relation, "its Renyi divergence is not known here")
    if isinstance(sampling, Poisson):
        inner = dp_accounting.PoissonSampledDpEvent(sampling.rate, inner)
    elif isinstance(sampling, FixedSize):
        inner = dp_accounting.SampledWithoutReplacementDpEvent(
            sampling.population, sampling.size, inner
        )
    if not rdp_accountant.RdpAccountant(ORDERS, RELATIONS[relation]).supports(inner):
        other = "replace_one" if relation == "add_remove" else "add_remove"
        raise refused(mechanism, sampling, relation, f"its Renyi divergence is known for {other}")
    return inner


def _own_curve(event: Event, relation: Relation) -> Curve | None:
    mechanism, sampling = event.mechanism, event.sampling
    if isinstance(mechanism, PureDP) and not isinstance(sampling, Unsampled):
        epsilon = pure_epsilon(mechanism, sampling, relation)
        if epsilon is None:
            raise refused(mechanism, sampling, relation, "no amplification is proved for it")
        return extra_rdp(PureDP(epsilon=epsilon), ORDERS, relation)
    curve = extra_rdp(mechanism, ORDERS, relation)
    if curve is not None and not isinstance(sampling, Unsampled):
        raise refused(
            mechanism,
            sampling,
            relation,
            "no amplification is claimed for integer noise. Release it unsampled, or use Gaussian "
            "noise with Poisson sampling",
        )
    return curve


def best_of_curve(events: Sequence[Event], mean_runs: float, relation: Relation) -> Curve:
    """Return the curve of publishing the best of K runs, K geometric with mean `mean_runs`.

    Papernot and Steinke (arXiv:2110.03620), Theorem 2 with eta = 1.

    Raises:
        ConfigError: The events hold a mechanism that dp-accounting does not know.
    """
    if any(_own_curve(event, relation) is not None for event in events):
        raise ConfigError(
            "the cost of choosing the best run is known here for Gaussian and Laplace noise only"
        )
    parts = [
        dp_accounting.SelfComposedDpEvent(dp_event(event, relation), event.count)
        for event in events
        if event.count > 0
    ]
    accountant = rdp_accountant.RdpAccountant(ORDERS, RELATIONS[relation])
    run = dp_accounting.ComposedDpEvent(parts)
    if mean_runs > 1:
        run = dp_accounting.dp_event.RepeatAndSelectDpEvent(run, mean_runs, 1.0)
    with _without_warnings():
        accountant.compose(run)
    return np.asarray(accountant.rdp)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep dp-accounting from telling each order that it leaves out; the best of the rest holds."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
