"""Client-wise Dirichlet with fixed sizes: every client draws its own mixture of classes.

Hsu, Qi & Brown 2019 (arXiv:1909.06335).

    q_n ~ Dir(alpha * p)          (form: hsu; p are the class shares of the data set)
    q_n ~ Dir(alpha, ..., alpha)  (form: symmetric; FedDyn, arXiv:2111.04263, and flwr-datasets)
    clients take turns: draw a class from q_n, take a sample of it, until every client is full

A class that runs out is struck from every q_n, which is then scaled to sum 1. The two forms differ
in what alpha means: with C balanced classes, `hsu` at alpha equals `symmetric` at alpha / C.

Shape suffixes: M samples, N clients, C classes, T turns.

Differs from the paper: it leaves the order of drawing open. Here it is a random interleaving of
all clients, so that the mixtures of leftovers are shared out and no client is last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition import assign
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class DirichletClient(PartitionPart):
    """Client-wise Dirichlet label skew with equal sizes.

    Attributes:
        alpha: Concentration; what it multiplies is said by `form`.
        form: `hsu`: Dir(alpha * class shares); `symmetric`: Dir(alpha, ..., alpha).
        samples_per_client: Size of every client; null deals out all samples, sizes then differ by
            at most one.
    """

    alpha: Annotated[float, Range(ge=1e-6, le=1e6)] = 1.0
    form: Literal["hsu", "symmetric"] = "hsu"
    samples_per_client: Annotated[int, Range(ge=1)] | None = None

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where the sizes add up to more than there is."""
        _, label_M = np.unique(dataset.labels(), return_inverse=True)
        size_C = np.bincount(label_M)
        size_N = self._sizes(len(label_M))
        prior_C = size_C / len(label_M) if self.form == "hsu" else np.ones(len(size_C))
        mix_NC = rng.dirichlet(self.alpha * prior_C, self.num_clients)
        turn_T = rng.permutation(np.repeat(np.arange(self.num_clients), size_N))
        class_T = _take_turns(mix_NC, turn_T, size_C, rng)
        cells = np.bincount(turn_T * len(size_C) + class_T, minlength=mix_NC.size)
        return assign.by_class_counts(label_M, cells.reshape(mix_NC.shape), rng)

    def _sizes(self, num_samples: int) -> np.ndarray:
        assign.check_enough(num_samples, self.num_clients)
        if self.samples_per_client is None:
            return assign.equal_sizes(num_samples, self.num_clients)
        if self.samples_per_client * self.num_clients > num_samples:
            raise ConfigError(
                f"samples_per_client: {self.num_clients} clients x {self.samples_per_client} is"
                f" more than the {num_samples} train samples; use"
                f" partition.samples_per_client={num_samples // self.num_clients} or less, or null"
            )
        return np.full(self.num_clients, self.samples_per_client)


def _take_turns(
    mix_NC: np.ndarray, turn_T: np.ndarray, size_C: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the class that each turn takes, int64 `[T]`; no class more often than it has samples.

    Draws all turns at once, keeps those before the first turn that finds its class empty, strikes
    that class, and draws the rest again: at most C passes, and equal in law to drawing one by one,
    because turns are independent as long as no class runs out.
    """
    left_C = size_C.copy()
    class_T = np.empty(len(turn_T), np.int64)
    done = 0
    while done < len(turn_T):
        weight_NC = np.where(left_C > 0, mix_NC, 0.0)
        # A mixture whose classes are all gone continues with whatever is left, in proportion.
        weight_NC = np.where(weight_NC.sum(axis=1, keepdims=True) > 0, weight_NC, left_C)
        edge_NC = np.cumsum(weight_NC, axis=1)
        edge_NC /= edge_NC[:, -1:]  # the last edge is exactly 1, which no draw reaches
        drawn = _inverse(edge_NC, turn_T[done:], rng.random(len(turn_T) - done))
        keep = len(drawn)
        for c in np.flatnonzero(np.bincount(drawn, minlength=len(left_C)) > left_C):
            keep = min(keep, int(np.flatnonzero(drawn == c)[left_C[c]]))
        class_T[done : done + keep] = drawn[:keep]
        left_C -= np.bincount(drawn[:keep], minlength=len(left_C))
        done += keep
    return class_T


def _inverse(edge_NC: np.ndarray, turn_T: np.ndarray, u_T: np.ndarray) -> np.ndarray:
    """Count, for each turn, the edges of its client's row at or below `u`, int64 `[T]`."""
    class_T = np.zeros(len(turn_T), np.int64)
    for edge_N in edge_NC.T:  # one class at a time: no [T, C] array
        class_T += u_T >= edge_N[turn_T]
    return class_T
