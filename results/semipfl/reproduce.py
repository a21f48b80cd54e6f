"""SemiPFL against its neighbours on phone recordings of 23 people.

    python results/semipfl/reproduce.py run       # about 25 CPU-minutes; goes on where it stopped
    python results/semipfl/reproduce.py report    # semipfl.png, tables.md

Needs FEDSIM_DATA. Appends each finished run to runs.jsonl: first the tuning grid, on a seed of its
own, then every method at its best point.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"

COMMON = [
    *("device=cpu", "data.server_subjects=3", "evaluation.central=false", "rounds=20"),
    *("evaluation.every=5", "model.hidden=[64]", "model.latent=32", "client.batch_size=64"),
    "client.epochs=2",
]
ADAM = "strategy.optimiser=adam"
SERVER = [ADAM, "strategy.server_epochs=2", "strategy.server_batch=64"]
METHODS: dict[str, list[str]] = {
    "SemiPFL": ["strategy=semipfl", "strategy.keep_by=class"],
    "pFedHN": ["strategy=pfedhn", ADAM],
    "local": ["strategy=local_only", ADAM],
    "FedAvg-AE": ["strategy=fedavg_autoencoder"],
    "FedProx-AE": ["strategy=fedprox_autoencoder"],
    "SemiFL": ["strategy=semifl", *SERVER],
    "server only": ["strategy=semifl", "strategy.threshold=1", "data.labelled=0", *SERVER],
    "FedAvg, all labels": ["strategy=semifl", "data.labelled=1", *SERVER],
    "local, all labels": ["strategy=local_only", "data.labelled=1", ADAM],
}
GRID: dict[str, tuple[str, tuple[float, float]]] = {
    "SemiPFL": ("strategy.hyper_lr", (1e-3, 3e-3)),
    "pFedHN": ("strategy.hyper_lr", (1e-3, 3e-3)),
    "local": ("client.batch_size", (16, 64)),
    "FedAvg-AE": ("strategy.tune_lr", (0.01, 0.03)),
    "FedProx-AE": ("strategy.mu", (0.01, 0.1)),
    "SemiFL": ("strategy.threshold", (0.8, 0.95)),
}
"""The second key that is tuned, beside the learning rate."""
RATES = (0.001, 0.003)
AS = {"server only": "SemiFL", "FedAvg, all labels": "SemiFL", "local, all labels": "local"}
"""Whose tuned values are taken; a threshold of 1 is the method itself."""
NEEDS_LABELS = {"pFedHN", "local"}
"""Without labels, their users have nothing to train on."""
FIXED = {"server only", "FedAvg, all labels", "local, all labels"}
"""They do not depend on the share of labels."""

SEEDS, TUNING_SEED = range(5), 100
SHARES, USERS = (0.0, 0.05, 0.1, 0.3, 0.7), (5, 10, 15, 20)
SHARE, ALL = 0.1, 20
"""The share at which the number of users varies, and the number at which the share does."""


class Point(NamedTuple):
    """What identifies a run."""

    method: str
    users: int
    share: float
    lr: float
    second: float
    seed: int


def job(point: Point) -> dict[str, Any]:
    """Run one point; return every user's scores, by evaluated round."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    key, _ = GRID[AS.get(point.method, point.method)]
    overrides = [
        *COMMON,
        f"data.labelled={point.share}",
        f"{key}={point.second:g}",
        *METHODS[point.method],
        f"data.users={point.users}",
        f"participation.clients_per_round={point.users}",
        f"client.lr={point.lr}",
        f"seed={point.seed}",
        *([f"strategy.server_lr={point.lr}"] if "strategy=semifl" in METHODS[point.method] else []),
    ]
    simulation = Simulation(compose("semipfl_har", _last_wins(overrides)))
    scored = {}
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        if report.per_client:
            scored[report.server_round] = {
                name: [round(float(value), 4) for value in report.per_client[name]]
                for name in ("weighted-f1", "accuracy")
            }
    return {**point._asdict(), "config": simulation.config.hash[:12], "scored": scored}


def _last_wins(overrides: list[str]) -> list[str]:
    return list(dict((word.partition("=")[0], word) for word in overrides).values())


def finished() -> dict[Point, dict[int, np.ndarray]]:
    """Return the runs so far: round -> weighted F1 and accuracy of each user, `[2, users]`."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    found = {}
    for line in lines:
        run = json.loads(line)
        point = Point(*(run[field] for field in Point._fields))
        found[point] = {
            int(r): 100 * np.array([s["weighted-f1"], s["accuracy"]])
            for r, s in run["scored"].items()
        }
    return found


def grid(method: str) -> list[Point]:
    """Return the points among which one method is tuned."""
    return [
        Point(method, ALL, SHARE, lr, second, TUNING_SEED)
        for lr in RATES
        for second in GRID[method][1]
    ]


def last(run: dict[int, np.ndarray]) -> np.ndarray:
    """Return the scores after the last round, `[2, users]`."""
    return run[max(run)]


def best(runs: dict[Point, dict[int, np.ndarray]], method: str) -> Point:
    """Return the point of the grid of the highest mean F1 after the last round."""
    return max(grid(AS.get(method, method)), key=lambda p: last(runs[p])[0].mean())


def settings(method: str) -> Iterator[tuple[int, float]]:
    """Yield (users, share) at which a method is run."""
    for share in (SHARE,) if method in FIXED else SHARES:
        if share or method not in NEEDS_LABELS:
            yield ALL, share
    yield from ((users, SHARE) for users in USERS if users != ALL)


def points(runs: dict[Point, dict[int, np.ndarray]]) -> Iterator[Point]:
    """Yield the points of the comparison, seed by seed."""
    for seed in SEEDS:
        for method in METHODS:
            at = best(runs, method)
            for users, share in settings(method):
                yield Point(method, users, share, at.lr, at.second, seed)


def run() -> None:
    """Run what is missing."""
    for stage in ("tuning", "comparison"):
        done = finished()
        wanted = [p for m in GRID for p in grid(m)] if stage == "tuning" else list(points(done))
        for point in wanted:
            if point not in done:
                with RUNS.open("a") as file:
                    file.write(json.dumps(job(point)) + "\n")
                print(point, flush=True)


def interval(difference: np.ndarray) -> str:
    """Return a mean and its 95 % interval, Student's t over seeds."""
    if len(difference) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    mean = difference.mean()
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def values(
    runs: dict[Point, dict[int, np.ndarray]], method: str, users: int, share: float, score: int = 0
) -> np.ndarray:
    """Return the mean over users after the last round, one for each seed that is there."""
    at, share = best(runs, method), SHARE if method in FIXED else share
    found = [runs.get(Point(method, users, share, at.lr, at.second, seed)) for seed in SEEDS]
    return np.array([last(run)[score].mean() for run in found if run is not None])


def table(
    runs: dict[Point, dict[int, np.ndarray]], what: list[tuple[int, float]], heads: list[str]
) -> list[str]:
    """Return rows of mean ± std, and SemiPFL minus the method with its paired interval."""
    cells = " | ".join(f"{head} | SemiPFL −" for head in heads)
    lines = [f"| method | {cells} |", "| --- |" + " ---: |" * (2 * len(heads))]
    for method in METHODS:
        row = []
        for users, share in what:
            if not share and method in NEEDS_LABELS:
                row += ["–", ""]
                continue
            own, ours = (values(runs, m, users, share) for m in (method, "SemiPFL"))
            count = min(len(own), len(ours))
            paired = "" if method == "SemiPFL" else interval(ours[:count] - own[:count])
            row += [f"{own.mean():.1f} ± {own.std(ddof=1):.1f}" if len(own) > 1 else "–", paired]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return lines


def spread(runs: dict[Point, dict[int, np.ndarray]]) -> list[str]:
    """Return the distribution over users, and last against best round, at share 0.1."""
    lines = [
        "| method | worst user | lower quartile | median | upper quartile | best user "
        "| mean F1, last round | best round | mean accuracy, last round |",
        "| --- |" + " ---: |" * 8,
    ]
    for method in METHODS:
        at = best(runs, method)
        found = [runs.get(Point(method, ALL, SHARE, at.lr, at.second, s)) for s in SEEDS]
        there = [run for run in found if run is not None]
        if not there:
            continue
        f1 = np.stack([last(run)[0] for run in there])
        low, *middle, high = np.quantile(f1, (0, 0.25, 0.5, 0.75, 1), axis=1).mean(1)
        top = np.mean([max(scores[0].mean() for scores in run.values()) for run in there])
        accuracy = np.mean([last(run)[1].mean() for run in there])
        cells = [low, *middle, high, f1.mean(), top, accuracy]
        lines.append(f"| {method} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return lines


def report() -> None:
    """Draw semipfl.png and write tables.md."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = finished()
    by_share, by_users = [(ALL, s) for s in SHARES], [(u, SHARE) for u in USERS]
    count = len(values(runs, "SemiPFL", ALL, SHARE))
    text = [
        f"Weighted F1 in percent, mean over all users after the last round, ± over {count} seeds.",
        "\n## By the share of labels, 20 users\n",
        *table(runs, by_share, [f"{s:g}" for s in SHARES]),
        "\n## By the number of users, a tenth of the labels\n",
        *table(runs, by_users, [f"{u} users" for u in USERS]),
        "\n## Over users, 20 of them, a tenth of the labels\n",
        *spread(runs),
        "\n## Tuned values\n",
        "| method | learning rate | second key | value |",
        "| --- | ---: | --- | ---: |",
    ]
    for method in GRID:
        at = best(runs, method)
        text.append(f"| {method} | {at.lr:g} | `{GRID[method][0]}` | {at.second:g} |")
    (HERE / "tables.md").write_text("\n".join(text) + "\n")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    for axis, what, x in ((axes[0], by_share, SHARES), (axes[1], by_users, USERS)):
        for method in METHODS:
            some = [(v, values(runs, method, *w)) for v, w in zip(x, what, strict=True)]
            some = [(v, f) for v, f in some if len(f)]
            kept = [(v, f) for v, f in some if v or method not in NEEDS_LABELS]
            style = "--" if method in FIXED else "-"
            axis.errorbar(
                [v for v, _ in kept],
                [f.mean() for _, f in kept],
                [stats.sem(f) if len(f) > 1 else 0 for _, f in kept],
                label=method,
                linestyle=style,
                linewidth=2.5 if method == "SemiPFL" else 1.2,
                marker="o",
                markersize=3,
            )
    axes[0].set(xlabel="share of labels that users know", ylabel="weighted F1 (%)")
    axes[1].set(xlabel="users (a tenth of the labels)")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(HERE / "semipfl.png", dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "report"])
    {"run": run, "report": report}[parser.parse_args().what]()
