"""What every kind of compression gives: an encoding of vectors as bytes, of a length known before.

The length depends on the vector's length alone, never on its values: so admission can refuse what
is too long before it looks at it, one message's bytes are every client's, and a length tells
nothing about a client's data.
"""

from __future__ import annotations

import abc

import numpy as np

from fedsim.parts import Part


class CompressionPart(Part, abc.ABC):
    """What is sent in place of a model, as the `compression` group of a scenario names it."""

    @property
    @abc.abstractmethod
    def codec(self) -> Codec | None:
        """How updates are encoded; None if models are sent as they are."""


class Codec(CompressionPart):
    """An encoding of one vector, of float32 or float64.

    What is decoded need not be what was encoded. Values that are not finite are not lost: of a
    vector that has one, so has what is decoded, so that admission sees it.
    """

    @property
    def codec(self) -> Codec:
        """See `CompressionPart.codec`."""
        return self

    @property
    def remembers(self) -> bool:
        """Whether clients add what an encoding has left out to what they encode next."""
        return False

    @abc.abstractmethod
    def size(self, count: int, dtype: np.dtype) -> int:
        """Return the bytes of a vector of `count` numbers."""

    @abc.abstractmethod
    def encode(self, update_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a vector as bytes, uint8 `[size]`; `rng` is this client's in this round."""

    @abc.abstractmethod
    def decode(self, code_B: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
        """Return the vector `[count]` of bytes of the right length, which may be anything.

        Raises:
            ValueError: No `encode` gives these; the message says what is wrong with them.
        """
