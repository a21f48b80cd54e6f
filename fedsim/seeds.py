"""Keyed randomness: every draw is a pure function of (seed, round, client, purpose).

There is no generator state to checkpoint, results do not depend on scheduling, and a client that
runs in another process draws the same numbers. One key costs about 20 µs; of many clients at once
(`rngs`), about 6.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch

SERVER = 2**32 - 1
"""The `client` of a draw that belongs to no client: the partition, the participation, the model."""

_LIMIT = 2**32
_WORD, _STATE = 2**32 - 1, 2**128 - 1


def sequence(seed: int, server_round: int, client: int, purpose: str) -> np.random.SeedSequence:
    """Return the seed sequence of one draw.

    Args:
        seed: The scenario's seed, in [0, 2**32).
        server_round: 0 before the first round, then 1, 2, ...
        client: The client index, or `SERVER`.
        purpose: What the draw is for, e.g. `"batches"`; two purposes never share numbers.

    Raises:
        ValueError: An argument is outside [0, 2**32), where keys would no longer be distinct.
    """
    for value in (seed, server_round, client):
        if not 0 <= value < _LIMIT:
            raise ValueError(f"seed key {(seed, server_round, client)} is outside [0, 2**32)")
    key = (server_round, client, zlib.crc32(purpose.encode()))
    return np.random.SeedSequence(seed, spawn_key=key)


def rng(seed: int, server_round: int, client: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one (seed, round, client, purpose); see `sequence`.

    Example:
        >>> a, b = rng(0, 1, 7, "batches"), rng(0, 1, 7, "batches")
        >>> a.integers(100, size=3).tolist() == b.integers(100, size=3).tolist()
        True
    """
    return np.random.default_rng(sequence(seed, server_round, client, purpose))


def rngs(
    seed: int, server_round: int, clients: np.ndarray, purpose: str
) -> Iterator[np.random.Generator]:
    """Yield what `rng` returns for each of some clients; each is valid until the next is drawn.

    NumPy promises that neither `SeedSequence` nor PCG64 will ever give other numbers (NEP 19), so
    their arithmetic is done here for all clients at once: see O'Neill's `randutils`, and
    `pcg_setseq_128_srandom_r`.
    """
    if len(clients) < 8:  # not worth it
        yield from (rng(seed, server_round, client, purpose) for client in clients.tolist())
        return
    for client in (int(clients.min()), int(clients.max())):
        sequence(seed, server_round, client, purpose)  # checks the key
    bits = np.random.PCG64(0)
    generator = np.random.Generator(bits)
    words = _state_words(seed, server_round, clients, zlib.crc32(purpose.encode()))
    for high, low, inc_high, inc_low in words.tolist():
        inc = ((inc_high << 64 | inc_low) << 1 | 1) & _STATE
        state = ((inc + (high << 64 | low)) * _PCG_MULTIPLIER + inc) & _STATE
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": inc},
            "has_uint32": 0,
            "uinteger": 0,
        }
        yield generator


_PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_HASH_A, _HASH_B = (0x43B0D7E5, 0x931E8875), (0x8B51F9DD, 0x58F38DED)
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715


def _state_words(seed: int, server_round: int, clients: np.ndarray, purpose: int) -> np.ndarray:
    """Return `SeedSequence(...).generate_state(4, np.uint64)` of each client, `[K, 4]`.

    All in 64 bits, of which products and differences need the lower 32 only.
    """
    constant, multiplier = _HASH_A

    def hashed(value: int | np.ndarray) -> int | np.ndarray:
        nonlocal constant
        value = value ^ constant
        constant = constant * multiplier & _WORD
        value = value * constant & _WORD
        return value ^ value >> 16

    def mixed(x: int | np.ndarray, y: int | np.ndarray) -> int | np.ndarray:
        value = (x * _MIX_LEFT & _WORD) - (y * _MIX_RIGHT & _WORD) & _WORD
        return value ^ value >> 16

    # What differs from client to client comes last but one: until then, plain integers do.
    pool = [hashed(word) for word in (seed, 0, 0, 0)]
    for source in range(4):
        for i in range(4):
            if i != source:
                pool[i] = mixed(pool[i], hashed(pool[source]))
    for word in (server_round, clients.astype(np.uint64), purpose):
        pool = [mixed(kept, hashed(word)) for kept in pool]
    constant, multiplier = _HASH_B
    state = [np.asarray(hashed(pool[i % 4]), np.uint64) for i in range(8)]
    pairs = zip(state[0::2], state[1::2], strict=True)
    return np.stack([low | high << np.uint64(32) for low, high in pairs], 1)


def torch_rng(seed: int, server_round: int, client: int, purpose: str) -> torch.Generator:
    """Return a CPU torch generator for one (seed, round, client, purpose); see `sequence`.

    Draws are made on the CPU and moved, so that a GPU run draws the same numbers.
    """
    state = sequence(seed, server_round, client, purpose).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
