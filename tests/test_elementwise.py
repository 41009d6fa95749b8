"""ReLU, sigmoid, dropout and flatten, against formulas, SciPy, and a slow Philox with its published answers."""

import re

import numpy as np
import pytest
from scipy.special import expit

from minivgg.errors import BadInput
from minivgg.ops.dropout import dropout_backward, dropout_forward, philox
from minivgg.ops.flatten import flatten_backward, flatten_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.testing import CASES, check_op

SHAPE = 3, 4, 5, 6


@pytest.mark.parametrize("op", ["relu", "sigmoid", "dropout", "flatten"])
def test_conforms(op):
    check_op(op)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "dropout"])
def test_keeps_channels_last(name):
    x = np.random.default_rng(0).standard_normal((3, 5, 6, 4)).transpose(0, 3, 1, 2)
    y, backward = CASES[name].call((x,), {})
    assert y.strides == x.strides
    assert backward(x)[0].strides == x.strides


# ---- ReLU ----


def test_relu_by_hand(dtype):
    x = np.array([-np.inf, -1, -0.0, 0, 1e-30, 2, np.inf, np.nan], dtype)
    y, cache = relu_forward(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, x[4], 2, np.inf, np.nan])
    dx = relu_backward(np.full_like(x, -3), cache)
    np.testing.assert_array_equal(dx[:-1], [0, 0, 0, 0, -3, -3, -3])  # in particular ReLU′(0) = 0


def test_relu_of_one_number():
    assert relu_forward(np.array(-2.0))[0] == 0


# ---- Sigmoid ----


def test_sigmoid_against_scipy(dtype):
    x = np.linspace(-80, 80, 1001).astype(dtype)
    y, _ = sigmoid_forward(x)
    # an exponential good to 4 ulp, a sum and a division: 6 roundings of eps / 2 and some to spare
    np.testing.assert_allclose(y, expit(x.astype(np.float64)), rtol=6 * np.finfo(dtype).eps)


def test_sigmoid_of_extremes(dtype):
    y, cache = sigmoid_forward(np.array([-np.inf, -1e4, 0, 1e4, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(y, [0, 0, 0.5, 1, 1, np.nan])
    dx = sigmoid_backward(np.full_like(y, -8), cache)
    np.testing.assert_array_equal(dx, [0, 0, -2, 0, 0, np.nan])


# ---- Dropout ----

KNOWN_ANSWERS = [  # published with Random123: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


def slow_philox(c0, c1, c2, c3, k0, k1):
    """Figure 2 of the paper with Python's integers, which do not overflow."""
    for r in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        key0, key1 = (k0 + r * 0x9E3779B9) % 2**32, (k1 + r * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = right // 2**32 ^ c1 ^ key0, right % 2**32, left // 2**32 ^ c3 ^ key1, left % 2**32
    return c0, c1, c2, c3


def slow_mask(size, p, seed, call):
    """Whether elements 0, 1, … are kept: four elements share one counter."""
    random = []
    for i in range(size):
        random += slow_philox(i % 2**32, i // 2**32, call % 2**32, call // 2**32, seed % 2**32, seed // 2**32)
    return np.array(random[:size]) >= p * 2**32


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    assert list(philox(*words(counter), *words(key))) == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_slow_philox_known_answers(counter, key, expected):
    assert list(slow_philox(*map(int, words(counter) + words(key)))) == words(expected)


@pytest.mark.parametrize(("seed", "call"), [(0, 0), (1, 0), (0, 1), (2**40 + 5, 2**33 + 1), (2**64 - 1, 2**64 - 1)])
def test_dropout_is_the_slow_mask_in_any_memory_order(seed, call, laid_out):
    x = np.random.default_rng(0).standard_normal((3, 5, 2, 7))
    y, _ = dropout_forward(laid_out(x), 0.25, seed=seed, call=call)
    np.testing.assert_array_equal(y, np.where(slow_mask(x.size, 0.25, seed, call).reshape(x.shape), x * (1 / 0.75), 0))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_preserves_the_mean(p):
    n = 10**5
    y, _ = dropout_forward(np.ones(n), p, seed=1)
    # the mean of n independent values with variance p / (1 − p): 5 standard deviations are passed by 1 seed in 10⁶
    assert abs(y.mean() - 1) < 5 * np.sqrt(p / (1 - p) / n)


def test_dropout_backward_has_the_same_mask():
    y, cache = dropout_forward(np.ones(SHAPE), 0.4, seed=3, call=7)
    np.testing.assert_array_equal(dropout_backward(np.ones(SHAPE), cache), y)


@pytest.mark.parametrize("other", [{"seed": 1, "call": 2}, {"seed": 2, "call": 1}, {"seed": 1 + 2**32, "call": 1}])
def test_dropout_masks_of_other_seeds_and_calls_are_independent(other):
    n = 10**4
    one, two = (dropout_forward(np.ones(n), 0.5, **at)[0] > 0 for at in ({"seed": 1, "call": 1}, other))
    # independent coins agree half of the time, with standard deviation √(n/4)
    assert abs((one == two).sum() - n / 2) < 5 * np.sqrt(n / 4)


def test_dropout_at_zero_is_the_identity(dtype):
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    np.testing.assert_array_equal(dropout_forward(x, 0)[0], x)


def test_dropout_takes_each_element_by_its_own_word():
    """Element i has word i mod 4 of the counter i // 4, in whatever block it is."""
    seed, call = 5 << 40 | 7, 3 << 33 | 1
    y, _ = dropout_forward(np.full(2049, 3.0), 0.5, seed=seed, call=call)
    for i in (0, 1, 819, 820, 1023, 1024, 1025, 1500, 2047, 2048):
        words = philox(*map(np.uint64, (i // 4, 0, call % 2**32, call >> 32, seed % 2**32, seed >> 32)))
        assert y[i] == (6 if words[i % 4] >= 2**31 else 0)


def test_dropout_near_one_keeps_few_and_stays_finite(dtype):
    n, p = 2**16, 1 - 2.0**-12
    y, _ = dropout_forward(np.ones(n, dtype), p)
    assert set(np.unique(y)) == {0, 2**12}
    assert abs((y > 0).sum() - 16) < 5 * 4  # binomial: mean 16, standard deviation 4


def test_dropout_next_to_one_drops_everything(dtype):
    assert not dropout_forward(np.ones(1000, dtype), 1 - 1e-12)[0].any()


@pytest.mark.parametrize("p", [1, 1.0])
def test_dropout_of_all_is_zero_both_ways(p, dtype, laid_out):
    x = laid_out(np.array([np.nan, np.inf, -np.inf, 0, 1, -1, 1e30, 2], dtype).reshape(1, 2, 2, 2))
    y, cache = dropout_forward(x, p)
    for answer in y, dropout_backward(x, cache):
        assert answer.dtype == dtype
        np.testing.assert_array_equal(answer, np.zeros((1, 2, 2, 2)))


def test_dropped_infinities_and_nans_are_zero():
    x = np.array([np.nan, np.inf] * 500)
    y, _ = dropout_forward(x, 0.5)
    np.testing.assert_array_equal(y, np.where(slow_mask(1000, 0.5, 0, 0), x, 0))


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan"), "half"])
def test_dropout_refuses(p):
    with pytest.raises(BadInput, match=re.escape(f"dropout: p = {p!r}: should be a number, at least 0 and at most 1")):
        dropout_forward(np.ones(3), p)


# ---- Flatten ----


def test_flatten_counts_in_channel_row_column_order(laid_out):
    x = laid_out(np.arange(24.0).reshape(2, 3, 2, 2))
    y, cache = flatten_forward(x)
    np.testing.assert_array_equal(y, np.arange(24).reshape(2, 12))
    np.testing.assert_array_equal(flatten_backward(y, cache), x)


def test_flatten_of_fortran_order():
    x = np.asfortranarray(np.arange(24.0).reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(flatten_forward(x)[0], np.arange(24).reshape(2, 12))


def test_flatten_of_c_order_copies_nothing():
    x = np.zeros(SHAPE)
    assert np.shares_memory(flatten_forward(x)[0], x)


@pytest.mark.parametrize("numbers", [{"seed": -1}, {"call": -1}, {"seed": 2**64}, {"call": 2**64}])
def test_dropout_counters_are_64_bits(numbers):
    with pytest.raises(ValueError, match="seed and call must be in"):
        dropout_forward(np.ones(3), 0.5, **numbers)


def test_relu_has_no_negative_zero(dtype):
    y, _ = relu_forward(np.array([-0.0, 0.0, -1.0], dtype))
    assert not np.signbit(y).any()
