"""What the fast rungs share: filters as the micro-kernel reads them, their gradients on the way back, the epilogue."""

import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import nchw, nhwc
from minivgg.backends.jit import kernel, njit, prange
from minivgg.backends.microkernel import COLUMNS
from minivgg.backends.simd import LANES, traced, transpose
from minivgg.ops.conv2d.spec import ConvSpec

_LAST_CACHE = 16 << 20  # bytes: what the next layer will still find in a cache


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below n."""
    return -(-n // multiple) * multiple


def streams(y, at_once: int) -> bool:
    """Whether y (…, O), stored `at_once` outputs at a time, should be written past the caches: it is too large for
    them, and its vectors are aligned."""
    return y.nbytes > _LAST_CACHE and y.shape[-1] % at_once == 0 and y.ctypes.data % 64 == 0


def epilogue(y, blocks: int, bias, relu: bool, mask):
    """What is done to y (N, OH, OW, O) before it is stored, as the kernels take it: (bias, floor, mask, masked).

    The bias padded to whole blocks (zeros if it is None); the least that a result may be, 0 after a ReLU; dx's mask
    (N, O, OH, OW), or y in its place if there is none.
    """
    wide = np.zeros(blocks * COLUMNS, y.dtype)
    if bias is not None:
        wide[: len(bias)] = bias
    floor = np.array([0 if relu else -np.inf], y.dtype)
    return wide, floor, y if mask is None else nhwc(mask), mask is not None


@traced
def _finish_block(code, rows, sums, bias, bias_at, floor, y, y_at, y_row, watched, watched_at):
    """y (rows, 32) = max(sums + bias, floor)."""
    least = floor.broadcast(0)
    biases = [bias.load(bias_at + j) for j in (0, LANES)]
    seen = code.variable(watched.load(watched_at))
    for i in code.loop(rows):
        for j, b in zip((0, LANES), biases, strict=True):
            result = sums.load(i * COLUMNS + j) + b
            seen.value = result * 0 + seen.value
            y.store(y_at + i * y_row + j, result.at_least(least))
    watched.store(watched_at, seen.value)


@traced
def _watch_sums(code, rows, sums, watched, watched_at):
    """Look at sums (rows, 32): where they are finite and a bias is not, the definition's results are no more."""
    seen = code.variable(watched.load(watched_at))
    for i in code.loop(rows):
        for j in (0, LANES):
            seen.value = sums.load(i * COLUMNS + j) * 0 + seen.value
    watched.store(watched_at, seen.value)


@njit(cache=True, inline="always")
def finish(rows, sums, o, bias, floor, mask, masked, y, at, O, watched, watched_at):
    """y (rows, O)[:, o : o + 32] = max(sums + bias, floor); if `masked`, 0 unless mask > 0; `watched` as in `taps`.

    y and mask are flat, and what is meant begins at `at`. Written out in place: a call, with five arrays to pass, took
    nearly as long as one of the first layer's products.
    """
    outputs = min(COLUMNS, O - o)
    if outputs == COLUMNS and not masked:
        _finish_block(rows, sums, bias, o, floor, y, at + o, O, watched, watched_at)
        return
    _watch_sums(rows, sums, watched, watched_at)
    for i in range(rows):
        to = at + i * O + o
        for j in range(outputs):
            value = sums[i * COLUMNS + j] + bias[o + j]
            y[to + j] = 0 if masked and not mask[to + j] > 0 else floor[0] if value <= floor[0] else value


@traced
def transpose_square(code, x, x_at, x_row, y, y_at, y_row):
    """y (16, 16) = x (16, 16) transposed."""
    for i, vector in enumerate(transpose([x.load(x_at + x_row * i) for i in range(LANES)])):
        y.store(y_at + y_row * i, vector)


@kernel
def transposed(x, y):
    """y (C, R) = x (R, C) transposed; the rows of both may lie apart. One read and one write of each number."""
    R, C = x.shape
    x_row, y_row = x.strides[0] // x.itemsize, y.strides[0] // y.itemsize
    for index in prange((R + LANES - 1) // LANES):
        r = np.intp(index) * LANES
        whole = r + LANES <= R
        for c in range(0, C, LANES):
            if whole and c + LANES <= C:
                transpose_square(x, r * x_row + c, x_row, y, c * y_row + r, y_row)
            else:
                for i in range(r, min(r + LANES, R)):
                    for j in range(c, min(c + LANES, C)):
                        y[j, i] = x[i, j]


@kernel
def turned_into_panels(w, panels):
    """w (O, KH, KW, C) → panels (blocks of 32 inputs, KH·KW·O, 32) of the filters turned by 180°, for grad_input.

    Inputs lie side by side in w already: so this is a copy in another order, with zeros in place of missing ones.
    """
    O, KH, KW, C = w.shape
    for block in prange(len(panels)):
        c = np.intp(block) * COLUMNS
        inputs = min(COLUMNS, C - c)
        for kh in range(KH):
            for kw in range(KW):
                for o in range(O):
                    to, run = panels[block, (kh * KW + kw) * O + o], w[o, KH - 1 - kh, KW - 1 - kw, c : c + inputs]
                    for i in range(inputs):
                        to[i] = run[i]
                    for i in range(inputs, COLUMNS):
                        to[i] = 0


@kernel
def into_panels(w, panels):
    """w (O, K) → panels (blocks, K, 32): 32 outputs side by side, zeros in place of those that are missing."""
    O, K = w.shape
    for block in prange(len(panels)):
        for half in (0, LANES):
            o = np.intp(block) * COLUMNS + half
            for k in range(0, K, LANES):
                if o + LANES <= O and k + LANES <= K:
                    transpose_square(w, o * K + k, K, panels, (np.intp(block) * K + k) * COLUMNS + half, COLUMNS)
                else:
                    for j in range(k, min(k + LANES, K)):
                        for i in range(LANES):
                            panels[block, j, half + i] = w[o + i, j] if o + i < O else 0


def widened_parts(x, dy, spec: ConvSpec):
    """Yield (x, dy, padding) of correlations that add up to that of x (N, H, W, C) and dy (N, OH, OW, O), with dy's
    outputs up to a multiple of 32, whatever they are.

    It is the one of all if that is O, or if so much memory may be used; or else one for some images, or some rows of
    one image: a padding that is smaller by so many rows of x, and mostly negative, lets them begin further down.
    """
    wide = round_up(spec.O, COLUMNS)
    if wide == spec.O:
        yield x, dy, spec.padding
        return
    rows = max(1, workspace.limit() // (spec.OW * wide * dy.itemsize))
    images, rows = max(1, rows // spec.OH), min(rows, spec.OH)
    for n in range(0, spec.N, images):
        for oh in range(0, spec.OH, rows):
            part = dy[n : n + images, oh : oh + rows]
            widened = workspace.buffer("widened upstream", (*part.shape[:3], wide), dy.dtype)
            widened[..., : spec.O] = part
            yield x[n : n + images], widened, (spec.padding[0] - oh * spec.stride[0], spec.padding[1])


def unpack_gradient(dw, spec: ConvSpec):
    """dw (taps, run, O), both padded, → (O, C, KH, KW), where taps·run = KH·KW·C."""
    taps = len(dw)
    run = spec.columns // taps
    result = workspace.empty((spec.O, taps, run), dw.dtype)
    for tap in range(taps):
        transposed(dw[tap, :run, : spec.O], result[:, tap])
    return nchw(result.reshape(spec.O, spec.KH, spec.KW, spec.C))
