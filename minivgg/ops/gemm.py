"""The matrix product: our own in float32, on the micro-kernel of `backends.microkernel`; else by BLAS.

The micro-kernel wants its factors side by side and near by. So the result is cut into blocks, each the work of one
thread, and the long dimension into steps of 256: a block of a (at most 224 × 256) and one of b (256 × 512) are copied
to where the second-level cache holds them, b in panels of 32 columns, and multiplied there 14 × 32 results at a time.
Whatever way round a factor lies in memory is settled by the copy. An element's sum is taken in steps of 256 wherever
the blocks begin, so the result has the same bits on any number of threads.

A batch of a few images makes fully connected layers a matter of memory: each weight is read once (or, as a gradient,
written once, past the caches), and a few multiplications are done with it. There nothing is copied: rows of weights
meet the rows of the batch where they lie.

BLAS is asked for one thread, and each of ours multiplies its own share. BLAS's own threads wait for one another by
spinning, which is quick on an idle machine, but as soon as another program wants a core they spin while the one they
wait for cannot run: beside one busy program on two cores, training went 5 times slower than on a single thread.

Source: Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), §4 and §6.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

from minivgg.backends import cuda, workspace
from minivgg.backends.array import empty_on, on_gpu, xp_of
from minivgg.backends.graph import between
from minivgg.backends.jit import kernel, njit, prange, threads
from minivgg.backends.microkernel import COLUMNS, ROWS, product
from minivgg.backends.simd import LANES, traced, transpose

_ROWS, _COLUMNS, _STEPS = 16 * ROWS, 16 * COLUMNS, 256  # of a block: 0.2 MB of a and 0.5 MB of b
_APART = 16  # floats between two copied rows: were their distance a power of two, few places of a cache would hold them
_PAST_CACHES = 1 << 25  # bytes: a larger result is out of every cache before anybody reads it

_FEW = 16  # rows of a, or fewer: products for which b need not be copied
_HIGH, _WIDE = 8, 3  # rows of a and of b's transpose that meet: 24 sums, and registers for what is multiplied
_STRETCH = 1024  # of a sum: 8 rows of a, 32 KB, stay in the first-level cache, and b is read 4 KB at a time

_LEAST = 256  # rows or columns of a piece: fewer would not repay the packing that BLAS does for each product
_WORK = 1 << 24  # multiply-adds of a piece: fewer would not repay waking a thread
_READING = 1 << 23  # the same for a product with a vector, where each multiply-add waits for a number from memory


def gemm(a, b, out=None):
    """a (M, K) · b (K, N) → (M, N), into `out` if given; both factors may be transposed views.

    On a GPU it is cuBLAS's; see `gemm_on_gpu` for our own there.

    Cost: 2·M·K·N FLOP. Each factor is read once if its other dimension fits a block (M ≤ 224 for b, N ≤ 512 for a).
    """
    (M, K), N = a.shape, b.shape[1]
    if out is None:
        out = empty_on(a)((M, N), a.dtype)
    if 0 in (M, K, N):
        out[...] = 0
    elif on_gpu(a):
        between(by_cublas_on_gpu, a, b, out)
    elif any(m.dtype != np.float32 for m in (a, b, out)):
        _by_blas(a, b, out)
    elif M <= _FEW and N > 1 and b.T.flags.c_contiguous and out.flags.c_contiguous:
        sums = workspace.buffer("gemm tile", (threads(), 2 * LANES), a.dtype)
        _by_rows(np.ascontiguousarray(a), b.T, out, _STRETCH, sums)
    elif min(M, N) == 1 and K > 1:
        _by_blas(a, b, out)  # a product with a vector is no more than reading the matrix
    elif out.flags.c_contiguous:
        _by_blocks(a, b, out)
    else:
        out[...] = gemm(a, b)
    return out


def by_cublas_on_gpu(a, b, out) -> None:
    """out = a · b, for stacks of matrices as well, on a GPU. To be called by `between`: CuPy does not record it."""
    with np.errstate(all="ignore"):  # where NumPy stands in for cuBLAS; see `_multiply`
        xp_of(a).matmul(a, b, out=out)


VARIANTS_ON_GPU = {  # on a GPU: the block of threads, and the part of the result (rows, columns) that it computes
    "naive": ((32, 8), (32, 8)),
    "coalesced": ((32, 8), (8, 32)),
    "tiled": ((32, 32), (32, 32)),
    "register_blocked": ((256,), (128, 128)),
}


def gemm_on_gpu(a, b, out=None, *, variant: str = "register_blocked"):
    """a (M, K) · b (K, N) → (M, N) by a kernel of our own, one of `VARIANTS_ON_GPU`: `gemm.cu` is a ladder to read.

    `gemm` is what to use. float32 or float64, on a GPU or its simulator; both factors may be transposed views. `out`
    is in C order. Raises KeyError for an unknown variant, ValueError for shapes that do not go together.
    """
    (threads, (rows, columns)), xp = VARIANTS_ON_GPU[variant], xp_of(a)
    (M, K), N = a.shape, b.shape[1]
    if len(b) != K or (out is not None and not (out.shape == (M, N) and out.flags.c_contiguous)):
        raise ValueError(f"gemm_on_gpu: a {a.shape} · b {b.shape} makes ({M}, {N}), in C order, where a has b's rows")
    if out is None:
        out = xp.empty((M, N), a.dtype)
    if 0 in (M, K, N):
        out[...] = 0
        return out
    grid = -(-M // rows), -(-N // columns)
    a, b = (m if m.T.flags.c_contiguous else xp.ascontiguousarray(m) for m in (a, b))
    strides = [stride // a.itemsize for m in (a, b) for stride in m.strides]
    cuda.kernel("ops/gemm.cu", variant, T=a.dtype)(grid, threads, a, b, out, M, N, K, *strides)
    return out


# ---- Our own, on the CPU ----


@traced
def _copy_panels(code, b, b_at, b_row, steps, panels, to, to_at):
    """b (steps, 32·panels) → (panels, steps, 32)."""
    for k in code.loop(steps):
        for p in code.loop(panels):
            for j in (0, LANES):
                to.store(to_at + p * steps * COLUMNS + k * COLUMNS + j, b.load(b_at + k * b_row + p * COLUMNS + j))


@traced
def _turn_panel(code, b, b_at, b_row, squares, to, to_at):
    """b (32, 16·squares) → (16·squares, 32)."""
    for s in code.loop(squares):
        for j in (0, LANES):
            square = [b.load(b_at + (i + j) * b_row + s * LANES) for i in range(LANES)]
            for i, vector in enumerate(transpose(square)):
                to.store(to_at + s * LANES * COLUMNS + i * COLUMNS + j, vector)


@traced
def _stream(code, tile, rows, c, c_at, c_row):
    """c (rows, 32) = tile (rows, 32), past the caches."""
    for i in code.loop(rows):
        for j in (0, LANES):
            c.stream(c_at + i * c_row + j, tile.load(i * COLUMNS + j))


@njit(cache=True)
def _copy(a, first, start, rows, columns, to, to_row):
    """Rows first, … and columns start, … of a."""
    for i in range(rows):
        source, target = a[first + i, start : start + columns], to[i * to_row : i * to_row + columns]
        for j in range(len(target)):
            target[j] = source[j]


@njit(cache=True)
def _into_panels(b, turned, k, n, steps, columns, to):
    """b[k : k + steps, n : n + columns], or that of its transpose, in panels; zeros fill the last panel."""
    row, panels, squares = b.shape[1], columns // COLUMNS, steps // LANES
    if turned:
        for p in range(panels):
            _turn_panel(b, (n + p * COLUMNS) * row + k, row, squares, to, p * steps * COLUMNS)
    else:
        _copy_panels(b, k * row + n, row, steps, panels, to, 0)
    for p in range((columns + COLUMNS - 1) // COLUMNS):  # and what is left over, number by number
        first, width = n + p * COLUMNS, min(COLUMNS, columns - p * COLUMNS)
        for s in range((squares * LANES if turned else steps) if p < panels else 0, steps):
            target = to[(p * steps + s) * COLUMNS : (p * steps + s + 1) * COLUMNS]
            target[:] = 0
            for j in range(width):
                target[j] = b[first + j, k + s] if turned else b[k + s, first + j]


@njit(cache=True)
def _write(tile, rows, columns, c, i, j, add):
    for r in range(rows):
        for q in range(columns):
            c[i + r, j + q] = tile[r * COLUMNS + q] + (c[i + r, j + q] if add else 0)


@kernel
def _blocks(a, a_turned, b, b_turned, c, block_rows, block_columns, packed_a, packed_b, tiles, streaming):
    """c = a · b, of which a or b or both are given as their transposes; scratch for each of the workers."""
    M, N = c.shape
    K = b.shape[1] if b_turned else b.shape[0]
    workers, down = len(tiles), (M + block_rows - 1) // block_rows
    tasks = down * ((N + block_columns - 1) // block_columns)
    for index in prange(workers):
        worker = np.intp(index)
        A, B, tile = packed_a[worker], packed_b[worker], tiles[worker]
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            m, n = task % down * block_rows, task // down * block_columns
            rows, columns = min(block_rows, M - m), min(block_columns, N - n)
            for k in range(0, K, _STEPS):
                steps = min(_STEPS, K - k)
                if a_turned:
                    strides = 0, 1, rows + _APART
                    _copy(a, k, m, steps, rows, A, rows + _APART)
                else:
                    strides = 0, _STEPS + _APART, 1
                    _copy(a, m, k, rows, steps, A, _STEPS + _APART)
                _into_panels(b, b_turned, k, n, steps, columns, B)
                for i in range(0, rows, ROWS):
                    high = min(ROWS, rows - i)
                    for j in range(0, columns, COLUMNS):
                        wide = min(COLUMNS, columns - j)
                        A_at, B_at, c_at = i * strides[1], j * steps, (m + i) * N + n + j
                        lengths, add = (1, steps), 1 if k > 0 else 0
                        if wide == COLUMNS and not streaming and high % 2 == 0:
                            product(high, A, A_at, strides, B, B_at, (0, COLUMNS), c, c_at, N, lengths, add)
                        else:  # the micro-kernel would write beyond what is to be written, or not past the caches
                            product(high, A, A_at, strides, B, B_at, (0, COLUMNS), tile, 0, COLUMNS, lengths, 0)
                            if wide == COLUMNS and streaming:
                                _stream(tile, high, c, c_at, N)
                            else:
                                _write(tile, high, wide, c, m + i, n + j, k > 0)


def _share(length: int, most: int, unit: int, workers: int) -> int:
    """The size of a block, in units, so that blocks of at most `most` give all workers the same to do."""
    blocks = -(-length // most)
    blocks += -blocks % workers
    return -(-length // (blocks * unit)) * unit


def _by_blocks(a, b, out) -> None:
    (a, a_turned), (b, b_turned) = _rows_of(a), _rows_of(b)
    (M, N), workers = out.shape, threads()
    columns = _share(N, _COLUMNS, COLUMNS, workers)
    blocks = -(-N // columns)
    rows = _share(M, _ROWS, ROWS, 1 if blocks >= workers else workers)
    packed_a = workspace.buffer("gemm a", (workers, (rows + _APART) * (_STEPS + _APART)), a.dtype)
    packed_b = workspace.buffer("gemm b", (workers, _STEPS * columns), a.dtype)
    if M % 2:
        packed_a[...] = 0  # the micro-kernel reads one row more, and numbers left from elsewhere may be slow ones
    tiles = workspace.buffer("gemm tile", (workers, ROWS * COLUMNS), a.dtype)
    K = b.shape[b_turned]
    streaming = K <= _STEPS and N % LANES == 0 and out.ctypes.data % 64 == 0 and out.nbytes > _PAST_CACHES
    _blocks(a, a_turned, b, b_turned, out, rows, columns, packed_a, packed_b, tiles, streaming)


def _rows_of(matrix):
    """(the matrix, False) or (its transpose, True), whichever is in C order, or a copy that is."""
    if matrix.T.flags.c_contiguous and not matrix.flags.c_contiguous:
        return matrix.T, True
    return np.ascontiguousarray(matrix), False


# ---- A few rows ----


@traced
def _dots(code, high, a, a_at, a_row, b, b_ats, ahead, vectors, sums):
    """sums[j · high + i] = Σ over 16·vectors of a[i] · b[j], for the rows of b that begin at `b_ats`.

    What lies `ahead` of them is fetched meanwhile: the rows are too short for the processor to see by itself what comes
    next, and without this it took twice the time for eight rows of a.
    """
    for size in range(1, _HIGH + 1):
        for _ in code.when(high, size):
            totals = [code.variable(a.zero()) for _ in range(_WIDE * size)]
            for v in code.loop(vectors):
                columns = [b.load(at + v * LANES) for at in b_ats]
                for at in b_ats:
                    b.fetch(at + v * LANES + ahead)
                for i in range(size):
                    row = a.load(a_at + a_row * i + v * LANES)
                    for total, column in zip(totals[i::size], columns, strict=True):
                        total.value = row * column + total.value
            results = [total.value for total in totals] + [a.zero()] * (-len(totals) % LANES)
            for at in range(0, len(results), LANES):
                first, *others = transpose(results[at : at + LANES])
                for other in others:
                    first = first + other
                sums.store(at, first)


@kernel
def _by_rows(a, b, c, stretch, sums):
    """c (M, N) = a (M, K) · bᵀ, for b (N, K) and few rows of a: reads b once, as it lies in memory."""
    (M, K), N, workers = a.shape, len(b), len(sums)
    in_vectors = K // LANES * LANES
    for index in prange(workers):
        worker = np.intp(index)
        total, begin, end = sums[worker], worker * N // workers, (worker + 1) * N // workers
        for i in range(M):
            for j in range(begin, end):
                c[i, j] = 0
                for k in range(in_vectors, K):
                    c[i, j] += a[i, k] * b[j, k]
        for start in range(0, in_vectors, stretch):
            vectors = min(stretch, in_vectors - start) // LANES
            for j in range(begin, end, _WIDE):
                last = end - 1  # where there are fewer than three, it is taken again
                ats = (j * K + start, min(j + 1, last) * K + start, min(j + 2, last) * K + start)
                for i in range(0, M, _HIGH):
                    high = min(_HIGH, M - i)
                    _dots(high, a, i * K + start, K, b, ats, _WIDE * K, vectors, total)
                    for q in range(min(_WIDE, end - j)):
                        for r in range(high):
                            c[i + r, j + q] += total[q * high + r]


# ---- BLAS ----

_blas_limited = threading.Lock()  # two threads inside the block would restore each other's limit


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="minivgg-gemm")


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _multiply(a, b, out) -> None:
    with np.errstate(all="ignore"):  # like every compiled kernel: an overflow is inf, and no warning
        np.matmul(a, b, out=out)


def _by_blas(a, b, out) -> None:
    """The longer of M and N is cut into pieces, by the shapes alone: so the bits do not depend on the threads."""
    (M, K), N = a.shape, b.shape[1]
    long, short = max(M, N), min(M, N)
    work = _WORK if short > 1 else _READING
    size = max(_LEAST, work // (short * K))
    pieces = [slice(start, start + size) for start in range(0, long, size)]
    if M >= N:
        products = [(a[piece], b, out[piece]) for piece in pieces]
    else:
        products = [(a, b[:, piece], out[:, piece]) for piece in pieces]
    count = threads()
    with _blas_limited, _blas().limit(limits=1):
        run = map if count == 1 or len(pieces) == 1 else _pool(count).map
        for _ in run(_multiply, *zip(*products, strict=True)):
            pass
