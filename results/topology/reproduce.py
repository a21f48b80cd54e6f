"""Star, hierarchical, gossip and asynchronous training at equal simulated time, on Fashion-MNIST.

    python results/topology/reproduce.py --seeds 5

Tunes the learning rate of each method on a seed of its own, then runs every (method, seed) until
its simulated time is up, and appends each finished run to runs.jsonl, so that an interrupted call
goes on where it stopped; then draws topology.png and writes tables.md. Fashion-MNIST comes from
FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
END, EVERY = 200, 2
"""Simulated seconds of a run, and between two scores."""
SHOWN = (10, 50, 100, 200)
TARGETS = (70, 75, 80)
"""Simulated seconds, and test accuracies in percent, of the tables."""
RATES, TUNING_SEED = (0.01, 0.03, 0.1, 0.3), 100

MSS, PACKET_LOSS = 1460, 1e-3
NEAR, FAR, BACKBONE = 0.040, 0.140, 0.100
"""Round-trip times: of devices to each other and to their edge server, to the cloud, and of edge
servers to the cloud."""


def link(rtt: float, prefix: str = "") -> list[str]:
    """Return a link of some round-trip time: one TCP flow, as fast as its losses let it be."""
    bandwidth = MSS / (rtt * PACKET_LOSS**0.5)
    return [f"topology.{prefix}bandwidth={bandwidth:.0f}", f"topology.{prefix}latency_s={rtt / 2}"]


WORDS = [
    *("data=fashion_mnist", "data.flat=true", "data.train_limit=20000", "partition=dirichlet"),
    *("partition.num_clients=64", "partition.alpha=0.3", "partition.min_size=20", "device=cpu"),
    *("model=mlp", "model.hidden=[64]", "client.epochs=null", "client.steps=20"),
    *("client.batch_size=32", "devices=unequal", "devices.down=4.5e6", "devices.up=1.4e6"),
    *("rounds=1000000", "evaluation.central=false"),
]
HALF = ["participation=uniform", "participation.clients_per_round=32"]
ALL = ["participation=full"]
STAR = ["topology=star", *link(FAR)]
TIERS = ["topology=hierarchical", "topology.edge_servers=8", *link(NEAR), *link(BACKBONE, "cloud_")]
TORUS = ["topology=torus", *link(NEAR)]
METHODS = {
    "FedAvg, star": ["strategy=fedavg", *HALF, *STAR],
    "HierFAVG, 8 edge servers": ["strategy=hierfavg", "strategy.cloud_period=5", *HALF, *TIERS],
    "D-SGD, torus": ["strategy=dsgd", *ALL, *TORUS],
    "K-GT, torus": ["strategy=gradient_tracking", *ALL, *TORUS],
    "FedBuff, star": ["strategy=fedbuff", "strategy.concurrency=32", *ALL, *STAR],
    "FedAsync, star": ["strategy=fedasync", "strategy.concurrency=32", *ALL, *STAR],
}

Point = tuple[str, float, int]


def job(method: str, lr: float, seed: int) -> dict[str, Any]:
    """Run one method until its time is up; return the scores of its model at equal times.

    At each time, the last model that was made by then; of gossip, the mean of the nodes' models,
    and at the times of the table also the mean of the nodes' own scores.
    """
    import torch

    from fedsim.client.sequential import evaluate
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    config = compose("base", [*WORDS, *METHODS[method], f"client.lr={lr}", f"seed={seed}"])
    simulation = Simulation(config)
    runtime, data, strategy = simulation.runtime, simulation.dataset, simulation.strategy
    loop = simulation.loop

    def accuracy(params: dict[str, torch.Tensor]) -> float:
        scores = evaluate(runtime, params, data.test_x, data.test_y, 4096)
        return round(100 * scores["accuracy"], 3)

    def nodes() -> dict[str, torch.Tensor]:
        return {name: rows.clone() for name, rows in getattr(strategy, "nodes", {}).items()}

    started = time.process_time()
    params = runtime.initial_params()
    rounds, megabytes, own = 0, 0.0, nodes()
    run: dict[str, Any] = {"method": method, "lr": lr, "seed": seed, "config": config.hash[:12]}
    run |= {"accuracy": [], "megabytes": [], "rounds": [], "nodes": {}}
    for new, report in loop.run(params):
        now = report.simulated_seconds
        while len(run["accuracy"]) * EVERY < min(now, END + 1e-9):
            at = len(run["accuracy"]) * EVERY
            run["accuracy"].append(accuracy(params))
            run["megabytes"].append(round(megabytes, 3))
            run["rounds"].append(rounds)
            if own and at in SHOWN:
                count = len(next(iter(own.values())))
                scores = [accuracy({n: t[k] for n, t in own.items()}) for k in range(count)]
                run["nodes"][str(at)] = [round(f(scores), 3) for f in (np.mean, np.min)]
        if now > END:
            break
        params, rounds, own = new, report.server_round, nodes()
        megabytes = float(simulation.meter.network.bytes_M.sum()) / 1e6
    run["cpu_seconds"] = round(time.process_time() - started, 1)
    return run


def key(run: dict[str, Any]) -> Point:
    """Return what identifies a run."""
    return run["method"], run["lr"], run["seed"]


def finished() -> dict[Point, dict[str, Any]]:
    """Return the runs recorded so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {key(run): run for run in map(json.loads, lines)}


def once(point: Point) -> dict[str, Any]:
    """Return a run, which is made if it is not recorded yet."""
    recorded = finished().get(point)
    if recorded is not None:
        return recorded
    run = job(*point)
    with RUNS.open("a") as file:
        file.write(json.dumps(run) + "\n")
    print(*point, run["rounds"][-1], run["accuracy"][-1], run["cpu_seconds"], flush=True)
    return run


def best_rate(method: str) -> float:
    """Return the learning rate that is best on the tuning seed, by the mean accuracy over time."""
    worth = {}
    for lr in RATES:
        worth[lr] = float(np.mean(once((method, lr, TUNING_SEED))["accuracy"]))
    return max(worth, key=worth.__getitem__)


def main() -> None:
    """Run what is missing, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    rates = {method: best_rate(method) for method in METHODS}
    for seed in seeds:
        for method in METHODS:
            once((method, rates[method], seed))
    from tables import draw, tables

    own = {m: [once((m, rates[m], seed)) for seed in seeds] for m in METHODS}
    tuning = {m: {lr: once((m, lr, TUNING_SEED)) for lr in RATES} for m in METHODS}
    (HERE / "tables.md").write_text(tables(own, tuning, EVERY, SHOWN, TARGETS))
    draw(own, EVERY, HERE / "topology.png")


if __name__ == "__main__":
    main()
