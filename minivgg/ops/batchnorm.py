"""Batch normalisation: every channel shifted and scaled to mean 0 and variance 1 over the batch, then γ and β.

Source: Ioffe & Szegedy, Batch Normalization (ICML 2015), algorithm 1 and the gradients of §3.
"""

import math
from typing import NamedTuple

import numpy as np

from minivgg.backends.array import empty_like, xp_of
from minivgg.backends.cuda import twin
from minivgg.backends.jit import kernel, prange
from minivgg.errors import check_range
from minivgg.ops.channels import as_rows, block_rows, block_sums, from_rows
from minivgg.ops.windows import check_array, check_arrays, check_gradient


class BatchNormCache(NamedTuple):
    """`mean` and `var` (C,) in float64 are what x was normalised with; `count` pixels a channel went into them."""

    x: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    count: int
    from_batch: bool


@twin("ops/batchnorm.cu", "block_moments", over="blocks")
@kernel
def _block_moments(x, block, means, m2s):
    """Mean and sum of squared deviations of every block of rows, each in two passes over cached memory."""
    C = x.shape[1]
    for b in prange(len(means)):
        rows, mean, m2 = x[np.intp(b) * block : (np.intp(b) + 1) * block], means[b], m2s[b]
        mean[:] = 0
        m2[:] = 0
        for p in range(len(rows)):
            row = rows[p]
            for c in range(C):
                mean[c] += row[c]
        for c in range(C):
            mean[c] /= len(rows)
        for p in range(len(rows)):
            row = rows[p]
            for c in range(C):
                m2[c] += (row[c] - mean[c]) ** 2


@twin("ops/batchnorm.cu", "normalise", over="pixels")
@kernel
def _normalise(x, y, mean, scale, shift):
    P, C = x.shape
    for p in prange(P):
        for c in range(C):
            y[p, c] = (x[p, c] - mean[c]) * scale[c] + shift[c]


@twin("ops/batchnorm.cu", "block_gradients", over="blocks")
@kernel
def _block_gradients(dy, block, x, mean, istd, dy_sums, dy_xhat_sums):
    P, C = x.shape
    for b in prange(len(dy_sums)):
        dy_sums[b] = 0
        dy_xhat_sums[b] = 0
        for p in range(b * block, min((b + 1) * block, P)):
            for c in range(C):
                dy_sums[b, c] += dy[p, c]
                dy_xhat_sums[b, c] += dy[p, c] * ((x[p, c] - mean[c]) * istd[c])


@twin("ops/batchnorm.cu", "grad_input", over="pixels")
@kernel
def _grad_input(dy, x, dx, mean, istd, scale, dy_mean, dy_xhat_mean):
    P, C = x.shape
    for p in prange(P):
        for c in range(C):
            xhat = (x[p, c] - mean[c]) * istd[c]
            dx[p, c] = scale[c] * (dy[p, c] - dy_mean[c] - xhat * dy_xhat_mean[c])


def _moments(rows):
    """Mean and (biased) variance of (pixels, C) over pixels, in float64: Chan's rule joins the blocks."""
    block, P, xp = block_rows(rows), len(rows), xp_of(rows)
    means, m2s = block_sums(rows), block_sums(rows)
    _block_moments(rows, block, means, m2s)
    counts = xp.minimum(block, P - xp.arange(len(means)) * block)[:, None]
    mean = (counts * means).sum(axis=0) / P
    return mean, (m2s + counts * (means - mean) ** 2).sum(axis=0) / P


def batchnorm_forward(x, weight, bias, *, mean=None, var=None, eps=1e-5):
    """y = (x − mean) / √(var + eps) · weight + bias, channel by channel.

    x (N, C, H, W) or (N, C); weight (γ) and bias (β) (C,). Statistics are those of the batch (the variance divided by
    the number of pixels), unless `mean` and `var` (C,) are given, as at test time: then they count as constants.

    Statistics are kept in float64, in the cache as well (`running_average` makes use of them). Cost: x read twice and
    written once. Raises ValueError for an x or parameters of another shape, half of the statistics, or
    statistics over a single value a channel.
    """
    check_arrays("batchnorm", x=x, weight=weight, bias=bias)
    if x.ndim not in (2, 4) or 0 in x.shape[1:]:
        raise ValueError(f"batchnorm: expected an x (N, C, H, W) or (N, C), of which only N may be 0, got {x.shape}")
    C = x.shape[1]
    for name, value in {"weight": weight, "bias": bias, "mean": mean, "var": var}.items():
        if value is not None:
            check_array("batchnorm", name, value)
            if value.shape != (C,):
                raise ValueError(f"batchnorm: x {x.shape} needs {name} of shape ({C},), got {value.shape}")
    check_range("batchnorm: eps", eps, 0, math.inf)
    if (mean is None) != (var is None):
        raise ValueError("batchnorm: mean and var go together; give both, or neither to take those of the batch")
    rows = as_rows(x)
    from_batch = mean is None
    if from_batch:
        if len(rows) < 2:
            count = "one value" if len(rows) else "no value"
            raise ValueError(f"batchnorm: x {x.shape} has {count} a channel, which has no variance; use a larger batch")
        mean, var = _moments(rows)
    mean, var = mean.astype(np.float64, copy=False), var.astype(np.float64, copy=False)
    y = empty_like(rows)
    _normalise(rows, y, *(v.astype(x.dtype) for v in (mean, weight / np.sqrt(var + eps), bias)))
    return from_rows(y, x.shape), BatchNormCache(x, weight, mean, var, eps, len(rows), from_batch)


def batchnorm_backward(dy, cache: BatchNormCache):
    """(dx, dweight, dbias). With x̂ the normalised x and ⟨·⟩ the mean over a channel's pixels:

    dx = weight / √(var + eps) · (dy − ⟨dy⟩ − x̂·⟨dy·x̂⟩),  dweight = Σ dy·x̂,  dbias = Σ dy;
    the two means are absent where the statistics were given. Cost: x and dy read twice, dx written once.
    """
    x, weight, mean, var, eps, count, from_batch = cache
    check_gradient("batchnorm_backward", dy, x.shape, x.dtype)
    rows, dy = as_rows(x), as_rows(dy)
    istd = 1 / np.sqrt(var + eps)
    dy_sums, dy_xhat_sums = block_sums(rows), block_sums(rows)
    centre, scale = mean.astype(x.dtype), istd.astype(x.dtype)
    _block_gradients(dy, block_rows(rows), rows, centre, scale, dy_sums, dy_xhat_sums)
    dbias, dweight = dy_sums.sum(axis=0), dy_xhat_sums.sum(axis=0)
    dy_mean, dy_xhat_mean = (dbias / count, dweight / count) if from_batch else (0 * dbias, 0 * dweight)
    dx = empty_like(rows)
    in_dtype = [v.astype(x.dtype) for v in (weight * istd, dy_mean, dy_xhat_mean)]
    _grad_input(dy, rows, dx, centre, scale, *in_dtype)
    return from_rows(dx, x.shape), dweight.astype(x.dtype), dbias.astype(x.dtype)


def running_average(mean, var, cache: BatchNormCache, momentum=0.1):
    """The running statistics after one more batch: old · (1 − momentum) + batch · momentum, as new arrays.

    The batch's variance enters with N − 1 for N, since it estimates that of the population, as PyTorch's does.
    Raises ValueError for a cache whose statistics were given and not taken from a batch.
    """
    if not cache.from_batch:
        raise ValueError("running_average: the cache holds statistics that were given, not those of a batch")
    unbiased = cache.var * (cache.count / (cache.count - 1))
    new_mean = (1 - momentum) * mean + momentum * cache.mean
    return new_mean.astype(mean.dtype), ((1 - momentum) * var + momentum * unbiased).astype(var.dtype)
