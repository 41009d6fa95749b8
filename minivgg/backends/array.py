"""The only file that tells NumPy from CuPy, and the only one that knows about memory order.

An array's type says where it lives, and so where what is done with it is done: a NumPy array on the CPU, a CuPy array
on the GPU, a `SimulatedArray`, which is a NumPy array with another name on it, on the simulated GPU, where the kernels
of the real one run (see `cudasim`). `DEVICES` lists them; `to(x, device)` moves.

A tensor's *shape* is always (N, C, H, W). Its *memory order* is free: either the usual one (W varies fastest) or
channels last (C varies fastest), in which a pixel's channels lie side by side. Spatial kernels want channels last,
because then the inner loop of nearly everything is a run over contiguous channels; elementwise ones do not care.
"""

import functools
import sys

import numpy as np

from minivgg import cudasim
from minivgg.backends import workspace
from minivgg.errors import BadInput

DEVICES = ("cpu", "gpu", "sim")


class SimulatedArray(np.ndarray):
    """A NumPy array that lives on the simulated GPU. Kernels of the CPU refuse it, as they refuse CuPy's."""

    __numba_array_subtype_dispatch__ = True  # to Numba it is a type of its own: see `backends.jit`


class _Simulated:
    """NumPy, except that the arrays it makes are simulated ones."""

    def __getattr__(self, name: str):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def make(*arguments, **options):
            result = found(*arguments, **options)
            return result.view(SimulatedArray) if isinstance(result, np.ndarray) else result

        return make


_simulated = _Simulated()


def device_of(x) -> str:
    """One of `DEVICES`, told by the type of `x` alone, so that nothing imports CuPy needlessly."""
    if type(x) is np.ndarray:  # mostly; a small network asks some thousand times a second
        return "cpu"
    if type(x).__module__.partition(".")[0] == "cupy":
        return "gpu"
    return "sim" if isinstance(x, SimulatedArray) else "cpu"


def on_gpu(x) -> bool:
    """Whether CUDA kernels work on `x`: whether it is on a GPU, real or simulated."""
    return device_of(x) != "cpu"


def kind_of(device: str) -> str:
    """ "cpu" or "gpu": whose kernels run on one of `DEVICES`."""
    return "cpu" if device == "cpu" else "gpu"


def xp_of(x):
    """The module, `numpy` or `cupy`, whose functions apply to `x`; for a simulated array, what looks like `numpy`."""
    device = device_of(x)
    return sys.modules["cupy"] if device == "gpu" else _simulated if device == "sim" else np


def to(x, device: str):
    """A copy of `x` on one of `DEVICES`, or `x` itself where it is there already; its memory order stays.

    "gpu" needs CuPy and a device; "sim" needs a C++ compiler once the first kernel runs.
    """
    if device_of(x) == device:
        return x
    if "gpu" in (device, device_of(x)) and x.ndim == 4 and not x.flags.c_contiguous:
        return nchw(to(nhwc(x), device))  # CuPy's own copies come out in C order
    if device == "gpu":
        import cupy

        return cupy.asarray(x.view(np.ndarray) if isinstance(x, SimulatedArray) else x)
    host = x.get() if device_of(x) == "gpu" else np.asarray(x)
    return host.copy("K").view(SimulatedArray) if device == "sim" else host


def why_not(device: str) -> str | None:
    """None if arrays can be on one of `DEVICES`, else the reason."""
    if device == "sim":
        return cudasim.why_not()
    if device != "gpu":
        return None if device in DEVICES else f"there are {', '.join(DEVICES)}"
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed: pip install 'minivgg[cuda12]', or [cuda13]"
    return None if cupy.cuda.is_available() else "CuPy finds no GPU"


def check_device(device: str) -> None:
    """Raise BadInput, with the reason, unless arrays can be on `device`."""
    if why := why_not(device):
        raise BadInput(f"device {device}: {why}")


def to_cpu(x) -> np.ndarray:
    """A copy of `x` in main memory, or `x` itself where it is there already."""
    return to(x, "cpu") if on_gpu(x) else np.asarray(x)


def constant_on(x, values: np.ndarray):
    """`values`, a few numbers that never change, where `x` is: copied there once, and not to be written to.

    A step that copies nothing from the host can be recorded once and run again as a whole (a CUDA graph).
    """
    return _constant(values.tobytes(), values.dtype, values.shape, device_of(x))


@functools.lru_cache(1024)
def _constant(content: bytes, dtype: np.dtype, shape: tuple, device: str):
    return to(np.frombuffer(content, dtype).reshape(shape), device)


def nhwc(x):
    """(N, C, H, W) → a C-contiguous (N, H, W, C): a view if `x` is channels last already, else one transposing copy."""
    return xp_of(x).ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    """(N, H, W, C) → the (N, C, H, W) view of the same memory: the inverse of `nhwc`, free of charge."""
    return x.transpose(0, 3, 1, 2)


def channels_last(x):
    """`x` itself if its memory is channels last, else a copy that is; the shape stays (N, C, H, W) either way."""
    return nchw(nhwc(x))


def empty_on(x):
    """The function `empty(shape, dtype)` that makes arrays where `x` is."""
    return xp_of(x).empty if on_gpu(x) else workspace.empty


def empty_like(x):
    """An uninitialised array of x's shape and dtype, in the order in which `memory_run(x)` walks."""
    empty = empty_on(x)
    if x.ndim == 4 and not x.flags.c_contiguous:
        N, C, H, W = x.shape
        return nchw(empty((N, H, W, C), x.dtype))
    return empty(x.shape, x.dtype)


def memory_run(x):
    """The elements of `x` as one vector in *memory* order: a view, or a copy if `x` is in neither of the two orders.

    For elementwise work, which may walk any order as long as every operand walks the same one (see `ordered_like`).
    """
    if x.ndim == 4 and not x.flags.c_contiguous:
        x = nhwc(x)
    return xp_of(x).ascontiguousarray(x.reshape(-1)) if on_gpu(x) else x.reshape(-1)  # a CUDA kernel knows no strides


def ordered_like(x, model):
    """`x`, or a copy of it, in the memory order of `model`, whose shape is the same."""
    if x.ndim == 4 and not model.flags.c_contiguous:
        return channels_last(x)
    return xp_of(x).ascontiguousarray(x)
