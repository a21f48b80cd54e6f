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


@dataclass(frozen=True)
class Method:
    """One of the compared.

    Attributes:
        overrides: What of the scenario makes it.
        rate: The key of its second rate; η for most.
        equal: That rate where all methods have equal (γ, η).
        grid: Among which values the second rate is tuned; None for those of the setting.
        twin: With whom it is one where all clients are in every round.
    """

    overrides: list[str]
    rate: str = "strategy.server_lr"
    equal: float = 1.0
    grid: tuple[float, ...] | None = None
    twin: str | None = None


METHODS = {
    "FedAvg": Method(["strategy=fedavg"]),
    "FedProx": Method(["strategy=fedprox"]),
    "SCAFFOLD, I": Method(["strategy=scaffold_full_gradient"]),
    "SCAFFOLD, II": Method(["strategy=scaffold"]),
    "FedNova": Method(["strategy=fednova"]),
    "FedDyn": Method(["strategy=feddyn"], "strategy.alpha", 0.01, (0.001, 0.01, 0.1)),
    "MOON": Method(["strategy=moon"]),
    "FedVARP": Method(["strategy=fedvarp"]),
    "MIFA": Method(["strategy=mifa"], twin="FedVARP"),
    "FedBN": Method(["strategy=fedbn"], twin="FedVARP"),
    "FedAvgM": Method(["strategy=fedavgm"], "strategy.server_learning_rate", 1.0, (0.1, 0.3, 1.0)),
    "FedAdam": Method(["strategy=fedadam"], "strategy.eta", 0.1, (0.01, 0.03, 0.1)),
    "margin only": Method(["strategy=fedld", "strategy.aggregation=mean"]),
    "PCA only": Method(["strategy=fedld", "strategy.margin=none"], grid=(1.0, 2.0, 4.0)),
    "FedLD": Method(["strategy=fedld"], grid=(1.0, 2.0, 4.0)),
    "FedLD, code": Method(["strategy=fedld_released_code"]),
}
"""FedAdam moves a weight by about η whatever the size of its update, and FedDyn has α in place of
η: at equal rates these two have what their YAML files set."""
COMPARED = tuple(list(METHODS)[:-1])
NOISY = ("FedAvg", "FedProx", "margin only", "PCA only", "FedLD", "FedLD, code")

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
    methods: tuple[str, ...] = COMPARED
    tuned: tuple[float, ...] = ()
    tuned_methods: tuple[str, ...] = COMPARED
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1)
    server_lrs: tuple[float, ...] = (1.0, 2.0)


SETTINGS = {
    "parity": Setting(
        scenario="fedld_digits",
        overrides=[],
        betas=(1, 100),
        lr=0.3,
        tuning_seeds=(100,),
        methods=NOISY,
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
        overrides=["rounds=20", "evaluation.decomposition=false"],
        betas=(100, 1, 0.5),
        lr=0.03,
        tuned=(100, 1, 0.5),
        lrs=(0.003, 0.01, 0.03, 0.1),
    ),
    "fashion": Setting(
        scenario="base",
        overrides=FASHION,
        betas=(100, 1, 0.5),
        lr=0.03,
        tuned=(100, 1, 0.5),
        lrs=(0.01, 0.03, 0.1, 0.3),
    ),
}
IMAGES = ("retina", "fashion")
"""Where all methods are compared, both at equal rates and at their own."""
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
        *METHODS[point.method].overrides,
        f"{METHODS[point.method].rate}={point.server_lr}",
        f"partition.alpha={point.beta}",
        f"client.lr={point.lr}",
        f"seed={point.seed}",
    ]
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


def at_equal(data: str, beta: float, method: str) -> list[Point]:
    """Return a method's points at the common (γ, η), one for each seed."""
    lr, second = SETTINGS[data].lr, METHODS[method].equal
    return [Point(data, beta, method, lr, second, seed) for seed in SEEDS]


def equal_points(names: Iterable[str]) -> Iterator[Point]:
    """Yield every method at the same (γ, η)."""
    for data in names:
        for beta in SETTINGS[data].betas:
            for method in SETTINGS[data].methods:
                yield from at_equal(data, beta, method)


def grid_points(data: str, method: str) -> list[Point]:
    """Return the points among which one method is tuned, on the first of the tuning seeds."""
    setting = SETTINGS[data]
    etas = METHODS[method].grid or setting.server_lrs
    return [
        Point(data, TUNING_BETA, method, lr, eta, setting.tuning_seeds[0])
        for lr in setting.lrs
        for eta in etas
    ]


def tuning_points(names: Iterable[str]) -> Iterator[Point]:
    """Yield the points of all tuning grids."""
    for data in names:
        own = [m for m in SETTINGS[data].tuned_methods if not METHODS[m].twin]
        for method in own if SETTINGS[data].tuned else ():
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


def at_own(runs: dict[Point, np.ndarray], data: str, beta: float, method: str) -> list[Point]:
    """Return a method's points at its best (γ, η), one for each seed; none before it is tuned.

    Twins do not run again: theirs are the other's.
    """
    point = best(runs, data, beta, METHODS[method].twin or method)
    return [] if point is None else [point._replace(seed=seed) for seed in SEEDS]


def tuned_points(names: Iterable[str], runs: dict[Point, np.ndarray]) -> Iterator[Point]:
    """Yield every method at its best (γ, η), on the seeds of the result."""
    for data in names:
        for beta in SETTINGS[data].tuned:
            for method in SETTINGS[data].tuned_methods:
                yield from at_own(runs, data, beta, method)


def final(accuracy: np.ndarray) -> float:
    """Return the mean of the last rounds."""
    return float(np.mean(accuracy[-LAST:]))


def interval(gaps: np.ndarray) -> tuple[float, float, float]:
    """Return mean and 95 % confidence interval (Student's t) of paired differences."""
    from scipy.stats import t

    mean = float(np.mean(gaps))
    half = float(t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5)
    return mean, mean - half, mean + half


def tables(runs: dict[Point, np.ndarray]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    for data, setting in SETTINGS.items():
        equal = {
            beta: {m: at_equal(data, beta, m) for m in setting.methods} for beta in setting.betas
        }
        lines += _table(f"{TITLES[data]}, equal rates: γ={setting.lr:g}, η=1", runs, equal)
        tuned = {
            beta: {m: at_own(runs, data, beta, m) for m in setting.tuned_methods}
            for beta in setting.tuned
        }
        if tuned:
            lines += _table(f"{TITLES[data]}, each method at its own (γ, η)", runs, tuned, True)
    for data in IMAGES:
        halves = {
            beta: {
                m: at_equal(data, beta, m) for m in ("FedVARP", "margin only", "PCA only", "FedLD")
            }
            for beta in SETTINGS[data].betas
        }
        lines += _table(f"{TITLES[data]}, FedLD's halves", runs, halves, base="FedVARP")
    return "\n".join(lines)


def _table(
    title: str,
    runs: dict[Point, np.ndarray],
    points: dict[float, dict[str, list[Point]]],
    rates: bool = False,
    base: str = "FedAvg",
) -> list[str]:
    """Return one table: accuracy of each method, and its paired difference to `base`."""
    head = [f"β={beta:g} | − {base}" for beta in points]
    rows = []
    for method in METHODS:
        cells = []
        for of in points.values():
            own, other = of.get(method, []), of.get(base, [])
            if not own or not set(own + other) <= set(runs):
                break
            values = np.array([final(runs[p]) for p in own])
            gaps = values - np.array([final(runs[p]) for p in other])
            at = f" ({own[0].lr:g}, {own[0].server_lr:g})" if rates else ""
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}{at}")
            mean, low, high = interval(gaps)
            cells.append("" if method == base else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        else:
            rows.append(f"| {method} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    rule = "| --- |" + " ---: | ---: |" * len(points)
    return [f"### {title}", "", "| method | " + " | ".join(head) + " |", rule, *rows, ""]


LOOKS = {
    "FedAvg": ("#000000", "-"),
    "FedProx": ("#E69F00", ":"),
    "SCAFFOLD, II": ("#0072B2", "--"),
    "FedDyn": ("#CC79A7", "--"),
    "FedAvgM": ("#8C8C00", "-."),
    "margin only": ("#009E73", "--"),
    "PCA only": ("#56B4E9", "-."),
    "FedLD": ("#D55E00", "-"),
}
PANELS = [("parity", 1), ("parity", 100), ("digits-E5", 0.1)]
PANELS += [("retina", 100), ("retina", 0.5), ("fashion", 0.5)]


def draw(runs: dict[Point, np.ndarray], path: Path) -> None:
    """Draw mean test accuracy over rounds at equal rates, with some methods' ranges as bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    drawn: dict[str, Any] = {}
    for i, (axis, (data, beta)) in enumerate(zip(axes, PANELS, strict=True)):
        for method, (colour, style) in LOOKS.items():
            points = at_equal(data, beta, method)
            if not set(points) <= set(runs):
                continue
            curves = np.array([runs[point] for point in points])
            rounds = np.arange(curves.shape[1])
            (line,) = axis.plot(rounds, curves.mean(0), style, color=colour, lw=1.6)
            drawn.setdefault(method, line)
            if method in ("FedAvg", "FedLD"):
                axis.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.12)
        axis.set_title(f"{TITLES[data]}, β={beta:g}", fontsize=10)
        axis.set_xlabel("round")
        axis.set_ylabel("" if i % 3 else "test accuracy, %")
        axis.grid(alpha=0.3)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(LOOKS), fontsize=9)
    figure.savefig(path, dpi=120)


SPAN = (-16.0, 8.0)
"""Points of accuracy that the picture of differences shows; what is outside has an arrow."""


def draw_gaps(runs: dict[Point, np.ndarray], path: Path) -> None:
    """Draw each method's paired difference to FedAvg, at equal rates and at its own."""
    from matplotlib.figure import Figure

    names = COMPARED[1:]
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(len(IMAGES), 3, sharex=True, sharey=True)
    for row, data in zip(axes, IMAGES, strict=True):
        for axis, beta in zip(row, SETTINGS[data].betas, strict=True):
            for i, method in enumerate(names):
                for points, base, colour, marker, shift in (
                    (
                        at_equal(data, beta, method),
                        at_equal(data, beta, "FedAvg"),
                        "#0072B2",
                        "o",
                        -0.16,
                    ),
                    (
                        at_own(runs, data, beta, method),
                        at_own(runs, data, beta, "FedAvg"),
                        "#D55E00",
                        "s",
                        0.16,
                    ),
                ):
                    if not points or not base or not set(points + base) <= set(runs):
                        continue
                    gaps = [
                        final(runs[p]) - final(runs[q]) for p, q in zip(points, base, strict=True)
                    ]
                    mean, low, high = interval(np.array(gaps))
                    axis.plot([low, high], [i + shift] * 2, color=colour, lw=1.4)
                    shown = "<" if mean < SPAN[0] else marker
                    axis.plot(
                        max(mean, SPAN[0] + 0.3),
                        i + shift,
                        shown,
                        color=colour,
                        ms=5,
                        clip_on=False,
                    )
            axis.axvline(0, color="black", lw=0.8)
            axis.set_title(f"{TITLES[data]}, β={beta:g}", fontsize=10)
            axis.grid(alpha=0.3)
            axis.set_xlim(*SPAN)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0, 0].invert_yaxis()
    for axis in axes[-1]:
        axis.set_xlabel("test accuracy − FedAvg's, points")
    figure.legend(
        handles=[
            figure.axes[0].plot([], [], "o-", color="#0072B2", label="equal rates")[0],
            figure.axes[0].plot([], [], "s-", color="#D55E00", label="own rates")[0],
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


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
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.data:
        first = [*equal_points(arguments.data), *tuning_points(arguments.data)]
        run((p for p in first if p.method in arguments.methods), arguments.workers)
        own = tuned_points(arguments.data, finished())
        run((p for p in own if p.method in arguments.methods), arguments.workers)
    runs = finished()
    draw(runs, HERE / "fedld.png")
    draw_gaps(runs, HERE / "differences.png")
    print(tables(runs))


if __name__ == "__main__":
    main()
