"""What must hold of any op: a dozen rules, each a function of a `Trial` that raises `Broken` where it does not.

A tolerance is measured, not guessed: the op is run in float64 on arguments that are changed by a few units in the last
place of the dtype in question. What that does to its answers is what rounding may do to them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from minivgg.backends.array import to_cpu, xp_of
from minivgg.testing.arrays import MEMORY_ORDERS, laid_out, put, stirred, threads
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

    @cached_property
    def rounding(self) -> dict[str, float]:
        """How far rounding in this dtype may carry an element of each answer."""
        eps, exact = self.op.eps(self.dtype), self.in_float64()
        draws = [self.in_float64(eps, seed) for seed in range(4)]
        changes = {name: max(_largest(draw[name] - a) for draw in draws) for name, a in exact.items()}
        return {name: 4 * changes[name] + 8 * eps * _largest(a) for name, a in exact.items()}


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


@rule(
    "there is one gradient for each argument, in its shape",
    "Sum over every dimension along which forward repeated the argument (a bias: over all but the channels), and look "
    "at each transpose and reshape. What backward returns is in the order of forward's arguments.",
)
def shapes(trial):
    answers = trial.raw()
    for name, a in zip(trial.names[1:], trial.arguments(), strict=True):
        if getattr(answers[name], "shape", None) != a.shape:
            found = f"{name} {np.shape(answers[name])}" if answers[name] is not None else f"no {name}: None"
            raise Broken(f"{name} {a.shape}", found)


@rule(
    "dtype in is dtype out",
    "Make new arrays like old ones (np.zeros_like, or dtype=x.dtype). np.zeros(n), rng.standard_normal(n) and "
    "array scalars such as np.sqrt(2.0) are float64, and turn what they touch into float64.",
)
def dtypes(trial):
    for name, a in trial.raw().items():
        if getattr(a, "dtype", type(a)) != trial.dtype:
            raise Broken(f"{name} in {trial.dtype}, as the arguments are", f"{name} in {getattr(a, 'dtype', type(a))}")


@rule(
    "arguments and dy are left alone",
    "Some line writes to what it was given: +=, *=, out=, x[mask] = 0, a sort or a shuffle. Through a view (reshape, "
    "transpose, a slice) one writes to the original as well. Copy first.",
)
def leaves_arguments_alone(trial):
    named = (*trial.op.arguments(trial.case), "dy")
    for order in MEMORY_ORDERS:
        arrays, dy = trial.arguments(order=order), trial.upstream(order=order)
        trial.raw(arrays, dy)
        before = copies(dict(zip(named, (*trial.arguments(), trial.upstream()), strict=True)))
        after = copies(dict(zip(named, (*arrays, dy), strict=True)))
        agree(after, before, "as it was before the call", where=order)


@rule(
    "twice the same gives the same bits",
    "Look for a random generator that goes on instead of starting at its seed, uninitialised memory (np.empty), and a "
    "backward that changes the cache it was given.",
)
def same_bits_twice(trial):
    arrays, dy = trial.arguments(), trial.upstream()
    y, backward = trial.op.call(arrays, trial.options)
    first = copies(dict(zip(trial.names, (y, *backward(dy)), strict=True)))
    again = copies(dict(zip(trial.names, (first["y"], *backward(dy)), strict=True)))
    agree(again, first, "the same when backward is called again with the same cache")
    agree(trial.run(), first, "the same in a second run")


@rule(
    "a cache belongs to its forward",
    "Another forward in between must not matter: keep what backward needs in the cache, not in a global variable, an "
    "attribute, or memory that the next forward writes to.",
)
def no_stale_cache(trial):
    expected = trial.run()
    _, backward = trial.op.call(trial.arguments(), trial.options)
    trial.op.call(trial.arguments(seed=5), trial.options)
    answers = copies(dict(zip(trial.names[1:], backward(trial.upstream()), strict=True)))
    agree(answers, {name: expected[name] for name in answers}, "the same after a forward of something else")


@rule(
    "answers stay when others are computed",
    "An answer must be memory of its own: here it is a buffer that the next call fills with something else.",
)
def answers_stay(trial):
    answers = trial.raw()
    kept = copies(answers)
    trial.raw(trial.arguments(seed=5), trial.upstream(seed=6))
    agree(copies(answers), kept, "as it was before a call with other arguments")


@rule(
    "answers share no memory",
    "Return a copy, or write into a new array. Whoever adds to a gradient later, as two passes do to a parameter's, "
    "would change the array that it is a view of.",
)
def owns_answers(trial):
    arrays, dy = trial.arguments(), trial.upstream()
    answers = trial.raw(arrays, dy)
    given = dict(zip((*trial.op.arguments(trial.case), "dy"), (*arrays, dy), strict=True))
    allowed = {("y", trial.names[1][1:]), (trial.names[1], "dy")} if trial.op.views else set()
    names = list(answers)
    pairs = [(a, b) for i, a in enumerate(names) for b in (*names[:i], *given)]
    for a, b in pairs:
        one, two = answers[a], given[b] if b in given else answers[b]
        if (a, b) not in allowed and np.ndim(one) and np.ndim(two) and xp_of(one).shares_memory(one, two):
            raise Broken(f"{a} in memory of its own", f"{a} shares memory with {b}")


@rule(
    "any number of threads gives the same bits",
    "Two threads add to the same place, or each thread's share of a sum depends on how many there are. Give every "
    "output to one thread, and cut sums into blocks of fixed size.",
    lambda trial: trial.device == "cpu" and numba.config.NUMBA_NUM_THREADS > 1,
)
def any_number_of_threads(trial):
    with threads(1):
        alone = trial.run()
    with threads(numba.config.NUMBA_NUM_THREADS):
        for _ in range(3):  # threads that race do not lose every time
            agree(trial.run(), alone, f"on {numba.config.NUMBA_NUM_THREADS} threads what it is on one")


@rule(
    "memory order does not matter",
    "Walk memory by strides (index as x[n, c, h, w]), or ask for the order first: np.ascontiguousarray(x), or "
    "minivgg.backends.array.nhwc(x). A pointer, a view by as_strided and ravel(order='K') all see memory, not values.",
)
def any_memory_order(trial):
    expected, tolerance = trial.run(), None if trial.op.bits else trial.rounding
    for order in list(MEMORY_ORDERS)[1:]:
        found = trial.run(trial.arguments(order=order), trial.upstream(order=order))
        agree(found, expected, "what it is in C order", tolerance=tolerance, where=order)


@rule(
    "backward is linear in dy",
    "Backward multiplies dy by something that only forward's arguments decide. Look for dy where y or the cache is "
    "meant, a constant added, a threshold on dy, a cache that backward changes.",
)
def linear_in_dy(trial):
    _, backward = trial.op.call(trial.arguments(), trial.options)
    one, two = trial.upstream(seed=1), trial.upstream(seed=2)

    def of(dy):
        return copies(dict(zip(trial.names[1:], backward(dy), strict=True)))

    of_one, of_two = of(one), of(two)
    power = {name: -4 * g for name, g in of_one.items()}
    agree(of(-4 * one), power, "of −4·dy, −4 times that of dy: no digit is lost")
    # two tolerances for one gradient and one for the other, whose dy is as large
    allowed = {name: 3 * tolerance for name, tolerance in trial.rounding.items()}
    total = {name: g + of_two[name] for name, g in of_one.items()}
    agree(of(one + two), total, "of dy + dy′, the sum of those of dy and dy′", tolerance=allowed)


@rule(
    "dy = 0 gives 0",
    "Some term of backward does not have dy as a factor.",
)
def zero_gives_zero(trial):
    _, *gradients = trial.run(dy=0 * trial.upstream()).items()
    agree(dict(gradients), {name: 0 * g for name, g in gradients}, "zero where dy is")


@rule(
    "a foreign dy is refused",
    "Begin backward with minivgg.ops.windows.check_gradient(name, dy, y.shape, x.dtype), or raise a ValueError that "
    "gives both shapes. NumPy broadcasts what does not fit, and the mistake shows far away.",
)
def refuses_foreign_dy(trial):
    dy = trial.upstream()
    if np.ndim(dy):
        foreign = {"shape": dy[..., :-1], "shape that broadcasts": dy[..., :1], "dtype": dy.astype(np.float16)}
    else:
        foreign = {"shape": xp_of(dy).ones(3, trial.dtype)}
    for what, wrong in foreign.items():
        if (wrong.shape, wrong.dtype) == (trial.y_shape, trial.dtype):
            continue
        _, backward = trial.op.call(trial.arguments(), trial.options)
        given = f"dy of another {what}: {wrong.shape} {wrong.dtype}"
        try:
            backward(wrong)
        except ValueError as error:
            if not re.search("float16" if what == "dtype" else r"\(\d*,?", str(error)):
                raise Broken("a ValueError that says what was given", f"“{error}”", where=given) from error
        except Exception as error:
            raise Broken("a ValueError", f"{type(error).__name__}: {error}", where=given) from error
        else:
            raise Broken("a ValueError", "an answer", where=given)


@rule(
    "forward computes what the formula says",
    "Work one small case by hand, on paper, and print both. If only the border is wrong look at padding, if only one "
    "channel at broadcasting, if only float32 at a sum that loses digits.",
    lambda trial: trial.op.oracle is not None,
)
def matches_oracle(trial):
    arrays = [to_cpu(a).astype(np.float64) for a in trial.arguments()]
    expected = {"y": np.asarray(trial.op.oracle(*arrays, **trial.case.options))}
    agree(trial.run(), expected, "by the formula", tolerance=trial.rounding)


@rule(
    "float32 gives what float64 gives",
    "The float32 path is another one, or loses digits: a sum over many small numbers, a difference of large ones.",
    lambda trial: trial.dtype != np.float64,
)
def like_float64(trial):
    agree(trial.run(), trial.in_float64(), "what float64 makes of it", tolerance=trial.rounding)


@rule(
    "gradients are adjoint to forward",
    "⟨y(a) − y(0), dy⟩ = ⟨a, da⟩ for whatever y is linear in: the gradient goes every way that forward went, but back. "
    "Look for a window, a stride, a padding or a flip that the two do not share.",
    lambda trial: bool(trial.op.affine_in),
)
def adjoint(trial):
    names, arrays, dy = trial.op.arguments(trial.case), trial.arguments(), to_cpu(trial.upstream()).astype(np.float64)
    answers, rounding = trial.run(arrays), trial.rounding
    for i, (name, a) in enumerate(zip(names, arrays, strict=True)):
        if name in trial.op.affine_in:
            without = trial.run((*arrays[:i], 0 * a, *arrays[i + 1 :]))["y"].astype(np.float64)
            a = to_cpu(a).astype(np.float64)
            left, right = np.vdot(answers["y"] - without, dy), np.vdot(a, answers[f"d{name}"])
            allowed = 2 * rounding["y"] * np.abs(dy).sum() + rounding[f"d{name}"] * np.abs(a).sum()
            if not abs(left - right) <= allowed:
                raise Broken(
                    f"⟨y − y({name} = 0), dy⟩ = ⟨{name}, d{name}⟩",
                    f"{left:.9g} ≠ {right:.9g}, a ratio of {right / left if left else np.inf:.6g}; rounding explains "
                    f"a difference of {allowed:.2g}",
                )


@rule(
    "gradients are the slopes of forward",
    "Read the diagnosis above; report.failures[-1].gradient.plot() shows where the gradient is wrong.",
    lambda trial: trial.dtype == np.float64,
)
def slopes(trial):
    report = trial.op.check_gradient(trial.case, trial.device)
    if not all(row.ok for row in report.rows):  # its invariants are rules here, each by itself
        raise Broken("backward that agrees with differences of forward", str(report), gradient=report)


RULES = [
    shapes,
    dtypes,
    leaves_arguments_alone,
    same_bits_twice,
    no_stale_cache,
    answers_stay,
    owns_answers,
    any_number_of_threads,
    any_memory_order,
    linear_in_dy,
    zero_gives_zero,
    refuses_foreign_dy,
    matches_oracle,
    like_float64,
    adjoint,
    slopes,
]
