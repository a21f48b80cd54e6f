"""FedAU against its baselines under intermittent participation, on digits and Fashion-MNIST.

    python results/fedau/reproduce.py digits fashion --workers 2

Runs every (participation, method, seed) of the grids below through the ordinary scenarios and
appends each finished one to runs.jsonl, so that an interrupted call goes on where it stopped; then
draws fedau.png from that file and prints README.md's tables. Fashion-MNIST comes from FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"

METHODS = {
    "FedAU, K=50": ["strategy=fedau"],
    "FedAU, K=∞": ["strategy=fedau_paper"],
    "average participating": ["strategy=average_participating"],
    "average all, η=1": ["strategy=average_all"],
    "average all, η=10": ["strategy=average_all", "strategy.server_lr=10"],
    "known probability": ["strategy=known_probability"],
}
PARTICIPATION = {
    "Bernoulli": "fedau_bernoulli",
    "Markov": "fedau_markov",
    "cyclic": "fedau_cyclic",
}
DATA = {
    "digits": {"scenario": "fedau_digits", "seeds": 5, "window": 200},
    "fashion": {"scenario": "fedau_fashion", "seeds": 5, "window": 300},
}
"""Scenario, number of seeds, and over how many last rounds the test accuracy is averaged."""


def job(data: str, participation: str, method: str, seed: int) -> dict[str, Any]:
    """Run one point of the grid and return its evaluated rounds."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    overrides = [f"participation={PARTICIPATION[participation]}", f"seed={seed}", *METHODS[method]]
    simulation = Simulation(compose(DATA[data]["scenario"], overrides))
    rounds, accuracies = [], []
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        if report.central:
            rounds.append(report.server_round)
            accuracies.append(round(report.central["accuracy"], 6))
    return {
        "data": data,
        "participation": participation,
        "method": method,
        "seed": seed,
        "config": simulation.config.hash[:12],
        "rounds": rounds,
        "accuracy": accuracies,
    }


def key(run: dict[str, Any]) -> tuple[str, str, str, int]:
    """Return what identifies a point of the grid."""
    return run["data"], run["participation"], run["method"], run["seed"]


def finished() -> list[dict[str, Any]]:
    """Return the runs recorded so far."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def grid(names: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """Yield the points of the named grids, all methods of one seed together."""
    for data in names:
        for seed in range(DATA[data]["seeds"]):
            for participation in PARTICIPATION:
                for method in METHODS:
                    yield data, participation, method, seed


def final(run: dict[str, Any]) -> float:
    """Return a run's mean test accuracy over the last rounds, in percent."""
    rounds = np.array(run["rounds"])
    tail = rounds > rounds[-1] - DATA[run["data"]]["window"]
    return 100 * float(np.mean(np.array(run["accuracy"])[tail]))


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    for data in DATA:
        if not any(run["data"] == data for run in runs):
            continue
        seeds = DATA[data]["seeds"]
        lines += [f"### {data}, {seeds} seeds", ""]
        lines += ["| method | " + " | ".join(PARTICIPATION) + " |", "| --- |" + " --- |" * 3]
        for method in METHODS:
            cells = []
            for participation in PARTICIPATION:
                values = _values(runs, data, participation, method)
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                cells.append(f"{np.mean(values):.1f} ± {spread:.1f}" if len(values) else "–")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines += ["", "Paired difference, FedAU (K=50) − average participating, per seed:", ""]
        for participation in PARTICIPATION:
            ours = _values(runs, data, participation, "FedAU, K=50")
            theirs = _values(runs, data, participation, "average participating")
            if len(ours) and len(ours) == len(theirs):
                gaps = ours - theirs
                each = ", ".join(f"{gap:+.1f}" for gap in gaps)
                lines.append(f"- {participation}: mean {np.mean(gaps):+.2f} points ({each})")
        lines.append("")
    return "\n".join(lines)


def _values(runs: list[dict[str, Any]], data: str, participation: str, method: str) -> np.ndarray:
    chosen = [r for r in runs if key(r)[:3] == (data, participation, method)]
    return np.array([final(run) for run in sorted(chosen, key=key)])


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw mean test accuracy over rounds, with a band of one standard deviation over seeds."""
    from matplotlib.figure import Figure

    shown = [data for data in DATA if any(run["data"] == data for run in runs)]
    figure = Figure(figsize=(11, 3.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False, sharey="row")
    colours = ["#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#E69F00", "#009E73"]
    styles = ["-", "--", "-", ":", "--", "-."]
    for row, data in zip(axes, shown, strict=True):
        for axis, participation in zip(row, PARTICIPATION, strict=True):
            for method, colour, style in zip(METHODS, colours, styles, strict=True):
                chosen = [r for r in runs if key(r)[:3] == (data, participation, method)]
                if not chosen:
                    continue
                curves = 100 * np.array([run["accuracy"] for run in chosen])
                mean, spread = curves.mean(0), curves.std(0)
                axis.plot(chosen[0]["rounds"], mean, style, color=colour, label=method, lw=1.6)
                axis.fill_between(
                    chosen[0]["rounds"], mean - spread, mean + spread, color=colour, alpha=0.12
                )
            axis.set_title(f"{data}, {participation} participation", fontsize=10)
            axis.set_xlabel("round")
            axis.grid(alpha=0.3)
        row[0].set_ylim(*(75, 100) if data == "digits" else (55, 90))
        row[0].set_ylabel("test accuracy, %")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing of the named grids, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", choices=[*DATA, []], default=[])
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    done = {key(run) for run in finished()}
    todo = [point for point in grid(arguments.data) if point not in done]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(job, *point) for point in todo]):
            with RUNS.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
            print(*key(future.result()), f"{final(future.result()):.2f}", flush=True)
    runs = finished()
    draw(runs, HERE / "fedau.png")
    print(tables(runs))


if __name__ == "__main__":
    main()
