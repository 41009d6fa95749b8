"""The matrix product, by BLAS on as many cores as Numba has threads.

BLAS is asked for one thread, and each of ours multiplies its own share. BLAS's own threads wait for one another by
spinning, which is quick on an idle machine, but as soon as another program wants a core they spin while the one they
wait for cannot run: beside one busy program on two cores, training went 5 times slower than on a single thread.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
from threadpoolctl import ThreadpoolController

_blas_limited = threading.Lock()  # two threads in the block would restore each other's limit
_SMALL = 1 << 18  # multiply-adds below which waking another thread costs more than it brings


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="minivgg-gemm")


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def gemm(a, b, out=None):
    """a (M, K) · b (K, N) → (M, N), into `out` if given. 2·M·K·N FLOP.

    The longer of M and N is shared out, so that every element of the result is one thread's sum: the same bits again,
    and no partial results to add up.
    """
    (M, K), N = a.shape, b.shape[1]
    if out is None:
        out = np.empty((M, N), a.dtype)
    threads = numba.get_num_threads() if M * N * K > _SMALL else 1
    edges = np.linspace(0, max(M, N), threads + 1).astype(int)
    shares = [slice(*edge) for edge in pairwise(edges)]
    if M >= N:
        products = [(a[share], b, out[share]) for share in shares]
    else:
        products = [(a, b[:, share], out[:, share]) for share in shares]
    with _blas_limited, _blas().limit(limits=1):
        others = [_pool(threads - 1).submit(np.matmul, *product) for product in products[1:]]
        np.matmul(*products[0])
        for other in others:
            other.result()
    return out
