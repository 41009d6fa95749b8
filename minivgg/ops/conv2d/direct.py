"""Direct convolution, tiled so that it runs from registers and cache: no column matrix, no transforms.

im2col copies every pixel KH·KW times into a matrix, to multiply that. But with channels-last memory the matrix is there
already: the KW·C numbers that one row of a window sees lie side by side, and the next window begins stride·C later. So,
with 14 neighbouring outputs as rows of the micro-kernel's product and KH rows of the window as its taps,

    forward      y (pixels, O)    = Σ_kh  x (pixels, KW·C) · w (KW·C, O)          rows overlap in memory, and may
    grad_weight  dw (KW·C, O)     = Σ_oh  x (KW·C, pixels) · dy (pixels, O)       one such product for each kh
    grad_input   dx               = forward of dy, with filters turned by 180° and a stride of zeros between its pixels

and that is all: the same multiplications as the definition's, in an order that a cache likes. What needs care is the
border. A task copies the rows of x that it looks at to a padded *band*, a few rows that stay in the cache.

This is the exact mode: no rounding but that of the products and their sum. It is also the fastest way for the first
layer (3 channels), for tiny images, and for geometries that Winograd is not made for. `in_numpy` is the idea in ten
lines; `direct.cu` is the GPU's. Cost: 2·N·OH·OW·O·C·KH·KW FLOP a pass; for grad_input, stride² times as many.

Source: Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures (2018), §II;
Zhang, Franchetti, Low, High Performance Zero-Memory Overhead Direct Convolutions (2018).
"""

import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import nchw, nhwc, on_gpu
from minivgg.backends.jit import kernel, njit, prange, threads
from minivgg.backends.microkernel import COLUMNS, ROWS, even_rows, product, sums_of_products, to_fetch
from minivgg.backends.simd import LANES, traced
from minivgg.ops.conv2d import direct_on_gpu
from minivgg.ops.conv2d import taps as exact
from minivgg.ops.conv2d.packing import (
    epilogue,
    finish,
    into_panels,
    round_up,
    streams,
    turned_into_panels,
    unpack_gradient,
    widened_parts,
)
from minivgg.ops.conv2d.spec import EVERY_DTYPE, Algorithm, ConvSpec

_forward_on_gpu, _grad_input_on_gpu, _grad_weight_on_gpu = direct_on_gpu.BLOCKED

_L1, _L2 = 32 << 10, 1 << 20  # bytes: what filters that are used again at once, and a band, should fit in
_CHAIN = 2048  # products that are added up one after another: rounding grows with the root of that


def in_numpy(x, w, stride=1):
    """The lesson: x (N, C, H, W), w (O, C, KH, KW) → y, without padding, as KH products of overlapping rows."""
    x, w = nhwc(x), nhwc(w)
    (N, H, W, C), (O, KH, KW, _) = x.shape, w.shape
    OH, OW = (H - KH) // stride + 1, (W - KW) // stride + 1
    image, row, pixel, number = x.strides
    y = np.zeros((N, OH, OW, O), x.dtype)
    for kh in range(KH):  # the rows of this "matrix" overlap in memory: nothing is copied
        shape, strides = (N, OH, OW, KW * C), (image, row * stride, pixel * stride, number)
        windows = np.lib.stride_tricks.as_strided(x[:, kh:], shape, strides)
        y += windows @ w[:, kh].reshape(O, KW * C).T
    return nchw(y)


@njit(cache=True)
def _fill_band(x, n, top, left, dilation, band):
    """band (rows, columns, C) = image n of x from (top, left) on, zero beyond its border.

    With a dilation, the pixels of x stand `dilation` apart in that image, and there are zeros between them.
    """
    _, H, W, C = x.shape
    rows, columns, _ = band.shape
    for i in range(rows):
        h, odd = divmod(top + i, dilation[0])
        if odd == 0 and dilation[1] == 1 and 0 <= h < H:  # side by side: one run, and zeros at its ends
            first = min(columns, max(0, -left))
            end = max(first, min(columns, W - left))
            to, run = band[i].reshape(-1), x[n, h].reshape(-1)
            to[: first * C] = 0
            to[first * C : end * C] = run[(first + left) * C : (end + left) * C]
            to[end * C :] = 0
            continue
        for j in range(columns):
            v, between = divmod(left + j, dilation[1])
            to = band[i, j]
            if odd == 0 and between == 0 and 0 <= h < H and 0 <= v < W:
                run = x[n, h, v]
                for c in range(C):
                    to[c] = run[c]
            else:
                to[:] = 0


@kernel
def _convolve(
    x, filters, y, bias, floor, mask, masked, stride, offset, dilation, window, taps, bands, together, watched
):
    """y (N, OH, OW, O) = the convolution of x (N, H, W, C) by filters (blocks, KH, KW·C, 32).

    A task is a band of output rows of one image; `bands` (workers, rows + 1, columns, C) holds what they look at, and a
    row behind it that an odd block of pixels may read from. Pixels meet `together` blocks of filters one after another,
    and of those `taps` rows of the window before what they come to is added up.
    """
    N, OH, OW, O = y.shape
    C = x.shape[3]
    KH, KW = window
    results, kept = y.reshape(-1), mask.reshape(-1)
    workers, band_rows, columns, _ = bands.shape
    rows = (band_rows - 1 - KH) // stride[0] + 1
    at_once = even_rows(OW)
    tasks_an_image = (OH + rows - 1) // rows
    tasks = N * tasks_an_image
    a_strides = (columns * C, stride[1] * C, 1)
    b_strides = (KW * C * COLUMNS, COLUMNS)
    for index in prange(workers):
        worker = np.intp(index)
        band = bands[worker]
        sums = np.empty(ROWS * COLUMNS, x.dtype)
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            n, first = task // tasks_an_image, task % tasks_an_image * rows
            _fill_band(x, n, first * stride[0] - offset[0], -offset[1], dilation, band[:-1])
            for portion in range(0, len(filters), together):
                for oh in range(first, min(OH, first + rows)):
                    at = (oh - first) * stride[0] * columns * C
                    for ow in range(0, OW, at_once):
                        count = min(at_once, OW - ow)
                        to = ((n * OH + oh) * OW + ow) * O
                        for block in range(portion, min(len(filters), portion + together)):
                            for kh in range(0, KH, taps):
                                product(
                                    count, band, at + kh * columns * C + ow * stride[1] * C, a_strides,
                                    filters, (block * KH + kh) * KW * C * COLUMNS, b_strides,
                                    sums, 0, COLUMNS, (min(taps, KH - kh), KW * C), min(kh, 1),
                                )  # fmt: skip
                            finish(
                                count, sums, block * COLUMNS, bias, floor, kept, masked, results, to, O,
                                watched, worker * LANES,
                            )  # fmt: skip


# ---- Large results of few multiplications: a first layer ----


@traced
def _block_while_streaming(
    code, rows, a, a_at, a_strides, b, b_at, b_strides, lengths, bias, bias_at, floor, tiles, at, waiting, places, y,
    watched, watched_at,
):  # fmt: skip
    """tiles (rows, 32) from `at` on = max(a · b + bias, floor), while the tile that waits goes to y, past the caches.

    `waiting`: where it is in `tiles`, how many vectors it has, and where in y it belongs: number i at places[i] from
    there. One goes in each step. That is about as fast as memory takes them; if they came together, nothing could be
    multiplied until they had gone.
    """
    last, lines, to = waiting

    def stream(i):
        y.stream(to + places.integer(i), tiles.load(last + i * LANES))

    def stream_one(step):
        for _ in code.when_below(step, lines):
            stream(step)

    steps = lengths[0] * lengths[1]
    seen = code.variable(watched.load(watched_at))
    for size in range(2, ROWS + 1, 2):
        for _ in code.when(rows, size):
            sums = sums_of_products(code, size, a, a_at, a_strides, b, b_at, b_strides, lengths, stream_one)
            least = floor.broadcast(0)
            for j in range(2):
                after = bias.load(bias_at + j * LANES)
                for i in range(size):
                    result = sums[i][j].value + after
                    seen.value = result * 0 + seen.value
                    tiles.store(at + i * COLUMNS + j * LANES, result.at_least(least))
    watched.store(watched_at, seen.value)
    for i in code.loop(lines + steps * -1):
        stream(steps + i)


@traced
def _stream_tile(code, tiles, waiting, places, y):
    """The tile that waits goes to y, as above."""
    last, lines, to = waiting
    for i in code.loop(lines):
        y.stream(to + places.integer(i), tiles.load(last + i * LANES))


@kernel
def _convolve_streaming(x, filters, y, bias, floor, stride, offset, dilation, window, bands, tiles, places, watched):
    """`_convolve` for a y that no cache holds, O a multiple of 32, and filters that the first-level cache holds.

    `tiles` (workers, 2·14·32): each block of results waits in one half of it until the next block has been multiplied.
    `places` (2·14): where in y its vectors go, from the block's first pixel on.
    """
    N, OH, OW, O = y.shape
    C = x.shape[3]
    KH, KW = window
    results = y.reshape(-1)
    workers, band_rows, columns, _ = bands.shape
    rows = (band_rows - 1 - KH) // stride[0] + 1
    at_once, half = even_rows(OW), tiles.shape[1] // 2
    tasks_an_image = (OH + rows - 1) // rows
    tasks = N * tasks_an_image
    a_strides = (columns * C, stride[1] * C, 1)
    b_strides = (KW * C * COLUMNS, COLUMNS)
    for index in prange(workers):
        worker = np.intp(index)
        band, tile = bands[worker], tiles[worker]
        at, last, lines, to = 0, 0, 0, 0
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            n, first = task // tasks_an_image, task % tasks_an_image * rows
            _fill_band(x, n, first * stride[0] - offset[0], -offset[1], dilation, band[:-1])
            for oh in range(first, min(OH, first + rows)):
                for ow in range(0, OW, at_once):
                    count = min(at_once, OW - ow)
                    seen = ((oh - first) * stride[0] * columns + ow * stride[1]) * C
                    for block in range(len(filters)):
                        _block_while_streaming(
                            count + count % 2, band, seen, a_strides, filters, block * KH * KW * C * COLUMNS, b_strides,
                            (KH, KW * C), bias, block * COLUMNS, floor, tile, at, (last, lines, to), places, results,
                            watched, worker * LANES,
                        )  # fmt: skip
                        to, lines = ((n * OH + oh) * OW + ow) * O + block * COLUMNS, 2 * count
                        at, last = half - at, at
        _stream_tile(tile, (last, lines, to), places, results)


@kernel
def _correlate(x, dy, dw, run, stride, padding, chain, band, workers):
    """dw (KH, KW·C, O) += Σ over pixels of x ⊗ dy, where `run` = KW·C is padded to an even number, O to blocks of 32.

    Bands of rows are taken in turn, and of each as many rows at once as have `chain` pixels. All threads fill the band,
    and then add its products, each in filters of its own: so every sum has one order, however many threads there are.
    """
    N, OH, OW, O = dy.shape
    KH, padded_run, _ = dw.shape
    band_rows, columns, C = band.shape
    rows = (band_rows - 1 - KH) // stride[0] + 1
    blocks, parts = O // COLUMNS, (run + ROWS - 1) // ROWS
    tasks = blocks * KH * parts
    a_strides = (stride[0] * columns * C, 1, stride[1] * C)
    together = max(1, chain // OW)
    for n in range(N):
        for first in range(0, OH, rows):
            count = min(rows, OH - first)
            for row in prange((count - 1) * stride[0] + KH):
                r = np.intp(row)
                _fill_band(x, n, first * stride[0] - padding[0] + r, -padding[1], (1, 1), band[r : r + 1])
            for index in prange(workers):
                worker = np.intp(index)
                begin, end = worker * tasks // workers, (worker + 1) * tasks // workers
                for oh in range(0, count, together):
                    high = min(together, count - oh)
                    dy_at = (n * OH + first + oh) * OW * O
                    for task in range(begin, end):
                        block, rest = divmod(task, KH * parts)  # a thread stays with a block of dy, in its cache
                        kh, part = divmod(rest, parts)
                        i = part * ROWS
                        wide = min(ROWS, run - i)
                        product(
                            wide, band, (oh * stride[0] + kh) * columns * C + i, a_strides,
                            dy, dy_at + block * COLUMNS, (OW * O, O),
                            dw, (kh * padded_run + i) * O + block * COLUMNS, O, (high, OW), 1,
                            # a few filters wait for dy, so it is fetched; many need the cache for themselves
                            (to_fetch(
                                task - begin, end - begin, dy_at + high * OW * O,
                                together * OW * O if run <= ROWS else 0, wide, high * OW,
                            ),),
                        )  # fmt: skip


def _band_rows(OH: int, row_bytes: int, tasks: int) -> int:
    """Output rows to a band: as many as half of the cache holds, but few enough that there are some tasks an image."""
    fit = max(1, _L2 // 2 // row_bytes)
    return min(fit, -(-OH // tasks))


def _band_shape(rows: int, OW: int, C: int, stride: tuple, window: tuple) -> tuple[int, int, int]:
    """What `rows` rows of outputs look at, (rows, columns, C), and one row more, which is read but not needed."""
    return (rows - 1) * stride[0] + window[0] + 1, (OW - 1) * stride[1] + window[1], C


def pack(w):
    """w (O, C, KH, KW) → panels (blocks of 32 outputs, KH·KW·C, 32); on a GPU (KH, KW, C, O)."""
    if on_gpu(w):
        return direct_on_gpu.pack_on_gpu(w)
    w = nhwc(w)
    O, KH, KW, C = w.shape
    panels = workspace.buffer("direct filters", (-(-O // COLUMNS), KH * KW * C, COLUMNS), w.dtype)
    into_panels(w.reshape(O, -1), panels)
    return panels


def pack_turned(w):
    """w (O, C, KH, KW) → the panels of grad_input's filters (blocks of 32 inputs, KH·KW·O, 32), turned by 180°."""
    w = nhwc(w)
    O, KH, KW, C = w.shape
    panels = workspace.buffer("direct filters", (-(-C // COLUMNS), KH * KW * O, COLUMNS), w.dtype)
    turned_into_panels(w, panels)
    return panels


def _run(x, filters, y, window, stride, offset, dilation, bias=None, relu=False, mask=None) -> bool:
    N, OH, OW, _ = y.shape
    C, workers = x.shape[3], threads()
    row_bytes = _band_shape(1, OW, C, stride, window)[1] * C * x.itemsize * stride[0]
    rows = _band_rows(OH, row_bytes, -(-4 * workers // N))
    bands = workspace.buffer("direct bands", (workers, *_band_shape(rows, OW, C, stride, window)), x.dtype)
    after = epilogue(y, len(filters), bias, relu, mask)
    together, watched = max(1, _L1 // 2 // filters[0].nbytes), exact.watch(workers, x.dtype)
    if mask is None and together >= len(filters) and streams(y, COLUMNS):
        bands[:, -1] = 0  # what an odd block computes of it is not stored, but watched
        tiles = workspace.buffer("direct tiles", (workers, 2 * ROWS * COLUMNS), x.dtype)
        places = np.add.outer(np.arange(ROWS) * y.shape[3], (0, LANES)).reshape(-1)
        _convolve_streaming(x, filters, y, *after[:2], stride, offset, dilation, window, bands, tiles, places, watched)
    else:
        taps = max(1, _CHAIN // (window[1] * C))
        _convolve(x, filters, y, *after, stride, offset, dilation, window, taps, bands, together, watched)
    return not watched.any()


def two_passes(run):
    """The forward and grad_input of a rung that does both by `run(x, filters, y, window, stride, offset, dilation, …)`.

    `run` fills y (N, OH, OW, O) with the convolution of x (N, H, W, C), which begins `offset` pixels beyond its corner
    and whose pixels stand `dilation` apart, by filters in panels; bias, relu and mask are those of an `epilogue`. It
    returns whether all that it computed is finite: if not, `taps` does it once more.
    """

    def forward(x, w, spec: ConvSpec, bias=None, relu=False, prepared=None):
        y = workspace.empty((spec.N, spec.OH, spec.OW, spec.O), x.dtype)
        filters = pack(w) if prepared is None else prepared
        window = (spec.KH, spec.KW)
        finite = run(nhwc(x), filters, y, window, spec.stride, spec.padding, (1, 1), bias=bias, relu=relu)
        return nchw(y) if finite else exact.forward(x, w, spec, bias, relu)

    def grad_input(dy, w, spec: ConvSpec, mask=None):
        dx = workspace.empty((spec.N, spec.H, spec.W, spec.C), dy.dtype)
        offset = (spec.KH - 1 - spec.padding[0], spec.KW - 1 - spec.padding[1])
        finite = run(nhwc(dy), pack_turned(w), dx, (spec.KH, spec.KW), (1, 1), offset, spec.stride, mask=mask)
        return nchw(dx) if finite else exact.grad_input(dy, w, spec, mask)

    return forward, grad_input


_forward, _grad_input = two_passes(_run)


def forward(x, w, spec: ConvSpec, **more):
    return (_forward_on_gpu if on_gpu(x) else _forward)(x, w, spec, **more)


def grad_input(dy, w, spec: ConvSpec, mask=None):
    return (_grad_input_on_gpu if on_gpu(dy) else _grad_input)(dy, w, spec, mask=mask)


def grad_weight(dy, x, spec: ConvSpec):
    if on_gpu(x):
        return _grad_weight_on_gpu(dy, x, spec)
    run, window = spec.KW * spec.C, (spec.KH, spec.KW)
    dw = workspace.buffer("direct filters", (spec.KH, round_up(run, 2), round_up(spec.O, COLUMNS)), dy.dtype)
    dw[:] = 0
    # dy should stay in the cache, too, while KH rows of the filters meet it, as long as adding to dw costs less
    columns = _band_shape(1, spec.OW, spec.C, spec.stride, window)[1]
    x_row, dy_row = columns * spec.C * x.itemsize * spec.stride[0], spec.OW * dw.shape[2] * dy.itemsize
    rows = _band_rows(spec.OH, x_row + dy_row // threads(), 1)
    rows = max(rows, min(_band_rows(spec.OH, x_row, 1), 2 * dw.nbytes // dy_row))
    band = workspace.buffer("direct bands", _band_shape(rows, spec.OW, spec.C, spec.stride, window), x.dtype)
    for pixels, upstream, padding in widened_parts(nhwc(x), nhwc(dy), spec):
        _correlate(pixels, upstream, dw, run, spec.stride, padding, _CHAIN, band, threads())
    dw = unpack_gradient(dw, spec)
    return dw if exact.all_finite(dw) else exact.grad_weight(dy, x, spec)


def supports(spec: ConvSpec, device: str) -> str | None:
    return None if device == "cpu" else direct_on_gpu.why_not(spec)


ALGORITHM = Algorithm(
    "direct",
    "products straight from the image, no copies: exact, any geometry",
    forward,
    grad_input,
    grad_weight,
    supports,
    fuses=True,
    prepare=pack,
    dtypes=EVERY_DTYPE,
)
