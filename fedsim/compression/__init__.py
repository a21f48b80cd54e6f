"""Compression of what clients send: one file per encoding."""

from fedsim.compression.base import Codec, CompressionPart
from fedsim.compression.update import Compressor

__all__ = ["Codec", "CompressionPart", "Compressor"]
