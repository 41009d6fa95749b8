"""float16 on the simulated GPU: stored in 16 bits, added up in 32."""

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import device_of, to, to_cpu
from minivgg.ops.channels import add_per_channel, sum_per_channel
from minivgg.ops.conv2d import (
    ALGORITHMS,
    ConvSpec,
    algorithms_on,
    conv2d_backward,
    conv2d_forward,
    im2col,
    naive,
    tensor_core,
    tiling,
)
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.testing.arrays import integers, signed, workspace_of

TAKE_IT = algorithms_on("sim", np.float16)
VGG = ConvSpec.of((1, 3, 5, 6), (4, 3, 3, 3), 1, 1)


def drawn(spec, draw=signed):
    """Pass → its arguments, float16."""
    rng = np.random.default_rng(0)
    x, w, dy = (to(draw(rng, shape, np.float16), "sim") for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    return {"forward": (x, w), "grad_input": (dy, w), "grad_weight": (dy, x)}


def in_float64(name, arguments, spec):
    return getattr(naive, name)(*(to_cpu(a).astype(np.float64) for a in arguments), spec)


def larger_integers(rng, shape, dtype):
    return np.asarray(rng.integers(-20, 21, shape), dtype)


@pytest.mark.parametrize("algorithm", [name for name in TAKE_IT if name != "im2col"])
def test_sums_are_kept_in_float32_and_rounded_once(algorithm):
    """Sums of such integers are exact in float32, and many too long for float16: each comes out as the nearest."""
    spec = ConvSpec.of((2, 8, 20, 18), (8, 8, 3, 3), 1, 1)
    for name, arguments in drawn(spec, larger_integers).items():
        exact = in_float64(name, arguments, spec)
        nearest = exact.astype(np.float16)
        assert (nearest != exact).sum() > 100
        np.testing.assert_array_equal(getattr(ALGORITHMS[algorithm], name)(*arguments, spec), nearest)


@pytest.mark.parametrize("units", [tiling.FMA, tensor_core.FP16], ids=["implicit_gemm", "fp16"])
def test_parts_of_a_filter_gradient_are_not_rounded(units):
    spec = ConvSpec.of((2, 8, 20, 18), (8, 8, 3, 3), 1, 1)
    dy, x = drawn(spec, larger_integers)["grad_weight"]
    exact = in_float64("grad_weight", (dy, x), spec)
    for parts in (1, 5):
        dw = tiling.grad_weight_on_gpu(dy, x, spec, units, units.tiles[2][-1], parts)
        np.testing.assert_array_equal(dw, exact.astype(np.float16))


def test_chunks_of_im2col_are_added_up_in_float32():
    """2048, and 16 times 1, each from another chunk: float16 has no 2049, and would stay where it is."""
    spec = ConvSpec.of((1, 1, 33, 1), (1, 1, 1, 1), (2, 1))
    dy, x = (np.ones(shape, np.float16) for shape in (spec.y_shape, spec.x_shape))
    dy[0, 0, 0], x[0, 0, 0] = 64, 32
    with workspace_of(0.001):
        dw = im2col.grad_weight(to(dy, "sim"), to(x, "sim"), spec)
        assert to_cpu(dw).item() == 2048 + 16
        spec = ConvSpec.of((1, 1, 5, 1), (1, 1, 3, 1))  # three windows meet in the middle
        dy, w = np.array([2048.0, 1, 1], np.float16).reshape(spec.y_shape), np.ones(spec.w_shape, np.float16)
        dx = im2col.grad_input(to(dy, "sim"), to(w, "sim"), spec)
        np.testing.assert_array_equal(to_cpu(dx).ravel(), [2048, 2048, 2050, 2, 1])


def test_auto_takes_tensor_cores():
    passes = drawn(VGG)
    y, cache = conv2d_forward(*passes["forward"], padding=1)
    dx, dw, _ = conv2d_backward(passes["grad_input"][0], cache)
    for found, (name, arguments) in zip((y, dx, dw), passes.items(), strict=True):
        np.testing.assert_array_equal(found, getattr(ALGORITHMS["fp16"], name)(*arguments, VGG))


@pytest.mark.parametrize("algorithm", TAKE_IT)
def test_bias_relu_pool_and_mask(algorithm):
    """What `conv2d_forward` and `conv2d_backward` do besides: integers, so that nothing is rounded."""
    passes = drawn(VGG, integers)
    (x, w), (dy, _) = passes["forward"], passes["grad_input"]
    b = to(integers(np.random.default_rng(1), VGG.O, np.float16), "sim")
    sums = in_float64("forward", (x, w), VGG) + to_cpu(b)[:, None, None].astype(np.float64)
    y, cache = conv2d_forward(x, w, b, padding=1, algorithm=algorithm, relu=True)
    np.testing.assert_array_equal(y, np.maximum(sums, 0))
    pooled, _ = conv2d_forward(x, w, b, padding=1, algorithm=algorithm, relu=True, pool=True)
    np.testing.assert_array_equal(pooled, np.maximum(sums, 0)[:, :, :4].reshape(1, 4, 2, 2, 3, 2).max(axis=(3, 5)))
    dx, dw, db = conv2d_backward(dy, cache, after_relu=True)
    np.testing.assert_array_equal(dx, np.where(x > 0, in_float64("grad_input", (dy, w), VGG), 0))
    np.testing.assert_array_equal(dw, in_float64("grad_weight", (dy, x), VGG))
    np.testing.assert_array_equal(db, to_cpu(dy).sum(axis=(0, 2, 3), dtype=np.float64))
    assert {a.dtype for a in (y, pooled, dx, dw, db)} == {np.dtype(np.float16)}
    assert {device_of(a) for a in (y, pooled, dx, dw, db)} == {"sim"}


def test_a_bias_of_many_pixels():
    """Its gradient is a sum of thousands, block by block in float64; it is rounded to float16 once."""
    dy = signed(np.random.default_rng(0), (2, 8, 60, 50), np.float16) + np.float16(0.5)
    db = to_cpu(sum_per_channel(to(dy, "sim")))
    np.testing.assert_array_equal(db, dy.sum(axis=(0, 2, 3), dtype=np.float64).astype(np.float16))


def _pooling(x):
    y, cache = maxpool2d_forward(x, 3, 2, 1, relu=True)
    return y, maxpool2d_backward(y, cache)


def _convolved(algorithm):
    def run(x):
        y, cache = conv2d_forward(x, x[..., :3, :3], x[0, 0, 0, :2], padding=1, algorithm=algorithm)
        return y, *conv2d_backward(y, cache)

    return run


# naive's threads share nothing
WATCHED = {name: _convolved(name) for name in TAKE_IT if name != "naive"} | {
    "maxpool": _pooling,
    "channels": lambda x: (sum_per_channel(x), add_per_channel(x.copy(), x.reshape(-1)[:8])),
}


@pytest.mark.parametrize("name", WATCHED)
def test_no_races_and_nothing_out_of_bounds(name):
    """8 channels of float16 are 16 bytes: a copy each."""
    x = to(signed(np.random.default_rng(0), (2, 8, 4, 5), np.float16), "sim")
    with cudasim.checking(orders=("forward", "reverse", 1, 2)):
        expected = WATCHED[name](x)
    with cudasim.checking(racecheck=True, memcheck=True) as launches:
        found = WATCHED[name](x)
    assert launches
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(to_cpu(f), to_cpu(e))
