"""What the suite works with: random signed arrays, memory orders, devices, threads and scratch memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import to, why_not, xp_of

# ---- Random data ----


def signed(rng: np.random.Generator, shape: tuple, dtype) -> np.ndarray:
    """Normal, and so of both signs."""
    return np.asarray(rng.standard_normal(shape), dtype)


def away_from_zero(rng: np.random.Generator, shape: tuple, dtype) -> np.ndarray:
    """Signed, and never nearer to 0 than 0.1: for kinks at 0."""
    x = rng.standard_normal(shape)
    return np.asarray(x + np.copysign(0.1, x), dtype)


def distinct(rng: np.random.Generator, shape: tuple, dtype) -> np.ndarray:
    """A permutation of evenly spaced values from −2 to 2: for kinks where two values meet."""
    return rng.permutation(np.linspace(-2, 2, np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


def integers(rng: np.random.Generator, shape: tuple, dtype) -> np.ndarray:
    """From −4 to 4: sums of products of such numbers are exact, so that the order of adding cannot be seen."""
    return np.asarray(rng.integers(-4, 5, shape), dtype)


def stirred(a: np.ndarray, eps: float, rng: np.random.Generator) -> np.ndarray:
    """Each element changed by up to 8·eps of itself: what that does to a result is how well it can be known."""
    return a + a * (8 * eps * rng.uniform(-1, 1, a.shape))


# ---- Memory orders ----


def c_order(a):
    """The last dimension varies fastest."""
    return xp_of(a).ascontiguousarray(a)


def channels_last(a):
    """The same values with channels varying fastest in memory; a matrix comes out transposed in memory instead."""
    xp = xp_of(a)
    if a.ndim == 2:
        return xp.asfortranarray(a)
    return xp.moveaxis(xp.ascontiguousarray(xp.moveaxis(a, 1, -1)), -1, 1)


def strided(a):
    """The same values as every second element of a larger array of nans, which must never be seen."""
    larger = xp_of(a).full((2 * a.shape[0], *a.shape[1:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    view = larger[1::2, ..., ::2]
    view[...] = a
    return view


MEMORY_ORDERS: dict[str, Callable] = {"C order": c_order, "channels last": channels_last, "strided": strided}


def laid_out(a, order: str):
    """`a` in one of `MEMORY_ORDERS`; vectors and numbers stay as they are."""
    return a if a.ndim < 2 else MEMORY_ORDERS[order](a)


# ---- Devices, threads, memory ----


def devices() -> tuple[str, ...]:
    """The devices present: "cpu", and "gpu" where CuPy is installed and finds one."""
    return ("cpu",) if why_not("gpu") else ("cpu", "gpu")


def put(a, device: str):
    """`a` on the device; what is no array stays as it is."""
    if not hasattr(a, "dtype"):
        return a
    return to(a, device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, compiled kernels and matrix products run on `count` threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def workspace_of(nbytes: float) -> Iterator[None]:
    """Inside, operations may ask for so many bytes of scratch memory at once."""
    before = workspace.limit() / 2**20
    workspace.set_limit(nbytes / 2**20)
    try:
        yield
    finally:
        workspace.set_limit(before)
        workspace.release()
