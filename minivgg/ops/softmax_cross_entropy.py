"""From scores to probabilities to a loss. Scores are shifted by their maximum first, so that nothing overflows."""

from numbers import Real
from typing import NamedTuple

import numpy as np

from minivgg.backends.array import on_gpu, xp_of
from minivgg.backends.cuda import THREADS, kernel
from minivgg.errors import check_range
from minivgg.ops.windows import check_array, check_gradient


class CrossEntropyCache(NamedTuple):
    """`targets` (N, K) is the distribution that the loss compares the softmax with."""

    probabilities: np.ndarray
    targets: np.ndarray


def softmax_forward(x):
    """y[n, k] = eˣ[n, k] / Σⱼ eˣ[n, j]: x (N, K) scores → probabilities, rows summing to 1; the cache is y."""
    check_array("softmax", "x", x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"softmax: expected scores x (N, K), of which only N may be 0, got shape {x.shape}")
    if on_gpu(x):
        y = _row_by_row_on_gpu("softmax_forward", x)
    else:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        y = e / e.sum(axis=1, keepdims=True)
    return y, y


def softmax_backward(dy, cache):
    """dx = y · (dy − Σⱼ dyⱼ·yⱼ): the Jacobian diag(y) − y·yᵀ, applied without being formed."""
    check_gradient("softmax_backward", dy, cache.shape, cache.dtype)
    if on_gpu(dy):
        return _row_by_row_on_gpu("softmax_backward", dy, cache)
    return cache * (dy - (dy * cache).sum(axis=1, keepdims=True))


def softmax_cross_entropy_forward(scores, labels, label_smoothing=0.0):
    """loss = −(1/N) Σₙ Σₖ target[n, k] · log softmax(scores)[n, k], a scalar of the scores' dtype.

    scores (N, K), labels (N,) integers in [0, K). The target is 1 at the label; with `label_smoothing` ε (Szegedy et
    al. 2016, §7) it is 1 − ε there, plus ε/K everywhere. Untrained, the loss is about log K.

    On a GPU the loss stays there, as an array without dimensions: whoever makes a number of it waits for the GPU.
    Raises ValueError for labels of another shape or out of range, naming the first; on a GPU, where that look at the
    values would make the host wait, a label out of range makes the loss a NaN.
    """
    check_array("softmax_cross_entropy", "scores", scores)
    shape, dtype = getattr(labels, "shape", type(labels).__name__), getattr(labels, "dtype", "")
    integers = getattr(dtype, "kind", "") in ("i", "u")
    if scores.ndim != 2 or 0 in scores.shape or shape != scores.shape[:1] or not integers:
        raise ValueError(
            "softmax_cross_entropy: expected scores (N, K), not empty, and integer labels (N,), "
            f"got scores {scores.shape} and labels {shape} {dtype}"
        )
    N, K = scores.shape
    check_range("softmax_cross_entropy: label_smoothing", label_smoothing, 0, 1)
    if on_gpu(scores):
        return _cross_entropy_on_gpu(scores, labels, label_smoothing)
    wrong = np.flatnonzero((labels < 0) | (labels >= K))
    if len(wrong):
        n = wrong[0]
        raise ValueError(f"softmax_cross_entropy: label {labels[n]} at index {n} is not in [0, {K})")
    targets = np.full(scores.shape, label_smoothing / K, scores.dtype)
    targets[np.arange(N), labels] += 1 - label_smoothing
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    surprise = np.where(targets > 0, np.log(totals) - shifted, 0)  # a class ruled out by a score of −∞ costs nothing
    loss = (targets * surprise).sum() / N
    return loss, CrossEntropyCache(exponentials / totals, targets)


def softmax_cross_entropy_backward(dloss, cache: CrossEntropyCache):
    """dscores (N, K) = dloss/N · (softmax(scores) − target); `dloss` is a scalar, 1 where backward begins."""
    if getattr(dloss, "ndim", 0):
        raise ValueError(f"softmax_cross_entropy_backward: dloss must be a scalar, got shape {dloss.shape}")
    if not (isinstance(dloss, Real) or getattr(getattr(dloss, "dtype", None), "kind", "") in ("f", "i", "u")):
        raise ValueError(f"softmax_cross_entropy_backward: dloss must be a real number, got {dloss!r}")
    probabilities, targets = cache
    if on_gpu(probabilities):
        return _cross_entropy_backward_on_gpu(dloss, probabilities, targets)
    return (probabilities - targets) * probabilities.dtype.type(dloss / len(targets))


# ---- On a GPU ----


def _kernel_on_gpu(name: str, scores):
    """The CUDA kernel `name`, and how it is launched with a block for each row: (kernel, grid, block)."""
    N, K = scores.shape
    return kernel("ops/softmax_cross_entropy.cu", name, T=scores.dtype), N, min(THREADS, -(-K // 32) * 32)


def _row_by_row_on_gpu(name: str, *arrays):
    xp = xp_of(arrays[0])
    result = xp.empty(arrays[0].shape, arrays[0].dtype)
    launch, *sizes = _kernel_on_gpu(name, result)
    if result.size:
        launch(*sizes, *map(xp.ascontiguousarray, arrays), result, result.shape[1])
    return result


def _cross_entropy_on_gpu(scores, labels, label_smoothing: float):
    xp, (N, K), dtype = xp_of(scores), scores.shape, scores.dtype
    scores, labels = xp.ascontiguousarray(scores), xp.ascontiguousarray(labels, np.int64)
    probabilities, targets = xp.empty(scores.shape, dtype), xp.empty(scores.shape, dtype)
    losses, loss = xp.empty(N, dtype), xp.empty((), dtype)
    launch, *sizes = _kernel_on_gpu("cross_entropy", scores)
    launch(*sizes, scores, labels, probabilities, targets, losses, 1 - label_smoothing, label_smoothing / K, K)
    launch, *sizes = _kernel_on_gpu("mean", losses[None])
    launch(*sizes, losses, loss, N)
    return loss, CrossEntropyCache(probabilities, targets)


def _cross_entropy_backward_on_gpu(dloss, probabilities, targets):
    xp, dtype = xp_of(probabilities), probabilities.dtype
    dscores = xp.empty(probabilities.shape, dtype)
    dloss = dloss.astype(dtype, copy=False) if on_gpu(dloss) else xp.full((), dloss, dtype)
    launch, N, _ = _kernel_on_gpu("cross_entropy_backward", probabilities)
    launch.over(dscores.size, probabilities, targets, dloss, dscores, N)
    return dscores
