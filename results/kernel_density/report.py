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
    text += classes(runs) + timing(runs)
    text += density(runs, "density", "epsilon", "Relative error over ε (n = 4000, replace one)")
    text += density(runs, "size", "n", "Relative error over n (ε = 1)", slope=True)
    text += density(runs, "width", "width", "Relative error over d (Fashion-MNIST features, ε = 1)")
    text += density(
        runs, "baselines", "epsilon", "Few dimensions: relative error over ε (n = 4000)"
    )
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
    """Return what was found at some points."""
    return [
        f for p, f in runs if p["kind"] == kind and all(p.get(k) == v for k, v in values.items())
    ]


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
        row = [data, *([f"{width}"] if kind == "baselines" else []), method]
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
    head = ["data", *(["d"] if kind == "baselines" else []), "method", *(f"{c:g}" for c in columns)]
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


def draw(runs: Any) -> None:
    """Draw accuracy over ε, and error over ε, n and d."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8))
    for method in METHODS:
        points = []
        for epsilon in sorted({p["epsilon"] for p, _ in runs if p["kind"] == "classes"}):
            found, _ = best(runs, method, 60000, epsilon)
            if found:
                points.append((epsilon, np.mean([f["accuracy"] for f in found])))
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=method)
    left.set(xscale="log", xlabel="ε", ylabel="accuracy", title="Fashion-MNIST features")
    left.legend(fontsize=8)
    for axes, kind, over, title in (
        (middle, "density", "epsilon", "over ε"),
        (right, "size", "n", "over n, ε = 1"),
    ):
        data = "fashion"
        for method in sorted({p["method"] for p, _ in runs if p["kind"] == kind}):
            points = []
            for value in sorted({p[over] for p, _ in runs if p["kind"] == kind}):
                found = pick(runs, kind, data=data, method=method, **{over: value})
                if found:
                    points.append((value, np.mean([f["relative"] for f in found])))
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=method)
        axes.set(xscale="log", yscale="log", xlabel=over, ylabel="relative error", title=title)
        axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(HERE / "kernel_density.png", dpi=110)
