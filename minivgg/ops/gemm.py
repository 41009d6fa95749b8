"""The matrix product, by BLAS on as many cores as Numba has threads.

BLAS is asked for one thread, and each of ours multiplies its own share. BLAS's own threads wait for one another by
spinning, which is quick on an idle machine, but as soon as another program wants a core they spin while the one they
wait for cannot run: beside one busy program on two cores, training went 5 times slower than on a single thread.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from threadpoolctl import ThreadpoolController

_LEAST = 256  # rows or columns of a piece: fewer would not repay the packing that BLAS does for each product
_WORK = 1 << 24  # multiply-adds of a piece: fewer would not repay waking a thread

_blas_limited = threading.Lock()  # two threads inside the block would restore each other's limit


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="minivgg-gemm")


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _multiply(a, b, out) -> None:
    with np.errstate(all="ignore"):  # like every compiled kernel: an overflow is inf, and no warning
        np.matmul(a, b, out=out)


def gemm(a, b, out=None):
    """a (M, K) · b (K, N) → (M, N), into `out` if given. 2·M·K·N FLOP.

    The longer of M and N is cut into pieces, by the shapes alone: so the result has the same bits on any number of
    threads.
    """
    (M, K), N = a.shape, b.shape[1]
    if out is None:
        out = np.empty((M, N), a.dtype)
    long, short = max(M, N), min(M, N)
    size = max(_LEAST, _WORK // (short * K))
    pieces = [slice(start, start + size) for start in range(0, long, size)]
    if M >= N:
        products = [(a[piece], b, out[piece]) for piece in pieces]
    else:
        products = [(a, b[:, piece], out[:, piece]) for piece in pieces]
    threads = numba.get_num_threads()
    with _blas_limited, _blas().limit(limits=1):
        run = map if threads == 1 or len(pieces) == 1 else _pool(threads).map
        for _ in run(_multiply, *zip(*products, strict=True)):
            pass
    return out
