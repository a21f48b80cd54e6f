"""Losses on bags: by hand, against plain definitions, in their limits, and on both engines."""

import math

import pytest
import torch
import torch.nn.functional as F

from fedsim.client import Batch
from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from strategies.aggregate import Aggregate, EasyLLP, EasyLLPOfOthers, on_simplex
from strategies.fedavg import FedAvg
from tests.helpers import distance, flat

SIZES = [3, 2, 4, 1]
PLACES = 4


class Context:
    def __init__(self, task):
        self.task = task


def batch(task, seed=0):
    """(outputs [4, 4, 3], batch) of four ragged bags; what lies in padding is wild."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(len(SIZES), PLACES, 3, generator=g, dtype=torch.float64)
    mean = torch.rand(len(SIZES), 3, generator=g, dtype=torch.float64)
    if task == "classification":
        mean = mean / mean.sum(1, keepdim=True)
    for row, size in enumerate(SIZES):
        z[row, size:] = 1e3
    sizes = torch.tensor(SIZES, dtype=torch.float64)[:, None]
    return z, Batch(x=torch.zeros(0), y=torch.cat([mean, sizes], 1))


def value(kind, task, z, b, rho=0.3, prior=None):
    half = Aggregate(loss=kind, rho=rho, prior=prior).client_half
    return half.criterion(z, b, Context(task))


def bags(z, b):
    return [(z[i, :s], b.y[i, :-1]) for i, s in enumerate(SIZES)]


def test_squared_losses_are_their_definitions():
    z, b = batch("regression")
    bag = torch.stack([(m - zs.mean(0)).square().mean() for zs, m in bags(z, b)]).mean()
    ins = torch.stack([(m - zs).square().mean() for zs, m in bags(z, b)]).mean()
    spread = torch.stack([(zs - zs.mean(0)).square().mean() for zs, _ in bags(z, b)]).mean()
    assert float(value("bag", "regression", z, b)) == pytest.approx(float(bag), rel=1e-12)
    assert float(value("instance", "regression", z, b)) == pytest.approx(float(ins), rel=1e-12)
    assert float(ins - bag) == pytest.approx(float(spread), rel=1e-12)  # the identity of §L_ins
    for rho in (0.0, 0.3, 1.0, 4.0):
        found = float(value("interpolating", "regression", z, b, rho))
        assert found == pytest.approx(float((1 - rho) * bag + rho * ins), rel=1e-12)


def test_entropy_losses_are_their_definitions():
    z, b = batch("classification")
    bag = [-(m * zs.softmax(1).mean(0).log()).sum() for zs, m in bags(z, b)]
    ins = [F.cross_entropy(zs, m.expand_as(zs)) for zs, m in bags(z, b)]
    bag, ins = torch.stack(bag).mean(), torch.stack(ins).mean()
    for kind in ("bag", "dllp"):
        assert float(value(kind, "classification", z, b)) == pytest.approx(float(bag), rel=1e-12)
    found = float(value("instance", "classification", z, b))
    assert found == pytest.approx(float(ins), rel=1e-12)
    assert ins > bag
    found = float(value("interpolating", "classification", z, b, 0.3))
    assert found == pytest.approx(float(0.7 * bag + 0.3 * ins), rel=1e-12)


def test_easyllp_is_its_definition():
    z, b = batch("classification")
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    total = 0.0
    for (zs, m), size in zip(bags(z, b), SIZES, strict=True):
        weight = size * (m - prior) + prior
        total -= float((weight * zs.log_softmax(1)).sum(1).mean())
    found = float(value("easyllp", "classification", z, b, prior=prior.tolist()))
    assert found == pytest.approx(total / len(SIZES), rel=1e-12)


def test_by_hand():
    """One bag of two, outputs 1 and 3, mean response 5: (5-2)^2 = 9, (16 + 4)/2 = 10."""
    z = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
    b = Batch(x=z, y=torch.tensor([[5.0, 2.0]], dtype=torch.float64))
    found = [float(value(kind, "regression", z, b, 0.5)) for kind in ("bag", "instance")]
    assert found == [9.0, 10.0]
    assert float(value("interpolating", "regression", z, b, 0.5)) == 9.5
    z = torch.zeros(1, 2, 2, dtype=torch.float64)  # both classes even: every loss is ln 2
    b = Batch(x=z, y=torch.tensor([[0.25, 0.75, 2.0]], dtype=torch.float64))
    for kind in ("bag", "instance", "interpolating", "dllp", "easyllp"):
        assert float(value(kind, "classification", z, b)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("kind", ["bag", "instance", "interpolating", "easyllp"])
def test_padding_has_no_gradient(kind, task):
    if (kind, task) == ("easyllp", "regression"):
        pytest.skip("for classes")
    z, b = batch(task)
    z.requires_grad_()
    value(kind, task, z, b).backward()
    for row, size in enumerate(SIZES):
        assert torch.isfinite(z.grad[row]).all()
        assert z.grad[row, size:].abs().sum() == 0
        assert z.grad[row, :size].abs().sum() > 0 or size == 1


@pytest.mark.parametrize("known", [True, False])
def test_easyllp_weights_have_the_mean_of_the_labels(known):
    """Over random bags, E[w | y=1] = 1 and E[w | y=0] = 0; within 4 standard errors.

    With p known, and with p from the other bags of a batch, where a wrong constant would not do.
    """
    g, size, per_batch, batches, p = torch.Generator().manual_seed(1), 8, 5, 8000, 0.3
    y = (torch.rand(batches, per_batch, size, generator=g, dtype=torch.float64) < p).double()
    share = y.mean(2)
    half = EasyLLP((1 - p, p)) if known else EasyLLPOfOthers()
    sizes = torch.full((per_batch, 1), float(size), dtype=torch.float64)
    w = torch.vmap(lambda s: half.weights(torch.stack([1 - s, s], 1), sizes))(share)[..., 1]
    for label in (0, 1):
        of = (y == label).double()
        # Batches are independent of one another; bags of one batch share their prior.
        top, bottom = (w * of.sum(2)).sum(1), of.sum((1, 2))
        mean = float(top.sum() / bottom.sum())
        error = float((top - mean * bottom).std() / bottom.mean() / batches**0.5)
        assert abs(mean - label) < 4 * error
        assert error < 0.02


@pytest.mark.parametrize("bags", [1, 4])
def test_clients_taken_together_are_as_each_alone(bags):
    half = EasyLLPOfOthers()
    alone, stacked = [], []
    for seed in range(3):
        z, b = batch("classification", seed)
        alone.append(half.criterion(z[:bags], Batch(x=z, y=b.y[:bags]), Context("classification")))
        stacked.append((z[:bags], b.y[:bags]))
    z, y = (torch.stack(part) for part in zip(*stacked, strict=True))
    found = half.criteria(z, Batch(x=z, y=y), Context("classification"))
    assert torch.allclose(found, torch.stack(alone), rtol=1e-12, atol=0)
    labels = torch.arange(3 * bags).view(3, bags) % 3  # samples that are no bags
    found = half.criteria(z[:, :, 0], Batch(x=z, y=labels), Context("classification"))
    expected = [F.cross_entropy(z[a, :, 0], labels[a]) for a in range(3)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-12, atol=0)


def test_noisy_shares_are_put_back_on_the_simplex():
    noisy = torch.tensor([[0.3, -0.4, 0.9], [-1.0, -1.0, -0.1], [0.25, 0.25, 0.5]])
    expected = torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    assert torch.allclose(on_simplex(noisy), expected)


# --- whole runs ----------------------------------------------------------------------------------

WORDS = ["model.hidden=[6]", "partition.num_clients=5", "rounds=1", "precision=float64"]
WORDS += ["participation=full", "client.batch_size=7", "device=cpu", "client.lr=0.05"]


def end(*words):
    simulation = Simulation(compose("base", [*WORDS, *words]))
    start = simulation.runtime.initial_params()
    params = list(simulation.loop.run(start))[-1][0]
    assert distance(params, start) > 1e-3
    return params, simulation


@pytest.mark.parametrize("loss", ["bag", "instance", "interpolating", "easyllp"])
@pytest.mark.parametrize("source", ["diabetes", "digits"])
def test_both_engines_agree_on_ragged_bags(source, loss):
    if (source, loss) == ("diabetes", "easyllp"):
        pytest.skip("for classes")
    words = ["data=bags", f"data.source.name={source}", "data.size=4", "data.rest=short"]
    words += ["strategy=aggregate", f"strategy.loss={loss}"]
    (one, _), (other, simulation) = (
        end(*words, f"engine={engine}") for engine in ("in_process", "cohort")
    )
    assert simulation.grid.plan == "rules"
    assert distance(one, other) < 1e-9


@pytest.mark.parametrize(
    ("source", "loss"),
    [
        ("diabetes", "bag"),
        ("diabetes", "instance"),
        ("digits", "interpolating"),
        ("digits", "easyllp"),
    ],
)
def test_bags_of_one_are_ordinary_training(source, loss):
    strategy = ["strategy=aggregate", f"strategy.loss={loss}"]
    plain, _ = end(f"data={source}", "strategy=fedavg")
    assert distance(end(f"data={source}", *strategy)[0], plain) < 1e-12
    bagged = ["data=bags", f"data.source.name={source}", "data.size=1", "data.assign=random"]
    simulation = Simulation(compose("base", [*WORDS, *bagged, *strategy]))
    source_y = Simulation(compose("base", [*WORDS, f"data={source}"])).dataset
    # Bags of one come in an order of their own: give the plain run the same order.
    match = simulation.dataset.train_x[:, 0].flatten(1)[:, None] == source_y.train_x.flatten(1)
    order = match.all(2).double().argmax(1)
    ordered = Simulation(compose("base", [*WORDS, f"data={source}"]))
    ordered.dataset = type(source_y)(
        **{**vars(source_y), "train_x": source_y.train_x[order], "train_y": source_y.train_y[order]}
    )
    assert isinstance(ordered.strategy, FedAvg)
    ends = [list(s.loop.run(s.runtime.initial_params()))[-1][0] for s in (simulation, ordered)]
    # Bag means are kept in float32.
    assert float((flat(ends[0]) - flat(ends[1])).norm() / flat(ends[1]).norm()) < 1e-6


@pytest.mark.parametrize("engine", ["in_process", "cohort"])
def test_whole_clients_are_protected_on_bags(engine):
    """With nothing clipped and no noise, the mean of their updates; else DP of a user."""
    words = ["data=bags", "data.rest=short", "strategy=aggregate", f"engine={engine}"]
    clear = ["privacy.epsilon=null", "privacy.noise_multiplier=0", "privacy.clip_norm=1000"]
    plain, _ = end(*words, "strategy.weighting=uniform")
    open_, _ = end(*words, "privacy=user_dp", *clear)
    assert distance(open_, plain) < 1e-12
    clipped, simulation = end(*words, "privacy=user_dp", *clear[:2], "privacy.clip_norm=0.01")
    moved = flat(clipped) - flat(simulation.runtime.initial_params())
    # Five clients with a norm of at most 0.01 each, and all of them well above it.
    assert 0.005 < float(moved.norm()) <= 0.01 * (1 + 1e-9)
    _, noisy = end(*words, "privacy=user_dp", "privacy.epsilon=4")
    planned = noisy.protection.planned()
    assert (planned.unit, planned.epsilon) == ("user", pytest.approx(4, rel=1e-3))


def test_what_is_refused():
    for values, words in (
        ({"loss": "bag", "prior": [0.5, 0.5]}, "easyllp only"),
        ({"loss": "easyllp", "prior": [0.5, 0.6]}, "no distribution"),
        ({"rho": -0.1}, "rho"),
    ):
        with pytest.raises(ConfigError, match=words):
            Aggregate(**values)
    z, b = batch("regression")
    for kind in ("dllp", "easyllp"):
        with pytest.raises(ConfigError, match="class proportions"):
            value(kind, "regression", z, b)
    z, b = batch("classification")
    with pytest.raises(ConfigError, match="3 classes of this data"):
        value("easyllp", "classification", z, b, prior=[0.5, 0.5])
