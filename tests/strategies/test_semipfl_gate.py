"""SemiPFL's shape on made-up wearables: it beats local training, and mixing does not harm it.

The scenario's 120 rounds, three seeds:

    FEDSIM_NIGHTLY=1 pytest tests/strategies/test_semipfl_gate.py
"""

from functools import cache

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.simulation import Simulation

UNIFORM = ("strategy.mix_epochs=0",)
LOCAL = ("strategy=local_only", "strategy.optimiser=adam")


@cache
def run(seed: int, rounds: int, *changes: str) -> tuple[float, float]:
    """Return the users' mean weighted F1 after the last round, and by what the loss has fallen."""
    words = [f"seed={seed}", f"rounds={rounds}", f"evaluation.every={rounds}", "device=cpu"]
    built = Simulation(compose("semipfl_wearable", [*words, "evaluation.central=false", *changes]))
    reports = [report for _, report in built.loop.run(built.runtime.initial_params())]
    f1 = reports[-1].per_client["weighted-f1"]
    assert len(f1) == 6
    losses = [report.train["train-loss"] for report in reports]
    return float(np.mean(f1)), losses[0] / max(losses[-1], 1e-12)


def holds(seed: int, rounds: int) -> float:
    """Check what is to hold of each seed; return how far SemiPFL is above local training."""
    mixed, fallen = run(seed, rounds)
    assert mixed - run(seed, rounds, *LOCAL)[0] >= 0.05
    assert mixed - run(seed, rounds, *UNIFORM)[0] >= 0
    assert fallen >= 3
    return mixed - run(seed, rounds, *LOCAL)[0]


def test_the_gate_in_short():
    """A quarter of the rounds, one seed; measured: mixed 0.758, uniform 0.627, local 0.560."""
    assert holds(0, 30) >= 0.15


@pytest.mark.nightly
def test_the_gate():
    assert np.mean([holds(seed, 120) for seed in range(3)]) >= 0.15
