"""Every summary at a small size; a new one is put here and inherits the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from privacy.similarity.base import Summary, real
from privacy.similarity.bernstein import Bernstein
from privacy.similarity.classes import PerClass
from privacy.similarity.gaussian_process import GaussianProcess
from privacy.similarity.lsq import LSQ
from privacy.similarity.moments import EvenPower, InnerProduct, SquaredDistance
from privacy.similarity.projection import Projected
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.tree import Tree

KERNELS = (
    *("gaussian", "exponential", "laplace"),
    *("rational_l2", "rational_l2_squared", "rational_l1"),
)
RATIONAL = KERNELS[3:]
POINTS = [[0.1, 0.2], [0.5, 0.5], [0.9, 0.1], [0.3, 0.8], [0.7, 0.7]]

ALL: dict[str, Summary] = {
    "tree": Tree(dimension=3, depth=5),
    "tree, range": Tree(dimension=2, depth=4, low=-1.0, high=2.0),
    "tree, squares": Tree(dimension=3, depth=5, power=2),
    "tree, cubes": Tree(dimension=3, depth=5, power=3),
    "inner product": InnerProduct(dimension=4, radius=0.8),
    "squared, one": SquaredDistance(dimension=1, radius=0.7),
    "squared": SquaredDistance(dimension=5, radius=1.5),
    "even, 2": EvenPower(dimension=2, power=2),
    "even, 4": EvenPower(dimension=3, radius=0.9, power=4),
    "l2": Projected(dimension=4, inner=Tree(dimension=6, depth=4, low=-1, high=1), law="l2"),
    "jl": Projected(dimension=6, inner=RandomFeatures(dimension=3, count=40)),
    "process": GaussianProcess(dimension=2, points=POINTS, bandwidth=0.5),
    "lsq": LSQ(dimension=2, bandwidth=0.4, order=5),
    "bernstein": Bernstein(dimension=2, degree=4, iterations=3),
    "classes, means": PerClass(
        dimension=4, inner=InnerProduct(dimension=3), classes=3, rule="mean"
    ),
    "classes, tree": PerClass(dimension=3, inner=Tree(dimension=2, depth=4), classes=2),
    "classes, features": PerClass(
        dimension=3, inner=RandomFeatures(dimension=2, count=20, bandwidth=0.5), classes=3
    ),
    "classes, add or remove": PerClass(
        dimension=4, inner=InnerProduct(dimension=3), classes=3, relation="add_remove"
    ),
    **{f"{k}, pairs": RandomFeatures(dimension=2, kernel=k, count=30, seed=3) for k in KERNELS},
    **{
        f"{k}, phases": RandomFeatures(dimension=2, kernel=k, count=30, pairs=False)
        for k in ("gaussian", "rational_l1")
    },
    "rational_l2, grid": RandomFeatures(dimension=2, kernel="rational_l2", count=60, terms=19),
}


def records(summary: Summary, number: int, seed: int = 0) -> Tensor:
    """Points of [0, 1]^D, with their class last where there are classes."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(number, summary.dimension, generator=rng, dtype=torch.float64)
    if isinstance(summary, PerClass):
        x[:, -1] = (x[:, -1] * summary.classes).floor()
    return x


def queries(summary: Summary, number: int, seed: int = 1) -> Tensor:
    """Points of [0, 1]^D that a summary answers."""
    if isinstance(summary, GaussianProcess):
        return torch.tensor(summary.points, dtype=torch.float64)
    wide = summary.dimension - isinstance(summary, PerClass)
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(number, wide, generator=rng, dtype=torch.float64)


def noiseless(summary: Summary, x: Tensor, y: Tensor) -> Tensor:
    """The answers to a sum without noise."""
    return summary.answer(summary.prepare(real(summary.sums(x)), len(x)), y)
