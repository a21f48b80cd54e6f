"""The models and the data of the comparison, for those who run on torch."""

import numpy as np
import torch
from torch import nn

LR, CLIENTS, COHORT, SAMPLES, BATCH = 0.05, 1000, 50, 50, 10


def load(path):
    """Return (x, y, test x, test y) as tensors; client k holds samples 50 k .. 50 k + 49."""
    torch.set_num_threads(1)  # more of them make every contestant on torch slower
    data = np.load(path)
    return tuple(torch.from_numpy(data[name]) for name in ("x", "y", "test_x", "test_y"))


def make_model(name):
    """Return `linear` (784-10, at zero) or `mlp` (784-200-10)."""
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    model = nn.Linear(784, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model
