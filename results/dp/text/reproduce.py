"""DP fine-tuning of a small text classifier: all weights and LoRA, with and without privacy.

    python results/dp/text/reproduce.py run --workers 2

Pretrains once on the public sentences (scenario polarity_pretrain, seed 0), then fine-tunes on the
private ones from that start, and appends each finished run to runs.jsonl, so that an interrupted
call goes on where it stopped. Prints README.md's table. The sentences come from FEDSIM_DATA.

Non-private runs take the same number of samples per round as private ones expect to. CPU seconds
are of the process from the first round to the last, evaluations included; memory is the peak of the
process, which holds torch and the data as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
START = HERE.parents[1] / "runs" / "dp_text_start.safetensors"

SEEDS = (0, 1, 2)
EPSILONS = (None, 8.0, 3.0)
FILE = {"full": "model.file", "lora": "model.base.file"}
SCENARIO = {"full": "polarity", "lora": "polarity_lora"}
SAME = ["rounds=10", "partition.num_clients=4", "client.batch_size=370", "evaluation.every=10"]


class Point(NamedTuple):
    """What identifies a run; `eta` is the server Adam's step size."""

    tuned: str
    epsilon: float | None
    eta: float
    seed: int


ETA = {"full": 0.001, "lora": 0.002}


def points() -> list[Point]:
    """Return the points of the table, one seed after another."""
    return [
        Point(tuned, epsilon, ETA[tuned], seed)
        for seed in SEEDS
        for tuned in FILE
        for epsilon in EPSILONS
    ]


def pretrain() -> None:
    """Train the common start, if it is not there."""
    from safetensors.torch import save_file

    from fedsim.config import compose
    from fedsim.simulation import Simulation

    if START.exists():
        return
    simulation = Simulation(compose("polarity_pretrain", []))
    *_, (last, _) = simulation.loop.run(simulation.runtime.initial_params())
    START.parent.mkdir(parents=True, exist_ok=True)
    save_file(last, START)


def job(point: Point) -> dict[str, Any]:
    """Run one point, its ledger included, and return what it came to."""
    from fedsim.config import compose
    from fedsim.results import RunFolder
    from fedsim.run import Run
    from fedsim.simulation import Simulation

    words = [f"{FILE[point.tuned]}={START}", f"strategy.eta={point.eta}", f"seed={point.seed}"]
    if point.epsilon is None:
        config = compose(SCENARIO[point.tuned], [*words, *SAME])
    else:
        words += [f"privacy.epsilon={point.epsilon}", "evaluation.every=10"]
        config = compose(f"dp_{SCENARIO[point.tuned]}", words)
    simulation = Simulation(config)
    run = Run(simulation=simulation, folder=RunFolder.create(config))
    assert simulation.loop  # noqa: S101  # everything is built before the clock starts
    started = time.process_time()
    reports = list(run.start())
    return {
        **point._asdict(),
        "config": config.hash[:12],
        "spent": reports[-1].epsilon,
        "accuracy": [round(r.central["accuracy"], 4) for r in reports if r.central],
        "loss": [round(r.central["loss"], 4) for r in reports if r.central],
        "cpu_s": round(time.process_time() - started, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "trained": sum(
            simulation.runtime.initial_params()[n].numel() for n in simulation.runtime.trainable
        ),
    }


def finished() -> dict[Point, dict[str, Any]]:
    """Return the runs recorded so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    runs = [json.loads(line) for line in lines]
    return {Point(*(run[field] for field in Point._fields)): run for run in runs}


def table(runs: dict[Point, dict[str, Any]]) -> str:
    """Return the result table in Markdown: mean ± standard deviation over seeds."""
    rows = [
        "| trained | parameters | epsilon | spent | seeds | accuracy, % | loss | CPU, s | MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tuned in FILE:
        for epsilon in EPSILONS:
            own = [run for p, run in runs.items() if (p.tuned, p.epsilon) == (tuned, epsilon)]
            if not own:
                continue
            accuracy = 100 * np.array([run["accuracy"][-1] for run in own])
            spread = f" ± {accuracy.std(ddof=1):.1f}" if len(own) > 1 else ""
            loss, cpu, peak = (
                np.median([run[key] for run in own]) for key in ("last_loss", "cpu_s", "peak_mib")
            )
            spent = "" if epsilon is None else f"{max(run['spent'] for run in own):.3f}"
            cells: list[object] = [tuned, f"{own[0]['trained']:,}"]
            cells += ["none" if epsilon is None else f"{epsilon:g}", spent, len(own)]
            cells += [f"{accuracy.mean():.1f}{spread}", f"{loss:.3f}", f"{cpu:.0f}", f"{peak:.0f}"]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["run"])
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what:
        pretrain()
        todo = [point for point in points() if point not in finished()]
        context = get_context("spawn")
        # A process of its own for each run: its peak memory is then that run's.
        with ProcessPoolExecutor(arguments.workers, context, max_tasks_per_child=1) as pool:
            for future in as_completed([pool.submit(job, point) for point in todo]):
                result = future.result()
                with RUNS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(result, flush=True)
    runs = finished()
    for run in runs.values():
        run["last_loss"] = run["loss"][-1]
    print(table(runs))


if __name__ == "__main__":
    main()
