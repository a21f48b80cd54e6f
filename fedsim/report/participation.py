"""Who took part: replies by round, and clients by rounds.

Past 200 clients or 400 rounds the picture is binned: a cell then is the share of its clients and
rounds that took part. Memory is that of the picture, never clients x rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedsim.report import figures
from fedsim.report.figures import BLUE, FULL, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from fedsim.report.round_columns import Rounds

MOST_CLIENTS, MOST_ROUNDS = 200, 400
"""The most rows and columns of the raster."""

_REASONS = ((VERMILLION, "///"), (ORANGE, "|||"), (PURPLE, "xxx"), (YELLOW, "---"), (SKY, "+++"))
"""Colour and hatch of a rejection, the most frequent first; dotted hatches make large files."""

OTHER, SILENT = "other reasons", "no reply in time"


@dataclass(frozen=True, kw_only=True)
class Raster:
    """Participation, binned.

    Attributes:
        share_KT: Of each cell's clients and rounds, the share that took part, in [0, 1].
        client_edges: Bin `k` holds clients `edges[k] .. edges[k + 1] - 1`; int64 `[K + 1]`.
        round_edges: The same for rounds; int64 `[T + 1]`.
    """

    share_KT: np.ndarray
    client_edges: np.ndarray
    round_edges: np.ndarray

    @property
    def binned(self) -> bool:
        """Whether a cell stands for more than one client in one round."""
        return bool(np.diff(self.client_edges).max() > 1 or np.diff(self.round_edges).max() > 1)

    @property
    def rate_K(self) -> np.ndarray:
        """Share of the rounds in which a bin's clients took part."""
        rate_K: np.ndarray = np.average(self.share_KT, axis=1, weights=np.diff(self.round_edges))
        return rate_K


def raster(rounds: Rounds, num_clients: int) -> Raster:
    """Bin who took part; client indices outside the population are left out.

    Args:
        rounds: At least one of them a round of training (1, 2, ...).
        num_clients: Size of the population, at least 1.
    """
    first, last = 1, rounds.last
    round_edges = _edges(first, last + 1, MOST_ROUNDS)
    client_edges = _edges(0, num_clients, MOST_CLIENTS)
    count_KT = np.zeros((len(client_edges) - 1, len(round_edges) - 1), np.int64)
    for server_round, client_N in zip(rounds.round_R.tolist(), rounds.admitted, strict=True):
        if server_round < first:
            continue
        inside_N = client_N[client_N < num_clients]
        bin_N = np.searchsorted(client_edges, inside_N, side="right") - 1
        column = np.searchsorted(round_edges, server_round, side="right") - 1
        count_KT[:, column] += np.bincount(bin_N, minlength=len(count_KT))
    cells_KT = np.diff(client_edges)[:, None] * np.diff(round_edges)[None, :]
    return Raster(share_KT=count_KT / cells_KT, client_edges=client_edges, round_edges=round_edges)


def _edges(start: int, stop: int, most: int) -> np.ndarray:
    """Return the edges of at most `most` bins of whole numbers, even to within one."""
    bins = min(stop - start, most)
    return start + np.arange(bins + 1, dtype=np.int64) * (stop - start) // bins


def participation(rounds: Rounds, num_clients: int) -> str:
    """Draw replies by round, rejections if there were any, and the raster, as SVG."""
    grid = raster(rounds, num_clients)
    layers = _layers(rounds, grid.round_edges)
    refused = [layer for layer in layers if layer[0] not in ("used", SILENT)]

    def draw(figure: Figure) -> None:
        heights = [1.5, *([0.9] if refused else []), 0.7 + min(2.6, 0.5 + len(grid.share_KT) / 45)]
        axes = figure.subplots(
            len(heights),
            2,
            sharex="col",
            gridspec_kw={"height_ratios": heights, "width_ratios": [11, 1.5]},
        )
        for unused in axes[:-1, 1]:
            unused.set_axis_off()
        _draw_layers(axes[0, 0], axes[0, 1], layers, grid.round_edges)
        axes[0, 0].set_title("Replies by round")
        if refused:
            _draw_layers(axes[1, 0], axes[1, 1], refused, grid.round_edges)
            axes[1, 0].set_title("Of these, rejected")
        _draw_raster(axes[-1, 0], grid)
        _draw_rates(axes[-1, 1], grid)

    height = 3.2 + (1.3 if refused else 0) + min(2.6, 0.5 + len(grid.share_KT) / 45)
    return figures.svg("participation", (FULL, height), draw)


_Layer = tuple[str, np.ndarray, str, str]
"""(name, mean count by bin of rounds, colour, hatch)"""


def _layers(rounds: Rounds, round_edges: np.ndarray) -> list[_Layer]:
    used = rounds.admitted_R
    silent = np.maximum(rounds.asked_R - used - rounds.rejected_R, 0)
    layers = [("used", _mean(rounds, used, round_edges), BLUE, "")]
    by_size = sorted(rounds.rejected.items(), key=lambda item: (-item[1].sum(), item[0]))
    by_size = [(reason, count_R) for reason, count_R in by_size if count_R.any()]
    kept = by_size if len(by_size) <= len(_REASONS) else by_size[: len(_REASONS) - 1]
    if len(kept) < len(by_size):
        rest = np.sum([count_R for _, count_R in by_size[len(kept) :]], axis=0)
        kept = [*kept, (OTHER, rest)]
    for (reason, count_R), (colour, hatch) in zip(kept, _REASONS, strict=False):
        mean = _mean(rounds, count_R, round_edges)
        layers.append((figures.label(reason, 24), mean, colour, hatch))
    if silent.any():
        layers.append((SILENT, _mean(rounds, silent, round_edges), GREY, ""))
    return layers


def _mean(rounds: Rounds, count_R: np.ndarray, round_edges: np.ndarray) -> np.ndarray:
    """Return the mean count of the rounds in each bin; a round without a line counts as 0."""
    trained = rounds.round_R >= 1
    bin_R = np.searchsorted(round_edges, rounds.round_R[trained], side="right") - 1
    bins = len(round_edges) - 1
    total: np.ndarray = np.bincount(bin_R, weights=count_R[trained], minlength=bins)
    return total / np.diff(round_edges)


def _draw_layers(axes: Axes, beside: Axes, layers: list[_Layer], round_edges: np.ndarray) -> None:
    base = np.zeros(len(round_edges) - 1)
    for name, count, colour, hatch in layers:
        axes.stairs(
            base + count,
            round_edges - 0.5,
            baseline=base,
            fill=True,
            facecolor=colour,
            edgecolor="white" if hatch else colour,
            linewidth=0,
            hatch=hatch,
            label=name,
        )
        base = base + count
    axes.set_ylabel("clients")
    axes.set_ylim(0, max(1.0, float(base.max()) * 1.05))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    handles, names = axes.get_legend_handles_labels()
    beside.legend(handles, names, loc="center left", bbox_to_anchor=(0, 0.5), handlelength=1.5)


def _draw_raster(axes: Axes, grid: Raster) -> None:
    axes.grid(False)
    axes.imshow(
        grid.share_KT,
        aspect="auto",
        interpolation="none",
        cmap="Blues",
        vmin=0,
        vmax=max(float(grid.share_KT.max()), 1e-12),
        extent=_extent(grid),
    )
    each = "one client in one round"
    if grid.binned:
        rows, columns = (round(float(np.diff(e).mean()), 1) for e in _both(grid))
        each = f"about {rows:g} clients x {columns:g} rounds; darkest {grid.share_KT.max():.0%}"
    axes.set_title(f"Who took part (each cell: {each})")
    axes.set_ylabel("client")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figures.round_axis(axes)


def _draw_rates(axes: Axes, grid: Raster) -> None:
    axes.stairs(
        grid.rate_K,
        grid.client_edges - 0.5,
        orientation="horizontal",
        fill=True,
        color=BLUE,
    )
    axes.set_ylim(grid.client_edges[-1] - 0.5, -0.5)
    axes.set_xlim(0, max(1e-9, float(grid.rate_K.max()) * 1.1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2))
    axes.tick_params(axis="y", labelleft=False)
    axes.set_xlabel("of rounds")


def _extent(grid: Raster) -> tuple[float, float, float, float]:
    clients, columns = _both(grid)
    return (columns[0] - 0.5, columns[-1] - 0.5, clients[-1] - 0.5, clients[0] - 0.5)


def _both(grid: Raster) -> tuple[np.ndarray, np.ndarray]:
    return grid.client_edges, grid.round_edges
