"""What the exercises on pooling, norms, networks and training can be held to; see `checks`.

Where an answer is one number, a diagnosis is a list of what it would be by each well-known mistake.
"""

import math
from collections.abc import Callable

import numpy as np

from minivgg.exercises.checks import result_of
from minivgg.models.vgg import CONFIGURATIONS
from minivgg.testing import Report, Result
from minivgg.testing.report import Broken


def _agree(found, expected, mistakes: dict[str, object], rtol: float = 0.0) -> None:
    """Raise `Broken` unless found is expected, and say by which of the mistakes (why → value) it would be found."""
    same = _close(found, expected, rtol)
    if not same:
        why = next((why for why, value in mistakes.items() if _close(found, value, max(rtol, 1e-9))), "")
        raise Broken(_shown(expected), f"{_shown(found)}{f': {why}' if why else ''}")


def _close(found, expected, rtol: float) -> bool:
    try:
        return np.shape(found) == np.shape(expected) and np.allclose(found, expected, rtol=rtol, atol=0)
    except TypeError:  # not a number at all
        return False


def _shown(value) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.7g}"
    return str(np.round(value, 6).tolist()) if isinstance(value, np.ndarray) else repr(value)


# ---- Pooling ----


def ascending(rng: np.random.Generator, shape: tuple, dtype) -> np.ndarray:
    """Distinct values that grow in row order: the last place of each window wins."""
    return np.linspace(-2, 2, np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def one_of_equals(forward: Callable, backward: Callable) -> Result:
    """Max-pool: of a window of equal values, the first alone gets the gradient."""

    def trial(size: int, value: float):
        x = np.full((1, 1, size, size), value)
        _, cache = forward(x, size, size)
        dx = np.asarray(backward(np.array([[[[3.0]]]]), cache)).ravel()
        places = np.flatnonzero(dx)
        if len(places) != 1:
            raise Broken("3 at place 0, and 0 elsewhere", f"{np.count_nonzero(dx)} places share it: {dx.tolist()}")
        if places[0] or dx[0] != 3:
            raise Broken("3 at place 0, and 0 elsewhere", f"the gradient of a tie went to place {places[0]}")

    return result_of(
        "of equals, the first wins",
        "A mask x == y marks all that tie, and each would get the whole gradient: more than forward could use. Keep "
        "one winner for each window; argmax gives the first.",
        [
            (f"a window of {size}×{size}, all {value:g}", lambda s=size, v=value: trial(s, v))
            for size in (2, 3)
            for value in (0.0, -1.5)
        ],
    )


# ---- Batch norm ----


def normalises(forward: Callable, backward: Callable) -> Result:
    """Batch norm's forward on four numbers, large and small, so that a slip can be told from its result."""
    weight, bias, eps = 2.0, 3.0, 1e-5

    def trial(scale: float):
        x = np.array([-3.0, 1.0, 2.0, 6.0]).reshape(2, 1, 1, 2) * scale
        centred, var = x - x.mean(), x.var()
        of_each = (x - x.mean(axis=3, keepdims=True)) / np.sqrt(x.var(axis=3, keepdims=True) + eps)
        xhat = {
            "the squares are divided by m − 1, and not by m": centred / np.sqrt(var * 4 / 3 + eps),
            "ε is missing: a constant channel would give 0 / 0": centred / np.sqrt(var),
            "ε belongs under the root": centred / (np.sqrt(var) + eps),
            "divided by the variance, not by its root": centred / (var + eps),
            "statistics of each sample alone (that is instance norm); they are the batch's": of_each,
            "the mean is not taken away": x / np.sqrt(var + eps),
        }
        mistakes = {why: weight * value + bias for why, value in xhat.items()}
        right = centred / np.sqrt(var + eps)
        mistakes |= {"weight and bias are left out": right, "weight multiplies the bias, too": weight * (right + bias)}
        y, _ = forward(x, np.array([weight]), np.array([bias]))
        _agree(np.asarray(y), weight * right + bias, mistakes, rtol=1e-9)

    return result_of(
        FOUR_NUMBERS,
        "Work it by hand: mean 1.5, deviations −4.5, −0.5, 0.5 and 4.5, and the mean of their squares.",
        [
            (f"x {scale:g}·[[[[-3, 1]]], [[[2, 6]]]], weight 2, bias 3", lambda s=scale: trial(s))
            for scale in (1.0, 1e-3)
        ],
    )


FOUR_NUMBERS = "four numbers come out normalised"

# ---- Networks ----

WINDOWS = (
    ([], 1),
    ([(3, 1)], 3),
    ([(3, 1), (3, 1)], 5),
    ([(3, 1), (3, 1), (3, 1)], 7),
    ([(7, 1), (1, 1)], 7),
    ([(2, 2), (2, 2)], 4),
    ([(3, 1), (2, 2), (3, 1)], 8),
    ([(11, 4), (3, 2), (5, 1)], 51),
    ([(1, 3), (2, 1)], 4),
)


def sees(function: Callable) -> Report:
    """receptive_field(windows) → how many pixels one unit sees each way; the windows as (size, stride)."""

    def trial(windows: list, expected: int):
        given = list(windows)
        found = function(windows)
        if windows != given:
            raise Broken("the list as it was", "it has been changed")
        sizes, strides = [k for k, _ in windows], [s for _, s in windows]
        before = np.cumprod([1, *strides])
        mistakes = {
            "strides are left out: after a stride of 2, neighbours lie 2 pixels apart": 1 + sum(k - 1 for k in sizes),
            "windows are added up, but neighbouring windows share all but one pixel: k − 1": sum(sizes),
            "a window's own stride is applied to itself; it spreads only what comes after": 1
            + sum((k - 1) * int(j) for k, j in zip(sizes, before[1:], strict=True)),
            "read from the wrong end: strides spread the windows after them, not those before": 1
            + sum((k - 1) * int(np.prod(strides[i + 1 :])) for i, k in enumerate(sizes)),
        }
        if not windows:
            mistakes = {"off by one: a unit that has passed no window sees itself, one pixel": 0}
        _agree(found, expected, mistakes)

    advice = (
        "Keep two numbers: how far a unit sees, and how far apart neighbours lie (the jump), both 1 at first. A window "
        "of k reaches k − 1 neighbours further; only then does its stride make the jump longer."
    )
    trials = [(f"windows {w}", lambda w=w, expected=expected: trial(list(w), expected)) for w, expected in WINDOWS]
    return Report("receptive_field", [result_of("a unit sees what it can reach", advice, trials)])


# Table 2 of the paper says 133, 133, 133, 134, 138 and 144 million; to the unit, for three channels and 1,000 classes:
PAPER = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}
FC = 512 * 49 * 4096 + 4096 * 4096


def counts_parameters(function: Callable) -> Report:
    """parameters(configuration, channels, classes) of a VGG, weights and biases; the configuration as in the table."""

    def trial(letter: str, channels: int, classes: int):
        tokens = [t for t in CONFIGURATIONS[letter].replace("|", " ").split() if t != "LRN"]
        widths = [int(token.partition(":")[0]) for token in tokens]
        expected = PAPER[letter] - (3 - channels) * 64 * 9 - (1000 - classes) * 4097
        biases = sum(widths) + 2 * 4096 + classes
        as_3x3 = sum(8 * w * w for t, w in zip(tokens, widths, strict=True) if t.endswith(":1"))
        head = FC + 2 * 4096 + classes * 4097
        mistakes = {
            "the biases are missing, one for each filter and each unit": expected - biases,
            "those are the convolutions alone, without the three linear layers": expected - head,
            "the linear layers' biases are missing": expected - 2 * 4096 - classes,
            "the convolutions' biases are missing": expected - sum(widths),
            "the first linear layer sees 7×7 pixels of 512 channels, not one": expected - 512 * 48 * 4096,
            "that is with 1000 classes": PAPER[letter] - (3 - channels) * 64 * 9,
            "that is with 3 channels": PAPER[letter] - (1000 - classes) * 4097,
            "that is with 3 channels and 1000 classes": PAPER[letter],
        }
        if as_3x3:
            mistakes["`256:1` is a 1×1 convolution, and is counted as 3×3"] = expected + as_3x3
        _agree(function(CONFIGURATIONS[letter], channels, classes), expected, mistakes)

    advice = (
        "Walk through the tokens with the number of channels in hand: a convolution has O·C·K·K weights and O biases, "
        "and O is the next one's C. Pools and LRN have none. Then 512·7·7 → 4096 → 4096 → classes."
    )
    cases = [*((letter, 3, 1000) for letter in PAPER), ("A", 1, 10), ("C", 1, 1000), ("E", 3, 7)]
    on = '{} = "{}", {} channels, {} classes'
    trials = [(on.format(c[0], CONFIGURATIONS[c[0]], *c[1:]), lambda c=c: trial(*c)) for c in cases]
    return Report("parameters", [result_of("the count is the paper's, to the unit", advice, trials)])


# ---- Training ----


def takes_steps(function: Callable) -> Report:
    """sgd(w, dw, v, rate, momentum, decay) → (w, v): what the formula says, for a few steps in a row."""

    def run(step: Callable, dtype, rates: tuple, momentum: float, decay: float):
        rng = np.random.default_rng(0)
        w, gradients = rng.standard_normal((2, 3)).astype(dtype), rng.standard_normal((len(rates), 2, 3)).astype(dtype)
        v = np.zeros_like(w)
        for rate, dw in zip(rates, gradients, strict=True):
            w, v = step(w, dw, v, rate, momentum, decay)
        return np.asarray(w, np.float64)

    def trial(rates: tuple, momentum: float, decay: float):
        given = np.float64, rates, momentum, decay
        expected = run(_sgd, *given)
        mistakes = {why: run(wrong, *given) for why, wrong in WRONG_STEPS.items()}
        _agree(run(function, *given), expected, mistakes, rtol=1e-9)

    def returns(dtype):
        w, dw, v = np.ones((3, 2), dtype), np.full((3, 2), 0.5, dtype), np.full((3, 2), 0.25, dtype)
        answer = function(w, dw, v, 0.1, 0.9, 1e-3)
        if not isinstance(answer, tuple | list) or [np.shape(a) for a in answer] != [(3, 2), (3, 2)]:
            raise Broken("(w, v), both (3, 2)", f"{type(answer).__name__}: {answer!r}")
        if any(a.dtype != dtype for a in answer):
            raise Broken(f"w and v in {np.dtype(dtype)}", f"{answer[0].dtype} and {answer[1].dtype}")
        if (w != 1).any() or (dw != 0.5).any() or (v != 0.25).any():
            raise Broken("w, dw and v as they were", "they have been written to")

    advice = "v ← momentum·v + (dw + decay·w), and only then w ← w − rate·v, with the new v."
    trials = [
        ((1.0,), 0.0, 0.0),
        ((0.1, 0.1, 0.1), 0.0, 0.1),
        ((0.1, 0.1, 0.1), 0.9, 0.0),
        ((0.1, 0.1, 0.1), 0.9, 0.1),
        ((0.1, 0.1, 0.01, 0.01), 0.9, 0.01),
    ]
    on = "rates {}, momentum {}, decay {}"
    return Report(
        "sgd",
        [
            result_of(
                "new arrays, in the dtype of the old",
                "Give back new arrays: whoever called may still need the old ones. A Python float keeps float32, a "
                "np.float64 does not.",
                [(f"w, dw and v (3, 2) {np.dtype(d)}", lambda d=d: returns(d)) for d in (np.float32, np.float64)],
            ),
            result_of("each step is the formula's", advice, [(on.format(*t), lambda t=t: trial(*t)) for t in trials]),
        ],
    )


def _sgd(w, dw, v, rate, momentum, decay):
    v = momentum * v + (dw + decay * w)
    return w - rate * v, v


def _rate_inside(w, dw, v, rate, momentum, decay):
    v = momentum * v + rate * (dw + decay * w)
    return w - v, v


def _old_velocity(w, dw, v, rate, momentum, decay):
    return w - rate * v, momentum * v + (dw + decay * w)


def _average(w, dw, v, rate, momentum, decay):
    v = momentum * v + (1 - momentum) * (dw + decay * w)
    return w - rate * v, v


def _nesterov(w, dw, v, rate, momentum, decay):
    g = dw + decay * w
    v = momentum * v + g
    return w - rate * (g + momentum * v), v


def _decay_after(w, dw, v, rate, momentum, decay):
    v = momentum * v + dw
    return w - rate * (v + decay * w), v


WRONG_STEPS = {
    "the decay is missing": lambda w, dw, v, rate, m, decay: _sgd(w, dw, v, rate, m, 0),
    "the decay has the wrong sign: weights would grow": lambda w, dw, v, rate, m, decay: _sgd(
        w, dw, v, rate, m, -decay
    ),
    "the momentum is missing": lambda w, dw, v, rate, m, decay: _sgd(w, dw, v, rate, 0, decay),
    "the sign of the step is wrong: uphill": lambda w, dw, v, rate, m, decay: _sgd(w, dw, v, -rate, m, decay),
    "the rate stands inside the velocity: the same until the rate changes, and then old steps keep the old rate": (
        _rate_inside
    ),
    "the step is taken with the old velocity": _old_velocity,
    "the gradient enters with a factor 1 − momentum: an average, ten times shorter steps at 0.9": _average,
    "that is Nesterov's momentum": _nesterov,
    "the decay goes around the velocity (AdamW's way); here it is a part of the gradient": _decay_after,
}


def he_deviation(function: Callable) -> Report:
    """he_std(shape) → the standard deviation of weights (O, C, KH, KW) or (O, F) that keeps the size of activations."""

    def trial(shape: tuple):
        fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
        expected = math.sqrt(2 / fan_in)
        mistakes = {
            "that is the variance; a deviation is its root": 2 / fan_in,
            "the 2 is missing, which makes up for ReLU's half": math.sqrt(1 / fan_in),
            "that is Glorot's, which counts outputs, too, and knows of no ReLU": math.sqrt(2 / (fan_in + fan_out)),
            "that is from the fan-out: how many outputs an input goes to": math.sqrt(2 / fan_out),
            "the window is forgotten: a sum is over C·KH·KW values": math.sqrt(2 / shape[1]),
            "the number of filters is counted in: each of them is a sum of its own": math.sqrt(2 / math.prod(shape)),
            "that is from the number of filters": math.sqrt(2 / shape[0]),
            "upside down": math.sqrt(fan_in / 2),
        }
        _agree(function(shape), expected, mistakes, rtol=1e-6)

    advice = (
        "How many products are added up for one output? Each adds σ²·E[x²] to the variance, and after a ReLU E[x²] is "
        "half of the variance before. Ask for a product of one."
    )
    shapes = (64, 3, 3, 3), (512, 256, 3, 3), (96, 48, 5, 3), (256, 64, 1, 1), (10, 4096)
    trials = [(f"weights {shape}", lambda shape=shape: trial(shape)) for shape in shapes]
    return Report("he_std", [result_of("the size of activations is kept", advice, trials)])
