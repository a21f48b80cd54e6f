import itertools
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedsim import seeds
from fedsim.errors import ConfigError, TooFewClientsError
from privacy import masking
from privacy.masking import (
    AggregationAborted,
    Member,
    Stage,
    modular_sum,
    restore,
    secure_sum,
    split,
)
from privacy.normal import keyed


def vectors(clients: int, size: int = 3, bits: int = 32) -> dict[int, NDArray[np.uint64]]:
    rng = seeds.rng(0, 1, clients, "vectors")
    high = 2**bits - 1
    return {u: rng.integers(0, high, size, dtype=np.uint64, endpoint=True) for u in range(clients)}


def check(clients: int, threshold: int, dropped: dict[int, Stage], bits: int = 32) -> bool:
    """Run one pattern and compare with plain integers; True where it had to abort."""
    given = vectors(clients, bits=bits)
    call = lambda: secure_sum(  # noqa: E731
        given,
        threshold=threshold,
        bits=bits,
        words=keyed(0, 1, 0, "secagg").words,
        dropped=dropped,
    )
    if clients - len(dropped) < threshold:
        with pytest.raises(AggregationAborted, match=f"threshold is {threshold}"):
            call()
        return True
    outcome = call()
    # Who fell silent only at the unmasking had sent its vector: it is in the sum.
    survivors = [u for u in given if dropped.get(u, Stage.UNMASK) == Stage.UNMASK]
    assert list(outcome.survivors) == survivors
    expected = [sum(int(given[u][i]) for u in survivors) % 2**bits for i in range(3)]
    assert outcome.total_P.tolist() == expected
    fast = modular_sum([given[u] for u in survivors], bits)
    assert fast.dtype == outcome.total_P.dtype and (fast == outcome.total_P).all()
    return False


@pytest.fixture
def keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patterns of one test have the same keys (they come from one seed): agree on them once."""
    for name in ("_agree", "_public"):
        monkeypatch.setattr(masking, name, cache(getattr(masking, name)))


@pytest.mark.usefixtures("keys_once")
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("clients", range(2, 9))
def test_every_set_of_clients_dropping_at_every_stage(clients: int, stage: Stage) -> None:
    """Row 19, N = 2 to 8: the exact sum at the threshold and above, abort below."""
    threshold = max(2, clients // 2 + 1)
    aborted = sum(
        check(clients, threshold, dict.fromkeys(out, stage))
        for count in range(clients + 1)
        for out in itertools.combinations(range(clients), count)
    )
    assert 0 < aborted < 2**clients


@pytest.mark.usefixtures("keys_once")
def test_every_mixture_of_stages_among_four() -> None:
    """Five fates for each of four clients: 625 patterns."""
    for fates in itertools.product([None, *Stage], repeat=4):
        check(4, 2, {u: fate for u, fate in enumerate(fates) if fate is not None})


@pytest.mark.parametrize("threshold", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [1, 16, 33, 64])
def test_every_threshold_and_width(threshold: int, bits: int) -> None:
    assert not check(5, threshold, {}, bits)
    for stage in Stage:
        assert check(5, threshold, {4: stage}, bits) == (threshold == 5)


def test_masked_inputs_are_uniform_whatever_they_hide() -> None:
    """Row 19: zeros under their masks pass a chi-square at p > 1e-5, in low and high bits alike."""
    zeros = {u: np.zeros(20_000, dtype=np.uint64) for u in range(3)}
    outcome = secure_sum(
        zeros,
        threshold=2,
        bits=32,
        words=keyed(0, 1, 0, "uniform").words,
        dropped={2: Stage.MASK},
    )
    assert not outcome.total_P.any()
    assert set(outcome.masked) == {0, 1}
    for masked_P in outcome.masked.values():
        for shift in (0, 12, 24):
            byte_P = (masked_P >> np.uint64(shift)).astype(np.int64) & 255
            assert stats.chisquare(np.bincount(byte_P, minlength=256)).pvalue > 1e-5
    # Two clients' masked inputs look independent although they add up to (nearly) nothing.
    nibbles = [(v & np.uint64(15)).astype(np.int64) for v in outcome.masked.values()]
    joint = np.bincount(nibbles[0] * 16 + nibbles[1], minlength=256)
    assert stats.chisquare(joint).pvalue > 1e-5
    # The control: small integers without masks.
    bare = np.arange(20_000) % 100
    assert stats.chisquare(np.bincount(bare, minlength=256)).pvalue < 1e-5


@pytest.mark.parametrize("broken", ["_pair_mask", "_prg"])
def test_a_mask_that_does_not_cancel_is_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the exact sum: masks of a wrong sign, or drawn anew each time."""
    rng = seeds.rng(0, 1, 0, "broken")
    if broken == "_prg":
        wrong = lambda key, size: rng.integers(0, 2**64, size, dtype=np.uint64)  # noqa: E731
    else:
        right = masking._pair_mask
        wrong = lambda a, b, own, other, size: right(a, b, min(own, other), 99, size)  # noqa: E731
    monkeypatch.setattr(masking, broken, wrong)
    with pytest.raises(AssertionError):
        check(3, 2, {})


def test_no_two_rounds_share_a_mask() -> None:
    words = keyed(0, 1, 0, "rounds").words
    given = vectors(2)
    first = secure_sum(given, threshold=2, bits=32, words=words)
    second = secure_sum(given, threshold=2, bits=32, words=words)
    assert (first.total_P == second.total_P).all()
    assert (first.masked[0] != second.masked[0]).any()


def test_the_server_gets_no_share_that_would_bare_a_vector() -> None:
    words = keyed(0, 1, 0, "member").words

    def member() -> Member:
        one = Member(0, words, 32)
        for owner in range(3):
            one.hold(owner, (owner, owner + 10))
        return one

    assert member().reveal([0, 1], [2], 2) == {0: 10, 1: 11, 2: 2}
    with pytest.raises(AggregationAborted, match=r"clients \[1\] on both lists"):
        member().reveal([0, 1], [1, 2], 2)
    with pytest.raises(AggregationAborted, match="1 vectors for a threshold of 2"):
        member().reveal([0], [1, 2], 2)
    asked = member()
    asked.reveal([0, 1], [2], 2)
    with pytest.raises(AggregationAborted, match="again"):
        asked.reveal([0, 2], [1], 2)


def test_shamirs_shares_restore_from_any_threshold_and_not_from_fewer() -> None:
    secret = 2**255 + 12345
    shares = split(secret, [0, 3, 4, 7, 9], 3, keyed(0, 1, 0, "shamir").words)
    for count in (3, 4, 5):
        for held in itertools.combinations(shares, count):
            assert restore({u: shares[u] for u in held}) == secret
    for held in itertools.combinations(shares, 2):
        assert restore({u: shares[u] for u in held}) != secret
    # By hand: f(x) = 7 + a x from f(1), f(2) is 2 f(1) - f(2).
    two = split(7, [0, 1], 2, keyed(0, 1, 0, "line").words)
    assert (2 * two[0] - two[1]) % masking.PRIME == 7
    # Two shares of a threshold of three fit every secret: they say nothing.
    held = {u: shares[u] for u in (0, 3)}
    for guess in (0, 1, secret):
        third = dict(held)
        weights = masking._Restorer([0, 3, 4])._weights
        known = sum(weights[u] * held[u] for u in held)
        third[4] = (guess - known) * pow(weights[4], -1, masking.PRIME) % masking.PRIME
        assert restore(third) == guess


def test_thresholds_and_moduli_out_of_range_are_refused() -> None:
    words = keyed(0, 1, 0, "x").words
    for threshold in (0, 1, 4):
        with pytest.raises(ConfigError, match="threshold"):
            secure_sum(vectors(3), threshold=threshold, bits=32, words=words)
    for bits in (0, 65):
        with pytest.raises(ConfigError, match="bits"):
            modular_sum([np.zeros(1, dtype=np.uint64)], bits)
    assert issubclass(AggregationAborted, TooFewClientsError)
    with pytest.raises(ValueError, match="no vectors"):
        modular_sum([], 32)
