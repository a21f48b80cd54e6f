import itertools
import math

import numpy as np
import pytest

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.masking import Stage, secure_sum
from privacy.normal import keyed
from privacy.quantise import Lattice
from privacy.secure_aggregation import SecureAggregation, centred

Z = 4.417


def part(**changes: object) -> SecureAggregation:
    keys: dict[str, object] = {
        "lattice": Lattice(dimension=6, clip_norm=1.0, spacing=1 / 64),
        "clients": 5,
        "threshold": 3,
        "noise_multiplier": 0.5,
        "bits": 24,
    }
    return SecureAggregation(**(keys | changes))  # type: ignore[arg-type]


def rows(clients: int, dimension: int = 6) -> np.ndarray:
    rows_KP = seeds.rng(0, 1, 0, "rows").standard_normal((clients, dimension))
    return rows_KP / np.linalg.norm(rows_KP, axis=1, keepdims=True) * 0.9


def sources(clients: int, trial: int = 1):  # type: ignore[no-untyped-def]
    return [keyed(0, trial, c, "encode").words for c in range(clients)]


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_the_fast_sum_is_the_protocols_to_the_bit(noise: str) -> None:
    scheme = part(noise=noise)
    signs = scheme.signs(0, 1)
    encoded_Kd = scheme.encode(rows(5), sources(5), signs)
    for out in itertools.combinations(range(5), 2):
        for stages in itertools.product([Stage.SHARE, Stage.MASK, Stage.UNMASK], repeat=2):
            outcome = secure_sum(
                dict(enumerate(encoded_Kd)),
                threshold=scheme.threshold,
                bits=scheme.bits,
                words=keyed(0, 1, 0, "keys").words,
                dropped=dict(zip(out, stages, strict=True)),
            )
            fast_d = scheme.total(encoded_Kd[list(outcome.survivors)])
            assert (fast_d == outcome.total_P).all()
            assert fast_d.dtype == outcome.total_P.dtype
            decoded = scheme.decode(outcome.total_P, signs)
            assert (decoded == scheme.decode(fast_d, signs)).all()


def test_without_noise_it_is_the_sum_within_the_rounding() -> None:
    scheme = part(noise_multiplier=0.0, lattice=Lattice(dimension=6, clip_norm=1.0, spacing=1e-5))
    signs = scheme.signs(0, 1)
    sum_P = scheme.decode(scheme.total(scheme.encode(rows(5), sources(5), signs)), signs)
    # Each of 5 clients' 8 integers is off by less than one step.
    assert np.linalg.norm(sum_P - rows(5).sum(0)) <= 5 * math.sqrt(8) * 1e-5


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("rotate", [False, True])
def test_the_threshold_of_survivors_carries_the_whole_noise(noise: str, rotate: bool) -> None:
    """With exactly t of n clients left, the sum's noise is z sqrt(B) steps; with all, more."""
    lattice = Lattice(dimension=4096, clip_norm=1.0, spacing=1 / 256, rotate=rotate)
    scheme = part(lattice=lattice, noise=noise, noise_multiplier=0.8)
    signs = scheme.signs(0, 1)
    encoded_Kd = scheme.encode(np.zeros((5, 4096)), sources(5), signs)
    claimed = 0.8 * lattice.sensitivity * lattice.spacing
    assert claimed >= 0.8 * lattice.clip_norm
    for survivors in (3, 5):
        noise_P = scheme.decode(scheme.total(encoded_Kd[:survivors]), signs)
        ratio = (noise_P**2).mean() / (claimed**2 * survivors / 3)
        assert abs(ratio - 1) <= Z * math.sqrt(2 / 4096)


def test_one_client_moves_the_sum_by_at_most_the_sensitivity() -> None:
    """Replay with the same randomness on D and on D without one client."""
    scheme = part(noise_multiplier=0.0)
    signs = scheme.signs(0, 1)
    for trial in range(50):
        encoded_Kd = scheme.encode(1e6 * rows(5), sources(5, trial), signs)
        with_all = centred(scheme.total(encoded_Kd), scheme.bits)
        for k in range(5):
            rest = centred(scheme.total(np.delete(encoded_Kd, k, axis=0)), scheme.bits)
            assert ((with_all - rest) ** 2).sum() <= scheme.lattice.squared_norm
            assert np.abs(with_all - rest).sum() <= scheme.lattice.l1_sensitivity


def test_a_modulus_that_can_wrap_is_refused_and_the_bits_named_do() -> None:
    with pytest.raises(ConfigError, match=r"bits: 8 can wrap.*bits=\d+ would do") as caught:
        part(bits=8)
    needed = int(str(caught.value).split("bits=")[1].split(" ")[0])
    scheme = part(bits=needed)
    assert scheme.needed_bits == needed
    with pytest.raises(ConfigError, match=f"bits={needed} would do"):
        part(bits=needed - 1)
    # By hand: 5 clients at 64 steps, no noise: 320 < 2^9, one more bit for the sign.
    assert part(noise_multiplier=0.0).needed_bits == 10


def test_the_worst_case_fits_the_narrowest_modulus_and_not_one_bit_less() -> None:
    """All clients at their norm along one coordinate."""
    lattice = Lattice(dimension=1, clip_norm=1.0, spacing=1 / 64, rotate=False)
    scheme = part(lattice=lattice, noise_multiplier=0.0, bits=10)
    for sign in (1.0, -1.0):
        encoded_Kd = scheme.encode(np.full((5, 1), sign), sources(5), None)
        assert scheme.decode(scheme.total(encoded_Kd), None) == [5 * sign]
        assert centred(scheme.total(encoded_Kd), 9).item() != 320 * sign  # it would have wrapped


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_noise_stays_within_its_tail(noise: str) -> None:
    scheme = part(
        noise=noise,
        noise_multiplier=2.0,
        lattice=Lattice(dimension=50_000, clip_norm=1.0, spacing=0.5, rotate=False),
    )
    encoded_Kd = scheme.encode(np.zeros((5, 50_000)), sources(5), None)
    worst = int(np.abs(centred(scheme.total(encoded_Kd), scheme.bits)).max())
    assert worst <= scheme.noise_tail
    assert worst > scheme.noise_tail / 4  # a bound that is of some use


def test_the_threshold_cannot_exceed_the_clients() -> None:
    with pytest.raises(ConfigError, match="threshold: 6 is more than the 5 clients"):
        part(threshold=6)
    with pytest.raises(ConfigError, match="threshold"):
        part(threshold=1)
