"""Bugs of what works element by element (ReLU, sigmoid, dropout), of flatten, and of the linear layer."""

import itertools

import numpy as np

from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import DROPOUT, FLATTEN, LINEAR, RELU, SIGMOID, op
from minivgg.gradcheck.zoo.oracles import dropout_keeps_the_mean
from minivgg.ops.dropout import _masked, dropout_backward, dropout_forward
from minivgg.ops.flatten import flatten_backward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward

# ---- ReLU ----


@bug(relu_backward, RELU, "x: the mask is inverted")
def relu_mask_inverted(dy, cache):
    """Lets through what forward stopped, and stops what it let through."""
    return dy * (cache <= 0)


@bug(relu_backward, RELU, "x: backward hands on dy as it is")
def relu_mask_missing(dy, cache):
    """Lets everything through."""
    return dy.copy()


@bug(relu_backward, RELU, "backward of 2·dy − 3·dy′ is not 2 and −3 times")
def relu_masks_by_dy(dy, cache):
    """Stops negative gradients as well, as guided backpropagation does on purpose: no longer linear in dy."""
    return dy * (cache > 0) * (dy > 0)


@bug(relu_backward, RELU, "x: the mask is missing: right where it should not be zero")
def relu_leaks(dy, cache):
    """A hundredth of the gradient passes where forward stopped all: backward is a leaky ReLU's."""
    return np.where(cache > 0, dy, 0.01 * dy)


@bug(relu_backward, RELU, "dy written to")
def relu_writes_on_dy(dy, cache):
    """Saves an array by masking dy in place: its owner, such as another branch, sees it change."""
    dy *= cache > 0
    return dy


_last_mask = {}


@bug(relu_forward, RELU, "a forward with other inputs in between changes the gradient of x: the cache is shared")
def relu_cache_shared(x):
    """All calls keep their output under one name: a second forward overwrites what the first backward needs."""
    y, cache = relu_forward(x)
    kept = _last_mask.setdefault(x.shape, np.empty_like(cache))
    kept[...] = cache
    return y, kept


@bug(relu_backward, RELU, "x: another mask")
def relu_one_threads_slice(dy, cache):
    """The second of two threads forgets the mask on its half of the memory."""
    dx = np.array(relu_backward(dy, cache))
    half = len(dx) // 2
    dx[half:] = dy[half:]
    return dx


@bug(relu_backward, RELU, "channels-last memory gives another gradient of x")
def relu_misreads_memory(dy, cache):
    """Walks dy and the mask in memory order, though they may lie in memory in different orders."""
    return (dy.ravel(order="K") * (cache.ravel(order="K") > 0)).reshape(dy.shape)


# ---- Sigmoid ----


@bug(sigmoid_backward, SIGMOID, "x: a missing factor 1 − y")
def sigmoid_half_a_derivative(dy, cache):
    """dy·y: the factor 1 − y is forgotten."""
    return dy * cache


@bug(sigmoid_backward, SIGMOID, "x: the error in dy/dx, a function of each x alone")
def sigmoid_with_the_derivative_of_tanh(dy, cache):
    """dy·(1 − y²), which is right for tanh."""
    return dy * (1 - cache**2)


@bug(sigmoid_forward, SIGMOID, "x: the error in dy/dx, a function of each x alone")
def sigmoid_caches_x(x):
    """Keeps x for backward, which takes it for y."""
    return sigmoid_forward(x)[0], x


@bug(sigmoid_backward, SIGMOID, "a float32 intermediate")
def sigmoid_in_float32(dy, cache):
    """The derivative is computed in float32, and then given the right dtype."""
    y = cache.astype(np.float32)
    return dy * (y * (1 - y)).astype(dy.dtype)


@bug(sigmoid_backward, SIGMOID, "x: a constant factor, 1.0001 times too large")
def sigmoid_one_in_ten_thousand(dy, cache):
    """Too large by one part in ten thousand: below what most tolerances notice."""
    return 1.0001 * sigmoid_backward(dy, cache)


@bug(sigmoid_forward, op("sigmoid", (3, 4), draw="hundreds"), "nan or infinity in y")
def sigmoid_overflows(x):
    """eˣ / (1 + eˣ), which is ∞ / ∞ where x is large."""
    y = np.exp(x) / (1 + np.exp(x))
    return y, y


# ---- Dropout ----


@bug(dropout_backward, DROPOUT, "x: a constant factor, 1.66667 times too small")
def dropout_not_scaled(dy, cache):
    """Backward masks, and forgets 1 / (1 − p)."""
    return dropout_backward(dy, cache) * (1 - cache.p)


@bug(dropout_backward, DROPOUT, "x: a constant factor, 1.66667 times too large")
def dropout_scaled_twice(dy, cache):
    """Backward divides by 1 − p, and so does what it calls."""
    return dropout_backward(dy, cache) / (1 - cache.p)


@bug(dropout_backward, DROPOUT, "x: another mask")
def dropout_mask_not_reused(dy, cache):
    """Backward draws a mask of its own."""
    return dropout_backward(dy, cache._replace(call=cache.call + 1))


@bug(dropout_backward, DROPOUT, "x: the mask is missing")
def dropout_mask_missing(dy, cache):
    """Backward scales, and drops nothing."""
    return dy / (1 - cache.p)


_calls = itertools.count()


@bug(dropout_forward, DROPOUT, "a second forward gives another y")
def dropout_unseeded(x, p=0.5, *, seed=0, call=0):
    """Draws from a generator of its own, so that no run can be repeated."""
    return dropout_forward(x, p, seed=seed, call=next(_calls))


@bug(_masked, DROPOUT, "the mean has become", rule=dropout_keeps_the_mean)
def dropout_forgets_the_scale_twice(x, p, seed, call):
    """Forward and backward both forget 1 / (1 − p): they agree, but what was learnt does not fit test time."""
    return _masked(x, p, seed, call) * (1 - p)


# ---- Flatten ----


@bug(flatten_backward, FLATTEN, "x: the right numbers in the wrong places")
def flatten_channels_last(dy, cache):
    """Backward unfolds as (H, W, C) what forward has folded as (C, H, W)."""
    N, C, H, W = cache[0]
    return dy.reshape(N, H, W, C).transpose(0, 3, 1, 2).copy()


@bug(flatten_backward, FLATTEN, "channels-last memory gives another gradient of x")
def flatten_misreads_memory(dy, cache):
    """Takes dy as it lies in memory: a matrix that was transposed comes out scrambled."""
    return dy.ravel(order="K").reshape(cache[0])


# ---- Linear ----


@bug(linear_backward, LINEAR, "w: the gradient is transposed: output and input swapped")
def linear_dw_transposed(dy, cache, need_dx=True):
    """xᵀ·dy for dyᵀ·x: it fits wherever a layer is as wide as the one before."""
    dx, dw, db = linear_backward(dy, cache)
    return dx, dw.T, db


@bug(linear_backward, LINEAR, "x: none of the known patterns")
def linear_dx_times_w_transposed(dy, cache, need_dx=True):
    """dy·wᵀ for dy·w: it fits wherever a layer is as wide as the one before."""
    return linear_backward(dy, cache._replace(w=cache.w.T))[0], *linear_backward(dy, cache)[1:]


@bug(linear_backward, LINEAR, "b: not summed over dimension 0: the gradient is (3, 4), the argument (4,)")
def linear_db_not_summed(dy, cache, need_dx=True):
    """The bias's gradient is dy as it is; broadcasting hides it until the next step."""
    return *linear_backward(dy, cache)[:2], dy.copy()


@bug(linear_backward, LINEAR, "b: a constant factor, 3 times too small, which is N: divided by it once too often")
def linear_db_mean(dy, cache, need_dx=True):
    """The bias's gradient is the mean over samples for the sum."""
    return *linear_backward(dy, cache)[:2], dy.mean(axis=0)


@bug(linear_backward, LINEAR, "b: the gradient is all zeros")
def linear_db_forgotten(dy, cache, need_dx=True):
    """The bias never learns."""
    return *linear_backward(dy, cache)[:2], np.zeros_like(dy[0])


@bug(linear_backward, LINEAR, "w: none of the known patterns")
def linear_dw_last_sample_lost(dy, cache, need_dx=True):
    """The weights' gradient leaves out the last sample of the batch."""
    dx, _, db = linear_backward(dy, cache)
    return dx, dy[:-1].T @ cache.x[:-1], db


@bug(linear_backward, LINEAR, "w: a constant factor, 3 times too small, which is N: divided by it once too often")
def linear_dw_over_n(dy, cache, need_dx=True):
    """The weights' gradient is divided by N once more, although the loss has done so already."""
    dx, dw, db = linear_backward(dy, cache)
    return dx, dw / len(dy), db


@bug(linear_forward, LINEAR, "x written to")
def linear_writes_on_x(x, w, b=None):
    """Clips x in place, where a copy was meant: whoever else holds x, such as a skip connection, sees it change."""
    np.clip(x, -0.1, None, out=x)
    return linear_forward(x, w, b)
