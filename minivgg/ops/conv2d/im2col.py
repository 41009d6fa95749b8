"""im2col: copy what every output pixel looks at into one row of a matrix, and let one matrix product do the rest.

With channels-last memory everything is a row of contiguous runs:

    columns  (rows, KH·KW·C)    row = one output pixel (n, oh, ow)
    filters  (O,    KH·KW·C)    row = one filter, memory order (O, KH, KW, C)
    y        (rows, O)          = columns · filtersᵀ                  forward
    dw       (O, KH·KW·C)       = dyᵀ · columns                       grad_weight
    dcolumns (rows, KH·KW·C)    = dy · filters, added back into dx    grad_input; the adding back is col2im

The matrix repeats every input pixel up to KH·KW times: 110 MiB an image for VGG-16's conv1_2. So it is never held
whole. Output rows are taken in chunks that fit the workspace (64 MiB unless told; see `backends.workspace`), and the
chunk's memory is reused. On a GPU (`im2col.cu`) chunks are made smaller still where memory is short, and the product is
cuBLAS's. A 1×1 convolution with stride 1 gathers nothing: its columns *are* x. In float16, each chunk's product is
rounded before it is added to dw or dx, in float32.

Cost: 2·N·OH·OW·O·KH·KW·C FLOP a pass, and the column matrix once written and once read.
Source: Chellapilla, Puri, Simard, High Performance Convolutional Neural Networks for Document Processing (2006), §4.1.
"""

import functools
import warnings

from minivgg.backends import cuda, workspace
from minivgg.backends.array import nchw, nhwc, on_gpu, xp_of
from minivgg.backends.jit import kernel, prange
from minivgg.ops.conv2d import taps
from minivgg.ops.conv2d.spec import EVERY_DTYPE, Algorithm, ConvSpec
from minivgg.ops.gemm import gemm


@kernel
def _gather(x, columns, first, stride, padding):
    """im2col of the output rows first, first + 1, …: x (N, H, W, C) → columns (rows, OW, KH, KW, C)."""
    _, H, W, C = x.shape
    rows, OW, KH, KW, _ = columns.shape
    OH = (H + 2 * padding[0] - KH) // stride[0] + 1
    for r in prange(rows):
        n, oh = divmod(first + r, OH)
        for ow in range(OW):
            for kh in range(KH):
                h = oh * stride[0] - padding[0] + kh
                for kw in range(KW):
                    v = ow * stride[1] - padding[1] + kw
                    if 0 <= h < H and 0 <= v < W:
                        for c in range(C):
                            columns[r, ow, kh, kw, c] = x[n, h, v, c]
                    else:
                        for c in range(C):
                            columns[r, ow, kh, kw, c] = 0


@kernel
def _scatter_add(columns, dx, first, stride, padding):
    """col2im, the adjoint of `_gather`: add columns (rows, OW, KH, KW, C) onto dx (N, H, W, C) where they came from.

    Every row of dx that the chunk touches is the work of one thread, which looks for the columns that overlap it: no
    two threads write to the same place, and the order of the additions is always the same.
    """
    _, H, W, C = dx.shape
    rows, OW, KH, KW, _ = columns.shape
    OH = (H + 2 * padding[0] - KH) // stride[0] + 1
    first_image = first // OH
    images = (first + rows - 1) // OH - first_image + 1
    for task in prange(images * H):
        n, h = first_image + task // H, task % H
        for kh in range(KH):
            oh, remainder = divmod(h + padding[0] - kh, stride[0])
            r = n * OH + oh - first
            if remainder != 0 or oh < 0 or oh >= OH or r < 0 or r >= rows:
                continue
            for ow in range(OW):
                for kw in range(KW):
                    v = ow * stride[1] - padding[1] + kw
                    if 0 <= v < W:
                        for c in range(C):
                            dx[n, h, v, c] += columns[r, ow, kh, kw, c]


def _chunks(spec: ConvSpec, like):
    """Yield (first output row, column matrix (rows, OW, KH, KW, C) to fill), together all N·OH output rows."""
    shape, dtype, rows = (spec.OW, spec.KH, spec.KW, spec.C), like.dtype, spec.N * spec.OH
    at_once = max(1, min(rows, workspace.limit() // (spec.OW * spec.columns * dtype.itemsize)))
    room = _room_on_gpu(like, at_once, shape) if on_gpu(like) else None
    at_once = at_once if room is None else len(room)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        yield first, workspace.buffer("im2col", (count, *shape), dtype) if room is None else room[:count]


def _room_on_gpu(like, rows: int, shape: tuple):
    """Memory for so many rows of columns, or for a half, a quarter, … of them if there is no more.

    Nothing has been computed yet that could be lost. Raises CuPy's OutOfMemoryError, a MemoryError, where not even one
    row fits.
    """
    while True:
        try:
            return _take_on_gpu(like, (rows, *shape))
        except MemoryError:
            if rows == 1:
                raise
            rows //= 2
            _say_that_memory_is_short_on_gpu()


def _take_on_gpu(like, shape: tuple):
    return xp_of(like).empty(shape, like.dtype)


@functools.cache  # once
def _say_that_memory_is_short_on_gpu() -> None:
    warnings.warn(
        "im2col: the GPU's memory is too short for the workspace that minivgg may use, so it works in smaller chunks; "
        "set MINIVGG_WORKSPACE to fewer MiB, or make the batch smaller",
        RuntimeWarning,
        stacklevel=2,
    )


def _gather_on_gpu(x, columns, first: int, spec: ConvSpec) -> None:
    launch = cuda.kernel("ops/conv2d/im2col.cu", "im2col", T=x.dtype)
    launch.over(columns.size, x, columns, *spec.sizes, first)


def _scatter_add_on_gpu(columns, dx, first: int, spec: ConvSpec) -> None:
    images = (first + len(columns) - 1) // spec.OH - first // spec.OH + 1
    launch = cuda.kernel("ops/conv2d/im2col.cu", "col2im", T=columns.dtype)
    launch.over(images * dx[0].size, columns, dx, *spec.sizes, first, len(columns))


def _columns_of(x, spec: ConvSpec):
    """Yield (slice of output pixels, their columns (pixels, KH·KW·C)), chunk by chunk."""
    if spec.is_pointwise:
        yield slice(None), nhwc(x).reshape(-1, spec.C)
        return
    x = nhwc(x)
    for first, columns in _chunks(spec, x):
        if on_gpu(x):
            _gather_on_gpu(x, columns, first, spec)
        else:
            _gather(x, columns, first, spec.stride, spec.padding)
        yield _pixels(first, columns), columns.reshape(-1, spec.columns)


def _pixels(first: int, columns) -> slice:
    rows, OW = columns.shape[:2]
    return slice(first * OW, (first + rows) * OW)


def _pads_nothing(spec: ConvSpec) -> bool:
    """Whether there are no zeros among the columns, which times ∞ would be NaN."""
    return spec.padding == (0, 0)


def forward(x, w, spec: ConvSpec):
    filters = nhwc(w).reshape(spec.O, spec.columns)
    y = xp_of(x).empty((spec.N * spec.OH * spec.OW, spec.O), x.dtype)
    for pixels, columns in _columns_of(x, spec):
        gemm(columns, filters.T, out=y[pixels])
    y = nchw(y.reshape(spec.N, spec.OH, spec.OW, spec.O))
    return y if on_gpu(y) or _pads_nothing(spec) or taps.all_finite(y) else taps.forward(x, w, spec)


def grad_weight(dy, x, spec: ConvSpec):
    rows = nhwc(dy).reshape(-1, spec.O)
    dw = xp_of(dy).zeros((spec.O, spec.columns), cuda.accumulator(dy.dtype))
    for pixels, columns in _columns_of(x, spec):
        dw += gemm(rows[pixels].T, columns)
    dw = nchw(dw.astype(dy.dtype, copy=False).reshape(spec.O, spec.KH, spec.KW, spec.C))
    return dw if on_gpu(dw) or _pads_nothing(spec) or taps.all_finite(dw) else taps.grad_weight(dy, x, spec)


def grad_input(dy, w, spec: ConvSpec):
    dy = nhwc(dy).reshape(-1, spec.O)
    filters = nhwc(w).reshape(spec.O, spec.columns)
    if spec.is_pointwise:
        return nchw(gemm(dy, filters).reshape(spec.N, spec.H, spec.W, spec.C))
    dx = xp_of(dy).zeros((spec.N, spec.H, spec.W, spec.C), cuda.accumulator(dy.dtype))
    for first, columns in _chunks(spec, dy):
        gemm(dy[_pixels(first, columns)], filters, out=columns.reshape(-1, spec.columns))
        if on_gpu(dx):
            _scatter_add_on_gpu(columns, dx, first, spec)
        else:
            _scatter_add(columns, dx, first, spec.stride, spec.padding)
    return nchw(dx.astype(dy.dtype, copy=False))


ALGORITHM = Algorithm(
    "im2col",
    "any geometry, one BLAS product in bounded memory",
    forward,
    grad_input,
    grad_weight,
    dtypes=EVERY_DTYPE,
)
