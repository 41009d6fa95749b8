"""Implicit GEMM: im2col whose matrix never exists, but for the few rows that the micro-kernel is about to multiply.

As in im2col, a row of the matrix is what one output pixel looks at, KH·KW·C numbers, and the convolution is the product
with the filters. But only some dozens of rows are gathered at a time, into a *panel* that stays in the second-level
cache, and they are multiplied at once:

    forward      y (pixels, O)   = panel (pixels, K) · w (K, O)               K = KH·KW·C
    grad_weight  dw (K, O)      += panelᵀ (K, pixels) · dy (pixels, O)
    grad_input   dx              = forward of dy, with filters turned by 180° and a stride of zeros between its pixels

The pixels of a panel may be any, of several rows or images: so this is the way for maps of few pixels, whose rows are
too short to keep the micro-kernel busy, and it takes any geometry. The gathering is a copy of K numbers a pixel,
against 2·K·O operations.

Cost: 2·N·OH·OW·O·C·KH·KW FLOP a pass; for grad_input, stride² times as many.
Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning (2014), §3.
"""

import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import nhwc, on_gpu
from minivgg.backends.jit import kernel, njit, prange, threads
from minivgg.backends.microkernel import COLUMNS, ROWS, product
from minivgg.backends.simd import LANES
from minivgg.ops.conv2d import taps
from minivgg.ops.conv2d.direct import pack, two_passes
from minivgg.ops.conv2d.packing import epilogue, finish, round_up, unpack_gradient, widened_parts
from minivgg.ops.conv2d.spec import EVERY_DTYPE, Algorithm, ConvSpec
from minivgg.ops.conv2d.tiling import filters_on_gpu, forward_on_gpu, grad_input_on_gpu, grad_weight_on_gpu

_PIXELS = 2 * ROWS  # of a panel
_GATHERED = 4 << 20  # bytes of panels that the last cache holds without effort


@njit(cache=True)
def _gather(x, first, count, out, window, stride, offset, dilation, panel):
    """panel (pixels, KH·KW·C) = what the output pixels first … first + count of an (OH, OW) = `out` map look at."""
    _, H, W, C = x.shape
    for p in range(count):
        n, rest = divmod(first + p, out[0] * out[1])
        oh, ow = divmod(rest, out[1])
        for kh in range(window[0]):
            h, odd = divmod(oh * stride[0] - offset[0] + kh, dilation[0])
            for kw in range(window[1]):
                v, between = divmod(ow * stride[1] - offset[1] + kw, dilation[1])
                at = (kh * window[1] + kw) * C
                to = panel[p, at : at + C]
                if odd == 0 and between == 0 and 0 <= h < H and 0 <= v < W:
                    run = x[n, h, v]
                    for c in range(C):
                        to[c] = run[c]
                else:
                    to[:] = 0


@kernel
def _convolve(x, filters, y, bias, floor, mask, masked, window, stride, offset, dilation, panels, parts, watched):
    """y (N, OH, OW, O): a task is one panel of pixels for one part of the blocks of outputs."""
    N, OH, OW, O = y.shape
    blocks, K, _ = filters.shape
    workers = len(panels)
    pixels = N * OH * OW
    tasks = (pixels + _PIXELS - 1) // _PIXELS * parts
    results, kept = y.reshape(-1), mask.reshape(-1)
    for index in prange(workers):
        worker = np.intp(index)
        panel = panels[worker]
        sums = np.empty(_PIXELS * COLUMNS, x.dtype)
        gathered = -1
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            group, part = divmod(task, parts)
            first, count = group * _PIXELS, min(_PIXELS, pixels - group * _PIXELS)
            if group != gathered:
                _gather(x, first, count, (OH, OW), window, stride, offset, dilation, panel)
                gathered = group
            for block in range(part * blocks // parts, (part + 1) * blocks // parts):
                product(
                    count, panel, 0, (0, K, 1), filters, block * K * COLUMNS, (0, COLUMNS), sums, 0, COLUMNS, (1, K), 0
                )
                finish(
                    count, sums, block * COLUMNS, bias, floor, kept, masked, results, first * O, O,
                    watched, worker * LANES,
                )  # fmt: skip


@kernel
def _correlate(x, dy, dw, window, stride, padding, out, panel):
    """dw (K, O) += panelᵀ · dy: all threads gather, and then multiply, each in filters of its own."""
    pixels, O = dy.shape
    K = window[0] * window[1] * x.shape[3]
    blocks, parts = O // COLUMNS, (K + ROWS - 1) // ROWS
    at_once = len(panel)
    stretch = panel.shape[1]
    for first in range(0, pixels, at_once):
        count = min(at_once, pixels - first)
        for p in prange(count):
            i = np.intp(p)
            _gather(x, first + i, 1, out, window, stride, padding, (1, 1), panel[i : i + 1])
        for task in prange(blocks * parts):
            part, block = divmod(np.intp(task), blocks)
            i = part * ROWS
            product(
                min(ROWS, K - i), panel, i, (0, 1, stretch), dy, first * O + block * COLUMNS, (0, O),
                dw, i * O + block * COLUMNS, O, (1, count), 1,
            )  # fmt: skip


def _run(x, filters, y, window, stride, offset, dilation, bias=None, relu=False, mask=None) -> bool:
    N, OH, OW, _ = y.shape
    blocks, K, _ = filters.shape
    groups = -(-N * OH * OW // _PIXELS)
    parts = min(blocks, -(-2 * threads() // groups)) if groups < 2 * threads() else 1
    panels = workspace.buffer("implicit gemm panels", (threads(), _PIXELS, K), x.dtype)
    after, watched = epilogue(y, blocks, bias, relu, mask), taps.watch(len(panels), x.dtype)
    _convolve(x, filters, y, *after, window, stride, offset, dilation, panels, parts, watched)
    return not watched.any()


_forward_on_cpu, _grad_input_on_cpu = two_passes(_run)


def forward(x, w, spec: ConvSpec, **options):
    return (forward_on_gpu if on_gpu(x) else _forward_on_cpu)(x, w, spec, **options)


def grad_input(dy, w, spec: ConvSpec, mask=None):
    return (grad_input_on_gpu if on_gpu(dy) else _grad_input_on_cpu)(dy, w, spec, mask)


def grad_weight(dy, x, spec: ConvSpec):
    if on_gpu(x):
        return grad_weight_on_gpu(dy, x, spec)
    stretch = -(-spec.columns // 2) * 2  # an odd block of rows reads and writes one more
    at_once = max(1, min(spec.N * spec.OH * spec.OW, _GATHERED // (stretch * x.itemsize)))
    panel = workspace.buffer("implicit gemm panels", (at_once, stretch), x.dtype)
    dw = workspace.buffer("direct filters", (stretch, round_up(spec.O, COLUMNS)), dy.dtype)
    dw[:] = 0
    for pixels, upstream, padding in widened_parts(nhwc(x), nhwc(dy), spec):
        rows = upstream.reshape(-1, dw.shape[1])
        _correlate(pixels, rows, dw, (spec.KH, spec.KW), spec.stride, padding, upstream.shape[1:3], panel)
    dw = unpack_gradient(dw.reshape(1, *dw.shape), spec)
    return dw if taps.all_finite(dw) else taps.grad_weight(dy, x, spec)


def prepare(w):
    """The filters as forward's kernel reads them, on the CPU or on a GPU."""
    return filters_on_gpu(w) if on_gpu(w) else pack(w)


ALGORITHM = Algorithm(
    "implicit_gemm",
    "im2col a few rows at a time, in the cache: exact, any geometry, good for tiny maps",
    forward,
    grad_input,
    grad_weight,
    fuses=True,
    prepare=prepare,
    dtypes=EVERY_DTYPE,
)
