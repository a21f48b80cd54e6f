"""How every picture of the report looks, and how it becomes SVG inside a page.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), told apart by colour-blind readers;
each comes with its own line style, marker or hatch, so that a print in grey still reads. Text stays
text: it takes the page's font and can be searched.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#C9CDD2"

HALF, FULL = 5.2, 10.6
"""Widths in inches of a picture in one of two columns, and of one across the page."""

_TEXT = "#30363d"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#8b949e",
    "axes.grid": True,
    "axes.labelcolor": _TEXT,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsim",  # equal data give equal bytes
    "text.color": _TEXT,
    "text.parse_math": False,  # a dollar sign in somebody's name for a thing is not mathematics
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


@dataclass(frozen=True)
class Mark:
    """How one quantity is drawn wherever it appears."""

    colour: str
    line: str
    marker: str


CENTRAL = Mark(BLUE, "-", "o")
CLIENTS = Mark(VERMILLION, "--", "s")
TRAIN = Mark(GREEN, "-.", "^")


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, whatever the reader's own settings are."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        # Where a font lacks a script's letters, the page's font takes over.
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw in the reader's own style, but take names as they are: no mathematics, no warnings."""
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def svg(
    name: str, size: tuple[float, float], draw: Callable[[Figure], None], *, fixed: bool = False
) -> str:
    """Draw a picture as an SVG element for an HTML page.

    Args:
        name: Of the picture, unique in the page: letters only.
        size: Width and height in inches.
        draw: Draws into the figure it is given.
        fixed: Whether `draw` sets the margins itself; otherwise they follow from the labels.
    """
    buffer = io.StringIO()
    with style():
        figure = Figure(figsize=size, layout=None if fixed else "constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def drawn(size: tuple[float, float], draw: Callable[[Figure], None]) -> Figure:
    """Return a picture as a figure on white, for a notebook or a file."""
    with style():
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
    return figure


def png(size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Draw a picture as the content of a PNG file; equal data give equal bytes."""
    buffer = io.BytesIO()
    with style():
        drawn(size, draw).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _inline(text: str, name: str) -> str:
    """Cut an SVG file down to its element, and make its ids unique among other pictures'."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)
    # Two colour bars are the same image, hence of one id, to which nothing refers.
    text = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text).strip()


def round_axis(axes: Axes, label: str = "round") -> None:
    """Give an axis of rounds whole numbers."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def label(text: str, longest: int = 40) -> str:
    """Return a name from a file so that it can stand in a picture: one line, not too long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text.encode("utf-8", "replace").decode()
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return f" {text}" if text.startswith("_") else text  # matplotlib hides labels that start so
