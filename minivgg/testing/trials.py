"""What a rule is tried on (`Trial`), what a rule is (`Rule`), and when two answers agree.

A tolerance is measured, not guessed: the op is run in float64 on arguments that are changed by a few units in the last
place of the dtype in question. What that does to its answers is what rounding may do to them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivgg.backends.array import to_cpu
from minivgg.testing.arrays import laid_out, put, stirred
from minivgg.testing.cases import Case, Op
from minivgg.testing.report import Broken


@dataclass(frozen=True)
class Trial:
    """One op, on one case, in one dtype, on one device."""

    op: Op
    case: Case
    dtype: np.dtype
    device: str

    def __str__(self) -> str:
        named = (f"{n} {s}" for n, s in zip(self.op.arguments(self.case), self.case.shapes, strict=True))
        options = repr(Case(**self.case.options))
        return ", ".join([*named, *([options] if options else []), str(self.dtype), self.device])

    @property
    def names(self) -> tuple[str, ...]:
        """What answers are called: "y", "dx", …"""
        return "y", *(f"d{name}" for name in self.op.arguments(self.case))

    @cached_property
    def options(self) -> dict:
        return {key: put(value, self.device) for key, value in self.case.options.items()}

    def arguments(self, *, seed: int = 0, order: str = "C order") -> tuple:
        """The arrays, drawn anew on each call: nobody spoils them for somebody else."""
        rng = np.random.default_rng(seed)
        arrays = (self.case.draw(rng, shape, self.dtype) for shape in self.case.shapes)
        return tuple(laid_out(put(a, self.device), order) for a in arrays)

    @cached_property
    def y_shape(self) -> tuple:
        return np.shape(self.op.call(self.arguments(), self.options)[0])

    def upstream(self, *, seed: int = 1, order: str = "C order"):
        """dy, random and signed; a number where y is one."""
        dy = self.case.draw(np.random.default_rng(seed), self.y_shape, self.dtype)
        return laid_out(put(dy, self.device), order)[()]

    def raw(self, arguments: tuple | None = None, dy=None) -> dict:
        """One pass each way: the very arrays that the op returned, by name."""
        y, backward = self.op.call(self.arguments() if arguments is None else arguments, self.options)
        gradients = backward(self.upstream() if dy is None else dy)
        if len(gradients) != len(self.case.shapes):
            raise Broken(f"a gradient for each of {', '.join(self.names[1:])}", f"{len(gradients)} gradients")
        return dict(zip(self.names, (y, *gradients), strict=True))

    def run(self, arguments: tuple | None = None, dy=None) -> dict[str, np.ndarray]:
        """The same as copies in main memory."""
        return copies(self.raw(arguments, dy))

    def in_float64(self, eps: float = 0.0, seed: int = 2) -> dict[str, np.ndarray]:
        """The op's answers to the same arguments in float64, stirred by some units of eps."""
        rng = np.random.default_rng(seed)
        arrays = (to_cpu(a).astype(np.float64) for a in (*self.arguments(), self.upstream()))
        *arguments, dy = (put(stirred(a, eps, rng), self.device) for a in arrays)
        return self.run(tuple(arguments), dy[()])

    def in_float64_on(self, arrays: tuple) -> np.ndarray:
        """y for these arrays in float64."""
        return np.array(to_cpu(self.op.call(tuple(a.astype(np.float64) for a in arrays), self.options)[0]))

    @cached_property
    def rounding(self) -> dict[str, float]:
        """How far rounding in this dtype may carry an element of each answer."""
        eps, exact = self.op.eps(self.dtype), self.in_float64()
        draws = [self.in_float64(eps, seed) for seed in range(4)]
        changes = {name: max(_largest(draw[name] - a) for draw in draws) for name, a in exact.items()}
        return {name: 4 * changes[name] + 8 * eps * _largest(a) for name, a in exact.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, NumPy warns of nothing: what is tried there has no numbers, or none that are finite."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def copies(answers: dict) -> dict[str, np.ndarray]:
    """Copies in main memory."""
    return {name: np.array(to_cpu(a)) for name, a in answers.items()}


def _largest(a) -> float:
    return float(np.max(np.abs(a), initial=0))


def agree(found: dict, expected: dict, why: str, *, tolerance: dict | None = None, where: str = "") -> None:
    """Raise `Broken` unless each array of `expected` is in `found`: to the last bit, or within a tolerance by name."""
    for name, e in expected.items():
        f, allowed = found[name], 0.0 if tolerance is None else tolerance[name]
        if np.shape(f) != np.shape(e):
            raise Broken(f"{name} {why}: {np.shape(e)}", f"{name} {np.shape(f)}", where=where)
        with np.errstate(invalid="ignore"):
            off = ~((np.abs(f - e) <= allowed) | (f == e) | (np.isnan(f) & np.isnan(e)))
        if off.any():
            at = np.unravel_index(np.argmax(np.where(off, np.nan_to_num(np.abs(f - e), nan=np.inf), -1)), np.shape(e))
            place = f"[{', '.join(map(str, at))}]" if at else ""
            limit = f", where rounding explains {allowed:.2g}" if tolerance else ""
            raise Broken(
                f"{name} {why}",
                f"{name}{place} = {f[at]:.9g}, not {e[at]:.9g}; {off.sum()} of {off.size} elements differ{limit}",
                where=where,
            )


@dataclass(frozen=True)
class Rule:
    """A promise in words, where to look when it is broken, the function that tries it, and on which trials."""

    title: str
    advice: str
    holds: Callable[[Trial], None]
    applies: Callable[[Trial], bool]


def rule(title: str, advice: str, applies: Callable[[Trial], bool] = lambda trial: True):
    """Make a `Rule` of a function."""
    return lambda function: Rule(title, advice, function, applies)
