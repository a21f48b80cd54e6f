"""Who holds what, as an image inside the page."""

from __future__ import annotations

import base64
import io
import struct
from functools import lru_cache

from fedsim.report import figures
from fedsim.report.heatmap import label_heatmap
from fedsim.report.run_folder import Holdings
from fedsim.report.shown import shown_clients

_DOTS_PER_PIXEL = 150 / 96
"""The image has 150 dots per inch; a page has 96 pixels."""


@lru_cache(maxsize=1)  # a file, and a picture in the page
def holdings_png(holdings: Holdings) -> bytes:
    """Return the heat map of clients and classes as a PNG file's content."""
    count, population = len(holdings.histogram_KC), holdings.num_clients
    sampled = count < population and count == len(shown_clients(population))
    buffer = io.BytesIO()
    with figures.plain_text():
        label_heatmap(
            holdings.histogram_KC,
            buffer,
            [figures.label(name) for name in holdings.class_names],
            num_clients=population if sampled else None,
        )
    return buffer.getvalue()


def holdings_image(holdings: Holdings) -> str:
    """Return the heat map of clients and classes as an HTML image element."""
    png = holdings_png(holdings)
    width, height = struct.unpack(">II", png[16:24])
    size = f'width="{width / _DOTS_PER_PIXEL:.0f}" height="{height / _DOTS_PER_PIXEL:.0f}"'
    data = base64.b64encode(png).decode()
    return f'<img alt="" {size} src="data:image/png;base64,{data}">'
