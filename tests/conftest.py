"""What every test file can ask for: the dtypes, the memory orders, and Hypothesis the same on every machine."""

import os

# Before Numba is imported: at least two threads, also on one core, so that "same bits with any number" means something.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import numpy as np
import pytest
from hypothesis import settings

pytest.register_assert_rewrite("numeric")
settings.register_profile("minivgg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("minivgg")


def channels_last(a):
    """The same values with channels varying fastest in memory; a matrix comes out transposed in memory instead."""
    if a.ndim == 2:
        return np.asfortranarray(a)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def strided_view(a):
    """The same values as every second element of a larger array of NaNs, which must never be seen."""
    larger = np.full((2 * a.shape[0], *a.shape[1:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    view = larger[1::2, ..., ::2]
    view[...] = a
    return view


MEMORY_ORDERS = {"C order": np.ascontiguousarray, "channels last": channels_last, "strided view": strided_view}


@pytest.fixture(scope="module", params=MEMORY_ORDERS)
def laid_out(request):
    """A function that gives an array one of the memory orders; vectors stay as they are."""
    return lambda a: a if a.ndim < 2 else MEMORY_ORDERS[request.param](a)


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)
