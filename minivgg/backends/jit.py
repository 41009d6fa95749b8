"""How minivgg compiles a CPU kernel: Numba, cached on disk, its loops shared among cores by `prange`.

How many cores is said by `MINIVGG_NUM_THREADS` (or `numba.set_num_threads`); all of them by default.

Between two launches the threads of OpenMP wait by spinning, which makes a launch cost 2 µs instead of the 90 µs that
waking a sleeping thread takes on a virtual machine. But left to itself it spins for milliseconds, in the way of whoever
else wants the core. So here it spins for a tenth of a millisecond and then sleeps; `GOMP_SPINCOUNT` overrules.

GNU's OpenMP does not survive a fork: its threads are not there in the child, which would wait for them for ever. So the
child, a worker of `multiprocessing.Pool` say, runs our kernels on the one thread that it has.

The index of a `prange` may be unsigned, and Numba makes unsigned with signed a float: divide `np.intp(index)` instead.
"""

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator

import numba
from numba import prange
from numba.extending import typeof_impl

from minivgg import caches
from minivgg.backends import jit_cache
from minivgg.backends.array import SimulatedArray
from minivgg.errors import BadInput

__all__ = ["kernel", "njit", "prange", "threads"]


@typeof_impl.register(SimulatedArray)
def _refuse(array, context):
    raise TypeError("a kernel of the CPU was handed an array that is on the simulated GPU; move it with to(x, 'cpu')")


_one_launch_at_a_time = threading.Lock()
_nothing = contextlib.nullcontext()
_local = threading.local()
_fork_broke_openmp = False


def _configure() -> None:
    """What must be said once in each thread of Python, the first time before Numba starts its own."""
    if hasattr(_local, "configured"):
        return
    if _fork_broke_openmp:
        _go_on_alone()
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    wanted = os.environ.get("MINIVGG_NUM_THREADS")
    if wanted is not None:
        most = numba.config.NUMBA_NUM_THREADS
        if not wanted.isdigit() or not 1 <= int(wanted) <= most:
            raise BadInput(f"MINIVGG_NUM_THREADS must be a number from 1 to {most}, got {wanted}")
        numba.set_num_threads(int(wanted))
    _local.configured = True


def _after_fork() -> None:
    global _one_launch_at_a_time, _local, _fork_broke_openmp
    _one_launch_at_a_time, _local = threading.Lock(), threading.local()  # who held the lock is not here
    with contextlib.suppress(ValueError):  # no threads yet
        _fork_broke_openmp |= numba.threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _go_on_alone() -> None:
    """One thread for who calls. Numba, which ends a child that goes on with OpenMP, is told that it starts here."""
    from numba.np.ufunc import omppool

    ctypes.CFUNCTYPE(None, ctypes.c_int)(omppool.launch_threads)(1)
    numba.set_num_threads(1)
    _local.configured = True


def threads() -> int:
    """How many threads the next kernel runs on."""
    _configure()
    return numba.get_num_threads()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Say what takes so long, once, if somebody is looking and it takes longer than reading from the disk."""
    watched = "ipykernel" in sys.modules or (sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty())
    timer = threading.Timer(1, caches.say, ["compiling for this processor; the next time it comes from the disk"])
    timer.daemon = True
    if watched:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def njit(*, cache: bool, **options):
    """Numba's decorator; what is compiled is kept as `jit_cache` keeps it."""

    def decorate(function):
        compiled = numba.njit(**options)(function)
        if cache and compiled is not function:  # which it is where Numba is switched off
            compiled._cache = jit_cache.Cache(function)
        return compiled

    return decorate


def kernel(function):
    """Compile `function` on its first call, `prange` loops in parallel; IEEE arithmetic, except that a·b + c may fuse.

    Launches from several Python threads queue up: they would only take the cores from one another.
    """
    if numba.config.DISABLE_JIT:  # plain Python, for looking into a kernel
        return function
    compiled = njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)

    @functools.wraps(function)
    def launch(*arguments):
        _configure()
        with _one_launch_at_a_time, _nothing if compiled.overloads else _patience():
            return compiled(*arguments)

    return launch
