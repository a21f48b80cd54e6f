"""Made-up run folders, as a run writes them, without running anything.

To look at a report: `python tests/report/conftest.py FOLDER [--clients N] [--rounds N]`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

MakeRun = Callable[..., Path]


def make_run(
    run: Path,
    *,
    clients: int = 20,
    rounds: int = 12,
    planned: int | None = None,
    task: str = "classification",
    name: str = "fedau_fashion",
    per_client: bool = True,
    faults: bool = True,
    seed: int = 0,
) -> Path:
    """Write a folder as a finished run of uneven participation leaves it behind."""
    rng = np.random.default_rng(seed)
    run.mkdir(parents=True, exist_ok=True)
    _write_start(run, rng, clients, planned or rounds, task, name)
    lines = list(_rounds(rng, clients, rounds, task, per_client, faults))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "status": "finished",
        "server_round": rounds,
        "checkpoint_round": rounds,
        "seconds": sum(line["seconds"] for line in lines),
        "metrics": {**lines[-1]["train"], **lines[-1]["central"]},
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=1))
    return run


def _rounds(rng, clients, rounds, task, per_client, faults):
    metric = "accuracy" if task == "classification" else "mse"
    rate_N = rng.beta(1.2, 2.0, clients).clip(0.03)
    skill_N = rng.normal(0, 0.07, clients)
    for r in range(rounds + 1):
        progress = 1 - np.exp(-4 * r / max(rounds, 1))
        accuracy = 0.1 + 0.76 * progress + rng.normal(0, 0.012) * (r > 0)
        loss = 2.3 * np.exp(-2.2 * progress) + abs(rng.normal(0, 0.02))
        score = accuracy if task == "classification" else loss
        line = {
            "server_round": r,
            "asked": 0,
            "admitted": [],
            "rejected": {},
            "details": [],
            "train": {},
            "clients": {},
            "central": {"loss": loss, metric: score},
            "per_client": {},
            "seconds": 0.05 + 0.01 * float(rng.random()),
        }
        if r:
            asked = np.flatnonzero(rng.random(clients) < rate_N)
            fate = rng.choice(4, len(asked), p=[0.93, 0.03, 0.02, 0.02] if faults else [1, 0, 0, 0])
            line["asked"] = len(asked)
            line["admitted"] = asked[fate == 0].tolist()
            for code, reason in ((1, "error"), (2, "non-finite")):
                if (fate == code).any():
                    line["rejected"][reason] = int((fate == code).sum())
            for k in asked[fate == 2][:5].tolist():
                line["details"].append(f"reply of {k} rejected (non-finite): non-finite")
            line["train"] = {"train-loss": loss * 0.8, "num-examples": float(50 * len(asked))}
            if per_client:
                own_N = score + skill_N + rng.normal(0, 0.02, clients)
                own_N = own_N.clip(0, 1) if task == "classification" else np.abs(own_N)
                line["per_client"] = {
                    "client-index": [float(k) for k in range(clients)],
                    "num-examples": [10.0] * clients,
                    metric: own_N.tolist(),
                }
                line["clients"] = {metric: float(own_N.mean()), "num-examples": 10.0 * clients}
        yield line


def _write_start(run, rng, clients, planned, task, name):
    shown = min(clients, 200)
    share_KC = rng.dirichlet([0.3] * 10, shown)
    histogram = [rng.multinomial(int(rng.integers(40, 400)), p).tolist() for p in share_KC]
    classes = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat"]
    classes += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    partition = {
        "num_clients": clients,
        "clients": np.linspace(0, clients - 1, shown).astype(int).tolist(),
        "histogram": histogram,
        "sizes": [sum(row) for row in histogram],
        "class_names": classes if task == "classification" else [],
    }
    overrides = ["strategy=fedau", f"rounds={planned}"]
    command = ["fedsim", "run", f"scenario={name}", *overrides]
    environment = {
        "command": command,
        "device": "cpu",
        "device_name": "CPU",
        "git": {"changed": False, "commit": "0123456789abcdef0123456789abcdef01234567"},
        "platform": "Linux-6.1-x86_64",
        "python": "3.11.2",
        "seed": 0,
        "started": "2026-01-31T09:30:00+0000",
        "threads": 1,
        "versions": {"flwr": "1.41.0", "numpy": "2.4.6", "torch": "2.13.0"},
    }
    config = f"""\
# scenario: {json.dumps(name)}
# overrides: {json.dumps(overrides)}
name: {json.dumps(name)}
seed: 0
rounds: {planned}
evaluation:
  every: 1
  clients: all
data:
  _target_: fedsim.data.bundled.Bundled
  name: fashion_mnist
partition:
  _target_: fedsim.partition.dirichlet.Dirichlet
  num_clients: {clients}
  alpha: 0.3
model:
  _target_: fedsim.models.mlp.MLP
strategy:
  _target_: strategies.fedau.FedAU
  cutoff: 50
engine:
  _target_: fedsim.engines.cohort.Cohort
"""
    statement = "none: no privacy mechanism; every update reveals what its samples reveal"
    (run / "config.yaml").write_text(config)
    (run / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
    (run / "env.json").write_text(json.dumps(environment, indent=1))
    (run / "partition.json").write_text(json.dumps(partition))
    (run / "privacy.json").write_text(json.dumps({"statement": statement}))


@pytest.fixture
def fake_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run folder; its keywords are those of `make_run`."""

    def make(**settings) -> Path:
        return make_run(tmp_path / "run", **settings)

    return make


if __name__ == "__main__":
    from fedsim.report.html import write_report

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--task", default="classification")
    given = parser.parse_args()
    made = make_run(given.folder, clients=given.clients, rounds=given.rounds, task=given.task)
    print(write_report(made))
