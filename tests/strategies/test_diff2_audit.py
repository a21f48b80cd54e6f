"""Empirical audit of `privacy=diff2`: one canary record, many runs of a few rounds.

The worst case that the proof allows for: among records without gradient, a canary whose gradient,
and every difference of it, is longer than its clipping norm; or, in its place, one that pulls the
other way. On w² x that is a matter of the label: the gradient of (w² x − y)² is near −4 w x y, its
difference near −4 x y Δw. The canary moves each release by the whole of what is charged, in a
direction that is known, and the best test is the likelihood ratio: what was released, each release
weighted by its shift over its variance. `privacy.audit.multi_run` turns the scores of runs with one
canary and with the other into lower bounds on ε (Clopper-Pearson, 99 %, on runs that did not choose
the threshold). With noise as claimed none may pass the claim; with half of it the bound for
Gaussian mechanisms does.

    diff2        a restart and a difference
    bvr_l_sgd    a restart, a local step, a difference

`FEDSIM_NIGHTLY=1 pytest -s tests/strategies/test_diff2_audit.py` does 4,000 runs of each.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedsim.client.whole import Cohort
from fedsim.data.dataset import Dataset
from fedsim.records import Chunk, to_record
from privacy.audit.multi_run import audit
from privacy.diff2 import Diff2DP
from strategies.bvr_l_sgd import BvrLSGD
from strategies.diff2 import Diff2
from tests.privacy._dp import private_runtime
from tests.strategies._toy import Masks, Nodes, Stacked, federate

EPSILON, DELTA, RECORDS = 4.0, 1e-5, 4


class Square(torch.nn.Module):
    """w² x, from w = 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return x * self.weight.square()


def holding(part, strategy, label):
    """One client with a canary among records without gradient."""
    x = torch.zeros(RECORDS, 1, dtype=torch.float64)
    y = torch.zeros(RECORDS, 1, dtype=torch.float64)
    x[0], y[0] = 5.0, label
    data = Dataset(
        name="canary", task="regression", train_x=x, train_y=y, test_x=x, test_y=y, num_outputs=1
    )
    return private_runtime(
        data,
        Square,
        part,
        sizes=(RECORDS,),
        half=strategy.client_half,
        strategy=strategy,
        rounds=ROUNDS[type(strategy)],
    )


ROUNDS = {Diff2: 2, BvrLSGD: 3}


def one_run(strategy, runtime, plan, seed):
    """Return the log of the likelihood ratio of all that a run released, up to a factor.

    Sums, in units of c, are N(∓ sign, z²) with one canary and the other: the sign is that of w in a
    restart, of the last step in all other releases.
    """
    runtime.protection.seed = seed
    strategy._forget()
    strategy._due = False
    params, estimate, score = {"weight": torch.ones(1, 1, dtype=torch.float64)}, 0.0, 0.0
    for server_round in range(1, ROUNDS[type(strategy)] + 1):
        strategy.configure_train(
            server_round, to_record(params, zero_copy=True), ConfigRecord(), Nodes()
        )
        payload = strategy.client_payload(strategy._round)
        cohort = Cohort(
            runtime,
            clients=np.arange(1),
            server_round=server_round,
            params=params,
            client_arrays=payload,
            told=strategy._sent.config,
        )
        reply = Chunk(
            client_index=np.arange(1),
            arrays={"weight": runtime.half.run(cohort).arrays["weight"].view(1, 1, 1)},
            metrics={"num-examples": np.ones(1)},
        )
        after = strategy.aggregate(strategy._round, Stacked(reply))
        w, moved = float(params["weight"]), float(after["weight"] - params["weight"])
        step = w - float(payload["previous/weight"]) if payload else w
        now = -moved / strategy.server_lr  # v, or u of the local step
        released = now if strategy.restarting and strategy.visit is None else now - estimate
        if strategy.visit is not None:
            c, z = strategy.clip_local * abs(step), plan.local_noise
        else:
            c = float(cohort.told["clip-norm"])
            z = plan.restart_noise if strategy.restarting else plan.difference_noise
            estimate = now
        score -= math.copysign(1, step) * released * RECORDS / c / z**2
        params = after
    return score


def scores(kind, noise, runs):
    """Return what is claimed, and the scores of runs with either canary."""
    found = []
    for label in (1e4, -1e4):
        own = {"local_steps": 1, "local_batches": 1, "clip_local": 3.0} if kind is BvrLSGD else {}
        strategy = kind(restart=2, clip_gradients=2.0, clip_differences=3.0, server_lr=0.3, **own)
        federate(strategy, Masks(np.ones((9, 1))))
        runtime = holding(Diff2DP(epsilon=EPSILON, delta=DELTA), strategy, label)
        mechanism, plan = runtime.protection, runtime.protection.schedule
        claim = mechanism.planned().epsilon
        mechanism.schedule = dataclasses.replace(
            plan,
            restart_noise=noise * plan.restart_noise,
            difference_noise=noise * plan.difference_noise,
            local_noise=noise * plan.local_noise,
        )
        first = runs * len(found)
        seeds = range(first, first + runs // 2)
        found.append(np.array([one_run(strategy, runtime, plan, seed) for seed in seeds]))
    return claim, found


@pytest.mark.parametrize(
    ("kind", "runs"),
    [
        (Diff2, 600),
        pytest.param(Diff2, 4000, marks=pytest.mark.nightly),
        pytest.param(BvrLSGD, 4000, marks=pytest.mark.nightly),
    ],
)
def test_an_audit_does_not_refute_the_claim_and_refutes_half_the_noise(kind, runs):
    for noise in (1.0, 0.5):
        claim, (inside, outside) = scores(kind, noise, runs)
        found = audit(inside, outside, delta=DELTA)
        print(
            f"{kind.__name__}, {noise:g} of the noise, {runs} runs: claimed {claim:.3f}; "
            f"epsilon >= {found.epsilon:.3f}, as a Gaussian mechanism >= {found.epsilon_gdp:.3f}"
        )
        assert claim == pytest.approx(EPSILON, rel=1e-3)
        if noise < 1 or runs >= 4000:  # fewer runs with all the noise may bound nothing
            assert found.epsilon_gdp > 0.2 * claim  # the canary is seen
        assert (found.epsilon_gdp > claim) == (noise < 1)
        assert found.epsilon <= claim or noise < 1
