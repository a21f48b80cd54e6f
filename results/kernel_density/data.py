"""The records of the experiments: tables, and features of images by a network of other data.

What scales them is public: the network and its means come from MNIST, the tables' scales from their
published test parts, which the experiments take as public.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.floating]
CACHE = Path("results/runs/kernel_density")


def root() -> Path:
    """Return where the data lies."""
    return Path(os.environ["FEDSIM_DATA"])


def idx(name: str) -> NDArray[np.uint8]:
    """Read a gzipped IDX file."""
    raw = gzip.decompress((root() / name).read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def images(folder: str, part: str) -> tuple[Tensor, Tensor]:
    """Return images `[N, 1, 28, 28]` in [0, 1] and their classes."""
    x = torch.from_numpy(idx(f"{folder}/{part}-images-idx3-ubyte.gz").copy())
    y = torch.from_numpy(idx(f"{folder}/{part}-labels-idx1-ubyte.gz").copy())
    return x[:, None].float() / 255, y.long()


class Extractor(nn.Module):
    """Two convolutions; features are the second's, pooled to 3 x 3: 288 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2, stride=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
                                  nn.Linear(64, 10))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the digits."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features, before they are centred."""
        parts = [
            nn.functional.adaptive_avg_pool2d(self.body(p), 3).flatten(1) for p in x.split(2000)
        ]
        return torch.cat(parts)


def fashion() -> dict[str, Tensor]:
    """Return unit features of Fashion-MNIST, train and test, by a network trained on MNIST."""
    path = CACHE / "fashion.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    torch.manual_seed(0)
    x, y = images("mnist", "train")
    net = Extractor()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(200):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    public = net.features(x[:10000])
    centre = public.mean(0)
    # Whitened by the digits' covariance (with a ridge), so that few directions do not rule.
    values, axes = torch.linalg.eigh(torch.cov(public.T).double())
    white = (axes * (values / values.mean() + 0.03) ** -0.5).float()
    test_x, test_y = images("mnist", "t10k")
    correct = float((net(test_x).argmax(1) == test_y).float().mean())
    found = {"mnist_accuracy": torch.tensor(correct)}
    for part, name in (("train", "train"), ("t10k", "test")):
        x, y = images("fashion_mnist", part)
        found[f"{name}_x"] = nn.functional.normalize((net.features(x) - centre) @ white)
        found[f"{name}_y"] = y
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def adult() -> dict[str, Tensor]:
    """Return Adult's rows: six numbers scaled by the test part, categories as one-hot codes."""
    numbers = (0, 2, 4, 10, 11, 12)
    tables = []
    for name in ("data", "test"):
        text = gzip.decompress((root() / f"adult/adult.{name}.gz").read_bytes()).decode()
        rows = [line.split(", ") for line in text.splitlines() if line.strip()][1:]
        tables.append([row for row in rows if len(row) == 15])
    train, test = tables
    kinds = [c for c in range(14) if c not in numbers and c != 13]
    codes = {c: sorted({row[c] for row in test}) for c in kinds}

    def encode(rows: list[list[str]]) -> Floats:
        wide = [np.array([[float(row[c]) for c in numbers] for row in rows])]
        for c in kinds:
            at = {value: i for i, value in enumerate(codes[c])}
            wide.append(np.eye(len(at))[[at.get(row[c], 0) for row in rows]] / np.sqrt(2))
        return np.concatenate(wide, 1)

    a, b = encode(train), encode(test)
    scale = b[:, :6].std(0)
    for table in (a, b):
        table[:, :6] = np.clip((table[:, :6] - b[:, :6].mean(0)) / scale, -4, 4)
    return {"train_x": torch.from_numpy(a).float(), "test_x": torch.from_numpy(b).float()}


def activity() -> dict[str, Tensor]:
    """Return one-second windows of two devices: 30 numbers; five subjects are the test part."""
    z = np.load(root() / "har_spsw/har_spsw.npz")
    signal, user, run, device = (z[k] for k in ("signal", "subject", "execution", "device"))
    key = user.astype(np.int64) * 10000 + run.astype(np.int64) * 10 + device
    windows, who = [], []
    for k in np.unique(key):
        rows = signal[key == k].astype(np.float64)
        for first in range(0, len(rows) - 99, 50):
            w = rows[first : first + 100]
            windows.append(
                np.concatenate(
                    [w.mean(0), w.std(0), w.min(0), w.max(0), np.abs(np.diff(w, axis=0)).mean(0)]
                )
            )
            who.append(k // 10000)
    table, subject = np.array(windows), np.array(who)
    held = np.isin(subject, np.unique(subject)[-5:])
    middle, scale = table[held].mean(0), table[held].std(0)
    table = np.clip((table - middle) / scale, -4, 4)
    return {
        "train_x": torch.from_numpy(table[~held]).float(),
        "test_x": torch.from_numpy(table[held]).float(),
    }


DATA = {"fashion": fashion, "adult": adult, "activity": activity}
