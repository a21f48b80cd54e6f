"""Strategies that remember every client, in real federations: engines agree, runs resume."""

import numpy as np
import pytest
import torch

from fedsim import client_table
from fedsim.admission import Admission
from fedsim.client import LocalSGD
from fedsim.client.gradient import Plain
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ResumeError
from fedsim.models.resnet import ResNet
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.fedvarp import FedVARP
from strategies.mifa import MIFA
from strategies.moon import Moon
from strategies.scaffold import Scaffold
from tests.helpers import classification, distance, make_runtime, run
from tests.strategies._quadratics import FIVE_OF_EIGHT, ragged
from tests.strategies._toy import equal

TABLED = {
    "scaffold": Scaffold,
    "scaffold_full_gradient": lambda: Scaffold(option="I"),
    "feddyn": lambda: FedDyn(alpha=0.1),
    "fedvarp": FedVARP,
    "mifa": MIFA,
    "mifa_original": lambda: MIFA(init="wait_all", store="delta_over_lr"),
    "moon": Moon,
}
ALL = {**TABLED, "fedprox": FedProx, "fednova": lambda: FedNova(mu=0.1)}
WORKS = {
    "plain": LocalSGD(lr=0.1, batch_size=4),
    "momentum": LocalSGD(lr=0.03, batch_size=4, momentum=0.8, weight_decay=0.01, schedule="cosine"),
}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", ALL)
def test_engines_agree_on_ragged_clients_that_come_and_go(name, work):
    results = []
    for engine in (InProcess(), Cohort(chunk=3)):
        strategy = ALL[name]()
        runtime = ragged(strategy, WORKS[work])
        params, _ = run(runtime, engine, strategy=strategy, schedule=FIVE_OF_EIGHT, rounds=5)
        results.append(params)
    assert distance(*results) < 1e-5
    assert distance(results[0], runtime.initial_params()) > 1e-2


def test_the_wire_changes_nothing():
    for name, make in ALL.items():
        results = []
        for engine in (InProcess(), InProcess(wire_check=True)):
            strategy = make()
            results.append(
                run(ragged(strategy), engine, strategy=strategy, schedule=FIVE_OF_EIGHT, rounds=3)[
                    0
                ]
            )
        assert equal(*results), name


def rounds(strategy, engine, params, done, last):
    runtime = ragged(strategy)
    strategy.federation = Federation(
        num_clients=8,
        seed=0,
        schedule=FIVE_OF_EIGHT,
        lr_at=runtime.work.lr_at,
        trainable=lambda: runtime.trainable,
    )
    loop = RoundLoop(
        strategy=strategy,
        grid=engine.grid(runtime),
        schedule=FIVE_OF_EIGHT,
        admission=Admission(),
        evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0,
        last_round=last,
    )
    *_, (last_params, _) = loop.run(runtime.initial_params() if params is None else params, done)
    return last_params


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("name", TABLED)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name, in_file, monkeypatch):
    """Also where the tables lie in a file from then on."""
    make = TABLED[name]
    whole = rounds(make(), Cohort(chunk=3), None, 0, 5)
    first = make()
    params = rounds(first, Cohort(chunk=3), None, 0, 3)
    state = {k: torch.as_tensor(v).clone() for k, v in first.state_dict().items()}
    if in_file:
        monkeypatch.setattr(client_table, "DENSE_BYTES", 0)
    second = make()
    second.load_state_dict(state)
    assert equal(rounds(second, Cohort(chunk=3), params, 3, 5), whole)
    forgetful = rounds(make(), Cohort(chunk=3), params, 3, 5)
    assert not equal(forgetful, whole), "the state matters"


@pytest.mark.parametrize("name", TABLED)
def test_a_checkpoint_costs_what_was_seen(name):
    strategy = TABLED[name]()
    rounds(strategy, InProcess(), None, 0, 1)
    (clients,) = (v for k, v in strategy.state_dict().items() if k.endswith("/clients"))
    assert clients.tolist() == FIVE_OF_EIGHT.select(1).tolist()


@pytest.mark.parametrize("name", TABLED)
def test_the_state_of_another_model_is_refused(name):
    strategy = TABLED[name]()
    rounds(strategy, InProcess(), None, 0, 1)
    second = TABLED[name]()
    second.load_state_dict(strategy.state_dict())
    with pytest.raises(ResumeError, match="another model"):
        run(ragged(second, dtype=torch.float64), InProcess(), strategy=second, rounds=1)


class BatchNormalised(torch.nn.Sequential):
    def __init__(self):
        super().__init__(
            torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
        )


@pytest.mark.parametrize("name", [name for name in ALL if name != "mifa_original"])
def test_buffers_are_averaged(name):
    """Control variates are of what clients train; a running variance must stay one."""
    strategy = ALL[name]()
    work = LocalSGD(lr=0.05, batch_size=4, epochs=None, steps=3)
    runtime = make_runtime(classification(), BatchNormalised, half=strategy.client_half, work=work)
    params, reports = run(runtime, InProcess(), strategy=strategy, rounds=4, schedule=FIVE_OF_EIGHT)
    assert all(report.admitted for report in reports)
    assert params["1.num_batches_tracked"].item() == 12
    assert (params["1.running_var"] > 0.05).all()
    start = runtime.initial_params()["1.running_mean"]
    assert not torch.equal(params["1.running_mean"], start)


def test_estimators_other_than_plain_are_left_alone():
    """The shift is added after the estimate, private or not."""

    class Noisy(Plain):
        @property
        def plain(self):
            return False

    results = []
    for estimator in (Plain(), Noisy()):
        strategy = Scaffold()
        runtime = ragged(strategy, dtype=torch.float64)
        runtime.estimator = estimator
        results.append(
            run(runtime, Cohort(), strategy=strategy, rounds=3, schedule=FIVE_OF_EIGHT)[0]
        )
    assert distance(*results) < 1e-12


def test_a_deeper_model():
    dataset, results = classification(shape=(1, 8, 8)), []
    for engine in (InProcess(), Cohort(chunk=3)):
        strategy = Scaffold()
        runtime = make_runtime(dataset, ResNet(widths=[4], groups=2), half=strategy.client_half)
        results.append(run(runtime, engine, strategy=strategy, rounds=2, schedule=FIVE_OF_EIGHT)[0])
    assert distance(*results) < 1e-5
    assert np.isfinite(distance(*results))
