"""The gradient check on what is right: no false alarms, kinks counted, nothing touched; and its reports."""

import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from minivgg.gradcheck import check
from minivgg.gradcheck.numeric import Point, central, choose_step, directions
from minivgg.gradcheck.targets import as_target
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


# ---- Kinks ----


def test_relu_at_zero():
    report = check((relu_forward, relu_backward), np.array([[0.0, 1, -1], [0, 0, 2]]))
    assert report.ok
    assert report.kinks == report.rows[0].kinks == 3
    assert "3 kinks" in str(report)


def test_maxpool_ties():
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 0] = x[0, 0, 1]  # two windows whose first row holds what their second holds
    report = check(MAXPOOL, x, options={"kernel_size": 2})
    assert report.ok
    assert report.kinks == 2


def test_lrn_at_zero_has_no_kink():
    report = check((lrn_forward, lrn_backward), np.zeros((1, 5, 2, 2)))
    assert report.ok
    assert report.kinks == 0


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.array([[0.0, 1, 2], [3, 0, -1]])])
def test_kinks_of_unknown_functions(x):
    for function, slope in (np.abs, np.sign), (lambda x: np.maximum(x, 0), lambda x: x > 0):
        report = check((function, lambda dy, x, slope=slope: dy * slope(x)), x)
        assert report.ok, str(report)
        assert report.kinks == (x == 0).sum()


@pytest.mark.parametrize("distance", [1e-5, 1e-6, 1e-7])
def test_kinks_that_are_near_do_not_count(distance):
    x = distance * np.array([[1.0, -1, 1], [-1, 1, 1]]) + np.array([0, 0, 0.5])
    for pair in (relu_forward, relu_backward), (np.abs, lambda dy, x: dy * np.sign(x)):
        report = check(pair, x)
        assert report.ok, str(report)
        assert report.kinks == 0


def crossed(pair, x, v):
    """Which branches differ along v, by a step of about 10⁻⁶."""
    rng = np.random.default_rng(0)
    target = as_target(pair, (x,), options={}, labels=None, shape=None, train=True, rng=rng)
    point = Point(target, {"x": x}, rng.standard_normal(target.forward({"x": x}).y.shape), rng)
    return [mask.tolist() for mask in central(point, "x", v, 2.0**-20).crossed]


def test_kinks_are_seen_in_masks_and_winners():
    x = np.array([[1e-7, -1e-7, 1], [1e-5, -1e-5, 0]])
    assert crossed((relu_forward, relu_backward), x, np.ones((2, 3))) == [[[True, True, False], [False, False, True]]]
    assert crossed((relu_forward, relu_backward), x, np.eye(2, 3)) == [[[True, False, False], [False, False, False]]]
    assert crossed((relu_forward, relu_backward), x[:, 2:] + 1, np.ones((2, 1))) == []
    windows = np.array([[[[1, 1 + 1e-7, 1, 2, 3, 3]]]])
    pool = lambda x: maxpool2d_forward(x, (1, 2)), maxpool2d_backward
    assert crossed(pool, windows, np.array([1.0, -1, 1, -1, 1, -1]).reshape(windows.shape)) == [
        [[[[True], [False], [True]]]]
    ]


def test_kinks_that_meet_in_one_output():
    """relu(x) − relu(−x) = x has no kink, but its parts' conventions give it the gradient 0 at 0."""

    def forward(x):
        positive, negative = relu_forward(x), relu_forward(-x)
        return positive[0] - negative[0], (positive[1], negative[1])

    def backward(dy, cache):
        return relu_backward(dy, cache[0]) + relu_backward(dy, cache[1])

    assert check((forward, backward), np.array([[1.0, -2, 3]])).ok
    assert not check((forward, backward), np.zeros((2, 3))).ok  # and that is wrong: x is smooth, its slope 1
    for network in (
        Sequential(Conv2d(2, 6, 1, bias=False), ReLU(), Conv2d(6, 2, 1)),
        Sequential(ReLU(), Conv2d(2, 2, 1)),
    ):
        for seed in range(5):
            report = check(network, np.zeros((2, 2, 3, 3)), seed=seed)
            assert report.ok, str(report)
            assert report.kinks > 0


def test_kinks_in_a_network_of_a_learners_own():
    """All hidden values at 0: whatever the slopes there, the gradient is checked beside the kinks."""

    def forward(x, w1, w2):
        hidden = x @ w1
        return np.maximum(hidden, 0) @ w2, (x, w1, w2, hidden)

    def backward(dy, cache):
        x, w1, w2, hidden = cache
        dhidden = dy @ w2.T * (hidden > 0)
        return dhidden @ w1.T, x.T @ dhidden, np.maximum(hidden, 0).T @ dy

    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, w1, w2 = rng.standard_normal((4, 3)), np.zeros((3, 5)), rng.standard_normal((5, 1))
        report = check((forward, backward), x, w1, w2, seed=seed)
        assert report.ok, str(report)
        assert report.kinks > 0
        wrong = (forward, lambda dy, cache: (lambda dx, dw1, dw2: (dx, 1.0001 * dw1, dw2))(*backward(dy, cache)))
        assert [row.ok for row in check(wrong, x, w1, w2, seed=seed).rows] == [True, False, True]


def test_memory_that_is_used_again():
    """A forward and a backward that always answer in the same arrays."""
    y, dx = np.empty((3, 4)), np.empty((3, 4))

    def forward(x):
        return np.sin(x, out=y), x

    x = np.random.default_rng(0).standard_normal((3, 4))
    check((forward, lambda dy, x: np.multiply(dy, np.cos(x), out=dx)), x).raise_if_failed()


# ---- Options ----


def test_a_constant_dy_is_refused():
    softmax = softmax_forward, lambda dy, y: 7 * softmax_backward(dy, y)
    x = np.random.default_rng(0).standard_normal((3, 4))
    with pytest.raises(ValueError, match="blind"):
        check(softmax, x, dy=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3\)"):
        check(softmax, x, dy=x.T)
    assert not check(softmax, x, dy=x).ok
    assert check((softmax_forward, softmax_backward), x, dy=x.astype(np.float32)).ok


def test_whole_jacobians():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 3, 3))
    assert check(CONV, x, w, full=True).ok
    assert check(BatchNorm2d(3), x, full=True).ok
    assert check((relu_forward, relu_backward), np.round(x), full=True).ok
    with pytest.raises(ValueError, match="small cases"):
        check((relu_forward, relu_backward), np.ones((2, 3, 30, 30)), full=True)


def test_whole_jacobians_find_what_one_dy_cannot():
    """A backward that is right for one dy only: that of the check."""
    x = np.random.default_rng(0).standard_normal((2, 3))
    dy = np.random.default_rng(1).standard_normal((2, 3))

    def backward(upstream, x):
        return upstream * np.cos(x) + (0 if np.allclose(upstream, dy, rtol=1e-6) else 1e-4)

    report = check((np.sin, backward), x, dy=dy, full=True)
    assert "∂y" in str(report.rows[0].where)
    assert not report.rows[0].ok
    assert check((np.sin, backward), x, dy=dy).rows[0].ok


def softplus(x):
    return np.log(1 + np.exp(x))


def softplus_backward(dy, x):
    return dy / (1 + np.exp(-x))


def test_complex_steps():
    x = np.random.default_rng(0).standard_normal((3, 4))
    report = check((softplus, softplus_backward), x, complex_step=True)
    assert report.ok
    assert report.rows[0].tolerance < 1e-13
    by_differences = check((softplus, softplus_backward), x).rows[0].tolerance
    assert report.rows[0].tolerance < by_differences / 1000
    slightly_wrong = softplus, lambda dy, x: softplus_backward(dy, x) * (1 + 1e-12)
    assert check(slightly_wrong, x).ok
    assert not check(slightly_wrong, x, complex_step=True).ok
    with pytest.raises(ValueError, match="turned complex numbers into float64"):
        check((np.abs, lambda dy, x: dy * np.sign(x)), x, complex_step=True)
    with pytest.raises(ValueError, match="another slope on complex numbers"):
        check((lambda x: x * np.conj(x), lambda dy, x: 2 * dy * x), x, complex_step=True)
    with pytest.raises(ValueError, match="failed on complex numbers"):
        check((np.cbrt, lambda dy, x: dy / 3 / np.cbrt(x) ** 2), x, complex_step=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((relu_forward, np.ones(3)), TypeError, "a pair"),
        (((relu_forward, relu_backward),), TypeError, "arrays that forward"),
        (((relu_forward, relu_backward), np.arange(3)), TypeError, "none of the inputs"),
        (((relu_forward, relu_backward), np.array([1, np.nan])), ValueError, "x must be finite"),
        (((relu_forward, relu_backward), np.zeros((0, 3))), ValueError, "not empty"),
        ((ReLU(),), TypeError, "a layer takes one input"),
        (((np.sin, lambda dy, x: (dy, dy, dy)), np.ones(2)), ValueError, "returned 3 gradients for the arguments"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        check(*arguments)


def test_the_same_seed_gives_the_same_report():
    x = np.random.default_rng(0).standard_normal((3, 4))
    one, two, other = (check((tanh, tanh_backward), x, seed=seed) for seed in (1, 1, 2))
    assert one.rows == two.rows
    assert one.rows != other.rows


@pytest.mark.parametrize("seed", range(20))
def test_measured_slopes_are_within_their_tolerance(seed):
    """Against a slope known in closed form, and close enough to see one part in 10⁴ of one element of 200."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 10))
    target = as_target((tanh, tanh_backward), (x,), options={}, labels=None, shape=None, train=True, rng=rng)
    point = Point(target, {"x": x}, rng.standard_normal(x.shape), rng)
    for _, v in directions(x, rng):
        slope = central(point, "x", v, choose_step(point, "x", v))
        assert abs(slope.value - slope.claim) <= slope.tolerance < 1e-7
        long = central(point, "x", v, 2.0**-7)
        assert abs(long.value - long.claim) < long.truncation / 10  # what extrapolation gains


def test_steps_grow_where_rounding_is_all_the_error():
    """A sigmoid of 10⁻⁸: by a step of 10⁻¹⁴ its slope could be told to 10⁻³ only."""
    x = 1e-8 * np.random.default_rng(0).standard_normal((3, 4))
    assert check((sigmoid_forward, sigmoid_backward), x).rows[0].tolerance < 1e-5


def test_steps_are_numbers_that_exist():
    """Far from zero a step h·v goes to the nearest number, and the slope is that on the way there."""
    x, rng = 2.0**30 + np.arange(6.0).reshape(2, 3), np.random.default_rng(0)
    pair = lambda x: x - 2.0**30, lambda dy, x: dy
    target = as_target(pair, (x,), options={}, labels=None, shape=None, train=True, rng=rng)
    point = Point(target, {"x": x}, np.array([[1.0, -2, 1], [2, 1, -1]]), rng)
    slope = central(point, "x", rng.standard_normal(x.shape), 2.0**-20)
    assert abs(slope.value - slope.claim) < 1e-12


def test_cost_is_bounded():
    x = np.random.default_rng(0).standard_normal(X)
    assert check((sigmoid_forward, sigmoid_backward), x).evaluations < 150
    assert check((sigmoid_forward, sigmoid_backward), x, evaluations=0).evaluations < 100


# ---- Reports ----


@pytest.fixture(scope="module")
def wrong():
    def backward(dy, cache):
        dx, dw, db = conv2d_backward(dy, cache)
        return dx, dw[..., ::-1, ::-1], db

    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal(X), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    return check((conv2d_forward, backward), x, w, b, options={"padding": 1})


@pytest.fixture(scope="module")
def right():
    x = np.random.default_rng(0).standard_normal((2, 3))
    return check((relu_forward, relu_backward), np.where(x > 0, x, 0))


def test_a_table(wrong):
    lines = str(wrong).splitlines()
    assert lines[0].startswith("conv2d: the gradient is WRONG")
    table = lines[2:7]
    assert [line.split()[0] for line in table[2:]] == ["x", "w", "b"]
    assert [line.split()[-1] for line in table[2:]] == ["ok", "WRONG", "ok"]
    verdicts = table[0].index("verdict")
    assert all(line[verdicts - 1] == " " and line[verdicts] in "vo─W" for line in table)
    assert "• w: the gradient is rotated by 180°" in lines[-1]
    row = wrong.rows[1]
    assert row.order == pytest.approx(1, abs=0.01)
    assert row.ratio == pytest.approx(row.analytic / row.numeric)
    index = tuple(row.where)
    assert wrong.points["w"].gradients["w"][index] == row.analytic


def test_taylor_says_two_when_right():
    report = check((tanh, tanh_backward), np.random.default_rng(0).standard_normal((3, 4)))
    assert report.rows[0].order == pytest.approx(2, abs=0.05)


def test_html(wrong):
    page = wrong._repr_html_()
    assert page.count("<tr") == 4
    assert "rotated by 180°" in page


def test_raise_if_failed(wrong, right):
    assert right.raise_if_failed() is right
    with pytest.raises(AssertionError, match="rotated by 180°"):
        wrong.raise_if_failed()


def test_plot(wrong, right, tmp_path):
    figure = wrong.plot(tmp_path / "wrong.png")
    assert isinstance(figure, Figure)
    assert "w 4×3×3×3" in figure.get_suptitle()
    assert (tmp_path / "wrong.png").stat().st_size > 10_000
    heat, steps, remainder, _ = figure.axes
    image = heat.images[0].get_array()
    assert image.shape == (4 * 3, 3 * 3)
    assert image[1, 1] < 1e-8 < 1e-2 < image.max()  # the middle of a filter is where rotating it changes nothing
    assert min(steps.lines[1].get_ydata()) > 1e-2
    assert remainder.get_title() == "Taylor remainder: slope 1.00"
    assert "b 4" in wrong.plot(argument="b").get_suptitle()
    assert "x 2×3" in right.plot().get_suptitle()
    assert "3 kinks" in check((relu_forward, relu_backward), np.zeros((1, 3))).plot().get_suptitle()
    scale = check((lambda x, k: x * k, lambda dy, x, k: (dy * k, (dy * x).sum())), np.ones((1, 2)), np.array(3.0))
    assert "k scalar" in scale.raise_if_failed().plot(argument="k").get_suptitle()
    assert len(check(ReLU(), shape=(1, 40, 2, 2)).plot().axes[0].get_xticks()) <= 16
    with pytest.raises(ValueError, match="nothing was measured for y"):
        wrong.plot(argument="y")
