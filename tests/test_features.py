"""Networks cut short at any layer, by the literature's names, and networks whose layers are replaced."""

import itertools

import numpy as np
import pytest
from test_networks import IMAGE, SMALL, empty, small

from minivgg.errors import BadInput
from minivgg.layers import Auxiliary, Dropout, Linear, ReLU, Sequential, walk_forward
from minivgg.models import initialise


def outputs_by_place(net, x):
    """Dotted name of each layer on the main way → its output, from a walk through the leaves, which fuses nothing."""
    leaves = []
    walk = walk_forward(net, x)
    while True:
        try:
            name, _, inputs = next(walk)
            leaves.append((name, inputs))
        except StopIteration as end:
            leaves.append(("", end.value))
            break
    places = {}
    for (name, _), (_, after) in itertools.pairwise(leaves):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            places[".".join(parts[:i])] = after  # the last leaf inside a layer comes last
    return places


@pytest.mark.parametrize(
    "name", ["vgg16", "vgg11_bn", "A-LRN", "C", "keras_vgg11", "alexnet", "alexnet_lrn", "googlenet"]
)
def test_features_at_every_landmark(name):
    net, x = small(name)
    places = outputs_by_place(net, x)
    assert net.landmarks
    for landmark, place in net.landmarks.items():
        part = net.features_at(landmark)
        np.testing.assert_array_equal(part.forward(x), places[place], err_msg=landmark)
        np.testing.assert_array_equal(net.features_at(place).forward(x), places[place], err_msg=place)


def test_landmarks_are_the_literatures():
    net = empty("vgg16")
    convs = [f"conv{s}_{i}" for s, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)]
    expected = {*convs, *(name.replace("conv", "relu") for name in convs), *(f"pool{s}" for s in range(1, 6))}
    assert {name for name in net.landmarks if "_" in name or "pool" in name} == expected
    assert [net.landmarks[name] for name in ("fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8")] == [
        f"classifier.{i}" for i in range(7)
    ]
    assert net.landmarks["relu4_3"] == "features.22"
    kinds = {"conv": "Conv2d", "relu": "ReLU", "pool": "MaxPool2d", "fc": "Linear", "drop": "Dropout", "norm": "Local"}
    for other in ("vgg19_bn", "alexnet", "alexnet_lrn", "A-LRN", "block_vgg"):
        net = empty(other)
        layers = dict(net.walk())
        for name, place in net.landmarks.items():
            kind = kinds.get(name.rstrip("0123456789_"), "BatchNorm2d")
            assert type(layers[place]).__name__.startswith(kind), (other, name)
    assert empty("vgg16").features_at("relu4_3").output_shape(IMAGE) == (1, 512, 28, 28)
    assert empty("alexnet").features_at("pool5").output_shape(IMAGE) == (1, 256, 6, 6)
    assert empty("googlenet").features_at("inception4e").output_shape(IMAGE) == (1, 832, 14, 14)


@pytest.mark.parametrize("landmark", ["conv1_1", "relu2_1", "pool3", "relu4_2", "fc6", "relu7"])
def test_features_go_back_as_the_layers_do(landmark):
    """Saliency: the same gradient as that of the layers run one by one, with other passes in between."""
    net, x = small("vgg13_bn")
    part, alone = net.features_at(landmark), net.features_at(landmark)
    for inner in (layer for _, layer in alone.walk() if isinstance(layer, Sequential)):
        inner.fused = False
    y = part.forward(x, keep=True)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    net.forward(2 * x, keep=True)
    np.testing.assert_array_equal(alone.forward(x, keep=True), y)
    np.testing.assert_array_equal(part.backward(dy), alone.backward(dy))
    frozen = part.freeze()
    np.testing.assert_allclose(frozen.forward(x), y, rtol=0, atol=1e-5 * abs(y).max())


def test_features_share_parameters_and_statistics():
    net, x = small("vgg11_bn")
    part = net.features_at("relu3_2")
    assert set(part.named_params()) < set(net.named_params())
    assert all(p is net.named_params()[name] for name, p in part.named_params().items())
    before = part.forward(x)
    net.forward(x, train=True)  # moves running statistics
    assert not np.array_equal(part.forward(x), before)
    for name, value in part.state_dict().items():
        np.testing.assert_array_equal(value, net.state_dict()[name])
    net.load_state_dict({name: value / 2 for name, value in net.state_dict().items()})
    np.testing.assert_array_equal(part.forward(x), net.features_at("relu3_2").forward(x))


def test_features_leave_heads_out():
    net, x = small("googlenet")
    part = net.features_at("inception5b")
    assert not any(isinstance(layer, Auxiliary) for _, layer in part.walk())
    assert part.forward(x, train=True).shape == (2, net.inception5b.output_shape((2, 52, 1, 1))[1], 1, 1)


def test_features_of_a_frozen_network():
    net, x = small("vgg11_bn")
    np.testing.assert_allclose(
        net.freeze().features_at("relu4_1").forward(x), net.features_at("relu4_1").forward(x), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(BadInput, match=r'no layer "bn1_1"; there are conv1_1, relu1_1, pool1'):
        net.freeze().features_at("bn1_1")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "vgg16",
            "relu4_4",
            r'no layer "relu4_4"; there are conv1_1, relu1_1, .*, pool5, fc6, relu6, drop6,.* fc8$',
        ),
        ("googlenet", "aux1", r'no layer "aux1"; there are conv1, pool1, .*inception3a, .*, fc$'),
        ("small_googlenet", "inception3", r"there are conv1, conv1.conv, conv1.relu, inception1, inception2, avgpool"),
    ],
)
def test_no_such_layer(name, wrong, message):
    with pytest.raises(BadInput, match=message):
        empty(name, **SMALL).features_at(wrong)


def test_another_last_layer_gives_vectors_of_another_length():
    net, x = small("vgg16")
    net.classifier[6] = initialise(Linear(8, 11), seed=2)
    assert net.forward(x).shape == (2, 11)
    assert net.named_params()["classifier.6.weight"].data.shape == (11, 8)
    net["classifier"]["5"] = Dropout(0.1)
    assert net.classifier[5].p == 0.1
    with pytest.raises(KeyError, match="no layer '9' to replace"):
        net.classifier["9"] = ReLU()
    with pytest.raises(IndexError):
        net.classifier[7] = ReLU()
