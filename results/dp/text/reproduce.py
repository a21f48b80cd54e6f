"""DP fine-tuning of two small transformers, a text classifier and a language model of characters.

    python results/dp/text/reproduce.py tune      # few settings, at epsilon 8, seed 100
    python results/dp/text/reproduce.py run       # the best of them, other seeds
    python results/dp/text/reproduce.py memory    # one client, by ghost clipping and by hooks
    python results/dp/text/reproduce.py           # the tables

Each setup starts from weights that a public part of the data gave (scenarios polarity_pretrain and
shakespeare_pretrain, seed 0). What is finished is appended to tuning.jsonl, runs.jsonl and
memory.jsonl, and an interrupted call goes on where it stopped. The texts come from FEDSIM_DATA.

CPU seconds are of the process from the first round to the last, evaluations included; memory is the
peak of the process, which holds torch and the data as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
STARTS = HERE.parents[1] / "runs"

TUNING_SEED, TUNING_EPSILON = 100, 8.0
SEEDS = (0, 1, 2)
EPSILONS = (None, 8.0, 3.0)
OVER = ["evaluation.every=10", "evaluation.batch_size=256", "rounds=10"]


class Setup(NamedTuple):
    """What is trained, and how the two kinds of run are called."""

    start: str
    file: str
    private: list[str]
    plain: list[str]
    held: int
    """Samples of a client in public, which a batch is a part of."""


POLARITY = ["partition.num_clients=4"]
SETUPS = {
    "full": Setup("polarity", "model.file", ["dp_polarity"], ["polarity", *POLARITY], 1480),
    "lora": Setup(
        "polarity", "model.base.file", ["dp_polarity_lora"], ["polarity_lora", *POLARITY], 1480
    ),
    "roles": Setup(
        "shakespeare",
        "model.file",
        ["dp_shakespeare"],
        ["shakespeare_finetune", "participation.clients_per_round=40"],
        40,
    ),
    "users": Setup("shakespeare", "model.file", ["dp_shakespeare_users"], [], 0),
}


class Point(NamedTuple):
    """What identifies a run; `eta` is the server Adam's step size."""

    setup: str
    epsilon: float | None
    clip: float | None
    batch: int
    eta: float
    seed: int


def tuning() -> list[Point]:
    """Return the settings that are tried: C, expected batch and eta together."""
    at = TUNING_EPSILON
    tried: list[tuple[str, float | None, float | None, int, float]] = [
        ("full", None, None, 370, 3e-4),
        ("full", None, None, 370, 1e-3),
        ("full", None, None, 370, 3e-3),
        ("full", at, 0.1, 370, 1e-4),
        ("full", at, 0.1, 370, 3e-4),
        ("full", at, 1.0, 370, 1e-4),
        ("full", at, 1.0, 370, 3e-4),
        ("full", at, 4.0, 370, 1e-4),
        ("full", at, 4.0, 370, 3e-4),
        ("full", at, 4.0, 185, 1e-4),
        ("full", at, 0.1, 370, 1e-2),  # the recipe: ten times the step without privacy
        ("lora", None, None, 370, 1e-3),
        ("lora", None, None, 370, 3e-3),
        ("lora", at, 1.0, 370, 1e-3),
        ("lora", at, 4.0, 370, 1e-3),
        ("lora", at, 4.0, 370, 3e-3),
        ("lora", at, 0.1, 370, 2e-2),  # the recipe
        ("roles", None, None, 20, 1e-3),
    ]
    return [Point(*setting, TUNING_SEED) for setting in tried]


def best(setup: str, *, private: bool) -> Point:
    """Return the setting of the lowest test loss among those tried."""
    own = [
        run
        for point, run in finished(HERE / "tuning.jsonl").items()
        if point.setup == setup and (point.epsilon is not None) == private
    ]
    run = min(own, key=lambda run: run["loss"][-1])
    return Point(*(run[field] for field in Point._fields))


def points() -> list[Point]:
    """Return the points of the tables."""
    found = []
    for seed in SEEDS:
        for setup in ("full", "lora"):
            for epsilon in EPSILONS:
                setting = best(setup, private=epsilon is not None)
                found.append(setting._replace(epsilon=epsilon, seed=seed))
        found += [  # not tuned
            Point("roles", None, None, 20, 1e-3, seed),
            Point("roles", 8.0, 1.0, 20, 3e-4, seed),
            Point("users", 8.0, 1.0, 20, 3e-4, seed),
        ]
    return found


def pretrain(name: str) -> Path:
    """Return the weights that a setup starts from; train them, if they are not there."""
    from safetensors.torch import save_file

    from fedsim.config import compose
    from fedsim.simulation import Simulation

    path = STARTS / f"dp_{name}_start.safetensors"
    if not path.exists():
        simulation = Simulation(compose(f"{name}_pretrain", []))
        *_, (last, _) = simulation.loop.run(simulation.runtime.initial_params())
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(last, path)
    return path


def words_of(point: Point) -> tuple[str, list[str]]:
    """Return the scenario of a run and its overrides."""
    setup = SETUPS[point.setup]
    scenario, *words = setup.plain if point.epsilon is None else setup.private
    words += [
        f"{setup.file}={pretrain(setup.start)}",
        f"client.batch_size={point.batch}",
        f"strategy.eta={point.eta}",
        f"seed={point.seed}",
        *OVER,
    ]
    if point.epsilon is not None:
        words += [f"privacy.epsilon={point.epsilon}", f"privacy.clip_norm={point.clip}"]
        if setup.held:
            words += [f"privacy.sample_rate={point.batch / setup.held}"]
    return scenario, words


def job(point: Point) -> dict[str, Any]:
    """Run one point, its ledger included, and return what it came to."""
    from fedsim.config import compose
    from fedsim.lifecycle import Run
    from fedsim.results import RunFolder
    from fedsim.simulation import Simulation

    scenario, words = words_of(point)
    config = compose(scenario, words)
    simulation = Simulation(config)
    run = Run(simulation=simulation, folder=RunFolder.create(config))
    assert simulation.loop  # noqa: S101  # everything is built before the clock starts
    # Else the peak would be that of all runs of this process.
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    reports = list(run.start())
    cpu = time.process_time() - started
    initial = simulation.runtime.initial_params()
    return {
        **point._asdict(),
        "config": config.hash[:12],
        "spent": reports[-1].epsilon,
        "accuracy": [round(r.central["accuracy"], 4) for r in reports if r.central],
        "loss": [round(r.central["loss"], 4) for r in reports if r.central],
        "cpu_s": round(cpu, 1),
        "peak_mib": _status("VmHWM"),
        "trained": sum(initial[name].numel() for name in simulation.runtime.trainable),
    }


def memory(how: str, setup: str = "full") -> dict[str, Any]:
    """Return what two rounds of one client take beyond what lies there before, in MiB."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    epsilon = None if how == "none" else TUNING_EPSILON
    scenario, words = words_of(Point(setup, epsilon, 0.1, 370, 1e-4, 0))
    words += [f"privacy.method={how}"] if epsilon else []
    words += ["engine=in_process", "participation=uniform", "participation.clients_per_round=1"]
    simulation = Simulation(compose(scenario, [*words, "rounds=2", "evaluation.central=false"]))
    assert simulation.loop  # noqa: S101
    before, started = _status("VmRSS"), time.process_time()
    list(simulation.loop.run(simulation.runtime.initial_params()))
    return {
        "setup": setup,
        "how": how,
        "cpu_s_per_step": round((time.process_time() - started) / 2, 2),
        "mib": _status("VmHWM") - before,
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) // 1024


def finished(path: Path) -> dict[Point, dict[str, Any]]:
    """Return the runs recorded in a file so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {Point(*(run[field] for field in Point._fields)): run for run in runs}


def table(runs: Iterable[dict[str, Any]]) -> str:
    """Return the result table in Markdown: mean ± standard deviation over seeds."""
    rows = [
        "| | parameters | epsilon | spent | C | batch | eta | seeds | accuracy, % | loss | CPU, s "
        "| MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[Point, list[dict[str, Any]]] = {}
    for run in runs:
        point = Point(*(run[field] for field in Point._fields))
        groups.setdefault(point._replace(seed=0), []).append(run)
    for setup in SETUPS:
        for point, own in groups.items():
            if point.setup != setup:
                continue
            private = point.epsilon is not None
            cells: list[object] = [setup, f"{own[0]['trained']:,}"]
            cells += [f"{point.epsilon:g}" if private else "none"]
            cells += [f"{max(run['spent'] for run in own):.3f}" if private else ""]
            cells += [f"{point.clip:g}" if private else "", point.batch, f"{point.eta:g}", len(own)]
            cells += [_spread([100 * run["accuracy"][-1] for run in own], 1)]
            cells += [_spread([run["loss"][-1] for run in own], 3)]
            cells += [f"{np.median([run['cpu_s'] for run in own]):.0f}"]
            cells += [f"{np.median([run['peak_mib'] for run in own]):.0f}"]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def work(
    path: Path, todo: Iterable[Any], call: Callable[..., dict[str, Any]], per: int | None = None
) -> None:
    """Append what `call` returns of each item, in a process for every `per` of them."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=per) as pool:
        for item in todo:
            result = pool.submit(call, item).result()
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)


def main() -> None:
    """Do what the command line says, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["tune", "run", "memory"])
    parser.add_argument("--only", help="a setup")
    arguments = parser.parse_args()
    if arguments.what == "memory":
        work(HERE / "memory.jsonl", ["none", "ghost", "hooks"], memory, per=1)
    elif arguments.what:
        tune = arguments.what == "tune"
        path = HERE / ("tuning.jsonl" if tune else "runs.jsonl")
        todo = [p for p in (tuning() if tune else points()) if p not in finished(path)]
        todo = [p for p in todo if arguments.only in (None, p.setup)]
        work(path, todo, job)
    for name in ("tuning", "runs"):
        print(f"\n{name}\n\n{table(finished(HERE / f'{name}.jsonl').values())}")


if __name__ == "__main__":
    main()
