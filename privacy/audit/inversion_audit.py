"""`audit=inversion`: what one client's first step gives away of its pictures, as a picture.

Geiping et al. 2020 (arXiv:2003.14053), and the exact linear leak; see `privacy.audit.inversion`.
Some samples of the client that takes part most often are each the only one in its first batch, the
worst case for them. The adversary knows the model and the label, and sees what the client sends
after one step: without privacy, and under the scenario's mechanism (clipping, noise, the public
denominator, and whatever else is done to what leaves a client).

    sent = (x − y) / lr          x the model as received, y as sent after one step
    two attacks; of what they find, the one whose own gradient is nearer to what was sent

Nothing is bounded or refuted by it: an attack that fails proves nothing.

Differs from the paper: one picture at a time, so that clipping only scales what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.auditing import Audit, AuditPart, Verdict
from fedsim.client.gradient import Plain
from fedsim.client.half import Batch
from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, Protection
from fedsim.records import Params
from fedsim.simulation import Simulation
from privacy.audit.claim import busiest
from privacy.audit.inversion import cosine_distance, invert, linear_leak, picture, quality
from privacy.updates import check_sends_model_only

NAME = "audit=inversion"
WITHOUT, UNDER = "without privacy", "with privacy"


@dataclass(frozen=True, kw_only=True)
class InversionAudit(AuditPart):
    """Gradient inversion.

    Attributes:
        images: How many samples are attacked, each in a batch of its own.
        steps: Of the search for each.
        lr: Of the search, in units of the pixels' range.
        tv_weight: α of the search: how much smooth pictures are preferred.
    """

    images: Annotated[int, Range(ge=1, le=16)] = 4
    steps: Annotated[int, Range(ge=8)] = 400
    lr: Annotated[float, Range(gt=0)] = 0.1
    tv_weight: Annotated[float, Range(ge=0)] = 1e-4

    def plant(self, simulation: Simulation, inner: Protection) -> Audit:
        dataset = simulation.dataset
        if dataset.task != "classification" or dataset.train_y.dim() != 1:
            raise ConfigError(f"{NAME}: one class per sample is needed, e.g. data=digits")
        shape = picture_shape(dataset.input_shape)
        if type(inner).receive is not Protection.receive:
            raise ConfigError(
                f"{NAME}: here the server is trusted with what clients send, which is what this "
                "attacks; use privacy=dp_sgd, local_dp or none, or audit=canaries"
            )
        client = busiest(simulation)
        # One round is enough for what is claimed of it; the attack is on its first step.
        simulation.last_round = 1
        return _Running(self, simulation, inner, client, shape)


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of inputs that are pictures, or squares laid flat.

    Raises:
        ConfigError: They are neither.
    """
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[0], shape[1], shape[2]
    side = math.isqrt(math.prod(shape))
    if len(shape) == 1 and side * side == shape[0]:
        return 1, side, side
    raise ConfigError(
        f"{NAME}: inputs are {list(shape)}, which is no picture; use data=digits, or other images"
    )


class _Running(Audit):
    def __init__(
        self,
        part: InversionAudit,
        simulation: Simulation,
        inner: Protection,
        client: int,
        shape: tuple[int, int, int],
    ) -> None:
        self.part, self.simulation, self.client, self.shape = part, simulation, client, shape
        self.protection = inner

    def planted(self) -> dict[str, Any]:
        runtime = self.simulation.runtime
        check_sends_model_only(runtime, NAME)
        self.protection.estimator.check_alone(runtime)  # it is asked for one client's gradient
        samples = runtime.samples(self.client)[: self.part.images]
        if not len(samples):
            raise ConfigError(f"{NAME}: client {self.client} holds no samples")
        return {"client": self.client, "samples": samples.tolist()}

    def conclude(self, initial: Params, final: Params, ledger: Sequence[Line]) -> Verdict:
        runtime, part = self.simulation.runtime, self.part
        statement = self.protection.statement()
        ways = {WITHOUT: Protection()} | ({UNDER: self.protection} if statement.private else {})
        pool = runtime.pool([self.client])
        x, y = pool.take(pool.rows[0][: part.images])
        original = x.reshape(len(x), *self.shape).cpu().numpy().astype(float)
        low, high = float(runtime.dataset.train_x.min()), float(runtime.dataset.train_x.max())
        rows, scores = {"original": original}, {}
        for way, protection in ways.items():
            found = [
                self._attack(runtime, initial, Batch(x=x[i : i + 1], y=y[i : i + 1]), i, protection)
                for i in range(len(y))
            ]
            rows[way] = torch.cat(found).reshape(original.shape).cpu().numpy().astype(float)
            each = [
                quality(a[None], b[None], span=high - low)
                for a, b in zip(original, rows[way], strict=True)
            ]
            # Beyond what a picture of 16 bits could show, and JSON has no infinity.
            psnr = [min(100.0, float(q.psnr_B[0])) for q in each]
            scores[way] = {"psnr_db": psnr, "ssim": [float(q.ssim_B[0]) for q in each]}
        return Verdict(
            refuted=False,
            words=(*_words(scores), f"claimed: {statement}" if statement.private else _UNPROTECTED),
            values={
                "claim": statement.to_json() if statement.private else None,
                "client": self.client,
                "labels": y.tolist(),
                "recovered": scores,
            },
            picture=picture(rows, {way: _captions(found) for way, found in scores.items()}),
        )

    def _attack(
        self, runtime: ClientRuntime, start: Params, batch: Batch, key: int, protection: Protection
    ) -> Tensor:
        sent = list(_sent(runtime, start, batch, self.client, key + 1, protection).values())
        low, high = float(runtime.dataset.train_x.min()), float(runtime.dataset.train_x.max())

        def gradients(x: Tensor, *, graph: bool = True) -> list[Tensor]:
            leaves = {n: start[n].detach().requires_grad_() for n in runtime.trainable}
            inputs = (x * (high - low) + low).reshape(batch.x.shape)
            model = {**start, **leaves}
            context = _context(runtime, start, 1)
            loss = runtime.half.loss(model, Batch(x=inputs, y=batch.y), context)
            return list(torch.autograd.grad(loss, list(leaves.values()), create_graph=graph))

        runtime.model.eval()
        guess = torch.full((1, *self.shape), 0.5, dtype=batch.x.dtype, device=batch.x.device)
        part = self.part
        found = [
            invert(gradients, sent, guess, steps=part.steps, lr=part.lr, tv_weight=part.tv_weight)
        ]
        if (names := first_linear(runtime)) is not None:
            at = [list(runtime.trainable).index(name) for name in names]
            leaked = linear_leak(sent[at[0]], sent[at[1]]).reshape(guess.shape)
            found.append(((leaked - low) / (high - low)).nan_to_num().clamp(0, 1))
        distance = [float(cosine_distance(gradients(x, graph=False), sent)) for x in found]
        return found[int(np.argmin(distance))] * (high - low) + low


def first_linear(runtime: ClientRuntime) -> tuple[str, str] | None:
    """Return the weight's and the bias' name of a layer that sees the inputs themselves, laid flat.

    None if the model begins otherwise, or the layer is frozen.
    """
    for path, module in runtime.model.named_modules():
        if list(module.children()) or isinstance(module, nn.Flatten):
            continue
        names = (f"{path}.weight".lstrip("."), f"{path}.bias".lstrip("."))
        size = math.prod(runtime.dataset.input_shape)
        fits = isinstance(module, nn.Linear) and module.in_features == size
        return names if fits and all(name in runtime.trainable for name in names) else None
    return None


def _context(runtime: ClientRuntime, start: Params, server_round: int) -> Any:
    return runtime.context(params=start, client_arrays={}, server_round=server_round, steps=1)


def _sent(
    runtime: ClientRuntime,
    start: Params,
    batch: Batch,
    client: int,
    key: int,
    protection: Protection,
) -> Params:
    """Return what a client's update after one step says of the gradient, name -> trainable tensor.

    Args:
        runtime: Of the run.
        start: The model as received.
        batch: What the client holds.
        client: Who.
        key: The round that noise is keyed by: 1, 2, ..., so that no two pictures share any.
        protection: The mechanism.
    """
    estimator = protection.estimator
    runtime.model.train()
    made = Plain() if estimator.plain else estimator
    gradient = made.begin(runtime, server_round=key, client=client)
    dropout = runtime.dropout(key, [client])
    grads, _ = gradient(start, batch, _context(runtime, start, key), dropout)
    if not protection.seals:
        return {name: grads[name].detach() for name in runtime.trainable}
    lr = runtime.work.lr_at(1)
    local = {name: t.clone().unsqueeze(0) for name, t in start.items()}
    with torch.no_grad():
        for name in runtime.trainable:
            local[name].sub_(grads[name], alpha=lr)
        told, count = protection.told(), np.array([len(batch.y)])
        protection.seal_(local, start, np.array([client]), key, count, told)
    return {name: (start[name] - local[name][0]) / lr for name in runtime.trainable}


_UNPROTECTED = "claimed: nothing; with a mechanism (fedsim list privacy), a row is drawn for it too"


def _words(scores: dict[str, dict[str, list[float]]]) -> list[str]:
    first = "gradient inversion of one client's first step, one sample a batch (nothing is refuted)"
    return [first] + [
        f"recovered {way}: PSNR {np.mean(found['psnr_db']):.1f} dB, SSIM "
        f"{np.mean(found['ssim']):.3f} (means of {len(found['ssim'])} pictures; an exact copy has "
        "SSIM 1, and PSNR is shown up to 100 dB)"
        for way, found in scores.items()
    ]


def _captions(found: dict[str, list[float]]) -> list[str]:
    return [
        f"{psnr:.1f} dB, SSIM {ssim:.2f}"
        for psnr, ssim in zip(found["psnr_db"], found["ssim"], strict=True)
    ]
