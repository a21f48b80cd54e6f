"""Learning from aggregate responses: risk beside theory, the private optimum, classification.

    python results/aggregate_responses/reproduce.py risk private        # a CPU-minute
    python results/aggregate_responses/reproduce.py adult fashion --seeds 5

Runs that are in runs.jsonl are not repeated, so it can be stopped and started again. `adult` and
`fashion` need FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from privacy.aggregate_labels import AggregateLabels
from privacy.aggregate_risk import RHOS, best, risk

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
D, N = 100, 2000
SIZES = (1, 2, 4, 8, 12, 16, 18)
RISK_RHOS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PRIVATE_N, BOUND = 5000, 3 * 2**0.5
DRAWS = 16
LOSSES = ("dllp", "instance", "interpolating", "easyllp")
BAG_SIZES = (1, 2, 4, 8, 16, 32, 64)
SETTINGS = {
    "adult": ["data=bags_adult", "model=linear", "client.lr=0.1", "rounds=6"],
    "fashion": [
        *("data=bags_fashion_mnist", "data.source.flat=true", "data.source.train_limit=6000"),
        *("model=mlp", "model.hidden=[64]", "client.lr=0.1", "rounds=15"),
    ],
}
EACH = 32
"""Samples of a batch, whatever the size of a bag: EACH // k bags, at least one."""


def one_risk(
    n: int, k: int, rho: float, seed: int, clip: float = 0.0, epsilon: float = 0.0
) -> float:
    """Return ‖θ̂ − θ‖² of one draw with σ² = ‖θ‖² = 1; with noise of a private release if asked."""
    rng = np.random.default_rng([seed, n, k])
    m = n // k
    theta = rng.normal(size=D)
    theta /= np.linalg.norm(theta)
    x = rng.normal(size=(m, k, D))
    y = x @ theta + rng.normal(size=(m, k))
    if epsilon:
        y = y.clip(-clip, clip).mean(1) + rng.laplace(scale=2 * clip / (k * epsilon), size=m)
    else:
        y = y.mean(1)
    center = x.mean(1)
    away = (x - center[:, None]).reshape(-1, D)
    gram = center.T @ center + rho / k * away.T @ away
    return float(np.square(np.linalg.solve(gram, center.T @ y) - theta).sum())


def private_part(epsilon: float) -> AggregateLabels:
    """Return the mechanism, with what it recommends by."""
    return AggregateLabels(epsilon=epsilon, assumed_noise=1.0, assumed_signal=1.0)


def variance_at(epsilon: float, k: int) -> float:
    """Return σ² + k v of a Laplace release."""
    return 1.0 + 8 * BOUND**2 / (k * epsilon**2)


def risk_points() -> Iterable[dict[str, Any]]:
    """Yield the points of the picture of risk over k and ρ."""
    for k in SIZES:
        for rho in RISK_RHOS:
            if np.isfinite(risk(n=N // k * k, d=D, k=k, rho=rho, variance=1.0)):
                yield {"part": "risk", "k": k, "rho": rho}


def private_points() -> Iterable[dict[str, Any]]:
    """Yield the best ρ of every k, for every ε."""
    for epsilon in EPSILONS:
        for k in (1, 2, 4, 8, 16):
            rho = best(n=PRIVATE_N, d=D, variance_at={k: variance_at(epsilon, k)})[k].rho
            yield {"part": "private", "epsilon": epsilon, "k": k, "rho": rho}


def class_points(data: str, seeds: int, sizes: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Yield every loss at every bag size; at 1 they are all the same."""
    for seed in range(seeds):
        for k in sizes:
            for loss in LOSSES if k > 1 else LOSSES[:1]:
                yield {"part": data, "k": k, "loss": loss, "seed": seed}


def job(point: dict[str, Any]) -> dict[str, Any]:
    """Return the point with its result."""
    if point["part"] == "risk":
        draws = [one_risk(N, point["k"], point["rho"], seed) for seed in range(DRAWS)]
        return {**point, "mean": np.mean(draws), "error": np.std(draws, ddof=1) / DRAWS**0.5}
    if point["part"] == "private":
        asked = {"clip": BOUND, "epsilon": point["epsilon"]}
        draws = [
            one_risk(PRIVATE_N, point["k"], point["rho"], seed, **asked) for seed in range(DRAWS)
        ]
        return {**point, "mean": np.mean(draws), "error": np.std(draws, ddof=1) / DRAWS**0.5}
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    words = [
        *SETTINGS[point["part"]],
        *("strategy=aggregate", f"strategy.loss={point['loss']}", "participation=full"),
        *("partition.num_clients=10", f"seed={point['seed']}", "data.bag_seed=${seed}"),
        *(f"data.size={point['k']}", f"client.batch_size={max(1, EACH // point['k'])}"),
        *("evaluation.every=30", "device=cpu"),
    ]
    if point["part"] == "fashion" and point["loss"] == "easyllp":  # published: equal classes
        words.append(f"strategy.prior={[0.1] * 10}")
    if point["part"] == "adult" and point["loss"] == "easyllp" and point["k"] >= EACH:
        words.append("strategy.prior=[0.76,0.24]")  # a batch is one bag: none to take it from
    simulation = Simulation(compose("base", words))
    *_, (_, report) = simulation.loop.run(simulation.runtime.initial_params())
    accuracy, entropy = report.central["accuracy"], report.central["loss"]
    config = simulation.config.hash[:12]
    return {**point, "config": config, "accuracy": accuracy, "entropy": entropy}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a point from another."""
    return tuple(run.get(name) for name in ("part", "epsilon", "k", "rho", "loss", "seed"))


def finished() -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the runs recorded so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {key(run): run for run in map(json.loads, lines)}


def run(points: Iterable[dict[str, Any]]) -> None:
    """Run what is missing of `points`."""
    done = finished()
    for point in points:
        if key(point) not in done:
            result = job(point)
            with RUNS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(*(f"{name}={value}" for name, value in result.items()), flush=True)


def tables() -> str:
    """Return all tables in Markdown."""
    runs = list(finished().values())
    out = [
        f"### Risk, n = {N}, d = {D}, σ² = ‖θ‖² = 1: measured ± standard error (closed form)",
        "",
    ]
    out += ["| k | " + " | ".join(f"ρ = {rho:g}" for rho in RISK_RHOS) + " | best ρ, its risk |"]
    out += ["| ---: |" + " ---: |" * (len(RISK_RHOS) + 1)]
    for k in SIZES:
        n, cells = N // k * k, []
        for rho in RISK_RHOS:
            own = [r for r in runs if (r["part"], r["k"], r.get("rho")) == ("risk", k, rho)]
            exact = float(risk(n=n, d=D, k=k, rho=rho, variance=1.0))
            cells += [f"{r['mean']:.3f} ± {r['error']:.3f} ({exact:.3f})" for r in own] or ["∞"]
        top = best(n=n, d=D, variance_at={k: 1.0})[k]
        out.append(f"| {k} | " + " | ".join(cells) + f" | {top.rho:.2g}, {top.risk:.3f} |")
    out += [
        "",
        f"### Label DP, n = {PRIVATE_N}, d = {D}, C = 3√2: risk at the best ρ of each k",
        "",
    ]
    sizes = (1, 2, 4, 8, 16)
    out += ["| ε | " + " | ".join(f"k = {k}" for k in sizes) + " | recommended k, ρ, risk |"]
    out += ["| ---: |" + " ---: |" * (len(sizes) + 1)]
    for epsilon in EPSILONS:
        cells = []
        for k in sizes:
            top = best(n=PRIVATE_N, d=D, variance_at={k: variance_at(epsilon, k)})[k]
            own = [
                r for r in runs if r["part"] == "private" and (r["epsilon"], r["k"]) == (epsilon, k)
            ]
            cells += [f"{r['mean']:.3f} ± {r['error']:.3f} ({top.risk:.3f})" for r in own] or [""]
        top = private_part(epsilon).recommend(n=PRIVATE_N, d=D, bound=BOUND)
        out.append(
            f"| {epsilon:g} | " + " | ".join(cells) + f" | {top.k}, {top.rho:.2g}, {top.risk:.3f} |"
        )
    for data in SETTINGS:
        own = [r for r in runs if r["part"] == data]
        if not own:
            continue
        out += [
            "",
            f"### {data}: test accuracy, %, mean ± standard deviation (number of seeds)",
            "",
        ]
        out += ["| k | " + " | ".join(LOSSES) + " |", "| ---: |" + " ---: |" * len(LOSSES)]
        for k in sorted({r["k"] for r in own}):
            cells = []
            for loss in LOSSES:
                hits = [
                    100 * r["accuracy"]
                    for r in own
                    if r["k"] == k and (r["loss"] == loss or k == 1)
                ]
                spread = f" ± {np.std(hits, ddof=1):.1f}" if len(hits) > 1 else ""
                cells.append(f"{np.mean(hits):.1f}{spread} ({len(hits)})" if hits else "")
            out.append(f"| {k} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def draw(path: Path) -> None:
    """Draw risk over ρ for some k, and the private risk over k for every ε: theory and points."""
    from matplotlib.figure import Figure

    runs = list(finished().values())
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, k in enumerate(SIZES[1:]):
        curve = risk(n=N // k * k, d=D, k=k, rho=RHOS[1:], variance=1.0)
        left.loglog(RHOS[1:], curve, color=f"C{i}", label=f"k = {k}")
        own = [r for r in runs if r["part"] == "risk" and r["k"] == k and r["rho"] > 0]
        left.errorbar(
            [r["rho"] for r in own], [r["mean"] for r in own], [2 * r["error"] for r in own],
            fmt="o", color=f"C{i}", ms=4,
        )  # fmt: skip
    left.set(xlabel="ρ", ylabel="risk", title=f"n/d = {N // D}, σ² = 1", ylim=(0.05, 20))
    left.legend(fontsize=8)
    sizes = range(1, 33)
    for i, epsilon in enumerate(EPSILONS):
        found = best(n=PRIVATE_N, d=D, variance_at={k: variance_at(epsilon, k) for k in sizes})
        right.loglog(sizes, [found[k].risk for k in sizes], color=f"C{i}", label=f"ε = {epsilon:g}")
        own = [r for r in runs if r["part"] == "private" and r["epsilon"] == epsilon]
        right.errorbar(
            [r["k"] for r in own], [r["mean"] for r in own], [2 * r["error"] for r in own],
            fmt="o", color=f"C{i}", ms=4,
        )  # fmt: skip
        top = private_part(epsilon).recommend(n=PRIVATE_N, d=D, bound=BOUND)
        right.plot([top.k], [top.risk], "*", color=f"C{i}", ms=12)
    right.set(xlabel="bag size k", title=f"label DP, best ρ, n/d = {PRIVATE_N // D}, σ² = 1")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing of the named parts, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["risk", "private", *SETTINGS, []], default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(BAG_SIZES))
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part == "risk":
            run(risk_points())
        elif part == "private":
            run(private_points())
        else:
            run(class_points(part, arguments.seeds, arguments.sizes))
    (HERE / "tables.md").write_text(tables())
    draw(HERE / "aggregate.png")
    print(tables())


if __name__ == "__main__":
    main()
