"""THE LADDER: one convolution, many algorithms, one contract. `ls` reads as the syllabus.

`conv2d_forward` and `conv2d_backward` do once what every algorithm needs (validation, bias, cache) and leave the
arithmetic to a row of `ALGORITHMS`. To add a rung, write one file with three functions and add it here:

    ALGORITHMS["mine"] = Algorithm("mine", "why", forward, grad_input, grad_weight)
    y, cache = conv2d_forward(x, w, b, algorithm="mine")
"""

from typing import NamedTuple

import numpy as np

from minivgg.backends.array import on_gpu
from minivgg.errors import BadInput
from minivgg.ops.channels import add_per_channel, sum_per_channel
from minivgg.ops.conv2d import direct, im2col, implicit_gemm, naive, winograd
from minivgg.ops.conv2d.spec import Algorithm, ConvSpec
from minivgg.ops.windows import check_gradient, check_parameters

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "ConvSpec",
    "check_algorithm",
    "conv2d_backward",
    "conv2d_forward",
    "explain",
    "plan",
]

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (naive.ALGORITHM, im2col.ALGORITHM, direct.ALGORITHM, implicit_gemm.ALGORITHM, *winograd.ALGORITHMS)
}


class Conv2dCache(NamedTuple):
    """What the backward needs: the input and the filters, never the column matrix."""

    x: np.ndarray
    w: np.ndarray
    has_bias: bool
    spec: ConvSpec
    algorithm: Algorithm


def plan(spec: ConvSpec, device: str = "cpu") -> Algorithm:
    """What `algorithm="auto"` means for this geometry: im2col, as long as the only other rung is the seven loops."""
    return _supported("im2col", spec, device)


def explain(spec: ConvSpec, device: str = "cpu") -> str:
    """Why `plan` chooses what it chooses, in one line."""
    chosen = plan(spec, device)
    return f"{chosen.name}: {chosen.reason}"


def check_algorithm(name: str) -> None:
    """Raise BadInput unless `name` is "auto" or a key of `ALGORITHMS`."""
    if name != "auto" and name not in ALGORITHMS:
        raise BadInput(f'conv2d: no algorithm "{name}"; there are "auto", ' + ", ".join(f'"{a}"' for a in ALGORITHMS))


def _supported(name: str, spec: ConvSpec, device: str) -> Algorithm:
    check_algorithm(name)
    why_not = ALGORITHMS[name].supports(spec, device)
    if why_not:
        raise ValueError(f'conv2d: algorithm "{name}" cannot do {spec}: {why_not}')
    return ALGORITHMS[name]


def conv2d_forward(x, w, b=None, *, stride=1, padding=0, algorithm="auto"):
    """Convolve images with filters (a cross-correlation, zero-padded).

    x (N, C, H, W), w (O, C, KH, KW), b (O,) or None → y (N, O, OH, OW) and the cache for `conv2d_backward`, with
    OH = (H + 2·padding − KH) // stride + 1. One dtype throughout, float32 or float64. `stride` and `padding` are
    integers or (height, width) pairs; `algorithm` is a key of `ALGORITHMS`, or "auto" (see `plan`).

    Cost: 2·N·O·OH·OW·C·KH·KW FLOP. Raises ValueError where shapes, dtypes or geometry do not go together, or where
    the algorithm does not support them: never a silent fallback.
    """
    spec = ConvSpec.of(x.shape, w.shape, stride, padding)
    check_parameters("conv2d", x, w, b, spec.O)
    device = "gpu" if on_gpu(x) else "cpu"
    chosen = plan(spec, device) if algorithm == "auto" else _supported(algorithm, spec, device)
    y = chosen.forward(x, w, spec)
    if b is not None:
        y = add_per_channel(y, b)
    return y, Conv2dCache(x, w, b is not None, spec, chosen)


def conv2d_backward(dy, cache: Conv2dCache, *, need_dx=True):
    """The gradients (dx, dw, db) for the upstream gradient dy (N, O, OH, OW), in the shapes of x, w and b.

    dx is None unless `need_dx` (a network's first layer has nobody to give it to); db is None where there was no
    bias. Cost: that of a forward for each of dx and dw.
    """
    x, w, has_bias, spec, algorithm = cache
    check_gradient("conv2d_backward", dy, spec.y_shape, x.dtype)
    dx = algorithm.grad_input(dy, w, spec) if need_dx else None
    dw = algorithm.grad_weight(dy, x, spec)
    db = sum_per_channel(dy) if has_bias else None
    return dx, dw, db
