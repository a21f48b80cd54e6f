"""Models of every kind that stacked layers must run."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.models.base import ModelPart
from fedsim.models.cnn import CNN
from fedsim.models.linear import LinearModel
from fedsim.models.lora import LoRA
from fedsim.models.mlp import MLP
from fedsim.models.resnet import ResNet
from fedsim.models.text_classifier import TextClassifier
from fedsim.models.transformer import Transformer
from tests.helpers import classification, tokens


class Residual(nn.Module):
    """A forward written as people write it: functions, in-place operations, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.shared = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.first(x))
        y = self.shared(h)
        y += h
        y = F.relu(self.norm(y), inplace=True)
        return self.head(self.shared(y) * 0.5)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.ELU(),
        nn.Flatten(), nn.Linear(4 * 3 * 3, 5), nn.Tanh(), nn.Linear(5, 3, bias=False),
    )  # fmt: skip


def inplace_first() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.1, inplace=True), nn.Linear(8, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def same_module_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


float64 = torch.float64
VECTORS = classification(dtype=float64)
IMAGES = classification(shape=(1, 8, 8), dtype=float64)
LABELLED = replace(tokens(), train_y=tokens().train_y[:, 0], test_y=tokens().test_y[:, 0])
MODELS: dict[str, tuple[ModelPart | Callable[[], nn.Module], Dataset]] = {
    "linear": (LinearModel(), VECTORS),
    "mlp": (MLP(hidden=[5, 4]), VECTORS),
    "cnn": (CNN(channels=[4, 3], hidden=[5]), IMAGES),
    "cnn with dropout": (CNN(channels=[4], hidden=[5], dropout=0.5), IMAGES),
    "resnet": (ResNet(widths=[4, 8], groups=2), IMAGES),
    "transformer": (Transformer(width=8, heads=2, layers=2), tokens()),
    "transformer, tied": (Transformer(width=8, heads=2, layers=1, tied=True), tokens()),
    "transformer with dropout": (Transformer(width=8, heads=2, layers=1, dropout=0.3), tokens()),
    "lora": (LoRA(rank=2, base=Transformer(width=8, heads=2, layers=1)), tokens()),
    "text classifier": (TextClassifier(width=8, heads=2), LABELLED),
    "torch.nn": (sequential, IMAGES),
    "in place after the first": (inplace_first, VECTORS),
    "residual": (Residual, VECTORS),
    "tied linear": (tied, VECTORS),
    "same module twice": (same_module_twice, VECTORS),
}
