"""`Entry`: one array of a file that has not been read yet, and what every file format needs to make them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minivgg.texts import in_line

MAX_HEADER = 1 << 22  # bytes; a network of ten thousand arrays has a header of one megabyte
MAX_ARRAYS = 1 << 13  # in one file; the deepest networks have some thousands
DEFLATE_LIMIT = 1032  # no deflated byte gives more than this many (zlib's technical details)
FLOATS = ("float16", "bfloat16", "float32", "float64")


def shown(text: object, length: int = 80) -> str:
    """What a file says, fit to be printed: on one line, not too long, and with nothing that steers a terminal."""
    line = in_line(" ".join(str(text)[: 4 * length].split()))
    return line if len(line) <= length else f"{line[: length - 1]}…"


@dataclass(frozen=True)
class Entry:
    """An array as its file's header promises it: `read()` fetches the values, in the machine's byte order.

    `dtype` is NumPy's name, or "bfloat16", which NumPy has not: those are read as float32, whose upper half they are.
    Every promise has been held against the bytes that are there, so `read()` needs no more memory than a network with
    an array of this shape, or than the file.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def changed(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> "Entry":
        """This entry with `change` applied to its values, which brings them to `shape`."""
        return replace(self, shape=shape, read=lambda: change(self.read()))


def itemsize(dtype: str) -> int:
    """Bytes a value."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def read_values(path: Path, dtype: str, offset: int, count: int, order: str = "<") -> np.ndarray:
    """`count` values (count,) at `offset` bytes into a file, little-endian ("<") or big-endian (">").

    Raises ValueError where the file ends before.
    """
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder(order)
    values = np.fromfile(path, stored, count=count, offset=offset)
    if len(values) != count:
        raise ValueError(f"offset {offset}: the file ends {count - len(values)} values early")
    return decode(values, dtype)


def decode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in the machine's byte order, and bfloat16, given as uint16, as the float32 that it is the half of."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values
