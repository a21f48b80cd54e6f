"""FedAvg on fedsim, pfl and FedJAX, side by side: one work, each in its own way.

50 of 1000 clients a round, 50 samples each, one epoch of batch 10, plain SGD, float32; images of
28 x 28 random bytes, normalised, labelled by a random linear teacher (a tenth of the labels
redrawn), so that what is learnt shows. Every contestant is a process of its own: fedsim's is
`fedsim run` with its defaults, the run folder written as ever; the others are the apps in `peers/`,
set up as their own examples do. `central` is torch alone, the same number of steps on batches of 10
with no clients.

A round costs (CPU-seconds of a long run - those of a short run) / (rounds between them), so that
start-up, evaluation and reports cancel. Long and short runs of all contestants take turns.

    python tests/bench/bench_peers.py install FOLDER       # pfl and FedJAX, each in a venv there
    python tests/bench/bench_peers.py FOLDER [repetitions]
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
ROOT, PEERS = HERE.parents[2], HERE.parent / "peers"
RESULT = ROOT / "results" / "speed" / "peers.md"
PACKAGES = {
    "pfl": ["pfl==0.6.0", "torch==2.13.0", "dp-accounting>=0.4,<0.6", "packaging<26"],
    "fedjax": ["fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2"],
}
CLIENTS, COHORT, SAMPLES, LR = 1000, 50, 50, 0.05
MODELS = {"linear": "Logistic regression, 784-10", "mlp": "MLP, 784-200-10"}
ROUNDS = {
    "fedsim": {"linear": 201, "mlp": 81},
    "central": {"linear": 81, "mlp": 41},
    "pfl": {"linear": 41, "mlp": 31},
    "fedjax": {"linear": 81, "mlp": 61},
}
"""Rounds of a long run: cheap ones need more of them."""
TITLES = {
    "fedsim": "fedsim",
    "central": "torch alone",
    "pfl": "pfl 0.6.0",
    "fedjax": "FedJAX 0.0.17, JAX 0.10.2",
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process took: CPU- and wall seconds, peak megabytes, and the accuracy reached."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    accuracy: float


def write_data(folder: Path) -> None:
    """Write the data twice: as the IDX files that `data=mnist` reads, and as arrays for others."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((784, 10))
    arrays = {}
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    for part, name, count in (("train", "", CLIENTS * SAMPLES), ("t10k", "test_", 2000)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        x = images.reshape(count, 784).astype(np.float32) / 255
        if part == "train":
            mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)
        x = ((x - mean) / std).astype(np.float32)
        labels = (x @ teacher).argmax(1)
        redrawn = rng.random(count) < 0.1
        labels[redrawn] = rng.integers(0, 10, redrawn.sum())
        arrays |= {f"{name}x": x, f"{name}y": labels}
        for kind, values, dims in (
            ("images-idx3", images, (count, 28, 28)),
            ("labels-idx1", labels.astype(np.uint8), (count,)),
        ):
            head = bytes([0, 0, 8, len(dims)]) + np.array(dims, ">u4").tobytes()
            (folder / "mnist" / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
    np.savez(folder / "data.npz", **arrays)


def command(
    contestant: str, python: dict[str, str], data: Path, model: str, rounds: int
) -> list[str]:
    """Return the words that start one contestant."""
    if contestant != "fedsim":
        script = str(PEERS / f"{contestant}{'' if contestant == 'central' else '_peer'}.py")
        return [python[contestant], script, str(data / "data.npz"), model, str(rounds)]
    return [
        python["fedsim"], "-m", "fedsim.cli", "run", "scenario=base",
        "data=mnist", f"data.root={data}", "data.flat=true", "data.normalise=true",
        f"partition.num_clients={CLIENTS}", f"participation.clients_per_round={COHORT}",
        f"model={model}", f"client.lr={LR}", f"rounds={rounds}", f"evaluation.every={rounds}",
        f"output.root={data / 'runs'}",
    ]  # fmt: skip


def measure(words: list[str]) -> Cost:
    """Run one process to its end, and return what it and those it has waited for took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started, peak_mb = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, cwd=ROOT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            time.sleep(0.1)
        wall = time.perf_counter() - started
        process.returncode = status
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{text[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(cpu_s=cpu, wall_s=wall, peak_mb=peak_mb, accuracy=accuracy_in(text))


def _peak_mb(pid: int) -> float:
    """Return the most that a process has had in memory; 0 once it is over."""
    # `ru_maxrss` would be that of this process, of which the child is a copy before it starts.
    try:
        said = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(said[1]) / 1024 if said else 0.0


def accuracy_in(text: str) -> float:
    """Return the last accuracy that a contestant has printed."""
    said = re.findall(r"accuracy[ =:]+([0-9.]+)", text)
    if not said:
        raise SystemExit(f"no accuracy in:\n{text[-2000:]}")
    return float(said[-1])


def install(folder: Path) -> None:
    """Make the peers' environments."""
    for peer, packages in PACKAGES.items():
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        python = str(folder / peer / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)


def main() -> None:
    """Install, or measure and write `results/speed/peers.md`."""
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]))
        return
    folder = Path(sys.argv[1])
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    peers = {p: str(folder / p / "bin" / "python") for p in PACKAGES}
    python = {"fedsim": sys.executable, "central": sys.executable, **peers}
    names = [n for n in ROUNDS if n not in peers or Path(python[n]).exists()]
    costs: dict[tuple[str, str, str], list[Cost]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        write_data(data)
        for _ in range(repetitions):
            for model in MODELS:
                for name in names:
                    for length, rounds in (("short", 1), ("long", ROUNDS[name][model])):
                        cost = measure(command(name, python, data, model, rounds))
                        costs[model, name, length].append(cost)
                        print(model, name, rounds, cost, flush=True)
    RESULT.write_text(page(names, costs, repetitions, os.getloadavg()[1]))
    print(RESULT.read_text())


def page(
    names: list[str],
    costs: dict[tuple[str, str, str], list[Cost]],
    repetitions: int,
    load: float,
) -> str:
    """Return the tables."""
    lines = [PAGE.format(repetitions=repetitions, load=load, machine=platform.machine())]
    for model in MODELS:
        each = {name: per_round(costs, model, name) for name in names}
        lines += [
            f"## {MODELS[model]}", "",
            "| | CPU-ms per round (each pair of runs) | times fedsim | first round: CPU-s "
            "| wall, s | peak MB | accuracy, after rounds |",
            "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        ]  # fmt: skip
        for name in names:
            middle, times = statistics.median(each[name]), statistics.median(each["fedsim"])
            first, last = costs[model, name, "short"], costs[model, name, "long"]
            spread = ", ".join(f"{1e3 * v:.3g}" for v in sorted(each[name]))
            lines.append(
                f"| {TITLES[name]} | **{1e3 * middle:.3g}** ({spread}) | {middle / times:.2f} "
                f"| {_middle(first, 'cpu_s'):.1f} | {_middle(first, 'wall_s'):.1f} "
                f"| {_middle(last, 'peak_mb'):.0f} "
                f"| {_middle(last, 'accuracy'):.3f}, {ROUNDS[name][model]} |"
            )
        lines.append("")
    return "\n".join(lines)


def per_round(costs: dict[tuple[str, str, str], list[Cost]], model: str, name: str) -> list[float]:
    """Return the CPU-seconds of a round, by each pair of a short and a long run."""
    between = ROUNDS[name][model] - 1
    pairs = zip(costs[model, name, "short"], costs[model, name, "long"], strict=True)
    return [(long.cpu_s - short.cpu_s) / between for short, long in pairs]


def _middle(costs: list[Cost], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in costs)


PAGE = """# Beside other simulators

    python tests/bench/bench_peers.py install FOLDER
    python tests/bench/bench_peers.py FOLDER {repetitions}

FedAvg, 50 of 1000 clients a round, 50 samples each, one epoch of batch 10, plain SGD, float32: each
contestant does it in its own way and in a process of its own, fedsim by `fedsim run` with its
defaults. A round is (CPU-seconds of a long run - those of a run of one round) / the rounds between;
median over {repetitions} pairs of runs, contestants in turn; two cores ({machine}), other work
beside (load {load:.1f}). *torch alone* takes as many steps on batches of 10, with no clients. The
accuracy is that after the long run, whose rounds are not alike for all.
"""


if __name__ == "__main__":
    main()
