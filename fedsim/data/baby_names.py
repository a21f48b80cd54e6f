"""Baby names by state, USA 1990-2012 (Social Security Administration): 51 real parties.

A user is a birth, the item its name and sex ("Michael/M"), the party its state. The file holds the
counts (state, name, year), 75.6 million births; `users` of them are drawn without replacement.
The list of names is taken as public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.data.items import MOST_BITS, Encoding, dataset_of, encoded
from fedsim.data.npz import read_npz
from fedsim.errors import ConfigError, DataError
from fedsim.parts import Range

_FILE = "babynames_by_state_1990_2012.npz"
_FOLDER = "babynames_by_state"
_PUBLISHED = (
    f"'{_FILE}' has the arrays state, name, year, count (one row each) and names, of the national "
    "data on the relative frequency of given names by state, published by the SSA at "
    "https://www.ssa.gov/oact/babynames/limits.html"
)


@dataclass(frozen=True, kw_only=True)
class BabyNames(DataPart):
    """One birth a user; column `party` is the state.

    Attributes:
        root: Data folder; null stands for the environment variable FEDSIM_DATA.
        users: How many births are drawn; null for all.
        first_year, last_year: Of the births.
        bits: M.
        encoding: See `fedsim.data.items`.
        seed: Keys the draw. It is the data's own, not the scenario's.
    """

    root: str | None = None
    users: Annotated[int, Range(ge=1)] | None = 1_000_000
    first_year: int = 1990
    last_year: int = 2012
    bits: Annotated[int, Range(ge=1, le=MOST_BITS)] = 48
    encoding: Encoding = "hash"
    seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def load(self) -> Dataset:
        """Read the counts and draw the births; see `DataPart.load`."""
        path = find(self.root, _FOLDER, [_FILE], _PUBLISHED)
        arrays = read_npz(path, ("state", "name", "year", "count", "names"))
        state, name, year, count = (
            np.asarray(arrays[key]).astype(np.int64) for key in ("state", "name", "year", "count")
        )
        names = [str(text) for text in arrays["names"].tolist()]
        rows = {len(column) for column in (state, name, year, count)}
        if len(rows) > 1 or not len(state) or min(state.min(), count.min(), name.min()) < 0:
            raise DataError(f"data: '{path}' does not hold one state, name, year and count a row")
        if name.max() >= len(names):
            raise DataError(f"data: '{path}' has rows of names that it does not name")
        these = (year >= self.first_year) & (year <= self.last_year)
        held = np.zeros((int(state.max()) + 1, len(names)), np.int64)
        np.add.at(held, (state[these], name[these]), count[these])
        births = int(held.sum())
        if self.users is not None and self.users > births:
            raise ConfigError(
                f"users: {self.users} of {births} births in {self.first_year}-{self.last_year}; "
                "set fewer, or null for all"
            )
        if self.users is not None:
            rng = seeds.rng(self.seed, 0, seeds.SERVER, "baby-names")
            held = _drawn(held, self.users, rng)
        codes = encoded(names, self.bits, self.encoding)
        party, item = np.nonzero(held)
        times = held[party, item]
        known: dict[int, str] = {}
        for code, text in zip(codes.tolist(), names, strict=True):
            known.setdefault(code, text)
        return dataset_of(
            "baby_names",
            np.repeat(codes[item], times),
            np.repeat(party.astype(np.int32), times),
            self.bits,
            known,
            listed=np.unique(codes),
        )


def _drawn(held: np.ndarray, users: int, rng: np.random.Generator) -> np.ndarray:
    """Return so many of the births, without replacement."""
    some = np.flatnonzero(held)
    drawn = rng.multivariate_hypergeometric(held.reshape(-1)[some], users, method="marginals")
    result = np.zeros_like(held)
    result.reshape(-1)[some] = drawn
    return result
