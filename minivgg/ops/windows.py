"""What ops ask of their arguments before any arithmetic: of arrays, and of windows that slide over an image."""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from minivgg.backends.array import device_of
from minivgg.errors import BadInput, check_range

_FLOATS = np.dtype(np.float32), np.dtype(np.float64)
_FLOATS_ON_GPU = *_FLOATS, np.dtype(np.float16)
_ON_CPU = np.ndarray, np.memmap

# ---- Arrays ----


def check_array(op: str, name: str, x, *, halves: bool = False) -> None:
    """Raise ValueError, which says what to write instead, unless `x` is an array whose numbers kernels read rightly.

    That is an array of float32 or float64 (with `halves`, also of float16 on a GPU) in this machine's byte order, whose
    elements are aligned. Numba itself takes integers, which it then rounds to, and after an unaligned array it takes
    the bytes of a foreign order for its own. Cost: a third of a microsecond.
    """
    if type(x) in _ON_CPU:
        if x.dtype in _FLOATS and x.flags.aligned:
            return
    elif device_of(x) != "cpu" and x.dtype in (_FLOATS_ON_GPU if halves else _FLOATS):
        return
    raise ValueError(f"{op}: {name} {_what_is_wrong(name, x, halves)}")


def _is_array(x) -> bool:
    return type(x) in _ON_CPU or device_of(x) != "cpu"


def _what_is_wrong(name: str, x, halves: bool) -> str:
    if isinstance(x, np.ma.MaskedArray):
        return f"is a masked array, and a mask means nothing here: write {name}.filled(0), or another number"
    if not _is_array(x):
        return f"is of type {type(x).__name__}, not a NumPy array: write np.asarray({name}, np.float32)"
    dtype = x.dtype
    if dtype.isnative and dtype in _FLOATS:
        return f"is not aligned in memory: write {name}.copy()"
    if dtype.fields:
        return f"is of dtype {dtype}, not float32 or float64: write {name}[field] for one of its fields"
    to = "float64" if dtype.kind == "f" and dtype.itemsize > 4 else "float32"
    takes = "float32 or float64" + (", or float16 on a GPU" if halves else "")
    return f"is of dtype {dtype}, not {takes}: write {name}{'.real' * (dtype.kind == 'c')}.astype(np.{to})"


def check_arrays(op: str, *, halves: bool = False, **arrays) -> None:
    """`check_array` of each of `arrays`, by name, and that they all have one dtype and are on one device."""
    for name, a in arrays.items():
        check_array(op, name, a, halves=halves)
    x, w, *_ = given = arrays.values()
    if len({(a.dtype, type(a)) for a in given}) == 1:
        return
    *names, last = arrays
    names = f"{', '.join(names)} and {last}"
    if any(a.dtype != x.dtype for a in given):
        wrong, to = (names[0], w.dtype) if x.dtype != w.dtype else (last, x.dtype)
        dtypes = ", ".join(str(a.dtype) for a in given)
        raise ValueError(f"{op}: {names} must share one dtype, got {dtypes}: write {wrong}.astype(np.{to})")
    devices = [device_of(a) for a in given]
    if len(set(devices)) > 1:
        raise ValueError(f"{op}: {names} must be on one device, got {', '.join(devices)}: write layer.to(device)")


def check_dtype(what: str, dtype) -> np.dtype:
    """`dtype` as NumPy's, which parameters can be of. Raises BadInput unless it is one of those of `check_array`."""
    if np.dtype(dtype) not in _FLOATS_ON_GPU:
        raise BadInput(f"{what}: dtype = {dtype}: should be float32 or float64, or float16 on a GPU")
    return np.dtype(dtype)


def check_nchw(op: str, x, *, halves: bool = False) -> None:
    """Raise ValueError unless `x` is an array of floats (see `check_array`) of four dimensions (N, C, H, W), of which
    only N may be 0."""
    check_array(op, "x", x, halves=halves)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{op}: expected an (N, C, H, W) array, of which only N may be 0, got shape {x.shape}")


def check_parameters(op: str, x, w, b) -> None:
    """Raise ValueError unless x, w and b (which may be None) pass `check_arrays`, and b has a value for each of w's
    outputs, its first dimension."""
    check_arrays(op, halves=True, **{"x": x, "w": w} | ({} if b is None else {"b": b}))
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{op}: b must have shape {w.shape[:1]}, one value for each output, got {b.shape}")


def check_gradient(op: str, dy, y_shape: tuple, dtype) -> None:
    """Raise ValueError unless the upstream gradient `dy` is an array of the shape and dtype of the output that it
    belongs to."""
    if _is_array(dy) and (dy.shape != tuple(y_shape) or dy.dtype != dtype):
        write = "" if dy.dtype == dtype else f": write dy.astype(np.{dtype})"
        right = f"dy must have the output's shape {tuple(y_shape)} and dtype {dtype}"
        raise ValueError(f"{op}: {right}, got {dy.shape} {dy.dtype}{write}")
    check_array(op, "dy", dy, halves=True)


# ---- Windows ----


def pair(value: int | Sequence[int], what: str, least: int | None = None) -> tuple[int, int]:
    """`3` → (3, 3) and `(3, 5)` → (3, 5), as (height, width). Raises ValueError for anything else, and BadInput for
    less than `least`."""
    values = (value, value) if type(value) is int or not isinstance(value, Sequence) else tuple(value)
    if len(values) != 2 or not all(type(v) is int or _is_integer(v) for v in values):
        raise BadInput(f"{what} must be an integer or a pair of integers (height, width), got {value!r}")
    if least is not None and min(values) < least:
        check_range(what, min(values), least, math.inf, integer=True)
    return int(values[0]), int(values[1])


def _is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_window(op: str, kernel_size, stride, padding, *, pools: bool = False) -> tuple[tuple[int, int], ...]:
    """(kernel, stride, padding) as pairs. The stride is the kernel's size if it is None.

    Raises BadInput, naming `op`, the argument and its range, where kernel or stride is less than 1 or the padding less
    than 0; and if it `pools`, where the padding is more than half the kernel, since a window could lie in it alone.
    """
    kernel = pair(kernel_size, f"{op}: kernel_size", 1)
    stride = kernel if stride is None else pair(stride, f"{op}: stride", 1)
    padding = pair(padding, f"{op}: padding", 0)
    if pools and (padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2):
        raise BadInput(f"{op}: padding {padding} must be at most half the window {kernel}")
    return kernel, stride, padding


def output_size(
    op: str, size: tuple, kernel: tuple, stride: tuple, padding: tuple, ceil_mode: bool = False
) -> tuple[int, int]:
    """(H + 2·padding − K) // stride + 1 in each direction, for what `check_window` gives.

    With `ceil_mode` the quotient is rounded up: what is left over at the end gets a window too, which reaches past the
    padding, unless it would begin there (PyTorch's rule). Raises ValueError, naming `op`, where that is less than one.
    """
    rest = (t - 1 for t in stride) if ceil_mode else (0, 0)
    out = tuple((s + 2 * p - k + r) // t + 1 for s, k, t, p, r in zip(size, kernel, stride, padding, rest, strict=True))
    if ceil_mode:
        out = tuple(o - ((o - 1) * t >= s + p) for o, s, t, p in zip(out, size, stride, padding, strict=True))
    if min(out) < 1:
        raise ValueError(f"{op}: a {kernel} window does not fit into {size} with padding {padding}")
    return out
