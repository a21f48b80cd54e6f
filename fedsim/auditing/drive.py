"""Runs a scenario with canaries in it, and judges its privacy claim.

The run folder is that of an ordinary run, with three files more: `canaries.json`, written before
the first round, and `audit.json` and `audit.png` after the last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load

from fedsim.auditing.base import Audit, AuditPart, Verdict
from fedsim.config import Config
from fedsim.config.apart import build_apart
from fedsim.drive import run_rounds
from fedsim.engines.base import LocalGrid
from fedsim.errors import BudgetError, ConfigError
from fedsim.files import write_atomic
from fedsim.lifecycle import Run
from fedsim.progress import Display
from fedsim.protection.base import Line, Protection
from fedsim.protection.ledger import LEDGER
from fedsim.report.html import write_report
from fedsim.results import MODEL, RunFolder
from fedsim.simulation import Simulation

log = logging.getLogger(__name__)

CANARIES, AUDIT, PICTURE = "canaries.json", "audit.json", "audit.png"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """An audited run.

    Attributes:
        folder: Of the run.
        verdict: What was found.
    """

    folder: Path
    verdict: Verdict


def run_audit(config: Config, words: Sequence[str], display: Display) -> Audited:
    """Run a scenario with canaries, write what they show, and return it.

    Args:
        config: The scenario.
        words: `audit=<name>` and `audit.<key>=<value>`.
        display: Shows the rounds.

    Raises:
        ConfigError: There is no such audit, or it cannot judge this run.
    """
    values, part = build_apart("audit", words, default="canaries", plugins=config.plugins)
    if not isinstance(part, AuditPart):
        raise ConfigError(f"audit._target_: {values['_target_']} is no AuditPart")
    audits: list[Audit] = []

    def plant(simulation: Simulation, inner: Protection) -> Protection:
        audits.append(part.plant(simulation, inner))
        return audits[-1].protection

    with closing(Simulation(config, plant=plant)) as simulation:
        simulation.loop  # noqa: B018  build and check everything before a folder is made
        if not isinstance(simulation.grid, LocalGrid):
            raise ConfigError(
                f"engine: {config.values['engine']['_target_']} runs clients where no canaries can "
                "be planted; use engine=cohort"
            )
        (audit,) = audits
        folder = RunFolder.create(config)
        path = folder.path
        _write(path / CANARIES, {"audit": values, **audit.planted()})
        initial = simulation.runtime.initial_params()
        try:
            run_rounds(Run(simulation=simulation, folder=folder), display, resume=False)
        except BudgetError as error:  # the model so far is good, and so is what it shows
            log.warning("the run ended early: %s", error)
    verdict = audit.conclude(initial, load((path / MODEL).read_bytes()), _lines(path / LEDGER))
    found = {"audit": values, "refuted": verdict.refuted, "words": list(verdict.words)}
    _write(path / AUDIT, {**found, **verdict.values})
    write_atomic(path / PICTURE, verdict.picture)
    write_report(path)
    return Audited(folder=path, verdict=verdict)


def _lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())
