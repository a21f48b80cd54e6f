"""Between a client's local work and the message that it sends: its update, encoded.

    client:  u = y − x;  v = u + e;  code = encode(v);  e ← v − decode(code)
    server:  y' = x + decode(code), which admission checks and the strategy sees as the client's y

x is the model that the client was sent. All floating-point tensors that training may change are
laid end to end, in the order of their names, and encoded as one vector; integer tensors (counters
of normalisation layers) are sent as they are, and frozen ones not at all. What a client half
uploads beside the model is sent as it is, and weighed with the rest.

e is there only with an encoding that remembers. It is the client's own and is never sent: it lies
in the client's Flower state (`Context.state`), on a device as in simulation, and no footprint
counts it. Engines that train many clients at once keep the same numbers in a table beside them, by
client index, and a simulation's checkpoints hold it. Where clients are other processes (devices,
and Flower's own engine on Ray), a run that is resumed is a new one to them, and e begins anew;
the log says so. A client does not learn what becomes of its reply: if it is lost, late or rejected,
so is what it held. An update that is not finite leaves e alone.

Rounding is drawn from the key (seed, round, client, "compression"): the same on every engine.

Privacy. What is sent is a function of y, x, of earlier ys and xs (through e), and of that draw,
which depends on no data. Where each y may be seen by anybody, as with noise that the client adds
itself (`PrivacyPart.releases_on_client`), so may this: it is post-processing of what is accounted
for already, in all rounds together. Of other mechanisms the sensitivity is that of y, not of
decode(encode(y)), and they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.compression.base import Codec
from fedsim.records import Chunk, Params

ENCODED, RESIDUAL = "update/encoded", "residual"
"""Names of the encoded update in a message, and of e in a client's memory. No parameter of a
PyTorch module has a name with a slash that was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """The encoding of one run's updates.

    Attributes:
        codec: Of vectors.
        seed: The scenario's.
        frozen: Names of the tensors that no client changes.
    """

    codec: Codec
    seed: int
    frozen: frozenset[str] = frozenset()

    # --- what crosses the wire ---------------------------------------------------------------

    def like(self, params: Mapping[str, Tensor]) -> Params:
        """Return tensors of the names, shapes and dtypes that are sent for a model like this."""
        size = self.codec.size(self._count(params), self._dtype(params))
        integers = {name: params[name] for name in self._integers(params)}
        return {ENCODED: torch.empty(size, dtype=torch.uint8), **integers}

    def size(self, params: Mapping[str, Tensor]) -> int:
        """Return the bytes of what is sent, without framing."""
        return sum(tensor.nbytes for tensor in self.like(params).values())

    @torch.no_grad()
    def compress(
        self, chunk: Chunk, start: Mapping[str, Tensor], server_round: int, memory: Params
    ) -> tuple[Chunk, Params]:
        """Return (what clients send in place of their models, what they remember).

        Args:
            chunk: Models after the local work, name -> `[K, ...]`.
            start: x.
            server_round: 1, 2, ...
            memory: What they remembered, name -> `[K, ...]`; empty for nothing.
        """
        codes, kept = [], []
        for row, client in enumerate(chunk.client_index.tolist()):
            model = {name: rows[row] for name, rows in chunk.arrays.items()}
            own = {name: rows[row] for name, rows in memory.items()}
            code, own = self.of_client(model, start, client, server_round, own)
            codes.append(code)
            kept.append(own)
        return replace(chunk, arrays=_stacked(codes)), _stacked(kept)

    @torch.no_grad()
    def of_client(
        self,
        model: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        client: int,
        server_round: int,
        memory: Mapping[str, Tensor],
    ) -> tuple[Params, Params]:
        """Do as `compress` for one client."""
        update_P = self._flat({n: model[n] - start[n] for n in self._floats(start)})
        if RESIDUAL in memory:
            update_P = update_P + memory[RESIDUAL].cpu().numpy()
        rng = seeds.rng(self.seed, server_round, client, "compression")
        code_B = self.codec.encode(update_P, rng)
        integers = {name: model[name] for name in self._integers(start)}
        sent = {ENCODED: torch.from_numpy(code_B), **integers}
        if not self.codec.remembers:
            return sent, {}
        with np.errstate(invalid="ignore"):  # of infinities
            residual_P = update_P - self.codec.decode(code_B, len(update_P), update_P.dtype)
        if np.isfinite(residual_P).all():
            return sent, {RESIDUAL: torch.from_numpy(residual_P)}
        return sent, dict(memory) or {RESIDUAL: torch.from_numpy(np.zeros_like(update_P))}

    @torch.no_grad()
    def restore(self, sent: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Params:
        """Return the model that a reply of `like`'s names, shapes and dtypes stands for.

        Raises:
            ValueError: It is no encoding.
        """
        names, dtype = self._floats(start), self._dtype(start)
        update_P = self.codec.decode(sent[ENCODED].cpu().numpy(), self._count(start), dtype)
        parts = torch.split(torch.from_numpy(update_P), [start[name].numel() for name in names])
        model = dict(start)
        for name, part in zip(names, parts, strict=True):
            x = start[name]
            model[name] = x + part.view(x.shape).to(x.device, x.dtype)
        return {**model, **{name: sent[name] for name in self._integers(start)}}

    # --- how a model is laid flat ------------------------------------------------------------

    def _floats(self, params: Mapping[str, Tensor]) -> list[str]:
        moving = sorted(set(params) - self.frozen)
        return [name for name in moving if params[name].is_floating_point()]

    def _integers(self, params: Mapping[str, Tensor]) -> list[str]:
        moving = sorted(set(params) - self.frozen)
        return [name for name in moving if not params[name].is_floating_point()]

    def _count(self, params: Mapping[str, Tensor]) -> int:
        return sum(math.prod(params[name].shape) for name in self._floats(params))

    def _dtype(self, params: Mapping[str, Tensor]) -> np.dtype:
        double = any(params[name].dtype == torch.float64 for name in self._floats(params))
        return np.dtype(np.float64 if double else np.float32)

    def _flat(self, tensors: Params) -> np.ndarray:
        dtype = self._dtype(tensors)
        parts = [tensor.cpu().numpy().astype(dtype).ravel() for tensor in tensors.values()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _stacked(rows: list[Params]) -> Params:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
