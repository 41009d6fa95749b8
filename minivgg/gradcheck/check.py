"""The check itself: invariants first, then slopes, then, only if something is wrong, what kind of wrong."""

import math
import time

import numpy as np

from minivgg.backends.array import to_cpu
from minivgg.gradcheck.examine import Plan, examine, worse
from minivgg.gradcheck.inquest import inquire
from minivgg.gradcheck.invariants import REPEATABLE, Case, try_rules
from minivgg.gradcheck.numeric import Point, scale
from minivgg.gradcheck.report import Report, Row
from minivgg.gradcheck.targets import Target, as_target, signed


def check(
    target,
    *inputs,
    seed: int = 0,
    dy=None,
    options: dict | None = None,
    labels=None,
    shape: tuple | None = None,
    train: bool = True,
    full: bool = False,
    complex_step: bool = False,
    evaluations: int = 2000,
) -> Report:
    """Hold the gradients that `target` computes, of every input and every parameter, to the slopes of its own forward.

    `target` is one of
    - a pair (forward, backward): `forward(*inputs, **options) -> (y, cache)` and `backward(dy, cache)`, or
      `forward(*inputs, **options) -> y` and `backward(dy, *inputs)`. Arrays of floats among the inputs are checked;
      backward returns a gradient for each of them, or for each input (None for those that have none);
    - a `Layer`, a `Sequential`, a network: give x, or its `shape`; with `labels` (N,) its softmax cross-entropy loss;
      `train=False` takes it as it is at test time;
    - an object or a class with `forward(*inputs) -> y` and `backward(dy)`, which leaves gradients of `W` in `dW`.

    Everything runs on float64 copies, on the GPU if the inputs are there; the caller's arrays and layers are left
    alone. `dy`, the upstream gradient, is random and signed unless given. `full=True` compares whole Jacobians too (up
    to 2²⁰ entries); `complex_step=True` takes complex steps instead of differences. The same `seed` draws the same.

    Cost: some 60 runs for the invariants and to measure rounding; 8 to 40 forwards an argument to choose a step; then
    probes at four forwards each, 5 for a vector and up to 17 for a tensor (N, C, H, W), in all at most `evaluations`
    forwards, but never fewer than three probes an argument. The same again where there are kinks, and at most
    `evaluations` for each argument that is wrong.

    Raises ValueError for a `dy` that is constant, since the sum of outputs is blind: softmax's rows sum to one and
    batch norm's channels to a constant whatever the input, so that the right gradient under dy = 1 is zero, and so is
    7 times it. Also for inputs that are not finite, or where `full` or `complex_step` cannot be. TypeError for a
    `target` that cannot be checked.
    """
    began = time.perf_counter()
    rng = np.random.default_rng(seed)
    t = as_target(target, inputs, options=options or {}, labels=labels, shape=shape, train=train, rng=rng)
    _refuse(t)
    other = beside(t.arguments, rng)
    dy = upstream(dy, t.forward(other).y, rng)  # no forward at the arguments yet: see Case
    case = Case(t, t.arguments, other, dy, rng)
    invariants = try_rules(case)

    repeatable = all(rule.ok for rule in invariants if rule.name == REPEATABLE)
    arguments = list(t.arguments) if repeatable else []
    names = [name for name in arguments if _comparable(case, name)]
    plan = Plan(max(3, evaluations // (4 * max(1, len(names)))), full, complex_step)
    points = [Point(t, t.arguments, dy, rng)] if names else []
    found = {name: examine(points[0], name, plan) for name in names}
    if any(finding.row.kinks for finding in found.values()):
        points.append(Point(t, other, dy, rng))  # what hides behind a kink shows beside it
        found |= {name: worse(finding, examine(points[1], name, plan)) for name, finding in found.items()}
    rows = {name: found[name].row if name in found else _not_measured(case, name) for name in arguments}
    wrong = [name for name, row in rows.items() if not row.ok]
    relocated, sentences = inquire(case, found, wrong, evaluations // 2)
    return Report(
        target=t.name,
        rows=list((rows | relocated).values()),
        invariants=invariants,
        diagnosis=[i.detail for i in invariants if not i.ok] + sentences,
        evaluations=sum(point.evaluations for point in points),
        seconds=time.perf_counter() - began,
        points={name: finding.point for name, finding in found.items()},
    )


def upstream(dy, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The upstream gradient: `dy` as float64, or random of both signs. Raises ValueError if it is blind or misfits."""
    if dy is None:
        return signed(rng, y.shape)
    dy = np.array(to_cpu(dy), np.float64)
    if dy.shape != y.shape:
        raise ValueError(f"dy has shape {dy.shape}, but the output has {y.shape}")
    if dy.size > 1 and np.ptp(dy) == 0:
        raise ValueError(
            "dy is constant, which is blind: a softmax's outputs sum to one and a batch norm's to a constant whatever "
            "the input, so that their gradient under a constant dy is zero, and 7 times it is zero too. Leave dy out, "
            "and it will be random and signed"
        )
    return dy


def beside(arguments: dict, rng: np.random.Generator) -> dict:
    """Other arguments of the same shapes: each element moved by about a hundredth of what is typical."""
    return {name: a + 0.01 * scale(a) * signed(rng, a.shape) for name, a in arguments.items()}


def _refuse(t: Target) -> None:
    if not t.arguments:
        raise TypeError(f"{t.name}: none of the inputs is an array of floats")
    bad = [name for name, a in t.arguments.items() if not (a.size and np.isfinite(a).all())]
    if bad:
        raise ValueError(f"{t.name}: {', '.join(bad)} must be finite, and not empty")


def _comparable(case: Case, name: str) -> bool:
    """Whether there are outputs and a gradient of the right shape, without nan and infinity."""
    a, g = case.arguments[name], case.gradients[name]
    return g is not None and g.shape == a.shape and bool(np.isfinite(g).all() and np.isfinite(case.y).all())


def _not_measured(case: Case, name: str) -> Row:
    return Row(name, case.arguments[name].shape, "nowhere", math.nan, math.nan, math.nan, ok=False)
