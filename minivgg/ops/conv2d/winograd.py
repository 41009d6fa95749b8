"""Winograd: four times fewer multiplications for a 3×3 convolution, by multiplying polynomials at points.

The idea, in one dimension (`toom_cook` derives it): m outputs of a filter g of 3, seen in n = m + 2 inputs d, are

    y = Aᵀ [(G·g) ⊙ (Bᵀ·d)]

with n multiplications in place of 3·m. In two dimensions the transforms are applied to columns and then rows, and
F(4×4, 3×3) takes 36 multiplications where the definition takes 144. With C channels and O outputs, each of the
36 places of the transformed tile becomes a matrix product of its own, (tiles, C) · (C, O), and there the time is
spent. `in_numpy` below is all of it, in fifteen lines.

grad_input is the same convolution, of dy with the filters turned by 180° and (O, C) swapped. grad_weight is a
correlation with 3×3 outputs, whose filters are the tiles of dy: F(3×3, 4×4), on the same points.

The price is accuracy: values are scaled up and then cancel. F(2×2) is as accurate as the definition, F(4×4) loses half
a digit (‖err‖/‖ref‖ 1e-6 to 3e-6 in float32 on VGG's layers). It is relative to the largest number of a tile, and an
infinity or NaN would fill its tile with NaNs: on a CPU, `taps` does it again where that was seen.

On a GPU the same is done by winograd.cu, which `winograd_on_gpu` launches.

Cost of F(m×m): 2·(m+2)²/m²·N·OH·OW·C·O FLOP (2.25 for m = 4, 4 for m = 2, against 9) and the transforms.
Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks (2015), §4 and §5.
"""

from functools import partial

import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import nchw, nhwc, on_gpu
from minivgg.backends.jit import threads
from minivgg.backends.microkernel import COLUMNS
from minivgg.backends.simd import LANES
from minivgg.ops.conv2d import taps
from minivgg.ops.conv2d import winograd_kernels as kernels
from minivgg.ops.conv2d import winograd_on_gpu as gpu
from minivgg.ops.conv2d.packing import epilogue, round_up, streams
from minivgg.ops.conv2d.spec import Algorithm, ConvSpec
from minivgg.ops.conv2d.toom_cook import growth, matrices, sandwich

_GROUP = 56  # tiles of one task, or nearly so: four blocks of the micro-kernel
_CHUNK = 8 << 20  # bytes of transformed tiles that the third-level cache holds without effort


def in_numpy(x, w, m=4):
    """The lesson: x (N, C, H, W), w (O, C, 3, 3) → y (N, O, H − 2, W − 2), both multiples of m, without padding."""
    outputs, filters, inputs = matrices(m, 3)
    N, _, H, W = x.shape
    rows, columns = (H - 2) // m, (W - 2) // m
    # a tile is a list of lists of arrays: element (i, j) of every tile of every image, at once
    tile = [[x[:, :, i : i + H - m - 1 : m, j : j + W - m - 1 : m] for j in range(m + 2)] for i in range(m + 2)]
    V = sandwich(inputs, tile)
    U = sandwich(filters, [[w[:, :, i, j] for j in range(3)] for i in range(3)])
    M = [[np.einsum("oc,nchw->nohw", u, v) for u, v in zip(*row, strict=True)] for row in zip(U, V, strict=True)]
    y = np.array(sandwich(outputs, M), x.dtype)  # (m, m, N, O, rows, columns)
    return y.transpose(2, 3, 4, 0, 5, 1).reshape(N, len(w), rows * m, columns * m)


def _stride(channels: int) -> int:
    return round_up(channels, COLUMNS) + LANES


def _grid(m: int, N: int, H: int, W: int, pooled=False) -> kernels.Grid:
    rows, columns = -(-H // m), -(-W // m)
    return kernels.Grid(m, rows, columns, N * rows * columns, pooled)


def _padded(w):
    """w (O, 3, 3, C) with O and C padded by zeros to whole vectors; w itself if they are."""
    O, _, _, C = w.shape
    if O % LANES == 0 and C % LANES == 0:
        return w
    wide = np.zeros((round_up(O, LANES), 3, 3, round_up(C, LANES)), w.dtype)
    wide[:O, :, :, :C] = w
    return wide


def transform(m: int, w, rotated=False):
    """w (O, C, 3, 3) → its transform (P, blocks, C, 32) for `forward`; `rotated`, (P, blocks, O, 32) for grad_input."""
    if on_gpu(w):
        return gpu.transform_on_gpu(m, w, rotated)
    w = nhwc(w)
    O, _, _, C = w.shape
    outputs, channels = (C, O) if rotated else (O, C)
    shape = ((m + 2) ** 2, -(-outputs // COLUMNS), channels, COLUMNS)
    U = workspace.buffer("winograd filters", shape, w.dtype)
    run = kernels.transform_rotated_filters if rotated else kernels.transform_filters
    run(m, _padded(w), U, int(streams(U, LANES)))
    return U


def _tiling(tiles: int, blocks: int, workers: int) -> tuple[int, int]:
    """(tiles, blocks of 32 outputs) of one task.

    Filters are read once for each group of tiles, so a group should be large; its transform should not leave the
    cache, so it should be small: between 40 and 100 tiles all is well. Few tiles are shared out by outputs instead.
    """
    groups = max(1, round(tiles / _GROUP))
    if groups >= workers:
        groups = round_up(groups, workers)
    parts = -(-workers // groups) if groups < workers else 1
    return _apart(-(-tiles // groups)), -(-blocks // parts)


def _apart(tiles: int) -> int:
    """How many tiles a plane has room for: so that planes are no power of two apart, and may be in the cache together.

    A row of a plane is an odd number of cache lines (`_stride`). With 64 rows, all 36 numbers of a transformed tile
    would lie in the one set of the first-level cache that serves every 4096th byte: the transforms took twice as
    long, a whole convolution a tenth to a fifth more.
    """
    even = round_up(tiles, 2)
    return even + 2 if even % 32 == 0 else even


def _convolve(x, U, y, grid, offset, bias=None, relu=False, mask=None) -> bool:
    """Fill y, and say whether all was finite."""
    C, blocks, workers = x.shape[3], U.shape[1], threads()
    T, at_once = _tiling(grid.tiles, blocks, workers)
    P = len(U)
    V = workspace.buffer("winograd inputs", (workers, P, T, _stride(C)), x.dtype)
    M = workspace.buffer("winograd outputs", (workers, P, T, at_once * COLUMNS + LANES), x.dtype)
    patches = workspace.buffer("winograd patches", (workers, P * max(_stride(C), at_once * COLUMNS)), x.dtype)
    after = epilogue(y, blocks, bias, relu, mask)
    watched = taps.watch(workers, x.dtype)
    kernels.convolve(x, U, y, *after, int(streams(y, LANES)), grid, offset, V, M, patches, at_once, watched)
    return not watched.any()


def _tiles_at_once(tiles: int, tile_bytes: int, gradient_bytes: int) -> int:
    """Tiles between two additions to the gradient, which reads and writes all of it: more of them if it is large."""
    return max(1, min(tiles, max(_CHUNK, 2 * gradient_bytes) // tile_bytes))


def forward(m, x, w, spec: ConvSpec, bias=None, relu=False, prepared=None, pool=False):
    if on_gpu(x):
        return gpu.forward_on_gpu(m, x, w, spec, bias, relu, prepared, pool)
    halves = 2 if pool else 1
    y = workspace.empty((spec.N, spec.OH // halves, spec.OW // halves, spec.O), x.dtype)
    grid = _grid(m, spec.N, spec.OH, spec.OW, pool)
    U = transform(m, w) if prepared is None else prepared
    finite = _convolve(nhwc(x), U, y, grid, spec.padding, bias, relu)
    return nchw(y) if finite else taps.forward(x, w, spec, bias, relu, pool)


def grad_input(m, dy, w, spec: ConvSpec, mask=None):
    if on_gpu(dy):
        return gpu.grad_input_on_gpu(m, dy, w, spec, mask)
    dx = workspace.empty((spec.N, spec.H, spec.W, spec.C), dy.dtype)
    offset = (2 - spec.padding[0], 2 - spec.padding[1])
    grid = _grid(m, spec.N, spec.H, spec.W)
    finite = _convolve(nhwc(dy), transform(m, w, rotated=True), dx, grid, offset, mask=mask)
    return nchw(dx) if finite else taps.grad_input(dy, w, spec, mask)


def grad_weight(m, dy, x, spec: ConvSpec):
    if on_gpu(x):
        return gpu.grad_weight_on_gpu(m, dy, x, spec)
    given, dy, x = (dy, x), nhwc(dy), nhwc(x)
    grid = _grid(m, spec.N, spec.OH, spec.OW)
    P = (m + 2) ** 2
    c_stride, o_stride, workers = _stride(spec.C), _stride(spec.O), threads()
    T = _apart(_tiles_at_once(grid.tiles, P * (c_stride + o_stride) * x.itemsize, P * spec.O * c_stride * x.itemsize))
    V = workspace.buffer("winograd inputs", (P, T, c_stride), x.dtype)
    D = workspace.buffer("winograd outputs", (P, T, o_stride), x.dtype)
    G = workspace.buffer("winograd filters", (P, round_up(spec.O, 2), c_stride), x.dtype)
    patches = workspace.buffer("winograd patches", (workers, P * max(c_stride, o_stride)), x.dtype)
    kernels.correlate(x, dy, grid, spec.padding, V, D, G, patches)
    dw = workspace.empty((spec.O, 3, 3, round_up(spec.C, LANES)), x.dtype)
    kernels.gradient_of_filters(m, G, dw)
    if not taps.all_finite(dw):
        return taps.grad_weight(*given, spec)
    return nchw(np.ascontiguousarray(dw[..., : spec.C]))


def supports(spec: ConvSpec, device: str) -> str | None:
    if (spec.KH, spec.KW, *spec.stride) != (3, 3, 1, 1):
        return "it is made for 3×3 filters with stride 1"
    return None if max(spec.padding) <= 2 else "its padding must be at most 2"


def _row(name: str, m: int, reason: str) -> Algorithm:
    passes = [partial(f, m) for f in (forward, grad_input, grad_weight)]
    return Algorithm(
        name,
        reason,
        *passes,
        supports,
        fuses=True,
        pools=True,
        prepare=partial(transform, m),
        mixes=("gpu",),
        growth=max(growth(m, 3), growth(3, m)),
    )


ALGORITHMS = (
    _row("winograd2", 2, "F(2×2, 3×3): 2.25 times fewer multiplications, as accurate as the definition"),
    _row("winograd", 4, "F(4×4, 3×3): 4 times fewer multiplications, half a digit less accurate"),
)
