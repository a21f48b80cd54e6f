"""No compression: clients send their models as they are."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.compression.base import CompressionPart


@dataclass(frozen=True, kw_only=True)
class Uncompressed(CompressionPart):
    """Models are sent as they are."""

    @property
    def codec(self) -> None:
        """See `CompressionPart.codec`."""
        return None
