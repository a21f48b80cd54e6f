"""`fedsim export`: runs in other tools' formats, after the run; one file per tool.

Nothing of these tools is imported before it is asked for, and a run never depends on one. An
epsilon goes out only within its statement, as text: a bare number would be drawn without its delta.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedsim.compare.members import flat, run_folders
from fedsim.errors import ConfigError, did_you_mean
from fedsim.notebook import Run

SINKS = {
    "tensorboard": ("tensorboard", "fedsim.export.tensorboard"),
    "mlflow": ("mlflow", "fedsim.export.mlflow"),
    "wandb-offline": ("wandb", "fedsim.export.wandb_offline"),
}
"""Name -> (the package that it needs, our file)."""

_IN_TRACK = ("tensorboard", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What goes out of one run.

    Attributes:
        name: `<scenario>/<run folder>`.
        scenario: Its name.
        columns: metric -> values by round, NaN where a round did not measure it.
        round_R: The rounds.
        config: Dotted key -> value as it is typed.
        privacy: The statement, word for word.
        report: The page, if it was written.
    """

    name: str
    scenario: str
    columns: Mapping[str, np.ndarray]
    round_R: np.ndarray
    config: Mapping[str, str]
    privacy: str
    report: Path | None

    def rows(self) -> Sequence[tuple[int, dict[str, float]]]:
        """Return (round, what it measured) for each round."""
        return [
            (int(r), {k: float(v[i]) for k, v in self.columns.items() if np.isfinite(v[i])})
            for i, r in enumerate(self.round_R)
        ]


def export(paths: Sequence[Path], to: str, out: Path | None = None) -> tuple[Path, int]:
    """Write runs for another tool; return where, and how many.

    Args:
        paths: Folders of runs and of sweeps.
        to: One of `SINKS`.
        out: The folder to write to; by default `results/export/<to>`.

    Raises:
        ConfigError: There is no such tool, or it is not installed.
        ResumeError: A folder is neither a run's nor a sweep's.
    """
    if to not in SINKS:
        raise ConfigError(f"--to {to}{did_you_mean(to, SINKS)}; there are: {', '.join(SINKS)}")
    folders, _ = run_folders(paths)
    package, module = SINKS[to]
    needed = _import(package, to)
    out = out or Path("results/export") / to
    out.mkdir(parents=True, exist_ok=True)
    write: Any = importlib.import_module(module).write
    for folder in folders:
        write(needed, read(folder), out)
    return out, len(folders)


def read(folder: Path) -> Exported:
    """Return what goes out of a run."""
    run = Run(folder)
    columns = dict(run.metrics)
    round_R = columns.pop("round")
    return Exported(
        name=f"{run.data.name}/{run.path.resolve().name}",
        scenario=run.data.name,
        columns={name: column.astype(np.float64) for name, column in columns.items()},
        round_R=round_R,
        config=flat(run.data.config),
        privacy=str(run.privacy),
        report=run.report if run.report.is_file() else None,
    )


def _import(package: str, to: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = " or the extra: pip install -c constraints.txt -e '.[track]'"
        raise ConfigError(
            f"--to {to} needs the package {package!r}, which is not installed ({error}); "
            f"pip install {package}{extra if package in _IN_TRACK else ''}"
        ) from error
