"""SemiPFL (Tashakori, Zhang, Wang, Servati, IEEE IoT Journal 2023, arXiv:2203.08176).

A user has many windows of sensor data and few labels, or none; the server has labelled windows of
M other subjects, and a hypernetwork h with one embedding α_j per user.

    server:   φ_j = h(α_j; θ), an autoencoder
    user j:   φ_j ─▶ φ̃_j by reconstruction of all its windows; sends φ̃_j
    server:   (θ, α) ← Adam(clip(Jᵀ (φ_j − φ̃_j), 50)),  J = ∂h / ∂(θ, α)
    server:   keeps the samples that φ̃_j reconstructs well; b_m on source m's; sends {b_m}
    user j:   freezes {b_m}; fits the weights of their mixture on what labels it has

The last two lines change nothing that a later round depends on: no gradient of a classification
reaches θ. They are done where a user is scored, for the φ̃_j that it has sent last (a user who never
took part: for φ_j), and what a user mixes stays with it. θ, α and M are the server's alone: down go
φ_j, and {b_m} with the encoder; up goes φ̃_j. `strategies.coded` has what users do, `fedsim.
hypernetwork` the step.

The run's model is h at the mean embedding, with the head as it began: its central score says
nothing. Learning rate, epochs and batches of a user are those of the `client` group.

Shapes: K users of a round, M sources; `[K, ...]` one row per user.

Differs from the paper: several users a round, whose steps are averaged (one user is the paper's).
How outputs are mixed is not in the released code, and is reconstructed from its figure. The share
of data that is kept (`keep`, of each source) takes the place of an absolute τ, which is there as
`tau`. A head normalises its codes once, by their mean and deviation over the kept data. Not from
the released code: one classifier for all users, scalers per split, and its F1 over some users only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import ClientHalf
from fedsim.client_table import ClientTable
from fedsim.errors import ConfigError, ResumeError
from fedsim.hypernetwork import Hypernetwork
from fedsim.parts import Range
from fedsim.records import Params, PayloadOf, Replies, stack
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import FedsimStrategy, Round, State
from strategies.coded import BASE, BaseFit, CodingUsers, autoencoder_of, coded, server_data_of

HYPER, TABLE = "hyper/", "returned/"


@dataclass(kw_only=True)
class SemiPFL(FedsimStrategy):
    """A hypernetwork makes users' autoencoders; base models of the server's data are mixed on them.

    Attributes:
        embedding: Numbers of an embedding; null: int(1 + users/4).
        width, depth: Units of the hypernetwork's hidden layers, and how many follow the first.
        hyper_init: Where its outputs begin: at the `model`'s own first values, or by PyTorch's
            `default`.
        hyper_lr, clip_norm: Of its step.
        optimiser: Of the users' autoencoders.
        keep: Share of each source's samples that is kept, those of the least error.
        keep_by: Whether that share is of each `source`, or of each `class` of a source: those of
            little motion are reconstructed best, and would be most of what is kept.
        tau: An absolute bound on the error in place of `keep`; null for none.
        base_epochs, base_lr, base_batch: Of the base models, by Adam.
        mix: `output`: probabilities are mixed; `parameter`: the base models' parameters are.
        mix_epochs, mix_lr: Of the mixture's weights, by Adam on all labelled windows at once;
            0 epochs: equal weights.
        output: What the model's decoder must end in; null: whatever it does. The presets of the
            paper and of its code refuse another than theirs, which is a matter of the model.
    """

    embedding: Annotated[int, Range(ge=1)] | None = None
    width: Annotated[int, Range(ge=1)] = 100
    depth: Annotated[int, Range(ge=0)] = 3
    hyper_init: Literal["model", "default"] = "model"
    hyper_lr: Annotated[float, Range(gt=0)] = 1e-3
    clip_norm: Annotated[float, Range(gt=0)] = 50.0
    optimiser: Optimiser = "adam"
    keep: Annotated[float, Range(gt=0, le=1)] = 0.7
    keep_by: Literal["source", "class"] = "class"
    tau: Annotated[float, Range(ge=0)] | None = None
    base_epochs: Annotated[int, Range(ge=1)] = 40
    base_lr: Annotated[float, Range(gt=0)] = 3e-3
    base_batch: Annotated[int, Range(ge=1)] = 128
    mix: Literal["output", "parameter"] = "output"
    mix_epochs: Annotated[int, Range(ge=0)] = 100
    mix_lr: Annotated[float, Range(gt=0)] = 0.05
    output: Literal["linear", "tanh"] | None = None

    sends_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hyper = Hypernetwork(
            width=self.width,
            depth=self.depth,
            size=self.embedding,
            from_model=self.hyper_init == "model",
        )
        self._returned = ClientTable()
        self._made: tuple[np.ndarray, Params] = (np.arange(0), {})

    @property
    def client_half(self) -> ClientHalf:
        return CodingUsers(self.optimiser, self.mix, self.mix_epochs, self.mix_lr)

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        return autoencoder_of(self._round.params)

    def client_payload(self, context: Round) -> Params:
        self._fit(context)
        self._made = (context.asked, self._hyper(context.asked))
        return self._made[1]

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
        self._returned.put(chunk.client_index, chunk.arrays)
        return {**context.params, **self._hyper.mean()}

    def evaluation_payload(self, context: Round) -> PayloadOf:
        self._fit(context)

        def rows(clients: np.ndarray) -> Params:
            phi, new = self._returned.rows(clients), ~self._returned.seen[clients]
            if new.any():
                index = torch.from_numpy(np.flatnonzero(new))
                for name, tensor in self._hyper(clients[new]).items():
                    phi[name][index.to(tensor.device)] = tensor
            return {**phi, **self._bases(phi)}

        return rows

    def state_dict(self) -> State:
        return {**self._hyper.state_dict(HYPER), **self._returned.state_dict(TABLE)}

    def load_state_dict(self, state: State) -> None:
        odd = [key for key in state if not key.startswith((HYPER, TABLE))]
        if odd:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(odd)[:8]}, which is not SemiPFL's; "
                "was the strategy changed?"
            )
        self._hyper.load_state_dict(state, HYPER)
        self._returned.load_state_dict(state, TABLE)

    def _fit(self, context: Round) -> None:
        """Make the hypernetwork, or room for users who have joined.

        Raises:
            ConfigError: In a simulation, the server has no data to learn from.
        """
        server_data_of(self)
        self._check_output()
        like = autoencoder_of(context.params)
        seed = 0 if self.federation is None else self.federation.seed
        self._hyper.fit(like, context.num_clients, seed)
        self._returned.fit(like, context.num_clients)

    def _check_output(self) -> None:
        model = None if self.federation is None else self.federation.model
        if self.output is None or model is None:
            return
        there = "tanh" if coded(model).bounded else "linear"
        if there != self.output:
            raise ConfigError(
                f"model.output={there}: the strategy is set to be run with a decoder that ends in "
                f"{self.output}; set model.output={self.output}, or strategy.output=null"
            )

    def _bases(self, phi: Params) -> Params:
        """Return the base models of some users' autoencoders, name -> `[K, M, ...]`."""
        federation, data = self.federation, server_data_of(self)
        if federation is None or data is None:
            return {}  # nobody has said what the server knows
        make = BaseFit(
            keep=self.keep,
            tau=self.tau,
            by_class=self.keep_by == "class",
            pooled=False,
            epochs=self.base_epochs,
            lr=self.base_lr,
            batch_size=self.base_batch,
            seed=federation.seed,
        )
        bases = make(coded(federation.model), data, phi)
        return {BASE + name: rows for name, rows in bases.items()}
