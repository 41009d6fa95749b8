"""A picture of one argument's gradient: where it is wrong, by how much at which step, and how the remainder shrinks."""

import math

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minivgg.gradcheck.diagnosis import axes_of
from minivgg.gradcheck.numeric import Point, central, elements, some_of, taylor, taylor_order
from minivgg.gradcheck.report import Row
from minivgg.gradcheck.targets import signed

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#595959"  # told apart by every kind of eye: Okabe & Ito (2008)
_ELEMENTS = 1000
_FAINT = 1e-12  # relative errors below it are all the same colour


def picture(point: Point, row: Row, title: str) -> Figure:
    """The Figure behind `Report.plot`. About 2·min(size, 1000) + 250 forwards."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle(f"{title}\n{row.argument} {row.cells()[1]}", fontsize=13, parse_math=False)
    heat, steps, remainder = figure.subplots(1, 3)
    error = draw_error(figure, heat, point, row)
    smooth = np.isfinite(error) if np.isfinite(error).any() else 1.0
    v = signed(np.random.default_rng(0), row.shape) * smooth
    draw_steps(steps, point, row, v)
    draw_remainder(remainder, point, row, v)
    for axes in heat, steps, remainder:
        axes.tick_params(labelsize=10)
    return figure


def draw_error(figure: Figure, axes, point: Point, row: Row) -> np.ndarray:
    """|analytic − numeric| over the tensor, as a part of the largest gradient; grey where not measured or at a kink.

    Returns it, with nan for grey.
    """
    claimed = point.gradients[row.argument]
    some = some_of(row.shape, _ELEMENTS, np.random.default_rng(0))
    numeric = elements(point, row.argument, row.h, some)
    error = np.abs(claimed - numeric) / (np.nanmax(np.abs([claimed, numeric]), initial=0) or 1.0)
    image, tiles = montage(error)
    shown = axes.imshow(np.maximum(image, _FAINT), "cividis", norm=LogNorm(_FAINT, 1), aspect="auto")
    axes.set_facecolor("#BBBBBB")
    axes.grid(False)  # whatever the notebook's own style
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    names = axes_of(row.argument, claimed.ndim)
    if tiles:
        (A, B), (H, W) = claimed.shape[:2], tiles
        for line in range(1, A):
            axes.axhline(line * H - 0.5, color="white", linewidth=1.5)
        for line in range(1, B):
            axes.axvline(line * W - 0.5, color="white", linewidth=1.5)
        for ticks, count, size in (axes.set_yticks, A, H), (axes.set_xticks, B, W):
            shown_tiles = range(0, count, -(-count // 16))
            ticks([(i + 0.5) * size - 0.5 for i in shown_tiles], shown_tiles)
        names = f"{names[0]} (a tile: {names[2]}s)", f"{names[1]} (a tile: {names[3]}s)"
    ylabel, xlabel = names[:2] if len(names) > 1 else ("", "".join(names))
    axes.set(title="error over the tensor", ylabel=ylabel, xlabel=xlabel)
    figure.colorbar(shown, ax=axes, label="|analytic − numeric| / largest")
    return error


def montage(a: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """`a` as an image, and the size of its tiles if it has them.

    (A, B, H, W) becomes A rows of B tiles of H×W, (A, B) is itself, and a vector one row.
    """
    if a.ndim == 4:
        A, B, H, W = a.shape
        return a.transpose(0, 2, 1, 3).reshape(A * H, B * W), (H, W)
    return np.atleast_2d(a.reshape(len(a), -1) if a.ndim > 1 else a), None


def draw_steps(axes, point: Point, row: Row, v: np.ndarray) -> None:
    """|analytic − numeric| against h: a V if the gradient is right, a floor if it is wrong."""
    hs = row.h * 2.0 ** np.arange(-16, 17)
    slopes = [central(point, row.argument, v, h) for h in hs]
    claim = point.claim(row.argument, v)
    plain = [abs(np.vdot(point.dy, s.ys[2] - s.ys[1]) / (2 * s.h) - claim) for s in slopes]
    axes.loglog(hs, _positive(plain), "o-", color=_BLUE, markersize=4, label="central difference")
    axes.loglog(
        hs, _positive([abs(s.value - claim) for s in slopes]), "s-", color=_ORANGE, markersize=4, label="extrapolated"
    )
    axes.loglog(hs, [s.tolerance for s in slopes], "--", color=_GREY, label="tolerance")
    axes.axvline(row.h, color=_GREY, linewidth=0.8)
    axes.annotate(" step used", (row.h, 0.02), xycoords=("data", "axes fraction"), color=_GREY)
    axes.set(title="error against step", xlabel="step h", ylabel="|analytic − numeric| along a random direction")
    axes.legend(fontsize=10)


def draw_remainder(axes, point: Point, row: Row, v: np.ndarray) -> None:
    """The Taylor remainder, beside lines of slope 1 and 2."""
    steps = row.h * 2.0 ** np.arange(0, 13)
    remainders = taylor(point, row.argument, v, steps)
    axes.loglog(steps, _positive(remainders), "o-", color=_BLUE, label="remainder")
    end = remainders[-1] or 1.0
    axes.loglog(steps, end * (steps / steps[-1]) ** 2, "--", color=_GREY, label="slope 2: right")
    axes.loglog(steps, end * (steps / steps[-1]), ":", color=_ORANGE, linewidth=2, label="slope 1: wrong")
    axes.axhline(max(point.noise, np.finfo(float).tiny), color=_GREY, linewidth=0.8)
    axes.annotate("rounding", (0.75, point.noise), xycoords=("axes fraction", "data"), color=_GREY, va="bottom")
    order = taylor_order(point, row.argument, v, row.h)
    slope = "linear" if math.isnan(order) else f"slope {order:.2f}"
    axes.set(title=f"Taylor remainder: {slope}", xlabel="step t", ylabel="|f(t) − f(0) − t·⟨gradient, v⟩|")
    axes.legend(fontsize=10)


def _positive(values) -> np.ndarray:
    """Zeros left out of a logarithmic plot."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)
