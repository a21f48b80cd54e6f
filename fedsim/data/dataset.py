"""What every data part gives: all samples as tensors, on one device, once."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.parts import Part

Task = Literal["classification", "regression", "items"]


@dataclass(frozen=True, kw_only=True)
class BagLayout:
    """How train samples lie together in bags of which only the mean response is known.

    Attributes:
        places: k, how many samples a bag has place for.
        bound: C, if every response was clipped to [-C, C] before it was averaged; regression only.
        by_response: Whether who lies in which bag depends on the responses.
    """

    places: int
    bound: float | None = None
    by_response: bool = False


@dataclass(frozen=True, kw_only=True)
class ItemLayout:
    """How items are numbers.

    Attributes:
        bits: M: an item is in [0, 2^M).
        names: What each item of the test set stands for, or empty.
        listed: A list of items that is public and holds all that can occur, int64; None where the
            items are not known beforehand.
    """

    bits: int
    names: tuple[str, ...] = ()
    listed: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ServerData:
    """Labelled samples that are the server's own, of several distributions; no client's.

    Attributes:
        x: Inputs `[S, *input_shape]`, scaled as the clients'.
        y: Targets, as those of the data set.
        source: Which distribution each is of, int64 `[S]`, 0..M-1.
        names: One for each of the M distributions.
    """

    x: Tensor
    y: Tensor
    source: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A train and a test set. Clients hold index ranges into the train set, never copies of it.

    Attributes:
        name: For messages and reports.
        task: `"classification"`: y is int64 `[N]` (or `[N, T]`, one label per position) with
            labels 0..num_outputs-1. `"regression"`: y is float `[N, num_outputs]`.
            `"items"`: nothing to train on. x is int64 `[N]`, one item per user; the test set is
            the truth: every item that there is and, as float y, how many users hold it; train y is
            int64 `[N]`, the item's rank where it is one of the most frequent, else the last class.
        train_x, test_x: Inputs `[N, *input_shape]`: float, scaled for training; or int64 tokens.
        train_y, test_y: Targets, as `task` says.
        num_outputs: Classes, or target columns.
        columns: Further per-sample columns of the *train* set, each `[N]`: a natural user or group,
            a location. Partitions by user read them.
        class_names: One name per class, or empty.
        num_tokens: Inputs that are tokens lie in [0, num_tokens) whatever the samples are; None:
            known from the samples only, and a model sized by them tells of the largest one.
        bags: Of aggregate responses. A train sample is then a bag, and N counts bags: `train_x` is
            `[N, k, *input_shape]`, of which the first s places are true and the others padding;
            `train_y` is float `[N, num_outputs + 1]`: the mean response (of classes: their shares),
            then s. Individual train responses are nowhere; the test set is as always.
        items: Of a data set of items.
        labelled: Share of each client's *training* samples whose targets it knows. Those who learn
            from targets alone (`ClientHalf.takes_unlabelled`) do not see the others at all.
        weighted_f1: Whether classifications are scored by F1, weighted by class, as well.
        server: What the server knows beside the test set. Strategies find it in their `Federation`;
            clients never see it.
    """

    name: str
    task: Task
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_outputs: int
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    num_tokens: int | None = None
    bags: BagLayout | None = None
    items: ItemLayout | None = None
    labelled: float = 1.0
    weighted_f1: bool = False
    server: ServerData | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis, nor that of a bag's places."""
        return tuple(self.train_x.shape[1 if self.bags is None else 2 :])

    def as_a_model_sees_it(self) -> Dataset:
        """Return the data set without bags; train responses that were in bags are zeros.

        A model is made for single inputs, whatever is known of their responses.
        """
        if self.bags is None:
            return self
        x = self.train_x.flatten(0, 1)
        y = self.test_y.new_zeros((len(x), *self.test_y.shape[1:]))
        return replace(self, train_x=x, train_y=y, columns={}, bags=None)

    def to(self, device: torch.device, dtype: torch.dtype) -> Dataset:
        """Return the data set on `device`, floating-point tensors as `dtype`."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

        return replace(
            self,
            train_x=move(self.train_x),
            train_y=move(self.train_y),
            test_x=move(self.test_x),
            test_y=move(self.test_y),
            server=self.server
            and replace(
                self.server,
                x=move(self.server.x),
                y=move(self.server.y),
                source=move(self.server.source),
            ),
        )

    def labels(self) -> np.ndarray:
        """Return the train labels as int64 `[N]`, for partitions that skew labels.

        A regression target is cut into ten classes of equal count, so that "label skew" means the
        same for it; a sequence target counts by its first position, a bag by its largest share.
        """
        y = self.train_y.cpu().numpy()
        if self.bags is not None and self.task == "classification":
            largest: np.ndarray = y[:, :-1].argmax(1).astype(np.int64)
            return largest
        y = y.reshape(len(y), -1)[:, 0]
        if self.task != "regression":
            return y.astype(np.int64)
        edges = np.quantile(y, np.linspace(0, 1, 11)[1:-1])
        return np.searchsorted(edges, y, side="right").astype(np.int64)


class DataPart(Part, abc.ABC):
    """A source of data, as the `data` group of a scenario names it."""

    @abc.abstractmethod
    def load(self) -> Dataset:
        """Read the data, on the CPU.

        Raises:
            DataError: A file is missing or not what the reader expects. The message says which
                file, where it was looked for, and where the original is published.
        """
