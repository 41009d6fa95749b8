"""winograd.cu in the simulator: the rules for every rung, both variants at every remainder, and no race."""

from functools import partial

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import to, to_cpu
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, conv2d_backward, conv2d_forward, naive
from minivgg.ops.conv2d import winograd_on_gpu as on_gpu
from minivgg.ops.conv2d.toom_cook import in_c, matrices, times
from minivgg.testing import check_conv
from minivgg.testing.arrays import workspace_of

NAMES = {"winograd2": 2, "winograd": 4}
# every remainder of a tile (2 and 4 on a side), of a step of 8 channels, of a block of 32 tiles and 32 outputs
SIZES = [((1, 1, 1, 1), 1), ((1, 3, 2, 5), 7), ((2, 8, 4, 4), 32), ((1, 17, 13, 3), 33), ((3, 16, 9, 8), 40)]


def tensors(x_shape, O, padding, dtype=np.float32):
    """(x, w, dy, spec) for the simulated GPU, random and signed."""
    rng, spec = np.random.default_rng(0), ConvSpec.of(x_shape, (O, x_shape[1], 3, 3), 1, padding)
    return *(on_sim(rng.standard_normal(s).astype(dtype)) for s in (x_shape, spec.w_shape, spec.y_shape)), spec


def on_sim(a):
    return to(a, "sim")


def passes(name, variant=None):
    """(forward, grad_input, grad_weight) of a row in one of the variants."""
    m = NAMES[name]
    with_variant = (partial(f, m, variant=variant) for f in (on_gpu.forward_on_gpu, on_gpu.grad_input_on_gpu))
    return *with_variant, partial(on_gpu.grad_weight_on_gpu, m)


@pytest.mark.parametrize("name", NAMES)
def test_rules(name):
    check_conv(name, devices=("sim",))


@pytest.mark.parametrize("m, r", [(2, 3), (4, 3), (3, 2), (3, 4)])
def test_matrices_in_c(m, r):
    """A statement of C such as y[0] = (T(0.5) * d[2] + d[1]); is one of Python, too."""
    for matrix in matrices(m, r):
        d, y = np.random.default_rng(0).standard_normal(len(matrix[0])).tolist(), {}
        exec(in_c(matrix), {"T": float, "d": d, "y": y})
        assert list(y) == list(range(len(matrix)))
        assert list(y.values()) == pytest.approx([float(e) for e in times(matrix, d)], rel=1e-12)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("variant", on_gpu.VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_remainder(name, variant, padding):
    """The bound is that of test_winograd's test of the same name: the CPU's."""
    for x_shape, O in SIZES:
        if min(x_shape[2:]) + 2 * padding < 3:
            continue  # no window fits
        x, w, dy, spec = tensors(x_shape, O, padding)
        arguments = (x, w, spec.columns), (dy, w, 9 * O), (dy, x, spec.N * spec.OH * spec.OW)
        for run, oracle, (a, b, terms) in zip(passes(name, variant), ORACLES, arguments, strict=True):
            found, (a, b) = run(a, b, spec), (to_cpu(v).astype(np.float64) for v in (a, b))
            expected = oracle(a, b, spec)
            bound = (
                (terms + 2) * np.finfo(np.float32).eps * ALGORITHMS[name].growth * oracle(abs(a), abs(b), spec).max()
            )
            assert found.shape == expected.shape and abs(to_cpu(found) - expected).max() <= bound, (oracle, spec)


@pytest.mark.parametrize("name", NAMES)
def test_every_small_size(name):
    """High and wide, and padded differently in the two directions. A pixel that is missing is an error of about 1."""
    for size in range(1, 11):
        for (H, W), padding in (((size, 11 - size), (1, 2)), ((11 - size, size), (2, 0)), ((size, size), (0, 1))):
            if min(H + 2 * padding[0], W + 2 * padding[1]) < 3:
                continue
            x, w, dy, spec = tensors((2, 2, H, W), 3, padding)
            for variant in on_gpu.VARIANTS:
                for run, oracle, (a, b) in zip(passes(name, variant), ORACLES, ((x, w), (dy, w), (dy, x)), strict=True):
                    expected = oracle(*(to_cpu(v).astype(np.float64) for v in (a, b)), spec)
                    np.testing.assert_allclose(to_cpu(run(a, b, spec)), expected, atol=1e-3, err_msg=str(spec))


ORACLES = naive.forward, naive.grad_input, naive.grad_weight


@pytest.mark.parametrize("variant", on_gpu.VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_fused_is_what_it_is_one_after_the_other(name, variant):
    (forward, grad_input, _), prepare = passes(name, variant), partial(on_gpu.transform_on_gpu, NAMES[name])
    for x_shape, O in SIZES[1:]:
        x, w, dy, spec = tensors(x_shape, O, 1)
        b = on_sim(np.linspace(-2, 2, O, dtype=np.float32))
        plain = forward(x, w, spec)
        with_bias = plain + b[:, None, None]
        np.testing.assert_array_equal(forward(x, w, spec, bias=b), with_bias)
        np.testing.assert_array_equal(forward(x, w, spec, bias=b[::-1]), plain + b[::-1, None, None])
        np.testing.assert_array_equal(forward(x, w, spec, relu=True), np.maximum(plain, 0))
        prepared = prepare(w, variant=variant).copy()
        fused = forward(x, w, spec, bias=b, relu=True, prepared=prepared)
        np.testing.assert_array_equal(fused, np.maximum(with_bias, 0))
        H, W = spec.OH // 2, spec.OW // 2
        halved = with_bias[:, :, : 2 * H, : 2 * W].reshape(spec.N, O, H, 2, W, 2).max((3, 5))
        np.testing.assert_array_equal(forward(x, w, spec, bias=b, pool=True), halved)
        np.testing.assert_array_equal(forward(x, w, spec, bias=b, pool=True, relu=True), np.maximum(halved, 0))
        dx = grad_input(dy, w, spec)
        np.testing.assert_array_equal(grad_input(dy, w, spec, mask=x), np.where(x > 0, dx, 0))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_is_not_hidden(name):
    """One pixel in a corner is seen by one output, and that by one of a pool's."""
    size = NAMES[name] + 2
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        x, w, _, spec = tensors((1, 1, size, size), 1, 0)
        x[0, 0, *corner] = np.nan
        for variant in on_gpu.VARIANTS:
            for pool in (False, True):
                y = passes(name, variant)[0](x, w, spec, relu=True, pool=pool)
                assert np.isnan(y[0, 0, *corner]) and np.isnan(y).sum() == 1


def test_conv2d_takes_what_it_offers():
    """Through the front door: prepared filters are made once, and serve."""
    x, w, dy, _ = tensors((2, 5, 6, 7), 4, 1)
    b, prepared = on_sim(np.linspace(-1, 1, 4, dtype=np.float32)), {}
    options = {"padding": 1, "algorithm": "winograd"}
    y, cache = conv2d_forward(x, w, b, **options)
    for _ in range(2):
        pooled = conv2d_forward(x, w, b, relu=True, pool=True, prepared=prepared, **options)[0]
        halves = np.maximum(y[:, :, :, :6], 0).reshape(2, 4, 3, 2, 3, 2).max((3, 5))
        np.testing.assert_array_equal(pooled, halves)
        assert list(prepared) == ["winograd"] and type(pooled) is type(prepared["winograd"]) is type(x)
        w = w * 0  # not looked at any more
    dx, dw, _ = conv2d_backward(dy, cache._replace(has_bias=False), after_relu=True)
    assert (to_cpu(dx)[to_cpu(x) <= 0] == 0).all() and dw.shape == w.shape


# ---- Which variant, how many tiles ----


def test_variant_for(monkeypatch):
    x = on_sim(np.empty(1, np.float32))
    chosen = {(3, 64): "fused", (64, 64): "fused", (128, 128): "fused", (128, 129): "phased", (512, 512): "phased"}
    for m in NAMES.values():
        assert {channels: on_gpu.variant_for(m, *channels, x) for channels in chosen} == chosen
        assert on_gpu.variant_for(m, 3, 64, x.astype(np.float64)) == "phased"
    monkeypatch.setattr(on_gpu, "_shared_memory_on_gpu", lambda device: 99 << 10)  # a GPU of the desk: sm_86, sm_89
    assert [on_gpu.variant_for(m, 3, 64, x) for m in (2, 4)] == ["fused", "phased"]


def test_what_variant_for_says_is_done():
    x, w, dy, spec = tensors((1, 3, 5, 5), 4, 1)
    for dtype, launched in (("float32", {"convolve"}), ("float64", {"transform_inputs", "transform_outputs"})):
        with cudasim.checking(orders=("forward",)) as launches:
            for run, a in zip(passes("winograd"), (x, dy), strict=False):
                run(a.astype(dtype), w.astype(dtype), spec)
        assert {launch.kernel for launch in launches} == {"transform_filters"} | launched


def test_tiles_at_once():
    """As many as fit, and chunks of one size rather than a small one at the end."""
    for nbytes, expected in ((1000, 100), (999, 50), (500, 50), (499, 34), (10, 1), (0.5, 1)):
        with workspace_of(nbytes):
            assert on_gpu._tiles_at_once(100, 10) == expected


def test_parts_of_a_sum():
    assert on_gpu._parts(3640, 36, 64, 64) == 8  # 36 blocks are few: eight times as many
    assert on_gpu._parts(3640, 36, 65, 128) == 2
    assert on_gpu._parts(1023, 36, 64, 64) == 3  # of 256 tiles at least
    assert on_gpu._parts(3640, 36, 512, 512) == on_gpu._parts(1, 36, 1, 1) == 1


@pytest.mark.parametrize("limit", [64 << 20, 5000])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_in_parts_and_chunks(name, limit, monkeypatch):
    monkeypatch.setattr(on_gpu, "_PART", 2)
    monkeypatch.setattr(on_gpu, "_BLOCKS", 100)
    x, _, dy, spec = tensors((2, 3, 11, 14), 5, 1, np.float64)
    grad_weight = passes(name)[2]
    with workspace_of(limit), cudasim.checking() as launches:
        found, again = (to_cpu(grad_weight(dy, x, spec)) for _ in range(2))
    expected = naive.grad_weight(to_cpu(dy), to_cpu(x), spec)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(found, again)
    assert (len(launches) == 2 * 3) == (limit > 5000)  # one chunk, or more


# ---- Under watch ----


@pytest.mark.parametrize("name", NAMES)
def test_no_race_and_no_stray_access(name):
    """Two steps of channels, two blocks of outputs, and a block of tiles that is not full."""
    x, w, dy, spec = tensors((1, 9, 5, 6), 33, 1)
    b = on_sim(np.ones(33, np.float32))
    for variant in on_gpu.VARIANTS:
        forward, grad_input, grad_weight = passes(name, variant)
        once = forward(x, w, spec, bias=b, pool=True), grad_input(dy, w, spec, mask=x), grad_weight(dy, x, spec)
        with cudasim.checking(racecheck=True, memcheck=True):
            again = forward(x, w, spec, bias=b, pool=True), grad_input(dy, w, spec, mask=x), grad_weight(dy, x, spec)
        for a, other in zip(once, again, strict=True):
            np.testing.assert_array_equal(a, other)
        with cudasim.checking(orders=("forward", "reverse", 1, 2)):
            forward(x, w, spec), grad_input(dy, w, spec), grad_weight(dy, x, spec)


@pytest.mark.parametrize("name", NAMES)
def test_traffic_of_fused(name):
    """It writes y and nothing else, and no two lanes of a warp wait for the same bank of shared memory."""
    x, w, _, spec = tensors((1, 8, 8, 8), 32, 1)
    with cudasim.checking(traffic=True) as launches:
        y = passes(name, "fused")[0](x, w, spec)
    traffic = launches[-1].traffic
    assert sum(32 * t.transactions for t in traffic if (t.memory, t.access) == ("global", "write")) == y.nbytes
    assert [t for t in traffic if t.memory == "shared" and t.waste > 1] == []
