"""Made-up wearables: subjects who do the same in different ways.

Activity a of subject j, in a window that begins at a random phase:

    u(t) = gain_j · amp_a · [sin(2π f t + φ_c + p) + ½ sin(4π f t + 2 φ_c + 2p)]_c,
    f = freq_a · base_j,   x(t) = R_j u(t) + noise · N(0, I)

R_j is a rotation by N(0, rotation²) radians about a random axis, since every subject wears the
device in its own way; gain_j and base_j are log-normal. There is no gravity in it: its
constant, rotated as much, is larger than what activities differ in (a classifier of the server's
subjects has 0.78 on users as it is, and 0.61 with gravity of 1 g).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.streams import SubjectSplit, Windows
from fedsim.parts import Range

CLASSES = ("still", "walk", "jog", "jump")
_FREQUENCY_A = np.array([0.0, 1.2, 3.6, 2.2])  # Hz
_AMPLITUDE_AC = np.array([[0, 0, 0], [0.5, 0.3, 0.8], [0.9, 0.6, 1.4], [0.4, 0.4, 1.8]])
_PHASE_C = np.array([0.0, np.pi / 3, np.pi / 2])
_HZ = 20.0


@dataclass(frozen=True, kw_only=True)
class Wearable(SubjectSplit, DataPart):
    """Windows `[30, 3]` of four activities, all equally frequent.

    Attributes:
        subjects: Of the server and of the users together.
        windows: Of each subject.
        length: Samples in a window, at 20 Hz.
        rotation: Spread of the angle at which subjects wear the device, in radians.
        spread: Spread of the logarithms of gain and base frequency.
        noise: Standard deviation of the sensors' noise, in g.
        data_seed: Of the draw; it belongs to the data and not to the scenario's seed.
    """

    subjects: Annotated[int, Range(ge=2)] = 24
    windows: Annotated[int, Range(ge=4)] = 200
    length: Annotated[int, Range(ge=2)] = 30
    rotation: Annotated[float, Range(ge=0)] = 0.4
    spread: Annotated[float, Range(ge=0)] = 0.1
    noise: Annotated[float, Range(ge=0)] = 0.12
    data_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def load(self) -> Dataset:
        """Draw; see `DataPart.load`."""
        drawn = [self._subject(j) for j in range(self.subjects)]
        windows = Windows(
            x=np.concatenate([x for x, _ in drawn]),
            y=np.concatenate([y for _, y in drawn]),
            user=np.repeat(np.arange(self.subjects), self.windows),
            class_names=CLASSES,
        )
        return self.dataset(windows, "wearable")

    def _subject(self, subject: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one subject's windows `[n, W, 3]` and labels `[n]`."""
        rng = seeds.rng(self.data_seed, 0, subject, "wearable")
        rotation_CC = _rotation(rng.standard_normal(3), self.rotation * rng.standard_normal())
        gain, base = np.exp(self.spread * rng.standard_normal(2))
        y_N = np.arange(self.windows) % len(CLASSES)
        phase_N = rng.uniform(0, 2 * np.pi, self.windows)
        time_W = np.arange(self.length) / _HZ
        turn_NW = 2 * np.pi * base * _FREQUENCY_A[y_N][:, None] * time_W + phase_N[:, None]
        angle_NWC = turn_NW[:, :, None] + _PHASE_C
        wave_NWC = np.sin(angle_NWC) + 0.5 * np.sin(2 * angle_NWC)
        x_NWC = gain * _AMPLITUDE_AC[y_N][:, None, :] * wave_NWC
        x_NWC = x_NWC @ rotation_CC.T + self.noise * rng.standard_normal(x_NWC.shape)
        return x_NWC, y_N.astype(np.int64)


def _rotation(axis_C: np.ndarray, angle: float) -> np.ndarray:
    """Return the rotation about an axis (Rodrigues), `[3, 3]`."""
    x, y, z = axis_C / np.linalg.norm(axis_C)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation: np.ndarray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation
