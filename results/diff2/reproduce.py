"""Where gradient differences pay: ill-conditioned least squares, DP-GD against DIFF2-GD.

    python results/diff2/reproduce.py

Theory has ‖∇f‖² fall like 1/(nε) for DP-GD and like 1/(nε)^(4/3) for DIFF2 (Murata and Suzuki
2023): the ratio of the two must rise with nε, and cross 1. Both are tuned by the same rule: the
settings of a grid are screened by their mean final ‖∇f‖² over `SCREENING` runs, the `KEPT` best
compared by `TUNING` others; the winner is reported by `RUNS` others. The grids have the same R, C1
and η; DIFF2's has T and C2 besides.

Thousands of short runs of one linear model: a twin in NumPy of `strategy=diff2, privacy=diff2` runs
many settings as columns of one matrix. It is compared with the strategy itself first, in float64
and with the same noise; noise is sized by `privacy.diff2` in both. Appends to runs.jsonl what is
not yet in it, draws diff2.png and prints README.md's table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from fedsim import seeds
from fedsim.config import compose
from fedsim.data.ill_conditioned import IllConditioned
from fedsim.simulation import Simulation
from privacy.accountant import calibrate
from privacy.diff2_schedule import of_rounds, tight
from privacy.normal import keyed

HERE = Path(__file__).parent
RUNS_FILE = HERE / "runs.jsonl"
EPSILONS, DELTA = (1 / 64, 1 / 16, 0.25, 1.0, 4.0, 16.0), 1e-5
SCREENING, KEPT, TUNING, RUNS = 3, 6, 20, 100
COLUMNS = 48
"""Runs at a time: as many as the cache holds."""

Floats = NDArray[np.floating]
Noise = Callable[[int], Floats]


@dataclass(frozen=True)
class Point:
    """One setting: R, T, C1, C2, η; DP-GD is T = 1."""

    rounds: int
    restart: int
    c1: float
    c2: float
    lr: float

    def __str__(self) -> str:
        c2 = "" if self.restart == 1 else f", C2={self.c2:g}"
        return f"R={self.rounds}, T={self.restart}, C1={self.c1:g}{c2}, η={self.lr:g}"


ROUNDS, NORMS, RATES = (50, 100, 200, 400, 800, 1600, 3200), (0.1, 0.3, 1.0), (0.1, 0.3, 0.6)
GD = [Point(r, 1, c1, 1.0, lr) for r, c1, lr in product(ROUNDS, NORMS, RATES)]
DIFF2 = [
    Point(r, max(2, round(r * share)), c1, c2, lr)
    for r, share, c1, c2, lr in product(ROUNDS, (0.05, 0.2, 1.0), NORMS, (1.0, 3.0), RATES)
]


def run_many(x_ND: Floats, y_N: Floats, points: list[Point], s: float, noise: Noise) -> Floats:
    """Return the final models `[D, M]` of M settings with equal (R, T).

    Args:
        x_ND: Inputs, with a column of ones.
        y_N: Targets.
        points: The settings.
        s: Noise of one release that costs what a run does.
        noise: Round 1, 2, ... -> standard normals `[D, M]`.
    """
    rounds, restart = points[0].rounds, points[0].restart
    plan = tight(of_rounds(rounds, restart), noise=s, split=0.8)
    c1_M, c2_M, lr_M = (np.array([getattr(p, n) for p in points], x_ND.dtype) for n in ("c1", "c2", "lr"))  # noqa: E501  # fmt: skip
    norm_N1 = 2 * np.linalg.norm(x_ND, axis=1)[:, None]
    w_DM = np.zeros((x_ND.shape[1], len(points)), x_ND.dtype)
    before_DM = v_DM = w_DM
    for server_round in range(1, rounds + 1):
        if (server_round - 1) % restart == 0:
            factor_NM, bound_M, z = x_ND @ w_DM - y_N[:, None], c1_M, plan.restart_noise
            v_DM = np.zeros_like(w_DM)
        else:
            factor_NM = x_ND @ (w_DM - before_DM)
            bound_M = c2_M * np.linalg.norm(w_DM - before_DM, axis=0)
            z = plan.difference_noise
        limit_NM = bound_M / norm_N1  # a record's vector is 2 · factor · x
        total_DM = 2 * (x_ND.T @ np.clip(factor_NM, -limit_NM, limit_NM))
        v_DM = v_DM + (total_DM + z * bound_M * noise(server_round)) / len(x_ND)
        before_DM, w_DM = w_DM, w_DM - lr_M * v_DM
    return w_DM


def check() -> float:
    """Return the largest difference between the twin's model and the strategy's."""
    point, clients = Point(7, 3, 0.4, 3.0, 0.3), 10
    words = [
        *("data=ill_conditioned", "data.samples=500", "partition=iid", "participation=full"),
        *(f"partition.num_clients={clients}", "model=linear", "strategy=diff2", "privacy=diff2"),
        *("rounds=7", "strategy.restart=3", "strategy.clip_gradients=0.4", "device=cpu"),
        *("strategy.clip_differences=3", "strategy.server_lr=0.3", "privacy.epsilon=null"),
        *("privacy.noise_multiplier=5", "precision=float64", "evaluation.central=false"),
    ]
    simulation = Simulation(compose("quickstart", words))
    *_, (params, _) = simulation.loop.run(simulation.runtime.initial_params())
    weight, bias = (
        params[name].numpy().ravel() for name in sorted(params, key=lambda n: "bias" in n)
    )
    data = simulation.dataset
    x_ND = np.hstack([data.train_x.numpy(), np.ones((500, 1))])

    def noise(server_round: int) -> Floats:
        drawn = keyed(0, server_round, seeds.SERVER, "diff2").normal(21, dtype=data.train_x.dtype)
        flat: Floats = drawn.numpy()[:, None]
        first = next(iter(params))
        return flat if "bias" not in first else np.roll(flat, -1, axis=0)

    twin = run_many(x_ND, data.train_y.numpy().ravel(), [point], 5.0, noise)[:, 0]
    return float(np.abs(twin - np.concatenate([weight, bias])).max())


def squares(x_ND: Floats, y_N: Floats, w_DM: Floats) -> Floats:
    """Return ‖∇f‖² of each column."""
    gradient_DM = 2 * x_ND.T @ (x_ND @ w_DM - y_N[:, None]) / len(x_ND)
    found: Floats = (gradient_DM**2).sum(0)
    return found


def scores(
    x_ND: Floats, y_N: Floats, points: list[Point], s: float, seed: int, runs: int
) -> dict[Point, Floats]:
    """Return the final ‖∇f‖² of several runs of each setting."""
    found: dict[Point, Floats] = {}
    for rounds, restart in sorted({(p.rounds, p.restart) for p in points}):
        some = [p for p in points if (p.rounds, p.restart) == (rounds, restart)]
        rng = np.random.default_rng([seed, rounds, restart])
        columns, values = [p for p in some for _ in range(runs)], []
        for first in range(0, len(columns), COLUMNS):
            part = columns[first : first + COLUMNS]

            def noise(_: int, rng: np.random.Generator = rng, many: int = len(part)) -> Floats:
                return rng.standard_normal((x_ND.shape[1], many), dtype=np.float32)

            with np.errstate(over="ignore", invalid="ignore"):
                w_DM = run_many(x_ND, y_N, part, s, noise)
                values.append(squares(x_ND.astype(np.float64), y_N.astype(np.float64), w_DM))
        finals = np.concatenate(values)
        finals = np.where(np.isfinite(finals), finals, math.inf).reshape(-1, runs)
        found |= dict(zip(some, finals, strict=True))
    return found


def main() -> None:
    """Check, tune, run, tell."""
    gap = check()
    print(f"largest difference to the strategy's own model: {gap:.1e}")
    if gap > 1e-10:
        raise SystemExit("the twin is not the strategy")
    data = IllConditioned().load()
    x_ND = np.hstack([data.train_x.numpy(), np.ones((len(data.train_x), 1), np.float32)])
    y_N = data.train_y.numpy().ravel()
    kept: dict[tuple[str, float], tuple[Point, list[float]]] = {}
    if RUNS_FILE.exists():
        for line in map(json.loads, RUNS_FILE.read_text().splitlines()):
            finals = line["final_square_gradient"]
            kept[line["method"], line["epsilon"]] = (Point(**line["point"]), finals)
    for epsilon, (method, grid) in product(EPSILONS, (("DP-GD", GD), ("DIFF2", DIFF2))):
        if (method, epsilon) in kept:
            continue
        s = calibrate(
            lambda z: tight(of_rounds(1, 1), noise=z, split=0.8).events(),
            epsilon=epsilon,
            delta=DELTA,
            relation="replace_one",
        )
        points = grid
        for seed, (runs, keep) in enumerate(((SCREENING, KEPT), (TUNING, 1)), start=1):
            tuned = scores(x_ND, y_N, points, s, seed=seed, runs=runs)
            points = sorted(points, key=lambda point: float(tuned[point].mean()))[:keep]
        best = points[0]
        found = scores(x_ND, y_N, [best], s, seed=3, runs=RUNS)[best].tolist()
        kept[method, epsilon] = (best, found)
        line = {"method": method, "epsilon": epsilon, "delta": DELTA, "point": asdict(best)}
        with RUNS_FILE.open("a") as file:
            file.write(json.dumps({**line, "final_square_gradient": found}) + "\n")
        print(epsilon, method, best, np.mean(found), flush=True)
    tell(kept)
    draw(kept)


def tell(kept: dict[tuple[str, float], tuple[Point, list[float]]]) -> None:
    """Print the table."""
    print("| ε | DP-GD | DIFF2 | DP-GD / DIFF2 | settings |\n| ---: | ---: | ---: | ---: | --- |")
    for epsilon in EPSILONS:
        (gd, a), (diff2, b) = kept["DP-GD", epsilon], kept["DIFF2", epsilon]
        ratio = np.mean(a) / np.mean(b)
        # Of a ratio of independent means, on the scale of logarithms (delta method).
        spread = math.hypot(*(np.std(v, ddof=1) / np.mean(v) / math.sqrt(len(v)) for v in (a, b)))
        half = student.ppf(0.975, 2 * len(a) - 2) * spread
        low, mid, high = ratio * np.exp([-half, 0, half])
        print(
            f"| {epsilon:g} | {np.mean(a):.1e} | {np.mean(b):.1e} | "
            f"{mid:.2f} [{low:.2f}, {high:.2f}] | {gd}; {diff2} |"
        )
    for method in ("DP-GD", "DIFF2"):
        ends = [np.log(np.mean(kept[method, e][1])) for e in (EPSILONS[0], EPSILONS[-1])]
        slope = (ends[1] - ends[0]) / math.log(EPSILONS[-1] / EPSILONS[0])
        print(f"log-slope in ε of {method}: {slope:.2f}")


def draw(kept: dict[tuple[str, float], tuple[Point, list[float]]]) -> None:
    """Draw ‖∇f‖² over ε."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for method, colour in (("DP-GD", "tab:orange"), ("DIFF2", "tab:blue")):
        values_ES = np.array([kept[method, e][1] for e in EPSILONS])
        axes.loglog(EPSILONS, values_ES.mean(1), "o-", color=colour, label=method)
        axes.fill_between(
            EPSILONS, *np.quantile(values_ES, [0.1, 0.9], axis=1), color=colour, alpha=0.2
        )
    axes.set(xlabel="ε at δ = 1e-5 (replace one)", ylabel="final ‖∇f‖²: mean and middle 80 %")
    axes.set_xticks(
        EPSILONS, [f"{e:g}" if e >= 0.25 else f"1/{1 / e:g}" for e in EPSILONS], minor=False
    )
    axes.minorticks_off()
    axes.legend()
    figure.savefig(HERE / "diff2.png", dpi=130)


if __name__ == "__main__":
    main()
