"""Fully convolutional networks: the ordinary network's answers at every place, from the same weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minivgg as mv
from minivgg.errors import BadInput

# Two orders of adding up some thousand products in float32; scores are held to the largest.
ROUNDING = 1e-5


def images(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def vgg(name="vgg16", **options):
    options = {"width": 0.125, "classifier_width": 48, "classes": 10} | options
    return mv.build(name, **options)


def close(a, b, tolerance=ROUNDING):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def at_every_place(model, maps, pixels):
    """The classifier of an ordinary network on each window of pixels × pixels of the last maps: (N, K, h, w)."""
    h, w = (length - pixels + 1 for length in maps.shape[2:])
    answers = [
        [model.classifier.forward(maps[:, :, i : i + pixels, j : j + pixels].reshape(len(maps), -1)) for j in range(w)]
        for i in range(h)
    ]
    return np.array(answers).transpose(2, 3, 0, 1)


def test_on_its_own_size_it_is_the_ordinary_network():
    model, x = vgg(), images(2, 3, 224, 224)
    scores = model.fully_convolutional().forward(x)
    assert scores.shape == (2, 10, 1, 1)
    close(scores[:, :, 0, 0], model.forward(x))


def test_on_256_by_320_it_answers_at_2_by_4_places():
    model, x = vgg(), images(1, 3, 256, 320)
    scores = model.fully_convolutional().forward(x)
    maps = model.features.forward(x)
    assert maps.shape[2:] == (8, 10)  # pool5
    assert scores.shape == (1, 10, 2, 4)
    expected = at_every_place(model, maps, 7)
    close(scores, expected)
    close(scores.mean(axis=(2, 3)), expected.mean(axis=(2, 3)))


@settings(max_examples=15)
@given(st.integers(64, 200), st.integers(64, 200))
def test_map_of_scores_grows_every_32_pixels(H, W):
    model, x = SMALL, images(1, 1, H, W)
    scores = model.fully_convolutional().forward(x)
    assert scores.shape == (1, 4, H // 32 - 1, W // 32 - 1)
    close(scores, at_every_place(model, model.features.forward(x), 2))


SMALL = mv.build("vgg11_bn", width=0.1, classifier_width=8, classes=4, channels=1, input_size=64)


@pytest.mark.parametrize("name", ["vgg11_bn", "A-LRN", "C", "block_vgg"])
def test_every_kind_of_vgg_frozen_and_not(name):
    model, x = vgg(name, input_size=64), images(2, 3, 64, 64)
    model.forward(images(4, 3, 64, 64, seed=1), train=True)  # batch norms that are not the identity
    dense = model.fully_convolutional()
    for one in (dense, dense.freeze(), model.freeze().fully_convolutional()):
        close(one.forward(x)[:, :, 0, 0], model.forward(x))


def test_float64_is_exact():
    model, x = vgg("A", input_size=64, dtype=np.float64), images(1, 3, 96, 64, dtype=np.float64)
    close(model.fully_convolutional().forward(x), at_every_place(model, model.features.forward(x), 2), 1e-13)


def test_weights_are_shared_and_caches_are_not():
    model, x = vgg("A", input_size=64), images(2, 3, 64, 64)
    dense = model.fully_convolutional()
    assert dense.parameter_count() == model.parameter_count()
    for name, p in dense.named_params().items():
        assert np.shares_memory(p.data, model.named_params()[name].data), name
    y = model.forward(x, train=True)
    dense.forward(x)
    model.backward(np.ones_like(y))
    for p in model.named_params().values():
        p.data -= 0.01 * p.grad
    close(dense.forward(x)[:, :, 0, 0], model.forward(x))
    assert "avgpool" in model.children()
    assert "flatten" in model.children()


def test_gradients_flow():
    """The gradient of the one place is the ordinary network's."""
    model, x = vgg("A", input_size=64, dropout=0), images(2, 3, 64, 64)
    dense, dy = model.fully_convolutional(), images(2, 10, seed=3)
    model.forward(x, train=True)
    dx = model.backward(dy)
    dense.forward(x, train=True)
    close(dense.backward(dy[:, :, None, None]), dx)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\) window does not fit into \(1, 3\)"):
        vgg("A", input_size=64).fully_convolutional().forward(images(1, 3, 63, 96))


@pytest.mark.parametrize(
    "model",
    [
        mv.Sequential(mv.Conv2d(3, 4, 3), mv.ReLU()),
        mv.Sequential(mv.AdaptiveAvgPool2d(2), mv.Flatten()),
        mv.Sequential(mv.AdaptiveAvgPool2d(4), mv.AdaptiveAvgPool2d(2), mv.Flatten(), mv.Linear(4, 2)),
    ],
)
def test_another_kind_of_network_is_refused(model):
    with pytest.raises(BadInput, match="one AdaptiveAvgPool2d, one Flatten"):
        model.fully_convolutional()
