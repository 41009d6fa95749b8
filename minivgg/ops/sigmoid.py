"""The logistic function, 1 / (1 + e⁻ˣ)."""

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import empty_like, memory_run, on_gpu, ordered_like
from minivgg.ops.windows import check_array, check_gradient


def sigmoid_forward(x):
    """y = 1 / (1 + e⁻ˣ), any shape; the cache is y. Only e^−|x| is ever taken, so that nothing overflows."""
    check_array("sigmoid", "x", x)
    if on_gpu(x):
        y = _on_gpu("sigmoid_forward", x)
    else:
        e = np.exp(-np.abs(x))
        y = np.asarray(np.where(x >= 0, 1, e) / (1 + e))
    return y, y


def sigmoid_backward(dy, cache):
    """dx = dy · y · (1 − y)."""
    check_gradient("sigmoid_backward", dy, cache.shape, cache.dtype)
    if on_gpu(dy):
        return _on_gpu("sigmoid_backward", ordered_like(dy, cache), cache)
    return np.asarray(dy * cache * (1 - cache))


def _on_gpu(name: str, *arrays):
    result = empty_like(arrays[-1])
    cuda.kernel("ops/sigmoid.cu", name, T=result.dtype).over(result.size, *map(memory_run, (*arrays, result)))
    return result
