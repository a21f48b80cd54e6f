"""pFedHN (Shamsian, Navon, Fetaya, Chechik, ICML 2021, arXiv:2103.04628, Algorithm 1).

A hypernetwork h with one embedding α_j per client makes each client's classifier.

    server:    φ_j = h(α_j; θ)
    client j:  φ_j ─▶ φ̃_j by steps on the cross-entropy of its labelled samples; sends φ̃_j
    server:    (θ, α) ← Adam(clip(Jᵀ (φ_j − φ̃_j))),  J = ∂h / ∂(θ, α)

Clients are scored with φ_j as h makes it: nothing of a client is kept but α_j, and what it learns
goes to all through θ. Those without labels are never asked, and have what h makes of their α_j.
The run's model is h at the mean embedding.

Shapes: K clients of a round, `[K, ...]` one row for each.

Differs from the paper: several clients a round, whose steps are averaged (one client is the
paper's), and the hypernetwork's step is Adam's, where its code has SGD with momentum. Local steps
are those of the `client` group, by SGD as there (lr 5e-3, momentum 0.9, 50 steps), or by Adam.
pFedHN-PC, whose clients keep their heads, is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import ClientHalf
from fedsim.errors import ResumeError
from fedsim.hypernetwork import Hypernetwork
from fedsim.parts import Range
from fedsim.records import Params, PayloadOf, Replies, stack
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import FedsimStrategy, Round, State
from strategies.classified import OwnClassifiers, classifier_of

HYPER = "hyper/"


@dataclass(kw_only=True)
class PFedHN(FedsimStrategy):
    """A hypernetwork makes clients' classifiers.

    Attributes:
        embedding: Numbers of an embedding; null: int(1 + clients/4).
        width, depth: Units of the hypernetwork's hidden layers, and how many follow the first.
        hyper_init: Where its outputs begin: at the `model`'s own first values, or by PyTorch's
            `default`.
        hyper_lr, clip_norm: Of its step.
        optimiser: Of the clients' steps.
    """

    embedding: Annotated[int, Range(ge=1)] | None = None
    width: Annotated[int, Range(ge=1)] = 100
    depth: Annotated[int, Range(ge=0)] = 3
    hyper_init: Literal["model", "default"] = "model"
    hyper_lr: Annotated[float, Range(gt=0)] = 1e-3
    clip_norm: Annotated[float, Range(gt=0)] = 50.0
    optimiser: Optimiser = "sgd"

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

    @property
    def client_half(self) -> ClientHalf:
        return OwnClassifiers(self.optimiser)

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        return classifier_of(self, self._round.params)

    def client_payload(self, context: Round) -> Params:
        self._fit(context)
        self._made = (context.asked, self._hyper(context.asked))
        return self._made[1]

    def evaluation_payload(self, context: Round) -> PayloadOf:
        self._fit(context)
        return self._hyper

    def aggregate(self, context: Round, replies: Replies) -> Params:
        chunk = stack(replies)
        if chunk is None or not len(chunk):
            return context.params
        self._fit(context)
        asked, sent = self._made
        rows = torch.from_numpy(np.searchsorted(asked, chunk.client_index))
        self._hyper.step(
            chunk.client_index,
            {name: tensor[rows.to(tensor.device)] for name, tensor in sent.items()},
            chunk.arrays,
            lr=self.hyper_lr,
            clip_norm=self.clip_norm,
        )
        return {**context.params, **self._hyper.mean()}

    def state_dict(self) -> State:
        return self._hyper.state_dict(HYPER)

    def load_state_dict(self, state: State) -> None:
        odd = [key for key in state if not key.startswith(HYPER)]
        if odd:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(odd)[:8]}, which is not pFedHN's; "
                "was the strategy changed?"
            )
        self._hyper.load_state_dict(state, HYPER)

    def _fit(self, context: Round) -> None:
        """Make the hypernetwork, or room for clients who have joined."""
        seed = 0 if self.federation is None else self.federation.seed
        self._hyper.fit(classifier_of(self, context.params), context.num_clients, seed)
