"""From images to vectors: what stands between the last pooling and the first linear layer."""

import math

from minivgg.ops.windows import check_array, check_gradient


def flatten_forward(x):
    """x (N, …) → y (N, F) in (C, H, W) order, whatever the memory order: the order published weights expect."""
    check_array("flatten", "x", x, halves=True)
    if x.ndim < 1:
        raise ValueError(f"flatten: expected an x (N, …), got shape {x.shape}")
    return x.reshape(len(x), math.prod(x.shape[1:])), (x.shape, x.dtype)


def flatten_backward(dy, cache):
    """dx in the shape of x."""
    shape, dtype = cache
    check_gradient("flatten_backward", dy, (shape[0], math.prod(shape[1:])), dtype)
    return dy.reshape(shape)
