"""From scores to probabilities to a loss. Scores are shifted by their maximum first, so that nothing overflows."""

from typing import NamedTuple

import numpy as np

from minivgg.backends.array import xp_of
from minivgg.ops.windows import check_gradient


class CrossEntropyCache(NamedTuple):
    """`targets` (N, K) is the distribution that the loss compares the softmax with."""

    probabilities: np.ndarray
    targets: np.ndarray


def softmax_forward(x):
    """y[n, k] = eˣ[n, k] / Σⱼ eˣ[n, j]: x (N, K) scores → probabilities, rows summing to 1; the cache is y."""
    xp = xp_of(x)
    e = xp.exp(x - x.max(axis=1, keepdims=True))
    y = e / e.sum(axis=1, keepdims=True)
    return y, y


def softmax_backward(dy, cache):
    """dx = y · (dy − Σⱼ dyⱼ·yⱼ): the Jacobian diag(y) − y·yᵀ, applied without being formed."""
    check_gradient("softmax_backward", dy, cache.shape, cache.dtype)
    return cache * (dy - (dy * cache).sum(axis=1, keepdims=True))


def softmax_cross_entropy_forward(scores, labels, label_smoothing=0.0):
    """loss = −(1/N) Σₙ Σₖ target[n, k] · log softmax(scores)[n, k], a scalar of the scores' dtype.

    scores (N, K), labels (N,) integers in [0, K). The target is 1 at the label; with `label_smoothing` ε (Szegedy et
    al. 2016, §7) it is 1 − ε there, plus ε/K everywhere. Untrained, the loss is about log K.

    Raises ValueError for labels of another shape or out of range, naming the first.
    """
    xp = xp_of(scores)
    if scores.ndim != 2 or 0 in scores.shape or labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            "softmax_cross_entropy: expected scores (N, K), not empty, and integer labels (N,), "
            f"got scores {scores.shape} and labels {labels.shape} {labels.dtype}"
        )
    N, K = scores.shape
    if xp is np:  # on a GPU this look at the values would make the host wait
        wrong = np.flatnonzero((labels < 0) | (labels >= K))
        if len(wrong):
            n = wrong[0]
            raise ValueError(f"softmax_cross_entropy: label {labels[n]} at index {n} is not in [0, {K})")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"softmax_cross_entropy: label_smoothing must be in [0, 1), got {label_smoothing}")
    targets = xp.full(scores.shape, label_smoothing / K, scores.dtype)
    targets[xp.arange(N), labels] += 1 - label_smoothing
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    surprise = xp.where(targets > 0, xp.log(totals) - shifted, 0)  # a class ruled out by a score of −∞ costs nothing
    loss = (targets * surprise).sum() / N
    return loss, CrossEntropyCache(exponentials / totals, targets)


def softmax_cross_entropy_backward(dloss, cache: CrossEntropyCache):
    """dscores (N, K) = dloss/N · (softmax(scores) − target); `dloss` is a scalar, 1 where backward begins."""
    if getattr(dloss, "ndim", 0):
        raise ValueError(f"softmax_cross_entropy_backward: dloss must be a scalar, got shape {dloss.shape}")
    probabilities, targets = cache
    return (probabilities - targets) * probabilities.dtype.type(dloss / len(targets))
