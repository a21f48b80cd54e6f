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
import proportions
import torch

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
SHARES = sorted(proportions.BAG_SIZES)


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
    return proportions.job(point)


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a point from another."""
    names = ("part", "epsilon", "k", "rho", "loss", "lr", "seed", "held")
    return tuple(run.get(name) for name in names)


def finished() -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the runs recorded so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {key(run): run for run in map(json.loads, lines)}


def once(point: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a point, which is run if it is not recorded yet."""
    recorded = finished().get(key(point))
    if recorded is not None:
        return recorded
    result = job(point)
    with RUNS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(*(f"{name}={value}" for name, value in result.items()), flush=True)
    return result


def reported(runs: list[dict[str, Any]], data: str, k: int, loss: str) -> list[dict[str, Any]]:
    """Return the reported runs of a loss; of bags of one, which all losses share, the ordinary."""
    loss = loss if k > 1 else proportions.LOSSES[0]
    return [
        r for r in runs
        if r["part"] == data and (r["k"], r["loss"], r["held"]) == (k, loss, False)
    ]  # fmt: skip


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
    for data in proportions.SETTINGS:
        out += [
            "",
            f"### {data}: test accuracy, %, mean ± standard deviation (number of seeds)",
            "",
        ]
        out += ["| k | " + " | ".join(proportions.LOSSES) + " |", "| ---: |" + " ---: |" * 4]
        for k in SHARES:
            cells = []
            for loss in proportions.LOSSES:
                own = reported(runs, data, k, loss)
                hits = [100 * r["accuracy"] for r in own]
                spread = f" ± {np.std(hits, ddof=1):.1f}" if len(hits) > 1 else ""
                cells.append(f"{np.mean(hits):.1f}{spread} ({len(hits)})" if hits else "")
            out.append(f"| {k} | " + " | ".join(cells) + " |")
        out += ["", f"### {data}: what was chosen: the learning rate, and ρ of `interpolating`", ""]
        out += ["| k | " + " | ".join(proportions.LOSSES) + " |", "| ---: |" + " ---: |" * 4]
        for k in SHARES:
            cells = []
            for loss in proportions.LOSSES:
                chosen = {(r["lr"], r["rho"]) for r in reported(runs, data, k, loss)}
                cells += [f"{lr:g}" + f", ρ = {rho:g}" * (rho > 0) for lr, rho in chosen] or [""]
            out.append(f"| {k} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def draw(path: Path) -> None:
    """Draw theory as lines and measured points over it, and accuracy over bag sizes."""
    from matplotlib.figure import Figure

    runs = list(finished().values())
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    panels = figure.subplots(2, 3)
    draw_rho(panels[0, 0], runs)
    draw_sizes(panels[0, 1], runs)
    draw_private(panels[0, 2], runs)
    draw_best(panels[1, 0], runs)
    for panel, data in zip(panels[1, 1:], proportions.SETTINGS, strict=True):
        draw_classes(panel, runs, data)
    figure.savefig(path, dpi=110)


def dots(panel: Any, x: str, runs: list[dict[str, Any]], color: str) -> None:
    """Draw means with two standard errors."""
    panel.errorbar(
        [r[x] for r in runs], [r["mean"] for r in runs], [2 * r["error"] for r in runs],
        fmt="o", color=color, ms=4,
    )  # fmt: skip


def draw_rho(panel: Any, runs: list[dict[str, Any]]) -> None:
    """Draw risk over ρ, for some k."""
    for i, k in enumerate(SIZES[1:]):
        curve = risk(n=N // k * k, d=D, k=k, rho=RHOS[1:], variance=1.0)
        panel.loglog(RHOS[1:], curve, color=f"C{i}", label=f"k = {k}")
        own = [r for r in runs if r["part"] == "risk" and r["k"] == k and r["rho"] > 0]
        dots(panel, "rho", own, f"C{i}")
    panel.set(xlabel="ρ", ylabel="risk", title=f"n/d = {N // D}, σ² = 1", ylim=(0.05, 20))
    panel.legend(fontsize=8)


def draw_sizes(panel: Any, runs: list[dict[str, Any]]) -> None:
    """Draw risk over k, of the bag loss, the instance loss and between."""
    sizes = np.arange(1, N // D)
    for i, (rho, name) in enumerate(
        [(0.0, "bag"), (0.1, "interpolating, ρ = 0.1"), (1.0, "instance")]
    ):
        curve = [float(risk(n=N, d=D, k=int(k), rho=rho, variance=1.0)) for k in sizes]
        panel.semilogy(sizes, curve, color=f"C{i}", label=name)
        own = [r for r in runs if r["part"] == "risk" and r["rho"] == rho]
        dots(panel, "k", own, f"C{i}")
    least = best(n=N, d=D, variance_at={int(k): 1.0 for k in sizes})
    panel.plot(sizes, [least[int(k)].risk for k in sizes], "k--", label="interpolating, best ρ")
    panel.set(xlabel="bag size k", ylabel="risk", title=f"the bag loss explodes at n/d = {N // D}")
    panel.set(ylim=(0.04, 20), xlim=(0, 21))
    panel.axvline(N / D, color="grey", lw=0.8, ls=":")
    panel.legend(fontsize=8)


def draw_private(panel: Any, runs: list[dict[str, Any]]) -> None:
    """Draw the private risk over k for every ε, and what is recommended."""
    sizes = range(1, 33)
    for i, epsilon in enumerate(EPSILONS):
        found = best(n=PRIVATE_N, d=D, variance_at={k: variance_at(epsilon, k) for k in sizes})
        panel.loglog(sizes, [found[k].risk for k in sizes], color=f"C{i}", label=f"ε = {epsilon:g}")
        own = [r for r in runs if r["part"] == "private" and r["epsilon"] == epsilon]
        dots(panel, "k", own, f"C{i}")
        top = private_part(epsilon).recommend(n=PRIVATE_N, d=D, bound=BOUND)
        panel.plot([top.k], [top.risk], "*", color=f"C{i}", ms=12)
    title = f"label DP at the best ρ, n/d = {PRIVATE_N // D} (stars: advice)"
    panel.set(xlabel="bag size k", ylabel="risk", title=title)
    panel.legend(fontsize=8)


def draw_best(panel: Any, runs: list[dict[str, Any]]) -> None:
    """Draw the best bag size and its ρ over ε, and the best of those measured."""
    found = [private_part(e).recommend(n=PRIVATE_N, d=D, bound=BOUND) for e in EPSILONS]
    panel.loglog(EPSILONS, [top.k for top in found], "o-", color="C0", label="k*, closed form")
    measured = []
    for epsilon in EPSILONS:
        own = [r for r in runs if r["part"] == "private" and r["epsilon"] == epsilon]
        measured.append(min(own, key=lambda r: float(r["mean"]))["k"])
    panel.plot(EPSILONS, measured, "x", color="C3", ms=9, label="measured best of 1, 2, 4, 8, 16")
    bagged = [(e, top.rho) for e, top in zip(EPSILONS, found, strict=True) if top.k > 1]
    panel.plot(*zip(*bagged, strict=True), "s--", color="C2", label="ρ*, where k* > 1")
    panel.set(xlabel="ε per response", ylabel="k*, ρ*", title="label DP: the best bag size and ρ")
    panel.legend(fontsize=8)


def draw_classes(panel: Any, runs: list[dict[str, Any]], data: str) -> None:
    """Draw accuracy over bag sizes of all losses, with the range of the seeds."""
    for i, loss in enumerate(proportions.LOSSES):
        hits = [[100 * r["accuracy"] for r in reported(runs, data, k, loss)] for k in SHARES]
        some = [(k, h) for k, h in zip(SHARES, hits, strict=True) if h]
        x, means = [k for k, _ in some], [float(np.mean(h)) for _, h in some]
        ends = [[m - min(h) for m, (_, h) in zip(means, some, strict=True)],
                [max(h) - m for m, (_, h) in zip(means, some, strict=True)]]  # fmt: skip
        panel.errorbar(x, means, ends, fmt="o-", ms=4, capsize=2, color=f"C{i}", label=loss)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="bag size k", ylabel="test accuracy, %", title=f"{data}, label proportions")
    panel.legend(fontsize=8)


def main() -> None:
    """Run what is missing of the named parts, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = ["risk", "private", *proportions.SETTINGS]
    parser.add_argument("parts", nargs="*", choices=[*known, []], default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(proportions.BAG_SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        points: Iterable[dict[str, Any]]
        if part in ("risk", "private"):
            points = risk_points() if part == "risk" else private_points()
        else:
            sizes = arguments.sizes
            points = (
                point for k in sizes for point in proportions.points(part, k, arguments.seeds, once)
            )
        for point in points:
            once(point)
    (HERE / "tables.md").write_text(tables())
    draw(HERE / "aggregate.png")
    print(tables())


if __name__ == "__main__":
    main()
