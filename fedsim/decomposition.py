"""Where a round's loss comes from: local training, distribution shift, aggregation.

Zeng et al., MICCAI 2024 (FedLD) split the loss of the aggregate w of the local models w_k so:

    L(w) =  Σ_k p_k L_k(w_k)                    local: what training left over at home
          + Σ_k p_k (L(w_k) − L_k(w_k))         shift: what a local model loses on others' data
          + (L(w) − Σ_k p_k L(w_k))             aggregation: what making one model of them adds

L_k is client k's mean task loss on its training samples, p_k its share of the samples of this
round's participants (those whose replies were admitted), L = Σ_k p_k L_k. The sum telescopes, for
any rule by which w is made of the w_k.

w is known only after the local models are gone, so what is kept of each of them is L_j(w_k) for
every participant j: one number per pair. A round costs as many passes over the participants' data
as there are participants, and one more.

Shapes: `_A` per client asked, `_M` per reply admitted.
"""

from __future__ import annotations

import numpy as np
import torch

from fedsim.client.objective import sample_losses
from fedsim.client.runtime import ClientRuntime
from fedsim.records import Chunk, Params
from fedsim.rounds import Observer

LOSS, LOCAL, SHIFT, AGGREGATION = "loss", "loss-local", "loss-shift", "loss-aggregation"
"""Names of the sum and of its three terms in a round's diagnostics."""


class Decomposition(Observer):
    """The three loss terms of each round.

    Args:
        runtime: The clients' data, and the model; both in this process.
        batch_size: Samples per evaluation batch.
    """

    def __init__(self, runtime: ClientRuntime, batch_size: int = 4096) -> None:
        self.runtime = runtime
        self.batch_size = batch_size

    def begin(self, clients: np.ndarray) -> None:
        self._asked_A = clients
        self._pool = self.runtime.pool(clients.tolist())
        self._size_A = np.array([len(rows) for rows in self._pool.rows], np.int64)
        self._client_M: list[int] = []
        self._loss_MA: list[np.ndarray] = []

    def see(self, chunk: Chunk) -> None:
        for row, client in enumerate(chunk.client_index.tolist()):
            params = {name: rows[row] for name, rows in chunk.arrays.items()}
            self._client_M.append(client)
            self._loss_MA.append(self._losses(params))

    def end(self, params: Params) -> dict[str, float]:
        own_M = np.searchsorted(self._asked_A, self._client_M)
        size_M = self._size_A[own_M].astype(np.float64)
        if not size_M.sum():
            return {}
        p_M = size_M / size_M.sum()
        loss_MM = np.array(self._loss_MA)[:, own_M]
        local = float(p_M @ loss_MM.diagonal())
        apart = float(p_M @ loss_MM @ p_M)
        together = float(self._losses(params)[own_M] @ p_M)
        return {
            LOSS: together,
            LOCAL: local,
            SHIFT: apart - local,
            AGGREGATION: together - apart,
        }

    @torch.no_grad()
    def _losses(self, params: Params) -> np.ndarray:
        """Return the mean loss of one model on each asked client's samples, float64 `[A]`."""
        runtime, device = self.runtime, self._pool.x.device
        params = runtime.received(params)
        runtime.model.eval()
        owner = torch.from_numpy(np.repeat(np.arange(len(self._size_A)), self._size_A)).to(device)
        rows = torch.from_numpy(np.concatenate(self._pool.rows)).to(device)
        total_A = torch.zeros(len(self._size_A), dtype=torch.float64, device=device)
        parts = (torch.split(t, self.batch_size) for t in (rows, owner))
        for index, who in zip(*parts, strict=True):
            outputs = runtime.apply(params, self._pool.x[index])
            losses = sample_losses(runtime.dataset.task, outputs, self._pool.y[index])
            total_A.index_add_(0, who, losses.double())
        loss_A: np.ndarray = total_A.cpu().numpy() / np.maximum(self._size_A, 1)
        return loss_A
