"""Remake the figures of this folder from two sweeps.

    fedsim sweep scenario=dp_fashion privacy.epsilon=1,2,4,8 'seed=range(0,5)'
    fedsim sweep scenario=dp_fashion_users privacy.epsilon=1,2,4,8 'seed=range(0,5)'
    python results/dp/reproduce.py SWEEP SWEEP

where SWEEP are the two folders that the sweeps print. Writes `points.csv` (one line per run),
`dp_fashion.png`, and prints the table for the README.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
NAMES = {
    "dp_fashion": "per example: 10 clients of 6,000, DP-SGD on each",
    "dp_fashion_users": "per user: 3,000 users of 20, DP-FedAvg",
}
LOOKS = {
    "dp_fashion": {"color": "#0072B2", "marker": "o"},
    "dp_fashion_users": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
}


def read(sweep: Path) -> list[dict[str, str]]:
    """Return the runs of a sweep that have finished: scenario, epsilon, seed, accuracy, ..."""
    rows = []
    with (sweep / "points.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] != "finished" or row["metric"] != "central.accuracy":
                continue
            rows.append(
                {
                    "scenario": row["scenario"],
                    "epsilon": row["privacy.epsilon"],
                    "delta": row["delta"],
                    "unit": row["unit"],
                    "seed": row["seed"],
                    "accuracy": row["value"],
                }
            )
    return rows


def main() -> None:
    """Read the sweeps named on the command line, and write the figures."""
    rows = [row for sweep in sys.argv[1:] for row in read(Path(sweep))]
    if not rows:
        raise SystemExit(__doc__)
    rows.sort(key=lambda row: (row["scenario"], float(row["epsilon"]), int(row["seed"])))
    with (HERE / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["scenario"]][float(row["epsilon"])].append(100 * float(row["accuracy"]))
    figure, axes = plt.subplots(figsize=(6.4, 4))
    print("| | " + " | ".join(f"ε = {e:g}" for e in sorted(next(iter(found.values())))) + " |")
    for scenario, by_epsilon in found.items():
        epsilons = sorted(by_epsilon)
        mean = np.array([np.mean(by_epsilon[e]) for e in epsilons])
        std = np.array([np.std(by_epsilon[e], ddof=1) for e in epsilons])
        look = LOOKS[scenario]
        axes.plot(epsilons, mean, label=NAMES[scenario], **look)
        axes.fill_between(epsilons, mean - std, mean + std, color=look["color"], alpha=0.2, lw=0)
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, std, strict=True)]
        print(f"| {NAMES[scenario]} | " + " | ".join(cells) + " |")
    axes.set(xscale="log", xlabel="ε (δ: see the table)", ylabel="test accuracy, %")
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "dp_fashion.png", dpi=150)


if __name__ == "__main__":
    main()
