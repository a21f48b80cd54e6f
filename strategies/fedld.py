"""FedLD (Zeng et al., MICCAI 2024): loss decomposition; margin control and principal gradients.

    client k:  minimise CE + λ · R on the batch, local SGD from x, result y_k
               R = mean_b log(1 + ‖z_b‖²)          `logits_mean`: the paper's figure, z the logits
               R = log(1 + Σ_b Σ_c p_bc²)          `softmax_batch`: the published code
    server:    per tensor, over the m replies, g_i = y_i − x:
               C = (1/m) G Gᵀ = Σ_j s_j e_j e_jᵀ,  s descending;  k = max(1, ⌊keep · m⌋)
               β_j = (1/m) Σ_l sign(e_lj) ‖g_l‖
               a = Σ_{j<k} (s_j / tr C) · β_j · e_j / √(m s_j)
               x ← x + η · Σ_i a_i g_i

Each update is projected on the k leading principal directions, keeps its own norm in each of them,
and is weighted by that direction's share of the variance; sample counts play no part. This is the
Gram form of what the published code does with an SVD of G: equal to rounding, and it needs two
passes over the updates, never all of them in one place (`fedsim.spool`). Σ a is 1 where all
clients agree and less elsewhere: the rule is an adaptive shrinkage. Where label skew makes honest
updates differ, it can be far worse than FedAvg; see results/fedld for both regimes.

The plain mean is used in the first round, for a tensor that has not moved yet, for tensors of one
element, and where the updates are zero (or too large to be squared).

Shapes: `_M` per reply, `_MM` Gram matrix, `_MB` replies by a block of a tensor's columns.

Differs from the paper: η, which is 1 there. From its code: at least one direction is kept; replies
are those that came, not all clients; a client orthogonal to a direction adds nothing to it (the
code divides 0 by 0); integer buffers are rounded. The code's "calibration" (flipping a direction
that most clients oppose) cancels in the projection and is left out. Its hidden warm-up is part of
the client's work here, so that baselines can have it as well: client=fedld_released_code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import Batch, ClientContext, ClientHalf
from fedsim.errors import ConfigError, ResumeError
from fedsim.parts import Range
from fedsim.records import Params, Replies
from fedsim.spool import Spool
from fedsim.strategy import FedsimStrategy, Round, State

Margin = Literal["softmax_batch", "logits_mean", "none"]

_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
"""What torch.nn's batch norms call their buffers, whatever the module itself is called."""


@dataclass(kw_only=True)
class FedLD(FedsimStrategy):
    """Margin control at the clients, principal-gradient aggregation at the server.

    Attributes:
        margin: R above; `none` for the server half alone.
        margin_weight: λ. The code's command for retina images has 0.1, its default is 0.03.
        aggregation: `pca`, or `mean` for the client half alone.
        keep: Share of the principal directions that are kept.
        buffers: How running statistics and integers are aggregated: `pca` (the code) or `mean`.
        server_lr: η.
        memory_mb: MiB of updates to hold in memory; further ones go to a temporary file.
    """

    margin: Margin = "softmax_batch"
    margin_weight: Annotated[float, Range(ge=0)] = 0.1
    aggregation: Literal["pca", "mean"] = "pca"
    keep: Annotated[float, Range(gt=0, le=1)] = 0.8
    buffers: Literal["pca", "mean"] = "pca"
    server_lr: Annotated[float, Range(gt=0)] = 1.0
    memory_mb: Annotated[int, Range(ge=0)] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._moved_T: np.ndarray | None = None  # per tensor, in the model's order; None at first

    # --- client half -------------------------------------------------------------------------

    @property
    def client_half(self) -> ClientHalf:
        if self.margin == "none" or not self.margin_weight:
            return ClientHalf()
        return MarginControl(self.margin, self.margin_weight)

    # --- server half -------------------------------------------------------------------------

    def aggregate(self, context: Round, replies: Replies) -> Params:
        params = context.params
        if self._moved_T is not None and len(self._moved_T) != len(params):
            raise ResumeError(
                f"FedLD's state is of a model with {len(self._moved_T)} tensors, this one has "
                f"{len(params)}; was the model changed?"
            )
        with Spool(params, self.memory_mb << 20) as spool:
            for chunk in replies.chunks():
                spool.add(chunk.arrays)
            if not spool.count:
                return params
            moved_T = np.zeros(len(params), bool)
            result = {}
            for t, (name, x) in enumerate(params.items()):
                weights_M = torch.full((spool.count,), 1 / spool.count, dtype=torch.float64)
                if self._moved_T is not None and self._moved_T[t] and self._principal(name, x):
                    gram_MM = _gram(spool, name, x)
                    weights_M = principal_weights(gram_MM, max(1, int(self.keep * spool.count)))
                update = _weighted_sum(spool, name, x, weights_M)
                moved_T[t] = bool(update.any())
                moved = x + self.server_lr * update
                result[name] = (moved if x.is_floating_point() else moved.round()).to(x.dtype)
        self._moved_T = moved_T if self._moved_T is None else self._moved_T | moved_T
        return result

    def _principal(self, name: str, x: Tensor) -> bool:
        if self.aggregation == "mean" or x.numel() == 1:
            return False
        buffer = name.rpartition(".")[2] in _BATCH_NORM or not x.is_floating_point()
        return self.buffers == "pca" or not buffer

    def state_dict(self) -> State:
        return {} if self._moved_T is None else {"moved": self._moved_T.copy()}

    def load_state_dict(self, state: State) -> None:
        if not set(state) <= {"moved"}:
            raise ResumeError(f"FedLD's state is moved; the checkpoint has {sorted(state)}")
        self._moved_T = np.asarray(state["moved"], bool).copy() if state else None


class MarginControl(ClientHalf):
    """Cross-entropy plus a penalty on the size of the model's output.

    Args:
        margin: Which penalty; see the top of this file.
        weight: λ.
    """

    def __init__(self, margin: Margin, weight: float) -> None:
        self.margin = margin
        self.weight = weight

    def criterion(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        if context.task != "classification":
            raise ConfigError(
                f"strategy.margin: {self.margin!r} is a penalty on class scores, and the task is "
                f"{context.task}; use strategy.margin=none"
            )
        # Not through `super`: under vmap, PyTorch takes its cross-entropy apart step by step.
        log_p = outputs.log_softmax(-1)
        loss = -log_p.gather(-1, batch.y.unsqueeze(-1)).mean()
        if self.margin == "softmax_batch":
            penalty = log_p.exp().square().sum().log1p()
        else:
            penalty = outputs.square().sum(-1).log1p().mean()
        return loss + self.weight * penalty


def principal_weights(gram_MM: Tensor, keep: int) -> Tensor:
    """Return a, the weights of the updates whose inner products are `gram_MM`; float64 `[M]`.

    Args:
        gram_MM: G Gᵀ, float64.
        keep: k.
    """
    m = len(gram_MM)
    total = float(gram_MM.trace()) / m
    if not np.finfo(np.float64).tiny < total < np.inf:  # all zero; or norms beyond float64's reach
        return torch.full((m,), 1 / m, dtype=torch.float64)
    norm_M = gram_MM.diagonal().sqrt()
    ascending_M, vectors_MM = torch.linalg.eigh(gram_MM / m)
    weights_M = torch.zeros(m, dtype=torch.float64)
    for j in range(m - 1, m - 1 - keep, -1):
        variance, e_M = float(ascending_M[j]), vectors_MM[:, j]
        if variance <= 1e-12 * total:  # rounding, not a direction
            break
        sign_M = torch.where(e_M.abs() < 1e-9, 0.0, e_M.sign())
        length = (sign_M * norm_M).mean()
        weights_M += (variance / total) * length / (m * variance) ** 0.5 * e_M
    return weights_M


def _gram(spool: Spool, name: str, x: Tensor) -> Tensor:
    """Return the inner products of one tensor's updates, on the CPU."""
    gram_MM = torch.zeros((spool.count, spool.count), dtype=torch.float64, device=x.device)
    for columns, rows_MB in spool.blocks(name):
        rows_MB -= x.flatten()[columns]  # in float64: exact
        gram_MM.addmm_(rows_MB, rows_MB.T)
    return gram_MM.cpu()


def _weighted_sum(spool: Spool, name: str, x: Tensor, weights_M: Tensor) -> Tensor:
    """Return Σ_i a_i g_i of one tensor, float64 in its shape."""
    result = torch.empty(x.numel(), dtype=torch.float64, device=x.device)
    weights_M = weights_M.to(x.device)
    for columns, rows_MB in spool.blocks(name):
        rows_MB -= x.flatten()[columns]
        result[columns] = weights_M @ rows_MB
    return result.view(x.shape)
