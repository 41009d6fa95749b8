"""Sums over everything but the channel, and their adjoint: what biases and batch norm are made of.

Arrays are (N, C, H, W) or (N, C). A sum is taken in blocks of fixed size, and the block results are added in order in
float64: so it comes out the same to the last bit with any number of threads, and does not lose digits on long sums.
"""

import numpy as np

from minivgg.backends.array import nchw, nhwc, xp_of
from minivgg.backends.cuda import twin
from minivgg.backends.jit import kernel, prange

_BLOCK = 16384  # elements: 64 KB of float32, so that a block read twice comes from cache the second time


def as_rows(x):
    """(N, C, H, W) or (N, C) → (pixels, C), a view where the memory is channels last, else a copy."""
    return xp_of(x).ascontiguousarray(x) if x.ndim == 2 else nhwc(x).reshape(-1, x.shape[1])


def from_rows(rows, shape: tuple):
    """The inverse of `as_rows`, always a view: (pixels, C) → `shape`, channels last."""
    return rows if len(shape) == 2 else nchw(rows.reshape(shape[0], *shape[2:], shape[1]))


def block_rows(rows) -> int:
    """How many rows of (pixels, C) make one block of a sum."""
    return max(1, _BLOCK // rows.shape[1])


def block_sums(rows):
    """An empty (blocks, C) float64 array for a kernel's sums over the blocks of `rows` (pixels, C)."""
    return xp_of(rows).empty((-(-len(rows) // block_rows(rows)), rows.shape[1]), np.float64)


@twin("ops/channels.cu", "sum_blocks", over="blocks")
@kernel
def _sum_blocks(rows, block, sums):
    P, C = rows.shape
    for b in prange(len(sums)):
        sums[b] = 0
        for p in range(b * block, min((b + 1) * block, P)):
            for c in range(C):
                sums[b, c] += rows[p, c]


@twin("ops/channels.cu", "add", over="pixels")
@kernel
def _add(rows, b):
    P, C = rows.shape
    for p in prange(P):
        for c in range(C):
            rows[p, c] += b[c]


def sum_per_channel(x):
    """x (N, C, H, W) or (N, C) → (C,) sums over all other dimensions, in x's dtype."""
    rows = as_rows(x)
    sums = block_sums(rows)
    _sum_blocks(rows, block_rows(rows), sums)
    return sums.sum(axis=0).astype(x.dtype)


def add_per_channel(x, b):
    """x (N, C, H, W) plus b (C,) on every pixel: in place if x is channels last, and a new array if not."""
    rows = as_rows(x)
    _add(rows, b)
    return from_rows(rows, x.shape)
