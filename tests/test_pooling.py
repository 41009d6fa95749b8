"""Max, average and adaptive average pooling against slow NumPy, window by window."""

import re
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivgg.errors import BadInput
from minivgg.ops.avgpool import (
    adaptive_avgpool2d_backward,
    adaptive_avgpool2d_forward,
    avgpool2d_backward,
    avgpool2d_forward,
)
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.testing import CASES, check_op
from minivgg.testing.trials import Trial

every_pool = pytest.mark.parametrize("op", ["maxpool2d", "avgpool2d", "adaptive_avgpool2d"])


@every_pool
def test_conforms(op):
    check_op(op)


@every_pool
def test_result_is_channels_last(op):
    for case in CASES[op].cases:
        for result in Trial(CASES[op], case, np.dtype("float64"), "cpu").raw().values():
            assert result.transpose(0, 2, 3, 1).flags.c_contiguous


# ---- Slow pools ----


@st.composite
def geometries(draw):
    """(shape, window, stride, padding), every window non-empty."""
    window, stride = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    padding = [draw(st.integers(0, k // 2)) for k in window]
    size = [max(1, k - 2 * p) + draw(st.integers(0, 6)) for k, p in zip(window, padding, strict=True)]
    return (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *size), window, stride, tuple(padding)


def padded(x, padding, value):
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=value)


def windows(x, window, stride):
    """Yield ((oh, ow), the window's slice of a padded x)."""
    rows, columns = ((s - k) // t + 1 for s, k, t in zip(x.shape[2:], window, stride, strict=True))
    for oh, ow in np.ndindex(rows, columns):
        top, left = oh * stride[0], ow * stride[1]
        yield (oh, ow), (..., slice(top, top + window[0]), slice(left, left + window[1]))


def slow_maxpool(x, dy, window, stride, padding):
    x = padded(x, padding, -np.inf)
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for (oh, ow), place in windows(x, window, stride):
        flat = x[place].reshape(*x.shape[:2], -1)
        y[..., oh, ow] = flat.max(axis=-1)
        for n, c in np.ndindex(x.shape[:2]):
            kh, kw = divmod(flat[n, c].argmax(), window[1])  # NumPy's argmax is the first as well
            dx[n, c, oh * stride[0] + kh, ow * stride[1] + kw] += dy[n, c, oh, ow]
    return y, dx[:, :, padding[0] : x.shape[2] - padding[0], padding[1] : x.shape[3] - padding[1]]


def slow_avgpool(x, dy, window, stride, padding, count_include_pad):
    inside = padded(np.ones_like(x), padding, 1.0 if count_include_pad else 0.0)
    x = padded(x, padding, 0.0)
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for (oh, ow), place in windows(x, window, stride):
        share = inside[place] / inside[place].sum(axis=(2, 3), keepdims=True)
        y[..., oh, ow] = (x[place] * share).sum(axis=(2, 3))
        dx[place] += dy[..., oh, ow][..., None, None] * share
    return y, dx[:, :, padding[0] : x.shape[2] - padding[0], padding[1] : x.shape[3] - padding[1]]


def slow_adaptive(x, dy):
    y, dx = np.empty_like(dy), np.zeros_like(x)
    (H, W), (OH, OW) = x.shape[2:], dy.shape[2:]
    for oh, ow in np.ndindex(OH, OW):
        rows = slice(floor(Fraction(oh * H, OH)), ceil(Fraction((oh + 1) * H, OH)))
        columns = slice(floor(Fraction(ow * W, OW)), ceil(Fraction((ow + 1) * W, OW)))
        y[..., oh, ow] = x[..., rows, columns].mean(axis=(2, 3))
        dx[..., rows, columns] += dy[..., oh, ow][..., None, None] / x[0, 0, rows, columns].size
    return y, dx


def upstream(y):
    return np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)


@example(geometry=((2, 3, 5, 7), (2, 2), (2, 2), (0, 0)), ties=True)
@example(geometry=((2, 3, 5, 7), (2, 2), (1, 3), (0, 0)), ties=True)
@given(geometry=geometries(), ties=st.booleans())
def test_maxpool_against_slow(dtype, geometry, ties):
    shape, *arguments = geometry
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if ties:
        x = np.round(x)
    y, cache = maxpool2d_forward(x, *arguments)
    dy = np.round(8 * upstream(y))  # integers, which add up exactly in any order
    slow_y, slow_dx = slow_maxpool(x, dy, *arguments)
    np.testing.assert_array_equal(y, slow_y)
    np.testing.assert_array_equal(maxpool2d_backward(dy, cache), slow_dx)


VALUES = [-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf, np.nan]  # few, so that there are ties of every kind


def rounded_up(size, window, stride, padding):
    """How many windows there are in `ceil_mode`: those that begin in the image or before it, and, but for one that
    holds the end of the padded image, lie in it. Counted one by one."""
    count = 0
    while count * stride - padding < size and (count == 0 or (count - 1) * stride - padding + window < size + padding):
        count += 1
    return count


@example(geometry=((1, 1, 6, 5), (2, 2), (2, 2), (0, 0)))
@example(geometry=((1, 1, 5, 5), (2, 2), (2, 1), (0, 0)))  # 2 × 2, but the lowest windows reach past the image
@example(geometry=((1, 1, 5, 5), (2, 2), (3, 3), (1, 0)))  # 2 × 2, but padded
@example(geometry=((1, 2, 5, 8), (3, 3), (2, 2), (0, 0)))
@given(geometry=geometries())
def test_ceil_mode_is_more_image_of_minus_infinity(dtype, geometry):
    shape, window, stride, padding = geometry
    x = np.round(2 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)  # with ties
    y, cache = maxpool2d_forward(x, window, stride, padding, ceil_mode=True)
    size = [rounded_up(*g) for g in zip(shape[2:], window, stride, padding, strict=True)]
    assert y.shape == (*shape[:2], *size)
    more = [
        max(0, (o - 1) * t - p + k - s - p)
        for o, s, k, t, p in zip(size, shape[2:], window, stride, padding, strict=True)
    ]
    larger = np.pad(x, [(0, 0), (0, 0), *((0, m) for m in more)], constant_values=-np.inf)
    dy = np.round(8 * upstream(y))
    slow_y, slow_dx = slow_maxpool(larger, dy, window, stride, padding)
    np.testing.assert_array_equal(y, slow_y)
    np.testing.assert_array_equal(maxpool2d_backward(dy, cache), slow_dx[:, :, : shape[2], : shape[3]])


def test_ceil_mode_by_hand():
    x = np.arange(1.0, 6).reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(maxpool2d_forward(x, (1, 2))[0].ravel(), [2, 4])
    np.testing.assert_array_equal(maxpool2d_forward(x, (1, 2), ceil_mode=True)[0].ravel(), [2, 4, 5])
    np.testing.assert_array_equal(maxpool2d_forward(x, (1, 2), (1, 4), (0, 1), ceil_mode=True)[0].ravel(), [1, 5])
    assert maxpool2d_forward(np.zeros((1, 1, 112, 112)), 3, 2, ceil_mode=True)[0].shape[2:] == (56, 56)


@pytest.mark.parametrize("values", [VALUES, VALUES[1:4], VALUES[3:7]], ids=["any", "none above zero", "ties at zero"])
@example(geometry=((2, 3, 5, 7), (2, 2), (2, 2), (0, 0)))
@example(geometry=((2, 3, 5, 7), (2, 2), (1, 3), (0, 0)))
@given(geometry=geometries())
def test_relu_then_maxpool_is_one_pass(dtype, values, geometry):
    shape, *arguments = geometry
    x = np.random.default_rng(0).choice(values, shape).astype(dtype)
    active, relu_cache = relu_forward(x)
    pooled, pool_cache = maxpool2d_forward(active, *arguments)
    y, cache = maxpool2d_forward(x, *arguments, relu=True)
    np.testing.assert_array_equal(y, pooled)
    assert y.dtype == dtype
    assert not np.signbit(y).any()
    dy = np.round(8 * upstream(y))
    expected = relu_backward(maxpool2d_backward(dy, pool_cache), relu_cache)
    np.testing.assert_array_equal(maxpool2d_backward(dy, cache), expected)


@pytest.mark.parametrize(("window", "bytes_each"), [((16, 16), 2), ((15, 17), 1)])
def test_relu_needs_one_more_place(window, bytes_each):
    _, cache = maxpool2d_forward(-np.ones((1, 1, 17, 17)), window, relu=True)
    assert cache.argmax.itemsize == bytes_each
    assert (cache.argmax == window[0] * window[1]).all()


@given(geometry=geometries(), count_include_pad=st.booleans())
def test_avgpool_against_slow(dtype, geometry, count_include_pad):
    shape, *arguments = geometry
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y, cache = avgpool2d_forward(x, *arguments, count_include_pad)
    assert_rounded_like(x, y, cache, lambda *a: slow_avgpool(*a, *arguments, count_include_pad))


@given(shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 9)] * 2), size=st.tuples(*[st.integers(1, 12)] * 2))
def test_adaptive_against_slow(dtype, shape, size):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y, cache = adaptive_avgpool2d_forward(x, size)
    assert y.shape == (*shape[:2], *size)
    assert_rounded_like(x, y, cache, slow_adaptive)


def assert_rounded_like(x, y, cache, slow):
    """Sums of fewer than x.size + y.size terms, each rounded at most twice on its own, to the bound Σ|terms|·eps·n."""
    dy, rounding = upstream(y), (x.size + y.size + 2) * np.finfo(x.dtype).eps
    expected = slow(x.astype(np.float64), dy.astype(np.float64))
    bounds = slow(abs(x).astype(np.float64), abs(dy).astype(np.float64))
    for this, that, bound in zip((y, avgpool2d_backward(dy, cache)), expected, bounds, strict=True):
        assert (abs(this - that) <= rounding * bound).all()


# ---- Max pooling ----


def test_maxpool_by_hand():
    x = np.array([[1.0, 5, 2, 0], [3, 4, -1, 7], [-3, -2, 9, 9], [-4, -1, 9, 9]]).reshape(1, 1, 4, 4)
    y, cache = maxpool2d_forward(x, 2)
    np.testing.assert_array_equal(y[0, 0], [[5, 7], [-1, 9]])
    dx = maxpool2d_backward(np.array([[1.0, -2], [3, 4]]).reshape(1, 1, 2, 2), cache)
    np.testing.assert_array_equal(dx[0, 0], [[0, 1, 0, 0], [0, 0, 0, -2], [0, 0, 4, 0], [0, 3, 0, 0]])


def test_maxpool_ties_go_to_the_first():
    _, cache = maxpool2d_forward(np.zeros((1, 1, 3, 3)), 3)
    dx = maxpool2d_backward(np.full((1, 1, 1, 1), -5.0), cache)
    np.testing.assert_array_equal(dx[0, 0], [[-5, 0, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("place", range(4))
def test_maxpool_does_not_hide_a_nan(place, dtype):
    x = np.array([[3, np.inf], [-np.inf, 0]], dtype)
    x.flat[place] = np.nan
    y, cache = maxpool2d_forward(x.reshape(1, 1, 2, 2), 2)
    assert np.isnan(y).all()
    assert maxpool2d_backward(np.ones_like(y), cache).ravel()[place] == 1


def test_maxpool_of_minus_infinity(dtype):
    y, cache = maxpool2d_forward(np.full((1, 2, 2, 2), -np.inf, dtype), 2, padding=1)
    assert (y == -np.inf).all()
    np.testing.assert_array_equal(maxpool2d_backward(np.ones_like(y), cache), np.ones((1, 2, 2, 2)))


def test_maxpool_padding_never_wins():
    y, _ = maxpool2d_forward(np.full((1, 1, 4, 4), -3.0), 3, 2, 1)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -3))


@pytest.mark.parametrize(("window", "byte"), [((16, 16), np.uint8), ((16, 17), np.uint16)])
def test_maxpool_cache_is_one_byte_an_output_or_two(window, byte):
    x = np.arange(2.0 * 16 * 17).reshape(1, 2, 16, 17)
    y, cache = maxpool2d_forward(x, window)
    assert cache.argmax.dtype == byte
    dx = maxpool2d_backward(np.ones_like(y), cache)
    np.testing.assert_array_equal(np.argwhere(dx[0, 0]), [[15, window[1] - 1]])


def test_stride_defaults_to_the_window():
    x = np.arange(24.0).reshape(1, 1, 4, 6)
    np.testing.assert_array_equal(maxpool2d_forward(x, (2, 3))[0][0, 0], [[8, 11], [20, 23]])
    np.testing.assert_array_equal(avgpool2d_forward(x, (2, 3))[0][0, 0], [[4, 7], [16, 19]])


# ---- Average pooling ----


@pytest.mark.parametrize(("count_include_pad", "corner"), [(True, 8 / 9), (False, 2)])
def test_avgpool_counts_the_padding_or_not(count_include_pad, corner):
    y, _ = avgpool2d_forward(np.full((1, 1, 4, 4), 2.0), 3, 1, 1, count_include_pad)
    np.testing.assert_allclose(y[0, 0, 0, 0], corner, rtol=1e-15)  # four of nine places lie inside
    np.testing.assert_allclose(y[0, 0, 1, 1], 2, rtol=1e-15)


def test_adaptive_to_the_same_size_is_the_identity():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    y, cache = adaptive_avgpool2d_forward(x, (4, 5))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(adaptive_avgpool2d_backward(x, cache), x)


def test_adaptive_to_one_is_the_mean():
    x = np.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(adaptive_avgpool2d_forward(x, 1)[0].ravel(), [2.5, 8.5])


def test_adaptive_to_more_repeats_pixels():
    x = np.array([[1.0, 2]]).reshape(1, 1, 1, 2)
    y, cache = adaptive_avgpool2d_forward(x, (1, 4))
    np.testing.assert_array_equal(y[0, 0], [[1, 1, 2, 2]])
    dx = adaptive_avgpool2d_backward(np.array([[1.0, -3, 5, 7]]).reshape(1, 1, 1, 4), cache)
    np.testing.assert_array_equal(dx[0, 0], [[-2, 12]])


def test_adaptive_windows_overlap():
    y, _ = adaptive_avgpool2d_forward(np.array([1.0, 3, 8]).reshape(1, 1, 3, 1), (2, 1))
    np.testing.assert_array_equal(y.ravel(), [2, 5.5])


# ---- Errors ----

each_pool = pytest.mark.parametrize(
    ("name", "pool"), [("maxpool2d", maxpool2d_forward), ("avgpool2d", avgpool2d_forward)]
)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 0, 4, 5)])
@pytest.mark.parametrize("pool", [maxpool2d_forward, avgpool2d_forward, adaptive_avgpool2d_forward])
def test_refuses_what_is_no_batch_of_images(pool, shape):
    with pytest.raises(ValueError, match=re.escape(f"(N, C, H, W) array, of which only N may be 0, got shape {shape}")):
        pool(np.zeros(shape), 2)


@each_pool
def test_refuses_too_much_padding(name, pool):
    with pytest.raises(ValueError, match=re.escape(f"{name}: padding (1, 2) must be at most half the window (3, 3)")):
        pool(np.zeros((1, 1, 5, 5)), 3, padding=(1, 2))


@each_pool
def test_refuses_a_window_that_does_not_fit(name, pool):
    with pytest.raises(ValueError, match=re.escape(f"{name}: a (4, 2) window does not fit into (3, 5)")):
        pool(np.zeros((1, 1, 3, 5)), (4, 2))


@each_pool
@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ((0, 1, 0), "kernel_size = 0: .* at least 1"),
        ((2, 0, 0), "stride = 0: .* 1"),
        ((2, 1, -1), "padding = -1: .* 0"),
    ],
)
def test_refuses_a_senseless_geometry(name, pool, geometry, message):
    with pytest.raises(BadInput, match=f"{name}: {message}"):
        pool(np.zeros((1, 1, 3, 5)), *geometry)


@each_pool
def test_refuses_what_is_no_pair(name, pool):
    with pytest.raises(ValueError, match=re.escape("kernel_size must be an integer or a pair")):
        pool(np.zeros((1, 1, 3, 5)), 2.5)


def test_adaptive_refuses_an_empty_output():
    with pytest.raises(BadInput, match="adaptive_avgpool2d: output_size = 0: should be a whole number, at least 1"):
        adaptive_avgpool2d_forward(np.zeros((1, 1, 3, 5)), (3, 0))


@pytest.mark.parametrize("padding", [(2, 0), (0, 2)])
def test_padding_is_at_most_half_the_window_each_way(padding):
    for pool in (maxpool2d_forward, avgpool2d_forward):
        with pytest.raises(ValueError, match="must be at most half the window"):
            pool(np.zeros((1, 1, 9, 9)), 3, 1, padding)


@pytest.mark.parametrize("window", [(16, 16), (257, 1), (1, 257)])
def test_argmax_takes_as_many_bytes_as_it_must(window):
    x = np.zeros((1, 1, *window))
    x[..., -1, -1] = 1
    _, cache = maxpool2d_forward(x, window)
    assert cache.argmax.dtype == (np.uint8 if window == (16, 16) else np.uint16)
    assert cache.argmax.item() == window[0] * window[1] - 1
