"""What is released: a noisy sum with its public parameters and its privacy statement.

    released = Released.load(folder)
    means, errors = released.query(y_QD)

Nothing of it comes from the records but the noisy sum, so whoever holds it may ask it as often as
they like. On the disk it is `sums.safetensors` and `release.json`. `query` takes any number of
queries, on whatever device the sum is (`to`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.protection.statement import Statement
from privacy.similarity.base import Prepared, Summary, real
from privacy.similarity.classes import PerClass
from privacy.similarity.kinds import from_json
from privacy.similarity.noise import Noise

SUMS, PUBLIC = "sums.safetensors", "release.json"
FORMAT = 1

SUMS_NAME, COUNT, NOISE, PUBLIC_BYTES = "sums", "count", "noise", "summary"
"""Of a run's release: S, n, (0 none | 1 laplace | 2 gaussian, scale), the summary's JSON."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """A noisy sum, ready to be asked.

    Attributes:
        summary: The public parameters.
        sums: S with its noise in steps of UNIT, int64 `[F]`.
        count: n, public.
        noise: The law and size of all noise in `sums`; None for no privacy at all.
        statement: `Statement.to_json` of what may be claimed.
    """

    summary: Summary
    sums: Tensor
    count: int
    noise: Noise | None
    statement: Mapping[str, Any]

    def __post_init__(self) -> None:
        if tuple(self.sums.shape) != (self.summary.size,) or self.sums.dtype != torch.int64:
            raise ConfigError(
                f"sums: {list(self.sums.shape)} of {self.sums.dtype}; {type(self.summary).__name__}"
                f" has {self.summary.size} numbers of int64"
            )
        if self.count < 1:
            raise ConfigError(f"count: {self.count} records; there is nothing to be asked about")

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise of one number."""
        return self.noise.deviation if self.noise else 0.0

    @cached_property
    def prepared(self) -> Prepared:
        """What queries use, made of the sum once."""
        return self.summary.prepare(real(self.sums), self.count, self.deviation)

    def query(self, y_QD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of f(x, y) over the records, and its standard error; both `[Q]`.

        The error is that of noise, with what `Summary.apart` says of the rest added: an estimate
        for random features, a bound for trees. What a projection does is not in it.
        """
        noise, apart = self.summary.errors(self.prepared, y_QD, self.deviation)
        return self.ask(y_QD), (noise.square() + apart.square()).sqrt()

    def ask(self, y_QD: Tensor) -> Tensor:
        """Return the means alone, for those in a hurry."""
        return self.summary.mean(self.prepared, y_QD)

    def labels(self, y_QD: Tensor) -> Tensor:
        """Return the class of each query.

        Raises:
            ConfigError: There are no classes.
        """
        if not isinstance(self.summary, PerClass):
            raise ConfigError(
                f"labels: {type(self.summary).__name__} knows no classes; release a PerClass"
            )
        return self.summary.labels(self.prepared, y_QD)

    def to(self, device: torch.device | str) -> Released:
        """Return the same on another device."""
        return replace(self, sums=self.sums.to(device))

    def save(self, folder: Path) -> None:
        """Write it to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"sums": self.sums.cpu().contiguous()}, folder / SUMS)
        noise = None if self.noise is None else {"law": self.noise.law, "scale": self.noise.scale}
        public = {
            "format": FORMAT,
            "summary": self.summary.to_json(),
            "count": self.count,
            "noise": noise,
            "statement": dict(self.statement),
        }
        (folder / PUBLIC).write_text(json.dumps(public, indent=1, allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> Released:
        """Read it back.

        Raises:
            ConfigError: The folder holds no such thing, or a damaged one.
        """
        try:
            public = json.loads((folder / PUBLIC).read_text())
            sums = load_file(folder / SUMS)["sums"]
            if public["format"] != FORMAT:
                raise ConfigError(f"{folder}: format {public['format']!r}; this reads {FORMAT}")
            noise = public["noise"]
            count = public["count"]
            if isinstance(count, bool) or not isinstance(count, int):
                raise ConfigError(f"count: {count!r}; allowed: a whole number of records")
            return cls(
                summary=from_json(public["summary"]),
                sums=sums,
                count=count,
                noise=None if noise is None else Noise(law=noise["law"], scale=noise["scale"]),
                statement=public["statement"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"{folder}: no release can be read from it ({error}); it needs {SUMS} and {PUBLIC} "
                "as `save` wrote them"
            ) from error

    @classmethod
    def of_run(cls, release: Mapping[str, Tensor], statement: Mapping[str, Any]) -> Released:
        """Make it of what a run of strategy=kernel_density ends with, in place of a model.

        Raises:
            ConfigError: It is no such thing, or nothing was released.
        """
        if {SUMS_NAME, COUNT, NOISE, PUBLIC_BYTES} - set(release):
            raise ConfigError(f"no release of strategy=kernel_density: it holds {sorted(release)}")
        law, scale = release[NOISE].tolist()
        return cls(
            summary=from_json(json.loads(bytes(release[PUBLIC_BYTES].cpu().tolist()))),
            sums=release[SUMS_NAME],
            count=int(release[COUNT]),
            noise=Noise(law="gaussian" if law == 2 else "laplace", scale=scale) if law else None,
            statement=statement,
        )

    @classmethod
    def from_run(cls, folder: Path) -> Released:
        """Read it from the folder of a finished run, with what may be claimed of it.

        Raises:
            ConfigError: It is the folder of no such run.
        """
        try:
            summary = json.loads((folder / "summary.json").read_text())
            release = load_file(folder / "model.safetensors")
            statement = summary["privacy"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{folder}: not the folder of a finished run ({error})") from error
        return cls.of_run(release, statement)


def no_privacy() -> dict[str, Any]:
    """Return the statement of a sum without noise."""
    return Statement(mechanism="none").to_json()
