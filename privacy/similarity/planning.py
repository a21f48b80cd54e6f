"""How many features, levels or dimensions: the optimum in closed form from n, ε and a target error.

Random features, error of a mean over n records, I features:

    laplace    v/I + c I/(ε n)²     c = 4, 16 (phases: add/remove, replace), 2, 8 (pairs)
               I* = ε n √(v/c), where RMSE* = √(2 v/I*)
    gaussian   v/I + c' z²/n²       c' = 2, 8 (phases), 1, 4 (pairs): flat in I, which is taken
               where the features' part is a quarter of the noise's, if that is worth sending

(c: the noise's number is 2 b² ‖ψ‖², b = L1/ε, ‖ψ‖² = 1/I; c' z² = (L2 z)²/I, or (L2 z/2)²/I
as events count `replace`; z below is the deviation over L2.) v is the variance of one feature's
answer: at most 1 for pairs and 3/2 for phases, far less where records differ, since theirs average.
It cannot be looked up without spending on it; `VARIANCE` is a round number for scattered data.

With a target, the fewest features that reach it. Trees: the fewest levels whose error, at most half
a leaf a dimension, is below a tenth of the noise's deviation. Johnson-Lindenstrauss: squared
distances keep within a factor 1 ± η but for √(2/k) in deviation, so k = 2/η².

Differs from the paper (which has orders of magnitude): constants.
"""

from __future__ import annotations

import math

from fedsim.errors import ConfigError
from fedsim.protection.statement import Relation
from privacy.similarity.noise import Law, noise_for
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.tree import Tree

VARIANCE = 0.1
LARGEST = 8192
"""Features that are worth sending, unless asked for: 64 KiB a client."""


def laplace_cost(*, pairs: bool, relation: Relation) -> int:
    """Return c."""
    return (2 if pairs else 4) * (4 if relation == "replace_one" else 1)


def feature_count(
    *,
    records: int,
    law: Law,
    epsilon: float,
    delta: float,
    relation: Relation,
    pairs: bool = True,
    variance: float = VARIANCE,
    target: float | None = None,
) -> int:
    """Return I, even.

    Args:
        records: n.
        law: Of the noise.
        epsilon: Of the noise.
        delta: Of the noise.
        relation: Of the noise.
        pairs: See `random_features`.
        variance: v.
        target: Root mean squared error of a mean that is good enough; None for the least error.

    Raises:
        ConfigError: No number of features reaches the target.

    Example:
        >>> feature_count(records=8000, law="laplace", epsilon=0.5, delta=0.0,
        ...               relation="add_remove", pairs=False, variance=0.084)
        580
    """
    noise = _noise_variance(
        records, law=law, epsilon=epsilon, delta=delta, relation=relation, pairs=pairs
    )
    if law == "laplace":
        best = math.sqrt(variance / noise)
        least = 2 * variance / best
    else:
        best = min(LARGEST, max(2.0, 4 * variance / noise))
        least = variance / best + noise
    if target is None:
        return _even(best)
    if target**2 < least:
        raise ConfigError(
            f"target: {target:g} is out of reach: the least error for {records} records at epsilon "
            f"{epsilon:g} is {math.sqrt(least):.3g}; raise one of them, or the target"
        )
    if law == "gaussian":
        return _even(variance / (target**2 - noise))
    # The smaller root of v/I + noise·I = target².
    root = math.sqrt(max(0.0, target**4 - 4 * variance * noise))
    return _even(2 * variance / (target**2 + root))


def predicted_error(
    count: int,
    *,
    records: int,
    law: Law,
    epsilon: float,
    delta: float,
    relation: Relation,
    pairs: bool = True,
    variance: float = VARIANCE,
) -> float:
    """Return the root mean squared error of a mean with I features."""
    noise = _noise_variance(
        records, law=law, epsilon=epsilon, delta=delta, relation=relation, pairs=pairs
    )
    return math.sqrt(variance / count + noise * (count if law == "laplace" else 1))


def tree_depth(
    *, dimension: int, records: int, law: Law, epsilon: float, delta: float, relation: Relation
) -> int:
    """Return h; never more than the paper's ⌈log2 n⌉.

    Example:
        >>> tree_depth(dimension=16, records=2**20, law="laplace", epsilon=0.1, delta=0.0,
        ...            relation="replace_one")
        13
    """
    deepest = max(1, min(24, math.ceil(math.log2(max(2, records)))))
    for depth in range(1, deepest):
        tree = Tree(dimension=dimension, depth=depth)
        noise = noise_for(tree, law, epsilon=epsilon, delta=delta, relation=relation)
        # Of all dimensions: D n/(2M) at the most, and a gain of √(D/2).
        if records * dimension / 2 / tree.leaves <= noise.deviation * math.sqrt(dimension / 2) / 10:
            return depth
    return deepest


def projection_size(distortion: float) -> int:
    """Return k, for squared distances within 1 ± η in standard deviation.

    Example:
        >>> projection_size(0.1)
        200
    """
    return math.ceil(2 / distortion**2 - 1e-9)


def _noise_variance(
    records: int, *, law: Law, epsilon: float, delta: float, relation: Relation, pairs: bool
) -> float:
    """Return the variance of a mean's noise: per feature for Laplace, in all for Gaussian."""
    if law == "laplace":
        return laplace_cost(pairs=pairs, relation=relation) / (epsilon * records) ** 2
    one = RandomFeatures(dimension=1, count=2, pairs=pairs)
    noise = noise_for(one, law, epsilon=epsilon, delta=delta, relation=relation)
    return (noise.scale / records) ** 2 / 2


def _even(count: float) -> int:
    return max(2, 2 * round(count / 2))
