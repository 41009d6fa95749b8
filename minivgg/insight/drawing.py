"""What the tutorials draw with: matrices that show their numbers, and films that play in a static page."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image


def matrix(axes, values: np.ndarray, title: str = "", *, numbers: str = "{:g}", span: float | None = None) -> None:
    """Draw a matrix (rows, columns) on `axes`, red above zero and blue below, with the numbers in it.

    `numbers` is their format, "" for none; where a value is nan there is nothing. `span` is the value of full colour.
    """
    values = np.asarray(values, float)
    limit = span or np.nanmax(np.abs(values), initial=0) or 1.0
    axes.imshow(values, cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit)
    axes.set_facecolor("white")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(which="minor", color="#BBBBBB", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    if numbers:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(j, i, numbers.format(value + 0.0), ha="center", va="center", fontsize=9)  # no −0


def frame(axes, top: int, left: int, height: int = 1, width: int = 1, colour: str = "#D55E00") -> None:
    """Draw a frame around elements of a matrix on `axes`."""
    corner = left - 0.5, top - 0.5
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=3, clip_on=False, zorder=5))


@dataclass(frozen=True)
class Film:
    """A film as an animated PNG: a notebook shows it, and so does every browser; what cannot play it shows the first
    picture."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def film(figures: Iterable[Figure], seconds: float = 0.6, *, dpi: int = 80) -> Film:
    """Figures of one size, each shown for so many seconds, the last one three times as long, and again."""
    pictures = []
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi)
        pictures.append(Image.open(file).convert("RGB").quantize(64))
    durations = [int(1000 * seconds)] * (len(pictures) - 1) + [int(3000 * seconds)]
    file = io.BytesIO()
    pictures[0].save(
        file, format="PNG", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    return Film(file.getvalue())
