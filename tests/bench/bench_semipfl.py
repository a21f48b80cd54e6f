"""CPU-seconds of SemiPFL's rounds on the `cohort` engine, over those of users one by one.

20 users of made-up wearables train their autoencoders in every round, with the model and the local
work of `scenarios/semipfl_wearable.yaml`, one thread. Each contestant is a process of its own; both
are started anew in turn, so that whatever else the machine does meets them alike. A figure is the
median over the starts of the median round; the first round, which pays for imports, is left out.

    python tests/bench/bench_semipfl.py [starts]

writes `results/semipfl/speed.md`.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "semipfl" / "speed.md"
ENGINES, ROUNDS = ("cohort", "in_process"), 4
WORDS = ["data.subjects=24", "data.windows=262", "device=cpu", "evaluation.clients=none",
         "evaluation.central=false", "rounds=100"]  # fmt: skip
TARGET = 5.0


def contestant(engine: str) -> None:
    """Print the CPU-seconds of a few rounds."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    simulation = Simulation(compose("semipfl_wearable", [*WORDS, f"engine={engine}"]))
    rounds = simulation.loop.run(simulation.runtime.initial_params())
    next(rounds)
    seconds = []
    for _ in range(ROUNDS):
        before = time.process_time()
        next(rounds)
        seconds.append(time.process_time() - before)
    print(statistics.median(seconds))


def main() -> None:
    """Measure, print, and write the page."""
    starts = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(starts):
        for engine in ENGINES:
            command = [sys.executable, __file__, "--contestant", engine]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            seconds[engine].append(float(done.stdout.splitlines()[-1]))
    middle = {engine: statistics.median(values) for engine, values in seconds.items()}
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    page = PAGE.format(
        starts=starts, rounds=ROUNDS, target=TARGET, machine=platform.machine(),
        torch=torch.__version__, cohort=middle["cohort"], one=middle["in_process"],
        ratio=middle["in_process"] / middle["cohort"], low=min(ratios), high=max(ratios),
    )  # fmt: skip
    print(page)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(page)


PAGE = """# What a round of SemiPFL costs

    python tests/bench/bench_semipfl.py {starts}

CPU-seconds of one whole round (hypernetwork, 20 users' autoencoders, the hypernetwork's step),
median of {starts} starts of {rounds} rounds each, the engines in turn, each in a process of its
own; float32, one thread; {machine}, torch {torch}, other work on the machine.

| engine | CPU-s per round |
| --- | ---: |
| `cohort`, all autoencoders together | {cohort:.3f} |
| `in_process`, one by one | {one:.3f} |

One by one costs {ratio:.2f} times as much ({low:.2f} to {high:.2f} over the starts); the target is
{target:g}.

Together, users' gradients are made by the layer rules; one by one, by `torch.func`, as the
reference makes them, whose dispatch is most of what is saved. Both have the same Adam, batches and
hypernetwork, which is about a fifth of a round together.
"""


if __name__ == "__main__":
    if "--contestant" in sys.argv:
        torch.set_num_threads(1)
        contestant(sys.argv[-1])
    else:
        main()
