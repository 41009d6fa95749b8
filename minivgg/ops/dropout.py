"""Dropout whose mask is never stored: a counter-based generator makes the same mask again in the backward pass.

Philox4x32-10 turns a counter (which element, which call) and a key (the seed) into four random words by ten rounds of
multiplying and mixing. There is no state: element i of call k is the same number on every device, in every memory
order, whatever ran before.

Source: Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), §3.3; inverted scaling as
in Srivastava et al., Dropout (JMLR 2014), §10.
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends.array import device_of, empty_like, memory_run, on_gpu, xp_of
from minivgg.backends.cuda import twin
from minivgg.backends.jit import kernel, njit, prange
from minivgg.errors import check_range
from minivgg.ops.windows import check_array, check_gradient

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # the multipliers of the two halves
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio and √3 − 1: what the key grows by each round

_BLOCK = 1024  # elements whose random words are made together, in the first-level cache


class DropoutCache(NamedTuple):
    """All that it takes to make the mask again."""

    p: float
    seed: int
    call: np.uint64  # on a GPU an array there of one
    shape: tuple
    dtype: np.dtype


@njit(cache=True)
def _round(c0, c1, c2, c3, k0, k1):
    p0, p1 = _M0 * c0, _M1 * c2
    return (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW


@njit(cache=True)
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four counter words and two key words → four random words, each a uint64 below 2³²."""
    for _ in range(10):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(cache=True)
def _philox_of_many(w0, w1, w2, w3, k0, k1):
    """`philox` in place on arrays of uint32: round by round over all, which fills vectors."""
    for _ in range(10):
        for i in range(len(w0)):
            c0, c1, c2, c3 = np.uint64(w0[i]), np.uint64(w1[i]), np.uint64(w2[i]), np.uint64(w3[i])
            w0[i], w1[i], w2[i], w3[i] = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW


@njit(cache=True)
def _random_in_order(first, call, seed, random):
    """The words of elements first, first + 1, …: four share a counter."""
    words = np.empty((4, len(random) // 4), np.uint32)
    for i in range(len(random) // 4):
        counter = np.uint64(first // 4 + i)
        words[0, i], words[1, i] = counter & _LOW, counter >> _32
        words[2, i], words[3, i] = call & _LOW, call >> _32
    _philox_of_many(words[0], words[1], words[2], words[3], seed & _LOW, seed >> _32)
    for i in range(len(random) // 4):
        for j in range(4):
            random[4 * i + j] = words[j, i]


@njit(cache=True)
def _random_of_pixels(first, C, P, call, seed, random):
    """The same for memory (n, P, C), where neighbours have counters of their own."""
    words, which = np.empty((4, len(random)), np.uint32), np.empty(len(random), np.uint8)
    pixel, c = divmod(first, C)
    for i in range(len(random)):
        n, p = divmod(pixel, P)
        element = np.uint64((n * C + c) * P + p)  # its number in (N, C, H, W) order
        counter, which[i] = element >> np.uint64(2), element & np.uint64(3)
        words[0, i], words[1, i] = counter & _LOW, counter >> _32
        words[2, i], words[3, i] = call & _LOW, call >> _32
        c += 1
        if c == C:
            c, pixel = 0, pixel + 1
    _philox_of_many(words[0], words[1], words[2], words[3], seed & _LOW, seed >> _32)
    for i in range(len(random)):
        random[i] = words[which[i], i]


@twin("ops/dropout.cu", "apply")
@kernel
def _apply(x, y, C, P, seed, call, threshold, scale):
    """y = x · scale where the element's random word reaches the threshold, else 0; x, y in memory order (n, P, C)."""
    for block in prange((x.size + _BLOCK - 1) // _BLOCK):
        first = np.intp(block) * _BLOCK
        random = np.empty(_BLOCK, np.uint32)
        if C == 1:
            _random_in_order(first, call, seed, random)
        else:
            _random_of_pixels(first, C, P, call, seed, random)
        source, target = x[first : first + _BLOCK], y[first : first + _BLOCK]
        for i in range(len(source)):
            target[i] = source[i] * scale if random[i] >= threshold else 0


def _masked(x, p: float, seed: int, call):
    y = empty_like(x)
    channels_last = x.ndim == 4 and not x.flags.c_contiguous
    C, P = (x.shape[1], x.shape[2] * x.shape[3]) if channels_last else (1, 1)
    threshold, scale = np.uint64(round(p * 2**32)), x.dtype.type(1 / (1 - p) if p < 1 else 0)
    _apply(memory_run(x), memory_run(y), C, P, np.uint64(seed), call, threshold, scale)
    return y


def dropout_forward(x, p=0.5, *, seed=0, call=0):
    """y = x / (1 − p) with probability 1 − p, else 0, for each element by itself: the expectation of y is x.

    x of any shape, 0 ≤ p ≤ 1; with p = 1 nothing is left, and y and its gradient are zero. `seed` (64 bits) names the
    generator, `call` (64 bits) the mask: count it up each time. On a GPU, `call` may be an array there of one uint64,
    which stays as it is until the backward.

    Cost: ten rounds of integer arithmetic for each element; no mask is kept. Raises ValueError out of range.
    """
    check_array("dropout", "x", x)
    check_range("dropout: p", p, 0, 1)
    if not (0 <= seed < 2**64 and (on_gpu(call) or 0 <= call < 2**64)):
        raise ValueError(f"dropout: seed and call must be in [0, 2⁶⁴), got {seed} and {call}")
    if on_gpu(call):
        if (device_of(call), call.size, call.dtype) != (device_of(x), 1, np.uint64):
            raise ValueError(f"dropout: call must be an int, or one uint64 where x is, got {call.shape} {call.dtype}")
    else:
        call = xp_of(x).full(1, call, np.uint64) if on_gpu(x) else np.uint64(call)
    return _masked(x, p, seed, call), DropoutCache(p, seed, call, x.shape, x.dtype)


def dropout_backward(dy, cache: DropoutCache):
    """dx = dy under the same mask and scale, made again from the counter."""
    p, seed, call, shape, dtype = cache
    check_gradient("dropout_backward", dy, shape, dtype)
    return _masked(dy, p, seed, call)
