"""Algebra on one round's updates as rows of a matrix, for rules that need all of them at once.

Everything is float64, whatever the model's precision, and stands finite entries of any size: a
square that overflows is an infinite distance, never a NaN.

Shapes: K clients, P the model's floating-point entries. Integer tensors (counters of normalisation
layers) are no part of a distance: they would drown the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.records import Chunk, Params


def flat_updates(arrays: Params, params: Params) -> Tensor:
    """Return W_k − x over all floating-point tensors, float64 `[K, P]`.

    Args:
        arrays: The clients' models W_k, name -> `[K, ...]`.
        params: x, the model that they were sent.
    """
    return torch.cat(
        [
            (arrays[name].double() - x.double()).reshape(len(arrays[name]), x.numel())
            for name, x in params.items()
            if x.is_floating_point()
        ],
        dim=1,
    )


def coordinate_wise(
    rule: Callable[[Tensor], Tensor], everyone: Chunk, params: Params, server_lr: float
) -> Params:
    """Return x + η · rule(W − x), in the dtypes of the model; integers are rounded.

    Args:
        rule: From sorted updates `[K, ...]`, ascending at each coordinate, to one `[...]`.
        everyone: The clients' models W.
        params: x, the model that they were sent.
        server_lr: η.
    """
    result = {}
    for name, x in params.items():
        ordered = sort_rows(everyone.arrays[name].double() - x.double())
        moved = x + server_lr * rule(ordered)
        result[name] = (moved if x.is_floating_point() else moved.round()).to(x.dtype)
    return result


def sort_rows(rows: Tensor) -> Tensor:
    """Return the values sorted over the first axis, at each coordinate."""
    if rows.device.type != "cpu":
        return rows.sort(0).values
    return torch.from_numpy(np.sort(rows.numpy(), axis=0))  # ten times as fast as PyTorch's


def coordinate_median(rows: Tensor) -> Tensor:
    """Return the median over the first axis; of an even number, the mean of the middle two."""
    return middle(sort_rows(rows))


def middle(ordered: Tensor) -> Tensor:
    """Return the median over the first axis of values that are sorted over it."""
    count = len(ordered)
    return ordered[(count - 1) // 2] / 2 + ordered[count // 2] / 2


def squared_distances(rows_KP: Tensor) -> Tensor:
    """Return ‖r_i − r_j‖², float64 `[K, K]`, with zeros on the diagonal.

    By products, ‖a‖² + ‖b‖² − 2⟨a, b⟩, of rows that were centred at their coordinate-wise median:
    without that, distances that are small beside the rows themselves would be rounding noise.
    """
    centred_KP = rows_KP - coordinate_median(rows_KP)
    products_KK = centred_KP @ centred_KP.T
    norms_K = products_KK.diagonal()
    squared_KK = norms_K[:, None] + norms_K[None, :] - 2 * products_KK
    # Only rows so large that their squares overflow give inf − inf.
    squared_KK = squared_KK.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(0)
    # Two that are each other's nearest tie in Krum's scores: rounding must not decide between them.
    squared_KK = torch.maximum(squared_KK, squared_KK.T)
    return squared_KK.fill_diagonal_(0)
