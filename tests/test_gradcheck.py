"""The gradient check on what is right: no false alarms over many seeds and nasty numbers, nothing touched."""

import sys
import types

import numpy as np
import pytest

from minivgg.gradcheck import check
from minivgg.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Sigmoid,
)
from minivgg.models import build
from minivgg.ops.avgpool import (
    adaptive_avgpool2d_backward,
    adaptive_avgpool2d_forward,
    avgpool2d_backward,
    avgpool2d_forward,
)
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.conv2d import conv2d_backward, conv2d_forward
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.flatten import flatten_backward, flatten_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.lrn import lrn_backward, lrn_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)

# How x is drawn. Other arguments are always normal.
DRAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-8 * rng.standard_normal(shape),
    "large": lambda rng, shape: 1e8 * rng.standard_normal(shape),
    "far from zero": lambda rng, shape: 1e3 + rng.standard_normal(shape),
    "very far from zero": lambda rng, shape: 1e8 + rng.standard_normal(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "ties": lambda rng, shape: np.round(rng.standard_normal(shape)),
    "float32": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "channels last": lambda rng, shape: np.moveaxis(rng.standard_normal((shape[0], *shape[2:], *shape[1:2])), -1, 1),
}

X = 2, 3, 6, 5
CONV = conv2d_forward, conv2d_backward
MAXPOOL = maxpool2d_forward, maxpool2d_backward
BATCHNORM = batchnorm_forward, batchnorm_backward
SEED_OF_DROPOUT = 7

OPS = {
    "conv2d": (CONV, [X, (4, 3, 3, 3), (4,)], {"padding": 1}),
    "conv2d, stride 2": (CONV, [X, (4, 3, 3, 2), (4,)], {"stride": 2, "padding": (1, 0)}),
    "conv2d, naive": (CONV, [X, (2, 3, 2, 3)], {"algorithm": "naive"}),
    "conv2d, all ones": (CONV, [(1, 1, 1, 1), (1, 1, 1, 1), (1,)], {}),
    "linear": ((linear_forward, linear_backward), [(3, 7), (5, 7), (5,)], {}),
    "linear, all ones": ((linear_forward, linear_backward), [(1, 1), (1, 1), (1,)], {}),
    "maxpool2d": (MAXPOOL, [X], {"kernel_size": 2}),
    "maxpool2d, overlapping": (MAXPOOL, [(1, 2, 7, 7)], {"kernel_size": 3, "stride": 2, "padding": 1}),
    "maxpool2d, one pixel": (MAXPOOL, [(1, 1, 1, 1)], {"kernel_size": 1}),
    "avgpool2d": ((avgpool2d_forward, avgpool2d_backward), [X], {"kernel_size": 3, "stride": 2, "padding": 1}),
    "adaptive_avgpool2d": ((adaptive_avgpool2d_forward, adaptive_avgpool2d_backward), [X], {"output_size": (4, 3)}),
    "relu": ((relu_forward, relu_backward), [X], {}),
    "relu, one number": ((relu_forward, relu_backward), [(1, 1)], {}),
    "sigmoid": ((sigmoid_forward, sigmoid_backward), [X], {}),
    "sigmoid, one number": ((sigmoid_forward, sigmoid_backward), [(1, 1)], {}),
    "flatten": ((flatten_forward, flatten_backward), [X], {}),
    "dropout": ((dropout_forward, dropout_backward), [X], {"p": 0.4, "seed": SEED_OF_DROPOUT}),
    "batchnorm": (BATCHNORM, [X, (3,), (3,)], {}),
    "batchnorm of a matrix": (BATCHNORM, [(4, 5), (5,), (5,)], {}),
    "batchnorm over two pixels": (BATCHNORM, [(2, 3, 1, 1), (3,), (3,)], {}),
    "batchnorm, given": (BATCHNORM, [X, (3,), (3,)], {"mean": np.arange(3.0), "var": np.array([0.5, 1.5, 2])}),
    "lrn": ((lrn_forward, lrn_backward), [(2, 7, 3, 2)], {"alpha": 0.1}),
    "softmax": ((softmax_forward, softmax_backward), [(4, 6)], {}),
    "softmax, one class": ((softmax_forward, softmax_backward), [(1, 1)], {}),
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", OPS)
def test_right_ops_pass(name, seed):
    pair, shapes, options = OPS[name]
    rng = np.random.default_rng(seed)
    draw = list(DRAWS.values())[seed % len(DRAWS)]
    inputs = [draw(rng, shapes[0]), *(rng.standard_normal(shape) for shape in shapes[1:])]
    report = check(pair, *inputs, options=options, seed=seed).raise_if_failed()
    assert report.kinks == 0 or name.startswith(("relu", "maxpool2d"))


@pytest.mark.parametrize("seed", range(30))
def test_gradients_of_which_rounding_is_all_that_is_left(seed):
    """Over two pixels batch norm's x̂ is ±1, whatever x: its gradient is about 0, a difference of large terms."""
    rng = np.random.default_rng(seed)
    for draw in "large", "far from zero", "very far from zero":
        x = DRAWS[draw](rng, (2, 3, 1, 1))
        check(BATCHNORM, x, rng.standard_normal(3), rng.standard_normal(3), seed=seed).raise_if_failed()


@pytest.mark.parametrize("seed", range(20))
def test_right_losses_pass(seed):
    rng = np.random.default_rng(seed)
    scores = list(DRAWS.values())[seed % len(DRAWS)](rng, (3, 5))
    loss = softmax_cross_entropy_forward, softmax_cross_entropy_backward
    report = check(loss, scores, rng.integers(0, 5, 3), options={"label_smoothing": 0.1}, seed=seed)
    assert [row.argument for row in report.raise_if_failed().rows] == ["scores"]


@pytest.mark.parametrize("seed", range(20))
def test_a_network_that_is_sure_of_itself(seed):
    """A tiny loss is log(1 + p) with most of p rounded away, which no change of the scores' last bits brings out."""
    scores = 10 * np.random.default_rng(seed).standard_normal((1, 5))
    loss = softmax_cross_entropy_forward, softmax_cross_entropy_backward
    check(loss, scores, scores.argmax(axis=1), seed=seed).raise_if_failed()


SMALL = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), MaxPool2d(2), Dropout(), Flatten(), Linear(16, 5))
LAYERS = [
    (Conv2d(3, 4, 3, padding=1), X),
    (Linear(5, 3), (4, 5)),
    (BatchNorm2d(3), X),
    (Dropout(0.3), X),
    (MaxPool2d(2), X),
    (AvgPool2d(2), X),
    (AdaptiveAvgPool2d(3), X),
    (ReLU(), X),
    (Sigmoid(), X),
    (LocalResponseNorm(), X),
    (Flatten(), X),
    (SMALL, (3, 3, 6, 6)),
    (Concat(Sequential(Conv2d(3, 2, 1), ReLU()), Conv2d(3, 4, 3, padding=1)), X),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[type(layer).__name__ for layer, _ in LAYERS])
def test_right_layers_pass(layer, shape, train, seed):
    report = check(layer, shape=shape, train=train, seed=seed).raise_if_failed()
    assert [row.argument for row in report.rows] == ["x", *layer.named_params()]
    assert report.kinks == 0


@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_network_with_its_loss(train):
    model = build("vgg11_bn", classes=10, input_size=32, width=0.05, classifier_width=8)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    report = check(model, x, labels=np.array([3, 1, 4]), train=train, evaluations=0).raise_if_failed()
    assert [row.argument for row in report.rows] == ["x", *model.named_params()]


def test_the_callers_layer_is_left_alone():
    model = Sequential(Conv2d(2, 3, 3), BatchNorm2d(3), Dropout(), Flatten(), Linear(12, 2))
    before = {name: a.copy() for name, a in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4), np.float32)
    kept = x.copy()
    check(model, x, labels=np.array([0, 1])).raise_if_failed()
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name], strict=True)
    assert all(p.grad is None for p in model.named_params().values())
    assert [leaf._cache for _, leaf in model.walk()] == [None] * 6
    assert model[2].calls == 0
    np.testing.assert_array_equal(x, kept, strict=True)


# ---- What learners write ----


def tanh(x):
    return np.tanh(x)


def tanh_backward(dy, x):
    return dy * (1 - np.tanh(x) ** 2)


class Perceptron:
    """Its own random mask, running statistics and parameters by the names that courses use."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.W, self.b = rng.standard_normal((4, 3)).astype(np.float32), np.zeros(3)
        self.rng, self.mean = np.random.default_rng(1), np.zeros(4)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(axis=0)
        self.keep = self.rng.random(x.shape) < 0.7
        self.x = (x - self.mean) * self.keep
        return self.x @ self.W + self.b

    def backward(self, dy):
        self.dW, self.db = self.x.T @ dy, dy.sum(axis=0)
        dx = dy @ self.W.T * self.keep
        return dx - 0.1 * dx.mean(axis=0)


def test_a_pair_without_cache():
    check((tanh, tanh_backward), np.random.default_rng(0).standard_normal((3, 4))).raise_if_failed()


def test_gradients_by_name_and_none():
    def backward(dy, cache):
        x, w = cache
        return {"w": x.T @ dy, "x": dy @ w.T}

    def forward(x, factor, w):
        return x @ w * factor, (x * factor, w * factor)

    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    check((forward, backward), x, 3, w).raise_if_failed()
    check((forward, lambda dy, cache: (dy @ cache[1].T, None, cache[0].T @ dy)), x, 3, w).raise_if_failed()


@pytest.mark.parametrize("thing", [Perceptron, Perceptron()], ids=["a class", "an object"])
def test_a_class(thing):
    report = check(thing, np.random.default_rng(0).standard_normal((5, 4)))
    assert [row.argument for row in report.raise_if_failed().rows] == ["x", "W", "b"]


def test_arrays_on_a_gpu(monkeypatch):
    """A CuPy of our own, on the CPU: everything checked sees its arrays, and all that is measured is NumPy."""

    class Array(np.ndarray):
        __module__ = "cupy"

        def get(self):
            return np.asarray(self).view(np.ndarray)

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(asarray=lambda a: np.asarray(a).view(Array)))
    seen = []

    def forward(x):
        seen.append(type(x))
        return np.sin(x), x

    x = np.random.default_rng(0).standard_normal((2, 3)).view(Array)
    report = check((forward, lambda dy, x: dy * np.cos(x)), x).raise_if_failed()
    assert set(seen) == {Array}
    assert type(report.points["x"].gradients["x"]) is np.ndarray
