"""CPU-seconds per client-round of every engine, at 100, 500 and 1000 clients, side by side.

FedAvg on digits, an MLP 64-32-10, 50 samples per client, one epoch of batch 10; all clients take
part in every round, and nothing is evaluated. Each engine and size runs in a process of its own,
one after another; CPU time is that of the process and of all that it has started. Start-up is
everything until the end of the first round, less one steady round; steady rounds are those after
it, of which medians are shown. Where Ray is not installed its engines are left out.

    python tests/bench/bench_engines.py [rounds] [clients ...]
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
RESULTS = HOME / "results"
SIZES = (100, 500, 1000)
DEVICES = 3
"""Clients of the deployment on loopback: each is two daemons, and a process for every message."""
ENGINES: dict[str, list[str]] = {
    "in_process": [],
    "cohort": [],
    "ray": ["engine.actors=2"],
    "ray_cohort": ["engine.actors=2"],
}
WORDS = [
    "data=digits", "partition=resampled", "partition.samples_per_client=50", "participation=full",
    "model=mlp", "model.hidden=[32]", "client.epochs=1", "client.batch_size=10",
    "evaluation.central=false", "device=cpu",
]  # fmt: skip

Figures = dict[str, float]


def run_here(engine: str, num_clients: int, rounds: int) -> Figures:
    """Run `rounds` steady rounds, and one before them, in this process."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation
    from tests.bench.process_tree import ProcessTree

    tree, started = ProcessTree(), time.time()
    words = [*WORDS, f"partition.num_clients={num_clients}", f"rounds={rounds + 1}"]
    config = compose("base", [*words, f"engine={engine}", *ENGINES[engine]])
    with closing(Simulation(config)) as simulation:
        cpu_s, wall_s = [], []
        for _, report in simulation.loop.run(simulation.runtime.initial_params()):
            assert len(report.admitted) == num_clients
            cpu_s.append(tree.cpu_seconds())
            wall_s.append(time.time() - started)
    return figures_of(cpu_s, wall_s, num_clients)


def figures_of(cpu_s: list[float], wall_s: list[float], num_clients: int) -> Figures:
    """Return the figures of a run from the time after each of its rounds."""
    steady_cpu_s = statistics.median(b - a for a, b in pairwise(cpu_s))
    steady_wall_s = statistics.median(b - a for a, b in pairwise(wall_s))
    return {
        "cpu_ms": 1e3 * steady_cpu_s / num_clients,
        "wall_ms": 1e3 * steady_wall_s / num_clients,
        "start_cpu_s": cpu_s[0] - steady_cpu_s,
        "start_wall_s": wall_s[0] - steady_wall_s,
    }


def run_apart(engine: str, num_clients: int, rounds: int) -> Figures:
    """Run an engine in a process of its own."""
    with tempfile.TemporaryDirectory() as mark:
        done = subprocess.run(
            [sys.executable, __file__, "--one", engine, str(num_clients), str(rounds)],
            env={**os.environ, "PYTHONPATH": str(HOME), "FEDSIM_BENCH_MARK": mark},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def deploy_here(num_clients: int, rounds: int) -> Figures:
    """Do the same on a deployment on loopback, TLS and authentication on."""
    from fedsim.deploy.local import LocalDeployment
    from fedsim.deploy.sitting import Sitting, configure
    from fedsim.progress import Display
    from fedsim.results import RunFolder
    from fedsim.rounds import RoundReport
    from tests.bench.process_tree import ProcessTree

    tree, started = ProcessTree(), time.time()
    tree.watch()
    cpu_s, wall_s = [], []

    class Clock(Display):
        def show(self, report: RoundReport, last_round: int) -> None:
            assert len(report.admitted) == num_clients
            cpu_s.append(tree.cpu_seconds())
            wall_s.append(time.time() - started)

    with tempfile.TemporaryDirectory() as place:
        words = [*WORDS, f"rounds={rounds + 1}", f"output.root={place}"]
        folder = RunFolder.create(configure("base", words, num_clients))
        sitting = Sitting(config=folder.config(), folder=str(folder.path))
        with LocalDeployment(folder.path / "link", num_clients, secure=True) as deployment:
            sitting.on(deployment.superlink, Clock())
    return figures_of(cpu_s, wall_s, num_clients)


def table(rows: list[tuple[str, int, Figures]], rounds: int, command: str) -> str:
    """Return the whole page."""
    in_process = {clients: f["cpu_ms"] for engine, clients, f in rows if engine == "in_process"}
    lines = [
        "# What a client's round costs on each engine",
        "",
        "FedAvg on digits, MLP 64-32-10, 50 samples per client, one epoch of batch 10, all clients",
        "in every round, no evaluation. CPU time of the whole process tree, Ray's daemons counted;",
        f"medians of {rounds} steady rounds. Start-up is all that comes before the second round,",
        f"less one steady round. The engines on Ray have two actors, on {os.cpu_count()} cores.",
        "",
        f"    {command}",
        "",
        "| clients | engine | CPU ms per client-round | times in_process "
        "| wall ms per client-round | start-up, CPU-s | start-up, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for engine, clients, f in rows:
        times = f"{f['cpu_ms'] / in_process[clients]:.2f}" if clients in in_process else "-"
        lines.append(
            f"| {clients} | {engine} | {f['cpu_ms']:.2f} | {times} | {f['wall_ms']:.2f} "
            f"| {f['start_cpu_s']:.1f} | {f['start_wall_s']:.1f} |"
        )
    lines += [
        "",
        "`ray` is Flower's own engine: each client is a message to a process. It looks through all",
        "messages for every node ten times a second, so a client costs more the more there are.",
        "`deployment` is SuperLink and SuperNodes on loopback, TLS and authentication on: each",
        "message starts a process, which imports PyTorch; the rest of its wall time is Flower's",
        "polling. It has few clients because each is two daemons.",
        "Wall time is only as good as the machine was idle.",
    ]
    scaling = RESULTS / "ray_scaling.json"
    if scaling.is_file():
        got = json.loads(scaling.read_text())
        lines += [
            "",
            f"`ray_cohort` with two actors is {got['ratio']:.2f} times as fast as with one, on a",
            f"compute-bound CNN (wall clock, median of {len(got['one_s'])} pairs of rounds):",
            "",
            f"    {got['command']}",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write `results/engines.md` and the figures behind it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sizes = [int(word) for word in sys.argv[2:]] or list(SIZES)
    has_ray = importlib.util.find_spec("ray") is not None
    rows = []
    for clients in sizes:
        for engine in ENGINES:
            if has_ray or not engine.startswith("ray"):
                rows.append((engine, clients, run_apart(engine, clients, rounds)))
                print(*rows[-1], flush=True)
    rows.append(("deployment", DEVICES, run_apart("deployment", DEVICES, rounds)))
    print(*rows[-1], flush=True)
    command = " ".join(["python tests/bench/bench_engines.py", *sys.argv[1:]])
    page = table(rows, rounds, command)
    print(page)
    if has_ray:
        told = {"rounds": rounds, "machine": platform.machine(), "cores": os.cpu_count(),
                "python": platform.python_version(), "rows": rows}  # fmt: skip
        (RESULTS / "engines.json").write_text(json.dumps(told, indent=1) + "\n")
        (RESULTS / "engines.md").write_text(page)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        engine, clients, steady = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
        deployed = engine == "deployment"
        figures = deploy_here(clients, steady) if deployed else run_here(engine, clients, steady)
        print(json.dumps(figures))
    else:
        main()
