"""FedLD, its two halves and its baselines: where it wins, where it loses, and medical images.

    python results/fedld/reproduce.py parity digits-E1 digits-E5 retina fashion --workers 2

Runs every point of the grids below through the ordinary scenarios and appends each finished one to
runs.jsonl, so that an interrupted call goes on where it stopped: first all methods at equal (γ, η)
and the tuning grids, on a seed of their own; then every method at its best point. Then draws
fedld.png from that file and prints README.md's tables. Fashion-MNIST and RetinaMNIST come from
FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"

METHODS = {
    "FedAvg": ["strategy=fedavg"],
    "FedProx": ["strategy=fedprox"],
    "margin only": ["strategy=fedld", "strategy.aggregation=mean"],
    "PCA only": ["strategy=fedld", "strategy.margin=none"],
    "FedLD": ["strategy=fedld"],
    "FedLD, code": ["strategy=fedld_released_code"],
}
PAPER = tuple(list(METHODS)[:5])
NO_SERVER_LR = ("FedProx",)
"""Flower's own server half has no η."""

SEEDS = range(5)
LAST = 5
"""Test accuracy is the mean over this many last rounds."""

TUNING_BETA = 1.0
"""Rates are tuned for each data set and method at this concentration, and used for all."""

FIVE = ["partition=dirichlet", "partition.num_clients=5", "participation=full"]
BALANCED = [*FIVE, "partition.self_balancing=true", "partition.min_size=10"]
DIGITS = [*FIVE, "data=digits", "client.batch_size=32", "model.hidden=[64]"]
FASHION = [
    *("data=fashion_mnist", "data.normalise=true", "data.train_limit=2000", "data.test_limit=2000"),
    *(*BALANCED, "client=fedld", "model.hidden=[64]", "rounds=20"),
]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One data set and its clients' work.

    Attributes:
        scenario, overrides: What runs.
        betas: Dirichlet concentrations.
        lr: γ at equal rates; η is 1.
        methods: Who is compared.
        tuned: The concentrations for which methods are also compared each at its own (γ, η).
        tuned_methods: Whose rates are tuned.
        lrs, server_lrs: The grid of (γ, η).
        tuning_seeds: Averaged over in tuning; never used for a result.
    """

    scenario: str
    overrides: list[str]
    betas: tuple[float, ...]
    lr: float
    tuning_seeds: tuple[int, ...] = (100, 101, 102)
    methods: tuple[str, ...] = PAPER
    tuned: tuple[float, ...] = ()
    tuned_methods: tuple[str, ...] = PAPER
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1)
    server_lrs: tuple[float, ...] = (1.0, 2.0)


SETTINGS = {
    "parity": Setting(
        scenario="fedld_digits",
        overrides=[],
        betas=(1, 100),
        lr=0.3,
        tuning_seeds=(100,),
        methods=tuple(METHODS),
        tuned=(1,),
        tuned_methods=("FedAvg", "FedProx", "FedLD"),
        lrs=(0.03, 0.1, 0.3),
        server_lrs=(0.5, 1.0, 2.0),
    ),
    "digits-E1": Setting(
        scenario="base",
        overrides=[*DIGITS, "rounds=60"],
        betas=(100, 0.5, 0.1),
        lr=0.05,
        methods=("FedAvg", "PCA only", "FedLD"),
    ),
    "digits-E5": Setting(
        scenario="base",
        overrides=[*DIGITS, "client.epochs=5", "rounds=40"],
        betas=(100, 0.5, 0.1),
        lr=0.05,
        methods=("FedAvg", "PCA only", "FedLD"),
    ),
    "retina": Setting(
        scenario="fedld_retina",
        overrides=["rounds=20"],
        betas=(100, 1, 0.5),
        lr=0.03,
        tuned=(100, 1, 0.5),
    ),
    "fashion": Setting(
        scenario="base", overrides=FASHION, betas=(100, 1, 0.5), lr=0.03, tuned=(100, 1, 0.5)
    ),
}
TITLES = {
    "parity": "even/odd digits, 30 % label noise",
    "digits-E1": "10 digits, E=1",
    "digits-E5": "10 digits, E=5",
    "retina": "RetinaMNIST",
    "fashion": "Fashion-MNIST",
}


class Point(NamedTuple):
    """What identifies a run."""

    data: str
    beta: float
    method: str
    lr: float
    server_lr: float
    seed: int


def job(point: Point) -> dict[str, Any]:
    """Run one point and return its test accuracy by round."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    setting = SETTINGS[point.data]
    overrides = [
        *setting.overrides,
        *METHODS[point.method],
        f"partition.alpha={point.beta}",
        f"client.lr={point.lr}",
        f"seed={point.seed}",
    ]
    if point.method not in NO_SERVER_LR:
        overrides.append(f"strategy.server_lr={point.server_lr}")
    simulation = Simulation(compose(setting.scenario, overrides))
    reports = [report for _, report in simulation.loop.run(simulation.runtime.initial_params())]
    return {
        **point._asdict(),
        "config": simulation.config.hash[:12],
        "accuracy": [round(report.central["accuracy"], 4) for report in reports],
    }


def finished() -> dict[Point, np.ndarray]:
    """Return the runs recorded so far: test accuracy by round, in percent."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    found = {}
    for line in lines:
        run = json.loads(line)
        found[Point(*(run[field] for field in Point._fields))] = 100 * np.array(run["accuracy"])
    return found


def equal_points(names: Iterable[str]) -> Iterator[Point]:
    """Yield every method at the same (γ, η)."""
    for data in names:
        setting = SETTINGS[data]
        for seed in SEEDS:
            for beta in setting.betas:
                for method in setting.methods:
                    yield Point(data, beta, method, setting.lr, 1.0, seed)


def grid_points(data: str, method: str) -> list[Point]:
    """Return the points among which one method is tuned, on the first of the tuning seeds."""
    setting = SETTINGS[data]
    etas = (1.0,) if method in NO_SERVER_LR else setting.server_lrs
    return [
        Point(data, TUNING_BETA, method, lr, eta, setting.tuning_seeds[0])
        for lr in setting.lrs
        for eta in etas
    ]


def tuning_points(names: Iterable[str]) -> Iterator[Point]:
    """Yield the points of all tuning grids."""
    for data in names:
        for method in SETTINGS[data].tuned_methods if SETTINGS[data].tuned else ():
            for point in grid_points(data, method):
                yield from (point._replace(seed=seed) for seed in SETTINGS[data].tuning_seeds)


def best(runs: dict[Point, np.ndarray], data: str, beta: float, method: str) -> Point | None:
    """Return the best point of a tuning grid, None if it is not finished."""
    scores = {
        point: [runs.get(point._replace(seed=seed)) for seed in SETTINGS[data].tuning_seeds]
        for point in grid_points(data, method)
    }
    if any(run is None for of in scores.values() for run in of):
        return None
    mean = {p: np.mean([final(run) for run in of if run is not None]) for p, of in scores.items()}
    return max(mean, key=lambda point: mean[point])._replace(beta=beta)


def tuned_points(names: Iterable[str], runs: dict[Point, np.ndarray]) -> Iterator[Point]:
    """Yield every method at its best (γ, η), on the seeds of the result."""
    for data in names:
        for beta in SETTINGS[data].tuned:
            for method in SETTINGS[data].tuned_methods:
                point = best(runs, data, beta, method)
                if point is not None:
                    yield from (point._replace(seed=k) for k in SEEDS)


def final(accuracy: np.ndarray) -> float:
    """Return the mean of the last rounds."""
    return float(np.mean(accuracy[-LAST:]))


def interval(gaps: np.ndarray) -> str:
    """Return mean and 95 % confidence interval (Student's t) of paired differences."""
    from scipy.stats import t

    half = t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5
    return f"{np.mean(gaps):+.1f} [{np.mean(gaps) - half:+.1f}, {np.mean(gaps) + half:+.1f}]"


def tables(runs: dict[Point, np.ndarray]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    for data, setting in SETTINGS.items():
        equal = {
            beta: {m: [Point(data, beta, m, setting.lr, 1.0, s) for s in SEEDS] for m in METHODS}
            for beta in setting.betas
        }
        lines += _table(f"{TITLES[data]}, equal rates: γ={setting.lr:g}, η=1", runs, equal)
        tuned: dict[float, dict[str, list[Point]]] = {}
        for beta in setting.tuned:
            found = {m: best(runs, data, beta, m) for m in setting.tuned_methods}
            tuned[beta] = {
                m: [p._replace(seed=s) for s in SEEDS] for m, p in found.items() if p is not None
            }
        if tuned:
            lines += _table(f"{TITLES[data]}, each method at its own (γ, η)", runs, tuned, True)
    return "\n".join(lines)


def _table(
    title: str,
    runs: dict[Point, np.ndarray],
    points: dict[float, dict[str, list[Point]]],
    rates: bool = False,
) -> list[str]:
    """Return one table: accuracy of each method, and its paired difference to FedAvg."""
    head = [f"β={beta:g} | − FedAvg" for beta in points]
    rows = []
    for method in METHODS:
        cells = []
        for of in points.values():
            own, base = of.get(method, []), of.get("FedAvg", [])
            if not own or not set(own + base) <= set(runs):
                continue
            values = np.array([final(runs[p]) for p in own])
            gaps = values - np.array([final(runs[p]) for p in base])
            at = f" ({own[0].lr:g}, {own[0].server_lr:g})" if rates else ""
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}{at}")
            cells.append("" if method == "FedAvg" else interval(gaps))
        if cells:
            rows.append(f"| {method} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    rule = "| --- |" + " ---: | ---: |" * len(points)
    return [f"### {title}", "", "| method | " + " | ".join(head) + " |", rule, *rows, ""]


PANELS = [("parity", 1), ("parity", 100), ("digits-E5", 0.1)]
PANELS += [("retina", 100), ("retina", 0.5), ("fashion", 0.5)]


def draw(runs: dict[Point, np.ndarray], path: Path) -> None:
    """Draw mean test accuracy over rounds at equal rates, with the range over seeds as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    looks = dict(
        zip(
            METHODS,
            [
                ("#000000", "-"),
                ("#E69F00", ":"),
                ("#009E73", "--"),
                ("#56B4E9", "-."),
                ("#D55E00", "-"),
                ("#CC79A7", "--"),
            ],
            strict=True,
        )
    )
    drawn: dict[str, Any] = {}
    for i, (axis, (data, beta)) in enumerate(zip(axes, PANELS, strict=True)):
        setting = SETTINGS[data]
        for method in setting.methods:
            points = [Point(data, beta, method, setting.lr, 1.0, seed) for seed in SEEDS]
            if not set(points) <= set(runs):
                continue
            curves = np.array([runs[point] for point in points])
            colour, style = looks[method]
            rounds = np.arange(curves.shape[1])
            (line,) = axis.plot(rounds, curves.mean(0), style, color=colour, lw=1.6)
            drawn.setdefault(method, line)
            if method in ("FedAvg", "FedLD"):
                axis.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.12)
        axis.set_title(f"{TITLES[data]}, β={beta:g}", fontsize=10)
        axis.set_xlabel("round")
        axis.set_ylabel("" if i % 3 else "test accuracy, %")
        axis.grid(alpha=0.3)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(METHODS), fontsize=9)
    figure.savefig(path, dpi=120)


def run(points: Iterable[Point], workers: int) -> None:
    """Run what is missing of `points`."""
    done = finished()
    todo = [point for point in dict.fromkeys(points) if point not in done]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(job, point) for point in todo]):
            result = future.result()
            with RUNS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            own = [str(result[field]) for field in Point._fields]
            print(*own, f"{100 * final(np.array(result['accuracy'])):.2f}", flush=True)


def main() -> None:
    """Run what is missing of the named grids, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", choices=[*SETTINGS, []], default=[])
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.data:
        run([*equal_points(arguments.data), *tuning_points(arguments.data)], arguments.workers)
        run(tuned_points(arguments.data, finished()), arguments.workers)
    runs = finished()
    draw(runs, HERE / "fedld.png")
    print(tables(runs))


if __name__ == "__main__":
    main()
