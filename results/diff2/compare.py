"""The paper's comparison: DP-GD, DIFF2-GD and BVR-L-SGD on California housing and Adult.

    FEDSIM_DATA=... python results/diff2/compare.py [california adult]
    python results/diff2/compare.py tables      # of what has run

Ten clients with equal shares, ε ∈ {0.5, 1, 3, 5}, R ∈ {500, 2000} estimates of the gradient (and as
many local rounds again for BVR-L-SGD), δ = 1e-5, one record replaced.

    california   one hidden layer of 10 softplus units, least squares, y / max y   d = 101
    adult        logistic regression on the 123 binary inputs                      d = 248

All methods are tuned by the same rule, for each (data, ε, R) and each of two measures, the training
loss and ‖∇f‖² (both the mean over the last tenth of the run): at R = 500 the settings of `grid` are
screened with one seed, and the `KEPT` best compared by their means over three others; at R = 2000
the winner of R = 500 is compared with itself at η / 2. Then the winners run with five other seeds,
the same for all methods. The cost of tuning in privacy is not charged.

The runs are made by a twin of the strategies, many settings and seeds at once, in float32 on one
thread. It is first compared with the strategies themselves, in float64 and with the same noise.
Each finished tuning or run is a line of comparison.jsonl, and is not done again.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from twin import (
    CLIENTS,
    Logistic,
    Loss,
    Point,
    Softplus,
    check,
    levels_at,
    run_many,
    torch_noise,
    worker,
)

from fedsim.data.adult_binary import AdultBinary
from fedsim.data.california import CaliforniaHousing
from privacy.accountant import calibrate
from privacy.events import Event, Gaussian

HERE = Path(__file__).parent
RUNS_FILE = HERE / "comparison.jsonl"
EPSILONS, ROUNDS, DELTA = (0.5, 1.0, 3.0, 5.0), (500, 2000), 1e-5
SCREENING, TUNING, REPORTED = (1000,), (1001, 1002, 1003), tuple(range(5))
"""Seeds that settings are screened by, those that they are chosen by, and those reported."""
KEPT = 3
MEASURES = ("loss", "gradient")


METHODS = ("DP-GD", "DIFF2-GD", "BVR-L-SGD")
NORMS = {"california": ((1.0, 3.0), (3.0, 10.0)), "adult": ((1.0, 3.0), (1.0, 3.0))}
RATES = {"california": (1 / 32, 1 / 16, 1 / 8, 1 / 4), "adult": (1 / 8, 1 / 4, 1 / 2, 1.0)}
LOCAL = ((1, 1), (4, 4))
"""(K, m): one step on all of a client's records, or one pass over them in four."""
STACK = {"california": 4, "adult": 16}
"""Runs at a time: as many as the cache holds."""


def grid(data: str, method: str, rounds: int) -> list[Point]:
    """Return the settings that are tried at R = 500."""
    (c1s, c2s), rates = NORMS[data], RATES[data]
    if method == "DP-GD":
        return [Point(rounds, 1, c1, 1.0, lr) for c1, lr in product(c1s, rates)]
    if method == "DIFF2-GD":
        every = tuple(round(share * rounds) for share in (0.01, 0.03, 0.1))
        return [Point(rounds, t, c1, c2, lr) for t, c1, c2, lr in product(every, c1s, c2s, rates)]
    every = (round(0.03 * rounds),)
    return [
        Point(rounds, t, c1, c2, lr, *local)
        for t, local, c1, c2, lr in product(every, LOCAL, c1s, c2s, rates)
    ]


@dataclass(frozen=True)
class Task:
    """One data set: its losses, and who holds which records."""

    name: str

    @cached_property
    def losses(self) -> tuple[Loss, Loss]:
        if self.name == "california":
            data = CaliforniaHousing(target="max").load()
            y, test_y = data.train_y[:, 0], data.test_y[:, 0]
            return Softplus(data.train_x, y), Softplus(data.test_x, test_y)
        data = AdultBinary().load()
        y, test_y = data.train_y.float(), data.test_y.float()
        return Logistic(data.train_x, y), Logistic(data.test_x, test_y)

    @cached_property
    def clients(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return np.array_split(rng.permutation(len(self.losses[0].y_N)), CLIENTS)


def one_release(epsilon: float) -> float:
    """Return the noise of one release that costs ε."""
    return calibrate(
        lambda z: [Event(mechanism=Gaussian(noise_multiplier=z))],
        epsilon=epsilon,
        delta=DELTA,
        relation="replace_one",
    )


Key = tuple[str, float, Point, tuple[int, ...]]


class Results:
    """The lines of comparison.jsonl, and what makes those that are missing."""

    def __init__(self) -> None:
        self.found: dict[Key, dict[str, list[float]]] = {}
        for line in RUNS_FILE.read_text().splitlines() if RUNS_FILE.exists() else []:
            data = json.loads(line)
            key = (data["data"], data["epsilon"], Point(**data["point"]), tuple(data["seeds"]))
            self.found[key] = data["scores"]

    def of(self, task: Task, epsilon: float, points: Sequence[Point], runs: Sequence[int]) -> None:
        """Make sure that some settings have run with some seeds."""
        missing = [p for p in points if (task.name, epsilon, p, tuple(runs)) not in self.found]
        groups: dict[tuple[int, ...], list[Point]] = {}
        for p in missing:
            groups.setdefault((p.rounds, p.restart, p.steps, p.parts), []).append(p)
        many = max(1, STACK[task.name] // len(runs))
        for group in groups.values():
            for first in range(0, len(group), many):
                self._run(task, epsilon, group[first : first + many], tuple(runs))

    def _run(
        self, task: Task, epsilon: float, points: Sequence[Point], runs: tuple[int, ...]
    ) -> None:
        began = time.process_time()
        loss, test = task.losses
        noise, levels = torch_noise(loss.size), levels_at(one_release(epsilon))
        trace = run_many(loss, test, points, runs, levels, noise, task.clients, worker)
        seconds = round((time.process_time() - began) / len(points), 2)
        names = ("loss", "gradient", "least_loss", "least_gradient", "test_loss")
        with RUNS_FILE.open("a") as file:
            for i, point in enumerate(points):
                scores = {
                    name: [float(f"{v:.6g}") for v in getattr(trace, name)[i]] for name in names
                }
                line = {"data": task.name, "epsilon": epsilon, "point": asdict(point)}
                line |= {"seeds": runs, "seconds": seconds, "scores": scores}
                file.write(json.dumps(line) + "\n")
                self.found[task.name, epsilon, point, runs] = scores

    def best(
        self, task: str, epsilon: float, points: Sequence[Point], measure: str, runs: Sequence[int]
    ) -> list[Point]:
        """Return settings in the order of their means over some seeds."""
        keys = [(task, epsilon, p, tuple(runs)) for p in points]
        means = [float(np.mean(self.found[key][measure])) for key in keys]
        return [points[i] for i in np.argsort(means, kind="stable")]

    def winner(
        self, task: Task, epsilon: float, method: str, rounds: int, measure: str, run: bool = True
    ) -> Point:
        """Return the setting that is chosen.

        What is missing for it is run, or, if not `run`, a KeyError.
        """
        if rounds == ROUNDS[0]:
            points = grid(task.name, method, rounds)
            if run:
                self.of(task, epsilon, points, SCREENING)
            points = self.best(task.name, epsilon, points, measure, SCREENING)[:KEPT]
        else:
            short = self.winner(task, epsilon, method, ROUNDS[0], measure, run)
            every = short.restart * rounds // ROUNDS[0] if short.restart > 1 else 1
            points = [
                replace(short, rounds=rounds, restart=every, lr=lr)
                for lr in (short.lr, short.lr / 2)
            ]
        if run:
            self.of(task, epsilon, points, TUNING)
        return self.best(task.name, epsilon, points, measure, TUNING)[0]


def main() -> None:
    """Run what is missing, or print what there is."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["tables"]:
        tell(Results())
        return
    for loss, strategy in product((Softplus, Logistic), ("diff2", "bvr_l_sgd")):
        gap = check(loss, strategy)
        print(f"largest difference to the model of strategy={strategy}: {gap:.1e}")
        if gap > 1e-10:
            raise SystemExit("the twin is not the strategy")
    results = Results()
    tasks = [Task(name) for name in sys.argv[1:] or NORMS]
    for rounds, task, epsilon, method in product(ROUNDS, tasks, EPSILONS, METHODS):
        points = [results.winner(task, epsilon, method, rounds, measure) for measure in MEASURES]
        results.of(task, epsilon, list(dict.fromkeys(points)), REPORTED)
        print(rounds, task.name, epsilon, method, *points, sep="  ", flush=True)
    tell(results)


Cell = tuple[str, int, float, str]
"""Data, R, ε, measure."""


@dataclass(frozen=True)
class Found:
    """What was chosen for a method, and what it came to with the reported seeds, `[S]`."""

    point: Point
    score_S: np.ndarray
    test_S: np.ndarray


def chosen(results: Results, cell: Cell) -> tuple[dict[str, Found], bool]:
    """Return what all methods came to; whether settings were compared, or screened only."""
    data, rounds, epsilon, measure = cell
    for compared in (True, False):
        found = {}
        for method in METHODS:
            try:
                if compared:
                    point = results.winner(Task(data), epsilon, method, rounds, measure, run=False)
                else:
                    points = grid(data, method, rounds)
                    point = results.best(data, epsilon, points, measure, SCREENING)[0]
                scores = results.found[data, epsilon, point, REPORTED]
            except KeyError:
                break
            arrays = (np.array(scores[name]) for name in (measure, "test_loss"))
            found[method] = Found(point, *arrays)
        else:
            return found, compared
    return {}, False


def ratio(one_S: np.ndarray, other_S: np.ndarray) -> tuple[float, float, float]:
    """Return the geometric mean of one over the other, paired by seed, and its 95 % interval."""
    log_S = np.log(one_S) - np.log(other_S)
    half = student.ppf(0.975, len(log_S) - 1) * log_S.std(ddof=1) / math.sqrt(len(log_S))
    low, mid, high = np.exp(log_S.mean() + np.array([-half, 0.0, half]))
    return float(low), float(mid), float(high)


def tell(results: Results) -> None:
    """Print README.md's tables of what has run."""
    tally: dict[str, list[int]] = {}
    for data, rounds, measure in product(NORMS, ROUNDS, MEASURES):
        rows = []
        for epsilon in EPSILONS:
            cell, compared = chosen(results, (data, rounds, epsilon, measure))
            if not cell:
                continue
            words = []
            for method in METHODS[1:]:
                low, mid, high = ratio(cell[method].score_S, cell["DP-GD"].score_S)
                words.append(f"{mid:.2f} [{low:.2f}, {high:.2f}]")
                counts = tally.setdefault(f"{data}, R = {rounds}, {measure}: {method}", [0, 0, 0])
                counts[0 if high < 1 else 2 if low > 1 else 1] += 1
            means = [f"{cell[method].score_S.mean():.3g}" for method in METHODS]
            tests = " ".join(f"{cell[method].test_S.mean():.4f}" for method in METHODS)
            points = "; ".join(str(cell[method].point) for method in METHODS)
            if not compared:
                points += " (screened only)"
            rows.append("| " + " | ".join([f"{epsilon:g}", *means, *words, tests, points]) + " |")
        if rows:
            heads = ["ε", *METHODS, *(f"{m} / DP-GD [95 %]" for m in METHODS[1:])]
            print(f"\n{data}, R = {rounds}, {measure}\n")
            print("| " + " | ".join([*heads, "test losses", "settings"]) + " |")
            print("| " + " | ".join(["---:"] * 6 + ["---"] * 2) + " |")
            print("\n".join(rows))
    for what, (better, even, worse) in tally.items():
        print(f"{what} better in {better} rows, undecided in {even}, worse in {worse}")


if __name__ == "__main__":
    main()
