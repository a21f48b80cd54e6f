"""A picture of who holds what: clients across, classes down, samples as colour.

The bars on top are the clients' sizes. White is "none"; the colours (cividis) keep their order for
colour-blind readers and in grey print. They follow the square root of the count, so that a client
with a few samples of a class is told from one with none even beside a client with thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from fedsim.report.shown import shown_clients

_MOST_CLASS_TICKS = 40
_MOST_NUMBERS = 150


def label_heatmap(
    histogram_NC: np.ndarray,
    path_or_buffer: str | Path | BinaryIO,
    class_names: Sequence[str] = (),
    *,
    num_clients: int | None = None,
) -> None:
    """Draw the samples per client and class as a PNG image.

    Args:
        histogram_NC: Samples of each class at each client, at least one of both. Past 200
            clients, 200 evenly spaced rows are shown and the title says so.
        path_or_buffer: Where the PNG goes.
        class_names: One per class; without them, classes are numbered.
        num_clients: For a large population, of which only the histogram of
            `shown_clients(num_clients)` was computed: its size. The rows are then those clients.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    population = len(histogram_NC) if num_clients is None else num_clients
    client_K = shown_clients(population)
    if num_clients is None:
        histogram_NC = histogram_NC[client_K]
    num_classes = histogram_NC.shape[1]
    if len(histogram_NC) != len(client_K) or histogram_NC.size == 0:
        raise ValueError(f"a histogram {histogram_NC.shape} does not fit {population} clients")
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")

    figure = Figure(figsize=_size(len(client_K), num_classes), layout="constrained")
    bars, cells = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 4]})
    _draw_sizes(bars, histogram_NC.sum(axis=1))
    draw_cells(cells, histogram_NC, class_names)
    step = tick_step(len(client_K), 12)
    cells.set_xticks(np.arange(0, len(client_K), step), [str(k) for k in client_K[::step]])
    part = "" if len(client_K) == population else f" ({len(client_K)} of {population} shown)"
    noun = "client" if population == 1 else "clients"
    figure.suptitle(f"Who holds what: {population} {noun}{part}", fontsize="large")
    # Without the software's name and version, equal data give equal bytes.
    figure.savefig(path_or_buffer, format="png", dpi=150, metadata={"Software": None})


def _size(num_columns: int, num_classes: int) -> tuple[float, float]:
    """Return width and height in inches."""
    return min(11.0, 5.5 + 0.06 * num_columns), min(10.0, 2.6 + 0.24 * num_classes)


def tick_step(count: int, most: int) -> int:
    """Return the first of 1, 2, 5, 10, 20, 50, ... that makes at most `most` ticks."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if count <= most * step:
                return step
        scale *= 10


def _draw_sizes(axes: Axes, size_K: np.ndarray) -> None:
    axes.bar(np.arange(len(size_K)), size_K, width=0.9, color="0.45")
    axes.set_ylabel("samples")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw_cells(axes: Axes, histogram_KC: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw samples of each class at each client into axes, with a colour bar."""
    num_classes = histogram_KC.shape[1]
    most = max(1, int(histogram_KC.max()))
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
    image = axes.imshow(
        np.ma.masked_equal(histogram_KC.T, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=PowerNorm(0.5, vmin=0, vmax=most),
    )
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    step = tick_step(num_classes, _MOST_CLASS_TICKS)
    names = [name[:20] for name in class_names] or [str(c) for c in range(num_classes)]
    axes.set_yticks(np.arange(0, num_classes, step), names[::step])
    colour_bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    colour_bar.set_label("samples (white: none)")
    if histogram_KC.size <= _MOST_NUMBERS:
        for column, client in enumerate(histogram_KC):
            for c in np.flatnonzero(client).tolist():
                dark = client[c] > 0.3 * most
                axes.text(
                    column,
                    c,
                    str(client[c]),
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white" if dark else "black",
                )
