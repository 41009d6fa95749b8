"""What must hold of any backward, whatever it computes: cheap, exact where it can be, and the first thing looked at.

Each rule takes the target, arguments, dy and its gradients, and returns None or, in words, how it is broken.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.gradcheck.numeric import EPS, last_bits, scale
from minivgg.gradcheck.targets import Target, signed


@dataclass
class Invariant:
    """One rule: its name, whether it holds, and if not, what was seen."""

    name: str
    ok: bool
    detail: str = ""


@dataclass
class Case:
    """What the rules are tried on. `other` is a second set of arguments of the same shapes."""

    target: Target
    arguments: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    dy: np.ndarray
    rng: np.random.Generator

    def __post_init__(self):
        self.run(self.dy, self.other)  # first, so that a cache that is filled only once holds this
        self.y = self.target.forward(self.arguments).y
        self.gradients = self.run(self.dy)
        draws = [self.run(last_bits(self.dy, self.rng)) for _ in range(4)]
        self._rounding = {n: max(_apart(draw[n], g) for draw in draws) for n, g in self.gradients.items()}

    def run(self, dy, arguments=None, *, as_given=False) -> dict[str, np.ndarray | None]:
        return self.target.run(self.arguments if arguments is None else arguments, dy, as_given=as_given)

    def tolerance(self, name: str, *gradients) -> float:
        """How far apart two correctly rounded ways to the sum of `gradients` may come.

        64 times what a change of dy's last bits does: it is the size of what cancels in backward that matters, not that
        of what is left. And half of all digits, √eps: rounding that eats more leaves nothing to check, and what breaks
        a rule is as large as the gradient itself. And what could not be seen in y if the argument changed altogether.
        """
        unseen = EPS * np.vdot(np.abs(self.dy), np.abs(self.y)) / scale(self.arguments[name])
        return sum(64 * self._rounding[name] + EPS**0.5 * _largest(g) + unseen for g in gradients)


def shape_and_dtype(case: Case) -> str | None:
    for name, a in case.arguments.items():
        g = case.gradients[name]
        if g is None:
            return f"backward left no gradient for {name}"
        if g.shape != a.shape or g.dtype != a.dtype:
            return f"{name} is {a.shape} {a.dtype}, its gradient {g.shape} {g.dtype}"
    return None if case.y.dtype == np.float64 else f"forward turned float64 into {case.y.dtype}"


def finite(case: Case) -> str | None:
    bad = ["y"] if not np.isfinite(case.y).all() else []
    bad += [f"the gradient of {name}" for name, g in case.gradients.items() if not np.isfinite(g).all()]
    return f"nan or infinity in {' and '.join(bad)}" if bad else None


def same_bits_twice(case: Case) -> str | None:
    """Several runs, since a mask drawn anew may be the same by chance. y is looked at as well: noise may miss the
    gradient."""
    advice = "; where random numbers are drawn, seed their generator anew in every forward"
    for _ in range(4):
        again = case.target.forward(case.arguments)
        if not np.array_equal(again.y, case.y):
            return f"a second forward gives another y{advice}"
        different = _first_difference(
            again.backward(case.dy), case.gradients, "a second run gives another gradient of {}"
        )
        if different:
            return different + advice
    return None


def leaves_arguments_alone(case: Case) -> str | None:
    given = {name: a.copy(order="K") for name, a in case.arguments.items()}
    dy = case.dy.copy(order="K")
    case.run(dy, given, as_given=True)
    changed = [name for name, a in case.arguments.items() if not np.array_equal(given[name], a)]
    changed += [] if np.array_equal(dy, case.dy) else ["dy"]
    return f"{' and '.join(changed)} written to" if changed else None


def linear_in_dy(case: Case) -> str | None:
    """backward(2·dy − 3·dy′) = 2·backward(dy) − 3·backward(dy′)"""
    dy = signed(case.rng, case.dy.shape)
    of_sum, of_other = case.run(2 * case.dy - 3 * dy), case.run(dy)
    for name, g in case.gradients.items():
        expected = 2 * g, -3 * of_other[name]
        apart = _apart(of_sum[name], sum(expected))
        if not apart <= 4 * case.tolerance(name, *expected):
            return f"backward of 2·dy − 3·dy′ is not 2 and −3 times those of dy and dy′: off by {apart:.2g} for {name}"
    return None


def zero_gives_zero(case: Case) -> str | None:
    wrong = [name for name, g in case.run(np.zeros_like(case.dy)).items() if g.any()]
    return f"dy = 0 gives a gradient of {', '.join(wrong)} that is not 0" if wrong else None


def no_stale_cache(case: Case) -> str | None:
    """Other arguments in between change nothing. Flipped, for near ones would leave a shared ReLU's mask as it was."""
    other = {name: np.flip(a) for name, a in case.other.items()}
    if not case.target.explicit:
        case.run(case.dy, other)
        return _first_difference(case.run(case.dy), case.gradients, "after other inputs, the gradient of {} is another")
    backward = case.target.forward(case.arguments).backward
    case.target.forward(other)
    detail = "a forward with other inputs in between changes the gradient of {}: the cache is shared"
    once = _first_difference(backward(case.dy), case.gradients, detail)
    return once or _first_difference(backward(case.dy), case.gradients, "backward spoils its cache: called twice, {}")


def any_memory_order(case: Case) -> str | None:
    """Arguments and dy that lie in memory channels last, or as every second element of something larger."""
    for order, lay in {"channels-last": _channels_last, "strided": _strided}.items():
        laid_out = {name: lay(a) for name, a in case.arguments.items()}
        gradients = case.run(lay(case.dy), laid_out, as_given=True)
        for name, g in case.gradients.items():
            if not _apart(gradients[name], g) <= case.tolerance(name, g):
                return f"{order} memory gives another gradient of {name}, off by {_apart(gradients[name], g):.2g}"
    return None


def accumulates(case: Case) -> str | None:
    """Two passes leave twice the gradient in every parameter."""
    twice = case.target.run_twice(case.arguments, case.dy)
    for name, g in case.gradients.items():
        if name != "x" and not _apart(twice[name], 2 * g) <= case.tolerance(name, g, g):
            seen = "overwritten" if _apart(twice[name], g) <= case.tolerance(name, g) else "not the sum of both"
            return f"after two passes the gradient of {name} is {seen}: it must accumulate"
    return None


def batch_leak(case: Case) -> str | None:
    """For a diagnosis: outputs of sample 0 that do not depend on the other samples, with a gradient that does.

    Not a rule: batch norm mixes samples, and rightly so. None where there is nothing to be seen.
    """
    name, x = next(iter(case.arguments.items()))
    if not (x.ndim and case.y.ndim and len(x) == len(case.y) > 1):
        return None
    mixed = np.concatenate([x[:1], case.other[name][1:]])
    arguments, dy = case.arguments | {name: mixed}, np.concatenate([case.dy[:1], -case.dy[1:]])
    if not np.array_equal(case.target.forward(arguments).y[:1], case.y[:1]):
        return None
    g = case.gradients[name]
    if _apart(case.run(dy, arguments)[name][:1], g[:1]) <= case.tolerance(name, g):
        return None
    return f"{name}: a batch leak: the gradient of sample 0 depends on the other samples, though its output does not"


REPEATABLE = "two runs give the same bits"  # where it is broken no slope can be measured

RULES: dict[str, Callable[[Case], str | None]] = {
    "gradients have the arguments' shapes and dtypes": shape_and_dtype,
    "everything is finite": finite,
    REPEATABLE: same_bits_twice,
    "arguments and dy are left alone": leaves_arguments_alone,
    "backward is linear in dy": linear_in_dy,
    "dy = 0 gives 0": zero_gives_zero,
    "other inputs in between do not matter": no_stale_cache,
    "memory order does not matter": any_memory_order,
    "parameter gradients accumulate": accumulates,
}


def try_rules(case: Case) -> list[Invariant]:
    """One row for each rule; after a missing, misshapen, infinite or random gradient no more are tried.."""
    rows = []
    for name, rule in RULES.items():
        if rule is accumulates and not case.target.accumulates:
            continue
        detail = rule(case)
        rows.append(Invariant(name, detail is None, detail or ""))
        if detail and rule in (shape_and_dtype, finite, same_bits_twice):
            break
    return rows


def _largest(g) -> float:
    return float(np.max(np.abs(g), initial=0))


def _apart(g, reference) -> float:
    """The largest difference; infinite between arrays that cannot be compared."""
    if g is None or reference is None or g.shape != reference.shape:
        return np.inf
    return _largest(g - reference)


def _first_difference(gradients: dict, expected: dict, detail: str) -> str | None:
    for name, g in gradients.items():
        if not np.array_equal(g, expected[name]):
            return detail.format(name)
    return None


def _channels_last(a):
    """(N, C, …) with C varying fastest; a matrix, whose C does already, comes out transposed in memory."""
    if a.ndim == 2:
        return np.asfortranarray(a)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a


def _strided(a):
    """The same values inside a larger array of nans, which must never be read."""
    if a.ndim == 0:
        return a
    larger = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan)
    larger[..., ::2] = a
    return larger[..., ::2]
