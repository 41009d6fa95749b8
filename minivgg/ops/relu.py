"""ReLU: what is positive passes, the rest is zero."""

from minivgg.backends.array import empty_like, memory_run, ordered_like
from minivgg.backends.cuda import twin
from minivgg.backends.jit import kernel, prange
from minivgg.ops.windows import check_array, check_gradient


@twin("ops/relu.cu", "relu_forward")
@kernel
def _forward(x, y):
    for i in prange(x.size):
        y[i] = 0 if x[i] <= 0 else x[i]  # written so that a NaN passes


@twin("ops/relu.cu", "relu_backward")
@kernel
def _backward(dy, y, dx):
    for i in prange(dy.size):
        dx[i] = dy[i] if y[i] > 0 else 0


def relu_forward(x):
    """y = max(x, 0), any shape, in x's memory order: 0 also for −0.0, and NaN for NaN.

    The cache is y itself: the next layer usually keeps it anyway, so that it costs nothing. Cost: one read, one write.
    """
    check_array("relu", "x", x, halves=True)
    y = empty_like(x)
    _forward(memory_run(x), memory_run(y))
    return y, y


def relu_backward(dy, cache):
    """dx = dy where y > 0, else 0. At the kink, x = 0, the derivative is taken to be 0, and so it is where x is NaN
    (where PyTorch passes dy on)."""
    check_gradient("relu_backward", dy, cache.shape, cache.dtype)
    dx = empty_like(cache)
    _backward(memory_run(ordered_like(dy, cache)), memory_run(cache), memory_run(dx))
    return dx
