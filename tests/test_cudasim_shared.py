"""The simulator knows which shared memory is a kernel's own."""

import numpy as np
import pytest

from minivgg import cudasim

KERNELS = """
__device__ float first_of(const float* x) {
    __shared__ float kept[SIZE];
    kept[0] = x[0];
    return kept[0];
}
#define EXCHANGE const float* x, float* y
extern "C" __global__ void twice(EXCHANGE) { __shared__ float large[8000]; large[0] = x[0]; y[0] = 2 * large[0]; }
extern "C" __global__ void thrice(EXCHANGE) { __shared__ float large[8000]; large[0] = x[0]; y[0] = 3 * large[0]; }
extern "C" __global__ void same(EXCHANGE) { __shared__ float large[8000]; large[0] = first_of(x); y[0] = large[0]; }
"""


def launched(name, size):
    x, y = np.ones(1, np.float32), np.zeros(1, np.float32)
    cudasim.RawKernel(KERNELS, name, (f"-DSIZE={size}",))((1,), (1,), (x, y))
    return y[0]


def test_a_kernel_is_charged_for_what_it_and_its_functions_declare():
    assert [launched("twice", 8), launched("thrice", 8), launched("same", 8)] == [2, 3, 1]  # 96,000 bytes together
    with pytest.raises(cudasim.SimulatorError, match=r"same: .* at most 49152 bytes of shared memory, here 52000"):
        launched("same", 5000)
