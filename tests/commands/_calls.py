"""Calling commands, here and in a process of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from fedsim.cli import app

HOME = Path(__file__).parents[2]
TINY = ["scenario=quickstart", "device=cpu", "client.epochs=1", "rounds=3", "model.hidden=[8]"]


def call(*words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(words))


def runs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("results/runs/*/*/config.yaml"))


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def assert_fails(result: Result, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr, result.stderr


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fedsim.cli", *words],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
