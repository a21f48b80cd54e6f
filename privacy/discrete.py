"""Exact integer noise: discrete Gaussian, discrete Laplace, Poisson, Skellam, from uniform words.

Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy",
arXiv:2004.00010, algorithms 1-3; Agarwal, Kairouz and Liu 2021 for Skellam noise, arXiv:2110.04995.

    discrete Laplace   P[X = x] ~ exp(-|x| / t)
    discrete Gaussian  P[X = x] ~ exp(-x^2 / (2 sigma^2));  Var <= sigma^2;
                       Y from the discrete Laplace of t = floor(sigma) + 1, kept with probability
                       exp(-(|Y| - sigma^2 / t)^2 / (2 sigma^2))
    Skellam            Poisson(v / 2) - Poisson(v / 2);  Var = v

Exact: the probabilities are those above, not those of a floating-point approximation. Every
decision "u < p" for a uniform u of unlimited bits is taken on the first 53 bits and a
double-precision p with its error bound; only where these leave it open (about once in 2^40) are
more bits of u drawn and p computed in as many decimals as it takes.

Privacy, for an integer query of L2 sensitivity D: the discrete Gaussian is (D^2 / 2 sigma^2)-zCDP,
exactly as the continuous one (theorem 4). Sums of discrete Gaussians are not discrete Gaussians
(see `privacy.secure_aggregation`); sums of Skellams are Skellams.

Differs from the paper: rejection runs on whole arrays, and Bernoulli(exp(-x)) is decided by
comparing rather than by algorithm 1's series; sigma^2 is rounded up to a multiple of a power of
two, by less than 2^-34 of itself for sigma >= 1/8.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError

Integers = NDArray[np.int64]
Words = Callable[[int], NDArray[np.uint64]]
"""Uniform 64-bit words: the `words` of a `privacy.normal.NoiseSource`."""

MAX_SIGMA = 2.0**20
MAX_RATE = 2.0**22


def uniform_below(words: Words, bound: int, size: int) -> Integers:
    """Return `size` integers, each uniform on {0, ..., bound - 1} without the bias of a modulus.

    Args:
        words: The source.
        bound: In [1, 2^62].
        size: How many.
    """
    if not 1 <= bound <= 2**62:
        raise ConfigError(f"bound: {bound!r} is out of range; allowed: [1, 2^62]")
    if bound == 1:
        return np.zeros(size, dtype=np.int64)
    shift = np.uint64(64 - (bound - 1).bit_length())
    out = (words(size) >> shift).astype(np.int64)
    wrong = np.flatnonzero(out >= bound)
    while wrong.size:
        out[wrong] = (words(wrong.size) >> shift).astype(np.int64)
        wrong = wrong[out[wrong] >= bound]
    return out


def bernoulli_exp(
    words: Words,
    exponent: NDArray[np.float64],
    exact: Callable[[int], Fraction],
    *,
    slack: float = 2.0**-50,
) -> NDArray[np.bool_]:
    """Return for each x whether a coin of probability exp(-x) came up, exactly.

    Args:
        words: The source.
        exponent: x >= 0 in double precision, within a relative error of 8 * 2^-53.
        exact: x at an index as a fraction.
        slack: Relative error of exp(-x) beyond the one of x; larger asks the slow way more often
            and changes no answer.
    """
    first = words(exponent.size) >> np.uint64(11)
    uniform = first.astype(np.float64) * 2.0**-53
    chance = np.exp(-exponent)
    heads = uniform < chance
    open_ = np.abs(uniform - chance) <= chance * (8 + exponent) * slack + 2.0**-52
    for i in np.flatnonzero(open_):
        heads[i] = _decide_exp(words, int(first[i]), exact(int(i)))
    return heads


def _decide_exp(words: Words, prefix: int, exponent: Fraction) -> bool:
    """Return whether u < exp(-x), where u's first 53 bits are `prefix`, drawing bits as needed."""
    if exponent == 0:
        return True

    def bounds(bits: int) -> tuple[int, int]:
        digits = int(bits * 0.302) + 30
        with decimal.localcontext(
            decimal.Context(prec=digits + len(str(exponent.numerator)))
        ) as at:
            at.Emin, at.Emax = decimal.MIN_EMIN, decimal.MAX_EMAX
            ratio = decimal.Decimal(exponent.numerator) / decimal.Decimal(exponent.denominator)
            scaled = (-ratio).exp() * decimal.Decimal(2**bits)
            return int(scaled) - 1, int(scaled) + 2

    return _decide(words, prefix, bounds)


def _decide(words: Words, prefix: int, bounds: Callable[[int], tuple[int, int]]) -> bool:
    """Return whether u < p, given the first 53 bits of u and integers around p * 2^bits."""
    bits = 53
    while True:
        low, high = bounds(bits)
        if prefix + 1 <= low:
            return True
        if prefix >= high:
            return False
        prefix = (prefix << 64) | int(words(1)[0])
        bits += 64


def _until(size: int, propose: Callable[[int], Integers], yield_: float) -> Integers:
    """Collect the first `size` proposals that were kept."""
    out = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        kept = propose(int((size - done) / yield_ * 1.02) + 16)[: size - done]
        out[done : done + kept.size] = kept
        done += kept.size
    return out


def discrete_laplace(words: Words, scale: Fraction | int | float, size: int) -> Integers:
    """Return `size` integers with P[x] ~ exp(-|x| / scale) (algorithm 2).

    Args:
        words: The source.
        scale: In [2^-20, 2^30], taken as the fraction that it is; a fraction of small terms, such
            as Fraction(3, 2), is fastest.
        size: How many.

    Example:
        >>> from privacy.normal import keyed
        >>> discrete_laplace(keyed(0, 1, 0, "noise").words, 2, 1000).dtype.name
        'int64'
    """
    if not 2.0**-20 <= scale <= 2.0**30:
        raise ConfigError(f"scale: {scale!r} is out of range; allowed: [2^-20, 2^30]")
    # Rounded up where its terms would overflow; noise may only grow.
    ratio = Fraction(scale)
    if ratio.numerator > 2**50 or ratio.denominator > 2**50:
        ratio = Fraction(math.ceil(ratio * 2**20), 2**20)
    top, bottom = ratio.numerator, ratio.denominator
    # The second factor is what is lost to a minus before a zero.
    chance = (1 - math.exp(-1)) * (1 + math.exp(-1 / float(ratio))) / 2
    return _until(size, lambda n: _laplace(words, top, bottom, n), chance)


def _laplace(words: Words, top: int, bottom: int, proposals: int) -> Integers:
    drawn = uniform_below(words, top, proposals)
    rest = drawn[bernoulli_exp(words, drawn / top, lambda i: Fraction(int(drawn[i]), top))]
    # Number of heads before the first tail; 2^10 of them have a probability of e^-1024.
    runs = np.zeros(rest.size, dtype=np.int64)
    going = np.arange(rest.size)
    while going.size:
        going = going[bernoulli_exp(words, np.ones(going.size), lambda _: Fraction(1))]
        runs[going] += 1
    size = (rest + top * runs) // bottom
    negative = (words(size.size) >> np.uint64(63)).astype(np.bool_)
    signed: Integers = np.where(negative, -size, size)[~(negative & (size == 0))]
    return signed


def discrete_gaussian(words: Words, sigma: float, size: int) -> Integers:
    """Return `size` integers with P[x] ~ exp(-x^2 / (2 sigma^2)) (algorithm 3).

    Args:
        words: The source.
        sigma: In [2^-10, 2^20]. The standard deviation is at most this, and as good as equal from 1
            up.
        size: How many.
    """
    if not 2.0**-10 <= sigma <= MAX_SIGMA:
        raise ConfigError(f"sigma: {sigma!r} is out of range; allowed: [2^-10, 2^20]")
    t = math.floor(sigma) + 1
    top, bottom = rational_square(sigma)
    # |Y| t bottom stays below 2^62 for |Y| < 2^10 t, since bottom t^2 <= 2^52.
    scale = 2.0 * top * bottom * float(t) ** 2

    def propose(n: int) -> Integers:
        y = _laplace(words, t, 1, n)
        off = np.abs(y) * (t * bottom) - top
        gamma = off.astype(np.float64) ** 2 / scale
        kept = bernoulli_exp(
            words, gamma, lambda i: Fraction(int(off[i]) ** 2, 2 * top * bottom * t * t)
        )
        return y[kept]

    return _until(size, propose, 0.35)


def rational_square(sigma: float) -> tuple[int, int]:
    """Return sigma^2, rounded up, as (numerator, power of two): the one that is sampled."""
    t = math.floor(sigma) + 1
    bits = min(52 - 2 * (t - 1).bit_length(), 40)
    return math.ceil(Fraction(sigma) ** 2 * 2**bits), 2**bits


def poisson(words: Words, rate: float, size: int) -> Integers:
    """Return `size` draws of a Poisson variable by inversion of its distribution function.

    Args:
        words: The source.
        rate: In (0, 2^22].
        size: How many.
    """
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(f"rate: {rate!r} is out of range; allowed: (0, 2^22]")
    start, below, slack = _poisson_table(rate)
    first = words(size) >> np.uint64(11)
    uniform = first.astype(np.float64) * 2.0**-53
    at = np.searchsorted(below, uniform, side="right")
    # below[j] = P[X < start + j], so `at` counts the bounds passed; the ends bound the table's
    # tails.
    out: Integers = start + at - 1
    near = np.minimum(
        np.abs(uniform - below[np.maximum(at - 1, 0)]),
        np.abs(below[np.minimum(at, below.size - 1)] - uniform),
    )
    for i in np.flatnonzero(near <= slack):
        if uniform[i] < slack and start == 0:
            continue  # below is exactly 0: nothing lies beneath
        out[i] = _decide_poisson(words, int(first[i]), rate)
    return out


@lru_cache(maxsize=8)
def _poisson_table(rate: float) -> tuple[int, NDArray[np.float64], float]:
    """Return (start, P[X < start + j] for j = 0, 1, ..., the error of these)."""
    mode = math.floor(rate)
    reach = math.ceil(14 * math.sqrt(rate)) + 60
    start = max(0, mode - reach)
    up = np.cumprod(np.longdouble(rate) / np.arange(mode + 1, mode + reach, dtype=np.longdouble))
    down = np.cumprod(np.arange(mode, start, -1, dtype=np.longdouble) / np.longdouble(rate))
    mass = np.concatenate([down[::-1], [np.longdouble(1)], up])
    below = np.concatenate([[np.longdouble(0)], np.cumsum(mass)]) / mass.sum()
    error = 8 * mass.size * float(np.finfo(np.longdouble).eps) + 2.0**-51
    return start, below.astype(np.float64), error


def _decide_poisson(words: Words, prefix: int, rate: float) -> int:
    """Return the smallest k with u < P[X <= k], with as many bits of u as it takes."""
    bits = 53
    while True:
        digits = int(bits * 0.302) + 40
        with decimal.localcontext(decimal.Context(prec=digits)) as at:
            at.Emin, at.Emax = decimal.MIN_EMIN, decimal.MAX_EMAX
            exact_rate = decimal.Decimal(rate)
            term = (-exact_rate).exp() * decimal.Decimal(2**bits)
            total = term  # P[X <= k] 2^bits, within far less than `error`
            error = decimal.Decimal("1e-6")
            k = 0
            while total + error <= prefix:
                k += 1
                term *= exact_rate / k
                total += term
            if total - error >= prefix + 1:
                return k
        prefix = (prefix << 64) | int(words(1)[0])
        bits += 64


def skellam(words: Words, variance: float, size: int) -> Integers:
    """Return `size` draws of Skellam noise, a difference of two Poissons of rate variance / 2."""
    return poisson(words, variance / 2, size) - poisson(words, variance / 2, size)


def release_on_lattice(
    value: NDArray[np.float64], sigma: float, spacing: float, words: Words
) -> NDArray[np.float64]:
    """Return `value` on multiples of `spacing`, plus discrete Gaussian noise on the same ones.

    Every output is a multiple of `spacing`, whatever the value was: its low bits say nothing.
    Rounding moves a coordinate by at most spacing / 2, so that the L2 sensitivity of a query of d
    coordinates grows by at most spacing * sqrt(d).

    Args:
        value: The query's answer.
        sigma: Standard deviation, in the units of `value`.
        spacing: A power of two, so that multiplying by it is exact.
        words: The source of the noise.

    Raises:
        ConfigError: The spacing is no power of two, or a value needs more than 52 bits on it.
    """
    if not (spacing > 0 and math.frexp(spacing)[0] == 0.5):
        raise ConfigError(f"spacing: {spacing!r} is not a power of two; type e.g. {2.0**-20!r}")
    step = np.rint(value / spacing)
    if not (np.abs(step) < 2.0**51).all():
        raise ConfigError(f"a value needs more than 52 bits in steps of {spacing!r}; widen spacing")
    noisy = step.astype(np.int64) + discrete_gaussian(words, sigma / spacing, step.size).reshape(
        step.shape
    )
    return noisy.astype(np.float64) * spacing
