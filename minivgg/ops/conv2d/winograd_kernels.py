"""The kernels behind `winograd`: transforms of tiles and filters, and the products between them.

Names: a *tile* is the (m + 2) × (m + 2) pixels of x that m × m outputs look at, or what belongs to it on the other
side. A *plane* is one of the P = (m + 2)² places in a transformed tile: each plane is a matrix product of its own.
Memory:

    V (P, tiles, C)              transformed input          M (P, tiles, O)     products, not yet transformed back
    U (P, blocks, C, 32)         transformed filters, in blocks of 32 outputs

Channels are padded to whole vectors, and by one vector more, so that the rows of V and M are not a power of two apart
(addresses 4096 bytes apart get in each other's way in the cache). Tiles that reach over a border, and channels that do
not fill a vector, go through a small *patch* padded with zeros.
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends.jit import kernel, njit, prange
from minivgg.backends.microkernel import COLUMNS, distance, product, to_fetch
from minivgg.backends.simd import LANES, traced
from minivgg.ops.conv2d.packing import transpose_square
from minivgg.ops.conv2d.toom_cook import matrices, sandwich


class Grid(NamedTuple):
    """The tiles of N images: m × m outputs each, `rows` × `columns` of them an image. `pooled`: the largest of each 2×2
    of those outputs is wanted, not all of them."""

    m: int
    rows: int
    columns: int
    tiles: int
    pooled: bool


def _transform(matrix):
    """The traced function of y = matrix · x · matrixᵀ on tiles whose elements are `vectors` vectors each.

    The strides are (row, column) of the tile, in elements of the array. If `streamed` is 1, y goes past the caches.
    """
    n = len(matrix[0])

    def transform(code, x, x_at, x_strides, y, y_at, y_strides, vectors, streamed):
        for v in code.loop(vectors):
            at = x_at + v * LANES
            tile = [[x.load(at + x_strides[0] * i + x_strides[1] * j) for j in range(n)] for i in range(n)]
            for i, row in enumerate(sandwich(matrix, tile)):
                for j, vector in enumerate(row):
                    y.store_or_stream(y_at + y_strides[0] * i + y_strides[1] * j + v * LANES, vector, streamed)

    return traced(transform)


def _largest_of_squares(tile):
    """What a 2×2 max-pool makes of a tile, a list of lists of vectors, of an even size."""
    size = range(0, len(tile), 2)
    return [[_largest([tile[i][j], tile[i][j + 1], tile[i + 1][j], tile[i + 1][j + 1]]) for j in size] for i in size]


def _largest(vectors):
    first, *others = vectors
    for other in others:
        first = first.at_least(other)
    return first


def _transform_to_output(matrix, masked=False, pooled=False):
    """As `_transform`, and then in the same registers max(y + bias, floor); or, if `masked`, y where mask > 0.

    If `pooled`, the largest of each 2×2 outputs is all that is stored. The 16 numbers of `watched` from `watched_at` on
    see what there was before that: see `taps`.
    """
    n = len(matrix[0])

    def transform(
        code, x, x_at, x_strides, y, y_at, y_strides, vectors, bias, bias_at, floor, mask, streamed, watched, watched_at
    ):
        least = floor.broadcast(0)
        seen = code.variable(watched.load(watched_at))
        for v in code.loop(vectors):
            at = x_at + v * LANES
            tile = [[x.load(at + x_strides[0] * i + x_strides[1] * j) for j in range(n)] for i in range(n)]
            b = bias.load(bias_at + v * LANES)
            results = sandwich(matrix, tile)
            for row in results:
                for vector in row:
                    seen.value = vector * 0 + seen.value
            for i, row in enumerate(_largest_of_squares(results) if pooled else results):
                for j, vector in enumerate(row):
                    to = y_at + y_strides[0] * i + y_strides[1] * j + v * LANES
                    result = vector.where_positive(mask.load(to)) if masked else (vector + b).at_least(least)
                    y.store_or_stream(to, result, streamed)
        watched.store(watched_at, seen.value)

    return traced(transform)


_input2, _input4 = (_transform(matrices(m, 3).inputs) for m in (2, 4))
_filter2, _filter4 = (_transform(matrices(m, 3).filters) for m in (2, 4))
_output2, _output4 = (_transform_to_output(matrices(m, 3).outputs) for m in (2, 4))
_pooled2, _pooled4 = (_transform_to_output(matrices(m, 3).outputs, pooled=True) for m in (2, 4))
_masked2, _masked4 = (_transform_to_output(matrices(m, 3).outputs, masked=True) for m in (2, 4))
# the gradient of the filters is a correlation with 3 × 3 outputs, whose m × m "filters" are the tiles of dy
_upstream2, _upstream4 = (_transform(matrices(3, m).filters) for m in (2, 4))
_gradient2, _gradient4 = (_transform(matrices(3, m).outputs) for m in (2, 4))


@njit(cache=True)
def _place(tile, grid):
    """tile → image, row and column of its first output."""
    n, rest = divmod(tile, grid.rows * grid.columns)
    return n, rest // grid.columns * grid.m, rest % grid.columns * grid.m


@njit(cache=True)
def _first_to_fetch(a, x, tile, grid):
    """Where in x (N, H, W, C) the outputs of a tile begin, and nearly so what they look at, from a's beginning."""
    _, H, W, C = x.shape
    n, h, w = _place(tile, grid)
    return distance(a, x) + ((n * H + h) * W + w) * C


@njit(cache=True)
def _far_to_fetch(i, products, x_at, of_x, mask_at, of_mask, rows, steps):
    """What product i of a task fetches from far away: of x, but in the second half of a task of the mask, if any."""
    before = products // 2 if of_mask > 0 else products
    if i < before:
        return to_fetch(i, before, x_at, of_x, rows, steps)
    return to_fetch(i - before, products - before, mask_at, of_mask, rows, steps)


@njit(cache=True)
def _fill_patch(x, n, top, left, size, patch, pixel):
    """Copy the size × size pixels of image n from (top, left) on to `patch`, zero where there are none."""
    _, H, W, C = x.shape
    for i in range(size):
        for j in range(size):
            h, w = top + i, left + j
            to = patch[(i * size + j) * pixel : (i * size + j + 1) * pixel]
            to[:] = 0
            if 0 <= h < H and 0 <= w < W:
                run = x[n, h, w]
                for c in range(C):
                    to[c] = run[c]


@njit(cache=True, inline="always")
def _transform_tile(m, upstream, x, at, strides, V, to, planes, vectors):
    if upstream and m == 4:
        _upstream4(x, at, strides, V, to, planes, vectors, 0)
    elif upstream:
        _upstream2(x, at, strides, V, to, planes, vectors, 0)
    elif m == 4:
        _input4(x, at, strides, V, to, planes, vectors, 0)
    else:
        _input2(x, at, strides, V, to, planes, vectors, 0)


@njit(cache=True)
def _load_tiles(x, upstream, grid, first, count, offset, V, v_at, tiles, stride, patch):
    """Transform `count` tiles of x (N, H, W, C), from number `first` on, into V (P, tiles, stride) from v_at on.

    They begin `offset` pixels up and left of their outputs. If `upstream`, x is dy and its tiles are m × m.
    """
    _, H, W, C = x.shape
    size = grid.m if upstream else grid.m + 2
    planes = ((grid.m + 2) * tiles * stride, tiles * stride)
    vectors = (C + LANES - 1) // LANES
    flat = x.reshape(-1)
    for t in range(count):
        n, h, w = _place(first + t, grid)
        h, w, to = h - offset[0], w - offset[1], v_at + t * stride
        if C % LANES != 0 or h < 0 or w < 0 or h + size > H or w + size > W:
            pixel = vectors * LANES
            _fill_patch(x, n, h, w, size, patch, pixel)
            _transform_tile(grid.m, upstream, patch, 0, (size * pixel, pixel), V, to, planes, vectors)
        else:
            _transform_tile(grid.m, upstream, flat, ((n * H + h) * W + w) * C, (W * C, C), V, to, planes, vectors)


@njit(cache=True, inline="always")
def _transform_back(
    m, pooled, masked, M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at
):
    if pooled and m == 4:
        _pooled4(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)
    elif pooled:
        _pooled2(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)
    elif masked and m == 4:
        _masked4(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)
    elif masked:
        _masked2(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)
    elif m == 4:
        _output4(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)
    else:
        _output2(M, at, planes, y, to, strides, vectors, bias, o, floor, mask, streamed, watched, watched_at)


@njit(cache=True)
def _store_tiles(
    M, m_at, tiles, stride, grid, first, count, y, o, outputs, bias, floor, mask, masked, streamed, patch,
    watched, watched_at,
):  # fmt: skip
    """The tiles' way back: from M (P, tiles, stride) to the outputs o … o + outputs of y (N, OH, OW, O).

    If the grid is pooled, so is y, and what a tile leaves in it is half as high and wide.
    """
    _, OH, OW, O = y.shape
    m, size = grid.m, grid.m // 2 if grid.pooled else grid.m
    planes = ((m + 2) * tiles * stride, tiles * stride)
    vectors = (outputs + LANES - 1) // LANES
    flat = y.reshape(-1)
    for t in range(count):
        n, h, w = _place(first + t, grid)
        h, w = h // m * size, w // m * size
        at = m_at + t * stride
        if outputs % LANES == 0 and h + size <= OH and w + size <= OW:
            to, strides = ((n * OH + h) * OW + w) * O + o, (OW * O, O)
            _transform_back(
                m, grid.pooled, masked, M, at, planes, flat, to, strides, vectors, bias, o, floor, mask, streamed,
                watched, watched_at,
            )  # fmt: skip
        else:
            strides = (size * vectors * LANES, vectors * LANES)
            _transform_back(
                m, grid.pooled, False, M, at, planes, patch, 0, strides, vectors, bias, o, floor, mask, 0,
                watched, watched_at,
            )  # fmt: skip
            _empty_patch(patch, size, strides, y, n, h, w, o, outputs, mask, masked)


@njit(cache=True)
def _empty_patch(patch, size, strides, y, n, top, left, o, outputs, mask, masked):
    """Copy what lies inside the image from `patch`, of size × size pixels, to y."""
    _, OH, OW, _ = y.shape
    for i in range(min(size, OH - top)):
        for j in range(min(size, OW - left)):
            at = i * strides[0] + j * strides[1]
            run = patch[at : at + outputs]
            to = y[n, top + i, left + j, o : o + outputs]
            kept = mask[n, top + i, left + j, o : o + outputs]
            for c in range(outputs):
                to[c] = 0 if masked and not kept[c] > 0 else run[c]


@kernel
def convolve(x, U, y, bias, floor, mask, masked, streamed, grid, offset, V, M, patches, blocks_at_once, watched):
    """y (N, OH, OW, O) = the convolution of x (N, H, W, C) by its transformed filters U, pooled if the grid says so.

    A task is some tiles for some blocks of outputs: transform, P products, transform back, all in the same thread and,
    if the sizes are well chosen, in its second-level cache. V, M, patches and `watched` hold a place for each worker.
    """
    C, O = x.shape[3], y.shape[3]
    workers, P, T, v_stride = V.shape
    m_stride = M.shape[3]
    blocks = U.shape[1]
    parts = (blocks + blocks_at_once - 1) // blocks_at_once
    tasks = (grid.tiles + T - 1) // T * parts
    for index in prange(workers):
        worker = np.intp(index)
        v_at, m_at, patch = worker * P * T * v_stride, worker * P * T * m_stride, patches[worker]
        loaded = -1
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            group, part = divmod(task, parts)
            first, count = group * T, min(T, grid.tiles - group * T)
            if group != loaded:
                _load_tiles(x, False, grid, first, count, offset, V, v_at, T, v_stride, patch)
                loaded = group
            block, last = part * blocks_at_once, min(blocks, (part + 1) * blocks_at_once)
            width = last - block
            # memory answers meanwhile: next filters, what the next task's tiles look at, and what these tiles' mask is
            x_at = _first_to_fetch(U, x, (task + 1) // parts * T, grid)
            mask_at = _first_to_fetch(U, mask, first, grid)
            for i in range(P * width):
                p, b = divmod(i, width)
                panel = p * blocks + block + b
                near = to_fetch(
                    0, 1, (panel + (1 if b + 1 < width else 1 + blocks - width)) * C * COLUMNS, C * COLUMNS, count, C
                )
                far = _far_to_fetch(
                    i, P * width, x_at, T * grid.m**2 * C, mask_at, T * grid.m**2 * O if masked else 0, count, C
                )
                product(
                    count, V, v_at + p * T * v_stride, (0, v_stride, 1), U, panel * C * COLUMNS, (0, COLUMNS),
                    M, m_at + p * T * m_stride + b * COLUMNS, m_stride, (1, C), 0, (near, far),
                )  # fmt: skip
            o, outputs = block * COLUMNS, min(O, last * COLUMNS) - block * COLUMNS
            _store_tiles(
                M, m_at, T, m_stride, grid, first, count, y, o, outputs, bias, floor, mask, masked, streamed, patch,
                watched, worker * LANES,
            )  # fmt: skip


@kernel
def correlate(x, dy, grid, offset, V, D, G, patches):
    """G (P, O, C) = Σ over tiles of D ⊗ V, the transformed tiles of dy and x: the transformed gradient of the filters.

    Tiles are taken by the hundred: all threads transform them into V (P, tiles, C) and D (P, tiles, O), and then add
    the products, each thread in planes of its own. So every sum has one order, however many threads there are.
    """
    C, O = x.shape[3], dy.shape[3]
    P, T, v_stride = V.shape
    d_stride, g_stride = D.shape[2], G.shape[2]
    workers = len(patches)
    blocks = (C + COLUMNS - 1) // COLUMNS
    for first in range(0, grid.tiles, T):
        count = min(T, grid.tiles - first)
        for index in prange(workers):
            worker = np.intp(index)
            t, end = worker * count // workers, (worker + 1) * count // workers
            patch = patches[worker]
            _load_tiles(x, False, grid, first + t, end - t, offset, V, t * v_stride, T, v_stride, patch)
            _load_tiles(dy, True, grid, first + t, end - t, (0, 0), D, t * d_stride, T, d_stride, patch)
        x_at = _first_to_fetch(V, x, first + T, grid)  # what is to be transformed next
        dy_at = _first_to_fetch(V, dy, first + T, grid)
        for task in prange(P * blocks):
            i = np.intp(task)
            p, b = divmod(i, blocks)
            product(
                O, D, p * T * d_stride, (0, 1, d_stride), V, p * T * v_stride + b * COLUMNS, (0, v_stride),
                G, p * G.shape[1] * g_stride + b * COLUMNS, g_stride, (1, count), min(first, 1),
                (to_fetch(i, P * blocks, x_at, T * grid.m**2 * C, O, count),
                 to_fetch(i, P * blocks, dy_at, T * grid.m**2 * O, O, count)),
            )  # fmt: skip


@kernel
def gradient_of_filters(m, G, dw):
    """G (P, O, C) → dw (O, 3, 3, C), its channels padded to whole vectors."""
    _, rows, stride = G.shape
    O, _, _, C = dw.shape
    planes = ((m + 2) * rows * stride, rows * stride)
    for index in prange(O):
        o = np.intp(index)
        if m == 4:
            _gradient4(G, o * stride, planes, dw, o * 9 * C, (3 * C, C), C // LANES, 0)
        else:
            _gradient2(G, o * stride, planes, dw, o * 9 * C, (3 * C, C), C // LANES, 0)


@njit(cache=True)
def _transform_filter(m, w, at, strides, U, to, plane, vectors, streamed):
    if m == 4:
        _filter4(w, at, strides, U, to, (6 * plane, plane), vectors, streamed)
    else:
        _filter2(w, at, strides, U, to, (4 * plane, plane), vectors, streamed)


@kernel
def transform_filters(m, w, U, streamed):
    """w (O, 3, 3, C), padded to whole vectors both ways → U (P, blocks of 32 outputs, channels, 32), for `forward`.

    In w a vector is 16 channels, in U 16 outputs: so each of the nine taps is transposed on the way.
    """
    O, _, _, C = w.shape
    _, blocks, channels, _ = U.shape
    for index in prange(O // LANES):
        o = np.intp(index) * LANES
        taps = np.empty((9, LANES, LANES), w.dtype)
        for c in range(0, C, LANES):
            for tap in range(9):
                transpose_square(w, (o * 9 + tap) * C + c, 9 * C, taps, tap * LANES * LANES, LANES)
            for i in range(min(LANES, channels - c)):
                to = (o // COLUMNS * channels + c + i) * COLUMNS + o % COLUMNS
                square = LANES * LANES
                plane = blocks * channels * COLUMNS
                _transform_filter(m, taps, i * LANES, (3 * square, square), U, to, plane, 1, streamed)


@kernel
def transform_rotated_filters(m, w, U, streamed):
    """The same for `grad_input`, where the O outputs are what is summed over, and the filters are turned by 180°."""
    O, _, _, C = w.shape
    _, blocks, channels, _ = U.shape
    for index in prange(min(O, channels)):
        o = np.intp(index)
        for block in range(blocks):
            at, to = (o * 9 + 8) * C + block * COLUMNS, (block * channels + o) * COLUMNS
            vectors = min(COLUMNS, C - block * COLUMNS) // LANES
            _transform_filter(m, w, at, (-3 * C, -C), U, to, blocks * channels * COLUMNS, vectors, streamed)
