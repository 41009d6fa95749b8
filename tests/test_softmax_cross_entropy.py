"""Softmax and cross-entropy against SciPy in float64, the formulas, and scores that overflow a naive one."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)
from minivgg.testing import check_op, oracles

LABELS = np.array([2, 0, 3, 2])


@pytest.mark.parametrize("op", ["softmax", "softmax_cross_entropy"])
def test_conforms(op):
    check_op(op)


def rounding(scores, terms):
    """eps times: what subtracting the maximum rounds off the exponent, `terms` additions, an exponential (4), a few."""
    return np.finfo(scores.dtype).eps * (np.ptp(scores) + terms + 8)


batches = st.tuples(st.integers(1, 6), st.integers(1, 12), st.sampled_from([0.01, 1, 20]))


@given(batch=batches)
def test_softmax_against_scipy(dtype, batch):
    N, K, spread = batch
    x = (spread * np.random.default_rng(0).standard_normal((N, K))).astype(dtype)
    y, _ = softmax_forward(x)
    np.testing.assert_allclose(y, softmax(x.astype(np.float64), axis=1), rtol=rounding(x, K))


def test_softmax_backward_is_the_jacobian():
    rng = np.random.default_rng(0)
    dy = rng.standard_normal((3, 4))
    y, cache = softmax_forward(rng.standard_normal((3, 4)))
    expected = [(np.diag(p) - np.outer(p, p)) @ g for p, g in zip(y, dy, strict=True)]
    np.testing.assert_allclose(softmax_backward(dy, cache), expected, rtol=0, atol=1e-15)


def test_softmax_of_huge_scores(dtype):
    y, _ = softmax_forward(np.array([[1e4, -1e4, 1e4], [-1e4, -1e4, -2e4]], dtype))
    np.testing.assert_array_equal(y, [[0.5, 0, 0.5], [0.5, 0.5, 0]])


@given(batch=batches, label_smoothing=st.sampled_from([0.0, 0.1, 0.9]))
def test_loss_against_scipy(dtype, batch, label_smoothing):
    N, K, spread = batch
    rng = np.random.default_rng(0)
    scores, labels = (spread * rng.standard_normal((N, K))).astype(dtype), rng.integers(0, K, N)
    loss, _ = softmax_cross_entropy_forward(scores, labels, label_smoothing)
    minus_log = -log_softmax(scores.astype(np.float64), axis=1)
    # PyTorch's definition: the label's share, and the mean over the classes
    expected = (1 - label_smoothing) * minus_log[np.arange(N), labels] + label_smoothing * minus_log.mean(axis=1)
    np.testing.assert_allclose(loss, expected.mean(), rtol=0, atol=rounding(scores, N * K) * (1 + minus_log.max()))


def test_gradient_is_softmax_minus_target():
    scores, labels = np.random.default_rng(0).standard_normal((4, 5)), LABELS
    _, cache = softmax_cross_entropy_forward(scores, labels, 0.1)
    target = np.full((4, 5), 0.1 / 5)
    target[np.arange(4), labels] = 0.9 + 0.1 / 5
    expected = -3 * (softmax(scores, axis=1) - target) / 4
    np.testing.assert_allclose(softmax_cross_entropy_backward(-3.0, cache), expected, rtol=0, atol=1e-15)


def test_gradient_sums_to_zero_over_classes():
    _, cache = softmax_cross_entropy_forward(np.random.default_rng(0).standard_normal((4, 5)), LABELS, 0.1)
    np.testing.assert_allclose(softmax_cross_entropy_backward(1, cache).sum(axis=1), 0, rtol=0, atol=1e-15)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_untrained_loss_is_the_logarithm_of_the_classes(label_smoothing, dtype):
    loss, _ = softmax_cross_entropy_forward(np.zeros((4, 1000), dtype), LABELS, label_smoothing)
    np.testing.assert_allclose(loss, np.log(1000), rtol=4004 * np.finfo(dtype).eps)  # a sum of 4000 and four roundings


def test_huge_scores_are_finite_and_right(dtype):
    scores = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    for labels, expected in ([0, 1], 0), ([1, 0], 2e4), ([0, 0], 1e4):
        loss, cache = softmax_cross_entropy_forward(scores, np.array(labels))
        assert loss == expected
        assert np.isfinite(softmax_cross_entropy_backward(1, cache)).all()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_labels_of_any_integer_type(kind):
    scores = np.random.default_rng(0).standard_normal((4, 300))
    labels = np.array([0, 7, 255, 8]).astype(np.uint8).astype(kind)
    loss, _ = softmax_cross_entropy_forward(scores, labels)
    assert loss == softmax_cross_entropy_forward(scores, np.array([0, 7, 255, 8]))[0]


def test_numbers_of_either_kind_start_the_backward(dtype):
    _, cache = softmax_cross_entropy_forward(np.ones((4, 5), dtype), LABELS)
    for dloss in 1, 1.0, np.float32(1), np.float64(1):
        assert softmax_cross_entropy_backward(dloss, cache).dtype == dtype


# ---- Errors ----


def refuses(message, scores=(4, 5), labels=LABELS, label_smoothing=0.0):
    with pytest.raises(ValueError, match=re.escape(message)):
        softmax_cross_entropy_forward(np.zeros(scores), np.asarray(labels), label_smoothing)


@pytest.mark.parametrize("label", [5, -1, 10**6])
def test_refuses_labels_out_of_range(label):
    refuses(f"label {label} at index 2 is not in [0, 5)", labels=[4, 0, label, label])


def test_refuses_another_number_of_labels():
    refuses("got scores (4, 5) and labels (3,) int64", labels=LABELS[:3])


def test_refuses_scores_that_are_no_matrix():
    refuses("got scores (4, 5, 1) and labels (4,) int64", scores=(4, 5, 1))


def test_refuses_an_empty_batch():
    refuses("not empty, and integer labels (N,), got scores (0, 5) and labels (0,)", scores=(0, 5), labels=LABELS[:0])


@pytest.mark.parametrize("kind", [float, bool])
def test_refuses_labels_that_are_no_integers(kind):
    refuses(f"got scores (4, 5) and labels (4,) {np.dtype(kind)}", labels=LABELS.astype(kind))


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.01, float("nan"), "much"])
def test_refuses_senseless_smoothing(label_smoothing):
    refuses(f"label_smoothing = {label_smoothing!r}: should be a number, at least 0", label_smoothing=label_smoothing)


def test_smoothed_all_the_way_every_class_counts_the_same(dtype):
    scores = np.array([[3.0, 3, 3, 3], [0, 1, 2, 5]], dtype)
    labels = np.array([1, 3])
    loss, _ = softmax_cross_entropy_forward(scores[:1], labels[:1], 1.0)
    np.testing.assert_allclose(loss, np.log(4), rtol=2 * np.finfo(dtype).eps)
    loss, cache = softmax_cross_entropy_forward(scores, labels, label_smoothing=1)
    np.testing.assert_allclose(loss, oracles.softmax_cross_entropy(scores.astype(float), labels, 1.0), rtol=1e-6)
    p = oracles.softmax(scores.astype(float))
    np.testing.assert_allclose(softmax_cross_entropy_backward(1, cache), (p - 0.25) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dloss", [None, "1", 1j, [1]])
def test_refuses_an_upstream_gradient_that_is_no_number(dloss):
    _, cache = softmax_cross_entropy_forward(np.zeros((4, 5)), LABELS)
    with pytest.raises(ValueError, match="dloss must be a real number, got"):
        softmax_cross_entropy_backward(dloss, cache)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], None])
def test_refuses_labels_that_are_no_array(labels):
    with pytest.raises(ValueError, match=f"got scores .4, 5. and labels {type(labels).__name__}"):
        softmax_cross_entropy_forward(np.zeros((4, 5)), labels)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 3, 4)])
def test_softmax_refuses_what_are_no_rows_of_scores(shape):
    with pytest.raises(ValueError, match=re.escape(f"(N, K), of which only N may be 0, got shape {shape}")):
        softmax_forward(np.zeros(shape))


def test_class_ruled_out_by_minus_infinity_costs_nothing(dtype):
    scores, labels = np.array([[1, -np.inf, 2], [0, 1, -np.inf]], dtype), np.array([0, 1])
    loss, cache = softmax_cross_entropy_forward(scores, labels)
    np.testing.assert_allclose(loss, np.log1p(np.exp([1, -1])).mean(), rtol=4 * np.finfo(dtype).eps)
    assert softmax_cross_entropy_backward(1, cache)[[0, 1], [1, 2]].tolist() == [0, 0]


def test_upstream_gradient_is_a_scalar():
    _, cache = softmax_cross_entropy_forward(np.zeros((3, 3)), np.arange(3))
    with pytest.raises(ValueError, match=r"dloss must be a scalar, got shape \(3,\)"):
        softmax_cross_entropy_backward(np.ones(3), cache)
