"""Tables and pictures of the runs in runs.jsonl; `reproduce.py` without an argument calls it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
Found = Mapping[str, float]


def report(known: Mapping[str, Found]) -> None:
    """Write tables.md and kernel_density.png."""
    runs = [(json.loads(name), found) for name, found in known.items()]
    text = ["# Tables", "", "Mean over seeds ± standard error; seeds in brackets where not 5.", ""]
    text += classes(runs) + mixture(runs) + timing(runs)
    text += density(runs, "density", "epsilon", "Relative error over ε (n = 4000, replace one)")
    text += density(runs, "size", "n", "Relative error over n (ε = 1)", slope=True)
    text += density(runs, "slope", "n", "The same with as many features as planned", slope=True)
    text += density(runs, "width", "width", "Relative error over d (Fashion-MNIST features, ε = 1)")
    few = "Few dimensions: relative error over"
    text += density(runs, "baselines", "epsilon", f"{few} ε (n = 4000)")
    text += density(runs, "low", "n", f"{few} n (Fashion-MNIST features, ε = 1)", slope=True)
    text += low_times(runs)
    text += query_times(runs)
    (HERE / "tables.md").write_text("\n".join(text).rstrip() + "\n")
    draw(runs)


def cell(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """Return a mean and its standard error."""
    if not values:
        return ""
    array = np.array(values) * scale
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    count = "" if len(array) == 5 else f" ({len(array)})"
    return f"{array.mean():.{digits}g} ± {error:.1g}{count}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def pick(runs: Any, kind: str, **values: Any) -> list[Found]:
    """Return what was found at some points; of a tuned baseline, at its chosen setting."""
    settings: dict[Any, list[Found]] = {}
    for p, f in runs:
        if p["kind"] == kind and all(p.get(k) == v for k, v in values.items()):
            settings.setdefault((p.get("degree"), p.get("iterations")), []).append(f)
    return max(settings.values(), key=len) if settings else []


def best(runs: Any, method: str, n: int, epsilon: float) -> tuple[list[Found], str]:
    """Return the runs of a baseline at its best setting, and the setting."""
    settings: dict[tuple[float, int], list[tuple[int, Found]]] = {}
    for p, f in runs:
        if p["kind"] == "classes" and (p["method"], p["n"], p["epsilon"]) == (method, n, epsilon):
            settings.setdefault((p.get("lr", 0), p.get("steps", 0)), []).append((p["seed"], f))
    if not settings:
        return [], ""
    (lr, _), found = max(
        settings.items(), key=lambda item: (len(item[1]), item[1][0][1]["accuracy"])
    )
    return [f for _, f in found], f" (η = {lr:g})" if lr else ""


METHODS = ("mean", "similarity", "kernel", "dp-sgd", "dp-gd")


def classes(runs: Any) -> list[str]:
    """Classification."""
    text: list[str] = []
    of = [p for p, _ in runs if p["kind"] == "classes"]
    for title, points in (
        ("over ε, n = 60,000", sorted({(60000, p["epsilon"]) for p in of})),
        ("over n, ε = 1", sorted({(p["n"], 1.0) for p in of if p["epsilon"] == 1.0})),
    ):
        rows = []
        for n, epsilon in points:
            row = [f"{n}", f"{epsilon:g}"]
            for method in METHODS:
                found, setting = best(runs, method, n, epsilon)
                row.append(cell([f["accuracy"] for f in found]) + setting if found else "")
            rows.append(row)
        text += [f"## Fashion-MNIST: accuracy {title}", ""]
        text += table(["n", "ε", *METHODS], rows)
    rows = []
    for n in sorted({p["n"] for p in of}):
        row = [f"{n}"]
        for method in METHODS:
            found, _ = best(runs, method, n, 1.0)
            row.append(cell([f["seconds"] for f in found]) if found else "")
        rows.append(row)
    text += ["## CPU seconds of one release or training, ε = 1", "", *table(["n", *METHODS], rows)]
    rows = [[m, *(cell([f["noiseless"] for f in best(runs, m, n, 1.0)[0]]) for n in (500, 60000))]
            for m in METHODS[:3]]  # fmt: skip
    return [*text, "## Without noise", "", *table(["rule", "n = 500", "n = 60,000"], rows)]


def mixture(runs: Any) -> list[str]:
    """Class means against DP-GD on the mixture."""
    rows = []
    for epsilon in sorted({p["epsilon"] for p, _ in runs if p["kind"] == "mixture"}):
        means = pick(runs, "mixture", method="mean", epsilon=epsilon)
        settings: dict[Any, list[Found]] = {}
        for p, f in runs:
            if p["kind"] == "mixture" and p["method"] == "dp-gd" and p["epsilon"] == epsilon:
                settings.setdefault((p["lr"], p["steps"]), []).append(f)
        (lr, steps), descent = max(settings.items(), key=lambda item: len(item[1]))
        times = np.mean([f["seconds"] for f in descent]) / np.mean([f["seconds"] for f in means])
        rows.append([f"{epsilon:g}",
                     *(cell([f["accuracy"] for f in of]) for of in (means, descent)),
                     f"η = {lr:g}, {steps} steps", cell([f["noiseless"] for f in means]),
                     *(cell([f["seconds"] for f in of]) for of in (means, descent)),
                     f"{times:.1f}"])  # fmt: skip
    head = ["ε", "class means", "DP-GD", "its best of 12", "means without noise", "s", "s DP-GD",
            "times faster"]  # fmt: skip
    title = "Mixture like embeddings: n = 20,000, d = 128, ten classes"
    return [f"## {title}", "", *table(head, rows)] if rows else []


def timing(runs: Any) -> list[str]:
    """A million records."""
    found = pick(runs, "time")
    if not found:
        return []
    one = [f["brute_us"] / f["1024 query_us, 1"] for f in found]
    many = [f["brute_us"] / f["1024 query_us, 64"] for f in found]
    rows = [
        ["brute force, float32, 64 queries at once", cell([f["brute_us"] for f in found]), "", ""],
        ["1024 features, one query at a time", cell([f["1024 query_us, 1"] for f in found]),
         cell(one), cell([f["1024 relative"] for f in found], 100) + " %"],
        ["1024 features, 64 queries at once", cell([f["1024 query_us, 64"] for f in found]),
         cell(many), cell([f["1024 relative"] for f in found], 100) + " %"],
    ]  # fmt: skip
    head = ["n = 10^6, d = 128, ε = 1", "µs a query", "times faster", "relative error"]
    return ["## Queries over a million records", "", *table(head, rows)]


def density(runs: Any, kind: str, over: str, title: str, slope: bool = False) -> list[str]:
    """Error tables, one row per data and method."""
    points = [p for p, _ in runs if p["kind"] == kind]
    columns = sorted({p[over] for p in points})
    groups = sorted(
        {(p["data"], p.get("width", 0) if over != "width" else 0, p["method"]) for p in points}
    )
    rows = []
    for data, width, method in groups:
        values: dict[str, Any] = {"data": data, "method": method}
        if width:
            values["width"] = width
        cells = [pick(runs, kind, **values, **{over: c}) for c in columns]
        row = [data, *([f"{width}"] if kind in ("baselines", "low") else []), method]
        row += [cell([f["relative"] for f in found]) for found in cells]
        if slope:
            done = [
                (c, np.mean([f["rmse"] for f in found]))
                for c, found in zip(columns, cells, strict=True)
                if found
            ]
            fitted = np.polyfit(*np.log(np.array(done)).T, 1)[0] if len(done) > 1 else float("nan")
            row.append(f"{fitted:.2f}")
        rows.append(row)
    if not rows:
        return []
    head = [
        "data",
        *(["d"] if kind in ("baselines", "low") else []),
        "method",
        *(f"{c:g}" for c in columns),
    ]
    return [f"## {title}", "", *table(head + (["slope of RMSE"] if slope else []), rows)]


def query_times(runs: Any) -> list[str]:
    """Microseconds."""
    rows = []
    groups = sorted({(p["kind"], p["data"], p.get("width") or 0, p["method"]) for p, _ in runs
                     if p["kind"] in ("density", "baselines")})  # fmt: skip
    for kind, data, width, method in groups:
        found = pick(runs, kind, data=data, method=method, width=width or None, epsilon=1.0)
        values = [
            cell([f[name] for f in found]) for name in ("size", "query_us", "brute_us", "sum_s")
        ]
        if found:
            rows.append([data, f"{width or 'all'}", method, *values])
    head = ["data", "d", "method", "numbers", "µs a query", "µs brute force", "s to sum"]
    return (
        ["## Time, ε = 1, queries 100 at a time, one thread", "", *table(head, rows)]
        if rows
        else []
    )


def low_times(runs: Any) -> list[str]:
    """Time over n in few dimensions."""
    rows = []
    sizes = sorted({p["n"] for p, _ in runs if p["kind"] == "low"})
    for width in (2, 3):
        for method in sorted({p["method"] for p, _ in runs if p["kind"] == "low"}):
            found = [pick(runs, "low", width=width, method=method, n=n) for n in sizes]
            if all(found):
                rows.append([f"{width}", method,
                             *(cell([f["query_us"] for f in of]) for of in found),
                             *(cell([f["sum_s"] for f in of]) for of in found)])  # fmt: skip
        found = [pick(runs, "low", width=width, method="lsq", n=n) for n in sizes]
        if all(found):
            brute = [cell([f["brute_us"] for f in of]) for of in found]
            rows.append([f"{width}", "brute force", *brute, *("" for _ in sizes)])
    head = ["d", "method", *(f"µs, n = {n}" for n in sizes), *(f"s to sum, {n}" for n in sizes)]
    title = "Few dimensions: time of a query and of the sum over n (Fashion-MNIST features, ε = 1)"
    return [f"## {title}", "", *table(head, rows)] if rows else []


# Okabe and Ito's colours, which colour-blind readers tell apart; each method has its marker too.
LOOKS = {
    "mean": ("#0072B2", "o"), "similarity": ("#56B4E9", "s"), "kernel": ("#009E73", "^"),
    "dp-sgd": ("#D55E00", "D"), "dp-gd": ("#E69F00", "v"),
    "gaussian, pairs, gaussian noise": ("#0072B2", "o"),
    "gaussian, pairs, laplace noise": ("#56B4E9", "s"),
    "gaussian, phases, laplace noise": ("#D55E00", "v"),
    "l1 tree": ("#009E73", "^"), "l2 tree": ("#E69F00", "<"), "l2 squared": ("#CC79A7", "D"),
    "laplace": ("#000000", "x"), "exponential": ("#7f7f7f", "+"),
    "rational_l2_squared": ("#000000", "*"),
    "planned": ("#CC79A7", "D"),
    "lsq": ("#D55E00", "v"), "bernstein": ("#E69F00", "D"), "brute force": ("#000000", "x"),
}  # fmt: skip
NAMES = {
    "planned": "Gaussian kernel, Laplace, all planned features",
    "mean": "nearest class mean",
    "similarity": "average similarity",
    "kernel": "kernel",
    "dp-sgd": "DP-SGD",
    "dp-gd": "DP-GD (20 steps)",
    "lsq": "LSQ",
    "bernstein": "Bernstein",
    "l1 tree": "L1 tree",
    "l2 tree": "L2 tree",
    "l2 squared": "L2 squared, moments",
    "gaussian, pairs, gaussian noise": "Gaussian kernel, pairs, Gaussian noise",
    "gaussian, pairs, laplace noise": "Gaussian kernel, pairs, Laplace noise",
    "gaussian, phases, laplace noise": "Gaussian kernel, phases, Laplace noise",
}
DRAWN = [m for m in LOOKS if m not in ("planned", "laplace", "exponential", "rational_l2_squared")]


def line(axes: Any, method: str, points: Sequence[tuple[float, float]]) -> None:
    """Draw one method."""
    colour, marker = LOOKS[method]
    label = NAMES.get(method, method.replace("_", " "))
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.4,
                  label=label)  # fmt: skip


def curve(axes: Any, runs: Any, kind: str, over: str, what: str, **values: Any) -> None:
    """Draw all methods of a kind."""
    columns = sorted({p[over] for p, _ in runs if p["kind"] == kind})
    for method in DRAWN:
        found = [(c, pick(runs, kind, method=method, **values, **{over: c})) for c in columns]
        line(axes, method, [(c, float(np.mean([f[what] for f in of]))) for c, of in found if of])
    axes.set(xscale="log", yscale="log")


def draw(runs: Any) -> None:
    """Draw accuracy over ε, error over ε, n and d, and time and error of the baselines."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 9))
    (a, b, c), (d, e, f) = axes
    for method in METHODS:
        points = []
        for epsilon in sorted({p["epsilon"] for p, _ in runs if p["kind"] == "classes"}):
            found, _ = best(runs, method, 60000, epsilon)
            if found:
                points.append((epsilon, float(np.mean([of["accuracy"] for of in found]))))
        line(a, method, points)
    a.set(xscale="log", xlabel="ε", ylabel="accuracy", title="Classification, n = 60,000")
    curve(b, runs, "density", "epsilon", "relative", data="fashion")
    b.set(xlabel="ε", ylabel="relative error", title="Error over ε (n = 4,000, d = 288)")
    curve(c, runs, "size", "n", "relative", data="fashion")
    c.set(xlabel="n", ylabel="relative error", title="Error over n (ε = 1, d = 288)")
    method = "gaussian, pairs, laplace noise"
    sizes = sorted({p["n"] for p, _ in runs if p["kind"] == "slope"})
    planned = [(n, pick(runs, "slope", data="fashion", method=method, n=n)) for n in sizes]
    line(c, "planned", [(n, float(np.mean([g["relative"] for g in of]))) for n, of in planned])
    n = np.array([500.0, 30000.0])
    c.plot(n, 0.15 * (n / 500) ** -0.5, "k:", lw=1, label="slope -1/2")
    curve(d, runs, "width", "width", "relative", data="fashion")
    d.set(xlabel="d", ylabel="relative error", title="Error over d (ε = 1, n = 4,000)")
    curve(e, runs, "low", "n", "query_us", width=3)
    sizes = sorted({p["n"] for p, _ in runs if p["kind"] == "low"})
    found = [(n, pick(runs, "low", method="lsq", width=3, n=n)) for n in sizes]
    line(
        e,
        "brute force",
        [(n, float(np.mean([g["brute_us"] for g in of]))) for n, of in found if of],
    )
    e.set(xlabel="n", ylabel="µs a query", title="Time of a query (ε = 1, d = 3)")
    curve(f, runs, "baselines", "epsilon", "relative", data="fashion", width=3)
    f.set(xlabel="ε", ylabel="relative error", title="Few dimensions (d = 3, n = 4,000)")
    for one in axes.flat:
        one.grid(alpha=0.25)
        places: dict[Any, Any] = {a: (0.5, 0.3), d: (0.02, 0.495)}
        one.legend(fontsize=7.5, loc=places.get(one, "best"))
    figure.suptitle("Fashion-MNIST features, replace one record, δ = 1e-6, five seeds")
    figure.tight_layout()
    figure.savefig(HERE / "kernel_density.png", dpi=100)
