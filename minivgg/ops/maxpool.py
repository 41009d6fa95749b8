"""Max-pooling: the largest value of each window; its gradient goes back to where that value stood."""

from typing import NamedTuple

import numpy as np

from minivgg.backends.array import nchw, nhwc
from minivgg.backends.jit import kernel, prange
from minivgg.ops.windows import check_gradient, check_nchw, output_size, pair


class MaxPoolCache(NamedTuple):
    """`argmax` (N, OH, OW, C) says which of the KH·KW places of its window won, as kh·KW + kw: one byte, as a rule."""

    argmax: np.ndarray
    x_shape: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dtype: np.dtype


@kernel
def _forward(x, y, argmax, window, stride, padding):
    N, H, W, C = x.shape
    _, OH, OW, _ = y.shape
    for task in prange(N * OH):
        n, oh = divmod(np.intp(task), OH)
        for ow in range(OW):
            empty = True
            for kh in range(window[0]):
                h = oh * stride[0] - padding[0] + kh
                for kw in range(window[1]):
                    v = ow * stride[1] - padding[1] + kw
                    if h < 0 or h >= H or v < 0 or v >= W:  # the padding is −∞: it never wins
                        continue
                    place = kh * window[1] + kw
                    for c in range(C):
                        value = x[n, h, v, c]
                        # strictly greater: a tie goes to the first; unequal to itself: a NaN must not be hidden
                        if empty or value > y[n, oh, ow, c] or value != value:
                            y[n, oh, ow, c] = value
                            argmax[n, oh, ow, c] = place
                    empty = False


@kernel
def _backward(dy, argmax, dx, window, stride, padding):
    N, H, _, C = dx.shape
    _, OH, OW, _ = dy.shape
    for task in prange(N * H):  # a row of dx belongs to one thread, so overlapping windows need no atomic additions
        n, h = divmod(np.intp(task), H)
        for kh in range(window[0]):
            oh, remainder = divmod(h + padding[0] - kh, stride[0])
            if remainder != 0 or oh < 0 or oh >= OH:
                continue
            for ow in range(OW):
                for kw in range(window[1]):
                    v = ow * stride[1] - padding[1] + kw  # no winner lies outside: v needs no check
                    place = kh * window[1] + kw
                    for c in range(C):
                        if argmax[n, oh, ow, c] == place:
                            dx[n, h, v, c] += dy[n, oh, ow, c]


def maxpool2d_forward(x, kernel_size, stride=None, padding=0):
    """y[n, c, oh, ow] = the largest x[n, c, oh·stride − padding + kh, ow·stride − padding + kw] inside the image.

    x (N, C, H, W) → y (N, C, OH, OW), OH = (H + 2·padding − KH) // stride + 1. `stride` defaults to the window.
    Integers or (height, width) pairs. A tie goes to the first maximum in row order; a NaN in a window is its maximum.

    Cost: N·C·OH·OW·KH·KW comparisons; the cache keeps one byte for each output (two for windows past 256 places).
    Raises ValueError if a window does not fit, or could lie in the padding alone.
    """
    check_nchw("maxpool2d", x)
    window, padding = pair(kernel_size, "kernel_size"), pair(padding, "padding")
    stride = window if stride is None else pair(stride, "stride")
    if padding[0] > window[0] // 2 or padding[1] > window[1] // 2:
        raise ValueError(f"maxpool2d: padding {padding} must be at most half the window {window}")
    N, C, H, W = x.shape
    OH, OW = output_size("maxpool2d", (H, W), window, stride, padding)
    y = np.empty((N, OH, OW, C), x.dtype)
    argmax = np.empty(y.shape, np.min_scalar_type(window[0] * window[1] - 1))
    _forward(nhwc(x), y, argmax, window, stride, padding)
    return nchw(y), MaxPoolCache(argmax, x.shape, window, stride, padding, x.dtype)


def maxpool2d_backward(dy, cache: MaxPoolCache):
    """dx (N, C, H, W): each dy (N, C, OH, OW) added where its window's maximum stood, zero elsewhere."""
    argmax, (N, C, H, W), window, stride, padding, dtype = cache
    _, OH, OW, _ = argmax.shape
    check_gradient("maxpool2d_backward", dy, (N, C, OH, OW), dtype)
    dx = np.zeros((N, H, W, C), dtype)
    _backward(nhwc(dy), argmax, dx, window, stride, padding)
    return nchw(dx)
