"""The ledger of a run: every release, on the disk before it happens.

One JSON line per release, with a digest that chains it to all lines before it: a line that was
changed, moved or removed is found. A kill can therefore only make the run claim more than it
released, never less. A last line that is torn was not yet followed by its release, and is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from fedsim.errors import ResumeError
from fedsim.files import write_atomic
from fedsim.protection.base import Line, Protection

LEDGER = "ledger.jsonl"
_START = "0" * 16


class Ledger:
    """The ledger of one run folder.

    Args:
        path: The file; made when the first line is written.
        protection: Says what is released, and counts it.
    """

    def __init__(self, path: Path, protection: Protection) -> None:
        self.path = path
        self.protection = protection
        self.chain = _START
        self._seen: dict[int, list[Line]] = {}

    def load(self, covered: str | None) -> None:
        """Read what an earlier sitting wrote.

        Args:
            covered: The chain as the checkpoint knows it, which must be in the file; None for none.

        Raises:
            ResumeError: The file is damaged, or ends before the checkpoint.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, torn, _ = data.rpartition(b"\n")
        found = covered in (None, _START)
        for number, text in enumerate(whole.split(b"\n") if torn else [], 1):
            line, digest = self._parse(text, number)
            self.chain = _link(self.chain, line)
            if digest != self.chain:
                raise self._damaged(number)
            found = found or self.chain == covered
            self._seen.setdefault(line["round"], []).append(line)
            self.protection.record(line)
        if not found:
            raise ResumeError(
                f"{self.path} ends before the checkpoint does, so releases are missing from it; "
                "the run cannot go on, since its privacy could no longer be stated"
            )
        if len(whole) + len(torn) < len(data):
            write_atomic(self.path, whole + torn)

    def charge(self, server_round: int, clients: np.ndarray) -> float | None:
        """Write down what a round will release; return epsilon so far, an upper bound.

        A round that is done again after a crash, with the same keyed noise, is the same release,
        and is charged once.

        Raises:
            BudgetError: It would cross the budget; nothing was written.
        """
        lines = [
            {"round": server_round, **line}
            for line in self.protection.releases(server_round, clients)
        ]
        if self.protection.replays:
            lines = [line for line in lines if line not in self._seen.get(server_round, [])]
        self.protection.afford(lines)
        if lines:
            self._write(lines)
        for line in lines:
            self.protection.record(line)
        return self.protection.spent()

    def _write(self, lines: list[Line]) -> None:
        with self.path.open("ab") as file:
            for line in lines:
                self.chain = _link(self.chain, line)
                text = json.dumps({**line, "chain": self.chain}, sort_keys=True)
                file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, text: bytes, number: int) -> tuple[Line, str]:
        try:
            line = json.loads(text)
            return line, line.pop("chain")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> ResumeError:
        return ResumeError(
            f"{self.path}, line {number}, is not what the run wrote; the run cannot go on, since "
            "its privacy could no longer be stated"
        )


def _link(chain: str, line: Line) -> str:
    text = chain + json.dumps(line, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
