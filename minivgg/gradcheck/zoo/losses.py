"""Bugs of softmax, which an upstream gradient of ones cannot see, and of the cross-entropy loss."""

import numpy as np

from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import LOSS, SMOOTHED, SOFTMAX, op
from minivgg.ops.softmax_cross_entropy import (
    CrossEntropyCache,
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)

HUNDREDS = op("softmax_cross_entropy", (8, 3), classes=3, draw="hundreds")


def one_hot(cache):
    """1 at the label, without smoothing."""
    return (cache.targets == cache.targets.max(axis=1, keepdims=True)).astype(cache.targets.dtype)


# ---- Softmax ----


@bug(softmax_backward, SOFTMAX, "x: a constant factor, 7 times too large")
def softmax_seven_times(dy, cache):
    """7 times too large. Where dy is all ones the right gradient is zero, and so is 7 times it."""
    return 7 * softmax_backward(dy, cache)


@bug(softmax_backward, SOFTMAX, "x: the gradient is all zeros")
def softmax_zero(dy, cache):
    """Nothing at all, which is right where dy is all ones."""
    return np.zeros_like(dy)


@bug(softmax_backward, SOFTMAX, "x: the term y·Σ dy·y, summed over each sample, is missing, or wrong")
def softmax_sum_missing(dy, cache):
    """y·dy: the Jacobian's diagonal term diag(y), without y·yᵀ."""
    return dy * cache


@bug(softmax_backward, SOFTMAX, "x: none of the known patterns")
def softmax_diagonal_only(dy, cache):
    """y·(1 − y)·dy: the Jacobian's diagonal, as if softmax were a sigmoid for each class."""
    return dy * cache * (1 - cache)


@bug(softmax_backward, SOFTMAX, "x: a batch leak")
def softmax_sum_over_samples(dy, cache):
    """The sum Σ dy·y runs over the batch and not over the classes."""
    return cache * (dy - (dy * cache).sum(axis=0))


@bug(softmax_backward, SOFTMAX, "a batch leak")
def softmax_sum_over_everything(dy, cache):
    """The sum Σ dy·y has no axis: it runs over samples and classes."""
    return cache * (dy - (dy * cache).sum())


@bug(softmax_forward, op("softmax", (4, 6), draw="hundreds"), "nan or infinity in y and the gradient of x")
def softmax_not_shifted(x):
    """eˣ of x as it is, not less its maximum: ∞ / ∞ from x = 710 on."""
    y = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return y, y


# ---- Softmax and cross-entropy ----


@bug(softmax_cross_entropy_backward, LOSS, "a constant factor, 8 times too large, which is N: its inverse is missing")
def cross_entropy_not_over_n(dloss, cache):
    """The loss is a mean over samples, its gradient a sum."""
    return softmax_cross_entropy_backward(dloss, cache) * len(cache.targets)


@bug(softmax_cross_entropy_backward, LOSS, "a constant factor, 3 times too small, which is F")
def cross_entropy_over_classes_too(dloss, cache):
    """Divided by N·K, as the mean over a whole matrix is, for N."""
    return softmax_cross_entropy_backward(dloss, cache) / cache.targets.shape[1]


@bug(softmax_cross_entropy_backward, LOSS, "scores: the sign is wrong")
def cross_entropy_sign(dloss, cache):
    """target − softmax for softmax − target: gradient descent climbs."""
    return -softmax_cross_entropy_backward(dloss, cache)


@bug(softmax_cross_entropy_backward, SMOOTHED, "scores: none of the known patterns")
def cross_entropy_smoothing_ignored(dloss, cache):
    """Label smoothing is in the loss and not in its gradient."""
    return softmax_cross_entropy_backward(dloss, cache._replace(targets=one_hot(cache)))


@bug(softmax_cross_entropy_backward, LOSS, "scores: none of the known patterns")
def cross_entropy_label_off_by_one(dloss, cache):
    """The gradient takes labels to count from one."""
    return softmax_cross_entropy_backward(dloss, cache._replace(targets=np.roll(cache.targets, 1, axis=1)))


@bug(softmax_cross_entropy_backward, LOSS, "dy = 0 gives a gradient of scores that is not 0")
def cross_entropy_dloss_ignored(dloss, cache):
    """The upstream gradient is taken to be one: wrong as soon as the loss is weighted, or one term of several."""
    return softmax_cross_entropy_backward(1.0, cache)


@bug(
    softmax_cross_entropy_backward,
    LOSS,
    "scores: wrong only in the last sample (7 of 0 to 7)",
)
def cross_entropy_last_sample_lost(dloss, cache):
    """A loop over samples stops one early."""
    dscores = softmax_cross_entropy_backward(dloss, cache)
    dscores[-1] = 0
    return dscores


@bug(softmax_cross_entropy_backward, LOSS, "backward spoils its cache: called twice, scores")
def cross_entropy_writes_on_its_cache(dloss, cache):
    """`probabilities[range(N), labels] -= 1` is a famous line, and it spoils them for whoever comes next."""
    probabilities, targets = cache
    probabilities[targets > 0] -= 1
    return probabilities * (dloss / len(targets))


@bug(softmax_cross_entropy_forward, HUNDREDS, "nan or infinity in y")
def cross_entropy_log_of_zero(scores, labels, label_smoothing=0.0):
    """log of the softmax, which is 0 where a score is far below the largest, for the log-softmax."""
    _, cache = softmax_cross_entropy_forward(scores, labels, label_smoothing)
    return -(cache.targets * np.log(cache.probabilities)).sum() / len(labels), cache


@bug(softmax_cross_entropy_forward, LOSS, "scores: none of the known patterns")
def cross_entropy_softmax_twice(scores, labels, label_smoothing=0.0):
    """The loss takes the softmax of what is a softmax already; backward knows of one only."""
    probabilities, _ = softmax_forward(scores)
    loss, cache = softmax_cross_entropy_forward(probabilities, labels, label_smoothing)
    return loss, CrossEntropyCache(probabilities, cache.targets)
