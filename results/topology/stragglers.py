"""Waiting, or not: paces of FedAvg and FedBuff on unequal devices at equal simulated time.

    python results/topology/stragglers.py

Runs `async_digits` for ten simulated seconds in each way below, seeds 0-2, and writes
stragglers.md. One process; under three minutes of CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from fedsim.config import compose
from fedsim.simulation import Simulation

SECONDS, SEEDS, REACHED = 10.0, (0, 1, 2), 0.9
FEDAVG = ["strategy=fedavg", "participation=uniform"]
MORE = ["participation.clients_per_round=13", "pace=over_selection"]
SOON = ["pace=deadline", "pace.seconds=0.1"]
KEEP = ["pace.late=keep", "pace.discount=0.5"]
WAYS = {
    "FedAvg, 10 asked, all waited for": FEDAVG,
    "FedAvg, 13 asked, the first 10 used": [*FEDAVG, *MORE],
    "the same, late replies kept": [*FEDAVG, *MORE, *KEEP],
    "FedAvg, 10 asked, 0.1 s": [*FEDAVG, *SOON],
    "the same, late replies kept ": [*FEDAVG, *SOON, *KEEP],
    "FedBuff, 20 in flight, 10 a model": [],
}
HEAD = ["rounds", "replies", "late", "MB of training", "accuracy", "s to 0.9"]


def measured(words: list[str], seed: int) -> list[float]:
    """Return what one run has come to within the time: the columns of `HEAD`."""
    given = [f"seed={seed}", "rounds=400", "device=cpu", *words]
    simulation = Simulation(compose("async_digits", given))
    row = [0.0, 0.0, 0.0, 0.0, 0.0, np.nan]
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        now = report.simulated_seconds
        if now is None or now > SECONDS:
            return row
        train = report.footprint.get("train", {"bytes-down": [], "bytes-up": []})
        accuracy = report.central["accuracy"]
        row = [
            float(report.server_round),
            row[1] + len(report.admitted),
            row[2] + report.late,
            row[3] + (sum(train["bytes-down"]) + sum(train["bytes-up"])) / 1e6,
            accuracy,
            now if np.isnan(row[5]) and accuracy >= REACHED else row[5],
        ]
    raise RuntimeError(f"400 rounds end before {SECONDS} s")


def main() -> None:
    """Run all, and write the table."""
    lines = [f"| | {' | '.join(HEAD)} |", f"| --- | {' | '.join(['---:'] * len(HEAD))} |"]
    for name, words in WAYS.items():
        rows = np.array([measured(words, seed) for seed in SEEDS])
        mean, std = rows.mean(0), rows.std(0, ddof=1)
        cells = [f"{x:.0f}" for x in mean[:4]]
        cells += [f"{mean[4]:.3f} ± {std[4]:.3f}", f"{mean[5]:.2f} ± {std[5]:.2f}"]
        lines.append(f"| {name.strip()} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
