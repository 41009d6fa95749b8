"""`check_conv`: a rung of the ladder is an op of x and w on every geometry, and is held to the seven loops."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minivgg.backends.array import kind_of, to_cpu
from minivgg.backends.cuda import accumulator
from minivgg.ops.conv2d import ALGORITHMS, Algorithm, check_algorithm, naive
from minivgg.testing.arrays import put, workspace_of
from minivgg.testing.cases import GEOMETRIES, Case, Op, conv_case, spec_of
from minivgg.testing.report import Broken, Report
from minivgg.testing.rules import POLITE, RULES
from minivgg.testing.suite import hold
from minivgg.testing.trials import Trial, agree, quiet, rule


def check_conv(
    algorithm: str | Algorithm,
    *geometries: str,
    without: Iterable[str] = (),
    devices: Iterable[str] | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Hold a convolution algorithm to all rules, on those `GEOMETRIES` (or those of them named) that it supports.

        check_conv("im2col")
        check_conv(Algorithm("mine", "why", forward, grad_input, grad_weight))      # it need not be in ALGORITHMS

    Besides the rules for ops: each pass gives what `naive` gives in float64, up to rounding; also with scratch memory
    for a row or three. `without` leaves out rules by their titles; `devices` as for `check_op`. Cost: about 80 passes
    and a gradient check for each geometry. Raises AssertionError as `check_op` does; BadInput for an unknown name,
    KeyError for a geometry.
    """
    if isinstance(algorithm, str):
        check_algorithm(algorithm)
        algorithm = ALGORITHMS[algorithm]
    op = conv_op(algorithm, geometries or GEOMETRIES)
    return hold(op, CONV_RULES, without=without, devices=devices, raise_on_failure=raise_on_failure)


@dataclass(frozen=True)
class ConvOp(Op):
    """A convolution algorithm as an op of x and w."""

    algorithm: Algorithm | None = None

    def runs(self, case: Case, device: str, dtype) -> bool:
        return not self.algorithm.why_not(spec_of(case), kind_of(device), dtype)

    def eps(self, dtype) -> float:
        return max(super().eps(dtype), self.algorithm.eps if dtype == np.float32 else 0.0)


def conv_op(algorithm: Algorithm, geometries: Iterable[str]) -> ConvOp:
    """An algorithm without what is above it (bias, validation, the choice of an algorithm) as a row of the table.

    Where rules ask what float64 gives, and it takes none, the seven loops say it.
    """

    def row_for(x) -> Algorithm:
        return algorithm if x.dtype.name in algorithm.dtypes else naive.ALGORITHM

    def forward(x, w, **options):
        spec = spec_of(Case(x.shape, w.shape, **options))
        return row_for(x).forward(x, w, spec), (x, w, spec)

    def backward(dy, cache):
        x, w, spec = cache
        return row_for(x).grad_input(dy, w, spec), row_for(x).grad_weight(dy, x, spec)

    cases = tuple(conv_case(geometry, bias=False) for geometry in geometries)
    name = forward.__name__ = f"algorithm {algorithm.name}"  # reports of the gradient check are headed by it
    return ConvOp(name, forward, backward, cases, affine_in=("x", "w"), algorithm=algorithm)


def by_naive(trial: Trial) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(what the seven loops give in float64, how far rounding may be from it), by name.

    A sum of `terms` products, added in any order, is off by at most terms · eps/2 · Σ|a|·|b| to first order, where the
    sum is the very same pass over |a| and |b|. Taken twice, for the second order; and the largest one for all, because
    fast algorithms mix neighbouring pixels before they add; and times the `growth` that the algorithm admits to. What a
    product itself may be off by, the algorithm's `eps`, counts once: it is as large in every term of Σ|a|·|b|.

    Products of float16 are exact in float32, and are added up there: `eps` is float32's. The result is then rounded to
    float16, off by 2⁻¹¹ of itself, as terms may have been that went through memory: together float16's own eps, 2⁻¹⁰,
    of Σ|a|·|b|.
    """
    spec, eps = spec_of(trial.case), np.finfo(accumulator(trial.dtype)).eps
    x, w, dy = (to_cpu(a).astype(np.float64) for a in (*trial.arguments(), trial.upstream()))
    passes = {
        "y": (naive.forward, x, w, spec.columns),
        "dx": (naive.grad_input, dy, w, spec.O * spec.KH * spec.KW),
        "dw": (naive.grad_weight, dy, x, spec.N * spec.OH * spec.OW),
    }
    expected = {name: loops(a, b, spec) for name, (loops, a, b, _) in passes.items()}
    eps *= trial.op.algorithm.growth
    product = trial.op.eps(trial.dtype) - np.finfo(accumulator(trial.dtype)).eps  # beyond a sum's own rounding
    bounds = {
        name: (terms * eps + product) * loops(abs(a), abs(b), spec).max()
        for name, (loops, a, b, terms) in passes.items()
    }
    return expected, bounds


@rule(
    "all three passes give what the seven loops give",
    "Try the smallest geometry that fails, with x all zeros but for a single one: y is then the filter, flipped, where "
    "that one was seen. Beyond the border x counts as zero; the indices are those of ops/conv2d/naive.py.",
)
def matches_naive(trial):
    expected, bounds = by_naive(trial)
    agree(trial.run(), expected, "by the seven loops", tolerance=bounds)


@rule(
    "little memory gives the same",
    "Under a small `workspace.limit()` the work is done in chunks: look at where one begins, and at the last one, "
    "which may be smaller.",
)
def works_in_chunks(trial):
    expected, bounds = by_naive(trial)
    row = spec_of(trial.case).OW * spec_of(trial.case).columns * trial.dtype.itemsize
    for rows in (0.001, 1, 3):
        with workspace_of(rows * row):
            where = f"with a workspace of {rows} rows of columns"
            agree(trial.run(), expected, "by the seven loops", tolerance=bounds, where=where)


@rule(
    "supports() says None, or why not",
    "`supports(spec, device)` returns None where the algorithm works, and elsewhere a text that a user will read.",
)
def says_why_not(trial):
    for device in ("cpu", "gpu"):
        why = trial.op.algorithm.supports(spec_of(trial.case), device)
        if not (why is None or (isinstance(why, str) and why)):
            raise Broken("None or a text", repr(why), where=f'supports(spec, "{device}")')


@rule(
    "what is not finite stays where the seven loops put it",
    "Pixels that an output does not see must not enter its sum: ∞ − ∞ is NaN. An algorithm that mixes those of a tile "
    "may look at its results, and turn to minivgg.ops.conv2d.taps where they are not finite, or say that it `mixes`.",
    lambda trial: kind_of(trial.device) not in trial.op.algorithm.mixes,
)
@quiet()
def contains_what_is_not_finite(trial):
    spec, (_, bounds) = spec_of(trial.case), by_naive(trial)
    x, w, dy = (np.array(to_cpu(a)) for a in (*trial.arguments(), trial.upstream()))
    for value in (np.inf, -np.inf, np.nan):
        x.reshape(-1)[x.size // 2] = dy.reshape(-1)[dy.size // 2] = value
        found = trial.run((put(x, trial.device), put(w, trial.device)), put(dy, trial.device))
        wide = x.astype(np.float64), w.astype(np.float64), dy.astype(np.float64)
        expected = {"y": naive.forward(*wide[:2], spec), "dx": naive.grad_input(wide[2], wide[1], spec)}
        if kind_of(trial.device) == "gpu":  # tensor cores multiply what is left of ∞ once a half is taken: NaN
            found, expected = (
                {k: np.where(np.isfinite(a), a, np.nan) for k, a in d.items()} for d in (found, expected)
            )
        agree(found, expected, "by the seven loops", tolerance=bounds, where=f"an x and a dy of {value}")


CONV_RULES = [
    says_why_not,
    *(rule for rule in RULES if rule not in POLITE),  # which is for what stands above an algorithm
    matches_naive,
    works_in_chunks,
    contains_what_is_not_finite,
]
