"""The rungs of `direct.cu`: what each launches for the three passes, and how it cuts the work into blocks.

`COALESCED` and `TILED` are rungs of the GPU's ladder and nothing else: they are here to be read, measured, and compared
with what stands above and below them. `BLOCKED` is what "direct" is on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.backends import cuda, workspace
from minivgg.backends.array import nchw, nhwc, xp_of
from minivgg.ops.conv2d.spec import EVERY_DTYPE, Algorithm, ConvSpec

_FILE = "ops/conv2d/direct.cu"
_SHARED = 96 << 10  # bytes of shared memory a block may have: what every GPU since 2020 gives
_FILTERS = 20 << 10  # bytes of it for filters: all of a 3×3 window's, in float32
_BLOCKS = 1024  # that keep any GPU busy; a number for all of them, so that results do not depend on which it is
_LEAST_SHARE = 256  # pixels a block sums up in a filter's gradient: fewer would not repay writing the sum


def _kernel(name: str, dtype, run: int = 32) -> cuda.Kernel:
    """`run` bytes of each pixel's channels are in shared memory at a time, where a kernel has any there."""
    return cuda.kernel(_FILE, name, T=dtype, RUN=run)


@dataclass(frozen=True)
class Tile:
    """What a block computes: rows and columns of pixels, how many outputs of each; the shape of its threads; and of the
    gradient of the filters (rows of dw, outputs)."""

    rows: int
    columns: int
    outputs: int
    threads: tuple[int, ...]
    gradient: tuple[int, int]

    def window(self, view: tuple) -> int:
        """Pixels of the tile with its halo."""
        _, _, _, _, _, KH, KW, _, _, stride_h, stride_w, *_ = view
        return ((self.rows - 1) * stride_h + KH) * ((self.columns - 1) * stride_w + KW)


_TILED, _BLOCKED = Tile(4, 4, 32, (32, 16), (16, 32)), Tile(16, 8, 64, (128,), (128, 64))


def _forward_view(spec: ConvSpec) -> tuple[int, ...]:
    return *spec.sizes, 1, 1


def _grad_input_view(spec: ConvSpec) -> tuple[int, ...]:
    """The convolution of dy that gives dx: see `direct.cu`."""
    offset = (spec.KH - 1 - spec.padding[0], spec.KW - 1 - spec.padding[1])
    return spec.N, spec.O, spec.OH, spec.OW, spec.C, spec.KH, spec.KW, spec.H, spec.W, 1, 1, *offset, *spec.stride


def pack_on_gpu(w):
    """w (O, C, KH, KW) → (KH, KW, C, O), outputs side by side."""
    return xp_of(w).ascontiguousarray(w.transpose(2, 3, 1, 0))


def _pack_turned_on_gpu(w):
    """w (O, C, KH, KW) → (KH, KW, O, C), turned by 180°: the filters of grad_input."""
    return xp_of(w).ascontiguousarray(w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))


# ---- A convolution of x (N, H, W, C) by packed filters, into y (N, OH, OW, O) ----


def _coalesced_on_gpu(x, filters, y, view: tuple) -> None:
    _kernel("coalesced", x.dtype).over(y.size, x, filters, y, *view)


def _launch_tiles_on_gpu(name: str, tile: Tile, x, filters, y, more: tuple, view: tuple) -> None:
    N, OH, OW, O = y.shape
    KH, KW, channels, _ = filters.shape
    itemsize, window = x.dtype.itemsize, tile.window(view)
    run = 16 if channels * itemsize <= 16 or _FILTERS + 32 * window > _SHARED else 32  # bytes of channels at a time
    tap = run * tile.outputs
    taps = min(KH * KW, _FILTERS // tap)
    grid = N * -(-OH // tile.rows) * -(-OW // tile.columns), -(-O // tile.outputs)
    launch = _kernel(name, x.dtype, run)
    launch(grid, tile.threads, x, filters, y, *more, *view, taps, shared_mem=run * window + taps * tap)


def _tiled_on_gpu(x, filters, y, view: tuple) -> None:
    _launch_tiles_on_gpu("tiled", _TILED, x, filters, y, (), view)


def _blocked_on_gpu(x, filters, y, view: tuple, bias=None, relu=False, mask=None) -> None:
    bias = xp_of(x).zeros(y.shape[3], y.dtype) if bias is None else bias
    floor = 0.0 if relu else -np.inf
    more = bias, floor, bias if mask is None else nhwc(mask), mask is not None
    _launch_tiles_on_gpu("blocked", _BLOCKED, x, filters, y, more, view)


# ---- The gradient of the filters ----


def _correlate_on_gpu(name: str, grid: tuple[int, int], threads: tuple[int, ...], dy, x, spec: ConvSpec):
    """dw by the kernel `name`, which takes shares of the pixels to as many parts, and `sum_parts`."""
    empty, pixels, wide = xp_of(x).empty, spec.N * spec.OH * spec.OW, cuda.accumulator(x.dtype)
    shape = spec.KH, spec.KW, spec.C, spec.O
    most = workspace.limit() // (spec.O * spec.columns * wide.itemsize)
    splits = max(1, min(-(-_BLOCKS // (grid[0] * grid[1])), -(-pixels // _LEAST_SHARE), most))
    share = -(-pixels // splits)
    splits = -(-pixels // share)
    parts = empty((splits, *shape), wide)
    launch = _kernel(name, x.dtype)
    launch((*grid, splits), threads, nhwc(dy), nhwc(x), parts, *_forward_view(spec), share)
    dw = parts[0]
    if splits > 1 or wide != x.dtype:
        dw = empty(shape, x.dtype)
        _kernel("sum_parts", x.dtype).over(dw.size, parts, dw, splits)
    return nchw(xp_of(x).ascontiguousarray(dw.transpose(3, 0, 1, 2)))


def _coalesced_dw_on_gpu(dy, x, spec: ConvSpec):
    grid = -(-spec.O * spec.columns // cuda.THREADS), 1
    return _correlate_on_gpu("coalesced_dw", grid, (cuda.THREADS,), dy, x, spec)


def _dw_by_tiles_on_gpu(name: str, tile: Tile, dy, x, spec: ConvSpec):
    rows, outputs = tile.gradient
    return _correlate_on_gpu(name, (-(-spec.columns // rows), -(-spec.O // outputs)), tile.threads, dy, x, spec)


def _tiled_dw_on_gpu(dy, x, spec: ConvSpec):
    return _dw_by_tiles_on_gpu("tiled_dw", _TILED, dy, x, spec)


def _blocked_dw_on_gpu(dy, x, spec: ConvSpec):
    return _dw_by_tiles_on_gpu("blocked_dw", _BLOCKED, dy, x, spec)


# ---- Rows of the ladder ----


def _passes(convolve: Callable, correlate: Callable) -> tuple[Callable, Callable, Callable]:
    """forward, grad_input and grad_weight of a rung; `convolve` takes what the first two may be given besides."""

    def forward_on_gpu(x, w, spec: ConvSpec, prepared=None, **more):
        y = xp_of(x).empty((spec.N, spec.OH, spec.OW, spec.O), x.dtype)
        convolve(nhwc(x), pack_on_gpu(w) if prepared is None else prepared, y, _forward_view(spec), **more)
        return nchw(y)

    def grad_input_on_gpu(dy, w, spec: ConvSpec, **more):
        dx = xp_of(dy).empty((spec.N, spec.H, spec.W, spec.C), dy.dtype)
        convolve(nhwc(dy), _pack_turned_on_gpu(w), dx, _grad_input_view(spec), **more)
        return nchw(dx)

    return forward_on_gpu, grad_input_on_gpu, correlate


def _why_not(tile: Tile, spec: ConvSpec) -> str | None:
    """Why a block cannot hold its tile of this geometry; None if it can."""
    nbytes = _FILTERS + 16 * max(tile.window(_forward_view(spec)), tile.window(_grad_input_view(spec)))
    if nbytes <= _SHARED:
        return None
    return f"a tile and its halo take {nbytes >> 10} KiB of shared memory, and a block has {_SHARED >> 10} KiB"


def _rung(device: str) -> str | None:
    return None if device == "gpu" else "it is a rung of the GPU's ladder only: see direct.cu"


COALESCED = Algorithm(
    "coalesced",
    "a thread an output, neighbours on neighbouring channels",
    *_passes(_coalesced_on_gpu, _coalesced_dw_on_gpu),
    lambda spec, device: _rung(device),
    dtypes=EVERY_DTYPE,
)
TILED = Algorithm(
    "tiled",
    "a tile of the image and its halo in shared memory, a thread an output",
    *_passes(_tiled_on_gpu, _tiled_dw_on_gpu),
    lambda spec, device: _rung(device) or _why_not(_TILED, spec),
    dtypes=EVERY_DTYPE,
)
BLOCKED = _passes(_blocked_on_gpu, _blocked_dw_on_gpu)


def why_not(spec: ConvSpec) -> str | None:
    """Why `BLOCKED` cannot do a geometry; None if it can."""
    return _why_not(_BLOCKED, spec)
