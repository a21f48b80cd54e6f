"""Every strategy over three levels of heterogeneity, each as its YAML file sets it.

    python results/baselines/reproduce.py --workers 2

Runs every (strategy, level, seed) through the ordinary command's code and appends each finished one
to runs.jsonl, so that an interrupted call goes on where it stopped; then writes README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
LEVELS, SEEDS, ROUNDS = (100.0, 0.5, 0.1), range(5), 60
WORDS = [
    "data=digits", "partition=dirichlet", "partition.num_clients=50", "partition.holdout=0.2",
    "participation=uniform", "participation.clients_per_round=10", "model=mlp", "model.hidden=[32]",
    "client.lr=0.1", "client.epochs=2", "client.batch_size=10", f"rounds={ROUNDS}", "device=cpu",
    "evaluation.clients=all", "evaluation.every=20",
]  # fmt: skip
PERSONAL = ("ditto", "fedbn", "fedper", "fedrep", "per_fedavg", "pfedme")
"""Clients are scored with models of their own."""
NO_GLOBAL = ("fedper", "fedrep")
"""The global model keeps the initial personal layers: its own score says nothing."""
ONE_BY_ONE = ("ditto", "per_fedavg", "pfedme")
"""Quicker on the sequential engine at this size."""
MORE = {
    "bulyan": ["strategy.num_malicious=1"],
    "krum": ["strategy.num_malicious=2"],
    "multikrum": ["strategy.num_malicious=2"],
}
"""What ten replies a round allow."""

Point = tuple[str, float, int]


def names() -> list[str]:
    """Return all strategies."""
    from fedsim import catalog

    return [entry.name for entry in catalog.entries("strategy")]


def job(strategy: str, alpha: float, seed: int) -> dict[str, Any]:
    """Run one point of the grid; return its last scores, in percent."""
    from fedsim.config import compose
    from fedsim.errors import FedsimError
    from fedsim.simulation import Simulation

    engine = "in_process" if strategy in ONE_BY_ONE else "cohort"
    words = [*WORDS, f"partition.alpha={alpha}", f"seed={seed}", f"engine={engine}"]
    config = compose("base", [f"strategy={strategy}", *words, *MORE.get(strategy, [])])
    point = {"strategy": strategy, "alpha": alpha, "seed": seed, "config": config.hash[:12]}
    simulation = Simulation(config)
    gc.freeze()  # some of Flower's strategies collect garbage for every reply
    try:
        *_, (_, last) = simulation.loop.run(simulation.runtime.initial_params())
    except FedsimError as error:
        return {**point, "failed": str(error).splitlines()[0]}
    own = np.array(last.per_client["accuracy"])
    return {
        **point,
        "central": round(100 * last.central["accuracy"], 3),
        "clients": round(100 * float(own.mean()), 3),
        "worst": round(100 * float(np.sort(own)[: max(1, len(own) // 10)].mean()), 3),
    }


def key(run: dict[str, Any]) -> Point:
    """Return what identifies a point of the grid."""
    return run["strategy"], run["alpha"], run["seed"]


def finished() -> dict[Point, dict[str, Any]]:
    """Return the runs recorded so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {key(run): run for run in map(json.loads, lines)}


def grid() -> Iterator[Point]:
    """Yield all points, whole seeds first."""
    for seed in SEEDS:
        for alpha in LEVELS:
            for strategy in names():
                yield strategy, alpha, seed


def table(runs: dict[Point, dict[str, Any]]) -> str:
    """Return the table in Markdown, best mean over the levels first within each kind."""
    heads = [f"{what}, α={alpha:g}" for what in ("test", "clients") for alpha in LEVELS]
    lines = ["| strategy | " + " | ".join(heads) + " | worst tenth, α=0.1 |"]
    lines.append("| --- |" + " ---: |" * (len(heads) + 1))
    done = [name for name in names() if all((name, a, s) in runs for a in LEVELS for s in SEEDS)]
    for personal in (False, True):
        chosen = [name for name in done if (name in PERSONAL) == personal]
        column = "clients" if personal else "central"
        for name in sorted(
            chosen, key=lambda n: -np.nanmean([_of(runs, n, a, column) for a in LEVELS])
        ):
            cells = [_cell(_of(runs, name, a, "central"), name in NO_GLOBAL) for a in LEVELS]
            cells += [_cell(_of(runs, name, a, "clients")) for a in LEVELS]
            cells.append(_cell(_of(runs, name, LEVELS[-1], "worst")))
            mark = " (personal)" if personal else ""
            lines.append(f"| {name}{mark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of(runs: dict[Point, dict[str, Any]], name: str, alpha: float, column: str) -> np.ndarray:
    return np.array([runs[name, alpha, seed].get(column, np.nan) for seed in SEEDS])


def _cell(values: np.ndarray, says_nothing: bool = False) -> str:
    if says_nothing:
        return "–"
    if np.isnan(values).any():
        return f"failed in {int(np.isnan(values).sum())} of {len(values)}"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def page(runs: dict[Point, dict[str, Any]]) -> str:
    """Return README.md: what is between its two marks is replaced."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end -->")
    return f"{head}<!-- table -->\n{table(runs)}\n<!-- end -->{tail}"


def main() -> None:
    """Run what is missing of the grid, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args().workers
    todo = [point for point in grid() if point not in finished()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(job, *point) for point in todo]):
            with RUNS.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
            print(*key(future.result()), flush=True)
    (HERE / "README.md").write_text(page(finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
