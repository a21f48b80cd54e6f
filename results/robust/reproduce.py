"""Robust rules against attackers on digits: every rule, every attack, 20 % malicious clients.

    python results/robust/reproduce.py --run

Runs every (partition, attack, rule, seed) of the grid through the ordinary scenario and appends
each finished one to runs.jsonl, so that an interrupted call goes on where it stopped; then draws
robust.png from that file and prints README.md's tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
SEEDS = 5
WINDOW = 20
"""Test accuracy is averaged over the evaluations (every 5th round) of the last so many rounds."""

PARTITIONS = {
    "iid": ["partition=iid"],
    "Dirichlet 0.5": ["partition=dirichlet", "partition.alpha=0.5"],
}
LONGER = {"Dirichlet 0.5, 100 rounds": [*PARTITIONS["Dirichlet 0.5"], "rounds=100"]}
"""Of `LATE` under `SLOW` alone: is what these rules lose lost, or only late?"""
SLOW = ("none", "sign flip ×4")
LATE = ("median", "trimmed mean", "geometric median")
RULES = {
    "FedAvg": ["strategy=fedavg"],
    "median": ["strategy=median"],
    "trimmed mean": ["strategy=trimmed_mean", "strategy.beta=0.2"],
    "geometric median": ["strategy=geometric_median"],
    "Krum": ["strategy=krum", "strategy.num_malicious=10"],
    "Multi-Krum": ["strategy=multikrum", "strategy.num_malicious=10"],
    "Bulyan": ["strategy=bulyan", "strategy.num_malicious=10"],
}
ATTACKS = {
    "none": ["attack=none"],
    "sign flip ×4": ["attack=sign_flip", "attack.scale=4"],
    "scaled ×1e30": ["attack=scaled", "attack.factor=1e30"],
    "NaN": ["attack=nan"],
    "label flip": ["attack=label_flip"],
    "little is enough": ["attack=little_is_enough"],
    "inner product, ε=0.3": ["attack=inner_product", "attack.epsilon=0.3"],
    "inner product, ε=1": ["attack=inner_product", "attack.epsilon=1"],
    "inner product, ε=3": ["attack=inner_product", "attack.epsilon=3"],
}
GATE = ("sign flip ×4", "scaled ×1e30", "NaN", "label flip")
"""The attacks under which a robust rule may lose at most three points."""

Point = tuple[str, str, str, int]


def job(partition: str, attack: str, rule: str, seed: int) -> dict[str, Any]:
    """Run one point of the grid and return its evaluated rounds."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    overrides = [*(PARTITIONS | LONGER)[partition], *RULES[rule], *ATTACKS[attack], f"seed={seed}"]
    simulation = Simulation(compose("robust_digits", overrides))
    rounds, accuracies, rejected = [], [], 0
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        rejected += sum(report.rejected.values())
        if report.central:
            rounds.append(report.server_round)
            accuracies.append(round(report.central["accuracy"], 6))
    return {
        "partition": partition,
        "attack": attack,
        "rule": rule,
        "seed": seed,
        "config": simulation.config.hash[:12],
        "rejected": rejected,
        "rounds": rounds,
        "accuracy": accuracies,
    }


def key(run: dict[str, Any]) -> Point:
    """Return what identifies a point of the grid."""
    return run["partition"], run["attack"], run["rule"], run["seed"]


def finished() -> list[dict[str, Any]]:
    """Return the runs recorded so far."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def grid() -> Iterator[Point]:
    """Yield the points of the grid: first those of the gate, all of one seed together."""
    first = ("none", *GATE)
    for attacks in (first, [attack for attack in ATTACKS if attack not in first]):
        for seed in range(SEEDS):
            yield from product(PARTITIONS, attacks, RULES, [seed])
    for seed in range(SEEDS):
        yield from product(LONGER, SLOW, LATE, [seed])


def final(run: dict[str, Any]) -> float:
    """Return a run's mean test accuracy over the last rounds, in percent."""
    rounds = np.array(run["rounds"])
    return 100 * float(np.mean(np.array(run["accuracy"])[rounds > rounds[-1] - WINDOW]))


def accuracies(runs: list[dict[str, Any]], partition: str, attack: str, rule: str) -> np.ndarray:
    """Return the final accuracies of one cell, by seed."""
    chosen = sorted((r for r in runs if key(r)[:3] == (partition, attack, rule)), key=key)
    return np.array([final(run) for run in chosen])


def losses(runs: list[dict[str, Any]], partition: str, attack: str, rule: str) -> np.ndarray:
    """Return the points lost against the same rule without attack, by seed."""
    clean = accuracies(runs, partition, "none", rule)
    attacked = accuracies(runs, partition, attack, rule)
    return clean[: len(attacked)] - attacked


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    head = ["| attack | " + " | ".join(RULES) + " |", "| --- |" + " --- |" * len(RULES)]
    for partition in PARTITIONS | LONGER:
        attacks = SLOW if partition in LONGER else tuple(ATTACKS)
        lines += [f"### {partition}: test accuracy, %, {SEEDS} seeds", "", *head]
        for attack in attacks:
            cells = [accuracies(runs, partition, attack, rule) for rule in RULES]
            shown = [f"{c.mean():.1f} ± {c.std(ddof=1):.1f}" if len(c) > 1 else "–" for c in cells]
            lines.append(f"| {attack} | " + " | ".join(shown) + " |")
        lines += [
            "",
            f"### {partition}: points lost against the same rule without attack",
            "",
            *head,
        ]
        for attack in attacks[1:]:
            cells = [losses(runs, partition, attack, rule) for rule in RULES]
            shown = [f"{round(c.mean(), 1) + 0.0:.1f}" if len(c) else "–" for c in cells]
            lines.append(f"| {attack} | " + " | ".join(shown) + " |")
        lines.append("")
    lines += ["### The gate, and what beats each rule", ""]
    lines += [
        "| rule | worst of the gate's attacks | worst of all attacks |",
        "| --- | --- | --- |",
    ]
    for rule in RULES:
        cells = [_worst(runs, rule, GATE), _worst(runs, rule, list(ATTACKS)[1:])]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _worst(runs: list[dict[str, Any]], rule: str, attacks: Any) -> str:
    found = [(losses(runs, p, a, rule), p, a) for p in PARTITIONS for a in attacks]
    found = [entry for entry in found if len(entry[0])]
    if not found:
        return "–"
    gaps, partition, attack = max(found, key=lambda entry: float(entry[0].mean()))
    each = ", ".join(f"{gap:.1f}" for gap in gaps)
    return f"{gaps.mean():.1f} ({attack}, {partition}; by seed {each})"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the points lost to each attack, one panel per partition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, len(PARTITIONS), sharey=True)
    attacks = list(ATTACKS)[1:]
    for axis, partition in zip(axes, PARTITIONS, strict=True):
        lost = np.full((len(attacks), len(RULES)), np.nan)
        for i, attack in enumerate(attacks):
            for j, rule in enumerate(RULES):
                cell = losses(runs, partition, attack, rule)
                lost[i, j] = cell.mean() if len(cell) else np.nan
                if len(cell):
                    colour = "white" if lost[i, j] > 12 else "black"
                    text = f"{round(lost[i, j], 1) + 0.0:.1f}".replace("-", "−")
                    axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
        image = axis.imshow(lost, cmap="Reds", vmin=0, vmax=20, aspect="auto")
        axis.axhline(len(GATE) - 0.5, color="black", lw=1)
        axis.set_xticks(range(len(RULES)), list(RULES), rotation=25, ha="right", fontsize=9)
        axis.set_yticks(range(len(attacks)), attacks, fontsize=9)
        axis.set_title(f"digits, {partition}: points of test accuracy lost", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="max")
    bar.set_label("points lost against no attack")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing if asked to, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run what is missing first")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    done = {key(run) for run in finished()}
    todo = [point for point in grid() if point not in done] if arguments.run else []
    if todo:
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(job, *point) for point in todo]):
                with RUNS.open("a") as file:
                    file.write(json.dumps(future.result(), ensure_ascii=False) + "\n")
                print(*key(future.result()), f"{final(future.result()):.2f}", flush=True)
    runs = finished()
    draw(runs, HERE / "robust.png")
    print(tables(runs))


if __name__ == "__main__":
    main()
