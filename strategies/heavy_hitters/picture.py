"""The report of a search: the list that was found, and the prefix tree as it grew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.query import Findings, Graph, Table
from fedsim.records import Params
from strategies.heavy_hitters import measures
from strategies.heavy_hitters.tree import NOTHING

if TYPE_CHECKING:
    from strategies.heavy_hitters.search import Search

KINDS = {
    "kept": "kept, on the way to a true heavy hitter",
    "pruned": "pruned",
    "wrong": "kept, on the way to none",
    "lost": "pruned, though on the way to one",
}

MOST_PRUNED = 600
"""Pruned nodes are drawn while there are no more than these; those that were lost always are."""


def findings(strategy: Search, release: Params, dataset: Dataset) -> Findings:
    """Return both."""
    items, counts = release["items"].cpu().numpy(), release["counts"].cpu().numpy()
    bits = int(release["bits"])
    if not bits:
        return Findings()
    true, held = measures.true_counts(dataset, bits)
    whole = int(strategy.bits_of_levels[-1])
    names = _names(dataset) if bits == whole else {}
    rank = {int(v): i for i, v in enumerate(true)}
    rows = []
    for place, (item, count) in enumerate(zip(items.tolist(), counts.tolist(), strict=True), 1):
        if item == NOTHING:
            continue
        at = rank.get(item)
        known = ("0", "-") if at is None else (f"{held[at]:,.0f}", f"{at + 1:,}")
        rows.append((str(place), names.get(item, _code(item, bits)), f"{count:,.0f}", *known))
    table = Table(
        title=f"The {strategy.k} most frequent {'items' if bits == whole else 'prefixes'}",
        head=("rank", "item", "estimated count", "true count", "true rank"),
        rows=rows,
    )
    return Findings(tables=[table], graphs=[grown(strategy, release, dataset)])


def grown(strategy: Search, release: Params, dataset: Dataset) -> Graph:
    """Return the tree: the candidates of every shared level, and the ways to what was sent last."""
    bits_of_levels = strategy.bits_of_levels
    whole = int(bits_of_levels[-1])
    wanted, _ = measures.true_counts(dataset, whole)
    wanted = wanted[: strategy.k]
    kinds: dict[tuple[int, int], str] = {(0, 0): "kept"}
    for level, (candidates, kept) in strategy.history.items():
        true = set((wanted >> (whole - bits_of_levels[level])).tolist())
        for prefix, stays in zip(candidates.tolist(), kept.tolist(), strict=True):
            right = prefix in true
            kinds[level, prefix] = (
                ("kept" if right else "wrong") if stays else ("lost" if right else "pruned")
            )
    released = release["items"].cpu().numpy()
    sent = strategy.uploads[: 2 * strategy.k, 0].astype(np.int64)
    first = max(strategy.history, default=0) + 1
    for item in [*sent.tolist(), *released[released != NOTHING].tolist()]:
        if int(release["bits"]) < whole:
            break
        right, stays = item in wanted, item in released
        kind = ("kept" if right else "wrong") if stays else ("lost" if right else "pruned")
        for level in range(first, strategy.levels + 1):
            node = (level, item >> int(whole - bits_of_levels[level]))
            if kinds.get(node) not in ("kept", "wrong" if kind != "kept" else "kept"):
                kinds[node] = kind
    if sum(kind == "pruned" for kind in kinds.values()) > MOST_PRUNED:
        kinds = {node: kind for node, kind in kinds.items() if kind != "pruned"}
    names = _names(dataset)

    def name(level: int, prefix: int) -> str:
        return f"{level}:{prefix}"

    edges = []
    for level, prefix in kinds:
        if level:
            step = int(bits_of_levels[level] - bits_of_levels[level - 1])
            parent = (level - 1, prefix >> step)
            if parent in kinds:
                edges.append((name(*parent), name(level, prefix)))
    last = strategy.levels
    return Graph(
        title="The prefix tree as it grew",
        caption=(
            "One layer a level, from the root at the left; the names are those of items. "
            "Of levels at which each client searched by itself, the ways to the items sent in the "
            "end are drawn."
        ),
        nodes={
            name(level, prefix): (names.get(prefix, "") if level == last else "", kind)
            for (level, prefix), kind in kinds.items()
        },
        edges=edges,
        layers={name(level, prefix): level for level, prefix in kinds},
        kinds=KINDS,
    )


def _names(dataset: Dataset) -> dict[int, str]:
    if dataset.items is None or not dataset.items.names:
        return {}
    return dict(zip(dataset.test_x.tolist(), dataset.items.names, strict=True))


def _code(item: int, bits: int) -> str:
    return f"{item:0{bits}b}" if bits <= 24 else f"{item:#x}"
