"""Who is malicious: drawn from the seed, or listed."""

import numpy as np
import pytest

from fedsim.attack.nan import NaN
from fedsim.attack.none import NoAttack
from fedsim.errors import ConfigError
from tests.helpers import classification


def draw(seed=0, n=50, **fields):
    return NaN(**fields).draw(n, seed).tolist()


def test_a_share_is_so_many_clients():
    assert len(draw(share=0.2)) == 10
    assert len(draw(share=0.29, n=100)) == 29, "0.29 · 100 is 28.999… in floating point"
    chosen = draw(share=0.5)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] and chosen[-1] < 50


def test_a_share_of_nothing_is_nobody():
    assert draw(share=0.0) == []
    assert draw(clients=()) == []


def test_drawn_from_the_seed():
    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    counts = np.zeros(20)
    for seed in range(400):
        counts[draw(seed=seed, n=20)] += 1
    assert np.abs(counts - 80).max() < 5 * (400 * 0.2 * 0.8) ** 0.5, "everybody equally often"


def test_a_larger_share_keeps_those_of_a_smaller_one():
    assert set(draw(share=0.1)) < set(draw(share=0.3))


def test_listed():
    assert draw(clients=(7, 3), share=0.9) == [3, 7]


@pytest.mark.parametrize(
    ("fields", "n", "words"),
    [
        ({"share": 1.0}, 5, "makes everybody malicious"),
        ({"share": 0.95}, 5, "makes everybody malicious"),
        ({"share": 0.05}, 5, "is nobody; set attack.share to 0.2"),
        ({"clients": (0, 1)}, 2, "all 2 clients are listed"),
        ({"clients": (0, 5)}, 5, "there is no client 5; clients are 0..4"),
        ({"clients": (1, 1)}, 5, "twice"),
    ],
)
def test_refused(fields, n, words):
    with pytest.raises(ConfigError, match=words):
        draw(n=n, **fields)


@pytest.mark.parametrize("fields", [{"share": -0.1}, {"share": 1.1}, {"clients": (-1,)}])
def test_out_of_range(fields):
    with pytest.raises(ConfigError, match="out of range"):
        NaN(**fields)


@pytest.mark.parametrize("attack", [NoAttack(), NaN(share=0.0)])
def test_nobody_does_nothing(attack):
    bound = attack.bind(num_clients=5, seed=0, dataset=classification(), client_index=int)
    assert (bound.clients.tolist(), bound.targets, bound.tamper) == ([], None, None)
