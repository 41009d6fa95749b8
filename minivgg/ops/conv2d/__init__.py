"""THE LADDER: one convolution, many algorithms, one contract. `ls` reads as the syllabus.

`conv2d_forward` and `conv2d_backward` do once what every algorithm needs (validation, bias, cache) and leave the
arithmetic to a row of `ALGORITHMS`. To add a rung, write one file with three functions and add it here:

    ALGORITHMS["mine"] = Algorithm("mine", "why", forward, grad_input, grad_weight)
    y, cache = conv2d_forward(x, w, b, algorithm="mine")
"""

import functools
from typing import NamedTuple

import numpy as np

from minivgg.backends.array import empty_on, kind_of, on_gpu, xp_of
from minivgg.backends.jit import threads
from minivgg.errors import BadInput
from minivgg.ops.channels import add_per_channel, sum_per_channel
from minivgg.ops.conv2d import direct, direct_on_gpu, im2col, implicit_gemm, naive, planning, tensor_core, winograd
from minivgg.ops.conv2d.spec import Algorithm, ConvSpec
from minivgg.ops.maxpool import maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.windows import check_gradient, check_parameters

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "ConvSpec",
    "algorithms_on",
    "check_algorithm",
    "conv2d_backward",
    "conv2d_forward",
    "explain",
    "plan",
]

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        naive.ALGORITHM,
        im2col.ALGORITHM,
        direct_on_gpu.COALESCED,
        direct_on_gpu.TILED,
        direct.ALGORITHM,
        implicit_gemm.ALGORITHM,
        *winograd.ALGORITHMS,
        *tensor_core.ALGORITHMS,
    )
}


def algorithms_on(device: str, dtype=np.float32) -> list[str]:
    """The keys of `ALGORITHMS` that do VGG's convolutions on a device, in a dtype: those that a table should list."""
    vgg = ConvSpec.of((1, 3, 32, 32), (64, 3, 3, 3), padding=1)
    return [name for name, row in ALGORITHMS.items() if row.why_not(vgg, kind_of(device), dtype) is None]


class Conv2dCache(NamedTuple):
    """What the backward needs: the input and the filters, never the column matrix."""

    x: np.ndarray
    w: np.ndarray
    has_bias: bool
    spec: ConvSpec
    algorithm: str


def plan(spec: ConvSpec, direction="forward", *, device="cpu", dtype=np.float32, prepared=False) -> Algorithm:
    """What `algorithm="auto"` means for a pass ("forward", "grad_input" or "grad_weight") of this geometry.

    The algorithm with the lowest time by `planning.estimate` for as many threads as there are. float64 is for checking
    gradients: there it is im2col, exact and by BLAS. `prepared` says that the filters have been prepared before. On a
    GPU it is the first of `planning.ON_GPU` that can do it: what should be fastest, not what was measured.
    """
    if _by_a_rule(device, dtype):
        rows = (ALGORITHMS[name] for name in planning.ON_GPU)
        return next(row for row in rows if row.why_not(spec, device, dtype) is None)
    if np.dtype(dtype) != np.float32:
        return _supported("im2col", spec, device, dtype)
    times = _times(spec, direction, prepared)
    return ALGORITHMS[min(times, key=times.get)]


def _by_a_rule(device: str, dtype) -> bool:
    return device == "gpu" and np.dtype(dtype) != np.float64


def _times(spec: ConvSpec, direction: str, prepared: bool) -> dict[str, float]:
    """Algorithm → seconds on the CPU, of all that support the geometry there."""
    known = planning.measurements(threads()).get(planning.key(spec, direction), {})
    estimates = _estimates(spec, direction, prepared, threads(), tuple(ALGORITHMS.values()))
    return {name: known.get(name, seconds) for name, seconds in estimates.items()}


@functools.lru_cache(4096)  # a small network asks thousands of times a second
def _estimates(spec, direction, prepared, threads, rows) -> dict[str, float]:
    supported = [row.name for row in rows if row.supports(spec, "cpu") is None]
    return {name: planning.estimate(name, spec, direction, threads, prepared) for name in supported}


def explain(spec: ConvSpec, direction="forward", *, device="cpu", dtype=np.float32, prepared=False) -> str:
    """What `plan` chooses and why, and what it expects of the others."""
    chosen = plan(spec, direction, device=device, dtype=dtype, prepared=prepared)
    if _by_a_rule(device, dtype):
        return f"{chosen.name}: {chosen.reason} (by a rule for GPUs; not measured yet)"
    if np.dtype(dtype) != np.float32:
        return f"{chosen.name}: {chosen.reason}"
    times = sorted((t, name) for name, t in _times(spec, direction, prepared).items() if t < float("inf"))
    expected = ", ".join(f"{name} {t * 1e3:.3g} ms" for t, name in times)
    rounding = "rounding is relative to the largest number of its tile, " if chosen.growth > 1 else ""
    return f"{chosen.name}: {chosen.reason} (expected: {expected}); {rounding}{_PROMISE}"


_PROMISE = "what is not finite stays where the definition puts it"


def check_algorithm(name: str) -> None:
    """Raise BadInput unless `name` is "auto" or a key of `ALGORITHMS`."""
    if name != "auto" and name not in ALGORITHMS:
        raise BadInput(f'conv2d: no algorithm "{name}"; there are "auto", ' + ", ".join(f'"{a}"' for a in ALGORITHMS))


def _supported(name: str, spec: ConvSpec, device: str, dtype) -> Algorithm:
    check_algorithm(name)
    why_not = ALGORITHMS[name].why_not(spec, device, dtype)
    if why_not:
        raise ValueError(f'conv2d: algorithm "{name}" cannot do {spec}: {why_not}')
    return ALGORITHMS[name]


def _chosen(name: str, spec: ConvSpec, direction: str, x, prepared=False) -> Algorithm:
    device = "gpu" if on_gpu(x) else "cpu"
    if name == "auto":
        return plan(spec, direction, device=device, dtype=x.dtype, prepared=prepared)
    return _supported(name, spec, device, x.dtype)


def conv2d_forward(x, w, b=None, *, stride=1, padding=0, algorithm="auto", relu=False, pool=False, prepared=None):
    """Convolve images with filters (a cross-correlation, zero-padded).

    x (N, C, H, W), w (O, C, KH, KW), b (O,) or None → y (N, O, OH, OW) and the cache for `conv2d_backward`, with
    OH = (H + 2·padding − KH) // stride + 1. One dtype throughout: float32 or float64, or on a GPU float16, which is
    added up in float32. `stride` and `padding` are integers or (height, width) pairs; `algorithm` is a key of
    `ALGORITHMS`, or "auto" (see `plan`).

    With `relu`, y = max(y, 0): done while the results are in registers, where the algorithm can. Its gradient is up to
    the caller. With `pool`, y (N, O, OH // 2, OW // 2) is the largest of each 2×2 of these, as by a max-pool, and the
    cache is None: that is for inference. `prepared` is a dict, empty at first, in which filters that will not change
    any more are kept in the form that an algorithm wants.

    What is not finite: on a CPU every algorithm, and so "auto", gives infinities and NaNs where the definition does, in
    this pass and in the backward. Beyond the border there is nothing, not even zeros that make NaNs of infinite weights
    (PyTorch multiplies them). A fast rung that finds such a result computes all of it again, tap by tap (see `taps`).
    On a GPU, "winograd" spreads them over a tile of 6 × 6 pixels, and padding zeros are multiplied. What is finite:
    Winograd's rounding is relative to the largest number of the tile, so that a pixel of 10⁸ among ones spoils the
    outputs around it; "direct" and "im2col" keep to the definition's products.

    Cost: 2·N·O·OH·OW·C·KH·KW FLOP, or fewer by Winograd. Raises ValueError where shapes, dtypes or geometry do not go
    together, or where the algorithm does not support them: never a silent fallback.
    """
    check_parameters("conv2d", x, w, b)
    spec = ConvSpec.of(x.shape, w.shape, stride, padding)
    if spec.N == 0:
        return _of_no_image(x, w, b is not None, spec, algorithm, pool)
    chosen = _chosen(algorithm, spec, "forward", x, prepared is not None)
    cache = Conv2dCache(x, w, b is not None, spec, algorithm)
    if pool and not (chosen.pools and min(spec.OH, spec.OW) > 1):
        options = {"stride": stride, "padding": padding, "algorithm": algorithm, "prepared": prepared}
        return maxpool2d_forward(conv2d_forward(x, w, b, **options)[0], 2, relu=relu)[0], None
    if not chosen.fuses:
        y = chosen.forward(x, w, spec)
        y = y if b is None else add_per_channel(y, b)
        return relu_forward(y)[0] if relu else y, cache
    options = {"pool": True} if pool else {}
    if prepared is not None and chosen.prepare:
        if chosen.name not in prepared:
            filters = chosen.prepare(w)  # which may lie in memory that is used again
            prepared[chosen.name] = empty_on(x)(filters.shape, filters.dtype)
            prepared[chosen.name][...] = filters
        options["prepared"] = prepared[chosen.name]
    return chosen.forward(x, w, spec, bias=b, relu=relu, **options), None if pool else cache


def _of_no_image(x, w, has_bias: bool, spec: ConvSpec, algorithm: str, pool: bool):
    """What `conv2d_forward` gives for N = 0: an algorithm's functions are asked for one image or more."""
    check_algorithm(algorithm)
    y = empty_on(x)(spec.y_shape, x.dtype)
    return (maxpool2d_forward(y, 2)[0], None) if pool else (y, Conv2dCache(x, w, has_bias, spec, algorithm))


def conv2d_backward(dy, cache: Conv2dCache, *, need_dx=True, after_relu=False):
    """The gradients (dx, dw, db) for the upstream gradient dy (N, O, OH, OW), in the shapes of x, w and b.

    dx is None unless `need_dx` (a network's first layer has nobody to give it to); db is None where there was no
    bias. If `after_relu`, x came out of a ReLU, and dx is the gradient of what went into that: 0 where x ≤ 0. Cost:
    that of a forward for each of dx and dw.
    """
    x, w, has_bias, spec, algorithm = cache
    check_gradient("conv2d_backward", dy, spec.y_shape, x.dtype)
    if spec.N == 0:
        db = sum_per_channel(dy) if has_bias else None
        return empty_on(x)(x.shape, x.dtype) if need_dx else None, xp_of(w).zeros_like(w), db
    dx = None
    if need_dx:
        chosen = _chosen(algorithm, spec, "grad_input", x)
        if chosen.fuses:
            dx = chosen.grad_input(dy, w, spec, mask=x if after_relu else None)
        else:
            dx = chosen.grad_input(dy, w, spec)
            dx = relu_backward(dx, x) if after_relu else dx
    dw = _chosen(algorithm, spec, "grad_weight", x).grad_weight(dy, x, spec)
    db = sum_per_channel(dy) if has_bias else None
    return dx, dw, db
