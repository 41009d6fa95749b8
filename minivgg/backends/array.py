"""The only file that tells NumPy from CuPy, and the only one that knows about memory order.

A tensor's *shape* is always (N, C, H, W). Its *memory order* is free: either the usual one (W varies fastest) or
channels last (C varies fastest), in which a pixel's channels lie side by side. Spatial kernels want channels last,
because then the inner loop of nearly everything is a run over contiguous channels; elementwise ones do not care.
"""

import sys

import numpy as np

from minivgg.backends import workspace


def on_gpu(x) -> bool:
    """Whether `x` lives on a GPU, told by its type alone, so that nothing imports CuPy needlessly."""
    return type(x).__module__.partition(".")[0] == "cupy"


def xp_of(x):
    """The module, `numpy` or `cupy`, whose functions apply to `x`."""
    return sys.modules["cupy"] if on_gpu(x) else np


def to_gpu(x):
    """A copy of `x` on the current GPU, or `x` itself where it is there already. Needs CuPy and a device."""
    import cupy

    return cupy.asarray(x)


def to_cpu(x) -> np.ndarray:
    """A copy of `x` in main memory, or `x` itself where it is there already."""
    return x.get() if on_gpu(x) else np.asarray(x)


def nhwc(x):
    """(N, C, H, W) → a C-contiguous (N, H, W, C): a view if `x` is channels last already, else one transposing copy."""
    return xp_of(x).ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    """(N, H, W, C) → the (N, C, H, W) view of the same memory: the inverse of `nhwc`, free of charge."""
    return x.transpose(0, 3, 1, 2)


def channels_last(x):
    """`x` itself if its memory is channels last, else a copy that is; the shape stays (N, C, H, W) either way."""
    return nchw(nhwc(x))


def empty_like(x):
    """An uninitialised array of x's shape and dtype, in the order in which `memory_run(x)` walks."""
    empty = xp_of(x).empty if on_gpu(x) else workspace.empty
    if x.ndim == 4 and not x.flags.c_contiguous:
        N, C, H, W = x.shape
        return nchw(empty((N, H, W, C), x.dtype))
    return empty(x.shape, x.dtype)


def memory_run(x):
    """The elements of `x` as one vector in *memory* order: a view, or a copy if `x` is in neither of the two orders.

    For elementwise work, which may walk any order as long as every operand walks the same one (see `ordered_like`).
    """
    if x.ndim == 4 and not x.flags.c_contiguous:
        x = nhwc(x)
    return x.reshape(-1)


def ordered_like(x, model):
    """`x`, or a copy of it, in the memory order of `model`, whose shape is the same."""
    if x.ndim == 4 and not model.flags.c_contiguous:
        return channels_last(x)
    return xp_of(x).ascontiguousarray(x)
