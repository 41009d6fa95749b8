"""Batch normalisation and local response normalisation against slow NumPy in float64."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg.errors import BadInput
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward, running_average
from minivgg.ops.lrn import lrn_backward, lrn_forward
from minivgg.testing import Case, Op, check_op, oracles
from minivgg.testing.arrays import signed
from minivgg.testing.rules import any_number_of_threads
from minivgg.testing.suite import hold

MEAN, VAR = np.array([0.3, -1.0, 2.0, 0.0]), np.array([0.5, 2.0, 1.0, 0.1])


@pytest.mark.parametrize("op", ["batchnorm", "lrn"])
def test_conforms(op):
    check_op(op)


def over_pixels(x, channels_first=True):
    """(N, C, H, W) or (N, C) → (C, pixels) in float64."""
    return np.moveaxis(x.astype(np.float64), 1, 0).reshape(x.shape[1], -1)


def by_channel(v, x):
    """(C,) so that it broadcasts over x."""
    return v.astype(np.float64).reshape(1, -1, *[1] * (x.ndim - 2))


# ---- Batch norm ----


def slow_batchnorm(x, weight, bias, eps=1e-5):
    """(y, and a bound on its rounding error): NumPy's own mean and variance, in float64."""
    pixels = over_pixels(x)
    mean, scale = pixels.mean(axis=1), weight / np.sqrt(pixels.var(axis=1) + eps)
    centred = x - by_channel(mean, x)
    y = centred * by_channel(scale, x) + by_channel(bias, x)
    # In x's dtype: the mean is rounded (|mean|), and so is what is left when it is taken off, then scale, product and
    # sum. Statistics in float64 are off by `pixels` more roundings, which float32 does not notice. All in units of eps.
    eps_of, eps64 = np.finfo(x.dtype).eps, np.finfo(np.float64).eps
    statistics = pixels.shape[1] * eps64 * (by_channel(abs(pixels).max(axis=1), x) + abs(centred))
    steps = eps_of * (by_channel(abs(mean), x) + 3 * abs(centred))
    return y, (statistics + steps) * by_channel(abs(scale), x) + eps_of * (abs(y) + by_channel(abs(bias), x))


batches = st.one_of(
    st.tuples(*[st.integers(2, 9), st.integers(1, 5)]),
    st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just(1), st.integers(1, 5), st.integers(2, 6), st.integers(1, 6)),
)


def parameters(shape, dtype, mean=0.0, std=1.0):
    rng = np.random.default_rng(0)
    x = (mean + std * rng.standard_normal(shape)).astype(dtype)
    return x, *(signed(rng, (shape[1],), dtype) for _ in range(2))


@given(shape=batches, mean=st.sampled_from([0.0, -5.0]))
def test_batchnorm_against_slow(dtype, shape, mean):
    x, weight, bias = parameters(shape, dtype, mean)
    y, _ = batchnorm_forward(x, weight, bias)
    expected, bound = slow_batchnorm(x, weight, bias)
    assert (abs(y - expected) <= bound).all()


@pytest.mark.parametrize("shape", [(64, 3, 20, 20), (30000, 3)])
def test_batchnorm_of_large_means_and_several_blocks(shape, dtype):
    x, weight, bias = parameters(shape, dtype, mean=1e3)
    y, cache = batchnorm_forward(x, weight, bias)
    expected, bound = slow_batchnorm(x, weight, bias)
    assert bound.max() < 2e-3  # where E[x²] − E[x]² in float32 would be off by 0.06 or more
    assert (abs(y - expected) <= bound).all()
    # float64 statistics: at most `pixels` roundings of numbers that size
    pixels = over_pixels(x)
    rounding = pixels.shape[1] * np.finfo(np.float64).eps
    np.testing.assert_allclose(cache.mean, pixels.mean(axis=1), rtol=rounding)
    np.testing.assert_allclose(cache.var, pixels.var(axis=1), rtol=rounding)


def test_batchnorm_of_several_blocks_does_not_depend_on_threads():
    case = Case((8, 8, 32, 33), (8,), (8,))
    hold(Op("batchnorm", batchnorm_forward, batchnorm_backward, (case,)), [any_number_of_threads])


def test_batchnorm_backward_of_several_blocks():
    x, weight, bias = parameters((8, 3, 64, 33), "float64")
    dy = np.random.default_rng(1).standard_normal(x.shape)
    _, cache = batchnorm_forward(x, weight, bias)
    dx, dweight, dbias = batchnorm_backward(dy, cache)
    pixels, g = over_pixels(x), over_pixels(dy)
    istd = 1 / np.sqrt(pixels.var(axis=1) + 1e-5)
    xhat = (pixels - pixels.mean(axis=1)[:, None]) * istd[:, None]
    shared = g.mean(axis=1)[:, None] + xhat * (g * xhat).mean(axis=1)[:, None]
    expected = (weight * istd)[:, None] * (g - shared)
    terms = pixels.shape[1] * np.finfo(np.float64).eps  # roundings of a sum, times Σ|terms| below
    np.testing.assert_allclose(over_pixels(dx), expected, rtol=0, atol=terms * 3 * abs(expected).max())
    assert (abs(dweight - (g * xhat).sum(axis=1)) <= terms * abs(g * xhat).sum(axis=1)).all()
    assert (abs(dbias - g.sum(axis=1)) <= terms * abs(g).sum(axis=1)).all()


def test_batchnorm_by_hand():
    x = np.array([[1.0, 10], [3, 10]])
    y, cache = batchnorm_forward(x, np.array([2.0, 5]), np.array([1.0, -4]), eps=3.0)
    np.testing.assert_array_equal(y, [[0, -4], [2, -4]])  # mean 2, variance 1, √(1 + 3) = 2; a constant channel
    np.testing.assert_array_equal((cache.mean, cache.var), [[2, 10], [1, 0]])
    dx, dweight, dbias = batchnorm_backward(np.array([[1.0, 2], [0, -2]]), cache)
    # x̂ = ∓½; ⟨dy⟩ = ½, ⟨dy·x̂⟩ = −¼: dx = 2/2 · (1 − ½ − ⅛, 0 − ½ + ⅛)
    np.testing.assert_allclose(dx[:, 0], [0.375, -0.375], rtol=1e-15)
    np.testing.assert_allclose(dx[:, 1], [10 / np.sqrt(3), -10 / np.sqrt(3)], rtol=1e-15)
    np.testing.assert_allclose((dweight, dbias), [[-0.5, 0], [1, 0]], atol=1e-15)


def test_normalised_data_has_mean_bias_and_deviation_weight():
    x, weight, bias = parameters((4, 3, 5, 6), "float64", mean=7, std=3)
    y, _ = batchnorm_forward(x, weight, bias, eps=0.0)
    np.testing.assert_allclose(over_pixels(y).mean(axis=1), bias, atol=1e-13)  # 120 roundings of numbers near 7
    np.testing.assert_allclose(over_pixels(y).std(axis=1), abs(weight), rtol=1e-13)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (1, 4, 1, 1), (3, 4), (1, 4)])
def test_given_statistics_are_constants(shape):
    x, weight, bias = parameters(shape, "float64")
    y, cache = batchnorm_forward(x, weight, bias, mean=MEAN, var=VAR, eps=0.1)
    scale, dy = by_channel(weight / np.sqrt(VAR + 0.1), x), np.full(shape, -2.0)
    np.testing.assert_allclose(y, (x - by_channel(MEAN, x)) * scale + by_channel(bias, x), rtol=0, atol=1e-14)
    np.testing.assert_allclose(batchnorm_backward(dy, cache)[0], dy * scale, rtol=1e-15)


def test_batch_statistics_given_back_give_the_same_bits(dtype):
    x, weight, bias = parameters((4, 3, 5, 6), dtype)
    y, cache = batchnorm_forward(x, weight, bias)
    np.testing.assert_array_equal(batchnorm_forward(x, weight, bias, mean=cache.mean, var=cache.var)[0], y)


def test_running_average(dtype):
    x = np.array([[1.0, 4], [3, 4], [8, 4]])
    _, cache = batchnorm_forward(x, np.ones(2), np.zeros(2))
    old_mean, old_var = np.array([10, 20], dtype), np.array([1, 2], dtype)
    mean, var = running_average(old_mean, old_var, cache, momentum=0.25)
    # batch: means 4 and 4, sums of squared deviations 26 and 0, over N − 1 = 2
    np.testing.assert_allclose(mean, [0.75 * 10 + 0.25 * 4, 0.75 * 20 + 0.25 * 4], rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_allclose(var, [0.75 + 0.25 * 13, 1.5], rtol=2 * np.finfo(dtype).eps)
    assert (mean.dtype, var.dtype) == (dtype, dtype)
    np.testing.assert_array_equal((old_mean, old_var), [[10, 20], [1, 2]])


def refuses_batchnorm(message, x=(2, 3, 4, 5), **changed):
    arguments = {"weight": np.ones(3), "bias": np.ones(3)} | changed
    with pytest.raises(ValueError, match=re.escape(message)):
        batchnorm_forward(np.zeros(x), **arguments)


@pytest.mark.parametrize("name", ["weight", "bias", "mean", "var"])
def test_refuses_parameters_of_another_size(name):
    refuses_batchnorm(f"x (2, 3, 4, 5) needs {name} of shape (3,), got (2,)", **{name: np.ones(2)})


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 3, 4, 5, 6), (2, 0, 4, 5), (2, 0)])
def test_batchnorm_refuses_other_shapes(shape):
    refuses_batchnorm(f"x (N, C, H, W) or (N, C), of which only N may be 0, got {shape}", x=shape)


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 3), "one"), ((1, 3, 1, 1), "one"), ((0, 3), "no"), ((0, 3, 4, 5), "no")]
)
def test_refuses_statistics_of_one_value(shape, count):
    refuses_batchnorm(f"x {shape} has {count} value a channel, which has no variance", x=shape)


@pytest.mark.parametrize("name", ["mean", "var"])
def test_refuses_half_of_the_statistics(name):
    refuses_batchnorm("mean and var go together", **{name: np.ones(3)})


# ---- LRN ----


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    size=st.integers(1, 8),
    alpha=st.sampled_from([1e-4, 1.0, 5.0]),
    beta=st.sampled_from([0.5, 0.75, 1.0, 1.75]),
    k=st.sampled_from([1.0, 2.0]),
)
def test_lrn_against_slow(dtype, shape, size, alpha, beta, k):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y, _ = lrn_forward(x, size, alpha, beta, k)
    # the energy, a sum of `size` squares, times alpha/size, plus k; its power (beta, itself rounded, of a base up to
    # 1 + 5·16, whose logarithm is 4.4, and 4 ulp); the product
    rtol = np.finfo(dtype).eps * (beta * (size + 4) + 4.4 + 4 + 1)
    np.testing.assert_allclose(y, oracles.lrn(x.astype(np.float64), size, alpha, beta, k), rtol=rtol)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(3, [1 / 6, 2 / 15, 3 / 14]), (2, [1 / 2.5, 2 / 8.5, 3 / 20.5]), (1, [1 / 4, 2 / 13, 3 / 28])],
)
def test_lrn_by_hand(size, expected):
    x = np.array([1.0, 2, 3]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(lrn_forward(x, size, alpha=3.0, beta=1.0, k=1.0)[0].ravel(), expected, rtol=1e-15)


def test_lrn_backward_by_hand():
    # one channel: y = x / (1 + x²), y′ = (1 − x²) / (1 + x²)²
    x = np.array([0.0, 1, 2, -3]).reshape(4, 1, 1, 1)
    _, cache = lrn_forward(x, 1, alpha=1.0, beta=1.0, k=1.0)
    np.testing.assert_allclose(lrn_backward(np.ones_like(x), cache).ravel(), [1, 0, -3 / 25, -8 / 100], atol=1e-15)


def test_lrn_of_one_pixel_more_than_a_block():
    x, dy = np.random.default_rng(0).standard_normal((2, 1, 3, 5, 13))
    last = (..., slice(3, 5), slice(12, 13))  # and another one, which no block would leave out
    dx, alone = (lrn_backward(g, lrn_forward(v)[1]) for v, g in ((x, dy), (x[last], dy[last])))
    np.testing.assert_array_equal(dx[last], alone)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 0, 5)])
def test_lrn_refuses_what_is_no_batch_of_images(shape):
    with pytest.raises(
        ValueError, match=re.escape("lrn: expected an (N, C, H, W) array, of which only N may be 0, got")
    ):
        lrn_forward(np.zeros(shape))


@pytest.mark.parametrize(
    ("option", "range"),
    [
        ({"size": 0}, "size = 0: should be a whole number, at least 1"),
        ({"size": 2.5}, "size = 2.5: should be a whole number, at least 1"),
        ({"k": 0.0}, "k = 0.0: should be a number, above 0"),
        ({"k": -1.0}, "k = -1.0: should be a number, above 0"),
        ({"alpha": -1e-4}, "alpha = -0.0001: should be a number, at least 0"),
        ({"beta": np.inf}, "beta = inf: should be a number, at least 0"),
    ],
)
def test_lrn_refuses_senseless_options(option, range):
    with pytest.raises(BadInput, match=re.escape(f"lrn: {range}")):
        lrn_forward(np.zeros((1, 2, 3, 4)), **option)


@pytest.mark.parametrize("eps", [-1, np.nan, np.inf, "small"])
def test_batchnorm_refuses_a_senseless_eps(eps):
    refuses_batchnorm(f"batchnorm: eps = {eps!r}: should be a number, at least 0", eps=eps)


def test_running_average_is_of_batches():
    x, ones = np.ones((2, 3)), np.ones(3)
    _, cache = batchnorm_forward(x, ones, ones, mean=ones, var=ones)
    with pytest.raises(ValueError, match="statistics that were given"):
        running_average(ones, ones, cache)
