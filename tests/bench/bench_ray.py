"""How engine=ray_cohort scales: two actors against one, wall clock, on a compute-bound CNN.

64 clients a round, 50 images of 8 x 8 each, five epochs of batch 10, a CNN of 50,000 parameters.
Teams of one and of two actors stand side by side on one Ray and train the same rounds by turns, so
that both meet the same machine; the ratio is the median over pairs. Run it alone on the machine.

    python tests/bench/bench_ray.py [pairs]
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from fedsim.config import compose
from fedsim.engines import ray_start
from fedsim.records import Params
from fedsim.simulation import Simulation

RESULTS = Path(__file__).resolve().parents[2] / "results"
TARGET = 1.6
WORDS = [
    "data=digits", "data.image=true", "partition=resampled", "partition.num_clients=64",
    "partition.samples_per_client=50", "participation=full", "model=cnn",
    "model.channels=[32,64]", "model.hidden=[128]", "client.epochs=5", "client.batch_size=10",
    "evaluation.central=false", "device=cpu", "engine=ray_cohort",
]  # fmt: skip


def sha(params: Params) -> str:
    """Return a digest of a model."""
    digest = hashlib.sha256()
    for tensor in params.values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Print the ratio and write `results/ray_scaling.json`."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    ray = ray_start.connect("ray_cohort", None, cpus=3)  # places, not cores
    try:
        seconds: dict[int, list[float]] = {1: [], 2: []}
        driver: list[float] = []
        runs, models = {}, {}
        for actors in seconds:
            config = compose("base", [*WORDS, f"engine.actors={actors}", f"rounds={pairs + 1}"])
            simulation = Simulation(config)
            runs[actors] = simulation.loop.run(simulation.runtime.initial_params())
        for pair in range(pairs + 1):
            for actors, rounds in runs.items():
                started, cpu = time.perf_counter(), time.process_time()
                models[actors], _ = next(rounds)
                if pair:  # the first round of each warms up
                    seconds[actors].append(time.perf_counter() - started)
                    driver.append(time.process_time() - cpu)
        assert sha(models[1]) == sha(models[2])
    finally:
        ray.stop()
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    ratio = statistics.median(ratios)
    load, driver_s = os.getloadavg()[0], statistics.median(driver)
    told = {
        "ratio": ratio,
        "ratios": ratios,
        "one_s": seconds[1],
        "two_s": seconds[2],
        "round_loop_cpu_s": driver_s,
        "load": load,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "command": " ".join(["python tests/bench/bench_ray.py", *sys.argv[1:]]),
    }
    (RESULTS / "ray_scaling.json").write_text(json.dumps(told, indent=1) + "\n")
    one, two = (statistics.median(values) for values in seconds.values())
    print(
        f"one actor {one:.2f} s a round, two actors {two:.2f} s: ratio {ratio:.2f} (target "
        f"{TARGET}), pairs {min(ratios):.2f} .. {max(ratios):.2f}; the round loop itself took "
        f"{driver_s:.2f} CPU-s a round; load {load:.1f}"
    )


if __name__ == "__main__":
    main()
