"""The logistic function, 1 / (1 + e⁻ˣ)."""

from minivgg.backends.array import xp_of
from minivgg.ops.windows import check_gradient


def sigmoid_forward(x):
    """y = 1 / (1 + e⁻ˣ), any shape; the cache is y. Only e^−|x| is ever taken, so that nothing overflows."""
    xp = xp_of(x)
    e = xp.exp(-xp.abs(x))
    y = xp.where(x >= 0, 1, e) / (1 + e)
    return y, y


def sigmoid_backward(dy, cache):
    """dx = dy · y · (1 − y)."""
    check_gradient("sigmoid_backward", dy, cache.shape, cache.dtype)
    return dy * cache * (1 - cache)
