"""Planted bugs: each must be caught, with the right argument and the right words, whatever the seed."""

import numpy as np
import pytest

from minivgg.gradcheck import check
from minivgg.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, Param, ReLU, Sequential
from minivgg.ops.avgpool import avgpool2d_backward, avgpool2d_forward
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.conv2d import conv2d_backward, conv2d_forward
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)

IMAGES = 3, 4, 6, 5
SEEDS = range(4)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def spoiled(backward, spoil):
    """`backward` with its first gradient changed in place by `spoil`, or replaced by what `spoil` returns."""

    def wrong(dy, cache):
        gradients = backward(dy, cache)
        first, *others = gradients if isinstance(gradients, tuple) else (gradients,)
        first = np.array(first)
        changed = spoil(first)
        first = first if changed is None else changed
        return (first, *others) if others else first

    return wrong


def conv(spoil):
    return (conv2d_forward, spoiled(conv2d_backward, spoil)), [IMAGES, (4, 4, 3, 3), (4,)], {"padding": 1}


def filters(spoil):
    """The same with the gradient of the filters spoiled."""

    def wrong(dy, cache):
        dx, dw, db = conv2d_backward(dy, cache)
        return dx, spoil(dw), db

    return (conv2d_forward, wrong), [IMAGES, (4, 4, 3, 3), (4,)], {"padding": 1}


def bias(spoil):
    def wrong(dy, cache):
        dx, dw, _ = conv2d_backward(dy, cache)
        return dx, dw, spoil(dy)

    return (conv2d_forward, wrong), [IMAGES, (4, 4, 3, 3), (4,)], {"padding": 1}


def one(forward, backward, shape=IMAGES, **options):
    return (forward, backward), [shape], options


def batchnorm_without(mean, variance):
    def backward(dy, cache):
        dx, dweight, dbias = batchnorm_backward(dy, cache)
        x, scale = cache.x, (cache.weight / np.sqrt(cache.var + cache.eps))[:, None, None]
        xhat = (x - cache.mean[:, None, None]) / np.sqrt(cache.var + cache.eps)[:, None, None]
        terms = (
            dy.mean(axis=(0, 2, 3), keepdims=True) * mean + xhat * (dy * xhat).mean((0, 2, 3), keepdims=True) * variance
        )
        return dx + scale * terms, dweight, dbias

    return (batchnorm_forward, backward), [IMAGES, (4,), (4,)], {}


def add_to_last(where, by):
    def spoil(dx):
        dx[where] += by * np.abs(dx).mean()

    return spoil


def times(where, factor):
    def spoil(g):
        g[where] *= factor

    return spoil


def set_border(value):
    def spoil(dx):
        inside = dx[:, :, 1:-1, 1:-1].copy()
        dx[...] = value
        dx[:, :, 1:-1, 1:-1] = inside

    return spoil


remembered = {}


def stale_forward(x, w):
    remembered.setdefault("x", x)
    return x @ w, (x, w)


def stale_backward(dy, cache):
    return dy @ cache[1].T, remembered["x"].T @ dy


def shared_cache_forward(x, w):
    remembered["cache"] = x, w
    return x @ w, None


def shared_cache_backward(dy, cache):
    x, w = remembered["cache"]
    return dy @ w.T, x.T @ dy


def leaky_backward(dy, cache):
    dx = relu_backward(dy, cache)
    return dx + 0.1 * dx.mean(axis=0)


def last_winner(dy, cache):
    """Max-pool whose gradient goes to the place after the winner."""
    return maxpool2d_backward(dy, cache._replace(argmax=(cache.argmax + 1) % 4))


dice = np.random.default_rng(0)

# name: (pair, shapes, options), the argument that is wrong (None: an invariant), words that must be in the diagnosis
BUGS = {
    "seven times": (one(softmax_forward, spoiled(softmax_backward, lambda g: 7 * g), (4, 6)), "x", "7 times too large"),
    "nothing": (one(softmax_forward, spoiled(softmax_backward, lambda g: 0 * g), (4, 6)), "x", "all zeros"),
    "one part in 10⁴": (one(sigmoid_forward, spoiled(sigmoid_backward, lambda g: 1.0001 * g)), "x", "1.0001 times"),
    "one part in 10⁴ of filters": (filters(lambda g: 1.0001 * g), "w", "1.0001 times too large"),
    "one part in 10⁴ of biases": (bias(lambda dy: 1.0001 * dy.sum((0, 2, 3))), "b", "1.0001 times too large"),
    "sign": (one(relu_forward, spoiled(relu_backward, np.negative)), "x", "sign is wrong"),
    "missing 1/N": (
        ((softmax_cross_entropy_forward, spoiled(softmax_cross_entropy_backward, lambda g: 3 * g)), [(3, 5)], {}),
        "scores",
        "3 times too large, which is N: its inverse is missing",
    ),
    "mean over pixels": (bias(lambda dy: dy.mean((0, 2, 3))), "b", "which is N·H·W"),
    "window": (
        one(avgpool2d_forward, spoiled(avgpool2d_backward, lambda g: 4 * g), (3, 2, 6, 4), kernel_size=2),
        "x",
        "KH·KW",
    ),
    "not summed": (bias(lambda dy: dy.sum((2, 3))), "b", "not summed over dimension 0"),
    "unflipped": (filters(lambda g: g[..., ::-1, ::-1]), "w", "rotated by 180°"),
    "transposed": (filters(lambda g: g.swapaxes(2, 3)), "w", "transposed: filter row and filter column"),
    "channels swapped": (filters(lambda g: g.swapaxes(0, 1)), "w", "output channel and input channel swapped"),
    "shifted": (conv(lambda g: np.roll(g, 1, axis=3)), "x", "shifted by +1 along its columns"),
    "border": (conv(set_border(0)), "x", "wrong only in the border, and there the gradient is all zeros"),
    "corner": (
        conv(times((0, 0, 0, 0), 1.0001)),
        "x",
        "the first sample (0 of 0 to 2), the first channel (0 of 0 to 3), the first row",
    ),
    "last channel": (conv(times((slice(None), -1), 2)), "x", "the last channel (3 of 0 to 3), and there a constant"),
    "last sample": (conv(times(-1, 0)), "x", "the last sample (2 of 0 to 2), and there the gradient is all zeros"),
    "last rows": (conv(add_to_last((..., slice(4, 6), slice(None)), 1)), "x", "the last rows (4 to 5 of 0 to 5)"),
    "no mean term": (batchnorm_without(1, 0), "x", "through the mean of"),
    "no variance term": (batchnorm_without(0, 1), "x", "through the variance"),
    "neither": (batchnorm_without(1, 1), "x", "through the mean and variance"),
    "no softmax sum": (one(softmax_forward, lambda dy, y: y * dy, (4, 6)), "x", "y·Σ dy·y"),
    "mask inverted": (one(relu_forward, lambda dy, y: dy * (y <= 0)), "x", "mask is inverted"),
    "mask missing": (one(relu_forward, lambda dy, y: 1.0 * dy), "x", "hands on dy"),
    "another dropout mask": (
        one(dropout_forward, lambda dy, cache: dropout_backward(dy, cache._replace(call=9)), p=0.4),
        "x",
        "another mask",
    ),
    "missing factor": (one(sigmoid_forward, lambda dy, y: dy * y), "x", "missing factor 1 − y"),
    "wrong winner": (one(maxpool2d_forward, last_winner, (3, 4, 6, 4), kernel_size=2), "x", "wrong places"),
    "float32": (
        one(sigmoid_forward, lambda dy, y: (dy * y * (1 - y)).astype(np.float32).astype(np.float64)),
        "x",
        "float32 intermediate",
    ),
    "stale cache": (((stale_forward, stale_backward), [(3, 4), (4, 5)], {}), "w", "stale cache"),
    "shared cache": (((shared_cache_forward, shared_cache_backward), [(3, 4), (4, 5)], {}), None, "cache is shared"),
    "batch leak": (one(relu_forward, leaky_backward), "x", "batch leak"),
    "not linear": (one(relu_forward, lambda dy, y: np.sign(dy) * (y > 0) * dy**2), "x", "is not 2 and −3 times"),
    "a constant added": (one(relu_forward, lambda dy, y: dy * (y > 0) + 1e-3), "x", "+0.001 has been added everywhere"),
    "random": (one(relu_forward, lambda dy, y: relu_backward(dy, y) * (1 + 1e-9 * dice.random())), None, "second run"),
    "nan": (one(relu_forward, spoiled(relu_backward, lambda g: g / (g != 0))), "x", "nan or infinity"),
    "no gradient": (
        ((linear_forward, lambda dy, cache: (*linear_backward(dy, cache)[:2], None)), [(3, 4), (5, 4), (5,)], {}),
        "b",
        "leaves no gradient",
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BUGS)
def test_caught_and_named(name, seed):
    (pair, shapes, options), argument, words = BUGS[name]
    remembered.clear()
    inputs = normal(seed, *shapes)
    if pair[0] is softmax_cross_entropy_forward:
        inputs.append(np.array([0, 4, 2]))
    with np.errstate(all="ignore"):
        report = check(pair, *inputs, options=options, seed=seed)
    assert not report.ok
    assert [row.argument for row in report.rows if not row.ok] == ([argument] if argument else []), str(report)
    assert words in "\n".join(report.diagnosis), str(report)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_element_of_many(seed):
    """One of 6,000 elements, wrong by one part in 10⁴, is found, although not all are looked at one by one."""
    index = 2, 7, 11, 3
    spoil = spoiled(sigmoid_backward, times(index, 1.0001))
    report = check((sigmoid_forward, spoil), *normal(seed, (5, 8, 15, 10)), seed=seed, evaluations=400)
    assert report.rows[0].where == index
    assert report.rows[0].ratio == pytest.approx(1.0001, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_kinks_hide_no_bugs(seed):
    """Half of the inputs at ReLU's kink, and a wrong gradient of a single one of the others."""
    (x,) = normal(seed, IMAGES)
    x[x < 0] = 0
    x[1, 2, 3, 4] = 1
    report = check((relu_forward, spoiled(relu_backward, times((1, 2, 3, 4), 1.0001))), x, seed=seed)
    assert report.kinks > 100
    assert not report.ok


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.array([[0.0, 1, -1], [2, 0, 3]])])
@pytest.mark.parametrize(
    ("slope", "verdict"), [(0, "ok, kinks"), (0.3, "ok, kinks"), (1, "ok, kinks"), (1.01, "WRONG"), (-5, "WRONG")]
)
def test_wrong_at_the_kink_itself(x, slope, verdict):
    """ReLU′(0) may be anything from 0 to 1, and nothing else."""
    report = check((lambda x: np.maximum(x, 0), lambda dy, x: dy * np.where(x == 0, slope, x > 0)), x)
    assert [row.verdict for row in report.rows] == [verdict], str(report)


# ---- Layers and networks ----


class Overwriting(Linear):
    def _backward(self, dy, cache, need_dx):
        self.weight.grad = None
        return super()._backward(dy, cache, need_dx)


class Forgetting(Linear):
    def _backward(self, dy, cache, need_dx):
        dx = super()._backward(dy, cache, need_dx)
        self.bias.grad = None
        return dx


class Clobbering(ReLU):
    def _backward(self, dy, cache, need_dx):
        dy *= cache > 0
        return dy


class Scaled(Layer):
    """y = x · γ, whose backward forgets γ: invisible where γ is one, as it starts."""

    def __init__(self, channels):
        self.weight = Param(np.ones(channels, np.float32))

    def _forward(self, x, train):
        return x * self.weight.data[:, None, None], x

    def _backward(self, dy, cache, need_dx):
        self.weight.accumulate((dy * cache).sum((0, 2, 3)))
        return dy.copy()


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (Overwriting(4, 3), (5, 4), "gradient of weight is overwritten: it must accumulate"),
        (Forgetting(4, 3), (5, 4), "bias: backward leaves no gradient"),
        (Clobbering(), (5, 4), "dy written to"),
        (Scaled(3), (2, 3, 4, 4), "hands on dy"),
    ],
)
def test_layers(layer, shape, words):
    report = check(layer, shape=shape)
    assert not report.ok
    assert words in "\n".join(report.diagnosis), str(report)


class WrongPool(MaxPool2d):
    def _backward(self, dy, cache, need_dx):
        return 2 * super()._backward(dy, cache, need_dx)


def test_where_in_a_network():
    network = Sequential(
        Conv2d(3, 4, 3, padding=1), ReLU(), WrongPool(2), Conv2d(4, 5, 3), ReLU(), Flatten(), Linear(5, 3)
    )
    report = check(network, shape=(2, 3, 6, 6), labels=np.array([2, 0]))
    assert [row.argument for row in report.rows if not row.ok] == ["x", "0.weight", "0.bias"]
    assert report.diagnosis == [
        "gradients are right from 3.weight on to the end; the first wrong one on the way back is that of 0.bias",
        "0.bias: a constant factor, 2 times too large, which is N: its inverse is missing",
    ]


class Square:
    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, dy):
        return dy * self.x


def test_an_object():
    report = check(Square, np.arange(6.0).reshape(2, 3))
    assert report.diagnosis == ["x: a constant factor, 2 times too small, which is N: divided by it once too often"]
