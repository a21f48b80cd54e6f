"""What is done with users' autoencoders: trained, used to choose and code data, mixed upon.

    a user:   φ̃ = Adam or SGD on the mean of ‖x − dec(enc(x))‖² / D over all its windows
    server:   of each source m, keep the samples that φ̃ reconstructs best;
              b_m = cross-entropy on (enc_φ̃(x), y) of those that are kept
    a user:   f(x) = Σ_m a_m softmax(b_m(enc_φ̃(x))),  a = softmax(v),  v fitted on its labels;
              or one head of the parameters Σ_m a_m b_m; or b_1 itself, fitted further

The base models b_m are frozen while v is fitted. v = 0 where a user has no labels, or M = 1.

Models are those of `fedsim.models.autoencoder`: whoever has an `encoder`, a `decoder` and a `head`.
No code of two users is ever mixed: each function takes K users at once, and a row of its result is
of that user's row alone.

Shapes: K users, M sources, S samples of the server, n of a source, d of a code, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import seeds
from fedsim.client.half import ClientHalf
from fedsim.client.objective import padded_scores
from fedsim.client.sequential import TRAIN_LOSS
from fedsim.client.whole import Cohort, Worked
from fedsim.data.dataset import ServerData
from fedsim.errors import ConfigError
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.models.autoencoder import CodedClassifier
from fedsim.records import Params
from fedsim.stacked_fit import IGNORED, Gradients, Optimiser, fit
from fedsim.strategy import FedsimStrategy

BASE, HEAD = "base/", "head."
"""What the names of base models' tensors start with in a message, and a head's in the model."""

Mix = Literal["output", "parameter", "tune"]


def coded(model: nn.Module | None) -> CodedClassifier:
    """Return a model that has what is needed here.

    Raises:
        ConfigError: It does not.
    """
    if isinstance(model, CodedClassifier):
        return model
    raise ConfigError(
        f"model: the strategy trains autoencoders, and {type(model).__name__} is none; use "
        "model=autoencoder"
    )


def autoencoder_of(params: Params) -> Params:
    """Return the part of a model that users train: all but the head, and integers."""
    return {n: t for n, t in params.items() if not n.startswith(HEAD) and t.is_floating_point()}


def server_data_of(strategy: FedsimStrategy) -> ServerData | None:
    """Return what the server learns from; None where nobody has told, outside a simulation.

    Raises:
        ConfigError: A simulation has no such data, or a model that codes nothing.
    """
    federation = strategy.federation
    if federation is None or federation.model is None:
        return None
    coded(federation.model)
    if federation.server_data is None:
        raise ConfigError(
            f"data: {type(strategy).__name__}'s server learns from labelled data of its own, and "
            "this data set has none; use data of subjects, e.g. data=wearable"
        )
    return federation.server_data


def encode(model: CodedClassifier, params: Params, x: Tensor) -> Tensor:
    """Return codes `[B, d]` of one user's encoder."""
    code: Tensor = functional_call(model.encoder, _part(params, "encoder."), (x,))
    return code


def errors(model: CodedClassifier, params: Params, x: Tensor) -> Tensor:
    """Return the reconstruction error of each sample, `[B]`."""
    again = functional_call(model.decoder, _part(params, "decoder."), (encode(model, params, x),))
    error: Tensor = (again - x).square().flatten(1).mean(1)
    return error


class Reconstruction(nn.Module):
    """An autoencoder alone, its tensors named as in the whole model."""

    def __init__(self, model: CodedClassifier) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, x: Tensor) -> Tensor:
        """Return what the code keeps of `x [B, ...]`."""
        again: Tensor = self.decoder(self.encoder(x))
        return again


def stacked_gradients(model: CodedClassifier) -> Gradients | None:
    """Return the gradients of many users' mean `errors` by the layer rules; None: there are none.

    Each layer is one product for all users, forth and back, and `torch.func` is left out.
    """
    if type(model) is not CodedClassifier:
        return None  # the rules cannot see what another's layers do between them
    try:
        stacked = StackedModel(Reconstruction(model))
    except NoRuleError:
        return None
    buffers: Params = {}

    def gradients(params: Params, weight_KB: Tensor, x: Tensor) -> tuple[Params, Tensor]:
        for name, rows in params.items():
            if name not in buffers:
                buffers[name] = torch.empty_like(rows)
        stacked.tape.weights = params
        size = x[0, 0].numel()
        share_KB = weight_KB / weight_KB.sum(1, keepdim=True).clamp(min=1)
        with torch.enable_grad():
            folded = x.flatten(0, 1)
            again = stacked.forward(folded, len(x))
            error_N = F.mse_loss(again, folded, reduction="none").flatten(1).sum(1)
            loss_K = (share_KB / size * error_N.view_as(share_KB)).sum(1)
            edges = stacked.backward(loss_K.sum())
        torch._foreach_zero_(list(buffers.values()))
        stacked.contract_(buffers, edges, 1.0)
        return buffers, loss_K.detach()

    return gradients


def _part(params: Params, prefix: str) -> Params:
    return {n.removeprefix(prefix): t for n, t in params.items() if n.startswith(prefix)}


# --- the server --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BaseFit:
    """How the server makes base models.

    Attributes:
        keep: Share of the samples of each source that is kept, those reconstructed best.
        tau: An absolute bound on the error, in place of that share; None for none.
        by_class: Whether the share is of each class of a source, instead of the source.
        pooled: Whether there is one base model, of all sources.
        epochs, lr, batch_size: Of Adam.
        seed: Of first values and batches, which are the same for all users.
    """

    keep: float
    tau: float | None
    by_class: bool
    pooled: bool
    epochs: int
    lr: float
    batch_size: int
    seed: int

    def __call__(self, model: CodedClassifier, data: ServerData, phi: Params) -> Params:
        """Return K users' base models, name -> `[K, M, ...]`, by the head's names."""
        source_S = torch.zeros_like(data.source) if self.pooled else data.source
        with torch.no_grad():
            error_KS = torch.vmap(lambda p: errors(model, p, data.x))(phi)
            code_KSd = torch.vmap(lambda p: encode(model, p, data.x))(phi)
        kept_KS = self.kept(error_KS, source_S, data.y)
        index_Mn, true_Mn = _padded([torch.nonzero(source_S == m)[:, 0] for m in _values(source_S)])
        users, sources = len(error_KS), len(index_Mn)
        code = code_KSd[:, index_Mn].flatten(0, 1)  # [K·M, n, d]
        weight = (kept_KS[:, index_Mn] & true_Mn).flatten(0, 1).to(code.dtype)
        target = data.y[index_Mn].expand(users, -1, -1).flatten(0, 1)
        scale = _moments(code, weight)
        start = {
            name: rows.expand(users, *rows.shape).flatten(0, 1)
            for name, rows in self._heads(model, sources, code).items()
        }
        fixed = {f"scale.{name}": rows for name, rows in scale.items()}
        trained = {name: rows for name, rows in start.items() if name not in fixed}
        fitted, _ = fit(
            trained,
            self._batches(code, target, weight, users),
            lambda p, z, y: _head_losses(model, p, z, y),
            lr=self.lr,
            fixed=fixed,
        )
        return {
            HEAD + name: rows.view(users, sources, *rows.shape[1:])
            for name, rows in {**fixed, **fitted}.items()
        }

    def kept(self, error_KS: Tensor, source_S: Tensor, y_S: Tensor) -> Tensor:
        """Return which samples of the server are used for each user, bool `[K, S]`."""
        if self.tau is not None:
            return error_KS <= self.tau
        group_S = source_S * (int(y_S.max()) + 1) + y_S if self.by_class else source_S
        kept_KS = torch.zeros_like(error_KS, dtype=torch.bool)
        for group in _values(group_S):
            index_n = torch.nonzero(group_S == group)[:, 0]
            count = math.ceil(self.keep * len(index_n) - 1e-9)
            best = error_KS[:, index_n].argsort(dim=1, stable=True)[:, :count]
            kept_KS.scatter_(1, index_n[best], True)
        return kept_KS

    def _heads(self, model: CodedClassifier, sources: int, like: Tensor) -> Params:
        """Return M heads as PyTorch begins them, name -> `[M, ...]`."""
        key = seeds.sequence(self.seed, 0, seeds.SERVER, "base-models")
        module = copy.deepcopy(model.head).cpu()
        drawn: list[Params] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(key.generate_state(1)[0]))
            for _ in range(sources):
                for layer in module.modules():
                    if isinstance(layer, nn.Linear):
                        layer.reset_parameters()
                drawn.append({n: t.detach().clone() for n, t in module.state_dict().items()})
        return {
            name: torch.stack([head[name] for head in drawn]).to(like.device, like.dtype)
            for name in drawn[0]
        }

    def _batches(
        self, code: Tensor, target: Tensor, weight: Tensor, users: int
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        rng = seeds.rng(self.seed, 0, seeds.SERVER, "base-batches")
        rows = torch.arange(len(code), device=code.device).unsqueeze(1)
        count = code.shape[1]
        for _ in range(self.epochs):
            order = torch.from_numpy(rng.permutation(count)).to(code.device)
            for first in range(0, count, self.batch_size):
                index = order[first : first + self.batch_size].expand(len(code), -1)
                yield (code[rows, index], target[rows, index]), weight[rows, index]


def _values(index_S: Tensor) -> list[int]:
    return sorted(set(index_S.tolist()))


def _padded(groups: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return index lists `[M, n]`, padded with their first, and which are true."""
    width = max(len(group) for group in groups)
    index = torch.stack([torch.cat([g, g[:1].expand(width - len(g))]) for g in groups])
    lengths = torch.tensor([len(g) for g in groups], device=index.device)
    return index, torch.arange(width, device=index.device) < lengths.unsqueeze(1)


def _moments(code_RnD: Tensor, weight_Rn: Tensor) -> Params:
    """Return mean and standard deviation of the codes that count, `[R, d]` each."""
    total_R1 = weight_Rn.sum(1, keepdim=True).clamp(min=1)
    weight_Rn1 = weight_Rn.unsqueeze(2)
    mean = (weight_Rn1 * code_RnD).sum(1) / total_R1
    square = (weight_Rn1 * (code_RnD - mean.unsqueeze(1)).square()).sum(1) / total_R1
    return {"mean": mean, "std": torch.where(square > 1e-12, square, 1.0).sqrt()}


def _head_losses(model: CodedClassifier, params: Params, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model.head, params, (z,)), y, reduction="none")


# --- users -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodingUsers(ClientHalf):
    """Users who train autoencoders, and mix what the server has made of them.

    Attributes:
        optimiser: Of the autoencoder.
        mix: What is mixed: base models' outputs, or their parameters; or `tune`: the first base
            model is itself fitted.
        mix_epochs, mix_lr: Steps of Adam on all labelled windows at once.
        mu: Of a proximal term that holds the autoencoder near the one that was sent (FedProx).
    """

    optimiser: Optimiser
    mix: Mix
    mix_epochs: int
    mix_lr: float
    mu: float = 0.0

    takes_unlabelled = True

    @property
    def ignored_work(self) -> tuple[str, ...]:  # type: ignore[override]
        return IGNORED[self.optimiser]

    def run(self, cohort: Cohort) -> Worked:
        model = coded(cohort.model)
        fitted, loss_K = fit(
            cohort.arrays,
            (((batch.x,), true_KB) for batch, true_KB in cohort.steps()),
            lambda params, x: errors(model, params, x),
            lr=cohort.lr,
            optimiser=self.optimiser,
            momentum=cohort.momentum,
            weight_decay=cohort.weight_decay,
            pull=self.mu,
            # A user alone is the reference: plain `torch.func`.
            gradients=stacked_gradients(model) if len(cohort) > 1 else None,
        )
        return Worked(arrays=fitted, metrics={TRAIN_LOSS: loss_K})

    def score(self, cohort: Cohort) -> dict[str, Tensor]:
        model = coded(cohort.model)
        phi = {n: t for n, t in cohort.arrays.items() if not n.startswith(BASE)}
        base = {
            n.removeprefix(BASE + HEAD): t for n, t in cohort.arrays.items() if n.startswith(BASE)
        }
        if not base:
            raise ConfigError(
                "data: the strategy classifies by what the server learns of its own data, and it "
                "has none; use data of subjects, e.g. data=wearable"
            )
        labelled, known = cohort.stacked()
        held, true = cohort.stacked(held_out=True)
        z_l, z = (torch.vmap(lambda p, x: encode(model, p, x))(phi, b.x) for b in (labelled, held))
        return padded_scores(self.mixed(model, base, (z_l, labelled.y, known), z), held.y, true)

    def mixed(
        self,
        model: CodedClassifier,
        base: Params,
        labelled: tuple[Tensor, Tensor, Tensor],
        z_KBd: Tensor,
    ) -> Tensor:
        """Return log-probabilities `[K, B, C]`.

        Args:
            model: The architecture.
            base: Heads' tensors, `[K, M, ...]`.
            labelled: Codes `[K, n, d]`, classes `[K, n]`, and which are true.
            z_KBd: Codes to classify.
        """
        z_l, y_l, known = labelled
        users, sources = next(iter(base.values())).shape[:2]
        if self.mix == "tune":
            own = {name: rows[:, 0] for name, rows in base.items()}
            still = {n: own.pop(n) for n in list(own) if n.startswith("scale.")}
            batches = [((z_l, y_l), known)] * self.mix_epochs
            tuned, _ = fit(
                own,
                batches,
                lambda p, z, y: _head_losses(model, p, z, y),
                lr=self.mix_lr,
                fixed=still,
            )
            heads = {**still, **tuned}
            return torch.vmap(lambda p, z: _log_probabilities(model, p, z))(heads, z_KBd)
        weights = {"v": z_l.new_zeros(users, sources)}
        if sources > 1 and bool(known.any()) and self.mix_epochs:
            batches = [((z_l, y_l), known)] * self.mix_epochs
            weights, _ = fit(
                weights,
                batches,
                lambda p, z, y: F.nll_loss(self._output(model, p, z), y, reduction="none"),
                lr=self.mix_lr,
                fixed=base,
            )
        with torch.no_grad():
            return torch.vmap(lambda p, z: self._output(model, p, z))({**base, **weights}, z_KBd)

    def _output(self, model: CodedClassifier, params: Params, z: Tensor) -> Tensor:
        """Return one user's log-probabilities, `[B, C]`; `params` are its heads `[M, ...]`, v."""
        log_a = F.log_softmax(params["v"], 0)
        heads = {name: rows for name, rows in params.items() if name != "v"}
        if self.mix == "parameter":
            mean = {name: torch.tensordot(log_a.exp(), rows, 1) for name, rows in heads.items()}
            return _log_probabilities(model, mean, z)
        logs = torch.vmap(lambda p: _log_probabilities(model, p, z))(heads)  # [M, B, C]
        return torch.logsumexp(log_a[:, None, None] + logs, 0)


def _log_probabilities(model: CodedClassifier, head: Params, z: Tensor) -> Tensor:
    return F.log_softmax(functional_call(model.head, head, (z,)), -1)
