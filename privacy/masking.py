"""The sum of integers that nobody shows: masks that cancel, secrets shared against dropout.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (ePrint
2017/281), figure 4, the variant against a server that follows the protocol and looks.

    0 advertise   every client makes a key pair and sends the public key
    1 share       ... splits its private key and a seed b_u among all, any t of n of them restore it
    2 mask        ... sends  y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)
                  mod 2^b with s_uv = s_vu agreed with every client that shared
    3 unmask      ... gives its shares: of b_v for those that sent y_v, of the private key for those
                  that shared and did not; never both for one client, which would bare x_v
    server        sum of y over those that sent it, less their PRG(b_v), less the half-cancelled
                  PRG(s_uv) of those that did not: sum of x mod 2^b. Fewer than t at any stage: no
                  sum at all.

Real here: X25519 key agreement, SHA-256, AES-256 in counter mode as the PRG, Shamir's shares over
the field of 2^521 - 1, arithmetic mod 2^b, and every message of the four stages. Simulated: one
process holds every client's secrets, so nothing is hidden from it; shares pass in the clear instead
of encrypted to their holder; there are no signatures and no consistency check, which a server that
lies would need.

Differs from the paper: one key pair per client instead of two, as nothing is encrypted.

Shapes: P numbers per client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedsim.errors import ConfigError, TooFewClientsError
from privacy.discrete import Words

PRIME = 2**521 - 1
_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class Stage(IntEnum):
    """Where a client stops answering: it does not send the message of this stage or a later one."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    UNMASK = 3


class AggregationAborted(TooFewClientsError):
    """Fewer clients than the threshold are left; the sum must not and cannot be restored."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the server has at the end.

    Attributes:
        total_P: The sum mod 2^bits of the survivors' vectors.
        survivors: The clients whose vectors are in it, in order.
        masked: What each of them sent: all that the server saw of its vector.
    """

    total_P: NDArray[np.uint64]
    survivors: tuple[int, ...]
    masked: Mapping[int, NDArray[np.uint64]]


def modular_sum(vectors: Iterable[NDArray[np.uint64]], bits: int) -> NDArray[np.uint64]:
    """Return the sum mod 2^bits: what `secure_sum` ends with, for one addition per number.

    The simulator's way: bit for bit the result of the protocol with the same survivors.
    """
    total_P: NDArray[np.uint64] | None = None
    for vector_P in vectors:
        # uint64 wraps at 2^64, of which 2^bits is a divisor.
        total_P = vector_P.copy() if total_P is None else np.add(total_P, vector_P, out=total_P)
    if total_P is None:
        raise ValueError("the sum of no vectors has no length")
    return total_P & modulus_mask(bits)


def secure_sum(
    vectors: Mapping[int, NDArray[np.uint64]],
    *,
    threshold: int,
    bits: int,
    words: Words,
    dropped: Mapping[int, Stage] | None = None,
) -> Outcome:
    """Run the four stages among the clients of `vectors`, and return what the server learns.

    Args:
        vectors: Each client's numbers mod 2^bits, all of one length.
        threshold: t: how many clients it takes at every stage, >= 2.
        bits: b of the modulus 2^b, 1 to 64.
        words: The source of keys, seeds and shares; keys are made anew by every call, since a
            pair's mask may hide one vector only.
        dropped: The clients that stop answering, and where.

    Raises:
        AggregationAborted: Fewer than `threshold` are left at some stage.
    """
    if not 2 <= threshold <= len(vectors):
        raise ConfigError(
            f"threshold: {threshold} is out of range for {len(vectors)} clients; "
            f"allowed: [2, {len(vectors)}], as a threshold of 1 would bare a single client"
        )
    last = dropped or {}
    members = {u: Member(u, words, bits) for u in sorted(vectors)}

    def answer(asked: Iterable[int], stage: Stage) -> list[int]:
        left = [u for u in asked if u not in last or last[u] > stage]
        if len(left) < threshold:
            raise AggregationAborted(
                f"{len(left)} clients are left at stage '{stage.name.lower()}', the threshold is "
                f"{threshold}: the round has no sum. Plan for more clients, or lower the threshold "
                "and size the noise for it"
            )
        return left

    keyed = answer(members, Stage.ADVERTISE)
    public = {u: members[u].public_key for u in keyed}

    sharing = answer(keyed, Stage.SHARE)
    for u in sharing:
        for holder, pair in members[u].share(keyed, threshold).items():
            members[holder].hold(u, pair)

    sending = answer(sharing, Stage.MASK)
    masked = {u: members[u].masked(vectors[u], {v: public[v] for v in sharing}) for u in sending}
    total_P = modular_sum(masked.values(), bits)

    unmasking = answer(sending, Stage.UNMASK)
    silent = sorted(set(sharing) - set(sending))
    revealed = {u: members[u].reveal(sending, silent, threshold) for u in unmasking}
    restore = _Restorer(unmasking[:threshold])
    for v in sending:
        seed = restore({u: revealed[u][v] for u in restore.holders})
        total_P -= _prg(_to_bytes(seed), total_P.size)
    for v in silent:
        private = _to_bytes(restore({u: revealed[u][v] for u in restore.holders}))
        for u in sending:
            # What u added for v has no partner; v's own mask for u would have been its negative.
            total_P += _pair_mask(private, public[u], v, u, total_P.size)
    return Outcome(total_P=total_P & modulus_mask(bits), survivors=tuple(sending), masked=masked)


class Member:
    """One client's half of the protocol, with the secrets that a simulation holds for it."""

    def __init__(self, index: int, words: Words, bits: int) -> None:
        self.index = index
        self._bits = bits
        self._words = words
        self._private = words(4).tobytes()
        self._seed = words(4).tobytes()
        self._held: dict[int, tuple[int, int]] = {}
        self._answered = False
        self.public_key = _public(self._private)

    def share(self, holders: Sequence[int], threshold: int) -> dict[int, tuple[int, int]]:
        """Return for each holder its share of the private key and its share of the seed."""
        keys = split(_to_int(self._private), holders, threshold, self._words)
        seeds = split(_to_int(self._seed), holders, threshold, self._words)
        return {holder: (keys[holder], seeds[holder]) for holder in holders}

    def hold(self, owner: int, pair: tuple[int, int]) -> None:
        """Keep the shares that `owner` gave to this client."""
        self._held[owner] = pair

    def masked(
        self, vector_P: NDArray[np.uint64], public: Mapping[int, bytes]
    ) -> NDArray[np.uint64]:
        """Return the vector under its own mask and one per other client that shared."""
        masked_P = vector_P + _prg(self._seed, vector_P.size)
        for other, key in public.items():
            if other != self.index:
                masked_P += _pair_mask(self._private, key, self.index, other, vector_P.size)
        return masked_P & modulus_mask(self._bits)

    def reveal(self, sent: Sequence[int], silent: Sequence[int], threshold: int) -> dict[int, int]:
        """Return shares of the seed of those that sent, of the private key of those that did not.

        Raises:
            AggregationAborted: The request would bare a vector: too few sent one, a client is on
                both lists, or it is the second request.
        """
        both = set(sent) & set(silent)
        if both or len(sent) < threshold or self._answered:
            raise AggregationAborted(
                f"client {self.index} keeps its shares: {len(sent)} vectors for a threshold of "
                f"{threshold}, clients {sorted(both)} on both lists, asked "
                f"{'again' if self._answered else 'once'}"
            )
        self._answered = True
        seeds = {v: self._held[v][1] for v in sent}
        return seeds | {v: self._held[v][0] for v in silent}


def modulus_mask(bits: int) -> np.uint64:
    """Return 2^bits - 1, which takes a number mod 2^bits."""
    if not 1 <= bits <= 64:
        raise ConfigError(f"bits: {bits!r} is out of range; allowed: [1, 64]")
    return np.uint64(2**bits - 1)


def split(secret: int, holders: Sequence[int], threshold: int, words: Words) -> dict[int, int]:
    """Return Shamir's shares: any `threshold` of them give the secret, fewer say nothing of it.

    The share of holder h is f(h + 1) for a random polynomial f of degree threshold - 1 with f(0)
    the secret, over the integers mod 2^521 - 1.
    """
    coefficients = [secret, *(_field_element(words) for _ in range(threshold - 1))]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * (holder + 1) + coefficient) % PRIME
        shares[holder] = value
    return shares


class _Restorer:
    """Lagrange interpolation at 0 from one set of holders; its weights are worked out once."""

    def __init__(self, holders: Sequence[int]) -> None:
        self.holders = tuple(holders)
        self._weights = {}
        for u in self.holders:
            above = below = 1
            for v in self.holders:
                if v != u:
                    above = above * (v + 1) % PRIME
                    below = below * (v - u) % PRIME
            self._weights[u] = above * pow(below, -1, PRIME) % PRIME

    def __call__(self, shares: Mapping[int, int]) -> int:
        return sum(self._weights[u] * shares[u] for u in self.holders) % PRIME


def restore(shares: Mapping[int, int]) -> int:
    """Return the secret from exactly as many shares as the threshold, or more."""
    return _Restorer(list(shares))(shares)


def _field_element(words: Words) -> int:
    while True:
        value = _to_int(words(9).tobytes()) >> (9 * 64 - 521)
        if value < PRIME:
            return value


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(*_RAW)


def _agree(private: bytes, public: bytes) -> bytes:
    """Return what the two owners of a pair of keys both get, and nobody else."""
    own = X25519PrivateKey.from_private_bytes(private)
    return own.exchange(X25519PublicKey.from_public_bytes(public))


def _pair_mask(
    private: bytes, public: bytes, own: int, other: int, size: int
) -> NDArray[np.uint64]:
    """Return what `own` adds for `other`: the pair's mask, negative for the larger index."""
    key = hashlib.sha256(b"fedsim pairwise mask" + _agree(private, public)).digest()
    mask_P = _prg(key, size)
    return mask_P if own < other else np.negative(mask_P)


def _prg(key: bytes, size: int) -> NDArray[np.uint64]:
    """Return `size` words of AES-256 in counter mode; the key is never used for anything else."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * size)), dtype=np.uint64)


def _to_int(value: bytes) -> int:
    return int.from_bytes(value, "little")


def _to_bytes(value: int) -> bytes:
    return value.to_bytes(32, "little")
