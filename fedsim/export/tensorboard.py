"""Event files for TensorBoard: `tensorboard --logdir DIR`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from fedsim.export import Exported


def write(tensorboard: ModuleType, run: Exported, out: Path) -> None:
    """Write one run's events into a folder of its own, over an earlier export of it."""
    from torch.utils.tensorboard import SummaryWriter

    folder = out / run.name
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for server_round, measured in run.rows():
            for name, value in measured.items():
                writer.add_scalar(name.replace(".", "/", 1), value, server_round)
        writer.add_text("privacy", run.privacy)
        settings = "\n".join(f"    {key}: {value}" for key, value in run.config.items())
        writer.add_text("configuration", settings)
