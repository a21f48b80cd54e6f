"""Where noise comes from: a keyed generator (simulation) or the operating system's (release).

Every mechanism draws through one `NoiseSource`, so that what a run's statement says about its noise
is said by the object that made it.

    keyed(seed, round, client, purpose)   SFC64 from a key of `fedsim.seeds`: the same key, the same
                                          numbers. Whoever knows the seed can subtract the noise.
    system()                              os.urandom: 64-bit words -> uniforms of 53 bits ->
                                          Box-Muller, in float64. Nothing is kept, nothing can be
                                          repeated.

Both are floating-point Gaussians: their outputs do not fill the real line, and the gaps depend on
the number that they are added to (Mironov 2012). `system(terms=4)` adds four normals and halves the
sum (Holohan and Braghin, 2021, arXiv:2107.10138), which makes that attack's search infeasible but
proves nothing; `privacy.discrete` has noise whose outputs lie on one lattice.

Shapes: P all parameters of one client laid flat; K clients.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ConfigError

KEYED_STATEMENT = "simulation-grade noise (keyed generator): for research, not for release"
SYSTEM_STATEMENT = "noise from the operating system's generator; floating-point Gaussian"
BLOCK = 2**16
"""How many float32 normals are made at once: what is worked on stays in the processor's cache."""
SUMMED_STATEMENT = SYSTEM_STATEMENT + ", each the sum of {terms} divided by {root:g}"


class NoiseSource(Protocol):
    """A stream of random numbers; every call goes on where the last one ended."""

    @property
    def statement(self) -> str:
        """What a privacy statement says about noise from here."""
        ...

    @property
    def reproducible(self) -> bool:
        """Whether the same run gives the same noise again."""
        ...

    def normal(self, size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return `size` independent standard normals, on the CPU."""
        ...

    def words(self, size: int) -> NDArray[np.uint64]:
        """Return `size` independent uniform 64-bit words: all that `privacy.discrete` needs."""
        ...


def keyed(seed: int, server_round: int, client: int, purpose: str) -> NoiseSource:
    """Return the noise of one (seed, round, client, purpose), for simulation.

    Example:
        >>> a, b = keyed(0, 1, 7, "noise"), keyed(0, 1, 7, "noise")
        >>> bool((a.normal(3) == b.normal(3)).all())
        True
    """
    return _Keyed(seed, server_round, client, purpose)


def system(*, terms: int = 1, seed: int | None = None) -> NoiseSource:
    """Return noise from the operating system's generator, for release.

    Args:
        terms: How many normals are added up for each one returned: 1, 4, 9, ... (squares, so that
            the sum is divided by a whole number).
        seed: Must be absent; taken only to refuse it.

    Raises:
        ConfigError: A seed was given, or `terms` is not a square.
    """
    if seed is not None:
        raise ConfigError(
            f"noise from the operating system's generator takes no seed, got {seed}: it can not be "
            "repeated. Leave the seed of the noise out, or take keyed noise and claim nothing"
        )
    if terms < 1 or math.isqrt(terms) ** 2 != terms:
        raise ConfigError(f"terms: {terms!r} is not allowed; type 1, or a square such as 4")
    return _System(terms)


def normal_rows(
    sources: Sequence[NoiseSource], size: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return one row of noise per source, [K, P]; row k is what source k draws alone."""
    noise_KP = torch.empty(len(sources), size, dtype=dtype)
    for row_P, source in zip(noise_KP, sources, strict=True):
        row_P.copy_(source.normal(size, dtype=dtype))
    return noise_KP


def normal_like(source: NoiseSource, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return noise shaped like `tensors`, on their devices: one flat draw, split in their order.

    One draw rather than one per tensor, so that the numbers do not depend on how the parameters are
    cut, and the cohort's [K, P] rows hold the same ones.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
    flat_P = source.normal(sum(tensor.numel() for tensor in tensors.values()), dtype=dtype)
    pieces = torch.split(flat_P, [tensor.numel() for tensor in tensors.values()])
    return {
        name: piece.view(tensor.shape).to(device=tensor.device, dtype=tensor.dtype)
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


class _Keyed:
    """Draws from SFC64, NumPy's fastest generator: half of a private step's time is its noise.

    Two float32 normals take one word of 64 bits, so |noise| <= 6.66 there: one more reason to call
    it simulation-grade.
    """

    statement = KEYED_STATEMENT
    reproducible = True

    def __init__(self, seed: int, server_round: int, client: int, purpose: str) -> None:
        self._bits = np.random.SFC64(seeds.sequence(seed, server_round, client, purpose))

    def normal(self, size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        if dtype == torch.float64:
            return torch.from_numpy(box_muller(self.words(2 * ((size + 1) // 2)))[:size])
        normals = torch.empty(2 * ((size + 1) // 2))
        block: NDArray[np.float32]
        for block in np.split(normals.numpy(), range(BLOCK, len(normals), BLOCK)):
            box_muller_float32(self.words(len(block) // 2), out=block)
        return normals[:size].to(dtype)

    def words(self, size: int) -> NDArray[np.uint64]:
        words: NDArray[np.uint64] = self._bits.random_raw(size)
        return words


class _System:
    """Draws from os.urandom, which the kernel reseeds and nobody can ask for a second time."""

    reproducible = False

    def __init__(self, terms: int) -> None:
        self._terms = terms

    @property
    def statement(self) -> str:
        if self._terms == 1:
            return SYSTEM_STATEMENT
        return SUMMED_STATEMENT.format(terms=self._terms, root=math.sqrt(self._terms))

    def normal(self, size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        total = box_muller(self.words(2 * ((size + 1) // 2)))[:size]
        for _ in range(self._terms - 1):
            total += box_muller(self.words(2 * ((size + 1) // 2)))[:size]
        total /= math.isqrt(self._terms)
        return torch.from_numpy(total).to(dtype)

    def words(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(os.urandom(8 * size), dtype=np.uint64)


def box_muller_float32(words: NDArray[np.uint64], *, out: NDArray[np.float32]) -> None:
    """Turn n uniform words into 2n independent normals, |x| <= 6.66, each of 32 of their bits.

    The uniforms of the radius are (w + 1/2) 2^-31 for 31 bits w: never 0, and finest near 0, where
    the largest normals come from; the angles are w π 2^-31 for 32 bits w with a sign.
    """
    halves = words.view(np.int32)
    first, second = np.split(out, 2)
    radius = (halves[: len(words)] & 0x7FFFFFFF).astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-31)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = halves[len(words) :].astype(np.float32)
    angle *= np.float32(math.pi * 2.0**-31)
    np.cos(angle, out=first)
    first *= radius
    np.sin(angle, out=second)
    second *= radius


def box_muller(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn an even number of uniform words into as many independent normals, |x| <= 8.66.

    The uniforms are (w + 1/2) 2^-53 for the top 53 bits w of a word: never 0, whose logarithm is
    infinite, never 1.
    """
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    half = uniform.size // 2
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
