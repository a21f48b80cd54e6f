"""Heavy hitters: ten million users on one machine; and oracles beside two packages from PyPI.

scale     10^7 users in 50 parties, 48-bit items, 24 levels, from the call to load the data to
          the scores of the release, in one process; seconds and peak memory
oracles   one report of each user and the estimate of all frequencies, CPU-seconds: all oracles
          that the packages have, on the same domain, epsilon and users as pure-ldp and
          multi-freq-ldpy (whose non-negative post-processing is left out); and whether the
          estimates have one law: the mean squared error of all, over its formula, is 1 for each

python tests/bench/bench_heavy_hitters.py scale [method]
python tests/bench/bench_heavy_hitters.py oracles      # pip install pure-ldp multi-freq-ldpy
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

USERS, DOMAIN, EPSILON = 20_000, 64, 1.0
ROUNDS = 7
"""In each of them all take their turn; medians of these."""
REPEATS, FEW = 10, 4_000
"""Of the comparison of laws."""

Estimate = Callable[[np.ndarray], np.ndarray]


def scale(method: str) -> dict[str, object]:
    """Run one search over ten million users."""
    from fedsim.config import compose
    from fedsim.simulation import Simulation

    started, cpu = time.perf_counter(), time.process_time()
    sizes = [200_000] * 50
    own = {"tap": ["strategy.shared_levels=10", "rounds=11"],
           "taps": ["strategy.shared_levels=10", "rounds=60"],
           "fedpem": ["rounds=1"]}.get(method, ["rounds=24"])  # fmt: skip
    config = compose(
        "base",
        [
            *("data=zipf", f"data.sizes={sizes}", "data.items=100000", "data.bits=48"),
            *("model=none", "partition=natural", "partition.column=party", "participation=full"),
            *(f"strategy={method}", "strategy.levels=24", *own, "device=cpu"),
            *("privacy=local_reports", "privacy.oracle=adaptive", "evaluation.every=1000"),
        ],
    )
    simulation = Simulation(config)
    *_, (_, report) = simulation.loop.run(simulation.runtime.initial_params())
    return {
        "method": method,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "f1": report.central["f1"],
    }


def ours(name: str, *, summed: bool = False) -> Estimate:
    """Our oracle over DOMAIN symbols; the last is what we call out of the domain."""
    from privacy.frequency_oracles import choose
    from privacy.frequency_oracles.coins import keyed

    oracle, calls = choose(name, EPSILON, np.arange(DOMAIN - 1)), iter(range(10**9))

    def estimate(values: np.ndarray) -> np.ndarray:
        coins = keyed(0, 0, next(calls), "bench")
        total = (
            oracle.total(values, coins)
            if summed
            else oracle.supports(oracle.reports(values, coins))
        )
        return oracle.estimate(total, len(values))

    return estimate


def pure_ldp(name: str) -> Estimate:
    """The package pure-ldp."""
    from pure_ldp.frequency_oracles.direct_encoding import DEClient, DEServer
    from pure_ldp.frequency_oracles.hadamard_response import (
        HadamardResponseClient,
        HadamardResponseServer,
    )
    from pure_ldp.frequency_oracles.local_hashing import LHClient, LHServer
    from pure_ldp.frequency_oracles.unary_encoding import UEClient, UEServer

    def estimate(values: np.ndarray) -> np.ndarray:
        same = {"epsilon": EPSILON, "d": DOMAIN, "index_mapper": lambda x: x}
        client, server = {
            "krr": lambda: (DEClient(**same), DEServer(**same)),
            "oue": lambda: (UEClient(**same, use_oue=True), UEServer(**same, use_oue=True)),
            "sue": lambda: (UEClient(**same, use_oue=False), UEServer(**same, use_oue=False)),
            "hadamard": lambda: (
                HadamardResponseClient(**same, hash_funcs=None),
                HadamardResponseServer(**same),
            ),
            "olh": lambda: (LHClient(**same, use_olh=True), LHServer(**same, use_olh=True)),
        }[name]()
        for value in values.tolist():
            server.aggregate(client.privatise(value))
        domain = range(DOMAIN - 1)
        return np.array([server.estimate(v, suppress_warnings=True) for v in domain]) / len(values)

    return estimate


def multi_freq(name: str) -> Estimate:
    """The package multi-freq-ldpy; its reports, and the unbiased estimate."""
    from multi_freq_ldpy.pure_frequency_oracles.GRR import GRR_Client
    from multi_freq_ldpy.pure_frequency_oracles.SS import SS_Client
    from multi_freq_ldpy.pure_frequency_oracles.UE import UE_Client

    e = math.exp(EPSILON)

    def estimate(values: np.ndarray) -> np.ndarray:
        if name == "krr":
            reports = [GRR_Client(v, DOMAIN, EPSILON) for v in values.tolist()]
            counts = np.bincount(reports, minlength=DOMAIN)
            p, q = e / (e + DOMAIN - 1), 1 / (e + DOMAIN - 1)
        elif name == "subset":
            sets = [SS_Client(v, DOMAIN, EPSILON) for v in values.tolist()]
            counts, w = np.bincount(np.concatenate(sets), minlength=DOMAIN), len(sets[0])
            p = w * e / (w * e + DOMAIN - w)
            q = (p * (w - 1) + (1 - p) * w) / (DOMAIN - 1)
        else:
            own, best = values.tolist(), name == "oue"
            counts = np.sum([UE_Client(v, DOMAIN, EPSILON, best) for v in own], axis=0)
            half = math.exp(EPSILON / 2)
            p, q = (0.5, 1 / (e + 1)) if best else (half / (half + 1), 1 / (half + 1))
        found: np.ndarray = (counts[: DOMAIN - 1] / len(values) - q) / (p - q)
        return found

    return estimate


def multi_freq_hashing(name: str) -> Estimate:
    """The package multi-freq-ldpy's local hashing: its reports, counted as its aggregator does."""
    import xxhash
    from multi_freq_ldpy.pure_frequency_oracles.LH import LH_Client

    e = math.exp(EPSILON)
    g = round(e) + 1  # one more than ours at this epsilon
    p, q = e / (e + g - 1), 1 / g

    def estimate(values: np.ndarray) -> np.ndarray:
        reports = [LH_Client(v, DOMAIN, EPSILON, name == "olh") for v in values.tolist()]
        counts = np.zeros(DOMAIN - 1)
        for told, seed in reports:
            for v in range(DOMAIN - 1):
                if told == xxhash.xxh32(str(v), seed=seed).intdigest() % g:
                    counts[v] += 1
        found: np.ndarray = (counts / len(values) - q) / (p - q)
        return found

    return estimate


def law(estimate: Estimate, name: str) -> float:
    """Return the mean squared error of all estimates over its formula: 1 ± 0.06 (one sigma)."""
    from privacy.frequency_oracles import choose

    oracle = choose(name, EPSILON, np.arange(DOMAIN - 1))
    values = np.random.default_rng(1).zipf(1.5, 4 * FEW)
    values = (values[values <= DOMAIN] - 1)[:FEW]
    true = np.bincount(values, minlength=DOMAIN)[: DOMAIN - 1] / len(values)
    errors = np.array([estimate(values) - true for _ in range(REPEATS)])
    return float((errors**2 / oracle.variance(len(values), true)).mean())


def oracles() -> list[dict[str, object]]:
    """Compare all that there is."""
    values = np.random.default_rng(0).integers(0, DOMAIN, USERS)
    rows = []
    for name, others in {
        "krr": {"pure-ldp": pure_ldp, "multi-freq-ldpy": multi_freq},
        "oue": {"pure-ldp": pure_ldp, "multi-freq-ldpy": multi_freq},
        "sue": {"pure-ldp": pure_ldp, "multi-freq-ldpy": multi_freq},
        "subset": {"multi-freq-ldpy": multi_freq},
        "hadamard": {"pure-ldp": pure_ldp},
        "olh": {"pure-ldp": pure_ldp, "multi-freq-ldpy": multi_freq_hashing},
    }.items():
        made = {"ours": ours(name), **{package: make(name) for package, make in others.items()}}
        if name not in ("olh", "hadamard"):  # where it is the same
            made["ours, summed"] = ours(name, summed=True)
        for estimate in made.values():
            estimate(values[:100])  # numba compiles
        seconds: dict[str, list[float]] = {who: [] for who in made}
        for _ in range(ROUNDS):
            for who, estimate in made.items():
                started, times = time.process_time(), 20 if who.startswith("ours") else 1
                for _ in range(times):
                    estimate(values)
                seconds[who].append((time.process_time() - started) / times)
        for who, estimate in made.items():
            ratios = np.divide(seconds[who], seconds["ours"])
            rows.append(
                {
                    "oracle": name,
                    "who": who,
                    "cpu_ms": round(1000 * float(np.median(seconds[who])), 2),
                    "times_ours": round(float(np.median(ratios)), 1),
                    "from_to": [round(float(r), 1) for r in (ratios.min(), ratios.max())],
                    "error_over_formula": round(law(estimate, name), 3),
                }
            )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["scale"]:
        print(json.dumps(scale(*(sys.argv[2:] or ["tap"]))))
    else:
        for row in oracles():
            print(json.dumps(row), flush=True)
