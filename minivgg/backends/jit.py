"""How minivgg compiles a CPU kernel: Numba, cached on disk, its loops shared among cores by `prange`.

The threads are those of Numba's *workqueue* layer, which sleep between launches. The OpenMP layer's threads spin on
their cores for milliseconds after each one, just when the matrix product that follows (OpenBLAS, with threads of its
own) wants those cores: im2col in 4 MB chunks ran 2 to 8 times slower on two cores. `NUMBA_THREADING_LAYER` overrules.

The index of a `prange` may be unsigned, and Numba makes unsigned with signed a float: divide `np.intp(index)` instead.
"""

import functools
import threading

import numba
from numba import njit, prange

__all__ = ["kernel", "njit", "prange"]

_one_launch_at_a_time = threading.Lock()


def _use_sleeping_threads() -> None:
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "workqueue"


def kernel(function):
    """Compile `function` on its first call, `prange` loops in parallel; IEEE arithmetic, except that a·b + c may fuse.

    Launches from several Python threads queue up, because the workqueue layer ends the process if two run at once.
    """
    compiled = njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)

    @functools.wraps(function)
    def launch(*arguments):
        _use_sleeping_threads()
        with _one_launch_at_a_time:
            return compiled(*arguments)

    launch.compiled = compiled
    return launch
