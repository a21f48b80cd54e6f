"""Accuracy over bytes of encoded updates on digits: every encoding, some and all clients a round.

    python results/compression/reproduce.py --run

Runs every (who, encoding, seed) through the ordinary scenario and appends each finished one to
runs.jsonl, so that an interrupted call goes on where it stopped; then draws compression.png from
that file and prints README.md's tables.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
SEEDS = 5
TARGET = 0.9
"""The accuracy whose bytes are compared."""
WHO = {
    "10 of 100 clients": ["participation.clients_per_round=10", "rounds=200"],
    "all of 20 clients": ["partition.num_clients=20", "participation=full", "rounds=100"],
}
ENCODINGS = {
    "none": ["compression=none"],
    "QSGD, 5 bits": ["compression=qsgd"],
    "QSGD, 2 bits": ["compression=qsgd", "compression.levels=1"],
    "uniform, 4 bits": ["compression=uniform"],
    "uniform, 2 bits": ["compression=uniform", "compression.bits=2"],
    "top 5 %, feedback": ["compression=top_k"],
    "top 5 %": ["compression=top_k", "compression.error_feedback=false"],
    "top 0.5 %, feedback": ["compression=top_k", "compression.share=0.005"],
    "top 0.5 %": [
        "compression=top_k", "compression.share=0.005", "compression.error_feedback=false"
    ],
}  # fmt: skip

Point = tuple[str, str, int]


def job(who: str, encoding: str, seed: int) -> dict[str, Any]:
    """Run one point of the grid and return its evaluated rounds."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    words = [*WHO[who], *ENCODINGS[encoding], f"seed={seed}", "devices=equal"]
    simulation = Simulation(compose("quickstart", [*words, "device=cpu", "evaluation.every=2"]))
    rounds, accuracy, up_mb, each, total = [], [], [], 0.0, 0.0
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        sent = report.footprint.get("train", {}).get("bytes-up", [])
        total += sum(sent)
        each = max([each, *sent])
        if report.central:
            rounds.append(report.server_round)
            accuracy.append(round(report.central["accuracy"], 6))
            up_mb.append(round(total / 1e6, 6))
    return {
        "who": who,
        "encoding": encoding,
        "seed": seed,
        "config": simulation.config.hash[:12],
        "reply_bytes": each,
        "rounds": rounds,
        "accuracy": accuracy,
        "up_mb": up_mb,
    }


def key(run: dict[str, Any]) -> Point:
    """Return what identifies a point of the grid."""
    return run["who"], run["encoding"], run["seed"]


def finished() -> list[dict[str, Any]]:
    """Return the runs recorded so far."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def of(runs: list[dict[str, Any]], who: str, encoding: str) -> list[dict[str, Any]]:
    """Return the runs of one cell, by seed."""
    return sorted((run for run in runs if key(run)[:2] == (who, encoding)), key=key)


def first(run: dict[str, Any]) -> int | None:
    """Return the first evaluation at which a run has reached the target; None if it never did."""
    reached = np.flatnonzero(np.array(run["accuracy"]) >= TARGET)
    return int(reached[0]) if len(reached) else None


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the result tables in Markdown."""
    lines = []
    for who in WHO:
        lines += [
            f"### {who}, {SEEDS} seeds",
            "",
            f"| encoding | bytes of a reply | accuracy at the end, % | rounds to {TARGET:.0%} | "
            f"MB up to {TARGET:.0%} |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for encoding in ENCODINGS:
            cell = of(runs, who, encoding)
            if not cell:
                continue
            end = 100 * np.array([np.mean(run["accuracy"][-5:]) for run in cell])
            at = [first(run) for run in cell]
            when = [(r["rounds"][i], r["up_mb"][i]) for r, i in zip(cell, at, strict=True) if i]
            reached = f" ({len(when)} of {len(cell)})" if len(when) < len(cell) else ""
            rounds, mb = np.mean(when, axis=0) if when else (np.nan, np.nan)
            told = (f"{rounds:.0f}{reached}", f"{mb:.2f}") if when else ("never", "–")
            lines.append(
                f"| {encoding} | {cell[0]['reply_bytes']:,.0f} | {end.mean():.1f} ± "
                f"{end.std(ddof=1) if len(end) > 1 else 0:.1f} | {told[0]} | {told[1]} |"
            )
        lines.append("")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]]) -> None:
    """Draw the mean accuracy of each encoding over the bytes that clients have sent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WHO), figsize=(11, 4.2), sharey=True)
    for axis, who in zip(axes, WHO, strict=True):
        for index, encoding in enumerate(ENCODINGS):
            cell = of(runs, who, encoding)
            if cell:
                accuracy = np.mean([run["accuracy"] for run in cell], axis=0)
                style = "--" if encoding.endswith("%") else "-"
                axis.plot(
                    cell[0]["up_mb"][1:], accuracy[1:], style, color=f"C{index}", label=encoding
                )
        axis.set(title=who, xlabel="MB sent by all clients", xscale="log", ylim=(0.1, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "compression.png", dpi=110)


def main() -> None:
    """Run what is missing, if asked to; draw and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", action="store_true", help="run what is missing first")
    if parser.parse_args().run:
        done = {key(run) for run in finished()}
        for seed, who, encoding in product(range(SEEDS), WHO, ENCODINGS):
            if (who, encoding, seed) in done:
                continue
            line = json.dumps(job(who, encoding, seed))
            with RUNS.open("a") as file:
                file.write(line + "\n")
    runs = finished()
    draw(runs)
    print(tables(runs))


if __name__ == "__main__":
    main()
