"""Sensor streams of users as windows, and who of the users is the server's.

    streams [T, C] ─▶ windows [N, W, C], one label each ─▶ server subjects: labelled, x and source
                                                       └─▶ users: clients, column `user`

A window never crosses a change of user or of recording, nor a gap. Its label is the most frequent
one of its samples, the smallest of those that tie. Classes are numbered over the whole file: a user
who lacks one has the labels of all others.

Inputs are scaled by the mean and the standard deviation of each channel, of the server subjects'
training windows alone: nothing of a user is in them, neither of those windows that it is tested on.

Shapes: T samples of a stream, C channels, N windows of W samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch

from fedsim import seeds
from fedsim.data.columns import standardise, to_float32
from fedsim.data.dataset import Dataset, ServerData
from fedsim.data.split import holdout
from fedsim.errors import ConfigError, DataError
from fedsim.parts import Part, Range


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of all subjects, in the order of the file.

    Attributes:
        x: Inputs `[N, W, C]`, or features `[N, D]`; NaN where a feature is missing.
        y: Class of each, int64 `[N]`, of `class_names`.
        user: Whose each is, `[N]`.
        class_names: Of the whole file.
    """

    x: np.ndarray
    y: np.ndarray
    user: np.ndarray
    class_names: tuple[str, ...]


def cut(
    signal_TC: np.ndarray,
    label_T: np.ndarray,
    run_T: np.ndarray,
    *,
    window: int,
    step: int,
    what: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (windows `[N, W, C]`, their labels `[N]`, where each begins `[N]`).

    Args:
        signal_TC: The samples in the order of time.
        label_T: Class of each, int64.
        run_T: A number that is the same within a recording, and changes where it ends.
        window: Samples in a window.
        step: Samples from one window to the next; below the window, windows share samples.
        what: Names the streams in the message.

    Raises:
        DataError: No recording is as long as a window.

    Example:
        >>> x, y, first = cut(np.arange(7.0)[:, None], np.array([0, 0, 1, 1, 1, 1, 0]),
        ...                   np.array([5, 5, 5, 5, 5, 9, 9]), window=2, step=2, what="a stream")
        >>> x[:, :, 0].tolist(), y.tolist(), first.tolist()
        ([[0.0, 1.0], [2.0, 3.0], [5.0, 6.0]], [0, 1, 0], [0, 2, 5])
    """
    edges = np.flatnonzero(np.diff(run_T)) + 1
    bounds = np.concatenate([[0], edges, [len(run_T)]])
    starts = [np.arange(a, b - window + 1, step) for a, b in pairwise(bounds)]
    first_N = np.concatenate([np.zeros(0, np.int64), *starts]).astype(np.int64)
    if not len(first_N):
        longest = int(np.diff(bounds).max()) if len(run_T) else 0
        raise DataError(
            f"data.window: {window} samples, but the longest recording of {what} has {longest}; "
            "set a shorter window"
        )
    index_NW = first_N[:, None] + np.arange(window)
    labels_NW = label_T[index_NW]
    counts_NC = np.stack([(labels_NW == c).sum(1) for c in range(int(label_T.max()) + 1)], axis=1)
    return signal_TC[index_NW], counts_NC.argmax(1), first_N


@dataclass(frozen=True, kw_only=True)
class SubjectSplit(Part):
    """Which subjects are the server's, and what users know; the fields of all data of this kind.

    Attributes:
        server_subjects: M: subjects whose windows, all labelled, are the server's: one distribution
            each. The others are users.
        users: How many of the others take part; null: all of them.
        labelled: Share of each user's training windows whose labels it knows. How many windows it
            keeps for its own evaluation is a matter of `partition.holdout`.
        test_fraction: Share of the server subjects' windows that is the central test set.
        split_seed: Of who is whose; it belongs to the data and not to the scenario's seed.
    """

    server_subjects: Annotated[int, Range(ge=1)] = 4
    users: Annotated[int, Range(ge=1)] | None = None
    labelled: Annotated[float, Range(ge=0, le=1)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def dataset(self, windows: Windows, name: str) -> Dataset:
        """Return windows as a data set: users' to train on, the server's beside them.

        Raises:
            ConfigError: There are too few subjects.
        """
        subjects = np.unique(windows.user)
        wanted = self.server_subjects + (self.users or 1)
        if wanted > len(subjects):
            raise ConfigError(
                f"server_subjects: {self.server_subjects} and users={self.users or 'all others'} "
                f"need {wanted} subjects, and '{name}' has {len(subjects)}; set fewer of them"
            )
        rng = seeds.rng(self.split_seed, 0, seeds.SERVER, "data.subjects")
        order = subjects[rng.permutation(len(subjects))]
        server = np.sort(order[: self.server_subjects])
        users = np.sort(order[self.server_subjects :][: self.users])
        theirs, own = (np.flatnonzero(np.isin(windows.user, who)) for who in (users, server))
        train, test = holdout(len(own), self.test_fraction, self.split_seed, windows.y[own])
        parts = self._scaled(windows.x, name, own[train], theirs, own[test])
        y = torch.from_numpy(windows.y.astype(np.int64))
        server_x, train_x, test_x = (torch.from_numpy(part) for part in parts)
        source = np.searchsorted(server, windows.user[own[train]])
        return Dataset(
            name=name,
            task="classification",
            train_x=train_x,
            train_y=y[theirs],
            test_x=test_x,
            test_y=y[own[test]],
            num_outputs=len(windows.class_names),
            columns={"user": windows.user[theirs]},
            class_names=windows.class_names,
            labelled=self.labelled,
            weighted_f1=True,
            server=ServerData(
                x=server_x,
                y=y[own[train]],
                source=torch.from_numpy(source.astype(np.int64)),
                names=tuple(str(subject) for subject in server.tolist()),
            ),
        )

    @staticmethod
    def _scaled(x: np.ndarray, name: str, *parts: np.ndarray) -> list[np.ndarray]:
        """Return parts of the inputs, scaled by what is in the first; what is missing is 0."""
        channels = x.shape[-1]
        known = [x[part].reshape(-1, channels).astype(np.float64) for part in parts]
        missing = [np.isnan(rows) for rows in known]
        count_C = (~missing[0]).sum(0)
        sum_C = np.where(missing[0], 0, known[0]).sum(0)
        mean_C = sum_C / np.maximum(count_C, 1)
        filled = [np.where(m, mean_C, rows) for m, rows in zip(missing, known, strict=True)]
        scaled = standardise(*filled)
        return [
            to_float32(rows, f"the inputs of '{name}'").reshape(len(part), *x.shape[1:])
            for part, rows in zip(parts, scaled, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class StreamSplit(SubjectSplit):
    """The same, of streams that are cut here.

    Attributes:
        window: Samples in a window.
        step: Samples from one window to the next. Below `window`, windows share samples, also those
            that a user is trained and tested on.
    """

    window: Annotated[int, Range(ge=1)] = 100
    step: Annotated[int, Range(ge=1)] = 100

    def windows(
        self,
        signal_TC: np.ndarray,
        label_T: np.ndarray,
        user_T: np.ndarray,
        run_T: np.ndarray,
        class_names: Sequence[str],
        what: str,
    ) -> Windows:
        """Cut streams; see `cut`."""
        x, y, first = cut(signal_TC, label_T, run_T, window=self.window, step=self.step, what=what)
        return Windows(x=x, y=y, user=user_T[first], class_names=tuple(class_names))


def run_ids(*keys: np.ndarray) -> np.ndarray:
    """Return a number for each sample that changes wherever one of the keys does.

    Example:
        >>> run_ids(np.array([1, 1, 2, 1]), np.array([0, 0, 0, 0])).tolist()
        [0, 0, 1, 2]
    """
    change = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        change[1:] |= key[1:] != key[:-1]
    return np.cumsum(change)
