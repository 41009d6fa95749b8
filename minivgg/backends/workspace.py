"""Scratch memory that is taken from the system once and used again and again.

A fresh page costs about 2.4 µs when it is first touched, so a 64 MB scratch array made anew in every convolution would
cost 40 ms each time, more than many convolutions take. So each thread keeps one growing buffer for each purpose.

How much an operation may ask for at once is `limit()`: 64 MiB, unless the environment variable `MINIVGG_WORKSPACE`
or `set_limit` says otherwise.
"""

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
        raw = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        buffers[purpose] = raw[start : start + nbytes]
    return buffers[purpose][:nbytes].view(dtype).reshape(shape)


def release() -> None:
    """Give back this thread's buffers."""
    _local.__dict__.clear()
