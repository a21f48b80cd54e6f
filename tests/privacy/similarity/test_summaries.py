"""What holds of every summary: exact sums, proved sensitivities, the noise that is foretold."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fedsim.errors import ConfigError
from privacy.normal import keyed
from privacy.similarity.base import Summary, real
from privacy.similarity.bernstein import Bernstein
from privacy.similarity.classes import PerClass
from privacy.similarity.fixed_point import UNIT
from privacy.similarity.gaussian_process import GaussianProcess
from privacy.similarity.kinds import KINDS, from_json
from privacy.similarity.lsq import LSQ
from privacy.similarity.noise import Noise
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.tree import Tree
from tests.privacy.similarity._all import ALL, noiseless, queries, records

every = pytest.mark.parametrize("summary", ALL.values(), ids=ALL)
RELATIONS = ("add_remove", "replace_one")


def test_all_kinds_are_tried() -> None:
    assert {type(summary) for summary in ALL.values()} == set(KINDS.values())


@every
def test_a_sum_does_not_depend_on_who_holds_what(summary: Summary) -> None:
    """To the bit: in one piece, one by one, in ragged pieces and in another order."""
    x = records(summary, 61)
    x[7, 0], x[8, 0], x[9] = math.nan, math.inf, 1e30  # whatever a client holds
    whole = summary.sums(x)
    assert whole.dtype == torch.int64
    assert whole.shape == (summary.size,)
    for split in ([1] * 61, [7, 1, 12, 0, 10, 3, 25, 3]):
        assert torch.equal(sum(summary.sums(part) for part in x.split(split)), whole)
    order = torch.randperm(61, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sum(summary.sums(part) for part in x[order].split(20)), whole)
    assert torch.equal(summary.sums(x.float().double()), summary.sums(x.float()))


@every
def test_json_makes_the_same_summary(summary: Summary) -> None:
    again = from_json(json.loads(json.dumps(summary.to_json())))
    assert again == summary
    x = records(summary, 5)
    assert torch.equal(again.sums(x), summary.sums(x))


def moved(summary: Summary, x: torch.Tensor, other: torch.Tensor, relation: str) -> tuple:
    """How far a sum moves when x leaves, or becomes the other, in the norms of the claims."""
    change = summary.sums(x[None]).double()
    if relation == "replace_one":
        change = change - summary.sums(other[None]).double()
    change *= UNIT
    if isinstance(summary, GaussianProcess):  # in the norm of its noise; no claim in L1
        white = torch.linalg.solve_triangular(summary.colour, change[:, None], upper=False)
        return 0.0, float(white.norm())
    return float(change.abs().sum()), float(change.norm())


def worst(summary: Summary, relation: str, norm: int) -> float:
    """The largest move found: 200 pairs, random and at corners, then climbing from the best."""
    rng = torch.Generator().manual_seed(5)

    def draw() -> torch.Tensor:
        x = torch.rand(summary.dimension, generator=rng, dtype=torch.float64)
        x = 6 * x - 3 if torch.rand((), generator=rng) < 0.5 else x
        corner = torch.rand(summary.dimension, generator=rng) < torch.rand((), generator=rng)
        return torch.where(corner, torch.where(x > 0.5, 9.0, -9.0), x)

    def labelled(x: torch.Tensor) -> torch.Tensor:
        if isinstance(summary, PerClass):
            x[-1] = torch.randint(summary.classes, (), generator=rng)
        return x

    pairs = [(labelled(draw()), labelled(draw())) for _ in range(100)]
    pairs += [(x, labelled(-x.clone())) for x, _ in pairs]
    found = [(moved(summary, *pair, relation)[norm], i) for i, pair in enumerate(pairs)]
    best, at = max(found)
    x, other = pairs[at]
    for step in range(60):
        size = 3 * 0.92**step
        trial = [
            labelled(p + size * torch.randn(p.shape, generator=rng, dtype=torch.float64)
                     * (torch.rand(p.shape, generator=rng) < 0.5))
            for p in (x, other)
        ]  # fmt: skip
        value = moved(summary, *trial, relation)[norm]
        if value > best:
            best, (x, other) = value, trial
    return best


CLAIMS = [
    pytest.param(summary, relation, id=f"{name}-{relation}")
    for name, summary in ALL.items()
    for relation in RELATIONS
    # The counts of classes are weighted for one relation.
    if not isinstance(summary, PerClass) or summary.relation == relation
]


@pytest.mark.parametrize(("summary", "relation"), CLAIMS)
def test_no_pair_of_records_exceeds_the_sensitivity(summary: Summary, relation: str) -> None:
    norms = [1] if isinstance(summary, GaussianProcess) else [0, 1]
    for norm in norms:
        bound = (summary.l1, summary.l2)[norm](relation)
        found = worst(summary, relation, norm)
        assert found <= bound * (1 + 1e-12)
        tight = isinstance(summary, Tree) or "moments" in type(summary).__module__
        assert found >= (0.7 if tight else 0.3) * bound, f"{found / bound:.2f} of the bound"


@every
def test_errors_are_those_of_the_noise(summary: Summary) -> None:
    """The deviation of answers over 200 draws is what `gain` says; an upper bound for powers."""
    x, y = records(summary, 40), queries(summary, 5)
    noise = Noise(law="gaussian", scale=3.0)
    sums = summary.sums(x)
    plain = noiseless(summary, x, y)
    drawn = []
    for k in range(200):
        noisy = real(sums + noise.draw(summary, keyed(0, 1, k, "test")))
        if isinstance(summary, PerClass):  # counts apart: their noise is not in `gain`
            noisy[-summary.classes :] = real(sums)[-summary.classes :]
        drawn.append(summary.answer(summary.prepare(noisy, len(x)), y) - plain)
    gain = summary.gain(y)
    measured = torch.stack(drawn).square().mean(0).sqrt() / noise.scale
    ratio = measured / (gain[:, None] if measured.dim() == 2 else gain)
    low, high = (0.2, 1.2) if getattr(summary, "power", 1) > 1 else (0.8, 1.2)
    if type(summary).__name__ == "EvenPower":
        low = 0.8
    assert ratio.min() > low, ratio
    assert ratio.max() < high, ratio


@pytest.mark.parametrize(
    "summary",
    [
        *(LSQ(dimension=d, bandwidth=0.3, order=order) for d, order in ((1, 3), (2, 4), (3, 5))),
        Bernstein(dimension=1, bandwidth=0.5, degree=12, iterations=3),
        Bernstein(dimension=2, kernel="laplace", degree=6, iterations=2),
    ],
)
def test_without_noise_baselines_err_by_their_bound_at_most(summary: Summary) -> None:
    x, y = records(summary, 50), queries(summary, 40)
    for rows in (x, x[:1].expand(50, -1)):  # scattered, or all at one place: the worst case
        error = (noiseless(summary, rows, y) - summary.exact(rows, y)).abs()
        bound = summary.apart(summary.prepare(real(summary.sums(rows)), 50), y, 0.0)
        assert (error <= bound * 1.02 + 1e-6).all()
    assert float(bound.max()) < 45  # of 50: it says something
    assert float((error / bound).max()) > 0.02


def test_classes_of_features_state_the_features_error() -> None:
    """That of each class is what its own records' sum alone would state."""
    inner = RandomFeatures(dimension=2, count=40, bandwidth=0.5)
    summary = PerClass(dimension=3, inner=inner, classes=3)
    x, y = records(summary, 60), queries(summary, 7)
    _, found = summary.errors(summary.prepare(real(summary.sums(x)), 60), y, 0.0)
    for c in range(3):
        own = x[x[:, -1] == c, :-1]
        alone = inner.apart(inner.prepare(real(inner.sums(own)), len(own)), y, 0.0) / len(own)
        assert torch.allclose(found[:, c], alone, atol=1e-9)
    assert float(found.min()) > 0


def test_laplace_noise_has_its_law() -> None:
    summary, noise = Tree(dimension=4, depth=12), Noise(law="laplace", scale=2.5)
    drawn = real(noise.draw(summary, keyed(1, 1, 1, "test")))
    assert float(drawn.abs().mean()) == pytest.approx(2.5, rel=0.03)  # its mean size is b
    assert float(drawn.std()) == pytest.approx(noise.deviation, rel=0.04)
    assert float((drawn.abs() > 5).double().mean()) == pytest.approx(math.exp(-2), rel=0.06)
    with pytest.raises(ConfigError, match="noise=gaussian"):
        noise.draw(summary, keyed(1, 1, 1, "test"), share=3)


def test_shares_add_up_to_the_noise() -> None:
    summary, noise = Tree(dimension=4, depth=12), Noise(law="gaussian", scale=2.0)
    shares = [noise.draw(summary, keyed(1, 1, k, "test"), share=5) for k in range(5)]
    assert float(real(sum(shares)).std()) == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Tree(dimension=2, depth=3, low=1.0, high=1.0), "allowed: low < high"),
        (lambda: Tree(dimension=2**9, depth=20), "project the data to fewer dimensions"),
        (lambda: LSQ(dimension=9), "use random features"),
        (lambda: Bernstein(dimension=4, degree=30), "lower the degree"),
        (lambda: GaussianProcess(dimension=2, points=[[1.0]]), "not all of 2 numbers"),
        (lambda: from_json({"kind": "Treee"}), "did you mean 'Tree'"),
        (lambda: from_json({"kind": "Tree", "depth": 3}), "Tree has the fields"),
        (lambda: from_json(7), "is no summary"),
        (lambda: Tree(dimension=2, depth=3).sums(torch.zeros(4, 3)), r"give \[number, 2\]"),
        (lambda: GaussianProcess(dimension=1, points=[[1.0]]).l1("replace_one"), "noise=gaussian"),
    ],
)
def test_what_cannot_be_is_refused(make, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
