"""What an exercise can be held to. Each function makes a check: the learner's functions → a `testing.Report`.

A learner's function is called with the arrays of a case and then its options, by position: what it calls them is its
own affair. `minivgg.testing` has the rules; left out are those about errors and edges, which ten lines need not know.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from minivgg.gradcheck.zoo import RIGHT, ZOO
from minivgg.ops.conv2d import Algorithm, ConvSpec, naive
from minivgg.testing import CASES, GEOMETRIES, Case, Op, Report, Result, check_op
from minivgg.testing.convolutions import CONV_RULES, conv_op
from minivgg.testing.oracles import conv2d
from minivgg.testing.report import Broken
from minivgg.testing.rules import POLITE, RULES
from minivgg.testing.suite import hold

_OF_FORWARD = (
    "dtype in is dtype out",
    "arguments and dy are left alone",
    "twice the same gives the same bits",
    "memory order does not matter",
    "forward computes what the formula says",
    "float32 gives what float64 gives",
)
ABOUT_FORWARD = [rule for rule in RULES if rule.title in _OF_FORWARD]


def pair(row: str, *cases: Case, without: Iterable[str] = (), extra: Callable | None = None) -> Callable:
    """A forward and a backward in place of ours, on the cases of a row of `testing.CASES` (or those given).

    `extra(forward, backward)` gives a further result.
    """
    ours = CASES[row]

    def check(forward: Callable, backward: Callable) -> Report:
        called = _by_position(ours.forward, forward)
        op = replace(ours, forward=called, backward=backward, cases=cases or ours.cases, bits=False)
        report = check_op(op, without=(*(rule.title for rule in POLITE), *without), raise_on_failure=False)
        return Report(report.subject, [*report.results, *([extra(forward, backward)] if extra else [])])

    return check


def forward_only(op: Op) -> Callable:
    """A forward alone, held to the rules that are about it, on the cases of `op` and by its formula."""

    def check(forward: Callable) -> Report:
        called = _by_position(op.forward, forward)

        def with_cache(*arrays, **options):
            return called(*arrays, **options), arrays

        def no_gradient(dy, arrays):
            return tuple(0 * a for a in arrays)

        function = functools.wraps(op.forward)(with_cache)
        held = replace(op, forward=function, backward=no_gradient, bits=False, affine_in=())
        return hold(held, ABOUT_FORWARD, raise_on_failure=False)

    return check


def _by_position(ours: Callable, theirs: Callable) -> Callable:
    """Their function under our arguments' names, which the reports speak in."""

    @functools.wraps(ours)
    def function(*arrays, **options):
        return theirs(*arrays, *options.values())

    return function


# ---- Rules of single exercises ----


def softmax(forward: Callable) -> Report:
    """softmax_forward(x) → y: the formula, and no overflow where scores are in the hundreds."""
    report = forward_only(CASES["softmax"])(forward)

    def trial(scores: list, expected: list):
        found = np.asarray(forward(np.array(scores, np.float64)))
        if not np.allclose(found, expected, rtol=1e-12, atol=0):
            raise Broken(str(expected), str(found.tolist()))

    p = float(1 / (1 + np.exp(-1)))
    hard = [
        ([[800.0, 800.0]], [[0.5, 0.5]]),
        ([[-900.0, -900.0]], [[0.5, 0.5]]),
        ([[1001.0, 1000.0], [0.0, 0.0]], [[p, 1 - p], [0.5, 0.5]]),
    ]
    overflow = result_of(
        "large scores do not overflow",
        "exp of 710 is infinity, and ∞ / ∞ is nan. Only differences of scores matter: subtract the largest of each row "
        "before the exponential.",
        [(f"scores {scores}", lambda scores=scores, y=y: trial(scores, y)) for scores, y in hard],
    )
    return Report(report.subject, [*report.results, overflow])


def result_of(title: str, advice: str, trials: Iterable[tuple[str, Callable[[], None]]]) -> Result:
    """A rule tried: each trial is what it is tried on, in words, and a call that raises where the rule is broken."""
    result = Result(title, advice)
    for on, trial in trials:
        try:
            trial()
        except Exception as error:  # what is under test may raise anything
            result.record(on, error)
        else:
            result.record(on, None)
    return result


def _expect(found, expected, what: str) -> None:
    if found != expected:
        raise Broken(f"{what}: {expected}", f"{found!r}")


def no_log_of_zero(forward: Callable, backward: Callable) -> Result:
    """Cross-entropy where a probability is too small for a float."""

    def trial(scores: list, label: int, expected: float):
        loss, cache = forward(np.array([scores]), np.array([label]))
        dscores = backward(1.0, cache)
        if not (np.isclose(loss, expected, rtol=1e-12, atol=0) and np.isfinite(dscores).all()):
            raise Broken(f"loss {expected}, and a gradient that is finite", f"loss {loss}, gradient {dscores.tolist()}")

    return result_of(
        "hopeless classes have a price, too",
        "The softmax of a score that is a thousand below the largest is rounded to 0, and log 0 is −∞. Do not take the "
        "logarithm of the softmax: with the largest score taken away, −log p = log Σ eˢ − s.",
        [
            (f"scores {s}, label {k}", lambda s=s, k=k, e=e: trial(s, k, e))
            for s, k, e in [([900.0, -900.0], 1, 1800.0), ([0.0, 1000.0], 0, 1000.0)]
        ],
    )


def keeps_the_mean(forward: Callable, backward: Callable) -> Result:
    """Dropout: 100,000 ones keep their mean, and lose a share p."""
    n = 100_000

    def trial(p: float, seed: int):
        y, _ = forward(np.ones(n), p, seed)
        dropped = float(np.mean(np.asarray(y) == 0))
        error = 5 * (p * (1 - p) / n) ** 0.5  # five standard deviations of a share
        if abs(dropped - p) > error:
            raise Broken(f"a share of {p} ± {error:.4f} of zeros", f"{dropped:.4f}")
        if abs(np.mean(y) - 1) > error / (1 - p):
            raise Broken(f"a mean of 1 ± {error / (1 - p):.4f}", f"{np.mean(y):.4f}")

    return result_of(
        "a share p is dropped, and the mean stays",
        "Inverted dropout: what survives, with probability 1 − p, is divided by 1 − p, so that at test time there is "
        "nothing left to do.",
        [
            (f"{n:,} ones, p = {p}, seed {seed}", lambda p=p, seed=seed: trial(p, seed))
            for p in (0.2, 0.5)
            for seed in (0, 1)
        ],
    )


def slope_of(function: Callable) -> Report:
    """central_difference(f, x, v, h) → the slope of f at x along v: exact on parabolas."""
    rng = np.random.default_rng(0)

    def trial(degree: int, h: float):
        x, v, a = rng.standard_normal((3, 2, 3))
        x_before, v_before = x.copy(), v.copy()
        found = function(lambda z: np.sum(a * z**degree), x, v, h)
        if not (np.array_equal(x, x_before) and np.array_equal(v, v_before)):
            raise Broken("x and v as they were", "they have been written to")
        expected = np.sum(a * degree * x ** (degree - 1) * v)
        error = abs(float(found) - expected)
        bound = 1e-14 / h + (h**2 * np.sum(np.abs(a * v**3)) if degree == 3 else 0)
        if not error <= 10 * bound:
            raise Broken(f"{expected:.9g} within {10 * bound:.1e}", f"{float(found):.9g}, off by {error:.1e}")

    trials = [(d, h) for d in (1, 2, 3) for h in (1e-1, 1e-2, 1e-4)]
    advice = (
        "Two points, h to either side of x along v, and 2h between them. A one-sided difference is off by h/2 times "
        "the curvature, which a parabola shows."
    )
    on = "f = Σ a·x^{}, x (2, 3), h = {:g}"
    return Report(
        "central_difference",
        [result_of("differences are central", advice, [(on.format(*t), lambda t=t: trial(*t)) for t in trials])],
    )


ACCEPT = "sigmoid", "softmax", "avgpool2d", "lrn", "flatten"
REFUSE = (
    *("softmax-seven-times", "softmax-zero", "softmax-sum-missing", "softmax-diagonal-only"),
    *("softmax-sum-over-samples", "sigmoid-half-a-derivative", "sigmoid-one-in-ten-thousand", "sigmoid-in-float32"),
    *("flatten-channels-last",),
)


def gradient_check(function: Callable) -> Report:
    """is_right(forward, backward, x) → bool: right pairs pass, and bugs of the zoo do not."""

    def says(case, seed) -> bool:
        (forward, backward), (x, *_), options = case.subject(seed)
        return bool(function(lambda x: forward(x, **options), backward, x))

    def refuse(name):
        with ZOO[name].plant():
            if says(ZOO[name].case, 0):
                raise Broken(f"False: {ZOO[name].says}", "True")

    seeds = range(5)
    accept = [
        (f"{name}, seed {seed}", lambda name=name, seed=seed: _expect(says(RIGHT[name], seed), True, "is_right"))
        for name in ACCEPT
        for seed in seeds
    ]
    return Report(
        "is_right",
        [
            result_of(
                "right gradients are accepted",
                "Compare with a tolerance that knows the size of the slope, and choose h near 1e-5: rounding alone "
                "makes an error of about 1e-16 / h. Is x given to forward in float64, and a copy of it?",
                accept,
            ),
            result_of(
                "planted bugs are refused",
                "Which bug slipped through? Under an upstream gradient of ones, softmax's gradient is zero, and so is "
                "7 times it: draw dy from both signs. A relative tolerance above 1e-4 does not see one part in 10,000, "
                "and one above 1e-8 may not see float32.",
                [(name, lambda name=name: refuse(name)) for name in REFUSE],
            ),
        ],
    )


# ---- Convolution ----

# Small enough for seven loops in plain Python; between them stride, padding, a window that is not square, and N = 1.
# The first ones are square in all ways, so that what is swapped still fits, and the diagnosis can say what it is.
SQUARE = ((3, 2, 4, 4), (2, 2, 3, 3), 1, 1), ((2, 3, 4, 3), (3, 3, 1, 1), 1, 0)
ODD = "VGG without padding", "tall window", "even window", "stride past the window", "one pixel"
SMALL = *SQUARE, *(GEOMETRIES[name] for name in ODD)


def counts_places(function: Callable) -> Report:
    """output_size(size, kernel, stride, padding) → how many places there are for a window."""

    def given():
        for size, kernel, stride, padding in np.ndindex(9, 6, 4, 3):
            if min(size, kernel, stride) > 0 and size + 2 * padding >= kernel:
                # the definition, counted: the windows that begin where they still fit
                yield (size, kernel, stride, padding), len(range(-padding, size + padding - kernel + 1, stride))

    def trial(given, expected):
        _expect(function(*given), expected, "windows")

    advice = (
        "Draw it: the first window begins at −padding, the next one `stride` further, and the last one must end within "
        "size + padding. Count the steps from the first to the last, round down, and add one."
    )
    trials = [
        (f"size, kernel, stride, padding = {g}", lambda g=g, expected=expected: trial(g, expected))
        for g, expected in given()
    ]
    return Report("output_size", [result_of("as many as fit", advice, trials)])


def _specs() -> list[ConvSpec]:
    return [ConvSpec.of(*geometry) for geometry in SMALL]


def _formula(x, w, spec):
    return conv2d(x, w, stride=spec.stride, padding=spec.padding)


def _im2col(x, spec):
    return _formula(x, _taps(spec), spec).transpose(0, 2, 3, 1).reshape(-1, spec.columns)


def _col2im(columns, spec):
    dy = columns.reshape(spec.N, spec.OH, spec.OW, -1).transpose(0, 3, 1, 2)
    return naive.grad_input(dy, _taps(spec), spec)


def _taps(spec):
    """A filter (C, KH, KW) for each place in it, all zeros but for a one there: it picks a pixel of each window."""
    return np.eye(spec.columns).reshape(-1, spec.C, spec.KH, spec.KW)


def _op(name: str, formula: Callable, *shapes: str | Callable) -> Op:
    cases = (Case(*(shape(spec) for shape in shapes), spec=spec) for spec in _specs())
    return Op(name, formula, formula, tuple(cases), formula)


CONV_FORWARD = _op("conv2d", _formula, lambda spec: spec.x_shape, lambda spec: spec.w_shape)
IM2COL = _op("im2col", _im2col, lambda spec: spec.x_shape)
COL2IM = _op("col2im", _col2im, lambda spec: (spec.N * spec.OH * spec.OW, spec.columns))


def conv_pass(*names: str) -> Callable:
    """Functions of an `Algorithm` by the names of its fields; what is not theirs is done by the seven loops."""
    ours = {"forward": naive.forward, "grad_input": naive.grad_input, "grad_weight": naive.grad_weight}

    def check(*functions: Callable) -> Report:
        theirs = dict(zip(names, functions, strict=True))
        algorithm = Algorithm("mine", "an exercise", **ours | theirs)
        cases = (Case(x, w, stride=stride, padding=padding) for x, w, stride, padding in SMALL)
        op = replace(conv_op(algorithm, ()), cases=tuple(cases))
        return hold(op, CONV_RULES, raise_on_failure=False)

    return check
