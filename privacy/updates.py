"""What mechanisms at the level of whole clients share: the clipped update, and one noisy mean.

    client k:  u_k = w_k · clip_C(y_k − x),  w_k = min(n_k / ŵ, 1) ≤ 1, ŵ public (or w_k = 1)
    server:    ū = (Σ_k u_k + noise) / m,    m public: the planned number of clients in a round

The strategy sees one client, whose model is x + ū: whatever it makes of it is post-processing.

Sensitivity. ‖u_k‖ ≤ C for every client, whatever it trained on: adding or removing one moves the
sum by at most C, replacing one by at most 2C. The server clips once more what it receives, in
float64, so that neither rounding nor a client that did not clip can break the bound; a reply with a
NaN was not admitted and adds nothing. m does not depend on who replied, nor on n_k.

Shapes: K clients, P numbers of all floating-point tensors laid end to end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.participation.sampling import FixedSize, Poisson, Sampling
from fedsim.protection import Setting
from fedsim.protection.statement import Relation
from fedsim.records import NUM_EXAMPLES, Chunk, Params, Replies, moved, reply_content
from fedsim.strategy import FedsimStrategy
from fedsim.third_party import of_mean_only


def float_names(params: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that updates are made of."""
    return [name for name, tensor in params.items() if tensor.is_floating_point()]


@torch.no_grad()
def shrink_(weights: Params, start: Params, clip_norm: float, weight_K: np.ndarray) -> Tensor:
    """Clip K clients' updates to `clip_norm` in place, times `weight_K`; return their norms `[K]`.

    An update that is not finite stays so, and is not admitted.

    Args:
        weights: name -> `[K, ...]`.
        start: The model as received; integer tensors go back to it.
        clip_norm: C.
        weight_K: In [0, 1].
    """
    names = float_names(start)
    square_K: Tensor = torch.zeros(len(weight_K), dtype=torch.float64)
    for name in names:
        update = weights[name] - start[name]
        norm_K = torch.linalg.vector_norm(update.flatten(1), dim=1, dtype=torch.float64)
        square_K = square_K.to(norm_K.device) + norm_K.square()
    norms_K = square_K.sqrt()
    factor_K = torch.where(norms_K > clip_norm, clip_norm / norms_K, 1.0)
    factor_K = factor_K * torch.from_numpy(weight_K).to(factor_K.device)
    for name, rows in weights.items():
        if name in names:
            factor = factor_K.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
            rows.sub_(start[name]).mul_(factor).add_(start[name])
        else:
            rows.copy_(start[name].expand_as(rows))
    return norms_K


@torch.no_grad()
def clipped_rows(chunk: Chunk, params: Params, clip_norm: float) -> Tensor:
    """Return the received updates of some clients, clipped, float64 `[K, P]`."""
    rows_KP = torch.cat(
        [
            chunk.arrays[name].double().flatten(1) - params[name].double().flatten()
            for name in float_names(params)
        ],
        dim=1,
    )
    norms_K = torch.linalg.vector_norm(rows_KP, dim=1)
    factor_K = torch.where(norms_K > clip_norm, clip_norm / norms_K, 1.0)
    return rows_KP * factor_K.unsqueeze(1)


def unflatten(flat_P: Tensor, params: Params) -> Params:
    """Return an update laid flat as tensors, float64; zeros for integer tensors."""
    names = float_names(params)
    parts = iter(torch.split(flat_P, [params[name].numel() for name in names]))
    return {
        name: next(parts).view(tensor.shape)
        if tensor.is_floating_point()
        else torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
        for name, tensor in params.items()
    }


class OneReply(Replies):
    """The noisy mean, as the only reply that a strategy sees.

    Args:
        params: x, the model that clients were sent.
        update: ū, name -> float64.
    """

    def __init__(self, params: Params, update: Params) -> None:
        self.model = moved(params, update, 1.0)

    def __iter__(self) -> Iterator[Message]:
        yield Message(reply_content(self.model, {NUM_EXAMPLES: 1.0}, zero_copy=False), 0, "train")

    def chunks(self) -> Iterator[Chunk]:
        """See `Replies.chunks`."""
        yield Chunk(
            client_index=np.zeros(1, np.int64),
            arrays={name: tensor.unsqueeze(0) for name, tensor in self.model.items()},
            metrics={NUM_EXAMPLES: np.ones(1)},
        )


def planned_clients(setting: Setting) -> float:
    """Return the public number of clients in a round, which the sum is divided by."""
    sampling = setting.schedule.sampling()
    if isinstance(sampling, Poisson):
        return max(sampling.rate * setting.num_clients, 1e-9)
    if isinstance(sampling, FixedSize):
        return float(sampling.size)
    return max(float(np.sum(setting.schedule.rates())), 1e-9)


def check_mean_only(setting: Setting, mechanism: str) -> None:
    """Check that the strategy does with one noisy mean.

    Raises:
        ConfigError: It looks at single clients.
    """
    strategy = setting.strategy
    if not (
        strategy.of_mean_only if isinstance(strategy, FedsimStrategy) else of_mean_only(strategy)
    ):
        raise ConfigError(
            f"strategy: {type(strategy).__name__} looks at each client's update, and {mechanism} "
            "gives it one noisy mean of all; use strategy=fedavg, fedprox, fedavgm, fedadam, "
            "fedyogi or fedadagrad"
        )
    share = getattr(strategy, "fraction_train", 1.0)
    if share != 1.0:
        raise ConfigError(
            f"strategy.fraction_train: {share:g} draws once more among a round's participants, by "
            "a law that is not accounted for; set strategy.fraction_train=1.0 and draw by "
            "participation=bernoulli"
        )


def check_sends_model_only(runtime: ClientRuntime, mechanism: str) -> None:
    """Check that the client half sends nothing but its model.

    Raises:
        ConfigError: It sends more, of which the mechanism knows nothing.
    """
    half = runtime.half
    for level in ("upload", "begin", "gradient", "run"):
        if half.overrides(level):
            raise ConfigError(
                f"strategy: {type(half).__name__} sends, or keeps, more than a clipped update "
                f"(`{level}`), which {mechanism} does not cover; use strategy=fedavg or fedprox"
            )


def relation_of(asked: Relation | None, sampling: Sampling) -> Relation:
    """Return the neighbouring relation: the one asked for, or the one that the sampling has.

    Raises:
        ConfigError: They do not go together.
    """
    if isinstance(sampling, FixedSize):
        if asked == "add_remove":
            raise ConfigError(
                "relation: add_remove is not accounted for cohorts of fixed size, where one client "
                "more pushes another one out; use participation=bernoulli, whose cohorts cost far "
                "less, or privacy.relation=replace_one"
            )
        return "replace_one"
    return asked or "add_remove"


def client_weights(num_examples: np.ndarray, weight_cap: float | None) -> np.ndarray:
    """Return w_k in [0, 1], float64 `[K]`."""
    if weight_cap is None:
        return np.ones(len(num_examples))
    capped: np.ndarray = np.minimum(num_examples / weight_cap, 1.0)
    return capped


def infinite(epsilon: float | None) -> float:
    """Return the target for a calibration."""
    return math.inf if epsilon is None else epsilon
