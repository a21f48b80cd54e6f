"""What scale costs: populations of 10^2 to 10^7 at a cohort of 50, cohorts of 10 to 10^4 of 10^6.

Each run is `scenario=million` in a process of its own, run folder and checkpoints included, with
FedAU, whose state is per client. Runs of the points alternate; figures are medians. The claims:

    10^6 clients against 10^3: peak memory within 300 MB, CPU time per round within 1.3 times,
    start-up at most 10 s longer; 10^7 clients start within 20 s and 2 GB

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
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
RESULTS = HOME / "results" / "scale"
SIZES, COHORT = (10**2, 10**3, 10**4, 10**5, 10**6, 10**7), 50
COHORTS, OF = (10, 100, 1000, 10**4), 10**6
WARM_UP = 10
MEMORY_MB, ROUND_RATIO, START_S = 300.0, 1.3, 10.0
"""The bounds of the claims."""

Figures = dict[str, float]
Point = tuple[int, int]
"""(clients, of which so many train in a round)"""


def run_here(point: Point, rounds: int, root: str, started: float) -> Figures:
    """Run the scenario in this process; return its figures.

    Args:
        point: Population and cohort.
        rounds: At least a few more than `WARM_UP`.
        root: For the run folder.
        started: When the process was started, as `time.time()` tells.
    """
    from fedsim.config import compose
    from fedsim.lifecycle import Run
    from fedsim.results import RunFolder
    from fedsim.simulation import Simulation

    clients, cohort = point
    words = [f"partition.num_clients={clients}", f"participation.clients_per_round={cohort}"]
    words += [f"rounds={rounds}", "device=cpu", f"output.root={root}"]
    config = compose("million", words)
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


def run_apart(point: Point, rounds: int) -> Figures:
    """Run the scenario in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        words = [*map(str, point), str(rounds), root, str(time.time())]
        done = subprocess.run(
            [sys.executable, __file__, "--one", *words],
            env={"PYTHONPATH": str(HOME), "PATH": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(points: Sequence[Point], repetitions: int, rounds: int) -> dict[Point, Figures]:
    """Return the median figures of each point; the runs alternate."""
    seen: dict[Point, list[Figures]] = {point: [] for point in points}
    for _ in range(repetitions):
        for point in points:
            # A large cohort's rounds are long, and vary less.
            few = rounds if point[1] <= 100 else min(rounds, 2 * WARM_UP)
            seen[point].append(run_apart(point, few))
    return {
        point: {name: statistics.median(f[name] for f in found) for name in found[0]}
        for point, found in seen.items()
    }


def excess(small: Figures, large: Figures) -> Figures:
    """Return what the larger population costs more: the quantities that are bounded."""
    return {
        "memory_mb": large["peak_mb"] - small["peak_mb"],
        "round_ratio": large["round_cpu_ms"] / small["round_cpu_ms"],
        "start_s": large["start_s"] - small["start_s"],
    }


def table(medians: dict[Point, Figures]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| clients | a round | start-up, s | CPU ms per round | per client of it | peak MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (clients, cohort), figures in medians.items():
        ms = figures["round_cpu_ms"]
        lines.append(
            f"| {clients:,} | {cohort:,} | {figures['start_s']:.1f} | {ms:.1f} "
            f"| {ms / cohort:.3f} | {figures['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


def past_one_machine(medians: dict[Point, Figures]) -> str:
    """Return what a hundred million clients would take, from what was measured."""
    few, many = medians[SIZES[0], COHORT], medians[SIZES[-1], COHORT]
    small, large = medians[OF, COHORTS[0]], medians[OF, COHORTS[-1]]
    held = 1e6 * (many["peak_mb"] - few["peak_mb"]) / (SIZES[-1] - SIZES[0])
    more = COHORTS[-1] - COHORTS[0]
    each_ms = (large["round_cpu_ms"] - small["round_cpu_ms"]) / more
    each_kb = 1e3 * (large["peak_mb"] - small["peak_mb"]) / more
    return f"""## Past one machine

Of these figures, {held:.0f} bytes are a client of the population, {each_ms:.3f} CPU-ms and
{each_kb:.1f} kB of the process one more client of a cohort. If both go on as they do up to here:

- 10^8 clients take {held * 1e8 / 1e9:.1f} GB more than a hundred, and start on one machine;
  a round of 50 costs what it costs here.
- A cohort of 10^5 takes {each_ms * 1e5 / 1e3:.0f} CPU-s a round in one process; on n actors of
  `engine=ray_cohort`, which cost about 2.4 times as much CPU per client as the cohort engine
  ([engines.md](../engines.md)), {2.4 * each_ms * 1e5 / 1e3:.0f} CPU-s over n. What does not
  divide is the sum of the replies, in this process.
- One machine ends where a model does not fit a device, where the data do not fit a machine, or
  where sums of replies take longer than training them; then comes `engine=ray_cohort` on a
  cluster, and after that a real federation (`fedsim deploy`), whose clients hold their own.

These lines are extrapolated, not measured.
"""


def draw(medians: dict[Point, Figures]) -> None:
    """Draw time and memory over both sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharey="row", layout="constrained")
    sides = [
        (f"clients, {COHORT} a round", {n: medians[n, COHORT] for n in SIZES}),
        (f"clients a round, of {OF:,}", {k: medians[OF, k] for k in COHORTS}),
    ]
    quantities = [("round_cpu_ms", "CPU ms per round"), ("peak_mb", "peak memory, MB")]
    for column, (label, found) in enumerate(sides):
        for row, (name, quantity) in enumerate(quantities):
            panel = panels[row][column]
            panel.semilogx(list(found), [figures[name] for figures in found.values()], "o-")
            if name == "peak_mb":
                panel.set_ylim(bottom=0)
            else:
                panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if not column:
                panel.set_ylabel(quantity)
        panels[1][column].set_xlabel(label)
    figure.savefig(RESULTS / "scale.png", dpi=110)


def main() -> None:
    """Measure, print, and write tables, picture and figures to `results/scale`."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 110
    populations = [(size, COHORT) for size in SIZES]
    cohorts = [(OF, cohort) for cohort in COHORTS]
    medians = measure([*populations, *cohorts], repetitions, rounds)
    text = table(medians)
    print(text)
    more = excess(medians[10**3, COHORT], medians[10**6, COHORT])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scale.md").write_text(
        "# A large population costs what its cohort costs\n\n"
        "`scenario=million`: FedAU, clients of 50 samples each, MLP 64-200-10, a checkpoint every "
        f"10 rounds.\nMedians of {repetitions} alternating runs of {rounds} rounds "
        f"({min(rounds, 2 * WARM_UP)} where more than 100 clients train), each in a\nprocess of "
        "its own, one CPU thread.\n\n"
        f"    python tests/bench/bench_scale.py {repetitions} {rounds}\n\n"
        "![Time and memory over populations and cohorts](scale.png)\n\n"
        f"{text}\n\n"
        f"10^6 clients against 10^3: {more['memory_mb']:+.0f} MB (claimed: at most "
        f"{MEMORY_MB:.0f}), a round of {more['round_ratio']:.2f} times ({ROUND_RATIO}),\n"
        f"{more['start_s']:+.1f} s to start ({START_S:.0f}). A client is an index: its samples are "
        "drawn when it is asked, and its\nstate takes memory once it has taken part.\n\n"
        + past_one_machine(medians)
    )
    draw(medians)
    figures = {
        "repetitions": repetitions,
        "rounds": rounds,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "medians": {f"{clients}/{cohort}": f for (clients, cohort), f in medians.items()},
    }
    (RESULTS / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        clients, cohort, count, folder, began = sys.argv[2:]
        found = run_here((int(clients), int(cohort)), int(count), folder, float(began))
        print(json.dumps(found))
    else:
        main()
