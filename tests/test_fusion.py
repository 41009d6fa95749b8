"""Fused networks do what their layers do one by one, to the last bit; frozen ones, up to rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg.layers import AvgPool2d, BatchNorm2d, Concat, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import build

SHAPE = (2, 3, 8, 9)


def conv(inputs, outputs, **options):
    """A 3×3 convolution with random weights and biases, signed."""
    layer, rng = Conv2d(inputs, outputs, 3, padding=1, **options), np.random.default_rng(outputs)
    for p in layer.named_params().values():
        p.data = rng.standard_normal(p.data.shape).astype(p.data.dtype)
    return layer


def run(net, x, dy=None):
    """(y, dx, gradients) of one step."""
    net.zero_grad()
    y = net.forward(x, train=True)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype) if dy is None else dy
    dx = net.backward(dy)
    return y, dx, {name: p.grad for name, p in net.named_params().items()}


def assert_same(fused, alone, x):
    for inner in (layer for _, layer in alone.walk() if isinstance(layer, Sequential)):
        inner.fused = False
    (y, dx, grads), (expected_y, expected_dx, expected_grads) = run(fused, x), run(alone, x)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)
    for name, grad in expected_grads.items():
        np.testing.assert_array_equal(grads[name], grad, err_msg=name)


KINDS = {
    "conv": lambda: conv(3, 3),
    "naive conv": lambda: conv(3, 3, algorithm="naive"),
    "relu": ReLU,
    "pool": lambda: MaxPool2d(2, 1, 1),
    "average": lambda: AvgPool2d(3, 1, 1),
    "norm": lambda: BatchNorm2d(3),
    "inner": lambda: Sequential(ReLU(), conv(3, 3), ReLU()),
}


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=7), st.integers(0, 99))
def test_any_chain_fused_is_the_chain(kinds, seed):
    x = np.random.default_rng(seed).standard_normal(SHAPE, np.float32)
    assert_same(*(Sequential(*(KINDS[kind]() for kind in kinds)) for _ in range(2)), x)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "block_vgg"])
def test_networks_fused_are_the_networks(name):
    options = {"width": 0.125, "input_size": 32, "classes": 5, "classifier_width": 16}
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    assert_same(*(build(name, **options) for _ in range(2)), x)


def test_what_is_run():
    net = Sequential(conv(3, 3), ReLU(), conv(3, 3), ReLU(), MaxPool2d(2), conv(3, 3), ReLU(), AvgPool2d(2))
    assert [(type(layer).__name__, options) for layer, options in net.steps()] == [
        ("Conv2d", {"relu": True}),
        ("Conv2d", {"after_relu": True}),
        ("MaxPool2d", {"relu": True}),
        ("Conv2d", {"relu": True}),
        ("ReLU", {"done": True}),
        ("AvgPool2d", {}),
    ]
    net.fused = False
    assert net.steps() == [(layer, {}) for layer in net]


def test_switching_between_forward_and_backward():
    net = Sequential(conv(3, 3), ReLU(), conv(3, 3))
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    expected = run(net, x)[1]
    y = net.forward(x, train=True)
    net.fused = False  # too late for this pass
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    np.testing.assert_array_equal(net.backward(dy), expected)


def trained(net, x):
    """Some steps, so that running averages are no longer what they were."""
    for _ in range(3):
        net.forward(x, train=True)
    return net


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_frozen_gives_the_same_scores(name):
    net = build(name, width=0.25, input_size=32, classes=5, classifier_width=16, seed=1)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    expected = trained(net, x + 1).forward(x)
    frozen = net.freeze()
    kinds = {type(layer) for _, layer in frozen.walk()}
    assert not kinds & {Dropout, BatchNorm2d}
    for _ in range(2):  # the second time, from the filters prepared in the first
        # a forward has some 15 roundings in a row, each relative to the largest score or what led to it
        np.testing.assert_allclose(frozen.forward(x), expected, rtol=0, atol=1e-5 * abs(expected).max())
    np.testing.assert_array_equal(net.forward(x), expected)  # and the network is what it was


@pytest.mark.parametrize("size", [(8, 9), (3, 5), (2, 2)])
@pytest.mark.parametrize("algorithm", ["auto", "winograd", "winograd2", "direct", "naive"])
def test_convolutions_pool_where_nothing_is_kept(algorithm, size):
    net = Sequential(conv(3, 17, algorithm=algorithm), ReLU(), MaxPool2d(2), conv(17, 4))
    x = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    assert net.steps(keep=False) == [(net[0], {"relu": True, "pool": True}), (net[3], {})]
    assert net.steps(keep=True) == [(net[0], {}), (net[2], {"relu": True}), (net[3], {})]
    expected = net.forward(x, keep=True)
    np.testing.assert_array_equal(net.forward(x), expected)
    with pytest.raises(RuntimeError, match="nothing to go back through"):
        net.backward(expected)
    frozen, alone = net.freeze(), net.freeze()
    alone.fused = False
    np.testing.assert_array_equal(frozen.forward(x), alone.forward(x))


def test_other_pools_are_left_to_their_layer():
    for pool in (MaxPool2d(3, 2), MaxPool2d(2, 1), MaxPool2d(2, 2, 1), MaxPool2d(2, ceil_mode=True)):
        net = Sequential(conv(3, 3), ReLU(), pool)
        assert [options for _, options in net.steps(keep=False)] == [{}, {"relu": True}]


def test_frozen_is_not_for_training():
    frozen = Sequential(conv(3, 3), BatchNorm2d(3), ReLU()).freeze()
    with pytest.raises(RuntimeError, match="this convolution is frozen: train the network that it was frozen from"):
        frozen.forward(np.ones(SHAPE, np.float32), train=True)


def test_freezing_what_cannot_be_folded():
    """A batch norm behind anything but a convolution stays, also in branches."""
    branch = Sequential(conv(3, 4, bias=False), BatchNorm2d(4))
    net = Sequential(BatchNorm2d(3), Concat(branch, Sequential(ReLU(), BatchNorm2d(3))), Flatten(), Linear(7 * 72, 2))
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    expected = trained(net, 2 * x).forward(x)
    frozen = net.freeze()
    assert sum(isinstance(layer, BatchNorm2d) for _, layer in frozen.walk()) == 2
    np.testing.assert_allclose(frozen.forward(x), expected, rtol=0, atol=1e-5)


def test_a_subclass_is_run_as_it_is():
    """Somebody's own layer, derived from ours, takes no options and is never left out."""

    class Leaky(ReLU):
        def _forward(self, x, train):
            return np.maximum(x, 0.1 * x), x

        def _backward(self, dy, cache, need_dx):
            return dy * np.where(cache > 0, 1, 0.1).astype(dy.dtype)

    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    assert_same(*(Sequential(conv(3, 3), Leaky(), conv(3, 3), Leaky(), MaxPool2d(2)) for _ in range(2)), x)
    net = Sequential(conv(3, 3), Leaky(), conv(3, 3))
    assert [type(layer) for layer, _ in net.steps()] == [Conv2d, Leaky, Conv2d]
