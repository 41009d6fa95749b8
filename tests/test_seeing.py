"""Seeing: each picture's numbers against an independent computation, and the network left as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg.errors import BadInput
from minivgg.insight import pictures, seeing
from minivgg.insight.watching import watched
from minivgg.layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minivgg.models import build, initialise

RNG = np.random.default_rng(0)


def signed(net, dtype=np.float64):
    """The net with random signed numbers everywhere, biases and batch norms too."""
    rng = np.random.default_rng(5)
    net.astype(dtype)
    for p in net.named_params().values():
        p.data[...] = rng.standard_normal(p.data.shape)
    for _, layer in net.walk():
        if isinstance(layer, BatchNorm2d):
            layer.running_mean = rng.standard_normal(layer.running_mean.shape).astype(dtype)
            layer.running_var = rng.uniform(0.5, 2, layer.running_var.shape).astype(dtype)
    return net


def small_vgg(name="vgg11_bn", seed=3):
    net = build(
        name, channels=2, classes=4, input_size=32, width=0.05, classifier_width=12, dtype=np.float64, seed=seed
    )
    rng = np.random.default_rng(seed)
    for key, p in net.named_params().items():
        if key.endswith("bias"):
            p.data[...] = 0.1 * rng.standard_normal(p.data.shape)
    return net


def conv_gap_linear():
    """conv → ReLU → global average pool → linear: Zhou et al.'s net, 3 maps of 6×5, 4 classes."""
    return signed(Sequential(Conv2d(2, 3, 3, padding=1), ReLU(), AdaptiveAvgPool2d(1), Flatten(), Linear(3, 4)))


def by_hand_conv(x, w, b):
    """3×3 convolution with padding 1 of one image (C, H, W), in plain loops."""
    C, H, W = x.shape
    padded = np.zeros((C, H + 2, W + 2))
    padded[:, 1:-1, 1:-1] = x
    y = np.zeros((len(w), H, W))
    for o in range(len(w)):
        for i in range(H):
            for j in range(W):
                y[o, i, j] = (w[o] * padded[:, i : i + 3, j : j + 3]).sum() + b[o]
    return y


@pytest.mark.parametrize(("name", "label"), [("vgg11", 2), ("vgg11_bn", None)])
def test_saliency_is_the_slope(name, label):
    """Against central differences, by pixel. A slope that is another at half the step has met a kink: left out."""
    net, rng = small_vgg(name), np.random.default_rng(1)
    x = rng.standard_normal((2, 32, 32))
    scores = net.forward(x[None])
    k = int(scores.argmax()) if label is None else label
    gradient = seeing.image_gradient(net, x, label)
    checked = 0
    for c, i, j in zip(rng.integers(0, 2, 15), *rng.integers(0, 32, (2, 15)), strict=True):
        slopes = []
        for h in (1e-5, 5e-6):
            moved = [x.copy(), x.copy()]
            moved[0][c, i, j] += h
            moved[1][c, i, j] -= h
            up, down = (net.forward(m[None])[0, k] for m in moved)
            slopes.append((up - down) / (2 * h))
        if abs(slopes[0] - slopes[1]) < 1e-6 * max(map(abs, slopes)):
            np.testing.assert_allclose(gradient[c, i, j], slopes[1], rtol=1e-5, atol=1e-10)
            checked += 1
    assert checked > 7
    np.testing.assert_array_equal(seeing.saliency(net, x, label), np.abs(gradient).max(axis=0))


def test_guided_backpropagation_by_hand():
    """linear, ReLU, linear: dx = wᵀ · [h > 0][dy > 0] dy, where plain backpropagation has [h > 0] dy."""
    net = signed(Sequential(Flatten(), Linear(6, 20), ReLU(), Linear(20, 3)))
    x = RNG.standard_normal((1, 2, 3))
    w1, b1, w2 = net[1].weight.data, net[1].bias.data, net[3].weight.data
    open_ = w1 @ x.ravel() + b1 > 0
    for k in range(3):
        plain = (w1.T @ (open_ * w2[k])).reshape(1, 2, 3)
        guided = (w1.T @ (open_ * np.maximum(w2[k], 0))).reshape(1, 2, 3)
        assert not np.allclose(plain, guided)
        np.testing.assert_allclose(seeing.image_gradient(net, x, k), plain, rtol=1e-12)
        np.testing.assert_allclose(seeing.image_gradient(net, x, k, guided=True), guided, rtol=1e-12)


def test_grad_cam_by_hand():
    """conv → ReLU → flatten → linear: the gradient of a score by the maps is a row of the last layer's weights."""
    net = signed(Sequential(Conv2d(2, 3, 3, padding=1), ReLU(), Flatten(), Linear(3 * 6 * 5, 4)))
    x = RNG.standard_normal((2, 6, 5))
    maps = np.maximum(by_hand_conv(x, net[0].weight.data, net[0].bias.data), 0)
    for k in range(4):
        alpha = net[3].weight.data[k].reshape(3, 6, 5).mean(axis=(1, 2))
        expected = np.maximum(sum(a * m for a, m in zip(alpha, maps, strict=True)), 0)
        found = seeing.grad_cam_maps(net, x, k, ["1"])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(seeing.grad_cam(net, x, k), expected / (expected.max() or 1), rtol=1e-6, atol=1e-7)


def test_grad_cam_of_global_average_pooling_is_cam():
    """Up to a factor, the number of pixels (Selvaraju et al. 2017, §3.1): CAM is Σ_k w_k A_k (Zhou et al. 2016)."""
    net = conv_gap_linear()
    x = RNG.standard_normal((2, 6, 5))
    maps = np.maximum(by_hand_conv(x, net[0].weight.data, net[0].bias.data), 0)
    seen = 0
    for k in range(4):
        cam = np.maximum(np.einsum("k,khw->hw", net[4].weight.data[k], maps), 0)
        np.testing.assert_allclose(seeing.grad_cam_maps(net, x, k, ["1"])[0] * 30, cam, rtol=1e-12, atol=1e-12)
        seen += cam.max() > 0
    assert seen >= 2


def test_grad_cam_has_the_images_size_and_ends_at_one():
    net, x = small_vgg(), np.random.default_rng(2).standard_normal((2, 48, 40))
    for layer in [None, *seeing.stage_layers(net)]:
        found = seeing.grad_cam(net, x, 1, layer)
        assert found.shape == (48, 40)
        assert found.min() >= 0
        assert found.max() in (0, 1)


def test_grad_cam_of_nothing_is_zero():
    net = conv_gap_linear()
    net[4].weight.data[...] = -1
    assert not seeing.grad_cam(net, RNG.standard_normal((2, 6, 5)), 0).any()


def test_layers_are_found_by_what_they_are():
    net = small_vgg()
    assert seeing.default_layer(net) == "features.27"
    assert seeing.stage_layers(net) == ["features.2", "features.6", "features.13", "features.20", "features.27"]
    assert seeing.stage_layers(conv_gap_linear()) == ["1"]


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.2", "features.3", "features.9", "features"])
def test_feature_maps_are_those_of_the_layers_one_by_one(layer):
    net, x = small_vgg(), RNG.standard_normal((3, 2, 32, 32))
    expected = x
    for i in range(int(layer.rpartition(".")[2]) + 1 if "." in layer else len(net.features)):
        expected = net.features[i].forward(expected)
    np.testing.assert_array_equal(seeing.feature_maps(net, x, layer), expected)


def test_features_are_what_the_last_linear_layer_sees():
    net, x = small_vgg(), RNG.standard_normal((7, 2, 32, 32))
    found = seeing.features(net, x, batch_size=3)
    last = net.classifier[6]
    np.testing.assert_allclose(found @ last.weight.data.T + last.bias.data, net.forward(x), rtol=1e-10)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 2), (4, 3), (9, 4)])
def test_occlusion_is_a_loop(size, stride):
    net, x = conv_gap_linear(), RNG.standard_normal((2, 6, 5))

    def probability(image):
        e = np.exp(net.forward(image[None])[0])
        return (e / e.sum())[2]

    whole, found = seeing.occlusion(net, x, 2, size=size, stride=stride, fill=0.3, batch_size=4)
    assert found.shape == (-(-6 // stride), -(-5 // stride))
    assert whole == pytest.approx(probability(x))
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            hidden = x.copy()
            for row in range(6):
                for column in range(5):  # a pixel is hidden if it lies in the square around the cell's middle
                    dy, dx = row - (i * stride + stride // 2), column - (j * stride + stride // 2)
                    if -(size // 2) <= dy < size - size // 2 and -(size // 2) <= dx < size - size // 2:
                        hidden[:, row, column] = 0.3
            assert found[i, j] == pytest.approx(probability(hidden))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_neighbours_are_those_of_brute_force(M, N, F, seed):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(-2, 3, (M, F)).astype(float), rng.integers(-2, 3, (N, F)).astype(float)
    count = int(rng.integers(1, N + 1))
    order, cosines = seeing.neighbours(queries, gallery, count)
    for m in range(M):
        alike = []
        for row in gallery:
            lengths = np.sqrt((queries[m] ** 2).sum() * (row**2).sum())
            alike.append((queries[m] * row).sum() / lengths if lengths else 0.0)
        np.testing.assert_allclose(cosines[m], sorted(alike, reverse=True)[:count], atol=1e-12)
        np.testing.assert_allclose(np.array(alike)[order[m]], cosines[m], atol=1e-12)
        assert len(set(order[m].tolist())) == count


def test_an_image_is_its_own_nearest_neighbour():
    rows = RNG.standard_normal((20, 6))
    assert seeing.neighbours(rows * 3, rows, 1)[0].ravel().tolist() == list(range(20))


def looks(net, x):
    """Every way of looking that there is."""
    yield lambda: seeing.image_gradient(net, x, guided=True)
    yield lambda: seeing.grad_cam(net, x)
    yield lambda: seeing.feature_maps(net, x)
    yield lambda: seeing.features(net, x)
    yield lambda: seeing.occlusion(net, x, size=8, stride=16)


def test_looking_changes_nothing():
    net, x = small_vgg(), RNG.standard_normal((2, 32, 32))
    before = {name: value.copy() for name, value in net.state_dict().items()}
    marks = {name: np.full_like(p.data, 7) for name, p in net.named_params().items()}
    for name, p in net.named_params().items():
        p.grad = marks[name]
    scores = net.forward(x[None])
    for look in looks(net, x):
        look()
        assert all(p.grad is marks[name] and (p.grad == 7).all() for name, p in net.named_params().items())
        assert all(layer.fused for _, layer in net.walk() if isinstance(layer, Sequential))
        assert not any({"forward", "backward"} & vars(layer).keys() for _, layer in net.walk())
        with pytest.raises(RuntimeError, match="nothing to go back through"):
            net.backward(np.ones_like(scores))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    np.testing.assert_array_equal(net.forward(x[None]), scores)


def test_watching_ends_with_an_error_too():
    net = conv_gap_linear()
    with pytest.raises(ZeroDivisionError), watched(net, lambda *_: 1 / 0):
        net.forward(RNG.standard_normal((1, 2, 6, 5)))
    assert net.fused
    assert net.forward(RNG.standard_normal((1, 2, 6, 5))).shape == (1, 4)


def test_branches_are_seen_too():
    branches = Concat(Sequential(Conv2d(2, 3, 1), ReLU()), Sequential(Conv2d(2, 2, 3, padding=1), ReLU()))
    net = signed(Sequential(branches, AdaptiveAvgPool2d(1), Flatten(), Linear(5, 4)))
    x = RNG.standard_normal((2, 6, 5))
    maps = seeing.feature_maps(net, x, "0")[0]
    assert maps.shape == (5, 6, 5)
    cam = np.maximum(np.einsum("k,khw->hw", net[3].weight.data[1], maps), 0)
    np.testing.assert_allclose(seeing.grad_cam_maps(net, x, 1, ["0"])[0] * 30, cam, rtol=1e-12, atol=1e-12)


def linear_net():
    return initialise(Sequential(Flatten(), Dropout(0.5), Linear(60, 4, dtype=np.float64)))


ONE, MANY = np.zeros((2, 6, 5)), np.zeros((3, 2, 6, 5))
MISTAKES = {
    "no convolution: filters": (lambda: seeing.first_filters(linear_net()), "no convolutions"),
    "no convolution: maps": (lambda: seeing.feature_maps(linear_net(), ONE), "no convolutions"),
    "no convolution: Grad-CAM": (lambda: seeing.grad_cam(linear_net(), ONE), "no convolutions"),
    "no such layer": (lambda: seeing.grad_cam(conv_gap_linear(), ONE, 0, "conv9"), 'no layer "conv9"; names are'),
    "no maps": (lambda: seeing.feature_maps(conv_gap_linear(), ONE, "4"), r"4 \(Linear\(3, 4\)\) has no feature maps"),
    "no maps for Grad-CAM": (lambda: seeing.grad_cam(conv_gap_linear(), ONE, 0, "3"), "needs feature maps; 3"),
    "a batch": (lambda: seeing.saliency(conv_gap_linear(), MANY), r"one image at a time.*\(3, 2, 6, 5\)"),
    "no image": (lambda: seeing.saliency(conv_gap_linear(), ONE[0]), r"images are .*got \(6, 5\)"),
    "label": (lambda: seeing.saliency(conv_gap_linear(), ONE, 4), "label 4: classes are 0 to 3"),
    "no scores": (lambda: seeing.saliency(Sequential(ReLU()), ONE), r"gives scores.*\(1, 2, 6, 5\)"),
    "no square": (lambda: seeing.occlusion(conv_gap_linear(), ONE, size=0), "size 0"),
    "no linear layer": (lambda: seeing.features(Sequential(ReLU(), MaxPool2d(2)), MANY), "name the layer"),
    "other lengths": (lambda: seeing.neighbours(np.zeros((1, 3)), np.zeros((2, 4)), 1), r"\(1, 3\).*\(2, 4\)"),
    "too many": (lambda: seeing.neighbours(np.zeros((1, 3)), np.zeros((2, 3)), 3), "count 3; there are 2"),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 2)])
def test_pictures(channels, count, tmp_path):
    images = list(RNG.integers(0, 256, (count, 28, 28, channels), np.uint8))
    heats, rows = [[RNG.random((7, 7)), np.zeros((4, 4))] for _ in images], ["a\nb"] * count
    figures = [
        pictures.maps(RNG.standard_normal((20, 4, 4)), images[0], "features.9", most=17),
        pictures.maps(np.zeros((1, 2, 2)), images[0], "one"),
        pictures.heat(images, heats, rows, ["one", "two"], "heat"),
        pictures.heat(images, heats, rows, ["one", "two"], "heat", limits=None, overlay=False),
        pictures.alike(images, [images] * count, rows, [["x"] * count] * count),
        pictures.spreads({"he": [("conv1_1", 1.0, 0.1), ("fc2", np.nan, 0.0)], "he + BN": [("conv1_1", np.inf, 1)]}),
    ]
    for figure in figures:
        assert pictures.save(figure, tmp_path / "picture.png", dpi=40).stat().st_size > 1000
