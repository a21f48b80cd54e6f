"""`fedsim doctor`: what this machine has, and what that means for a run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from fedsim import __version__, catalog
from fedsim.results import PACKAGES

Level = Literal["ok", "note", "problem"]

_EXTRAS = {
    "ray": ("ray", "engine=ray and ray_cohort, fedsim sweep --ray", "'.[ray]'"),
    "tensorboard": ("tensorboard", "fedsim export --to tensorboard", "'.[track]'"),
    "mlflow": ("mlflow", "fedsim export --to mlflow", "'.[track]'"),
    "wandb": ("wandb", "fedsim export --to wandb-offline", "wandb"),
    "flwr-datasets": ("flwr_datasets", "data=huggingface", "'.[data]'"),
}
"""package -> (module, what it is for, what to install)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: What.
        level: `problem`: runs will fail; `note`: something cannot be used, or is worth knowing.
        words: What was found, and what to do about it.
    """

    topic: str
    level: Level
    words: str


def examine() -> list[Finding]:
    """Look at Python, packages, devices, threads, Ray, TLS tools, data and where runs go."""
    return [
        Finding(
            topic="fedsim",
            level="ok",
            words=f"{__version__}, {len(catalog.scenarios())} scenarios, in {catalog.ROOT.parent}",
        ),
        _python(),
        *_packages(),
        *_devices(),
        _threads(),
        *_extras(),
        *_deployment(),
        _data(),
        _output(),
    ]


def _python() -> Finding:
    words = f"{platform.python_version()} on {platform.platform()}"
    return Finding(topic="python", level="ok", words=words)


def _packages() -> list[Finding]:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    told = [Finding(topic="packages", level="ok", words=", ".join(found))]
    if missing:
        words = f"missing: {', '.join(missing)}; pip install -c constraints.txt -e ."
        told.append(Finding(topic="packages", level="problem", words=words))
    return told


def _devices() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [
            f"cuda:{i} {torch.cuda.get_device_name(i)}, "
            f"{torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB"
            for i in range(torch.cuda.device_count())
        ]
        return [
            Finding(topic="device", level="ok", words=f"{'; '.join(names)}; device=auto uses 0")
        ]
    words = "cpu; no GPU is seen"
    if shutil.which("nvidia-smi"):
        words += ", though there is a driver: this torch may be a build for CPUs only"
        return [Finding(topic="device", level="note", words=words)]
    return [Finding(topic="device", level="ok", words=words)]


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = (
        f"{cores} cores; a run uses one thread, so that results do not depend on the machine; "
        "fedsim sweep runs as many points at once"
    )
    return Finding(topic="threads", level="ok", words=words)


def _extras() -> list[Finding]:
    told = []
    for package, (module, purpose, install) in _EXTRAS.items():
        if util.find_spec(module) is None:
            words = f"not installed: no {purpose}; pip install -c constraints.txt -e {install}"
            words = words.replace("-c constraints.txt -e wandb", "wandb")
            told.append(Finding(topic=package, level="note", words=words))
            continue
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "of unknown version"
        told.append(Finding(topic=package, level="ok", words=f"{version}: {purpose}"))
    return told


def _deployment() -> list[Finding]:
    told = []
    here = Path(sys.executable).parent
    for tool in ("flower-superlink", "flower-supernode", "flwr"):
        if shutil.which(tool) is None and not (here / tool).exists():
            words = f"{tool} is not on the path: no fedsim deploy; install flwr where fedsim is"
            told.append(Finding(topic="deploy", level="note", words=words))
    if not told:
        words = "flwr, flower-superlink and flower-supernode are there"
        told.append(Finding(topic="deploy", level="ok", words=words))
    try:
        words = f"certificates and keys by cryptography {metadata.version('cryptography')}"
        told.append(Finding(topic="tls", level="ok", words=words))
    except metadata.PackageNotFoundError:
        words = "no cryptography, which makes certificates: pip install cryptography"
        told.append(Finding(topic="tls", level="problem", words=words))
    return told


def _data() -> Finding:
    place = os.environ.get("FEDSIM_DATA")
    if not place:
        words = "FEDSIM_DATA is not set: data sets that are bundled, and generators, work"
        return Finding(topic="data", level="note", words=words)
    if not Path(place).is_dir():
        words = f"FEDSIM_DATA={place} is no folder; set it to one that holds data files"
        return Finding(topic="data", level="problem", words=words)
    return Finding(topic="data", level="ok", words=f"FEDSIM_DATA={place}")


def _output() -> Finding:
    place = Path("results/runs")
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        words = f"runs would go to {place.absolute()}, and {there.absolute()} cannot be written to"
        return Finding(topic="runs", level="problem", words=f"{words}; set output.root=")
    free = shutil.disk_usage(there).free / 1e9
    words = f"go to {place.absolute()}, {free:,.1f} GB free"
    return Finding(topic="runs", level="ok" if free > 1 else "note", words=words)
