"""Local response normalisation: each value divided by a power of its neighbours' energy, across channels.

AlexNet's, which VGG tried (A-LRN) and dropped. Source: Krizhevsky et al. 2012, §3.3; Simonyan & Zisserman 2015, §4.1.
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends.jit import kernel, njit, prange
from minivgg.ops.channels import as_rows, from_rows
from minivgg.ops.windows import check_gradient, check_nchw


class LRNCache(NamedTuple):
    """The input and the constants: backward computes the denominators again, which is cheaper than keeping them."""

    x: np.ndarray
    size: int
    alpha: float
    beta: float
    k: float


@njit(cache=True)
def _denominators(x, p, size, alpha, k, s):
    """s[c] = k + alpha/size · Σ x² over the window of `size` channels around c, for pixel p."""
    C = x.shape[1]
    for c in range(C):
        energy = x[p, c] * 0
        for i in range(max(0, c - size // 2), min(C, c - size // 2 + size)):
            energy += x[p, i] * x[p, i]
        s[c] = k + alpha / size * energy


@kernel
def _forward(x, y, size, alpha, beta, k):
    P, C = x.shape
    for p in prange(P):
        s = np.empty(C, x.dtype)
        _denominators(x, p, size, alpha, k, s)
        for c in range(C):
            y[p, c] = x[p, c] * s[c] ** -beta


@kernel
def _backward(dy, x, dx, size, alpha, beta, k):
    P, C = x.shape
    for p in prange(P):
        s = np.empty(C, x.dtype)
        _denominators(x, p, size, alpha, k, s)
        for c in range(C):
            dx[p, c] = dy[p, c] * s[c] ** -beta
            s[c] = dy[p, c] * x[p, c] * s[c] ** (-beta - 1)  # what dy[c] hands to all of its window
        for c in range(C):
            total = s[c] * 0
            # the windows that hold c: those of the channels i with i − size//2 ≤ c < i − size//2 + size
            for i in range(max(0, c + size // 2 - size + 1), min(C, c + size // 2 + 1)):
                total += s[i]
            dx[p, c] -= 2 * alpha * beta / size * x[p, c] * total


def lrn_forward(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    """y[c] = x[c] · (k + alpha/size · Σ x[i]²)^−beta, i over the `size` channels c − size//2, …, at every pixel.

    x (N, C, H, W) → y of the same shape, channels last. PyTorch's convention: alpha is divided by size (the paper's
    alpha = 1e-4 with n = 5 is alpha = 5e-4 here; the paper's k is 2). Cost: N·H·W·C·size multiply-adds and a power.
    """
    check_nchw("lrn", x)
    if size < 1 or not k > 0:
        raise ValueError(f"lrn: size must be at least 1 and k positive, got size {size} and k {k}")
    rows = as_rows(x)
    y = np.empty_like(rows)
    _forward(rows, y, size, *map(x.dtype.type, (alpha, beta, k)))
    return from_rows(y, x.shape), LRNCache(x, size, alpha, beta, k)


def lrn_backward(dy, cache: LRNCache):
    """dx[j] = dy[j]·s[j]^−beta − 2·alpha·beta/size · x[j] · Σ dy[i]·x[i]·s[i]^(−beta−1), i over windows that hold j."""
    x, size, alpha, beta, k = cache
    check_gradient("lrn_backward", dy, x.shape, x.dtype)
    rows = as_rows(x)
    dx = np.empty_like(rows)
    _backward(as_rows(dy), rows, dx, size, *map(x.dtype.type, (alpha, beta, k)))
    return from_rows(dx, x.shape)
