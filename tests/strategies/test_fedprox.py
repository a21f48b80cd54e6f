"""FedProx: μ = 0 is FedAvg; rounds computed by hand."""

import pytest

from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from tests.helpers import run
from tests.strategies._quadratics import ENGINES, FIVE_OF_EIGHT, quadratics, ragged, trace
from tests.strategies._toy import equal


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_without_the_term_it_is_fedavg_to_the_bit(engine):
    results = [
        run(ragged(strategy), engine, strategy=strategy, schedule=FIVE_OF_EIGHT, rounds=2)[0]
        for strategy in (FedProx(mu=0.0), FedAvg(), FedProx(mu=0.5))
    ]
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_two_steps_by_hand(engine):
    """x = 0, b = 2, lr 0.1, mu 1: y_1 = .2; y_2 = .2 - .1 (-1.8 + .2) = .36. Then from .36:

    y_1 = .36 + .164 = .524; y_2 = .524 - .1 (-1.476 + .164) = .6552.
    """
    strategy = FedProx(mu=1.0)
    got = trace(strategy, quadratics(strategy, [2.0]), engine, [[1], [1]])
    assert got == pytest.approx([0.36, 0.6552], rel=1e-12)


def test_weights():
    """One step of 0.1 on b = (1, 3), of 1 and 4 samples."""
    for weighting, expected in (("examples", 0.26), ("uniform", 0.2)):
        strategy = FedProx(mu=5.0, weighting=weighting)
        runtime = quadratics(strategy, [1, 3], counts=[1, 4])
        runtime.work = type(runtime.work)(lr=0.1, batch_size=4)
        (got,) = trace(strategy, runtime, InProcess(), [[1, 1]])
        assert got == pytest.approx(expected, rel=1e-12)


def test_a_strong_pull_keeps_clients_where_they_are():
    """At lr·mu = 1 the second step starts from x again, whatever the first one did."""
    strategy = FedProx(mu=10.0)
    (got,) = trace(strategy, quadratics(strategy, [2.0]), InProcess(), [[1]])
    assert got == pytest.approx(0.1 * (2 - 0.2), rel=1e-12)


@pytest.mark.parametrize("mu", [-0.1, float("nan"), "x"])
def test_settings_out_of_range_are_refused(mu):
    with pytest.raises(ConfigError, match="mu"):
        FedProx(mu=mu)
