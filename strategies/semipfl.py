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

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.client.half import ClientHalf
from fedsim.client_table import ClientTable
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Chunk, Params, PayloadOf
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import Round, State
from strategies.coded import BASE, BaseFit, CodingUsers, autoencoder_of, coded, server_data_of
from strategies.hypernetworked import Hypernetworked

TABLE = "returned/"


@dataclass(kw_only=True)
class SemiPFL(Hypernetworked):
    """A hypernetwork makes users' autoencoders; base models of the server's data are mixed on them.

    Attributes:
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self._returned = ClientTable()

    @property
    def client_half(self) -> ClientHalf:
        return CodingUsers(self.optimiser, self.mix, self.mix_epochs, self.mix_lr)

    def made_of(self, params: Params) -> Params:
        return autoencoder_of(params)

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
        return {**super().state_dict(), **self._returned.state_dict(TABLE)}

    def load_state_dict(self, state: State) -> None:
        table = {key: value for key, value in state.items() if key.startswith(TABLE)}
        super().load_state_dict({key: v for key, v in state.items() if key not in table})
        self._returned.load_state_dict(table, TABLE)

    def _fit(self, context: Round) -> None:
        """Make the hypernetwork, or room for users who have joined.

        Raises:
            ConfigError: In a simulation, the server has no data to learn from.
        """
        server_data_of(self)
        self._check_output()
        super()._fit(context)
        self._returned.fit(self.made_of(context.params), context.num_clients)

    def _learn(self, chunk: Chunk) -> None:
        super()._learn(chunk)
        self._returned.put(chunk.client_index, chunk.arrays)

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
