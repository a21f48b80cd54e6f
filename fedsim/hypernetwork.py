"""A hypernetwork: from one embedding per client, the tensors of that client's model (pFedHN).

    z = L(… relu(L(relu(W_0 α_j + b_0))) …),   φ_j[t] = V_t z + c_t     one linear head per tensor t

    (θ, α) ← Adam(clip((1/K) Σ_j (∂φ_j / ∂(θ, α))ᵀ (φ_j − φ̃_j)))         φ̃_j: what client j returned

The sign is first minus last: −(φ̃_j − φ_j) stands for the gradient of client j's loss. It is what
Shamsian et al. (ICML 2021, arXiv:2103.04628, Algorithm 1) do, of one client a round; here of K at
once, all of them at the same θ.

Everything stays with the server. It is about (width + 1) times a client's model. An embedding is
drawn from the client's own key: clients that join later move no other's.

Shapes: N clients, K of a call, e numbers of an embedding; `[K, ...]` one row per client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ResumeError
from fedsim.records import Params
from fedsim.stacked_fit import Adam
from fedsim.strategy import State

EMBEDDING = "embedding"
_FIRST, _SECOND, _STEPS = "adam-first/", "adam-second/", "adam-steps"


class Hypernetwork:
    """θ, all α_j, and Adam's moments of both.

    Args:
        width: Units of each hidden layer.
        depth: Hidden layers after the first.
        size: e; None: int(1 + N/4), as both papers' code has it.
        from_model: Whether the heads' c_t begin as the model's own initial tensors and their V_t
            small, instead of PyTorch's default for both.
    """

    def __init__(
        self, *, width: int, depth: int, size: int | None = None, from_model: bool = True
    ) -> None:
        self.width, self.depth, self.size, self.from_model = width, depth, size, from_model
        self.params: Params = {}
        self._shapes: dict[str, torch.Size] = {}
        self._adam: Adam | None = None
        self._seed = 0

    def fit(self, like: Mapping[str, Tensor], num_clients: int, seed: int) -> None:
        """Make the network, if it is not there yet, and room for `num_clients` embeddings.

        Raises:
            ResumeError: It is that of another model.
        """
        self._seed = seed
        if not self.params:
            self._draw(like, num_clients)
        heads = {n for n in self.params if n.startswith("head/")}
        wanted = {f"head/{name}/{part}" for name in like for part in ("weight", "bias")}
        if heads != wanted or any(
            self.params[f"head/{name}/bias"].numel() != t.numel() for name, t in like.items()
        ):
            raise ResumeError("the hypernetwork is that of another model; was the model changed?")
        self._shapes = {name: t.shape for name, t in like.items()}
        device, dtype = next((t.device, t.dtype) for t in like.values())
        if self.params[EMBEDDING].device != device or self.params[EMBEDDING].dtype != dtype:
            self._put({name: t.to(device, dtype) for name, t in self.params.items()})
        self._grow(num_clients)

    def __call__(self, clients: np.ndarray) -> Params:
        """Return some clients' models, name -> `[K, ...]`.

        One by one: a product of matrices rounds by its shape, and what a client is sent must not
        depend on who else is asked.
        """
        with torch.no_grad():
            rows = [self._forward(self.params, np.array([k])) for k in clients.tolist()]
        if not rows:
            return {
                name: self.params[EMBEDDING].new_zeros(0, *s) for name, s in self._shapes.items()
            }
        return {name: torch.cat([row[name] for row in rows]) for name in self._shapes}

    def mean(self) -> Params:
        """Return the model of the mean embedding, name -> tensor."""
        with torch.no_grad():
            mean = self.params[EMBEDDING].mean(0, keepdim=True)
            out = self._forward({**self.params, EMBEDDING: mean}, np.array([0]))
        return {name: rows[0] for name, rows in out.items()}

    def gradient(self, clients: np.ndarray, vectors: Params) -> Params:
        """Return Σ_j (∂φ_j / ∂(θ, α))ᵀ v_j of vectors `[K, ...]`, by the names of `params`."""
        deep = [name for name in self.params if not name.startswith("head/")]
        leaves = {name: self.params[name].detach().requires_grad_() for name in deep}
        with torch.enable_grad():
            hidden = self._hidden(leaves, clients)
        z, grads = hidden.detach(), {}
        into_z = torch.zeros_like(z)
        for name in self._shapes:  # of a linear head, without its output
            v = vectors[name].flatten(1)
            grads[f"head/{name}/weight"], grads[f"head/{name}/bias"] = v.T @ z, v.sum(0)
            into_z += v @ self.params[f"head/{name}/weight"]
        below = torch.autograd.grad(hidden, list(leaves.values()), into_z)
        grads |= dict(zip(leaves, below, strict=True))
        return {name: grads[name] for name in self.params}

    def step(
        self, clients: np.ndarray, sent: Params, returned: Params, *, lr: float, clip_norm: float
    ) -> None:
        """Move θ and α towards what clients have made of their models; see the module."""
        if not len(clients):
            return
        vectors = {name: (sent[name] - returned[name]) / len(clients) for name in self._shapes}
        grads = self.gradient(clients, vectors)
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads.values()]
        norm = float(torch.stack(norms).norm())
        if not math.isfinite(norm):
            return  # no direction: what clients return is finite, but may overflow here
        if norm > clip_norm:
            grads = {name: g * (clip_norm / norm) for name, g in grads.items()}
        adam, one = self._moments(), torch.ones(1, dtype=torch.bool)
        rows = {name: t.unsqueeze(0) for name, t in self.params.items()}
        moves = one.to(next(iter(rows.values())).device)
        adam.step_(rows, {name: g.unsqueeze(0) for name, g in grads.items()}, lr, moves)

    # --- state -------------------------------------------------------------------------------

    def state_dict(self, prefix: str) -> State:
        """Return all of it, under names that start with `prefix`; nothing before `fit`."""
        if not self.params:
            return {}
        adam = self._moments()
        state: State = {f"{prefix}{name}": t.clone() for name, t in self.params.items()}
        state |= {f"{prefix}{_FIRST}{name}": t[0].clone() for name, t in adam.first.items()}
        state |= {f"{prefix}{_SECOND}{name}": t[0].clone() for name, t in adam.second.items()}
        return state | {f"{prefix}{_STEPS}": int(adam.steps_K[0])}

    def load_state_dict(self, state: Mapping[str, object], prefix: str) -> None:
        """Replace everything by what `state_dict` returned.

        Raises:
            ResumeError: The state has no such network.
        """
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.params, self._adam = {}, None
        if not own:
            return
        steps = own.pop(_STEPS, None)
        moments = (_FIRST, _SECOND)
        params = {k: torch.as_tensor(v) for k, v in own.items() if not k.startswith(moments)}
        wanted = {start + name for start in moments for name in params}
        if EMBEDDING not in params or not isinstance(steps, int) or wanted != own.keys() - params:
            raise ResumeError(
                f"the checkpoint has no whole hypernetwork under '{prefix}'; it has "
                f"{sorted(own)[:8]}; was the strategy changed?"
            )
        self.params = {name: t.clone() for name, t in params.items()}
        adam = self._moments()
        for name in params:
            adam.first[name][0].copy_(torch.as_tensor(own[_FIRST + name]))
            adam.second[name][0].copy_(torch.as_tensor(own[_SECOND + name]))
        adam.steps_K.fill_(steps)

    # --- helpers -----------------------------------------------------------------------------

    def _forward(self, params: Params, clients: np.ndarray) -> Params:
        z, out = self._hidden(params, clients), {}
        for name, shape in self._shapes.items():
            flat = z @ params[f"head/{name}/weight"].T + params[f"head/{name}/bias"]
            out[name] = flat.view(len(clients), *shape)
        return out

    def _hidden(self, params: Params, clients: np.ndarray) -> Tensor:
        """Return what the heads are applied to, `[K, width]`."""
        index = torch.from_numpy(clients).to(params[EMBEDDING].device)
        z = params[EMBEDDING][index] @ params["in/weight"].T + params["in/bias"]
        for layer in range(self.depth):
            z = z.relu() @ params[f"hidden/{layer}/weight"].T + params[f"hidden/{layer}/bias"]
        return z

    def _moments(self) -> Adam:
        if self._adam is None:
            self._adam = Adam({name: t.unsqueeze(0) for name, t in self.params.items()})
        return self._adam

    def _draw(self, like: Mapping[str, Tensor], num_clients: int) -> None:
        """Draw θ as PyTorch draws its linear layers: uniform in ±1/√inputs, weights and biases."""
        rng = seeds.torch_rng(self._seed, 0, seeds.SERVER, "hypernetwork")
        dtype = next(t.dtype for t in like.values())
        size = int(1 + num_clients / 4) if self.size is None else self.size

        def linear(path: str, outputs: int, inputs: int) -> None:
            for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                uniform = torch.rand(shape, generator=rng, dtype=torch.float64)
                value = ((2 * uniform - 1) / math.sqrt(inputs)).to(dtype)
                self.params[f"{path}/{part}"] = value

        self.params[EMBEDDING] = torch.zeros(0, size, dtype=dtype)
        linear("in", self.width, size)
        for layer in range(self.depth):
            linear(f"hidden/{layer}", self.width, self.width)
        for name, tensor in like.items():
            linear(f"head/{name}", tensor.numel(), self.width)
            if self.from_model:
                self.params[f"head/{name}/bias"] = tensor.detach().flatten().cpu().clone()
                self.params[f"head/{name}/weight"] *= 0.1
        device = next(t.device for t in like.values())
        self.params = {name: t.to(device) for name, t in self.params.items()}

    def _grow(self, num_clients: int) -> None:
        """Draw the embeddings of clients that have none, N(0, 1), each from its own key."""
        old = self.params[EMBEDDING]
        if num_clients <= len(old):
            return
        new = np.stack(
            [
                seeds.rng(self._seed, 0, client, "embedding").standard_normal(old.shape[1])
                for client in range(len(old), num_clients)
            ]
        )
        rows = torch.from_numpy(new).to(old.device, old.dtype)
        self._put({**self.params, EMBEDDING: torch.cat([old, rows])})

    def _put(self, params: Params) -> None:
        """Replace the tensors; Adam's moments go with them, zero for rows that are new."""
        before, self.params, self._adam = self._adam, params, None
        if before is None:
            return
        adam = self._moments()
        adam.steps_K.copy_(before.steps_K)
        for new, old in ((adam.first, before.first), (adam.second, before.second)):
            for name, tensor in old.items():
                new[name][:, : tensor.shape[1]].copy_(tensor)
