import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from privacy.matrix_noise import CorrelatedNoise, RunningNoise
from privacy.normal import keyed

CASES = [
    {"kind": "banded"},
    {"kind": "banded", "bands": 1},
    {"kind": "banded", "max_participations": 3, "min_separation": 3},
    {"kind": "banded", "max_participations": 2, "min_separation": 4, "bands": 2},
    {"kind": "banded", "max_participations": 3, "min_separation": 2, "bands": 5},
    {"kind": "banded", "max_participations": 9, "min_separation": 1, "bands": 4},
    {"kind": "tree"},
    {"kind": "tree", "restart": 4},
    {"kind": "tree", "restart": 1, "max_participations": 9},
    {"kind": "tree", "max_participations": 3, "min_separation": 3},
    {"kind": "tree", "max_participations": 4, "min_separation": 2, "restart": 6},
]


def case_id(case: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in case.items())


def encoder(noise: CorrelatedNoise) -> np.ndarray:
    """C, dense, by its definition and not by the code's recursions."""
    n = noise.rounds
    C_nn = np.zeros((n, n))
    for t in range(1, n + 1):
        if noise.kind == "banded":
            for j in range(min(noise.width, t)):
                C_nn[t - 1, t - 1 - j] = math.comb(2 * j, j) / 4**j  # of (1 - x)^(-1/2)
        else:
            size = noise.tree_rounds
            within = (t - 1) % size + 1
            node = max(2**level for level in range(20) if within % 2**level == 0)
            C_nn[t - 1, t - node : t] = 1.0
    return C_nn


def brute_force(C_nn: np.ndarray, k: int, b: int) -> float:
    """The largest || sum of columns ||, over every way to take part (C is not negative)."""
    n = len(C_nn)
    best = 0.0
    for count in range(1, k + 1):
        for rounds in itertools.combinations(range(n), count):
            if all(later - earlier >= b for earlier, later in itertools.pairwise(rounds)):
                best = max(best, float(np.linalg.norm(C_nn[:, rounds].sum(axis=1))))
    return best


def unit(n: int) -> "torch.Tensor":
    return torch.eye(n, dtype=torch.float64)


def produced(noise: CorrelatedNoise) -> np.ndarray:
    """The matrix that the code applies: row t, fed with the unit vectors as draws."""
    rows_nn = unit(noise.rounds)
    return np.stack(
        [noise.round_noise(lambda r: rows_nn[r - 1], t + 1).numpy() for t in range(noise.rounds)]
    )


@pytest.mark.parametrize("n", [1, 2, 7, 8, 12])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_noise_is_the_inverse_of_the_encoder_times_fresh_rows(
    case: dict[str, object], n: int
) -> None:
    noise = CorrelatedNoise(rounds=n, **case)  # type: ignore[arg-type]
    np.testing.assert_allclose(produced(noise) @ encoder(noise), np.eye(n), atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 7, 9])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_participation_moves_more_than_the_sensitivity(case: dict[str, object], n: int) -> None:
    noise = CorrelatedNoise(rounds=n, **case)  # type: ignore[arg-type]
    worst = brute_force(encoder(noise), noise.max_participations, noise.min_separation)
    if noise.kind == "banded" or noise.max_participations == 1:
        assert noise.sensitivity == pytest.approx(worst, rel=1e-12)
    else:
        assert worst <= noise.sensitivity * (1 + 1e-12)


@pytest.mark.parametrize("directions", range(5))
def test_vectors_of_any_directions_move_no_more(directions: int) -> None:
    """Contributions that differ from round to round, not only the same one each time."""
    noise = CorrelatedNoise(kind="banded", rounds=12, max_participations=4, min_separation=3)
    u_S3 = keyed(0, 1, directions, "u").normal(12, dtype=torch.float64).reshape(4, 3).numpy()
    u_S3 /= np.linalg.norm(u_S3, axis=1, keepdims=True)
    moved = np.linalg.norm(encoder(noise)[:, [0, 3, 6, 9]] @ u_S3)
    assert moved <= noise.sensitivity * (1 + 1e-12)


def test_by_hand() -> None:
    """c = 1, 1/2, 3/8: y_3 = z_3 - y_2 / 2 - 3 y_1 / 8 with y_2 = z_2 - z_1 / 2."""
    noise = CorrelatedNoise(kind="banded", rounds=3)
    z = {1: 8.0, 2: 16.0, 3: 32.0}
    y = [float(noise.round_noise(lambda r: torch.tensor([z[r]]), t)) for t in (1, 2, 3)]
    assert y == [8.0, 12.0, 23.0]
    assert noise.sensitivity == pytest.approx(math.sqrt(1 + 1 / 4 + 9 / 64))
    # Tree: prefix noise is z_1, z_2, z_2 + z_3 (rounds 1-2 are one node), z_4.
    tree = CorrelatedNoise(kind="tree", rounds=4)
    z = {1: 1.0, 2: 10.0, 3: 100.0, 4: 1000.0}
    y = [float(tree.round_noise(lambda r: torch.tensor([z[r]]), t)) for t in (1, 2, 3, 4)]
    assert np.cumsum(y).tolist() == [1.0, 10.0, 110.0, 1000.0]
    assert tree.sensitivity == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_order_and_resumed_it_is_the_same_to_the_bit(case: dict[str, object]) -> None:
    noise = CorrelatedNoise(rounds=10, **case)  # type: ignore[arg-type]
    draw = lambda r: keyed(0, r, 0, "rows").normal(50)  # noqa: E731
    running = noise.start(draw)
    for t in range(1, 11):
        if t == 6:  # as from a checkpoint
            running = RunningNoise(noise, draw, state=running.state, done=5)
        assert torch.equal(running(t), noise.round_noise(draw, t))
        open_nodes = ((t - 1) % noise.tree_rounds + 1).bit_count()
        kept = min(t, noise.width - 1) if noise.kind == "banded" else open_nodes
        assert len(running.state) == kept
    with pytest.raises(ValueError, match="after round 10"):
        running(3)
    with pytest.raises(ConfigError, match="rounds 1 to 10"):
        running(11)
    with pytest.raises(ConfigError, match="round 0"):
        noise.round_noise(draw, 0)


def test_rows_and_state_are_not_shared_with_the_caller() -> None:
    """What is returned may be scaled in place; neither the draws nor later rounds notice."""
    rows = {r: torch.full((2,), float(r)) for r in range(1, 9)}
    for case in ({"kind": "banded"}, {"kind": "tree"}):
        noise = CorrelatedNoise(rounds=8, **case)  # type: ignore[arg-type]
        running = noise.start(rows.__getitem__)
        for t in range(1, 9):
            given = running(t)
            assert torch.equal(given, noise.round_noise(rows.__getitem__, t))
            given.zero_()
    assert all(bool((row == r).all()) for r, row in rows.items())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_order_every_row_is_drawn_once(case: dict[str, object]) -> None:
    """So that noise that nobody can draw again, the operating system's, is the same mechanism."""
    noise = CorrelatedNoise(rounds=12, **case)  # type: ignore[arg-type]
    rows_nn, asked = unit(12), []

    def draw(row: int) -> Tensor:
        asked.append(row)
        return rows_nn[row - 1]

    running = noise.start(draw)
    applied = np.stack([running(t).numpy() for t in range(1, 13)])
    assert asked == list(range(1, 13))
    np.testing.assert_array_equal(applied, produced(noise))


def test_the_tree_draws_few_rows() -> None:
    noise = CorrelatedNoise(kind="tree", rounds=1024)
    for t in (1, 2, 3, 512, 777, 1024):
        asked: list[int] = []

        def draw(row: int, asked: list[int] = asked) -> Tensor:
            asked.append(row)
            return torch.zeros(1)

        noise.round_noise(draw, t)
        assert len(asked) <= math.log2(t) + 1


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_covariance_of_drawn_noise(case: dict[str, object]) -> None:
    """Not through unit vectors: 40,000 keyed draws per row, against C^-1 C^-T."""
    noise = CorrelatedNoise(rounds=6, **case)  # type: ignore[arg-type]
    samples = 40_000
    running = noise.start(lambda r: keyed(0, r, 0, "rows").normal(samples, dtype=torch.float64))
    y_nS = torch.stack([running(t) for t in range(1, 7)]).numpy()
    inverse = np.linalg.inv(encoder(noise))
    expected = inverse @ inverse.T
    seen = y_nS @ y_nS.T / samples
    variance = np.diag(expected)
    spread = np.sqrt((np.outer(variance, variance) + expected**2) / samples)
    assert (np.abs(seen - expected) <= 4.9 * spread).all()


def prefix_rmse(noise: CorrelatedNoise) -> float:
    """Root mean squared error of the prefix sums at z = 1 for the whole run."""
    decoder = np.tril(np.ones((noise.rounds, noise.rounds))) @ np.linalg.inv(encoder(noise))
    return float(noise.sensitivity * np.sqrt((decoder**2).sum() / noise.rounds))


def test_at_equal_privacy_it_beats_independent_noise_on_prefix_sums() -> None:
    """n = 256. One participation: C = I has an RMSE of sqrt((n + 1) / 2) = 11.34."""
    alone = prefix_rmse(CorrelatedNoise(kind="banded", rounds=256, bands=1))
    assert alone == pytest.approx(math.sqrt(257 / 2), rel=1e-12)
    banded = prefix_rmse(CorrelatedNoise(kind="banded", rounds=256))
    tree = prefix_rmse(CorrelatedNoise(kind="tree", rounds=256))
    # B = C = A^(1/2): RMSE <= ||C||_{1->2}^2 = sum of c_j^2 = 2.83 (Henzinger et al. 2023).
    assert prefix_rmse(CorrelatedNoise(kind="banded", rounds=256, bands=256)) < 2.84
    assert banded < 2.84  # with 64 bands
    assert banded < tree < alone
    # Four epochs of 64 rounds each: the bands are cut at the separation.
    epochs = {"rounds": 256, "max_participations": 4, "min_separation": 64}
    alone = prefix_rmse(CorrelatedNoise(kind="banded", bands=1, **epochs))  # type: ignore[arg-type]
    banded = prefix_rmse(CorrelatedNoise(kind="banded", **epochs))  # type: ignore[arg-type]
    assert alone == pytest.approx(2 * math.sqrt(257 / 2), rel=1e-12)
    assert banded < alone / 3


def test_keys_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="restart: 4 is of kind=tree"):
        CorrelatedNoise(kind="banded", rounds=8, restart=4)
    with pytest.raises(ConfigError, match="bands: 4 is of kind=banded"):
        CorrelatedNoise(kind="tree", rounds=8, bands=4)
