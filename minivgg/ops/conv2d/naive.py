"""Seven loops: the definition of convolution, and the oracle that every other algorithm is held to.

Each output element is a sum of products x·w. By the chain rule every product hands dy·w back to its x, and dy·x back
to its w: so the three functions below are the *same* seven loops with the same indices, and differ in their last line
alone. They are written out three times because seven loops are what people come here to see. Nothing is rearranged;
that is what makes them slow, and easy to believe.

Cost: N·O·OH·OW·C·KH·KW multiply-adds a pass, on one core, no memory beyond the result.
"""

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import on_gpu, xp_of
from minivgg.backends.jit import njit
from minivgg.ops.conv2d.spec import EVERY_DTYPE, Algorithm, ConvSpec


@njit(cache=True)
def _forward(x, w, y, stride, padding):
    N, C, H, W = x.shape
    O, _, KH, KW = w.shape
    _, _, OH, OW = y.shape
    for n in range(N):
        for o in range(O):
            for oh in range(OH):
                for ow in range(OW):
                    for c in range(C):
                        for kh in range(KH):
                            for kw in range(KW):
                                h = oh * stride[0] - padding[0] + kh
                                v = ow * stride[1] - padding[1] + kw
                                if 0 <= h < H and 0 <= v < W:  # beyond the border x counts as zero
                                    y[n, o, oh, ow] += x[n, c, h, v] * w[o, c, kh, kw]


@njit(cache=True)
def _grad_input(dy, w, dx, stride, padding):
    N, C, H, W = dx.shape
    O, _, KH, KW = w.shape
    _, _, OH, OW = dy.shape
    for n in range(N):
        for o in range(O):
            for oh in range(OH):
                for ow in range(OW):
                    for c in range(C):
                        for kh in range(KH):
                            for kw in range(KW):
                                h = oh * stride[0] - padding[0] + kh
                                v = ow * stride[1] - padding[1] + kw
                                if 0 <= h < H and 0 <= v < W:  # beyond the border x counts as zero
                                    dx[n, c, h, v] += dy[n, o, oh, ow] * w[o, c, kh, kw]


@njit(cache=True)
def _grad_weight(dy, x, dw, stride, padding):
    N, C, H, W = x.shape
    O, _, KH, KW = dw.shape
    _, _, OH, OW = dy.shape
    for n in range(N):
        for o in range(O):
            for oh in range(OH):
                for ow in range(OW):
                    for c in range(C):
                        for kh in range(KH):
                            for kw in range(KW):
                                h = oh * stride[0] - padding[0] + kh
                                v = ow * stride[1] - padding[1] + kw
                                if 0 <= h < H and 0 <= v < W:  # beyond the border x counts as zero
                                    dw[o, c, kh, kw] += dy[n, o, oh, ow] * x[n, c, h, v]


def _run(loops, a, b, result_shape, spec: ConvSpec):
    if on_gpu(a):
        return _run_on_gpu(loops.__name__[1:], a, b, result_shape, spec)
    result = np.zeros(result_shape, a.dtype)
    loops(np.ascontiguousarray(a), np.ascontiguousarray(b), result, spec.stride, spec.padding)
    return result


def _run_on_gpu(name: str, a, b, result_shape, spec: ConvSpec):
    xp = xp_of(a)
    result = xp.empty(result_shape, a.dtype)
    launch = cuda.kernel("ops/conv2d/naive.cu", name, T=a.dtype)
    launch.over(result.size, xp.ascontiguousarray(a), xp.ascontiguousarray(b), result, *spec.sizes)
    return result


def forward(x, w, spec: ConvSpec):
    return _run(_forward, x, w, spec.y_shape, spec)


def grad_input(dy, w, spec: ConvSpec):
    return _run(_grad_input, dy, w, spec.x_shape, spec)


def grad_weight(dy, x, spec: ConvSpec):
    return _run(_grad_weight, dy, x, spec.w_shape, spec)


ALGORITHM = Algorithm(
    "naive",
    "seven loops: the definition, and the oracle of the tests",
    forward,
    grad_input,
    grad_weight,
    dtypes=EVERY_DTYPE,
)
