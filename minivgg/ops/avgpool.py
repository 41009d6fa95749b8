"""Average pooling, with windows of one size or (adaptive) as many windows as the output has pixels.

Both are one loop over windows given as arrays: where each begins, where it ends, and what its sum is divided by.
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import constant_on, empty_on, nchw, nhwc, on_gpu
from minivgg.backends.jit import kernel, prange
from minivgg.ops.windows import check_gradient, check_nchw, check_window, output_size, pair


class AvgPoolCache(NamedTuple):
    """`rows` and `cols` (2, OH) and (2, OW): each window's begin and end. `area` (OH, OW): what divides its sum."""

    x_shape: tuple
    rows: np.ndarray
    cols: np.ndarray
    area: np.ndarray


@kernel
def _forward(x, y, rows, cols, area):
    N, OH, OW, C = y.shape
    for task in prange(N * OH):
        n, oh = divmod(np.intp(task), OH)
        for ow in range(OW):
            for c in range(C):
                y[n, oh, ow, c] = 0
            for h in range(rows[0, oh], rows[1, oh]):
                for w in range(cols[0, ow], cols[1, ow]):
                    for c in range(C):
                        y[n, oh, ow, c] += x[n, h, w, c]
            for c in range(C):
                y[n, oh, ow, c] /= area[oh, ow]


@kernel
def _backward(dy, dx, rows, cols, area):
    N, H, _, C = dx.shape
    _, OH, OW, _ = dy.shape
    for task in prange(N * H):  # a row of dx belongs to one thread, also where windows overlap
        n, h = divmod(np.intp(task), H)
        for oh in range(OH):
            if rows[0, oh] <= h < rows[1, oh]:
                for ow in range(OW):
                    for w in range(cols[0, ow], cols[1, ow]):
                        for c in range(C):
                            dx[n, h, w, c] += dy[n, oh, ow, c] / area[oh, ow]


def _forward_on_gpu(x, y, rows, cols, area):
    _launch_on_gpu("forward", y, x, y, rows, cols, area, x.shape[1:3])


def _backward_on_gpu(dy, dx, rows, cols, area):
    covering = []  # of each row, and of each column: the first window that covers it, and the one behind the last
    for (begins, ends), size in zip((rows, cols), dx.shape[1:3], strict=True):
        places = np.arange(size)
        covering.append(np.stack([np.searchsorted(ends, places, "right"), np.searchsorted(begins, places, "right")]))
    _launch_on_gpu("backward", dx, dy, dx, *covering, area, dx.shape[1:3])


def _launch_on_gpu(name: str, result, source, target, rows, cols, area, size: tuple):
    N, H, W, C = result.shape
    constants = (constant_on(result, a) for a in (rows.astype(np.int32), cols.astype(np.int32), area))
    launch = cuda.kernel("ops/avgpool.cu", name, T=result.dtype)
    launch.over_pixels(N * H * W, C, source, target, *constants, *size, *area.shape)


def _pool(x, rows, cols, area):
    y = empty_on(x)((x.shape[0], rows.shape[1], cols.shape[1], x.shape[1]), x.dtype)
    area = area.astype(x.dtype)
    forward = _forward_on_gpu if on_gpu(x) else _forward
    forward(nhwc(x), y, rows, cols, area)
    return nchw(y), AvgPoolCache(x.shape, rows, cols, area)


def avgpool2d_forward(x, kernel_size, stride=None, padding=0, count_include_pad=True):
    """y[n, c, oh, ow] = the mean of x over the window that begins at (oh, ow)·stride − padding.

    x (N, C, H, W) → y (N, C, OH, OW), OH = (H + 2·padding − KH) // stride + 1. `stride` defaults to the window. Padded
    places count as zeros, or, with `count_include_pad=False`, not at all.

    Cost: N·C·OH·OW·KH·KW additions. Raises ValueError if a window does not fit, or could lie in the padding alone.
    """
    check_nchw("avgpool2d", x, halves=True)
    window, stride, padding = check_window("avgpool2d", kernel_size, stride, padding, pools=True)
    size = x.shape[2:]
    bounds = []
    for s, o, k, t, p in zip(
        size, output_size("avgpool2d", size, window, stride, padding), window, stride, padding, strict=True
    ):
        begin = np.arange(o) * t - p
        bounds.append(np.stack([np.maximum(begin, 0), np.minimum(begin + k, s)]))
    rows, cols = bounds
    if count_include_pad:
        area = np.full((rows.shape[1], cols.shape[1]), window[0] * window[1])
    else:
        area = np.outer(rows[1] - rows[0], cols[1] - cols[0])
    return _pool(x, rows, cols, area)


def adaptive_avgpool2d_forward(x, output_size):
    """x (N, C, H, W) → y (N, C, OH, OW) = `output_size`, each output the mean of its share of the input.

    Window i of OH covers rows ⌊i·H/OH⌋ to ⌈(i+1)·H/OH⌉ (PyTorch's rule), so windows may overlap by a row, and an
    output larger than the input repeats pixels. Backward is `avgpool2d_backward`. Cost: about N·C·H·W additions.
    """
    check_nchw("adaptive_avgpool2d", x, halves=True)
    bounds = []
    for s, o in zip(x.shape[2:], pair(output_size, "adaptive_avgpool2d: output_size", 1), strict=True):
        i = np.arange(o)
        bounds.append(np.stack([i * s // o, -(-(i + 1) * s // o)]))
    rows, cols = bounds
    return _pool(x, rows, cols, np.outer(rows[1] - rows[0], cols[1] - cols[0]))


def avgpool2d_backward(dy, cache: AvgPoolCache):
    """dx (N, C, H, W): every dy (N, C, OH, OW) shared out evenly over its window."""
    (N, C, H, W), rows, cols, area = cache
    check_gradient("avgpool2d_backward", dy, (N, C, *area.shape), area.dtype)
    if on_gpu(dy):
        dx = empty_on(dy)((N, H, W, C), dy.dtype)
        _backward_on_gpu(nhwc(dy), dx, rows, cols, area)
    else:
        dx = np.zeros((N, H, W, C), dy.dtype)
        _backward(nhwc(dy), dx, rows, cols, area)
    return nchw(dx)


adaptive_avgpool2d_backward = avgpool2d_backward
