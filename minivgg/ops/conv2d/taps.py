"""The definition once more, tap by tap: what a fast rung turns to where what it has computed is not finite.

A convolution is a sum over the taps of its window, and each tap is a matrix product: of the pixels that it sees, which
all lie inside the image, with one (C, O) slice of the filters. So nothing is multiplied that the definition does not
multiply. Fast rungs do more: they multiply the zeros of a padding, and Winograd mixes the pixels of a tile. With finite
numbers nobody can tell; but 0 · ∞ and ∞ − ∞ are NaN, and so a single infinity would show in outputs that never saw it.

To look at every result costs a multiply-add for each vector of them, which nobody notices, and what is found is
rare: so the whole pass is done again. Kernels keep 16 numbers for each thread (`watch`), to which they add 0 times
what they compute: that is NaN for ever once something was not finite.

Cost: 2·N·OH·OW·O·C·KH·KW FLOP a pass, and a copy of x or dy for each tap: six to nine times Winograd's time.
"""

import numpy as np

from minivgg.backends import workspace
from minivgg.backends.array import memory_run, nchw, nhwc
from minivgg.backends.jit import kernel, prange
from minivgg.backends.simd import LANES
from minivgg.ops.channels import add_per_channel
from minivgg.ops.conv2d.spec import ConvSpec
from minivgg.ops.gemm import gemm
from minivgg.ops.maxpool import maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward

_BLOCK = 1 << 14  # elements looked at by one task


def watch(workers: int, dtype) -> np.ndarray:
    """Sixteen zeros for each worker, one after another: all are finite as long as all that was added to them was."""
    watched = workspace.buffer("not finite", (workers * LANES,), dtype)
    watched[:] = 0
    return watched


@kernel
def _look(run, found):
    for block in prange(len(found)):
        first = np.intp(block) * _BLOCK
        some = False
        for i in range(first, min(first + _BLOCK, len(run))):
            some |= run[i] - run[i] != 0
        found[block] = some


def all_finite(a) -> bool:
    """Whether `a` holds neither infinities nor NaNs: one read of it, by all threads."""
    run = memory_run(a)
    found = np.empty(-(-len(run) // _BLOCK), np.bool_)
    _look(run, found)
    return not found.any()


def _overlap(k: int, size: int, out: int, stride: int, padding: int) -> tuple[slice, slice]:
    """(the outputs whose tap `k` lies inside the image, the pixels that it sees there), in one direction."""
    first = max(0, -((k - padding) // stride))
    count = max(0, min(out, (size - 1 + padding - k) // stride + 1) - first)
    begin = first * stride - padding + k
    return slice(first, first + count), slice(begin, begin + count * stride, stride)


def _taps(spec: ConvSpec):
    """Yield ((kh, kw), index of outputs, index of pixels) for each tap of each image."""
    for kh in range(spec.KH):
        oh, h = _overlap(kh, spec.H, spec.OH, spec.stride[0], spec.padding[0])
        for kw in range(spec.KW):
            ow, w = _overlap(kw, spec.W, spec.OW, spec.stride[1], spec.padding[1])
            if oh.start < oh.stop and ow.start < ow.stop:
                yield from (((kh, kw), (n, oh, ow), (n, h, w)) for n in range(spec.N))


def _rows(pixels):
    """(H, W, C) → (H·W, C), a copy unless the memory allows a view."""
    return pixels.reshape(-1, pixels.shape[-1])


@np.errstate(all="ignore")  # like every compiled kernel
def forward(x, w, spec: ConvSpec, bias=None, relu=False, pool=False):
    """y as `Algorithm` describes it."""
    x = nhwc(x)
    y = np.zeros((spec.N, spec.OH, spec.OW, spec.O), x.dtype)
    for (kh, kw), outputs, pixels in _taps(spec):
        to = y[outputs]
        to += gemm(_rows(x[pixels]), w[:, :, kh, kw].T).reshape(to.shape)
    y = nchw(y)
    y = y if bias is None else add_per_channel(y, bias)
    y = relu_forward(y)[0] if relu else y
    return maxpool2d_forward(y, 2)[0] if pool else y


@np.errstate(all="ignore")
def grad_input(dy, w, spec: ConvSpec, mask=None):
    """dx as `Algorithm` describes it."""
    dy = nhwc(dy)
    dx = np.zeros((spec.N, spec.H, spec.W, spec.C), dy.dtype)
    for (kh, kw), outputs, pixels in _taps(spec):
        to = dx[pixels]
        to += gemm(_rows(dy[outputs]), w[:, :, kh, kw]).reshape(to.shape)
    return nchw(dx) if mask is None else relu_backward(nchw(dx), mask)


@np.errstate(all="ignore")
def grad_weight(dy, x, spec: ConvSpec):
    """dw as `Algorithm` describes it."""
    dy, x = nhwc(dy), nhwc(x)
    dw = np.zeros((spec.O, spec.KH, spec.KW, spec.C), dy.dtype)
    for (kh, kw), outputs, pixels in _taps(spec):
        dw[:, kh, kw] += gemm(_rows(dy[outputs]).T, _rows(x[pixels]))
    return nchw(dw)
