import zlib

import numpy as np
import pytest

from fedsim.data import words
from fedsim.data.split import keyed_uniform, side_of


def test_numbers_of_known_words():
    vocabulary = words.known(["b a c", "a b a d"], size=5)
    assert vocabulary == {"a": 2, "b": 3, "c": 4}  # c before d, and no room for d
    rows = words.encode(["A d b", "c"], size=5, length=4, vocabulary=vocabulary)
    assert rows.tolist() == [[2, words.UNKNOWN, 3, words.PAD], [4, 0, 0, 0]]
    assert rows.dtype == np.int64


def test_numbers_of_hashed_words():
    assert words.encode(["x"], size=100, length=1).tolist() == [[2 + zlib.crc32(b"x") % 98]]
    assert words.encode(["a b c", ""], size=3, length=2).tolist() == [[2, 2], [0, 0]]
    many = words.encode([" ".join(f"w{i}" for i in range(5000))], size=64, length=5000)
    assert set(many.flatten().tolist()) == set(range(2, 64))


def test_a_side_belongs_to_the_name_alone():
    names = [f"name {i}" for i in range(2000)]
    uniform = keyed_uniform(names, 0)
    assert (keyed_uniform(names[1000:], 0) == uniform[1000:]).all()
    assert (keyed_uniform([names[3]] * 2, 0) == uniform[3]).all()
    assert (keyed_uniform(names, 1) != uniform).all()
    test, public = side_of(uniform, 0.2, 0.3)
    assert not (test & public).any()
    # Binomial: 0.2 and 0.24 of 2000, within four standard deviations (0.009 and 0.0096).
    assert test.mean() == pytest.approx(0.2, abs=0.036)
    assert public.mean() == pytest.approx(0.24, abs=0.039)
