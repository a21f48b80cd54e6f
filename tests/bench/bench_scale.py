"""What a large population costs: the same cohort of 50 out of 10^3, 10^6 and 10^7 virtual clients.

Each run is `scenario=million` in a process of its own, run folder and checkpoints included, with
FedAU, whose state is per client. Runs of the sizes alternate; figures are medians. The claims:

    10^6 clients against 10^3: peak memory within 300 MB, CPU time per round within 1.3 times,
    start-up at most 10 s longer

Peak memory is the process's own (`ru_maxrss`); start-up is from the start of the process until the
first round may begin; a round's time is CPU time, since the machine may do other things as well,
over all rounds but the first ten.

    python tests/bench/bench_scale.py [repetitions] [rounds]
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
RESULTS = HOME / "results" / "scale"
SIZES = (10**3, 10**6, 10**7)
WARM_UP = 10
MEMORY_MB, ROUND_RATIO, START_S = 300.0, 1.3, 10.0
"""The bounds of the claims."""

Figures = dict[str, float]


def run_here(num_clients: int, rounds: int, root: str, started: float) -> Figures:
    """Run the scenario in this process; return its figures.

    Args:
        num_clients: The population.
        rounds: At least a few more than `WARM_UP`.
        root: For the run folder.
        started: When the process was started, as `time.time()` tells.
    """
    from fedsim.config import compose
    from fedsim.lifecycle import Run
    from fedsim.results import RunFolder
    from fedsim.simulation import Simulation

    words = [f"partition.num_clients={num_clients}", f"rounds={rounds}", "device=cpu"]
    config = compose("million", [*words, f"output.root={root}"])
    simulation = Simulation(config)
    assert simulation.loop
    reports = Run(simulation=simulation, folder=RunFolder.create(config)).start()
    next(reports)  # round 0: the evaluation of the initial model
    start_s, start_cpu_s = time.time() - started, time.process_time()
    cpu_s = [time.process_time() for _ in reports]
    timed = len(cpu_s) - WARM_UP
    return {
        "start_s": start_s,
        "start_cpu_s": start_cpu_s,
        "round_cpu_ms": 1e3 * (cpu_s[-1] - cpu_s[WARM_UP - 1]) / timed,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_apart(num_clients: int, rounds: int) -> Figures:
    """Run the scenario in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        words = [str(num_clients), str(rounds), root, str(time.time())]
        done = subprocess.run(
            [sys.executable, __file__, "--one", *words],
            env={"PYTHONPATH": str(HOME), "PATH": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(sizes: tuple[int, ...], repetitions: int, rounds: int) -> dict[int, Figures]:
    """Return the median figures of each population; the runs alternate."""
    seen: dict[int, list[Figures]] = {size: [] for size in sizes}
    for _ in range(repetitions):
        for size in sizes:
            seen[size].append(run_apart(size, rounds))
    return {
        size: {name: statistics.median(f[name] for f in found) for name in found[0]}
        for size, found in seen.items()
    }


def excess(small: Figures, large: Figures) -> Figures:
    """Return what the larger population costs more: the quantities that are bounded."""
    return {
        "memory_mb": large["peak_mb"] - small["peak_mb"],
        "round_ratio": large["round_cpu_ms"] / small["round_cpu_ms"],
        "start_s": large["start_s"] - small["start_s"],
    }


def table(medians: dict[int, Figures]) -> str:
    """Return the figures as a table in Markdown."""
    small = medians[min(medians)]
    lines = [
        "| clients | start-up, s | CPU time per round, ms | peak memory, MB | more memory, MB "
        "| round, times | start-up, s more |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, figures in medians.items():
        more = excess(small, figures)
        lines.append(
            f"| {size:,} | {figures['start_s']:.1f} | {figures['round_cpu_ms']:.1f} "
            f"| {figures['peak_mb']:.0f} | {more['memory_mb']:+.0f} | {more['round_ratio']:.2f} "
            f"| {more['start_s']:+.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table and the figures to `results/scale`."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 110
    medians = measure(SIZES, repetitions, rounds)
    text = table(medians)
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scale.md").write_text(
        "# A large population costs what its cohort costs\n\n"
        "`scenario=million`: FedAU, 50 clients a round of 50 samples each, MLP 64-200-10, a "
        "checkpoint\nevery 10 rounds. "
        f"Medians of {repetitions} alternating runs of {rounds} rounds, each in a process of its "
        "own, one CPU\nthread.\n\n"
        f"    python tests/bench/bench_scale.py {repetitions} {rounds}\n\n"
        f"{text}\n\n"
        f"Claimed for 10^6 clients, against 10^3: at most {MEMORY_MB:.0f} MB more, a round of at "
        f"most {ROUND_RATIO} times,\nat most {START_S:.0f} s more to start. A client is an index: "
        "its samples are drawn when it is asked, and its\nstate takes memory once it has taken "
        "part.\n"
    )
    figures = {
        "repetitions": repetitions,
        "rounds": rounds,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "medians": {str(size): values for size, values in medians.items()},
    }
    (RESULTS / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        clients, count, folder, began = sys.argv[2:]
        print(json.dumps(run_here(int(clients), int(count), folder, float(began))))
    else:
        main()
