"""Made-up sweep folders, as a sweep writes them, without running anything.

To look at a report: `PYTHONPATH=. python tests/sweep/made_up.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.sweep.folder import FINISHED, STARTED, Entry, SweepFolder
from fedsim.sweep.grid import Point

TERMS: dict[str, Any] = {
    "delta": 1e-5,
    "unit": "user",
    "relation": "add or remove one",
    "sampling": "Poisson, rate 0.1",
    "accountant": "PLD",
}


def make_sweep(root: Path, points: Sequence[Mapping[str, Any]]) -> SweepFolder:
    """Write a sweep and its runs.

    Args:
        root: Where `sweeps` and `runs` go.
        points: Each with `axes`, and of its run: `value` (accuracy, or none: it has not run),
            `privacy` (privacy.json), `status` and `reason` where it is not finished.
    """
    entries = [
        Entry(
            number=number,
            point=Point(
                scenario="quickstart",
                overrides=tuple(f"{key}={value}" for key, value in point["axes"].items()),
                axes={key: str(value) for key, value in point["axes"].items()},
            ),
            hash=f"{number:064d}",
            name="quickstart",
            rounds=2,
        )
        for number, point in enumerate(points, start=1)
    ]
    folder = SweepFolder.create(root / "sweeps", "made_up", ["fedsim", "sweep", "x=1,2"], entries)
    for number, point in enumerate(points, start=1):
        if "value" in point:
            run = root / "runs" / f"run-{number}"
            folder.record(number, STARTED, run=folder.relative(run))
            write_run(run, point["value"], point.get("privacy", {"statement": "none"}))
            status = point.get("status", FINISHED)
            folder.record(number, status, reason=point.get("reason", ""))
    return folder


def write_run(run: Path, accuracy: float, privacy: Mapping[str, Any]) -> None:
    run.mkdir(parents=True)
    lines = [
        {"server_round": r, "central": {"accuracy": accuracy * r / 2, "loss": 1.0}, "seconds": 0.5}
        for r in range(3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "privacy.json").write_text(json.dumps(privacy))
    (run / "summary.json").write_text(json.dumps({"status": "finished", "server_round": 2}))
    (run / "env.json").write_text(json.dumps({"git": {"commit": "a" * 40, "changed": False}}))


def private(epsilon: float, **other: Any) -> dict[str, Any]:
    return {"statement": "made up", "epsilon": epsilon, **TERMS, **other}


if __name__ == "__main__":
    from fedsim.sweep.report import write_sweep_report

    rng = np.random.default_rng(0)
    grid = [
        {
            "axes": {"privacy": "user_dp", "strategy": s, "privacy.epsilon": e, "seed": seed},
            "value": float(top * (1 - np.exp(-e / scale)) + 0.1 + rng.normal(0, 0.015)),
            "privacy": private(e * 0.99),
        }
        for s, top, scale in (("fedavg", 0.8, 2.0), ("fedau", 0.75, 1.0), ("scaffold", 0.7, 4.0))
        for e in (0.5, 1, 2, 4, 8)
        for seed in range(5)
    ]
    grid += [
        {"axes": {"privacy": "none", "strategy": "fedavg", "seed": s}, "value": 0.93 + s / 500}
        for s in range(3)
    ]
    grid[7] |= {"status": "failed", "reason": "client trouble"}
    print(write_sweep_report(make_sweep(Path(sys.argv[1]), grid).path))
