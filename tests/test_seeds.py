import itertools
import zlib

import numpy as np
import pytest
import torch

from fedsim import seeds

PURPOSES = ("batches", "dropout", "holdout", "participation", "partition", "model")
PINNED_NUMPY, PINNED_TORCH = [860, 406, 883], [853, 645, 381]


def test_same_key_same_draws():
    key = (1, 2, 3, "batches")
    a, b = (seeds.rng(*key).integers(2**60, size=5) for _ in range(2))
    assert a.tolist() == b.tolist()
    a, b = (torch.randint(2**60, (5,), generator=seeds.torch_rng(*key)) for _ in range(2))
    assert a.tolist() == b.tolist()


def test_every_part_of_the_key_counts():
    """No two keys of a small grid share their first 64 bits, neighbours of a limit included."""
    ends = (0, 1, 2, 2**32 - 1)
    keys = list(itertools.product(ends, ends, ends, PURPOSES))
    firsts = {int(seeds.sequence(*key).generate_state(1, np.uint64)[0]) for key in keys}
    assert len(firsts) == len(keys) == 384


def test_torch_and_numpy_draws_of_one_key_are_stored_values():
    """Pinned: a change here changes every result, and breaks resuming older runs."""
    assert seeds.rng(0, 1, 7, "batches").integers(1000, size=3).tolist() == PINNED_NUMPY
    generator = seeds.torch_rng(0, 1, 7, "batches")
    assert torch.randint(1000, (3,), generator=generator).tolist() == PINNED_TORCH


def test_global_generators_are_left_alone():
    torch_before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002
    seeds.torch_rng(0, 0, 0, "model").seed()
    seeds.rng(0, 0, 0, "model").random(3)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


@pytest.mark.parametrize("key", [(-1, 0, 0), (2**32, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, -1)])
def test_keys_that_would_not_be_distinct_are_refused(key):
    with pytest.raises(ValueError, match=r"outside \[0, 2\*\*32\)"):
        seeds.sequence(*key, "batches")


def test_purposes_have_different_checksums():
    assert len({zlib.crc32(word.encode()) for word in PURPOSES}) == len(PURPOSES)


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_many_at_once_draw_what_each_draws_alone(seed):
    ends = [0, 1, 7, 999, 12345, 2**31, 2**32 - 2, 2**32 - 1]
    for server_round in (0, 1, 2**32 - 1):
        for some in (ends, ends[:3]):
            drawn = seeds.rngs(seed, server_round, np.array(some), "batches")
            for client, generator in zip(some, drawn, strict=True):
                alone = seeds.rng(seed, server_round, client, "batches")
                # The odd 32-bit draw leaves half a word behind, which must not reach the next.
                assert generator.integers(1000, size=3, dtype=np.uint32).tolist() == (
                    alone.integers(1000, size=3, dtype=np.uint32).tolist()
                )
                assert generator.permutation(50).tolist() == alone.permutation(50).tolist()
    with pytest.raises(ValueError, match=r"outside \[0, 2\*\*32\)"):
        list(seeds.rngs(seed, 1, np.array([*ends, 2**32]), "batches"))
