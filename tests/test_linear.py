"""The fully connected layer against numbers worked by hand, sums written out, and its adjoints."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg.ops.channels import add_per_channel, sum_per_channel
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.testing import check_op
from minivgg.testing.arrays import integers, signed


def test_conforms():
    check_op("linear")


def test_linear_by_hand():
    x, w, b = np.array([[1.0, -2, 3]]), np.array([[1.0, 0, 2], [-1, 4, 1]]), np.array([0.5, -0.5])
    y, cache = linear_forward(x, w, b)
    np.testing.assert_array_equal(y, [[7.5, -6.5]])
    dx, dw, db = linear_backward(np.array([[2.0, -1]]), cache)
    np.testing.assert_array_equal(dx, [[3, -4, 3]])
    np.testing.assert_array_equal(dw, [[2, -4, 6], [-1, 2, -3]])
    np.testing.assert_array_equal(db, [2, -1])


sizes = st.integers(1, 9)


@given(N=sizes, F=sizes, O=sizes)
def test_linear_is_the_sum_written_out(dtype, N, F, O):
    rng = np.random.default_rng(0)
    x, w, b, dy = (integers(rng, shape, dtype) for shape in ((N, F), (O, F), (O,), (N, O)))
    y, cache = linear_forward(x, w, b)
    expected_y, expected_dx, expected_dw = np.tile(b, (N, 1)), np.zeros((N, F)), np.zeros((O, F))
    for n, o, f in np.ndindex(N, O, F):
        expected_y[n, o] += x[n, f] * w[o, f]
        expected_dx[n, f] += dy[n, o] * w[o, f]
        expected_dw[o, f] += dy[n, o] * x[n, f]
    results = y, *linear_backward(dy, cache)
    for result, expected in zip(results, (expected_y, expected_dx, expected_dw, [sum(c) for c in dy.T]), strict=True):
        np.testing.assert_array_equal(result, expected)


@given(N=sizes, F=sizes, O=sizes)
def test_linear_adjoints(dtype, N, F, O):
    rng = np.random.default_rng(0)
    x, w, dy = (signed(rng, shape, dtype) for shape in ((N, F), (O, F), (N, O)))
    y, cache = linear_forward(x, w)
    dx, dw, _ = linear_backward(dy, cache)
    inner = [np.vdot(a.astype(np.float64), b) for a, b in ((y, dy), (x, dx), (w, dw))]
    # all three are Σ x·w·dy, of which a pass rounds at most max(N, F, O) times, relative to Σ |x·w·dy|
    total = np.vdot(abs(x).astype(np.float64) @ abs(w).T, abs(dy))
    np.testing.assert_allclose(inner, inner[0], rtol=0, atol=2 * max(N, F, O) * np.finfo(dtype).eps * total)


def test_without_bias_or_dx_they_are_none():
    x, w = np.ones((2, 3)), np.ones((4, 3))
    _, cache = linear_forward(x, w)
    dx, dw, db = linear_backward(np.ones((2, 4)), cache, need_dx=False)
    assert dx is None
    assert db is None
    np.testing.assert_array_equal(dw, np.full((4, 3), 2))


# ---- Sums over everything but the channel ----


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (7, 5), (5, 20000), (3, 2, 150, 130)])
def test_sum_per_channel(shape, dtype, laid_out):
    x = integers(np.random.default_rng(0), shape, dtype)
    total = sum_per_channel(laid_out(x))
    assert total.dtype == dtype
    np.testing.assert_array_equal(total, np.moveaxis(x, 1, 0).reshape(shape[1], -1).sum(axis=1))


def test_sum_per_channel_keeps_its_digits():
    # added one by one in float32, 2²⁴ + 1 + 1 + … stays at 2²⁴
    x = np.ones((1000, 1), np.float32)
    x[0] = 2**24
    assert sum_per_channel(x) == 2**24 + 1000  # even, and so a float32


def test_add_per_channel_adds_in_place_only_to_channels_last():
    b = np.array([1.0, -2, 3])
    for x, shared in (np.zeros((2, 3, 4, 5)), False), (np.zeros((2, 4, 5, 3)).transpose(0, 3, 1, 2), True):
        y = add_per_channel(x, b)
        np.testing.assert_array_equal(y, np.broadcast_to(b[:, None, None], y.shape))
        assert np.shares_memory(x, y) == shared


# ---- Errors ----


def refuses(message, x=(2, 3), w=(4, 3), b=None):
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_forward(np.zeros(x), np.zeros(w), b)


def test_refuses_images():
    refuses("got x (2, 3, 1, 1) and w (4, 3)", x=(2, 3, 1, 1))


def test_refuses_weights_that_are_no_matrix():
    refuses("got x (2, 3) and w (3,)", w=(3,))


def test_refuses_other_features():
    refuses("with the same F, got x (2, 3) and w (4, 5)", w=(4, 5))


def test_refuses_a_bias_of_another_size():
    refuses("linear: b must have shape (4,), one value for each output, got (3,)", b=np.zeros(3))


def test_refuses_mixed_dtypes():
    refuses("linear: x, w and b must share one dtype, got float64, float64, float32", b=np.zeros(4, np.float32))
