"""Max-pooling: the largest value of each window; its gradient goes back to where that value stood.

VGG pools after a ReLU, and max(ReLU(x)) = ReLU(max(x)). So `relu=True` does both in the one pass over x: the ReLU's own
output, four times as large as the pool's, is neither written nor kept.
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import empty_on, nchw, nhwc, on_gpu
from minivgg.backends.jit import kernel, njit, prange
from minivgg.ops.windows import check_gradient, check_nchw, check_window, output_size


class MaxPoolCache(NamedTuple):
    """`argmax` (N, OH, OW, C) says which of the KH·KW places of its window won, as kh·KW + kw: one byte, as a rule.

    KH·KW means nobody: the ReLU has cut off the whole window.
    """

    argmax: np.ndarray
    x_shape: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dtype: np.dtype


@kernel
def _forward(x, y, argmax, window, stride, padding, relu):
    N, H, W, C = x.shape
    _, OH, OW, _ = y.shape
    for task in prange(N * OH):
        n, oh = divmod(np.intp(task), OH)
        for ow in range(OW):
            first = True
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
                        if first or value > y[n, oh, ow, c] or value != value:
                            y[n, oh, ow, c] = value
                            argmax[n, oh, ow, c] = place
                    first = False
            if relu:
                for c in range(C):
                    if not y[n, oh, ow, c] > 0:
                        argmax[n, oh, ow, c] = window[0] * window[1]
                    if y[n, oh, ow, c] <= 0:  # a NaN passes, but as in ReLU its gradient does not
                        y[n, oh, ow, c] = 0


@njit(cache=True)
def _better(value, place, best, winner):
    """What of two wins, and its place: as in `_forward`."""
    wins = value > best or value != value
    return value if wins else best, place if wins else winner


@kernel
def _forward_2x2(x, y, argmax, stride, relu):
    """`_forward` for VGG's window, without padding: one run over the channels, all in registers."""
    N, OH, OW, C = y.shape
    zero = y.dtype.type(0)
    for task in prange(N * OH):
        n, oh = divmod(np.intp(task), OH)
        h = oh * stride[0]
        for ow in range(OW):
            v = ow * stride[1]
            x0, x1, x2, x3 = x[n, h, v], x[n, h, v + 1], x[n, h + 1, v], x[n, h + 1, v + 1]
            to, where = y[n, oh, ow], argmax[n, oh, ow]
            for c in range(C):
                best, winner = _better(x1[c], 1, x0[c], 0)
                best, winner = _better(x2[c], 2, best, winner)
                best, winner = _better(x3[c], 3, best, winner)
                if relu:
                    winner = winner if best > 0 else 4
                    best = zero if best <= 0 else best
                to[c] = best
                where[c] = winner


@kernel
def _backward(dy, argmax, dx, window, stride, padding):
    N, H, W, C = dx.shape
    _, OH, OW, _ = dy.shape
    for task in prange(N * H):  # a row of dx belongs to one thread, so overlapping windows need no atomic additions
        n, h = divmod(np.intp(task), H)
        for v in range(W):
            for c in range(C):
                dx[n, h, v, c] = 0
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


@kernel
def _backward_side_by_side(dy, argmax, dx, window):
    """`_backward` for windows that neither overlap nor leave gaps: every pixel has one window, and is written once."""
    N, H, W, C = dx.shape
    _, OH, OW, _ = dy.shape
    KH, KW = window
    bands = (H + KH - 1) // KH
    for task in prange(N * bands):
        n, oh = divmod(np.intp(task), bands)
        for h in range(oh * KH, min(oh * KH + KH, H)):
            for v in range(W):
                to, ow = dx[n, h, v], v // KW
                if oh < OH and ow < OW:
                    gradient, where = dy[n, oh, ow], argmax[n, oh, ow]
                    place = (h - oh * KH) * KW + v - ow * KW
                    for c in range(C):
                        to[c] = gradient[c] if where[c] == place else 0
                else:  # the last rows and columns, too few for a window
                    for c in range(C):
                        to[c] = 0


def _forward_on_gpu(x, y, argmax, window, stride, padding, relu):
    launch = cuda.kernel("ops/maxpool.cu", "forward", T=x.dtype, A=argmax.dtype, RELU=relu)
    (N, H, W, C), (_, OH, OW, _) = x.shape, y.shape
    launch.over_pixels(N * OH * OW, C, x, y, argmax, H, W, OH, OW, *window, *stride, *padding)


def _backward_on_gpu(dy, argmax, dx, window, stride, padding):
    launch = cuda.kernel("ops/maxpool.cu", "backward", T=dx.dtype, A=argmax.dtype, RELU=False)
    (N, H, W, C), (_, OH, OW, _) = dx.shape, dy.shape
    launch.over_pixels(N * H * W, C, dy, argmax, dx, H, W, OH, OW, *window, *stride, *padding)


def maxpool2d_forward(x, kernel_size, stride=None, padding=0, *, ceil_mode=False, relu=False):
    """y[n, c, oh, ow] = the largest x[n, c, oh·stride − padding + kh, ow·stride − padding + kw] inside the image.

    x (N, C, H, W) → y (N, C, OH, OW), OH = (H + 2·padding − KH) // stride + 1. `stride` defaults to the window.
    Integers or (height, width) pairs. A tie goes to the first maximum in row order; a NaN in a window is its maximum.
    With `ceil_mode` (GoogLeNet's, from Caffe), OH is rounded up: the last window may reach past the image. With `relu`,
    y and its gradient are those of a ReLU followed by the pooling.

    Cost: N·C·OH·OW·KH·KW comparisons; x is read once, y and a byte for each output (two for windows past 256 places),
    which is all that the cache keeps, are written. Raises ValueError if a window does not fit, or could lie in the
    padding alone.
    """
    check_nchw("maxpool2d", x, halves=True)
    window, stride, padding = check_window("maxpool2d", kernel_size, stride, padding, pools=True)
    N, C, H, W = x.shape
    OH, OW = output_size("maxpool2d", (H, W), window, stride, padding, ceil_mode)
    empty = empty_on(x)
    y = empty((N, OH, OW, C), x.dtype)
    argmax = empty(y.shape, np.min_scalar_type(window[0] * window[1] - (not relu)))
    inside = (OH - 1) * stride[0] + window[0] <= H and (OW - 1) * stride[1] + window[1] <= W
    if on_gpu(x):
        _forward_on_gpu(nhwc(x), y, argmax, window, stride, padding, relu)
    elif window == (2, 2) and padding == (0, 0) and inside:
        _forward_2x2(nhwc(x), y, argmax, stride, relu)
    else:
        _forward(nhwc(x), y, argmax, window, stride, padding, relu)
    return nchw(y), MaxPoolCache(argmax, x.shape, window, stride, padding, x.dtype)


def maxpool2d_backward(dy, cache: MaxPoolCache):
    """dx (N, C, H, W): each dy (N, C, OH, OW) added where its window's maximum stood, zero elsewhere.

    Cost: dy and the argmax read once, dx written once, if the windows lie side by side (stride = window, no padding).
    """
    argmax, (N, C, H, W), window, stride, padding, dtype = cache
    _, OH, OW, _ = argmax.shape
    check_gradient("maxpool2d_backward", dy, (N, C, OH, OW), dtype)
    dx = empty_on(dy)((N, H, W, C), dtype)
    if on_gpu(dy):
        _backward_on_gpu(nhwc(dy), argmax, dx, window, stride, padding)
    elif stride == window and padding == (0, 0):
        _backward_side_by_side(nhwc(dy), argmax, dx, window)
    else:
        _backward(nhwc(dy), argmax, dx, window, stride, padding)
    return nchw(dx)
