"""Aggregate responses: any data set whose train responses are known as means over bags only.

    bag a of s samples:   x_a1 ... x_as,   ȳ_a = (1/s) Σ_i y_ai        the y_ai are dropped here

(Javanmard, Chen, Mirrokni, Badanidiyuru & Fu, ICLR 2024, arXiv:2401.11081; for classes, learning
from label proportions.) Bags are disjoint and public, and what a client holds, a batch takes and a
partition deals out is whole bags. Of the source's columns nothing is kept that is known of single
samples: some of them hold the responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import seeds
from fedsim.data.bundled import Bundled
from fedsim.data.dataset import BagLayout, DataPart, Dataset
from fedsim.errors import ConfigError, did_you_mean
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Bags(DataPart):
    """Another data part, whose train samples lie in bags.

    | assign | bags are |
    | --- | --- |
    | random | drawn at random |
    | features | of similar inputs: halves by the widest direction of the inputs, again and again |
    | group | of one value of `columns`, or of one cell of their grid (a place), else at random |
    | responses | of similar responses, which no privacy claim allows |

    Claims of mechanisms for whole clients take who lies with whom as given, like who holds what.
    The test set is not touched. `Dataset.columns["group"]` numbers the groups, where there are any,
    so that partition=natural can make each of them a client; a column that is not cut into cells
    stays, too.

    Attributes:
        size: k, samples in a bag.
        assign: Who lies together.
        columns: Of the source, for `group`.
        cells: Cut the range of each of `columns` into so many equal parts; null: by value.
        rest: What becomes of the samples that do not fill a bag (of each group): `drop`, or `short`
            for a smaller bag of them.
        clip: C: clip every response to [-C, C] before it is averaged; null: do not.
        bag_seed: Keys the draws; `${seed}` lets it follow the scenario's seed.
        source: The data part; class labels, one per sample, or numbers.
    """

    size: Annotated[int, Range(ge=1)] = 4
    assign: Literal["random", "features", "group", "responses"] = "random"
    columns: list[str] = field(default_factory=list)
    cells: Annotated[int, Range(ge=1)] | None = None
    rest: Literal["drop", "short"] = "drop"
    clip: Annotated[float, Range(gt=0)] | None = None
    bag_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    source: DataPart = field(default_factory=lambda: Bundled(name="diabetes"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, DataPart):
            raise ConfigError(
                f"source: {self.source!r} is no data part; give one as in scenarios/data, with a "
                "_target_ of its own"
            )
        if (self.assign == "group") != bool(self.columns):
            raise ConfigError(
                f"assign={self.assign} and columns={self.columns}: name the columns to group by "
                "with assign=group, and none otherwise"
            )

    def load(self) -> Dataset:
        """Load the source, put its train samples into bags, and forget their responses."""
        source = self.source.load()
        values = self._values(source)
        group_N = self._groups(source) if self.assign == "group" else np.zeros(len(values), int)
        bags = list(self._bags(source, group_N))
        if not bags:
            raise ConfigError(
                f"size: no bag of {self.size} can be filled from the {len(values)} train samples "
                f"of '{source.name}'; lower data.size, or set data.rest=short"
            )
        places = max(len(bag) for bag in bags)
        # Padding repeats a bag's first sample; losses do not count it.
        padded = [np.concatenate([bag, np.full(places - len(bag), bag[0])]) for bag in bags]
        means = torch.stack([values[torch.from_numpy(bag)].mean(0) for bag in bags])
        sizes = torch.tensor([[float(len(bag))] for bag in bags], dtype=values.dtype)
        first = np.array([bag[0] for bag in bags])
        columns = {"group": group_N[first]} if self.columns else {}
        if self.columns and self.cells is None:
            columns |= {name: np.asarray(source.columns[name])[first] for name in self.columns}
        return replace(
            source,
            train_x=source.train_x[torch.from_numpy(np.stack(padded))],
            train_y=torch.cat([means, sizes], 1).to(torch.float32),
            columns=columns,
            bags=BagLayout(
                places=places,
                bound=self.clip if source.task == "regression" else None,
                by_response=self.assign == "responses",
            ),
        )

    def _values(self, source: Dataset) -> Tensor:
        """Return what is averaged, float64 `[N, num_outputs]`."""
        if source.bags is not None:
            raise ConfigError("source: its samples are bags already; name the data set itself")
        y = source.train_y
        if source.task == "regression":
            return y.double() if self.clip is None else y.double().clamp(-self.clip, self.clip)
        if y.dim() != 1:
            raise ConfigError(
                f"source: data set '{source.name}' has a class for each position of a sample; bags "
                "are for one response per sample"
            )
        if self.clip is not None:
            raise ConfigError(f"clip: {self.clip} is for numbers; class shares need no clipping")
        return F.one_hot(y, source.num_outputs).double()

    def _groups(self, source: Dataset) -> np.ndarray:
        """Return each sample's group, numbered from 0, `[N]`."""
        codes = []
        for name in self.columns:
            if name not in source.columns:
                known = ", ".join(sorted(source.columns)) or "none"
                raise ConfigError(
                    f"columns: data set '{source.name}' has no column '{name}'; available: {known}"
                    f"{did_you_mean(name, source.columns)}"
                )
            column = np.asarray(source.columns[name])
            if _tells(column, source.train_y.numpy().reshape(len(column), -1)[:, 0]):
                raise ConfigError(
                    f"columns: '{name}' tells the responses themselves, and bags are public; group "
                    "by another column, or say so with assign=responses"
                )
            if self.cells is not None:
                if column.dtype.kind not in "iuf":
                    raise ConfigError(f"cells: column '{name}' is no number; set data.cells=null")
                edges = np.linspace(column.min(), column.max(), self.cells + 1)[1:-1]
                column = np.searchsorted(edges, column, side="right")
            codes.append(np.unique(column, return_inverse=True)[1])
        return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].reshape(-1)

    def _bags(self, source: Dataset, group_N: np.ndarray) -> Iterator[np.ndarray]:
        """Yield each bag's samples."""
        rng = seeds.rng(self.bag_seed, 0, seeds.SERVER, "data.bags")
        order = rng.permutation(len(group_N))
        if self.assign == "features":
            order = np.concatenate(list(self._halves(source.train_x, order)))
        elif self.assign == "responses":
            first = source.train_y.numpy().reshape(len(order), -1)[:, 0]
            order = order[np.argsort(first[order], kind="stable")]
        for group in range(int(group_N.max(initial=-1)) + 1):
            own = order[group_N[order] == group] if self.columns else order
            full = len(own) // self.size * self.size
            yield from own[:full].reshape(-1, self.size)
            if full < len(own) and self.rest == "short":
                yield own[full:]

    def _halves(self, x: Tensor, some: np.ndarray) -> Iterator[np.ndarray]:
        """Yield runs of similar samples, each but the last a whole number of bags of length."""
        bags = len(some) // self.size
        if bags <= 1:
            yield some
            return
        values = x[torch.from_numpy(some)].flatten(1).double()
        widest = int(values.var(0).argmax())
        order = np.argsort(values[:, widest].numpy(), kind="stable")
        cut = bags // 2 * self.size
        yield from self._halves(x, some[order[:cut]])
        yield from self._halves(x, some[order[cut:]])


def _tells(column: np.ndarray, response: np.ndarray) -> bool:
    """Whether a column is the response in other words: the same order, or the same classes."""
    codes = [np.unique(values, return_inverse=True)[1] for values in (column, response)]
    if column.dtype.kind in "iuf" and response.dtype.kind == "f":
        if min(int(code.max()) for code in codes) == 0:
            return False
        return abs(float(np.corrcoef(codes[0], codes[1])[0, 1])) > 0.999
    pairs = len(np.unique(np.stack(codes), axis=1).T)
    return pairs > 1 and all(pairs == int(code.max()) + 1 for code in codes)
