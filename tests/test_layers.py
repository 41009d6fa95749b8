"""Layers: they run their op, keep their cache no longer than needed, and name their parameters as torchvision does."""

import numpy as np
import pytest

from minivgg.errors import BadInput
from minivgg.layers import (
    AdaptiveAvgPool2d,
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
    walk_forward,
)
from minivgg.models import initialise
from minivgg.testing import LAYERS, check_layer


def prepared(make, dtype=np.float64):
    layer = initialise(make(), seed=1).astype(dtype)
    rng = np.random.default_rng(2)
    for name, p in layer.named_params().items():
        if name.endswith("bias") or p.data.ndim == 1:
            p.data[...] = 1 + 0.3 * rng.standard_normal(p.data.shape)
    return layer


def signed(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_conforms(name):
    check_layer(name)


def test_backward_says_what_to_call_first():
    layer, x = ReLU(), signed((2, 3))
    layer.forward(x)
    with pytest.raises(RuntimeError, match=r"backward has nothing .* first call forward\(x, train=True\)"):
        layer.backward(x)
    layer.forward(x, keep=True)
    layer.backward(x)
    with pytest.raises(RuntimeError, match="once for each backward"):
        layer.backward(x)


@pytest.mark.parametrize("name", ["Conv2d", "Linear", "Sequential", "Concat"])
def test_first_layer_may_save_itself_dx(name):
    make, shape = LAYERS[name]
    layer = prepared(make)
    layer.forward(signed(shape), train=True)
    assert layer.backward(signed(layer.output_shape(shape)), need_dx=False) is None
    assert all(p.grad is not None for p in layer.named_params().values())


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_state_dict_comes_back(make, shape):
    one, two = prepared(make), make().astype(np.float64)
    one.forward(signed(shape), train=True)  # moves running statistics
    state = one.state_dict()
    assert all(value.flags.c_contiguous for value in state.values())
    two.load_state_dict(state | {"0.num_batches_tracked": np.array(7)})
    np.testing.assert_array_equal(two.forward(signed(shape)), one.forward(signed(shape)))


def test_load_state_dict_changes_nothing_when_it_fails():
    net = prepared(LAYERS["Sequential"][0])
    before = {name: value.copy() for name, value in net.state_dict().items()}
    bad = {name: np.zeros_like(value) for name, value in before.items()}
    with pytest.raises(ValueError, match=r"5\.bias has shape \(3,\), but the network needs \(2,\)"):
        net.load_state_dict(bad | {"5.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"missing 5\.bias, left over 5\.beta"):
        net.load_state_dict({name.replace("5.bias", "5.beta"): value for name, value in bad.items()})
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_dropout_drops_only_in_training_and_differently_each_time():
    layer, x = Dropout(0.5, seed=9), np.ones((4, 50), np.float32)
    np.testing.assert_array_equal(layer.forward(x), x)
    assert layer.calls == 0
    one, two = layer.forward(x, train=True), layer.forward(x, train=True)
    assert (one == 0).any()
    assert (one != two).any()
    layer.calls = 0
    np.testing.assert_array_equal(layer.forward(x, train=True), one)


def test_batchnorm_learns_statistics_only_in_training():
    layer, x = BatchNorm2d(2, momentum=0.5), 3 + 2 * signed((50, 2, 3, 3), dtype=np.float32)
    layer.forward(x)
    assert layer.running_mean.tolist() == [0, 0]
    for _ in range(20):
        y = layer.forward(x, train=True)
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(layer.running_var, x.var(axis=(0, 2, 3), ddof=1), rtol=1e-4)
    np.testing.assert_allclose(layer.forward(x), y, atol=0.01)


def test_concat_joins_channels_in_order_and_adds_gradients():
    net, x = Concat(ReLU(), Sigmoid()), signed((2, 3, 4, 4))
    y = net.forward(x, train=True)
    np.testing.assert_array_equal(y, np.concatenate([np.maximum(x, 0), Sigmoid().forward(x)], axis=1))
    s, dy = Sigmoid().forward(x), signed((2, 6, 4, 4), 1)
    np.testing.assert_allclose(net.backward(dy), dy[:, :3] * (x > 0) + dy[:, 3:] * s * (1 - s))


def test_concat_refuses_branches_of_different_sizes():
    with pytest.raises(ValueError, match=r"Concat: branches must agree .*\(1, 2, 2, 2\), \(1, 2, 4, 4\)"):
        Concat(MaxPool2d(2), ReLU()).forward(signed((1, 2, 4, 4)))


def test_children_by_name_position_and_attribute():
    net = Sequential({"stem": Conv2d(1, 2, 3), "head": Sequential(ReLU(), Flatten())})
    assert net.stem is net["stem"] is net[0]
    assert list(net.named_params()) == ["stem.weight", "stem.bias"]
    assert [name for name, _ in net.walk()] == ["", "stem", "head", "head.0", "head.1"]
    with pytest.raises(AttributeError, match="no attribute or layer 'tail'"):
        _ = net.tail


def test_walk_forward_shows_every_leaf_its_input():
    net, x = prepared(LAYERS["Concat"][0]), signed((2, 3, 5, 5))
    steps = walk_forward(net, x)
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            np.testing.assert_array_equal(end.value, net.forward(x))
            break
    assert [name for name, _, _ in seen] == ["0", "1.0", "1.1"]
    np.testing.assert_array_equal(seen[2][2], MaxPool2d(3, 1, 1).forward(x))


def test_repr_is_a_table_of_the_net():
    net = Sequential({"features": Sequential(Conv2d(3, 8, 3, padding=1), ReLU(), MaxPool2d(2)), "flatten": Flatten()})
    assert repr(net).splitlines() == [
        "features.0  Conv2d(3, 8, 3, padding=1)            224",
        "features.1  ReLU()",
        "features.2  MaxPool2d(2)",
        "flatten     Flatten()",
        "Sequential                                        224",
    ]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), bias=False),
            "Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), bias=False)",
        ),
        (MaxPool2d(3, 2, 1), "MaxPool2d(3, stride=2, padding=1)"),
        (Linear(4, 2), "Linear(4, 2)"),
        (BatchNorm2d(4), "BatchNorm2d(4)"),
        (AdaptiveAvgPool2d(7), "AdaptiveAvgPool2d(7)"),
        (Dropout(0.5), "Dropout(0.5)"),
        (LocalResponseNorm(), "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=1.0)"),
    ],
)
def test_repr_is_what_one_would_type(layer, text):
    assert repr(layer) == text


def test_mistakes_are_told():
    with pytest.raises(BadInput, match=r"Dropout: p = 2: should be a number, at least 0 and at most 1"):
        Dropout(2)
    with pytest.raises(ValueError, match=r"Linear takes \(N, 6\), got \(2, 5\)"):
        Linear(6, 4).output_shape((2, 5))
