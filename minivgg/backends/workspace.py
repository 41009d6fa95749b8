"""Memory that is taken from the system once and used again and again.

A fresh page costs about 2.4 µs when it is first touched, so a 64 MB array made anew in every convolution would cost
40 ms each time, more than many convolutions take. There are two kinds:

`buffer`   scratch, valid until the same thread asks for the same purpose again: one growing buffer for each purpose.
           How much an operation may ask for at once is `limit()`: 64 MiB, unless the environment variable
           `MINIVGG_WORKSPACE` or `set_limit` says otherwise.
`empty`    results: an ordinary array for as long as anybody holds it. When nobody does, its memory serves the next one.
"""

import collections
import math
import os
import threading

import numpy as np

from minivgg.errors import BadInput

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

_local = threading.local()
_limit_mib: float | None = None  # not yet asked for


def limit() -> int:
    """The most bytes that an operation should ask for at once; it works in chunks that fit."""
    if _limit_mib is None:
        set_limit(os.environ.get("MINIVGG_WORKSPACE", 64))
    return int(_limit_mib * 2**20)


def set_limit(mib: float | str) -> None:
    """Let operations ask for `mib` MiB at once. Raises BadInput unless it is a positive, finite number."""
    global _limit_mib
    try:
        number = float(mib)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise BadInput(f"the workspace limit (MINIVGG_WORKSPACE) must be a positive number of MiB, got {mib}")
    _limit_mib = number


def buffer(purpose: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised, 64-byte aligned array, valid until this thread asks for the same `purpose` again.

    The memory behind a purpose grows to the largest request and stays; `release` gives all of it back.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    buffers = _local.__dict__
    if purpose not in buffers or buffers[purpose].nbytes < nbytes:
        buffers.pop(purpose, None)  # before the new one is taken, so that both are never held at once
        buffers[purpose] = _aligned(nbytes)
    return buffers[purpose][:nbytes].view(dtype).reshape(shape)


class _Block:
    """Memory that comes back to the pool when the last array on it goes."""

    def __init__(self, memory: np.ndarray, shape: tuple, dtype: np.dtype):
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "data": (memory.ctypes.data, False),
            "shape": tuple(shape),
            "typestr": dtype.str,
        }

    def __del__(self):
        _returned.append(self.memory)  # and no more: this may run at any moment, in any thread


_POOLED = 1 << 20  # bytes: smaller arrays are left to the system, which keeps their pages anyway
_SLACK = 1.25  # the pool may hold this many times the memory that was ever in use at once
_returned: collections.deque[np.ndarray] = collections.deque()
_idle: list[np.ndarray] = []  # the one that came back last at the end
_pool = threading.Lock()
_in_use = _most_in_use = 0


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array, like `numpy.empty`, but 64-byte aligned and of used memory if it is a large one."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _POOLED:
        return _aligned(nbytes).view(dtype).reshape(shape)
    return np.asarray(_Block(_take(nbytes), shape, dtype))


def _take(nbytes: int) -> np.ndarray:
    """At least `nbytes`, but not twice as many, of idle memory if there is such a block, else of new."""
    global _in_use, _most_in_use
    with _pool:
        while _returned:
            _idle.append(_returned.popleft())
            _in_use -= _idle[-1].nbytes
        fitting = [i for i, memory in enumerate(_idle) if nbytes <= memory.nbytes < 2 * nbytes]
        memory = _idle.pop(min(fitting, key=lambda i: _idle[i].nbytes)) if fitting else None
        _in_use += memory.nbytes if fitting else nbytes
        _most_in_use = max(_most_in_use, _in_use)
        while _idle and _in_use + sum(m.nbytes for m in _idle) > _SLACK * _most_in_use:
            _idle.pop(0)
        return _aligned(nbytes) if memory is None else memory


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


def release() -> None:
    """Give back this thread's buffers, and all idle memory."""
    _local.__dict__.clear()
    with _pool:
        _idle.clear()
