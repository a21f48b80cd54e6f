"""Strategies that a scenario may name: Ray's actors import them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedsim.client import ClientHalf
from strategies.fedavg import FedAvg


class Pull(ClientHalf):
    """One number per client goes out with the model and comes back changed."""

    def correct(self, grads, params, context):
        pull = context.arrays["pull"]
        return {n: g + pull * (params[n] - context.start[n]) for n, g in grads.items()}

    def upload(self, params, context):
        return {"pull": context.arrays["pull"] + params["output.bias"].abs().sum()}


@dataclass(kw_only=True)
class Keeps(FedAvg):
    pull: torch.Tensor = field(init=False, default_factory=lambda: torch.zeros(0))

    @property
    def client_half(self):
        return Pull()

    def client_payload(self, context):
        if not len(self.pull):
            self.pull = torch.linspace(0, 1, context.num_clients)
        return {"pull": self.pull[context.asked]}

    def upload_like(self, context):
        return {"pull": torch.zeros(())}

    def aggregate(self, context, replies):
        strategy = self

        class Noted:
            def chunks(self):
                for chunk in replies.chunks():
                    strategy.pull[chunk.client_index] = chunk.client_arrays["pull"]
                    yield chunk

        return super().aggregate(context, Noted())

    def state_dict(self):
        return {"pull": self.pull}


class Fails(ClientHalf):
    def criterion(self, outputs, batch, context):
        if context.arrays["fail"]:  # a branch on data, which no stacked engine can take
            raise FloatingPointError("criterion of a client")
        return super().criterion(outputs, batch, context)


@dataclass(kw_only=True)
class EveryThirdFails(FedAvg):
    @property
    def client_half(self):
        return Fails()

    def client_payload(self, context):
        return {"fail": torch.from_numpy((context.asked % 3 == 0).astype("float32"))}


class Dies(ClientHalf):
    def __init__(self, file):
        self.file = file

    def criterion(self, outputs, batch, context):
        try:
            self.file.unlink()
        except FileNotFoundError:
            return super().criterion(outputs, batch, context)
        os._exit(1)


@dataclass(kw_only=True)
class DiesOnce(FedAvg):
    """The process that takes the file ends; that of who comes later does not."""

    file: str = ""

    @property
    def client_half(self):
        return Dies(Path(self.file))
