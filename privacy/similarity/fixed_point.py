"""Sums that do not depend on who holds which record: integers, whose addition is exact.

    a record's coordinate     x  -> steps of bound / 2^20, an integer of 21 bits with its sign
    what a record adds        φ  -> steps of UNIT = 2^-30, rounded towards zero, int64
    a product with a matrix   of integers so small that float64 holds every partial sum exactly

So every record's φ is a function of that record alone: not of its neighbours in a batch, nor of how
a matrix product was cut up, nor of the device. Rounding towards zero keeps every bound on |φ|, ‖φ‖
as it is; a bound on ‖φ − φ'‖ that is not the sum of two such bounds is widened (`widened`).

Shapes: N records, D inputs, F outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.errors import ConfigError

UNIT = 2.0**-30
"""What one step of a sum is worth."""

INPUT_BITS = 20
MANTISSA = 53
MAX_INPUTS = 2**12


def steps(x_ND: Tensor, bound: float, bits: int = INPUT_BITS) -> Tensor:
    """Return coordinates clipped to ±bound in steps of bound / 2^bits, int64, towards zero.

    What is not a number counts as 0: whatever a client holds, a record has its bounds.
    """
    scaled = torch.nan_to_num(x_ND.double(), nan=0.0) * (2.0**bits / bound)
    return scaled.clamp(-(2.0**bits), 2.0**bits).long()


def units(values: Tensor) -> Tensor:
    """Return numbers in steps of UNIT, int64, towards zero.

    Example:
        >>> (units(torch.tensor([0.5, -1.0])) / 2**30).tolist()
        [0.5, -1.0]
    """
    return (values.double() / UNIT).long()


def widened(bound: float, size: int, norm: int) -> float:
    """Return a bound on ‖φ − φ'‖_norm after both have lost up to a UNIT per coordinate."""
    return bound + UNIT * (size if norm == 1 else math.sqrt(size))


def matrix_steps(matrix_DF: Tensor, input_bits: int = INPUT_BITS) -> tuple[Tensor, float]:
    """Return a matrix in integers and what one is worth, so that products with `steps` are exact.

    |x| <= 2^input_bits and |m| <= 2^b with input_bits + b + log2 D <= 53.
    """
    check_inputs(matrix_DF.shape[0])
    bits = MANTISSA - input_bits - math.ceil(math.log2(max(2, matrix_DF.shape[0])))
    # A power of two, so that scaling is exact too.
    largest = max(float(matrix_DF.abs().max()), 2.0**-300)
    unit = 2.0 ** (math.ceil(math.log2(largest)) - bits)
    return (matrix_DF / unit).round(), unit


def check_inputs(count: int) -> None:
    """Check that records are not too wide.

    Raises:
        ConfigError: They are.
    """
    if not 1 <= count <= MAX_INPUTS:
        raise ConfigError(
            f"dimension: {count} inputs; sums are exact for 1 to {MAX_INPUTS}: make features of "
            "the data first"
        )
