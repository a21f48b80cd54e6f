"""F1 and NCR of federated heavy hitters over epsilon and k, against every baseline.

    FEDSIM_DATA=FOLDER python results/heavy_hitters/reproduce.py        # runs what is missing
    python results/heavy_hitters/reproduce.py --draw                    # tables and pictures only
    python results/heavy_hitters/reproduce.py --shape                   # 128 paired synthetic runs

Every finished run is a line of runs.jsonl (of shape.jsonl, the last), and is not run again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fedsim.config import Config, compose
from fedsim.report import figures
from fedsim.report.findings import DrawnGraph, draw_graph
from fedsim.simulation import Simulation
from strategies.heavy_hitters import measures

HERE = Path(__file__).parent
Found = dict[tuple[str, int, str, float], list[dict[str, Any]]]
RUNS, SHAPE = HERE / "runs.jsonl", HERE / "shape.jsonl"

DATA = {
    "synthetic": ["data=zipf"],
    "synthetic-30": ["data=zipf", "data.common=0.3"],
    "baby_names": ["data=baby_names", "data.users=2000000"],
    "shakespeare": ["data=shakespeare_words", "data.min_words=2000"],
}
LEVELS = {"synthetic": (12, 5), "synthetic-30": (12, 5)}
"""g and gs; elsewhere 24 and 10."""
METHODS = ("gtf", "fedpem", "tap", "taps", "pem", "histogram", "triehh")
EPSILONS = (1.0, 2.0, 3.0, 4.0, 5.0)
KS = {"synthetic": (10,), "synthetic-30": (10,)}
SEEDS = {"synthetic": 16, "synthetic-30": 16}
ORACLE = {"synthetic": "krr", "synthetic-30": "krr"}
"""Elsewhere k-RR or OUE, whichever varies less."""
LISTS = ("histogram", "triehh")
"""Methods that find the same whatever k is: one run with the largest gives all."""


SHAPE_SEEDS, SHAPE_EPSILONS = range(100, 228), (2.0, 3.0, 4.0, 5.0)
SHAPE_METHODS = ("gtf", "fedpem", "tap", "taps", "pem")


def points() -> Iterator[tuple[str, int, int, float, str]]:
    """Yield (data, seed, k, epsilon, method): all of one seed before the next."""
    for seed in range(max(SEEDS.values())):
        for data in DATA:
            if seed >= SEEDS.get(data, 10):
                continue
            for k in KS.get(data, (40, 20, 10)):
                for epsilon in EPSILONS:
                    for method in METHODS:
                        yield data, seed, k, epsilon, method


def words(data: str, seed: int, k: int, epsilon: float, method: str, parties: int) -> list[str]:
    """Return the overrides of one run."""
    levels, shared = LEVELS.get(data, (24, 10))
    levels = 1 if method == "histogram" else levels
    rounds = {"fedpem": 1, "tap": shared + 1, "taps": shared + parties}.get(method, levels)
    private = ["privacy=local_reports", f"privacy.oracle={ORACLE.get(data, 'adaptive')}"]
    if method == "triehh":
        private = ["privacy=sample_threshold"]
    return [
        *DATA[data],
        *([f"data.seed={seed}"] if data != "shakespeare" else []),
        *("model=none", "partition=natural", "partition.column=party", "participation=full"),
        *(f"strategy={method}", f"strategy.k={k}", f"strategy.levels={levels}"),
        *([f"strategy.shared_levels={shared}"] if method in ("tap", "taps") else []),
        *private,
        *(f"privacy.epsilon={epsilon}", f"rounds={rounds}", f"seed={seed}", "device=cpu"),
        "evaluation.every=100000",
    ]


@cache
def composed(data: str, method: str, parties: int) -> Config:
    """Return the configuration of a method, of which runs change seed, k and epsilon."""
    return compose("base", words(data, 0, 10, 4.0, method, parties))


class Runner:
    """Keeps the data set of the seed at hand, and its users in the order of their levels."""

    def __init__(self) -> None:
        self.key: tuple[str, int] = ("", -1)

    def run(
        self, data: str, seed: int, k: int, epsilon: float, method: str
    ) -> list[dict[str, Any]]:
        """Run one point; return its line, and those of smaller k where they follow from it."""
        drawn = 0 if data == "shakespeare" else seed
        if (data, drawn) != self.key:
            first = Simulation(compose("base", words(data, drawn, 10, 4.0, "pem", 4)))
            self.dataset, self.key = first.dataset, (data, drawn)
            self.partition = first.partition
            self.orders: dict[tuple[int, str], Any] = {}
        simulation = self.simulation(data, seed, k, epsilon, method)
        started = time.process_time()
        *_, (release, report) = simulation.loop.run(simulation.runtime.initial_params())
        spent = time.process_time() - started
        true, held = measures.true_counts(self.dataset, int(release["bits"]) or 1)
        found = []
        for each in KS.get(data, (10, 20, 40)) if method in LISTS else (k,):
            items, counts = (release[name][:each].numpy() for name in ("items", "counts"))
            found.append(
                {
                    **{"data": data, "seed": seed, "k": each, "epsilon": epsilon},
                    **{"method": method, **report.central},
                    **measures.scores(items, counts, true, held, each),
                    **{"rounds": simulation.last_round, "seconds": round(spent, 3)},
                }
            )
        return found

    def simulation(self, data: str, seed: int, k: int, epsilon: float, method: str) -> Simulation:
        """Make a run on the data at hand."""
        parties = self.partition.num_clients
        base = composed(data, method, parties)
        values = copy.deepcopy(base.values)
        values["seed"], values["strategy"]["k"] = seed, k
        values["privacy"]["epsilon"] = epsilon
        simulation = Simulation(dataclasses.replace(base, values=values))
        simulation.dataset, simulation.partition = self.dataset, self.partition
        descent = getattr(simulation.runtime.half, "descent", None)
        if descent is not None:
            kind = method if method in ("gtf", "histogram") else "equal"
            # Which user reports at which level depends on seed and shares alone.
            descent._items = self.orders.setdefault((seed, kind), {})
            for other in [key for key in self.orders if key[0] != seed]:
                del self.orders[other]
        return simulation


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--shape", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.shape:
        print(shape())
        return
    if not given.draw:
        done = {key(line) for line in lines()}
        runner, began = Runner(), time.monotonic()
        with RUNS.open("a") as file:
            for point in points():
                if point in done or time.monotonic() - began > given.seconds:
                    continue
                for line in runner.run(*point):
                    file.write(json.dumps(line) + "\n")
                    done.add(key(line))
                file.flush()
    draw()


def shape() -> str:
    """Run what is missing of the synthetic case on fresh seeds; return differences of F1, paired.

    Mean and 95 % interval of each difference, not corrected for how many there are.
    """
    found = {(d["seed"], d["epsilon"], d["method"]): d for d in _read(SHAPE)}
    runner = Runner()
    with SHAPE.open("a") as file:
        for seed in SHAPE_SEEDS:
            for epsilon in SHAPE_EPSILONS:
                for method in SHAPE_METHODS:
                    if (seed, epsilon, method) in found:
                        continue
                    (made,) = runner.run("synthetic", seed, 10, epsilon, method)
                    line = {k: made[k] for k in ("seed", "epsilon", "method", "f1", "ncr")}
                    file.write(json.dumps(line) + "\n")
                    found[seed, epsilon, method] = line
            file.flush()
    rows = []
    for epsilon in SHAPE_EPSILONS:
        f1 = {m: np.array([found[s, epsilon, m]["f1"] for s in SHAPE_SEEDS]) for m in SHAPE_METHODS}
        cells = [f"{f1[m].mean():.3f}" for m in SHAPE_METHODS]
        for better, worse in (("tap", "fedpem"), ("taps", "tap"), ("fedpem", "gtf")):
            gap = f1[better] - f1[worse]
            half = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
            cells.append(f"{gap.mean():+.3f} [{gap.mean() - half:+.3f}, {gap.mean() + half:+.3f}]")
        rows.append(f"| {epsilon:g} | {' | '.join(cells)} |")
    head = (
        "| ε | GTF | FedPEM | TAP | TAPS | pooled PEM | TAP − FedPEM | TAPS − TAP | FedPEM − GTF |"
    )
    return "\n".join([head, "|---" * 9 + "|", *rows])


def key(line: dict[str, Any]) -> tuple[str, int, int, float, str]:
    """Return which point a line is of."""
    return line["data"], line["seed"], line["k"], line["epsilon"], line["method"]


def lines() -> list[dict[str, Any]]:
    """Return the finished runs."""
    return _read(RUNS)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(text) for text in path.read_text().splitlines()]


def draw() -> None:
    """Write tables.md and the pictures."""
    found: Found = defaultdict(list)
    for line in lines():
        found[line["data"], line["k"], line["method"], line["epsilon"]].append(line)
    (HERE / "tables.md").write_text(tables(found))
    cases = [(data, k) for data in ("baby_names", "shakespeare") for k in (10, 20, 40)]
    curves(found, [case for case in cases if any(key[:2] == case for key in found)], "real.png")
    synthetic = [(data, 10) for data in ("synthetic", "synthetic-30")]
    curves(
        found, [case for case in synthetic if any(k[:2] == case for k in found)], "synthetic.png"
    )
    tree_picture()


def tables(found: Found) -> str:
    """Return F1/NCR of every method, with the number of runs."""
    text = ["# F1 / NCR, mean over the runs (standard error of F1)", ""]
    for data, k in sorted({key[:2] for key in found}):
        runs = [len(v) for key, v in found.items() if key[:2] == (data, k)]
        text += [f"## {data}, k = {k} ({min(runs)} to {max(runs)} runs a cell)", ""]
        text += ["| ε | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
        for epsilon in EPSILONS:
            cells = []
            for method in METHODS:
                rows = found.get((data, k, method, epsilon), [])
                f1 = [row["f1"] for row in rows]
                ncr = [row["ncr"] for row in rows]
                spread = np.std(f1, ddof=1) / np.sqrt(len(f1)) if len(f1) > 1 else 0.0
                cells.append(f"{np.mean(f1):.2f}/{np.mean(ncr):.2f} ({spread:.2f})" if f1 else "-")
            text.append(f"| {epsilon:g} | " + " | ".join(cells) + " |")
        text += ["", "TAP minus FedPEM, and TAPS minus TAP, F1 of the same seeds (SE):", ""]
        for epsilon in EPSILONS:
            parts = []
            for a, b in (("tap", "fedpem"), ("taps", "tap"), ("fedpem", "gtf")):
                one = {r["seed"]: r["f1"] for r in found.get((data, k, a, epsilon), [])}
                two = {r["seed"]: r["f1"] for r in found.get((data, k, b, epsilon), [])}
                both = [one[seed] - two[seed] for seed in one if seed in two]
                if len(both) > 1:
                    spread = np.std(both, ddof=1) / np.sqrt(len(both))
                    parts.append(f"{a} - {b} {np.mean(both):+.3f} ({spread:.3f})")
            text.append(f"- ε = {epsilon:g}: " + "; ".join(parts))
        text += ["", "Mean bytes: report of a user; both ways of a party; rounds:", ""]
        for method in METHODS:
            rows = [r for key, v in found.items() if key[:3] == (data, k, method) for r in v]
            if rows:
                user, party = (np.mean([r[n] for r in rows]) for n in
                               ("bytes-per-user", "bytes-per-party"))  # fmt: skip
                text.append(f"- {method}: {user:,.2f}; {party:,.0f}; {rows[0]['rounds']}")
        text.append("")
    return "\n".join(text)


def curves(found: Found, cases: list[tuple[str, int]], file: str) -> None:
    """Draw F1 and NCR over epsilon, with bands of one standard deviation."""
    if not cases:
        return
    colours = ("#777777", figures.SKY, figures.BLUE, figures.VERMILLION, figures.BLACK,
               figures.GREEN, figures.PURPLE)  # fmt: skip
    with figures.style():
        figure = Figure(figsize=(3.1 * len(cases) + 0.6, 6.2), layout="constrained")
        axes = figure.subplots(2, len(cases), squeeze=False, sharey=True)
        for column, (data, k) in enumerate(cases):
            for row, measure in enumerate(("f1", "ncr")):
                at = axes[row][column]
                for method, colour, marker in zip(METHODS, colours, "os^v*Dx", strict=True):
                    line = [(e, found.get((data, k, method, e), [])) for e in EPSILONS]
                    line = [(e, [r[measure] for r in rows]) for e, rows in line if rows]
                    if not line:
                        continue
                    x = [e for e, _ in line]
                    mean = np.array([np.mean(v) for _, v in line])
                    std = np.array([np.std(v) for _, v in line])
                    # GTF is often as good as PEM: it is drawn over it.
                    over = {"linestyle": "--", "zorder": 4} if method == "gtf" else {}
                    at.plot(
                        x, mean, color=colour, marker=marker, label=method, linewidth=1.4, **over
                    )
                    at.fill_between(x, mean - std, mean + std, color=colour, alpha=0.13, lw=0)
                at.set_title(f"{data}, k = {k}" if row == 0 else "")
                at.set_xlabel("ε" if row else "")
                at.set_ylabel(measure.upper() if column == 0 else "")
                at.set_ylim(0, 1.03)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(METHODS), 2 * len(cases))
        )
        figure.savefig(HERE / file, dpi=110, facecolor="white")


def tree_picture() -> None:
    """Draw the tree of the scenario heavy_hitters, as its report does."""
    simulation = Simulation(compose("heavy_hitters", ["device=cpu", "evaluation.every=1000"]))
    *_, (release, _) = simulation.loop.run(simulation.runtime.initial_params())
    graph = simulation.asking.findings(release, simulation.dataset).graphs[0]
    drawn = DrawnGraph(
        nodes=graph.nodes, edges=list(graph.edges), layers=graph.layers, kinds=graph.kinds
    )
    with figures.style():
        figure = Figure(figsize=(10.6, 8.4), layout="constrained")
        draw_graph(figure.subplots(), drawn)
        figure.savefig(HERE / "tree.png", dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
