"""What strategies share whose hypernetwork makes a model for each client.

    server:    φ_j = h(α_j; θ)
    client j:  trains φ_j, sends φ̃_j
    server:    (θ, α) ← Adam(clip(Jᵀ (φ_j − φ̃_j))),  J = ∂h / ∂(θ, α)

θ and α are the server's alone. The run's model is h at the mean embedding, where h makes it.

Shapes: K clients of a round, `[K, ...]` one row for each.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ResumeError
from fedsim.hypernetwork import Hypernetwork
from fedsim.parts import Range
from fedsim.records import Chunk, Params, Replies, stack
from fedsim.strategy import FedsimStrategy, Round, State

HYPER = "hyper/"


@dataclass(kw_only=True)
class Hypernetworked(FedsimStrategy):
    """A hypernetwork makes clients' models, and learns from what they make of them.

    Attributes:
        embedding: Numbers of an embedding; null: int(1 + clients/4).
        width, depth: Units of the hypernetwork's hidden layers, and how many follow the first.
        hyper_init: Where its outputs begin: at the `model`'s own first values, or by PyTorch's
            `default`.
        hyper_lr, clip_norm: Of its step.
    """

    embedding: Annotated[int, Range(ge=1)] | None = None
    width: Annotated[int, Range(ge=1)] = 100
    depth: Annotated[int, Range(ge=0)] = 3
    hyper_init: Literal["model", "default"] = "model"
    hyper_lr: Annotated[float, Range(gt=0)] = 1e-3
    clip_norm: Annotated[float, Range(gt=0)] = 50.0

    sends_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hyper = Hypernetwork(
            width=self.width,
            depth=self.depth,
            size=self.embedding,
            from_model=self.hyper_init == "model",
        )
        self._made: tuple[np.ndarray, Params] = (np.arange(0), {})

    @abc.abstractmethod
    def made_of(self, params: Params) -> Params:
        """Return those tensors of the model that the hypernetwork makes for a client."""

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        return self.made_of(self._round.params)

    def client_payload(self, context: Round) -> Params:
        self._fit(context)
        self._made = (context.asked, self._hyper(context.asked))
        return self._made[1]

    def aggregate(self, context: Round, replies: Replies) -> Params:
        chunk = stack(replies)
        if chunk is None or not len(chunk):
            return context.params
        self._fit(context)
        self._learn(chunk)
        return {**context.params, **self._hyper.mean()}

    def _fit(self, context: Round) -> None:
        """Make the hypernetwork, or room for clients who have joined."""
        seed = 0 if self.federation is None else self.federation.seed
        self._hyper.fit(self.made_of(context.params), context.num_clients, seed)

    def _learn(self, chunk: Chunk) -> None:
        """Take a step from what clients of this round have sent."""
        asked, sent = self._made
        rows = torch.from_numpy(np.searchsorted(asked, chunk.client_index))
        self._hyper.step(
            chunk.client_index,
            {name: tensor[rows.to(tensor.device)] for name, tensor in sent.items()},
            chunk.arrays,
            lr=self.hyper_lr,
            clip_norm=self.clip_norm,
        )

    def state_dict(self) -> State:
        return self._hyper.state_dict(HYPER)

    def load_state_dict(self, state: State) -> None:
        odd = [key for key in state if not key.startswith(HYPER)]
        if odd:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(odd)[:8]}, which is not "
                f"{type(self).__name__}'s; was the strategy changed?"
            )
        self._hyper.load_state_dict(state, HYPER)
