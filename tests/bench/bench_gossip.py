"""CPU-seconds of gossip among 1000 nodes on the `cohort` engine, over those of nodes one by one.

Every node trains an MLP of its own on a few made-up samples, and averages it with its neighbours on
a random regular graph of degree 4 (D-SGD), in one thread. Each contestant is a process of its own;
both are started anew in turn, so that whatever else the machine does meets them alike. A figure is
the median over the starts of the median round; the first round, which pays for imports and first
allocations, is left out. Beside whole rounds: the averaging alone, on the cohort engine. Nothing is
evaluated, so that the distance of the nodes' models, which evaluated rounds report, is left out.

    python tests/bench/bench_gossip.py [starts]

writes `results/topology/speed.md`.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "topology" / "speed.md"
ENGINES, ROUNDS, TARGET = ("cohort", "in_process"), 3, 10.0
NODES, SAMPLES = 1000, 20
SIZES = {
    "64-32-10, 1 step": (["model.hidden=[32]"], "client.steps=1"),
    "64-32-10, 5 steps": (["model.hidden=[32]"], "client.steps=5"),
    "64-128-64-10, 5 steps": (["model.hidden=[128,64]"], "client.steps=5"),
    "64-512-10, 5 steps": (["model.hidden=[512]"], "client.steps=5"),
}


def contestant(engine: str, size: str) -> None:
    """Print the CPU-seconds of a round, and of its averaging."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation
    from strategies.dsgd import DSGD

    hidden, steps = SIZES[size]
    rng = np.random.default_rng(0)
    total = 4 * SAMPLES * NODES // 3  # a quarter is for testing
    x, y = rng.normal(size=(total, 64)), rng.integers(10, size=total)
    file = Path(tempfile.mkdtemp()) / "samples.npz"
    np.savez(file, x=x, y=y)
    words = [
        *(*hidden, steps, "client.epochs=null", "client.batch_size=10", "client.lr=0.05"),
        *("strategy=dsgd", "topology=random_regular", f"partition.num_clients={NODES}"),
        *("data=table", f"data.file={file}", "data.x=[x]", "data.scale=none"),
        *("participation=full", "partition=iid", "device=cpu", "rounds=100", f"engine={engine}"),
        *("evaluation.central=false", "evaluation.clients=none", "evaluation.every=100"),
    ]
    simulation = Simulation(compose("base", words))
    mixing: list[float] = []
    mixed = DSGD.mixed

    def timed(*given):  # type: ignore[no-untyped-def]
        before = time.process_time()
        result = mixed(*given)
        mixing.append(time.process_time() - before)
        return result

    DSGD.mixed = timed  # type: ignore[method-assign]
    rounds = simulation.loop.run(simulation.runtime.initial_params())
    next(rounds)
    seconds = []
    for _ in range(ROUNDS):
        before = time.process_time()
        _, report = next(rounds)
        seconds.append(time.process_time() - before)
        assert len(report.admitted) == NODES
    print(statistics.median(seconds), statistics.median(mixing[1:]))


def main() -> None:
    """Measure, print, and write the page."""
    starts = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rows = []
    for size in SIZES:
        seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        mixing = []
        for _ in range(starts):
            for engine in ENGINES:
                command = [sys.executable, __file__, "--contestant", engine, size]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                whole, part = map(float, done.stdout.splitlines()[-1].split())
                seconds[engine].append(whole)
                mixing += [part] if engine == "cohort" else []
        cohort, one = (statistics.median(seconds[engine]) for engine in ENGINES)
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        rows.append(
            f"| {size} | {cohort:.3f} | {statistics.median(mixing):.3f} | {one:.3f} | "
            f"{one / cohort:.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
        )
        print(rows[-1], flush=True)
    page = PAGE.format(
        starts=starts, rounds=ROUNDS, nodes=NODES, samples=SAMPLES, target=TARGET,
        machine=platform.machine(), torch=torch.__version__, table="\n".join(rows),
    )  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(page)


PAGE = """# What a round of gossip costs

    python tests/bench/bench_gossip.py {starts}

CPU-seconds of one whole round of D-SGD among {nodes} nodes (each its own MLP and {samples} made-up
samples of 64 numbers, batches of 10, random regular graph of degree 4): local steps, admission,
averaging. Median of {starts} starts of {rounds} rounds each, the engines in turn, each start a
process of its own; float32, one thread; {machine}, torch {torch}, other work on the machine. The
target is {target:g}.

| model, local work | `cohort` | of it, averaging | `in_process` | ratio (over the starts) |
| --- | ---: | ---: | ---: | ---: |
{table}

`in_process` takes node by node. What it pays for each node is PyTorch's dispatch and the messages,
which the cohort engine shares among nodes; what each node has of its own, its weights, both read
and write in every step. So the ratio falls as models grow.
"""


if __name__ == "__main__":
    if "--contestant" in sys.argv:
        torch.set_num_threads(1)
        contestant(*sys.argv[-2:])
    else:
        main()
