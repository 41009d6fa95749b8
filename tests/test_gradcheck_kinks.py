"""The gradient check at kinks: they are found exactly, counted, and never fail what is fair."""

import numpy as np
import pytest
from test_gradcheck import MAXPOOL

from minivgg.gradcheck import check
from minivgg.gradcheck.numeric import Point, central
from minivgg.gradcheck.targets import as_target
from minivgg.layers import (
    Conv2d,
    ReLU,
    Sequential,
)
from minivgg.ops.lrn import lrn_backward, lrn_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward


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
