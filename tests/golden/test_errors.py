"""The error catalogue: what a person would really type wrongly, and every word of the answer.

`errors.txt` holds the commands and their answers. To store it anew after an intended change:
`python tests/golden/test_errors.py`, and read the difference before it is committed.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli import app

STORED = Path(__file__).parent / "errors.txt"
FILES = {
    "tab.yaml": "defaults:\n  - base\n  - _self_\nclient:\n\tlr: 0.1\n",
    "mine.yaml": "defaults:\n  - base\n  - override /strategy: fedavgg\n  - _self_\n",
    "typo.yaml": "defaults:\n  - base\n  - _self_\nclient:\n  learning_rate: 0.1\n",
    "bare.yaml": "rounds: 5\n",
    "runs/notes.txt": "",
}
"""Scenarios of the person's own, and a folder that is no run."""

GROWS = re.compile(r"(?<=available: )\w+(, \w+)*|(?<= is a key of )\w+=\w+(, \w+)*( or \w+)?")
"""Lists of parts, which grow with every part that is added."""


def commands() -> list[str]:
    return [
        line.removeprefix("$ fedsim").strip()
        for line in STORED.read_text().splitlines()
        if line.startswith("$ fedsim")
    ]


def catalogue(words: list[str], folder: Path) -> str:
    """Type each command in `folder`, which is the working directory; return what is answered."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = sorted(folder.rglob("*"))
    told = []
    for line in words:
        result = CliRunner().invoke(app, shlex.split(line))
        assert result.stdout == "", line
        assert "Traceback" not in result.stderr
        answer = GROWS.sub("...", result.stderr.strip().replace(str(folder.resolve()), "."))
        told.append(f"$ fedsim {line}".strip() + f"\n[exit {result.exit_code}] {answer}\n")
    assert sorted(folder.rglob("*")) == before, "nothing is written"
    return "\n".join(told)


def test_what_a_person_would_type_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    words = commands()
    assert len(words) >= 30
    assert catalogue(words, tmp_path) == STORED.read_text()


if __name__ == "__main__":
    typed = commands()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ.pop("FEDSIM_DATA", None)
        STORED.write_text(catalogue(typed, Path(place)))
