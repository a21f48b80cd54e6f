"""Items as numbers of M bits, and data sets of them: one item per user, users at parties.

hash   the first M bits of BLAKE2b of the text (UTF-8, NFC): any text, any script; prefixes mean
       nothing, and two texts are one item with probability 2^−M
text   the first M/8 bytes of the text itself: prefixes of numbers are prefixes of texts, and
       texts that agree so far are one item
binary a text of M digits 0 and 1
whole numbers in [0, 2^M) are items as they are
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from fedsim.data.dataset import Dataset, ItemLayout
from fedsim.errors import ConfigError, DataError

Encoding = Literal["hash", "text"]

MOST_BITS = 62
"""An item, and a prefix with a bit more, fit a signed 64-bit number."""

_TOP = 9
"""How many of the most frequent items are classes of their own in pictures of who holds what."""


def encoded(texts: Sequence[str], bits: int, encoding: Encoding | Literal["binary"]) -> np.ndarray:
    """Return the items of some texts, int64.

    Raises:
        DataError: A text is no binary number of `bits` digits, with `binary`.
        ConfigError: `bits` is not a multiple of 8, with `text`.

    Example:
        >>> encoded(["ab", "é"], 16, "text").tolist()
        [24930, 50089]
        >>> encoded(["101"], 3, "binary").tolist()
        [5]
    """
    if encoding == "text" and bits % 8:
        raise ConfigError(f"bits: {bits}, but text is whole bytes; set a multiple of 8, e.g. 48")
    items = np.empty(len(texts), np.int64)
    for place, text in enumerate(texts):
        if encoding == "binary":
            if len(text) != bits or set(text) - {"0", "1"}:
                raise DataError(f"data: {text!r} is not a number of {bits} binary digits")
            items[place] = int(text, 2)
            continue
        data = unicodedata.normalize("NFC", text).encode("utf-8", "replace")
        if encoding == "hash":
            data = hashlib.blake2b(data, digest_size=8).digest()
            items[place] = int.from_bytes(data, "big") >> (64 - bits)
        else:
            items[place] = int.from_bytes(data[: bits // 8].ljust(bits // 8, b"\0"), "big")
    return items


def dataset_of(
    name: str,
    item_N: np.ndarray,
    party_N: np.ndarray,
    bits: int,
    names: dict[int, str] | None = None,
    listed: np.ndarray | None = None,
) -> Dataset:
    """Return the data set of users that hold one item each.

    Args:
        name: Of the data set.
        item_N: int64, in [0, 2^bits).
        party_N: Whose user each is; the column `party`.
        bits: M.
        names: Item -> what it stands for; empty, or all that occur.
        listed: See `ItemLayout`.

    Raises:
        DataError: There are no users, or an item has more bits.
    """
    if not len(item_N):
        raise DataError(f"data: data set '{name}' has no users")
    if item_N.min() < 0 or int(item_N.max()) >> bits:
        raise DataError(f"data: data set '{name}' has items outside [0, 2^{bits})")
    items, counts = np.unique(item_N, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = min(_TOP, len(items))
    class_N = np.full(len(item_N), shown, np.int64)
    for rank, item in enumerate(items[order[:shown]]):
        class_N[item_N == item] = rank
    said = tuple(names[int(item)] for item in items) if names else ()
    top = [names[int(i)] if names else str(i) for i in items[order[:shown]]]
    return Dataset(
        name=name,
        task="items",
        train_x=torch.from_numpy(item_N),
        train_y=torch.from_numpy(class_N),
        test_x=torch.from_numpy(items),
        test_y=torch.from_numpy(counts.astype(np.float64)),
        num_outputs=shown + 1,
        columns={"party": party_N},
        class_names=(*top, "others"),
        items=ItemLayout(bits=bits, names=said, listed=listed),
    )
