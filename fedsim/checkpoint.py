"""Checkpoints: all that a resumed run needs, with a digest of every file it will read.

One folder per checkpoint, `checkpoint/round-000010/`, holding the model, the strategy's state and
a manifest. It is written beside its final name and renamed when it is complete and on the disk, so
a kill at any moment leaves the previous checkpoint in force. Nothing is loaded whose digest is not
the manifest's: a damaged file is named in the error, and never used.

There is no random state to save: every draw is keyed by (seed, round, client, purpose).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedsim.errors import ResumeError
from fedsim.files import sha256, sync_folder, write_durable
from fedsim.records import Params, aligned
from fedsim.strategy import State

MODEL, STRATEGY, SCALARS, MANIFEST = (
    "model.safetensors",
    "strategy.safetensors",
    "state.json",
    "manifest.json",
)
_NAME = re.compile(r"round-[0-9]{6,10}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        server_round: The last finished round; 0 before the first.
        last_round: How far the run was to go.
        params: The global model.
        state: The strategy's state.
        covers: File name in the run folder -> digest of what a resumed run reads of it.
        metrics_bytes: Length of `metrics.jsonl` at this point; later lines are discarded.
    """

    server_round: int
    last_round: int
    params: Params
    state: State
    covers: Mapping[str, str]
    metrics_bytes: int


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint into `folder` and remove all but the latest `keep`."""
    if not folder.is_dir():
        folder.mkdir()
        sync_folder(folder.parent)
    final = folder / f"round-{checkpoint.server_round:06d}"
    building = folder / f".building-{final.name}"
    sweep(folder)
    building.mkdir()
    for name, data in _encode(checkpoint).items():
        write_durable(building / name, data)
    sync_folder(building)
    building.rename(final)
    sync_folder(folder)
    for old in _rounds(folder)[:-keep]:
        old.rename(folder / f".removing-{old.name}")
    sweep(folder)
    return final


def sweep(folder: Path) -> None:
    """Remove checkpoints that are half written or half removed: this run's, or a killed one's."""
    for leftover in folder.glob(".*-round-*"):
        shutil.rmtree(leftover)


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the latest checkpoint, or return None if none was ever finished.

    Raises:
        ResumeError: A file of it is missing or differs from what was written; says which, and how
            to go back to the checkpoint before it.
    """
    rounds = _rounds(folder)
    return _decode(rounds[-1]) if rounds else None


def _rounds(folder: Path) -> list[Path]:
    """Return the finished checkpoints, by round: as a number, since names grow past six digits."""
    found = folder.iterdir() if folder.is_dir() else ()
    rounds = [path for path in found if _NAME.fullmatch(path.name)]
    return sorted(rounds, key=lambda path: int(path.name.removeprefix("round-")))


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    tensors: Params = {}
    scalars: dict[str, int | float] = {}
    for name, value in checkpoint.state.items():
        if isinstance(value, (int, float)):
            scalars[name] = value
        else:
            tensors[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    files = {
        MODEL: encode(checkpoint.params),
        STRATEGY: encode(tensors),
        SCALARS: _json(
            {
                "server_round": checkpoint.server_round,
                "last_round": checkpoint.last_round,
                "metrics_bytes": checkpoint.metrics_bytes,
                "strategy": scalars,
                "order": list(checkpoint.state),  # safetensors have one of their own
            }
        ),
    }
    digests = {name: sha256(data) for name, data in files.items()}
    body = {"files": digests, "covers": dict(checkpoint.covers)}
    return {**files, MANIFEST: _json({**body, "digest": sha256(_json(body))})}


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as a safetensors file, each by its values, even where two share memory."""
    held: set[int] = set()
    apart: Params = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if memory in held else own
        held.add(memory)
    data: bytes = save_tensors(apart)
    return data


def _decode(folder: Path) -> Checkpoint:
    manifest = _manifest(folder)
    files = {}
    for name, digest in manifest["files"].items():
        files[name] = _read(folder / name)
        if sha256(files[name]) != digest:
            raise _damaged(folder / name, "its content is not what was written")
    try:
        scalars = json.loads(files[SCALARS])
        state = {**aligned(load_tensors(files[STRATEGY])), **scalars["strategy"]}
        return Checkpoint(
            server_round=int(scalars["server_round"]),
            last_round=int(scalars["last_round"]),
            params=aligned(load_tensors(files[MODEL])),
            state={name: state[name] for name in scalars["order"]},
            covers=manifest["covers"],
            metrics_bytes=int(scalars["metrics_bytes"]),
        )
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(folder / SCALARS, f"it was written by another version ({error})") from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    data = _read(path)
    try:
        manifest = json.loads(data)
        body = {key: manifest[key] for key in ("files", "covers")}
        intact = manifest["digest"] == sha256(_json(body))
        intact = intact and set(body["files"]) == {MODEL, STRATEGY, SCALARS}
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise _damaged(path, "it is not a manifest") from error
    if not intact or data != _json(manifest):
        raise _damaged(path, "its content is not what was written")
    return body


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error


def _damaged(path: Path, why: str) -> ResumeError:
    return ResumeError(
        f"{path} is damaged: {why}. Nothing was loaded. To go back to the checkpoint before it, "
        f"remove the folder {path.parent} and resume again."
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()
