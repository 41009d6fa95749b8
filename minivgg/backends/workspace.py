"""Memory that is taken from the system once and used again and again.

A fresh page costs about 2.4 µs when it is first touched, so a 64 MB array made anew in every convolution would cost
40 ms each time, more than many convolutions take. There are two kinds:

`buffer`   scratch, valid until the same thread asks for the same purpose again: one growing buffer for each purpose.
           How much an operation may ask for at once is `limit()`: 64 MiB, unless the environment variable
           `MINIVGG_WORKSPACE` or `set_limit` says otherwise.
`empty`    results: an ordinary array for as long as anybody holds it. When nobody does, its memory, or a part of it,
           serves the next one.
"""

import bisect
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


class _Slab:
    """Memory from the system, and the stretches (begin, end) of it that are idle, in bytes and in order."""

    def __init__(self, nbytes: int):
        self.memory = _aligned(nbytes)
        self.idle = [(0, nbytes)]

    def unused(self) -> bool:
        return self.idle == [(0, self.memory.nbytes)]

    def give_back(self, begin: int, end: int) -> None:
        """Let a stretch be idle again, as one with its neighbours if they are."""
        at = bisect.bisect(self.idle, (begin, end))
        if at < len(self.idle) and self.idle[at][0] == end:
            end = self.idle.pop(at)[1]
        if at > 0 and self.idle[at - 1][1] == begin:
            at -= 1
            begin = self.idle.pop(at)[0]
        self.idle.insert(at, (begin, end))


class _Block:
    """A stretch of a slab, that comes back to it when the last array on it goes."""

    def __init__(self, slab: _Slab, begin: int, nbytes: int, shape: tuple, dtype: np.dtype):
        self.place = slab, begin, begin + nbytes
        self.__array_interface__ = {
            "version": 3,
            "data": (slab.memory.ctypes.data + begin, False),
            "shape": tuple(shape),
            "typestr": dtype.str,
        }

    def __del__(self):
        _returned.append(self.place)  # and no more: this may run at any moment, in any thread


_POOLED = 1 << 20  # bytes: smaller arrays are left to the system, which keeps their pages anyway
_PART = 32  # a block has at least so small a part of its slab: for the slab has to stay as long as the block does
_SLACK = 1.25  # the pool may hold this many times the memory that was ever in use at once
_returned: collections.deque[tuple[_Slab, int, int]] = collections.deque()
_slabs: list[_Slab] = []  # the one that served last at the end
_pool = threading.Lock()
_in_use = _most_in_use = 0


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array, like `numpy.empty`, but 64-byte aligned and of used memory if it is a large one."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _POOLED:
        return _aligned(nbytes).view(dtype).reshape(shape)
    nbytes += -nbytes % _ALIGNMENT
    return np.asarray(_Block(*_take(nbytes), nbytes, shape, dtype))


def _take(nbytes: int) -> tuple[_Slab, int]:
    """The beginning of the smallest idle stretch that is large enough, or of a new slab if there is none."""
    global _in_use, _most_in_use
    with _pool:
        _collect()
        fitting = [
            (end - begin, slab, begin)
            for slab in _slabs
            if slab.memory.nbytes <= _PART * nbytes
            for begin, end in slab.idle
            if end - begin >= nbytes
        ]
        if fitting:
            size, slab, begin = min(fitting, key=lambda stretch: stretch[0])
            _slabs.remove(slab)
            slab.idle.remove((begin, begin + size))
        else:
            _make_room(nbytes, max(_most_in_use, _in_use + nbytes))
            size, slab, begin = nbytes, _Slab(nbytes), 0
            slab.idle.clear()
        _in_use += nbytes  # now that it is there
        _most_in_use = max(_most_in_use, _in_use)
        if size > nbytes:
            slab.give_back(begin + nbytes, begin + size)
        _slabs.append(slab)
        return slab, begin


def _collect() -> None:
    """Let what has come back be idle."""
    global _in_use
    while _returned:
        slab, begin, end = _returned.popleft()
        slab.give_back(begin, end)
        _in_use -= end - begin


def _make_room(nbytes: int, most: int) -> None:
    """Let go of slabs that nobody uses, the one that served longest ago first, as long as there is too much for `most`
    bytes in use."""
    for slab in list(_slabs):
        if sum(other.memory.nbytes for other in _slabs) + nbytes <= _SLACK * most:
            return
        if slab.unused():
            _slabs.remove(slab)


def _aligned(nbytes: int) -> np.ndarray:
    try:
        raw = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    except (MemoryError, ValueError):  # the second where so many bytes cannot even be counted
        raise MemoryError(
            f"no memory for {nbytes / 2**30:.3g} GiB at once; make the batch, the image or the network smaller"
        ) from None
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


def release() -> None:
    """Give back this thread's buffers, and all memory that no array is in."""
    _local.__dict__.clear()
    with _pool:
        _collect()
        _slabs[:] = [slab for slab in _slabs if not slab.unused()]
