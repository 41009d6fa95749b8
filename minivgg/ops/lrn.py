"""Local response normalisation: each value divided by a power of its neighbours' energy, across channels.

AlexNet's, which VGG tried (A-LRN) and dropped. Source: Krizhevsky et al. 2012, §3.3; Simonyan & Zisserman 2015, §4.1.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import empty_like, on_gpu
from minivgg.backends.jit import kernel, njit, prange
from minivgg.errors import check_range
from minivgg.ops.channels import as_rows, from_rows
from minivgg.ops.windows import check_gradient, check_nchw

_PIXELS = 64  # at a time, so that scratch memory is taken seldom


class LRNCache(NamedTuple):
    """The input and the constants: backward computes the denominators again, which is cheaper than keeping them."""

    x: np.ndarray
    size: int
    alpha: float
    beta: float
    k: float


@njit(cache=True)
def _window_sums(values, size, before, sums):
    """sums[c] = Σ values[i], i over the `size` channels from c − before on, as far as they exist."""
    sums[:] = 0
    for shift in range(-before, size - before):
        first = max(0, -shift)
        target, source = sums[first : max(first, len(sums) - shift)], values[first + shift :]
        for c in range(min(len(target), len(source))):
            target[c] += source[c]


@njit(cache=True)
def _powers(row, size, alpha, beta, k, scratch, s, power):
    """s[c] = k + alpha/size · Σ x² over the window around c, and s^−beta, for one pixel."""
    for c in range(len(row)):
        scratch[c] = row[c] * row[c]
    _window_sums(scratch, size, size // 2, s)
    for c in range(len(s)):
        s[c] = k + alpha / size * s[c]
    if beta == 0.75:  # everybody's, and by square roots ten times faster than by a power
        for c in range(len(s)):
            root = np.sqrt(s[c])
            power[c] = 1 / (root * np.sqrt(root))
    else:
        for c in range(len(s)):
            power[c] = s[c] ** -beta


@cuda.twin("ops/lrn.cu", "forward", over="pixels")
@kernel
def _forward(x, y, size, alpha, beta, k):
    P, C = x.shape
    for block in prange((P + _PIXELS - 1) // _PIXELS):
        first = np.intp(block) * _PIXELS
        rows, ys = x[first : first + _PIXELS], y[first : first + _PIXELS]
        scratch, s, power = np.empty(C, x.dtype), np.empty(C, x.dtype), np.empty(C, x.dtype)
        for p in range(len(rows)):
            row, to = rows[p], ys[p]
            _powers(row, size, alpha, beta, k, scratch, s, power)
            for c in range(C):
                to[c] = row[c] * power[c]


@kernel
def _backward(dy, x, dx, size, alpha, beta, k):
    P, C = x.shape
    for block in prange((P + _PIXELS - 1) // _PIXELS):
        first = np.intp(block) * _PIXELS
        rows, dys, dxs = x[first : first + _PIXELS], dy[first : first + _PIXELS], dx[first : first + _PIXELS]
        scratch, s, power = np.empty(C, x.dtype), np.empty(C, x.dtype), np.empty(C, x.dtype)
        for p in range(len(rows)):
            row, upstream, to = rows[p], dys[p], dxs[p]
            _powers(row, size, alpha, beta, k, scratch, s, power)
            for c in range(C):
                to[c] = upstream[c] * power[c]
                scratch[c] = to[c] * row[c] / s[c]  # what dy[c] hands to all of its window
            _window_sums(scratch, size, size - 1 - size // 2, s)  # over the windows that hold c
            factor = 2 * alpha * beta / size
            for c in range(C):
                to[c] -= factor * row[c] * s[c]


def _backward_on_gpu(dy, x, dx, size, alpha, beta, k):
    shares = empty_like(x)
    launch = functools.partial(cuda.kernel, "ops/lrn.cu", T=x.dtype)
    launch("hand_out").over_pixels(*x.shape, dy, x, dx, shares, size, alpha, beta, k)
    launch("take_in").over_pixels(*x.shape, shares, x, dx, size, alpha, beta)


def check_lrn(op: str, size, alpha, beta, k) -> None:
    """Raise BadInput, with the option and its range, unless the denominator is a positive number for every input."""
    check_range(f"{op}: size", size, 1, math.inf, integer=True)
    check_range(f"{op}: alpha", alpha, 0, math.inf)
    check_range(f"{op}: beta", beta, 0, math.inf)
    check_range(f"{op}: k", k, 0, math.inf, low_open=True)


def lrn_forward(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    """y[c] = x[c] · (k + alpha/size · Σ x[i]²)^−beta, i over the `size` channels c − size//2, …, at every pixel.

    x (N, C, H, W) → y of the same shape, channels last. PyTorch's convention: alpha is divided by size (the paper's
    alpha = 1e-4 with n = 5 is alpha = 5e-4 here; the paper's k is 2). Cost: N·H·W·C·size multiply-adds and a power.
    Raises ValueError for what are no images, BadInput for an option out of range (see `check_lrn`).
    """
    check_nchw("lrn", x)
    check_lrn("lrn", size, alpha, beta, k)
    rows = as_rows(x)
    y = empty_like(rows)
    _forward(rows, y, size, *map(x.dtype.type, (alpha, beta, k)))
    return from_rows(y, x.shape), LRNCache(x, size, alpha, beta, k)


def lrn_backward(dy, cache: LRNCache):
    """dx[j] = dy[j]·s[j]^−beta − 2·alpha·beta/size · x[j] · Σ dy[i]·x[i]·s[i]^(−beta−1), i over windows that hold j."""
    x, size, alpha, beta, k = cache
    check_gradient("lrn_backward", dy, x.shape, x.dtype)
    rows = as_rows(x)
    dx = empty_like(rows)
    backward = _backward_on_gpu if on_gpu(x) else _backward
    backward(as_rows(dy), rows, dx, size, *map(x.dtype.type, (alpha, beta, k)))
    return from_rows(dx, x.shape)
