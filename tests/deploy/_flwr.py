"""A program that stands for `flwr`: writes down what it is asked, answers from files.

In its folder, `run`, `ls`, `stop` and `supernode` hold what to answer to these commands (a file
`ls.1`, `ls.2`, ... the first, second, ... time), and `log.1`, `log.2`, ... what the log shows when
it is opened for the first, second, ... time. A log that ends with `WAIT` stays open.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """\
#!{python}
import json, os, sys, time
from pathlib import Path
here, words = Path({folder!r}), sys.argv[1:]
verb = words[0]
home = os.environ.get("FLWR_HOME", "")
config = ""
if "--run-config" in words:
    config = Path(words[words.index("--run-config") + 1]).read_text(encoding="utf-8")
count = here / f"{{verb}}.count"
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
with (here / "asked").open("a") as file:
    file.write(json.dumps([words, home, config]) + "\\n")
answers = [here / f"{{verb}}.{{k}}" for k in range(number, 0, -1)] + [here / verb]
text = next((a.read_text() for a in answers if a.exists()), "")
if verb == "log":
    for line in text.splitlines(keepends=True):
        if line.strip() == "WAIT":
            time.sleep(3600)
        sys.stdout.write(line)
        sys.stdout.flush()
    sys.exit(0)
head, _, rest = text.partition("STDERR")
sys.stdout.write(head)
sys.stderr.write(rest)
"""


class Flwr:
    """The stub's folder, and what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        program = folder / "flwr"
        program.write_text(_PROGRAM.format(python=f"{sys.executable} -S", folder=str(folder)))
        program.chmod(0o755)
        monkeypatch.setattr("fedsim.deploy.submission.program", lambda _: str(program))
        monkeypatch.setattr("fedsim.deploy.submission.time.sleep", lambda _: None)
        self.answer("run", {"success": True, "run-id": 7})
        self.answer("stop", {"success": True})
        self.statuses("running", "finished:completed")

    def answer(self, name: str, told: dict[str, Any]) -> None:
        """Answer in the way of Flower: a line or two of its own may come first."""
        (self.folder / name).write_text("Loading project configuration...\n" + json.dumps(told))

    def statuses(self, *statuses: str) -> None:
        """What `flwr ls` says, one after the other; the last one for good."""
        for old in self.folder.glob("ls.*"):
            old.unlink()
        for number, status in enumerate(statuses, start=1):
            run = {"run-id": "7", "status": status, "status-details": "as Flower puts it"}
            self.answer(f"ls.{number}", {"success": True, "runs": [run]})

    def logs(self, *texts: str) -> None:
        for number, text in enumerate(texts, start=1):
            (self.folder / f"log.{number}").write_text(text)

    @property
    def asked(self) -> list[tuple[list[str], str, str]]:
        """What it was asked: (words, FLWR_HOME, the run configuration)."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [(words, home, config) for words, home, config in map(json.loads, lines)]

    def verbs(self) -> list[str]:
        return [words[0] for words, _, _ in self.asked]
