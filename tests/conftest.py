"""What every test file can ask for: the dtypes, the memory orders, and Hypothesis the same on every machine."""

import os

# Before Numba is imported: at least two threads, also on one core, so that "same bits with any number" means something.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import numpy as np
import pytest
from hypothesis import settings

from minivgg.testing import arrays

settings.register_profile("minivgg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("minivgg")


@pytest.fixture(scope="module", params=arrays.MEMORY_ORDERS)
def laid_out(request):
    """A function that gives an array one of the memory orders; vectors stay as they are."""
    return lambda a: arrays.laid_out(a, request.param)


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)
