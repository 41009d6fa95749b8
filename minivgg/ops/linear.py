"""The fully connected layer: one matrix product."""

from typing import NamedTuple

import numpy as np

from minivgg.ops.channels import sum_per_channel
from minivgg.ops.gemm import gemm
from minivgg.ops.windows import check_gradient, check_parameters


class LinearCache(NamedTuple):
    """Both factors of the product: each is the other's gradient."""

    x: np.ndarray
    w: np.ndarray
    has_bias: bool


def linear_forward(x, w, b=None):
    """y = x·wᵀ + b: x (N, F), w (O, F), b (O,) or None → y (N, O).

    Cost: 2·N·F·O FLOP. Below a batch of some dozens the time is that of reading w once. Raises ValueError, with the
    shapes or dtypes, where they do not go together.
    """
    check_parameters("linear", x, w, b)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"linear: expected x (N, F) and w (O, F) with the same F, got x {x.shape} and w {w.shape}")
    y = gemm(x, w.T)
    if b is not None:
        y += b
    return y, LinearCache(x, w, b is not None)


def linear_backward(dy, cache: LinearCache, *, need_dx=True):
    """(dx, dw, db) = (dy·w, dyᵀ·x, Σₙ dy); dx is None unless `need_dx`, db is None where there was no bias."""
    x, w, has_bias = cache
    check_gradient("linear_backward", dy, (len(x), len(w)), x.dtype)
    return gemm(dy, w) if need_dx else None, gemm(dy.T, x), sum_per_channel(dy) if has_bias else None
