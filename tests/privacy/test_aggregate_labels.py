"""Noisy bag means: what one response can move, the noise's law, one release, and refusals."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.config import compose
from fedsim.data.bags import Bags
from fedsim.data.dataset import DataPart, Dataset
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from privacy.aggregate_labels import AggregateLabels, laplace, spans
from privacy.normal import keyed
from tests.helpers import classification
from tests.privacy._dp import setting, within_four


class Given(DataPart):
    """Responses that a test sets one by one."""

    def __init__(self, y, classes=0):
        self.y, self.classes = y, classes

    def load(self) -> Dataset:
        count = len(self.y)
        x = torch.arange(count, dtype=torch.float32)[:, None]
        return Dataset(
            name="given",
            task="classification" if self.classes else "regression",
            train_x=x,
            train_y=self.y,
            test_x=x,
            test_y=self.y,
            num_outputs=self.classes or self.y.shape[1],
        )


def bagged(y, classes=0, **values):
    return Bags(source=Given(y, classes), rest="short", **values).load()


def bind(data, **values):
    return AggregateLabels(**values).bind(setting(data, LocalSGD()))


@pytest.mark.parametrize("assign", ["random", "features"])
@pytest.mark.parametrize("bound", [0.5, 2.0])
@pytest.mark.parametrize("columns", [1, 2])
def test_one_response_moves_one_mean_by_no_more_than_the_bound(columns, bound, assign):
    """Exhaustive: each response in turn, put to both ends and far outside of them."""
    y = torch.randn(11, columns, generator=torch.Generator().manual_seed(0))
    values = {"size": 4, "clip": bound, "assign": assign}
    before, worst = bagged(y, **values), 0.0
    span_l1, span_l2 = spans(0, columns, bound)
    for sample, other in product(range(len(y)), (-1e6, -bound, 0.0, bound, 1e6)):
        changed = y.clone()
        changed[sample] = other
        after = bagged(changed, **values)
        assert torch.equal(after.train_x, before.train_x)
        moved = (after.train_y - before.train_y).double()
        rows = moved.abs().sum(1).nonzero().flatten().tolist()
        assert len(rows) <= 1
        for row in rows:
            size = float(before.train_y[row, -1])
            assert moved[row].abs().max() <= 2 * bound / size * (1 + 1e-6)
            assert moved[row].abs().sum() <= span_l1 / size * (1 + 1e-6)
            assert moved[row].norm() <= span_l2 / size * (1 + 1e-6)
            worst = max(worst, float(moved[row].abs().max()) * size / (2 * bound))
    assert worst > 0.6  # the bound is nearly met


@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_moves_shares_by_no_more_than_the_bound(classes):
    y, worst = torch.arange(10) % classes, 0.0
    before = bagged(y, classes, size=3)
    span_l1, span_l2 = spans(classes, classes, 0.0)
    first = 1 if classes == 2 else 0  # of two classes, the second's share alone is released
    for sample, other in product(range(len(y)), range(classes)):
        changed = y.clone()
        changed[sample] = other
        moved = (bagged(changed, classes, size=3).train_y - before.train_y)[:, first:].double()
        assert (moved.abs().sum(1) > 0).sum() <= 1
        size = float(before.train_y[moved.abs().sum(1).argmax(), -1])
        assert moved.abs().sum() <= span_l1 / size * (1 + 1e-6)
        assert moved.norm() <= span_l2 / size * (1 + 1e-6)
        worst = max(worst, float(moved.abs().sum()) * size / span_l1)
    assert worst == pytest.approx(1, rel=1e-6)


def noise_of(data, repeats=400, **values):
    """What many clients' releases of the same bags add, `[repeats, bags, columns]`."""
    protection = bind(data, **values)
    drawn = torch.stack([protection.targets(c, data.train_y) for c in range(repeats)])
    return (drawn - data.train_y)[..., :-1].double(), protection


def test_laplace_noise_has_the_scale_of_each_bag():
    y = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    data = bagged(y, size=8, clip=1.5)
    noise, _ = noise_of(data, epsilon=0.7)
    for bag, size in enumerate(data.train_y[:, -1].tolist()):
        scaled = noise[:, bag, 0] / (2 * 1.5 / (size * 0.7))
        # Laplace(1): E|x| = 1 with variance 1, and E x² = 2 with variance 20.
        assert within_four(float(scaled.abs().mean()), 1.0, 400**-0.5)
        assert within_four(float(scaled.square().mean()), 2.0, (20 / 400) ** 0.5)
        assert within_four(float(scaled.mean()), 0.0, (2 / 400) ** 0.5)


def test_laplace_is_the_laplace_law():
    drawn = np.sort(laplace(keyed(0, 0, 0, "test"), 20_000).numpy())
    cdf = np.where(drawn < 0, np.exp(drawn) / 2, 1 - np.exp(-drawn) / 2)
    gap = np.abs(cdf - (np.arange(20_000) + 0.5) / 20_000).max()
    assert gap < 2.3 / 20_000**0.5  # Kolmogorov-Smirnov at 5e-5


def test_gaussian_noise_and_its_epsilon():
    """The exact curve of the Gaussian mechanism (Balle & Wang 2018), computed here by itself."""
    from scipy.stats import norm

    data = bagged(torch.arange(40) % 3, 3, size=5)
    noise, protection = noise_of(data, repeats=2000, epsilon=0.8, delta=1e-4)
    std = float(noise.std())
    mu = math.sqrt(2) / 5 / std
    delta = norm.cdf(mu / 2 - 0.8 / mu) - math.exp(0.8) * norm.cdf(-mu / 2 - 0.8 / mu)
    assert delta == pytest.approx(1e-4, rel=0.15)  # std is of 48,000 draws: within a percent
    assert protection.planned().epsilon <= 0.8 * (1 + 1e-6)
    assert protection.planned().delta == 1e-4


def test_two_classes_share_one_draw():
    data = bagged(torch.arange(20) % 2, 2, size=4)
    noise, _ = noise_of(data, epsilon=2.0)
    assert torch.allclose(noise[..., 0], -noise[..., 1], atol=1e-6)
    assert within_four(float(noise[..., 1].abs().mean()), 1 / (4 * 2.0), 1 / 8 / 2000**0.5)


def test_noise_is_drawn_once_and_hits_no_size():
    data = bagged(torch.randn(30, 1), size=4, clip=1.0)
    protection = bind(data)
    first = protection.targets(3, data.train_y)
    assert torch.equal(first, protection.targets(3, data.train_y))
    assert not torch.equal(first, protection.targets(4, data.train_y))
    assert torch.equal(first[:, -1], data.train_y[:, -1])
    assert len(protection.targets(0, data.train_y[:0])) == 0


def test_it_is_charged_once_for_the_whole_run():
    protection = bind(bagged(torch.randn(30, 1), size=4, clip=1.0), epsilon=1.25)
    (line,) = protection.releases(0, np.arange(0))
    protection.record(line)
    assert [list(protection.releases(r, np.arange(3))) for r in (1, 2)] == [[], []]
    for statement in (protection.statement(), protection.planned()):
        assert statement.epsilon == pytest.approx(1.25)
        assert (statement.delta, statement.unit) == (0.0, "label")
        assert statement.relation == "replace_one"


def test_the_plan_recommends_bags_and_rho():
    words = ["data=bags", "data.clip=3", "strategy=aggregate", "privacy=aggregate_labels"]
    words += ["participation=full"]
    simulation = Simulation(compose("base", [*words, "partition.num_clients=5", "model=linear"]))
    told = str(simulation.protection.planned())
    assert "smallest" in told and "at this run's k = 4" in told and "n = 328, d = 11" in told


def test_what_is_refused():
    y = torch.randn(12, 1)
    for data, words in (
        (classification(), "data=bags"),
        (bagged(y, size=3), "data.clip"),
        (bagged(y, size=3, clip=1.0, assign="responses"), "data.assign=random"),
    ):
        with pytest.raises(ConfigError, match=words):
            bind(data)
    with pytest.raises(ConfigError, match="devices"):
        data = bagged(y, size=3, clip=1.0)
        AggregateLabels().bind(setting(data, LocalSGD(), deployed=True))


@pytest.mark.parametrize("partition", ["whole", "resampled"])
def test_a_bag_that_several_clients_hold_is_refused(partition):
    words = ["data=bags", "data.clip=3", "strategy=aggregate", "privacy=aggregate_labels"]
    words += ["partition.num_clients=3", f"partition={partition}", "participation=full"]
    simulation = Simulation(compose("base", words))
    with pytest.raises(ConfigError, match="held by several clients"):
        simulation.runtime  # noqa: B018
