"""How a GPU's convolutions are cut into tiles, and launched: what implicit_gemm and tensor_core share.

A block of threads makes a tile of the result, BM × BN, of TM × TN for each thread, BK terms of the sums at a time.
Large tiles read each number less often; small ones keep all multiprocessors of the GPU busy where results are few.
Which is better is arithmetic, done by `choose`. `RUNGS` are the ways from simple to fast of implicit_gemm.cu.
"""

import functools
from dataclasses import asdict, dataclass, replace

import numpy as np

from minivgg.backends import cuda, workspace
from minivgg.backends.array import device_of, nchw, nhwc, xp_of
from minivgg.ops.conv2d.packing import round_up
from minivgg.ops.conv2d.spec import ConvSpec

_MULTIPROCESSORS = 132  # an H100's: what the simulator takes for granted
_BEGIN_AND_END = 32  # terms of a sum that take as long as it takes to begin and to end a tile, by prediction
_ADD_A_PART = 40  # multiply-adds of one multiprocessor in the time that it writes one number and reads it again, so too
_MOST_PARTS, _FEWEST_PIXELS = 64, 64  # of a filter gradient's sum, and of such a part
_PIXEL = 16  # bytes of the kernels' struct Pixel


@dataclass(frozen=True)
class Tile:
    """What a block and a thread make, how many blocks share a multiprocessor's registers, and how fast that is: by
    prediction, as a share of what the largest tile reaches, from the reads of shared memory a multiply-add."""

    BM: int
    BN: int
    TM: int
    TN: int
    BLOCKS: int
    speed: float
    BK: int = 16
    STAGES: int = 2

    @property
    def threads(self) -> int:
        return self.BM // self.TM * self.BN // self.TN

    def blocks(self, rows: int, columns: int) -> int:
        """How many of them cover a result of rows × columns."""
        return -(-rows // self.BM) * -(-columns // self.BN)

    def defines(self) -> dict:
        """What the kernel's source wants to know."""
        return {name: value for name, value in asdict(self).items() if name != "speed"}


TILES = {
    4: (
        Tile(128, 128, 8, 8, BLOCKS=2, speed=1.0),
        Tile(128, 64, 8, 8, BLOCKS=3, speed=0.95),
        Tile(64, 64, 8, 4, BLOCKS=5, speed=0.75),
        Tile(32, 32, 4, 4, BLOCKS=8, speed=0.5),
    ),
    8: (Tile(64, 64, 4, 4, BLOCKS=2, speed=1.0), Tile(32, 32, 4, 4, BLOCKS=4, speed=0.8)),
    2: (
        Tile(128, 128, 8, 8, BLOCKS=2, speed=1.0, BK=32),
        Tile(128, 64, 8, 8, BLOCKS=3, speed=0.95, BK=32),
        Tile(64, 64, 8, 8, BLOCKS=6, speed=0.8, BK=32),
    ),
}  # by bytes of a number


@dataclass(frozen=True)
class Units:
    """What multiplies: a file of kernels, its defines, its tiles by bytes of a number, and how panels lie in memory."""

    file: str
    tiles: dict[int, tuple[Tile, ...]]
    defines: tuple[tuple[str, int], ...] = ()
    pixel_pad: int | None = None  # numbers by which rows of panels are longer than they need be: None is 16 bytes
    row_pad: int = 0
    scaled: bool | None = None  # whether it scales by the arrays' largest numbers; None: it does not take these

    def kernel(self, name: str, x, tile: Tile, vector: int) -> cuda.Kernel:
        """A kernel for x's dtype, with a tile, and with `vector` numbers a copy."""
        return cuda.kernel(self.file, name, T=x.dtype, VEC=vector, **tile.defines(), **dict(self.defines))

    def variants(self) -> list[dict]:
        """What its file is compiled with: every tile, with single numbers and with 16 bytes a copy."""
        return [
            {"T": np.dtype(f"f{itemsize}"), "VEC": vector, **tile.defines(), **dict(self.defines)}
            for itemsize, tiles in self.tiles.items()
            for tile in tiles
            for vector in (1, 16 // itemsize)
        ]

    def bytes_to_convolve(self, tile: Tile, itemsize: int) -> int:
        """Shared memory of a block of `convolve`: panels of pixels, of filters, and the pixels."""
        pad = 16 // itemsize if self.pixel_pad is None else self.pixel_pad
        panels = tile.BM * (tile.BK + pad) + tile.BK * (tile.BN + self.row_pad)
        return tile.STAGES * panels * itemsize + tile.BM * _PIXEL

    def bytes_to_grad_weight(self, tile: Tile, itemsize: int) -> int:
        """The same of `grad_weight`, where rows of both panels are pixels."""
        panels = tile.BK * (tile.BM + tile.BN + 2 * self.row_pad)
        return tile.STAGES * panels * itemsize + 2 * tile.BK * _PIXEL

    def largest_on_gpu(self, *arrays) -> tuple:
        """What the kernels take as their last argument, if they do."""
        if self.scaled is None:
            return ()
        most = xp_of(arrays[0]).zeros(len(arrays), np.uint32)
        for i, a in enumerate(arrays if self.scaled else ()):
            blocks = min(8 * multiprocessors(a), -(-a.size // cuda.THREADS))
            launch = self.kernel("largest", a, self.tiles[a.itemsize][-1], 1)
            launch(blocks, cuda.THREADS, a, most[i : i + 1], np.int64(a.size))
        return (most,)


FMA = Units("ops/conv2d/implicit_gemm.cu", TILES)
RUNGS = ("tiled", "blocked", "pipelined")


def variants() -> list[dict]:
    """What implicit_gemm.cu is compiled with: as for any units, and for the rungs below `pipelined`, which are there to
    be read and measured, and do without float16."""
    singles = (choice for choice in FMA.variants() if choice["VEC"] == 1 and choice["T"] != np.float16)
    return FMA.variants() + [choice | {"STAGES": 1} for choice in singles]


def multiprocessors(x) -> int:
    """How many multiprocessors the GPU has that x lies on."""
    if device_of(x) == "gpu":
        return _multiprocessors(x.device.id)
    return _MULTIPROCESSORS


@functools.cache
def _multiprocessors(device: int) -> int:
    import cupy

    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]


def choose(
    rows: int, columns: int, terms: int, tiles: tuple[Tile, ...], processors: int, most_parts: int = 1
) -> tuple[Tile, int]:
    """The tile, and into how many parts to cut the sums of `terms` terms, by which the busiest multiprocessor is done
    first: the number of its tiles, times the terms of a part and what it takes to begin and end one; and if there are
    parts to add, all multiprocessors do that together."""

    def time(choice: tuple[Tile, int]) -> float:
        tile, parts = choice
        waves = -(-tile.blocks(rows, columns) * parts // processors)
        products = waves * tile.BM * tile.BN * (-(-terms // parts) + _BEGIN_AND_END) / tile.speed
        return products + (parts * rows * columns * _ADD_A_PART / processors if parts > 1 else 0)

    return min(((tile, parts) for tile in tiles for parts in range(1, most_parts + 1)), key=time)


# ---- Launches ----


def filters_on_gpu(w):
    """w (O, C, KH, KW) → (KH, KW, C, O), as the kernel takes it in a forward."""
    return xp_of(w).ascontiguousarray(w.transpose(2, 3, 1, 0))


def forward_on_gpu(x, w, spec: ConvSpec, bias=None, relu=False, prepared=None, **how):
    """y, by one launch: see `Algorithm` for the options; `how` goes to `_convolve_on_gpu`."""
    filters = filters_on_gpu(w) if prepared is None else prepared
    y = xp_of(x).empty((spec.N, spec.OH, spec.OW, spec.O), x.dtype)
    offset = (-spec.padding[0], -spec.padding[1])
    _convolve_on_gpu(nhwc(x), filters, y, y.shape[1:3], (*spec.stride, *offset, 1, 1, 1, 0, 0), bias, relu, **how)
    return nchw(y)


def grad_input_on_gpu(dy, w, spec: ConvSpec, mask=None, **how):
    """dx, in a launch for each of stride² kinds of pixels: those that meet the same taps of the window.

    For each kind it is a convolution with a stride of 1, by those taps in reverse; so no zero is multiplied, as there
    would be between the pixels of dy spread apart.
    """
    (KH, KW), (down, right), xp = (spec.KH, spec.KW), spec.stride, xp_of(dy)
    shape = (spec.N, spec.H, spec.W, spec.C)
    dx = xp.empty(shape, dy.dtype) if down <= KH and right <= KW else xp.zeros(shape, dy.dtype)  # some meet no tap
    dy, mask = nhwc(dy), None if mask is None else nhwc(mask)
    for i in range(min(down, spec.H)):
        for j in range(min(right, spec.W)):
            kh, kw = (i + spec.padding[0]) % down, (j + spec.padding[1]) % right  # the first taps that they meet
            if kh >= KH or kw >= KW:
                continue
            filters = xp.ascontiguousarray(w[:, :, kh::down, kw::right].transpose(2, 3, 0, 1))
            pixels = (-(-(spec.H - i) // down), -(-(spec.W - j) // right))
            offset = ((i + spec.padding[0]) // down, (j + spec.padding[1]) // right)
            _convolve_on_gpu(dy, filters, dx, pixels, (1, 1, *offset, -1, down, right, i, j), mask=mask, **how)
    return nchw(dx)


def _convolve_on_gpu(
    x, filters, y, pixels, walk, bias=None, relu=False, mask=None, units=FMA, rung="pipelined", tile=None
):
    """x (N, H, W, C) and filters (KH, KW, C, O) → those `pixels` of y (N, OH, OW, O) that `walk` says: see `WALK` in
    tiles.cuh."""
    (N, H, W, C), (KH, KW, _, O), (_, OH, OW, _) = x.shape, filters.shape, y.shape
    rows = N * pixels[0] * pixels[1]
    tile = tile or choose(rows, O, KH * KW * C, units.tiles[x.itemsize], multiprocessors(x))[0]
    tile = tile if rung == "pipelined" else replace(tile, STAGES=1)
    vector = vector_of(C, O, x, filters) if rung == "pipelined" else 1
    after = (filters if bias is None else bias, y if mask is None else mask)  # some array has to be there
    arguments = (x, filters, y, *after, bias is not None, bool(relu), mask is not None)
    sizes = (N, C, H, W, O, OH, OW, KH, KW, *pixels, *walk)
    if rung == "tiled":
        units.kernel("tiled", x, tile, 1)(-(-rows // 16) * -(-O // 16), 256, *arguments, *sizes)
        return
    launch, shared = units.kernel("convolve", x, tile, vector), units.bytes_to_convolve(tile, x.itemsize)
    most = units.largest_on_gpu(x, filters)
    launch(tile.blocks(rows, O), tile.threads, *arguments, *sizes, *most, shared_mem=shared)


def grad_weight_on_gpu(dy, x, spec: ConvSpec, units: Units = FMA, tile: Tile | None = None, parts: int | None = None):
    """dw, in parts over the pixels that are added up in their order, the same bits each time, and only then rounded."""
    dy, x, xp, wide = nhwc(dy), nhwc(x), xp_of(x), cuda.accumulator(x.dtype)
    pixels, K = spec.N * spec.OH * spec.OW, spec.columns
    if tile is None or parts is None:
        most_parts = min(_MOST_PARTS, workspace.limit() // (spec.O * K * wide.itemsize), -(-pixels // _FEWEST_PIXELS))
        tile, parts = choose(spec.O, K, pixels, units.tiles[x.itemsize], multiprocessors(x), max(1, most_parts))
    part = round_up(-(-pixels // parts), tile.BK)
    parts = -(-pixels // part)
    dw = xp.empty((spec.O, spec.KH, spec.KW, spec.C), x.dtype)
    sums = dw if parts == 1 and dw.dtype == wide else xp.empty((parts, *dw.shape), wide)
    launch = units.kernel("grad_weight", x, tile, vector_of(spec.C, spec.O, x, dy))
    arguments = (dy, x, sums, *spec.sizes, np.int64(part), *units.largest_on_gpu(dy, x))
    shared = units.bytes_to_grad_weight(tile, x.itemsize)
    launch((tile.blocks(spec.O, K), parts), tile.threads, *arguments, shared_mem=shared)
    if sums is not dw:
        units.kernel("add_parts", x, tile, 1).over(dw.size, sums, dw, parts)
    return nchw(dw)


def vector_of(C: int, O: int, *arrays) -> int:
    """How many numbers one copy may take: 16 bytes of them, if all rows of channels begin at a multiple of that."""
    run = 16 // arrays[0].itemsize
    whole = C % run == O % run == 0 and all(address(a) % 16 == 0 for a in arrays)
    return run if whole else 1


def address(a) -> int:
    """Where an array begins in memory."""
    return a.data.ptr if device_of(a) == "gpu" else a.ctypes.data
