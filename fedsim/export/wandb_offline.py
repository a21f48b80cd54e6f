"""Offline runs for Weights & Biases; `wandb sync DIR/wandb/offline-run-*` sends them, if wanted."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.export import Exported


def write(wandb: ModuleType, run: Exported, out: Path) -> None:
    """Write one run; nothing is sent anywhere."""
    tool: Any = wandb
    made = tool.init(
        project=f"fedsim-{run.scenario}",
        name=run.name.rpartition("/")[2],
        dir=str(out),
        mode="offline",
        config={**run.config, "privacy": run.privacy},
        reinit=True,
    )
    for server_round, measured in run.rows():
        made.log(measured, step=server_round)
    made.finish()
