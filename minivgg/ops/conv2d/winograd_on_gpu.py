"""How `winograd` runs on a GPU: what winograd.cu is launched with. The kernels and their idea are in there.

There are two variants of forward and grad_input. *phased*: transform, 16 or 36 products by cuBLAS (in the simulator by
NumPy), transform back, so many tiles at a time as `workspace.limit()` holds: a larger limit makes fewer launches.
*fused*: all of it in one launch, float32 only. `variant_for` says which one is taken. grad_weight is phased.
"""

import functools

import numpy as np

from minivgg.backends import cuda, workspace
from minivgg.backends.array import device_of, nchw, nhwc, xp_of
from minivgg.backends.graph import between
from minivgg.ops.conv2d.packing import round_up
from minivgg.ops.conv2d.spec import ConvSpec
from minivgg.ops.conv2d.toom_cook import in_c, matrices
from minivgg.ops.gemm import by_cublas_on_gpu

VARIANTS = ("phased", "fused")

_FEW = 64  # channels, as C·O / (C + O) counts them
_FUSED = {"BLOCK_TILES": 32, "BLOCK_OUTPUTS": 32, "STEP": 8}  # a block of winograd.cu's `convolve`
_AT_ONCE = {2: 2, 4: 3}  # planes a warp: 8 and 12 warps, as many for each of a multiprocessor's four schedulers
_SUMS = 64  # outputs on a side of what cuBLAS is assumed to give one block
_BLOCKS = 264  # that keep a large GPU busy: two for each of 132 multiprocessors
_PART = 256  # tiles that are worth a sum of their own


def variant_for(m: int, C: int, O: int, x) -> str:
    """Fused if that is possible for F(m×m) on x's device and in x's dtype, and predicted to be faster; else phased.

    In each plane of a tile, phased moves C + O numbers out of a kernel and into the next, and multiplies C·O at the
    speed of cuBLAS; fused moves none, but transforms a tile again for each 32 outputs: of the instructions of a step of
    F(4×4), 0.56 are multiply-adds of the products (counted in what nvcc 13 makes of it for sm_90). Taking an H100's 60
    TFLOP/s, of which cuBLAS gets 0.85 and fused 0.5, and 3.3 to 5.5 TB/s for V and M, in memory or in the second-level
    cache, the two are even at C·O / (C + O) of 87 to 53. A prediction: no time of it has been measured.
    """
    possible = x.dtype == "float32" and _shared(m) <= _shared_memory_on_gpu(device_of(x))
    return "fused" if possible and C * O <= _FEW * (C + O) else "phased"


@functools.cache
def _shared_memory_on_gpu(device: str) -> int:
    """Bytes of shared memory that a block may ask for; none where there is no cp.async, before sm_80."""
    if device == "sim":
        return 227 << 10
    import cupy

    gpu = cupy.cuda.Device()
    return gpu.attributes["MaxSharedMemoryPerBlockOptin"] if int(gpu.compute_capability) >= 80 else 0


def _planes(m: int) -> int:
    return (m + 2) ** 2


def _shared(m: int) -> int:
    """Bytes of shared memory of a fused block: the pixels, their transform, and two steps' filters."""
    tiles, outputs = _FUSED["BLOCK_TILES"], _FUSED["BLOCK_OUTPUTS"]
    return 4 * _planes(m) * _FUSED["STEP"] * (tiles + tiles + 4 + 2 * outputs)


@functools.cache
def _defines(m: int) -> dict:
    """The sizes and the matrices, as winograd.cu takes them."""
    forward, gradient = matrices(m, 3), matrices(3, m)
    names = {"INPUTS": forward.inputs, "FILTERS": forward.filters, "OUTPUTS": forward.outputs}
    names |= {"UPSTREAM": gradient.filters, "GRADIENT": gradient.outputs}
    return {"TILE": m, **{name: in_c(matrix) for name, matrix in names.items()}}


def variants() -> list[dict]:
    """What winograd.cu is compiled with."""
    plain = [{"T": dtype, **_defines(m)} for dtype in (np.float32, np.float64) for m in _AT_ONCE]
    return plain + [{"T": np.float32, **_defines(m), **_fused(m)} for m in _AT_ONCE]


def _fused(m: int) -> dict:
    return {"FUSED": True, "AT_ONCE": _AT_ONCE[m], "SHARED": _shared(m), **_FUSED}


def _kernel(name: str, m: int, dtype, **defines) -> cuda.Kernel:
    return cuda.kernel("ops/conv2d/winograd.cu", name, T=dtype, **_defines(m), **defines)


def transform_on_gpu(m: int, w, rotated=False, variant=None):
    """w (O, C, 3, 3) → U (P, C, O) for forward; `rotated`, (P, O, C) for grad_input. For fused, padded with zeros."""
    O, C = w.shape[:2]
    depth, width = (O, C) if rotated else (C, O)
    if (variant or variant_for(m, C, O, w)) == "fused":
        depth, width = round_up(depth, _FUSED["STEP"]), round_up(width, _FUSED["BLOCK_OUTPUTS"])
    U = xp_of(w).empty((_planes(m), depth, width), w.dtype)
    _kernel("transform_filters", m, w.dtype).over(depth * width, nhwc(w), U, O, C, width, int(rotated))
    return U


def forward_on_gpu(m, x, w, spec: ConvSpec, bias=None, relu=False, prepared=None, pool=False, variant=None):
    """x (N, C, H, W), w (O, C, 3, 3) → y (N, O, OH, OW) by F(m×m), as `Algorithm` says, in one of `VARIANTS`."""
    x, U = nhwc(x), transform_on_gpu(m, w, variant=variant) if prepared is None else prepared
    halves = 2 if pool else 1
    y = xp_of(x).empty((spec.N, spec.OH // halves, spec.OW // halves, spec.O), x.dtype)
    run = _convolutions[variant or variant_for(m, spec.C, spec.O, x)]
    run(m, x, U, y, _grid(m, spec.OH, spec.OW), spec.padding, _epilogue(x, bias, relu, pool=pool))
    return nchw(y)


def grad_input_on_gpu(m, dy, w, spec: ConvSpec, mask=None, variant=None):
    """dy (N, O, OH, OW), w (O, C, 3, 3) → dx (N, C, H, W): forward, with the filters turned and C and O swapped."""
    dy, U = nhwc(dy), transform_on_gpu(m, w, rotated=True, variant=variant)
    dx = xp_of(dy).empty((spec.N, spec.H, spec.W, spec.C), dy.dtype)
    run = _convolutions[variant or variant_for(m, spec.C, spec.O, dy)]
    offset = (2 - spec.padding[0], 2 - spec.padding[1])
    run(m, dy, U, dx, _grid(m, spec.H, spec.W), offset, _epilogue(dy, mask=mask))
    return nchw(dx)


def _grid(m: int, H: int, W: int) -> tuple[int, int]:
    """Rows and columns of tiles in an image."""
    return -(-H // m), -(-W // m)


def _epilogue(x, bias=None, relu=False, mask=None, pool=False) -> tuple:
    """The arguments EPILOGUE of winograd.cu; in the place of what there is none of goes x, which is not looked at."""
    xp = xp_of(x)
    arrays = (x if bias is None else xp.ascontiguousarray(bias), x if mask is None else nhwc(mask))
    return *arrays, bias is not None, relu, mask is not None, pool


def _phased_on_gpu(m, x, U, y, grid, offset, epilogue):
    (N, H, W, C), (_, OH, OW, O), xp, P = x.shape, y.shape, xp_of(x), _planes(m)
    tiles = N * grid[0] * grid[1]
    at_once = _tiles_at_once(tiles, P * (C + O) * x.itemsize)
    for first in range(0, tiles, at_once):
        count = min(at_once, tiles - first)
        V = xp.empty((P, count, C), x.dtype)
        _kernel("transform_inputs", m, x.dtype).over(count * C, x, V, N, H, W, C, *grid, first, *offset)
        M = xp.empty((P, count, O), x.dtype)
        between(by_cublas_on_gpu, V, U, M)
        _kernel("transform_outputs", m, x.dtype).over(count * O, M, y, N, OH, OW, O, *grid, first, *epilogue)


def _tiles_at_once(tiles: int, tile_bytes: int) -> int:
    """As many as the workspace holds, in chunks of one size or nearly so."""
    chunks = -(-tiles // max(1, workspace.limit() // tile_bytes))
    return -(-tiles // chunks)


def _fused_on_gpu(m, x, U, y, grid, offset, epilogue):
    N, O = x.shape[0], y.shape[3]
    launch = _kernel("convolve", m, x.dtype, **_fused(m))
    blocks = -(-N * grid[0] * grid[1] // _FUSED["BLOCK_TILES"]) * -(-O // _FUSED["BLOCK_OUTPUTS"])
    threads = _planes(m) // _AT_ONCE[m] * 32
    launch(blocks, threads, x, U, y, *x.shape, *y.shape[1:], *grid, *offset, *epilogue, shared_mem=_shared(m))


_convolutions = {"phased": _phased_on_gpu, "fused": _fused_on_gpu}


def grad_weight_on_gpu(m, dy, x, spec: ConvSpec):
    """dy (N, O, OH, OW), x (N, C, H, W) → dw (O, C, 3, 3) by F(3×3, m×m).

    Sums over tiles are cut into parts, the same ones in every run, and the parts are added up in their order.
    """
    dy, x = nhwc(dy), nhwc(x)
    (N, H, W, C), (_, OH, OW, O), xp, P = x.shape, dy.shape, xp_of(x), _planes(m)
    grid = _grid(m, OH, OW)
    tiles = N * grid[0] * grid[1]
    at_once = _tiles_at_once(tiles, P * (C + O) * x.itemsize)
    parts = _parts(at_once, P, C, O)
    total = None
    for first in range(0, tiles, at_once):
        part = -(-min(at_once, tiles - first) // parts)  # past the last tile are zeros
        V, D = xp.empty((P, parts, part, C), x.dtype), xp.empty((P, parts, O, part), x.dtype)
        places = *grid, first
        _kernel("transform_inputs", m, x.dtype).over(parts * part * C, x, V, N, H, W, C, *places, *spec.padding)
        launch = _kernel("transform_upstream", m, x.dtype)
        launch((-(-parts * part // 32), -(-O // 8)), 256, dy, D, N, OH, OW, O, *places, parts, part)
        products = xp.empty((P, parts, O, C), x.dtype)
        between(by_cublas_on_gpu, D, V, products)
        total = products if total is None else xp.add(total, products, out=total)
    dw = xp.empty((O, 3, 3, C), x.dtype)
    _kernel("transform_gradient", m, x.dtype).over(O * C, total, dw, C, parts)
    return nchw(dw)


def _parts(tiles: int, P: int, C: int, O: int) -> int:
    """Into how many sums of their own the tiles go, so that even small gradients keep all of the GPU busy."""
    blocks = P * -(-C // _SUMS) * -(-O // _SUMS)
    return max(1, min(-(-_BLOCKS // blocks), tiles // _PART))
