"""One probe: does the gradient agree with the measured slope along v? And what if there is a kink in the way?

ReLU, max-pool and |·| have points without a slope, and a difference taken across one measures neither side: the false
alarm that other gradient checks explain away with loose tolerances. Here

- a kink *near* the point is seen, because masks and winners at ±h and ±2h differ from those at 0, and the step is made
  smaller until they do not;
- a kink *at* the point stays however small the step is. There any number between the slopes to the left and to the
  right is a fair gradient, and the gradient is held to lie between them, output by output;
- the kinks of functions that nobody has told us about show themselves in the second difference, |y(h) − 2y(0) + y(−h)|
  / h, which shrinks with h where y is smooth and does not at a kink.

And nobody is accused on one step's evidence: a wrong gradient is wrong by the same amount at every h; a kink, or an h
longer than the distance over which f bends, is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from minivgg.gradcheck.numeric import Point, Slope, central, complex_slope, first_step


@dataclass
class Probe:
    """What one direction v showed. `where` is an index, or words; `kinks` are masks of the branches left undecided."""

    where: str | tuple
    v: np.ndarray | None = field(repr=False)
    numeric: float
    analytic: float
    tolerance: float
    ok: bool
    kinks: tuple[np.ndarray, ...] = ()

    @property
    def error(self) -> float:
        return abs(self.analytic - self.numeric)

    @property
    def crossings(self) -> int:
        return sum(int(mask.sum()) for mask in self.kinks)


def probe(point: Point, name: str, where: str | tuple, v: np.ndarray, h: float) -> Probe:
    """Hold ⟨gradient, v⟩ to the slope along v. Four forwards as a rule; sixteen at a kink and before an accusation.

    The steps are h, h/4, h/32, h/1024, …, down below where the search for h began: a kink that is no nearer than that
    counts as being here. To be right at one of the first two steps that meet no kink is enough. Later ones, whose
    tolerance is wide, acquit only where the error is another one: not by being too blunt to see it.
    """
    slopes, wrong = [], []
    for step in _steps(h, first_step(point, name) / 1024):
        slope = central(point, name, v, step)
        slopes.append(slope)
        if slope.crossed:
            continue
        right = abs(slope.error) <= slope.tolerance
        if right and (len(wrong) < 2 or abs(slope.error - wrong[0].error) > slope.tolerance):
            return Probe(where, v, slope.value, slope.claim, slope.tolerance, True)
        wrong.append(slope)
    kinks = bends(point, *slopes[-2:]) if wrong else slopes[-1].crossed
    if not kinks:
        suspect = wrong[0]
        tolerance = suspect.tolerance + point.backward_noise(name, v)
        return Probe(where, v, suspect.value, suspect.claim, tolerance, abs(suspect.error) <= tolerance)
    low, high = one_sided(point, slopes[-1]) if told_apart(point, name, kinks) else (-np.inf, np.inf)
    claim = slopes[-1].claim
    numeric = float(np.clip(claim, low, high))  # of all fair gradients the nearest
    return Probe(where, v, numeric, claim, 0.0, numeric == claim, kinks)


def _steps(h: float, nearest: float) -> Iterator[float]:
    """h, h/4, h/32, h/1024, and on by 32 until `nearest` is reached."""
    yield from (h, h / 4, h / 32)
    h /= 1024
    yield h
    while h > nearest:
        h /= 32
        yield h


def complex_probe(point: Point, name: str, where: str | tuple, v: np.ndarray, h: float) -> Probe:
    """The same by a complex step: three forwards.

    Raises ValueError where forward is not a formula in complex numbers, which shows in that its own differences, and
    not its complex step, agree with backward.
    """
    slope = complex_slope(point, name, v)
    if abs(slope.error) <= slope.tolerance:
        return Probe(where, v, slope.value, slope.claim, slope.tolerance, True)
    real = central(point, name, v, h)
    if abs(real.value - slope.value) > real.tolerance + slope.tolerance:
        raise ValueError(
            f"complex_step: {point.target.name} has another slope on complex numbers ({slope.value:.6g}) than on "
            f"real ones ({real.value:.6g}): it holds an abs, a maximum, or a real part"
        )
    tolerance = slope.tolerance + point.backward_noise(name, v)
    return Probe(where, v, slope.value, slope.claim, tolerance, abs(slope.error) <= tolerance)


def told_apart(point: Point, name: str, kinks: tuple[np.ndarray, ...]) -> bool:
    """Whether no output has more than one kink, so that its slopes to the left and right bound every fair gradient.

    Where several meet, as inside a network, they bound nothing: relu(t) − relu(−t) has slope 1 on both sides, and
    gradient 0. (`check` therefore looks at a second point, beside the kinks.) So there must be one kink in all, or the
    branches those of the outputs: by declaration, or as it seems where outputs are shaped like the argument.
    """
    if point.base.branches and sum(mask.sum() for mask in kinks) == 1:
        return True
    of_outputs = len(kinks) == 1 and kinks[0].size == point.base.y.size and not point.target.is_network
    return of_outputs and (bool(point.base.branches) or point.base.y.shape == point.arguments[name].shape)


def bends(point: Point, wide: Slope, narrow: Slope) -> tuple[np.ndarray, ...]:
    """(mask,) of the outputs that have a kink at the point, by their second differences; () if none has."""
    of_wide, of_narrow = (np.abs(s.ys[2] - 2 * point.base.y + s.ys[1]) / s.h for s in (wide, narrow))
    # smooth: of_narrow = of_wide/32. A kink here: equal. In between is a factor of 4 and more on either side.
    mask = (of_narrow > of_wide / 4) & (of_narrow > 4 * point.y_noise / narrow.h)
    return (mask,) if mask.any() else ()


def undeclared_kinks(point: Point, name: str, v: np.ndarray, h: float) -> int:
    """How many outputs have a kink here, also where the gradient is right, as that of |x| at 0. Eight forwards."""
    wide, narrow = central(point, name, v, h / 32), central(point, name, v, h / 1024)
    return sum(int(mask.sum()) for mask in bends(point, wide, narrow))


def one_sided(point: Point, slope: Slope) -> tuple[float, float]:
    """The least and the largest ⟨dy, J·v⟩ if each output takes its slope from the left or from the right.

    Slopes are those of parabolas through three points, wrong by less than they differ from those of lines through two,
    and by rounding of (4 + 3 + 1)·ν/2h; their sums, and that of the claim, by what `numeric.central` has for them.
    """
    (y_2, y_1, y1, y2), y0, h = slope.ys, point.base.y, slope.h
    right, left = (4 * y1 - 3 * y0 - y2) / (2 * h), (3 * y0 - 4 * y_1 + y_2) / (2 * h)
    slack = np.maximum(np.abs(right - (y1 - y0) / h), np.abs(left - (y0 - y_1) / h)) + 4 * point.y_noise / h
    ends = point.dy * right, point.dy * left
    slack = np.sum(np.abs(point.dy) * slack) + slope.rounding
    return float(np.sum(np.minimum(*ends)) - slack), float(np.sum(np.maximum(*ends)) + slack)
