"""Robust rules against attackers on digits: every rule, every attack, 20 % malicious clients.

    python results/robust/reproduce.py --run

Runs every (partition, attack, rule, seed) of the grid through the ordinary scenario and appends
each finished one to runs.jsonl, so that an interrupted call goes on where it stopped; then draws
robust.png and late.png from that file and prints README.md's tables.
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

SKEWED = ["partition=dirichlet", "partition.alpha=0.5"]
PARTITIONS = {
    "iid": ["partition=iid"],
    "Dirichlet 0.5": SKEWED,
    "Dirichlet 0.5, 100 rounds": [*SKEWED, "rounds=100"],
}
"""At 40 rounds the rules that move slowly under attack are late; at 100 what is lost is lost."""
OF_RECORD = ("iid", "Dirichlet 0.5, 100 rounds")
"""Where the gate is judged and what beats each rule is looked for."""
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
"""The attacks under which a robust rule may lose at most so many points:"""
LIMIT = 3.0
LATE = ("median", "trimmed mean", "geometric median")
"""Rules that are slow rather than wrong under sign flip, and drawn over rounds."""

Point = tuple[str, str, str, int]


def job(partition: str, attack: str, rule: str, seed: int) -> dict[str, Any]:
    """Run one point of the grid and return its evaluated rounds."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    overrides = [*PARTITIONS[partition], *RULES[rule], *ATTACKS[attack], f"seed={seed}"]
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


def final(run: dict[str, Any]) -> float:
    """Return a run's mean test accuracy over the last rounds, in percent."""
    rounds = np.array(run["rounds"])
    return 100 * float(np.mean(np.array(run["accuracy"])[rounds > rounds[-1] - WINDOW]))


def accuracies(runs: list[dict[str, Any]], partition: str, attack: str, rule: str) -> np.ndarray:
    """Return the final accuracies of one cell, by seed."""
    chosen = sorted((r for r in runs if key(r)[:3] == (partition, attack, rule)), key=key)
    return np.array([final(run) for run in chosen])


def losses(
    runs: list[dict[str, Any]], partition: str, attack: str, rule: str, other: str | None = None
) -> np.ndarray:
    """Return the points lost against the same rule, or an `other`, without attack, by seed."""
    clean = accuracies(runs, partition, "none", other or rule)
    attacked = accuracies(runs, partition, attack, rule)
    lost: np.ndarray = clean[: len(attacked)] - attacked
    return lost


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    head = ["| attack | " + " | ".join(RULES) + " |", "| --- |" + " --- |" * len(RULES)]
    for partition in PARTITIONS:
        lines += [f"### {partition}: test accuracy, %, {SEEDS} seeds", "", *head]
        for attack in ATTACKS:
            cells = [accuracies(runs, partition, attack, rule) for rule in RULES]
            shown = [f"{c.mean():.1f} ± {c.std(ddof=1):.1f}" if len(c) > 1 else "–" for c in cells]
            lines.append(f"| {attack} | " + " | ".join(shown) + " |")
        lines += [
            "",
            f"### {partition}: points lost against the same rule without attack",
            "",
            *head,
        ]
        for attack in list(ATTACKS)[1:]:
            cells = [losses(runs, partition, attack, rule) for rule in RULES]
            shown = [f"{round(c.mean(), 1) + 0.0:.1f}" if len(c) else "–" for c in cells]
            lines.append(f"| {attack} | " + " | ".join(shown) + " |")
        lines.append("")
    for partition in OF_RECORD:
        for title, clean in (("the same rule", None), ("FedAvg", "FedAvg")):
            lines += [f"### The gate, {partition}: points below {title} without attack", "", *head]
            for attack in ("none", *GATE) if clean else GATE:
                shown = [interval(losses(runs, partition, attack, rule, clean)) for rule in RULES]
                lines.append(f"| {attack} | " + " | ".join(shown) + " |")
            lines.append("")
    lines += ["### What beats each rule", ""]
    lines.append("| rule | worst of the gate's attacks | worst of all attacks |")
    lines.append("| --- | --- | --- |")
    for rule in RULES:
        shown = [_worst(runs, rule, GATE), _worst(runs, rule, list(ATTACKS)[1:])]
        lines.append(f"| {rule} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def interval(gaps: np.ndarray) -> str:
    """Return mean and 95 % confidence interval (Student's t), bold where the mean is above 3."""
    from scipy.stats import t

    if not len(gaps):
        return "–"
    half = t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5
    shown = f"{round(np.mean(gaps), 1) + 0.0:.1f} ± {half:.1f}"
    return f"**{shown}**" if np.mean(gaps) > LIMIT else shown


def _worst(runs: list[dict[str, Any]], rule: str, attacks: Any) -> str:
    found = [(losses(runs, p, a, rule), p, a) for p in OF_RECORD for a in attacks]
    found = [entry for entry in found if len(entry[0])]
    if not found:
        return "–"
    gaps, partition, attack = max(found, key=lambda entry: float(entry[0].mean()))
    each = ", ".join(f"{gap:.1f}" for gap in gaps)
    return f"{gaps.mean():.1f} ({attack}, {partition}; by seed {each})"


def steps() -> str:
    """Return how far each rule's first step goes along FedAvg's without attack, in Markdown.

    ⟨u, v⟩ / ⟨v, v⟩ of the rule's update u and FedAvg's v, both from the initial model at Dirichlet
    0.5, mean over seeds: 1 is FedAvg's own step, below 0 is backwards.
    """
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    def update(rule: str, attack: str, seed: int) -> np.ndarray:
        overrides = [*SKEWED, *RULES[rule], *ATTACKS[attack], f"seed={seed}", "rounds=1"]
        simulation = Simulation(compose("robust_digits", overrides))
        start = {n: x.double().numpy() for n, x in simulation.runtime.initial_params().items()}
        *_, (end, _) = simulation.loop.run(simulation.runtime.initial_params())
        return np.concatenate([(end[n].double().numpy() - x).ravel() for n, x in start.items()])

    reference = [update("FedAvg", "none", seed) for seed in range(SEEDS)]
    lines = ["| attack | " + " | ".join(RULES) + " |", "| --- |" + " --- |" * len(RULES)]
    for attack in ATTACKS:
        cells = []
        for rule in RULES:
            along = [update(rule, attack, seed) @ v / (v @ v) for seed, v in enumerate(reference)]
            far = float(np.mean(along))
            cells.append(f"{far:.2f}" if abs(far) < 100 else f"{far:.0e}")
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the points lost to each attack, one panel per partition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, len(OF_RECORD), sharey=True)
    attacks = list(ATTACKS)[1:]
    for axis, partition in zip(axes, OF_RECORD, strict=True):
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


def draw_late(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw what some rules have lost to sign flip by each round, mean and range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for rule, colour in zip(LATE, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        clean, attacked = (
            {
                run["seed"]: 100 * np.array(run["accuracy"])
                for run in runs
                if key(run)[:3] == ("Dirichlet 0.5, 100 rounds", attack, rule)
            }
            for attack in ("none", "sign flip ×4")
        )
        seeds = sorted(clean.keys() & attacked.keys())
        if not seeds:
            continue
        lost = np.array([clean[seed] - attacked[seed] for seed in seeds])
        rounds = 5 * np.arange(lost.shape[1])
        axis.plot(rounds, lost.mean(0), color=colour, lw=1.6, label=rule)
        axis.fill_between(rounds, lost.min(0), lost.max(0), color=colour, alpha=0.12)
    axis.axhline(LIMIT, color="black", lw=0.8, ls="--")
    axis.set_xlabel("round")
    axis.set_ylabel("points lost")
    axis.set_title("sign flip ×4, Dirichlet 0.5", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing if asked to, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run what is missing first")
    parser.add_argument("--steps", action="store_true", help="print the table of first steps too")
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
    draw_late(runs, HERE / "late.png")
    print(tables(runs))
    if arguments.steps:
        print("\n### How far the first step goes\n\n" + steps())


if __name__ == "__main__":
    main()
