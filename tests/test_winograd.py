"""Exact matrices, lessons in NumPy, every remainder. What all rungs share is in test_conv2d."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg.models import build
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, direct, naive, winograd
from minivgg.ops.conv2d.toom_cook import growth, matrices, sandwich, times
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.training.datasets import load
from minivgg.training.optim import SGD

fractions = st.fractions(min_value=-9, max_value=9, max_denominator=9)


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_toom_cook_is_exact(m, r, data):
    n = m + r - 1
    if n - 1 > 7:
        return  # as many points as there are
    d = data.draw(st.lists(fractions, min_size=n, max_size=n))
    g = data.draw(st.lists(fractions, min_size=r, max_size=r))
    outputs, filters, inputs = matrices(m, r)
    products = [a * b for a, b in zip(times(filters, g), times(inputs, d), strict=True)]
    assert times(outputs, products) == [sum(d[i + j] * g[j] for j in range(r)) for i in range(m)]


def test_known_matrices():
    """F(2, 3) on the points 0, 1, −1 is Winograd's own, up to the signs and scales of rows."""
    outputs, filters, inputs = matrices(2, 3)
    assert outputs == [[1, 1, 1, 0], [0, 1, -1, 1]]
    half = Fraction(1, 2)
    assert filters == [[-1, 0, 0], [half, half, half], [half, -half, half], [0, 0, 1]]
    assert inputs == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]


def test_growth_of_the_definition_is_one():
    assert growth(1, 1) == 1
    assert growth(2, 3) == pytest.approx(5 / 3)


def test_growth_on_the_points_chosen():
    """With ±2 in place of ½ and −2, F(4) would come to 25.7; with thirds or threes, to 16.9, and F(6) to 79."""
    assert growth(4, 3) == pytest.approx(10.44, abs=0.01)
    assert growth(6, 3) == pytest.approx(46.26, abs=0.01)


def test_sandwich_is_a_matrix_product_on_both_sides():
    rng = np.random.default_rng(0)
    matrix, tile = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    np.testing.assert_allclose(sandwich(matrix.tolist(), tile.tolist()), matrix @ tile @ matrix.T)


@pytest.mark.parametrize("m", [(), (1,), (2,), (3,)], ids="m {}".format)
def test_winograd_in_numpy(m):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 12 + 2, 24 + 2)), rng.standard_normal((4, 3, 3, 3))
    expected = naive.forward(x, w, ConvSpec.of(x.shape, w.shape))
    np.testing.assert_allclose(winograd.in_numpy(x, w, *m), expected, atol=1e-12)


@pytest.mark.parametrize("stride", [(), (2,), (3,)], ids="stride {}".format)
def test_direct_in_numpy(stride):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 11, 13)), rng.standard_normal((4, 3, 5, 2))
    expected = naive.forward(x, w, ConvSpec.of(x.shape, w.shape, *stride))
    np.testing.assert_allclose(direct.in_numpy(x, w, *stride), expected, atol=1e-12)


# every remainder of a tile, a vector and a block: few pixels, odd sizes, one image and several
SIZES = [
    ((1, 1, 1, 1), 1), ((1, 3, 2, 5), 7), ((2, 16, 4, 4), 16), ((1, 17, 5, 3), 33), ((3, 32, 8, 9), 32),
    ((1, 48, 7, 14), 40), ((2, 64, 6, 30), 64), ((5, 8, 3, 3), 96),
]  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("x_shape, O", SIZES)
@pytest.mark.parametrize("name", ["direct", "implicit_gemm", "winograd2", "winograd"])
def test_every_remainder(name, x_shape, O, padding):
    if min(x_shape[2:]) + 2 * padding < 3:
        pytest.skip("the window does not fit")
    algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(0)
    spec = ConvSpec.of(x_shape, (O, x_shape[1], 3, 3), 1, padding)
    x, w, dy = (rng.standard_normal(shape) for shape in (x_shape, spec.w_shape, spec.y_shape))
    for function, a, b, terms in (
        ("forward", x, w, spec.columns),
        ("grad_input", dy, w, 9 * O),
        ("grad_weight", dy, x, spec.N * spec.OH * spec.OW),
    ):
        found = getattr(algorithm, function)(a.astype(np.float32), b.astype(np.float32), spec)
        expected = getattr(naive, function)(a, b, spec)
        # rounding of a sum of `terms` products, each input rounded once: the bound of `testing.convolutions`
        bound = (terms + 2) * np.finfo(np.float32).eps * algorithm.growth
        bound *= getattr(naive, function)(abs(a), abs(b), spec).max()
        assert found.shape == expected.shape and abs(found - expected).max() <= bound, function


@pytest.mark.compiled
@pytest.mark.parametrize("name", [row.name for row in ALGORITHMS.values() if row.fuses])
def test_fused_is_what_it_is_one_after_the_other(name):
    algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(0)
    for x_shape, O in SIZES[1:]:
        spec = ConvSpec.of(x_shape, (O, x_shape[1], 3, 3), 1, 1)
        x, w, b, dy = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, spec.w_shape, O, spec.y_shape))
        plain = algorithm.forward(x, w, spec)
        np.testing.assert_array_equal(algorithm.forward(x, w, spec, bias=b), plain + b[:, None, None])
        fused = algorithm.forward(x, w, spec, bias=b, relu=True)
        np.testing.assert_array_equal(fused, np.maximum(plain + b[:, None, None], 0))
        dx = algorithm.grad_input(dy, w, spec)
        np.testing.assert_array_equal(algorithm.grad_input(dy, w, spec, mask=x), np.where(x > 0, dx, 0))
        prepared = algorithm.prepare(w).copy()
        np.testing.assert_array_equal(algorithm.forward(x, w, spec, bias=b, relu=True, prepared=prepared), fused)


def losses(algorithm, seed, steps=100):
    """A small VGG on the bundled images: the loss of every step, for one order of batches and weights by `seed`."""
    data, rng = load()[0], np.random.default_rng(seed)
    shape = {"width": 0.125, "input_size": 32, "channels": 1, "classes": 10, "classifier_width": 32}
    model = build("vgg11", seed=seed, algorithm=algorithm, **shape)
    optimizer, found = SGD(model.named_params(), momentum=0.9), []
    for _ in range(steps):
        batch = rng.integers(len(data), size=32)
        x = np.pad(data.images[batch], ((0, 0), (2, 2), (2, 2), (0, 0))).transpose(0, 3, 1, 2).astype(np.float32) / 255
        model.zero_grad()
        loss, cache = softmax_cross_entropy_forward(model.forward(x, train=True), data.labels[batch])
        model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(0.02)
        found.append(float(loss))
    return np.array(found)


def smooth(curve):
    return np.convolve(curve, np.full(20, 1 / 20), "valid")


@pytest.mark.compiled
def test_training_by_winograd_is_training():
    """Half a digit less in every product, and the loss goes the same way: nearer than that of another seed."""
    exact, fast, other = losses("direct", 0), losses("winograd", 0), losses("direct", 1)
    assert exact[-20:].mean() < exact[:20].mean() - 0.3  # it learns at all
    assert abs(smooth(fast) - smooth(exact)).mean() < abs(smooth(other) - smooth(exact)).mean()
