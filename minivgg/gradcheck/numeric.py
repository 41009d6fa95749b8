"""The slope of forward, measured: by central differences with a bound on their error, or by a complex step.

With f(t) = ⟨dy, y(a + t·v)⟩ the chain rule demands f′(0) = ⟨dy, J·v⟩ = ⟨Jᵀ·dy, v⟩ = ⟨gradient, v⟩. The left is measured
here, the right is what backward claims.

**Central differences.** D(h) = (f(h) − f(−h)) / 2h = f′ + h²·f‴/6 + O(h⁴). Two steps take the h² away (Richardson):

    slope = (4·D(h) − D(2h)) / 3         truncation, of D(h): |D(h) − D(2h)| / 3, an overestimate of what is left

Each f is wrong by rounding, at most ν. The slope is (8·f(h) − 8·f(−h) − f(2h) + f(−2h)) / 12h, hence wrong by at most
(8 + 8 + 1 + 1)·ν/12h = 1.5·ν/h. Truncation falls and rounding grows as h shrinks: they meet where h is about the cube
root of the relative rounding error, times the distance over which f bends (Numerical Recipes, §5.7).

**ν is measured**, not guessed, in two ways, output by output. All arguments are changed in their last bits, at random:
that stirs the rounding errors inside forward and multiplies them by its condition, as a deep network or a batch norm of
large numbers does (Vignes, CESTAC, 1993; Parker, Monte Carlo Arithmetic, 1997). And all are moved by small even steps,
which stirs more, such as the 1 + p of a softmax that is sure of itself: in the fourth difference smooth terms cancel up
to h⁴ and noise does not (Hamming, Numerical Methods for Scientists and Engineers, 1973, ch. 10).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivgg.gradcheck.targets import Evaluation, Target, signed

EPS = float(np.finfo(np.float64).eps)
_ULPS = 8  # stirring by up to 8 units in the last place is, in r.m.s., 16 times what rounding an input does
_DRAWS = 8  # rounding inside forward is stirred, but not amplified: it shows in half of the draws or more
_STENCILS = 4  # of a single output that is rounded coarsely, one in eight fourth differences is zero by chance


class Point:
    """Where the check stands: arguments, an upstream gradient, and what forward and backward say there."""

    def __init__(self, target: Target, arguments: dict, dy: np.ndarray, rng: np.random.Generator):
        self.target, self.arguments, self.dy, self.rng = target, arguments, dy, rng
        self.evaluations = 0
        self.base = self.evaluate(arguments)
        self.gradients = self.base.backward(dy)
        changes = np.max([np.abs(self.stirred().y - self.base.y) for _ in range(_DRAWS)], axis=0)
        self.y_noise = 2 * changes + EPS * np.abs(self.base.y)
        self.y_noise = np.max([self.y_noise, *(self.uneven() for _ in range(_STENCILS))], axis=0)

    @property
    def noise(self) -> float:
        """ν: how far rounding may take ⟨dy, y⟩, if the errors of all outputs add up."""
        return float(np.vdot(np.abs(self.dy), self.y_noise))

    def evaluate(self, arguments: dict) -> Evaluation:
        self.evaluations += 1
        return self.target.forward(arguments)

    def stirred(self) -> Evaluation:
        """Forward with all arguments changed in their last bits."""
        return self.evaluate({name: last_bits(a, self.rng) for name, a in self.arguments.items()})

    def uneven(self) -> np.ndarray:
        """What is not smooth in y along a random direction of all arguments: twice the noise of one y, for each output.

        The fourth difference has √70 times the noise of one y, at any step. Where it grows by more than 4 when the step
        grows by 8 it is not noise: a curve's grows by 8⁴, a kink's by 6.5 and more, wherever the kink lies.
        """
        steps = {name: first_step(self, name) * signed(self.rng, a.shape) for name, a in self.arguments.items()}
        small, large = (self.fourth_difference({name: k * v for name, v in steps.items()}) for k in (1, 8))
        return np.where(large <= 4 * small, 2 / 70**0.5 * np.maximum(small, large), 0)

    def fourth_difference(self, steps: dict[str, np.ndarray]) -> np.ndarray:
        """|y(−2) − 4·y(−1) + 6·y(0) − 4·y(1) + y(2)|, y(t) being t steps away."""
        y_2, y_1, y1, y2 = (
            self.evaluate({name: a + t * steps[name] for name, a in self.arguments.items()}).y for t in (-2, -1, 1, 2)
        )
        return np.abs(y_2 + y2 - 4 * (y_1 + y1) + 6 * self.base.y)

    def backward_noise(self, name: str, v: np.ndarray) -> float:
        """What rounding inside backward may do to ⟨gradient, v⟩, by the same means as ν: eight runs.

        As a rule it is nothing beside ν/h. But where a gradient is all that is left of large terms that cancel, as in a
        batch norm over two pixels, its own digits are few.
        """
        noise = 0.0
        for _ in range(_DRAWS):
            draw = self.stirred()
            if not crossings(self.base, [draw]):  # else it is another branch's gradient, no rounding
                change = draw.backward(self.dy)[name] - self.gradients[name]
                noise = max(noise, float(np.vdot(np.abs(change), np.abs(v))))
        return 2 * noise

    def moved(self, name: str, step: np.ndarray) -> Evaluation:
        """Forward with `step` added to one argument."""
        return self.evaluate(self.arguments | {name: self.arguments[name] + step})

    @cached_property
    def jacobians(self) -> dict[str, np.ndarray]:
        """name → (y.size, a.size): the Jacobians that backward claims, from one output after another. y.size runs."""
        rows = [self.target.run(self.arguments, e.reshape(self.dy.shape)) for e in np.eye(self.dy.size)]
        return {name: np.array([row[name].ravel() for row in rows]) for name in self.arguments}

    def claim(self, name: str, v: np.ndarray) -> float:
        """The slope along v that backward claims: ⟨gradient, v⟩."""
        return float(np.vdot(self.gradients[name], v))


@dataclass
class Slope:
    """A slope along a direction, measured (`value`) and claimed by backward. `ys` are the outputs at −2h, −h, h and 2h;
    `crossed` tells, branch array by branch array, which branches differ among them: () where none does."""

    value: float
    claim: float
    truncation: float
    rounding: float
    h: float = 0.0
    ys: tuple = ()
    crossed: tuple[np.ndarray, ...] = ()

    @property
    def error(self) -> float:
        return self.value - self.claim

    @property
    def tolerance(self) -> float:
        return self.truncation + self.rounding


def central(point: Point, name: str, v: np.ndarray, h: float) -> Slope:
    """The slope along v by two central differences, h being a power of two. Four forwards.

    v is first rounded so that a ± h·v and a ± 2h·v are numbers that exist: beside a large a, the others are not where
    they seem to be. To ν's rounding is added that of the sums: of the outputs, and of what is claimed.
    """
    grid = np.spacing(np.abs(point.arguments[name]) + 2 * h * np.abs(v)) / h
    v = np.round(v / grid) * grid
    runs = [point.moved(name, t * h * v) for t in (-2, -1, 1, 2)]
    y_2, y_1, y1, y2 = ys = tuple(run.y for run in runs)
    near, far = np.vdot(point.dy, y1 - y_1) / (2 * h), np.vdot(point.dy, y2 - y_2) / (4 * h)
    sums = np.vdot(np.abs(point.dy), np.abs(y1) + np.abs(y_1)) / h
    sums += np.vdot(np.abs(point.gradients[name]), np.abs(v))
    return Slope(
        value=float((4 * near - far) / 3),
        claim=point.claim(name, v),
        truncation=float(abs(near - far) / 3),
        rounding=float(1.5 * point.noise / h + 4 * EPS * sums),
        h=h,
        ys=ys,
        crossed=crossings(point.base, runs),
    )


def crossings(base: Evaluation, runs: list[Evaluation]) -> tuple[np.ndarray, ...]:
    """Which elements of each branch array are not the same in all runs as in `base`; () if all are."""
    masks = [np.any([b != run.branches[i] for run in runs], axis=0) for i, b in enumerate(base.branches)]
    return tuple(masks) if any(mask.any() for mask in masks) else ()


def complex_slope(point: Point, name: str, v: np.ndarray) -> Slope:
    """The slope along v as Im f(a + ih·v) / h: no difference is taken, so h can be so small that nothing is truncated.

    What rounding does is again seen by changing last bits. Three forwards. Raises ValueError where forward cannot take
    complex numbers, or makes real ones of them.
    Source: Squire & Trapp, Using Complex Variables to Estimate Derivatives (SIAM Review 1998).
    """
    h = 1e-30 * scale(point.arguments[name])
    stirred = ({name: last_bits(a, point.rng) for name, a in point.arguments.items()} for _ in range(2))
    jv, *others = (_imaginary(point, name, arguments, v, h) / h for arguments in (point.arguments, *stirred))
    changes = np.max([np.abs(other - jv) for other in others], axis=0)
    rounding = np.vdot(np.abs(point.dy), 2 * changes + EPS * np.abs(jv))
    rounding += _ULPS * EPS * np.vdot(np.abs(point.gradients[name]), np.abs(v))  # of backward, and of the sum
    return Slope(float(np.vdot(point.dy, jv)), point.claim(name, v), 0.0, float(rounding))


def _imaginary(point: Point, name: str, arguments: dict, v, h) -> np.ndarray:
    advice = "complex_step=True is for forwards made of formulas that take complex numbers (no abs, no maximum)"
    try:
        y = point.evaluate(arguments | {name: arguments[name] + 1j * h * v}).y
    except Exception as error:
        raise ValueError(f"{point.target.name} failed on complex numbers: {error}. {advice}") from error
    if y.dtype.kind != "c":
        raise ValueError(f"{point.target.name} turned complex numbers into {y.dtype}. {advice}")
    return y.imag


def first_step(point: Point, name: str) -> float:
    """Where rounding and truncation should meet: a length typical of the argument, times ∛ of the relative rounding.

    A power of two, so that dividing by it is exact.
    """
    size = np.vdot(np.abs(point.dy), np.abs(point.base.y)) or 1.0
    h = scale(point.arguments[name]) * min(1, max(EPS, point.noise / size)) ** (1 / 3)
    return 2.0 ** round(math.log2(h))


def choose_step(point: Point, name: str, v: np.ndarray) -> float:
    """The step h for one argument: from where rounding and truncation should meet (`first_step`) to where they do.

    It is good enough when an error of 10⁻⁴ in one single element of usual size would stand out 10⁴ times. From the
    start, ×16 while rounding is the larger error, ÷16 while truncation is, as long as that helps, but never longer than
    the values themselves: ν was measured here, not there. About six slopes at most.
    """
    best = central(point, name, v, first_step(point, name))
    aim = 1e-8 * rms(point.gradients[name]) * rms(v)
    factor = 16 if best.rounding > best.truncation else 1 / 16
    while not best.crossed and best.tolerance > aim and best.h * factor <= scale(point.arguments[name]):
        trial = central(point, name, v, best.h * factor)
        if trial.crossed or not trial.tolerance < best.tolerance:
            break
        best = trial
    return best.h


def taylor(point: Point, name: str, v: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The remainders |f(t) − f(0) − t·⟨gradient, v⟩| at `steps`: they shrink as t² if the gradient is right, else t."""
    changes = [np.vdot(point.dy, point.moved(name, t * v).y - point.base.y) for t in steps]
    return np.abs(np.array(changes) - steps * point.claim(name, v))


def taylor_order(point: Point, name: str, v: np.ndarray, h: float) -> float:
    """The exponent at which the remainder shrinks between 8h and h; nan where it is all rounding (f is linear)."""
    steps = h * np.array([1.0, 2.0, 4.0, 8.0])
    remainders = taylor(point, name, v, steps)
    if min(remainders) <= point.noise:
        return math.nan
    return float(np.median(np.diff(np.log2(remainders))))


def elements(point: Point, name: str, h: float, indices) -> np.ndarray:
    """The gradient measured element by element, two forwards each; nan for elements not in `indices` or at a kink."""
    gradient = np.full(point.arguments[name].shape, np.nan)
    for index in indices:
        v = single(gradient.shape, index)
        ahead, behind = point.moved(name, h * v), point.moved(name, -h * v)
        if not crossings(point.base, [ahead, behind]):
            gradient[index] = np.vdot(point.dy, ahead.y - behind.y) / (2 * h)
    return gradient


def some_of(shape: tuple, limit: int, rng: np.random.Generator) -> list[tuple]:
    """The indices of all elements, or of `limit` of them, in random order."""
    return [np.unravel_index(int(i), shape) for i in rng.permutation(math.prod(shape))[:limit]]


def single(shape: tuple, index: tuple) -> np.ndarray:
    """The direction of one element."""
    v = np.zeros(shape)
    v[index] = 1
    return v


def directions(gradient: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str | tuple, np.ndarray]]:
    """(where, v), the most telling first: everywhere, single elements, first and last slices, and random slices.

    A direction everywhere has an entry of at least 0.5 in every element, so that no error hides in a small one. Slices
    catch what is wrong in a corner of small gradients: a border, one channel, the last sample, the last rows.
    """
    shape = gradient.shape
    yield "everywhere", signed(rng, shape)
    largest = np.unravel_index(np.argmax(np.abs(gradient)), shape)
    for index in (largest, *(tuple(rng.integers(shape)) for _ in range(2))):
        yield tuple(map(int, index)), single(shape, index)
    yield "everywhere", signed(rng, shape)
    for axis, size in enumerate(shape):
        if len(shape) > 1 and size > 1:
            for i in {0, size - 1, int(rng.integers(size))}:
                where = (slice(None),) * axis + (i,)
                v = np.zeros(shape)
                v[where] = signed(rng, v[where].shape)
                yield f"axis {axis} at {i}", v


def scale(a: np.ndarray) -> float:
    """A length typical of the values: their spread, or size where they do not spread, or 1."""
    return float(np.std(a) or rms(a) or 1.0)


def rms(a: np.ndarray) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.abs(a) ** 2))) if np.size(a) else 0.0


def last_bits(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`a` with every element changed by up to 8 units in its last place, up or down."""
    return a + a * (_ULPS * EPS * rng.uniform(-1, 1, a.shape))  # not a·(1 + …), which would spare the very last bit
