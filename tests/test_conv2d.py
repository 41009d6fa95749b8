"""The ladder: the seven loops against SciPy and numbers worked by hand, every other rung against the seven loops."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate2d

from minivgg.backends import workspace
from minivgg.ops import conv2d
from minivgg.ops.conv2d import (
    ALGORITHMS,
    Algorithm,
    ConvSpec,
    algorithms_on,
    conv2d_backward,
    conv2d_forward,
    im2col,
    naive,
)
from minivgg.testing import GEOMETRIES, check_conv, check_op
from minivgg.testing.arrays import integers
from minivgg.testing.cases import conv_case

FEW = "VGG", "even window", "pointwise"  # test_testing.py takes all


def tensors(geometry, dtype, draw=lambda rng, shape: rng.standard_normal(shape)):
    """(x, w, dy, spec): random and signed."""
    x_shape, w_shape, stride, padding = geometry
    spec, rng = ConvSpec.of(x_shape, w_shape, stride, padding), np.random.default_rng(0)
    x, w, dy = (draw(rng, shape).astype(dtype) for shape in (x_shape, w_shape, spec.y_shape))
    return x, w, dy, spec


def in_float64(function, *arrays, spec):
    return function(*(a.astype(np.float64) for a in arrays), spec)


def assert_rounded(this, that, function, a, b, terms, spec):
    """`this`, a sum of `terms` products of `a` and `b` in its dtype, against `that`, computed in float64.

    In any order of adding, each product is rounded once and takes part in at most `terms` − 1 additions; so the error
    is at most terms · eps/2 · Σ|a|·|b| to first order, an element of the very same function applied to |a| and |b|.
    The factor eps for eps/2 is the room for the second order, and for the other side's own rounding.
    """
    bound = terms * np.finfo(this.dtype).eps * in_float64(function, abs(a), abs(b), spec=spec)
    assert this.shape == that.shape
    assert (abs(this.astype(np.float64) - that) <= bound).all()


def all_passes(algorithm, x, w, dy, spec):
    """Each pass of `algorithm`: (its result, the function's name, its two arguments, how many terms a sum has)."""
    yield algorithm.forward(x, w, spec), "forward", x, w, spec.columns
    yield algorithm.grad_input(dy, w, spec), "grad_input", dy, w, spec.O * spec.KH * spec.KW
    yield algorithm.grad_weight(dy, x, spec), "grad_weight", dy, x, spec.N * spec.OH * spec.OW


# ---- The oracle's oracles ----


class SciPy:
    """The three passes by `scipy.signal`, one image and one pair of channels at a time."""

    @staticmethod
    def forward(x, w, spec):
        y = np.zeros(spec.y_shape)
        for n, o, c in np.ndindex(spec.N, spec.O, spec.C):
            every = correlate2d(np.pad(x[n, c], [(p, p) for p in spec.padding]), w[o, c], "valid")
            y[n, o] += every[:: spec.stride[0], :: spec.stride[1]]
        return y

    @staticmethod
    def grad_input(dy, w, spec):
        padded = np.zeros((spec.N, spec.C, spec.H + 2 * spec.padding[0], spec.W + 2 * spec.padding[1]))
        for n, o, c in np.ndindex(spec.N, spec.O, spec.C):
            full = convolve2d(spread(dy[n, o], spec), w[o, c], "full")
            padded[n, c, : full.shape[0], : full.shape[1]] += full
        (top, left), (H, W) = spec.padding, (spec.H, spec.W)
        return padded[:, :, top : top + H, left : left + W]

    @staticmethod
    def grad_weight(dy, x, spec):
        dw = np.zeros(spec.w_shape)
        for n, o, c in np.ndindex(spec.N, spec.O, spec.C):
            every = correlate2d(np.pad(x[n, c], [(p, p) for p in spec.padding]), spread(dy[n, o], spec), "valid")
            dw[o, c] += every[: spec.KH, : spec.KW]
        return dw


def spread(dy, spec):
    """(OH, OW) with stride − 1 zeros between neighbours."""
    result = np.zeros(((spec.OH - 1) * spec.stride[0] + 1, (spec.OW - 1) * spec.stride[1] + 1))
    result[:: spec.stride[0], :: spec.stride[1]] = dy
    return result


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_naive_against_scipy(geometry, dtype):
    x, w, dy, spec = tensors(GEOMETRIES[geometry], dtype)
    for result, name, a, b, terms in all_passes(naive.ALGORITHM, x, w, dy, spec):
        oracle = getattr(SciPy, name)
        assert_rounded(result, in_float64(oracle, a, b, spec=spec), oracle, a, b, terms, spec)


def test_by_hand():
    x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    w = np.array([[1.0, 2], [0, -1]]).reshape(1, 1, 2, 2)
    y, cache = conv2d_forward(x, w, np.array([10.0]), algorithm="naive")
    np.testing.assert_array_equal(y[0, 0], [[1 + 4 - 5 + 10, 2 + 6 - 6 + 10], [4 + 10 - 8 + 10, 5 + 12 - 9 + 10]])
    dx, dw, db = conv2d_backward(np.array([[1.0, -1], [0, 2]]).reshape(1, 1, 2, 2), cache)
    np.testing.assert_array_equal(dx[0, 0], [[1, 2 - 1, -2], [0, -1 + 2, 1 + 4], [0, 0, -2]])
    np.testing.assert_array_equal(dw[0, 0], [[1 - 2 + 10, 2 - 3 + 12], [4 - 5 + 16, 5 - 6 + 18]])
    np.testing.assert_array_equal(db, [2])


def test_by_hand_with_stride_and_padding():
    x = np.array([[1.0, 2], [3, 4]]).reshape(1, 1, 2, 2)
    w = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    y, _ = conv2d_forward(x, w, stride=(1, 2), padding=1, algorithm="naive")
    np.testing.assert_array_equal(y[0, 0], [[5 + 12 + 24 + 36], [2 + 6 + 15 + 24]])


# ---- Every rung ----


EVERY_RUNG = [
    pytest.param(name, marks=pytest.mark.compiled if ALGORITHMS[name].fuses else ()) for name in algorithms_on("cpu")
]


@pytest.mark.parametrize("algorithm", EVERY_RUNG)
def test_conforms(algorithm):
    check_conv(algorithm, *FEW)


@pytest.mark.compiled
def test_what_is_above_the_rungs_conforms():
    check_op((conv2d_forward, conv2d_backward), *map(conv_case, FEW))


sizes = st.integers(1, 4)


@st.composite
def geometries(draw):
    kernel, stride = (draw(st.tuples(sizes, sizes)) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = [max(1, k - 2 * p) + draw(st.integers(0, 6)) for k, p in zip(kernel, padding, strict=True)]
    C = draw(sizes)
    return (draw(st.integers(1, 3)), C, *size), (draw(sizes), C, *kernel), stride, padding


@pytest.mark.parametrize("algorithm", EVERY_RUNG)
@given(geometry=geometries())
def test_any_geometry(algorithm, dtype, geometry):
    x, w, dy, spec = tensors(geometry, dtype)
    if ALGORITHMS[algorithm].supports(spec, "cpu"):
        return
    for result, name, a, b, terms in all_passes(ALGORITHMS[algorithm], x, w, dy, spec):
        oracle = getattr(SciPy, name)
        assert_rounded(result, in_float64(oracle, a, b, spec=spec), oracle, a, b, terms, spec)


@pytest.mark.parametrize("algorithm", algorithms_on("cpu"))
def test_bias_is_added_to_every_pixel(algorithm, dtype, laid_out):
    x, w, _, _ = tensors(GEOMETRIES["VGG"], dtype)
    b = np.array([0, 1, -2, 3], dtype)
    with_bias, _ = conv2d_forward(laid_out(x), laid_out(w), b, padding=1, algorithm=algorithm)
    without, _ = conv2d_forward(x, w, padding=1, algorithm=algorithm)
    np.testing.assert_array_equal(with_bias, without + b[:, None, None])


@pytest.mark.parametrize("algorithm", algorithms_on("cpu"))
def test_without_bias_or_dx_they_are_none(algorithm):
    x, w, dy, _ = tensors(GEOMETRIES["VGG"], "float64")
    _, cache = conv2d_forward(x, w, padding=1, algorithm=algorithm)
    expected = conv2d_backward(dy, cache)
    dx, dw, db = conv2d_backward(dy, cache, need_dx=False)
    assert dx is None
    assert db is None
    np.testing.assert_array_equal(dw, expected[1])


def test_cache_keeps_x_and_no_columns():
    x, w, _, _ = tensors(GEOMETRIES["VGG"], "float64")
    _, cache = conv2d_forward(x, w, padding=1)
    arrays = [a for a in cache if isinstance(a, np.ndarray)]
    assert [a is b for a, b in zip(arrays, (x, w), strict=True)] == [True, True]


# ---- im2col in chunks ----


def assert_same_bits(these, those):
    for this, that in zip(these, those, strict=True):
        np.testing.assert_array_equal(this, that, strict=True)


@pytest.fixture
def buffers(monkeypatch):
    """The shapes and sizes of all the buffers that im2col asks for."""
    asked, take, before = [], workspace.buffer, workspace.limit() / 2**20

    def recorded(purpose, shape, dtype):
        asked.append((shape, take(purpose, shape, dtype).nbytes))
        return take(purpose, shape, dtype)

    monkeypatch.setattr(workspace, "buffer", recorded)
    yield asked
    workspace.set_limit(before)
    workspace.release()


def row_bytes(spec):
    return spec.OW * spec.columns * 8


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("geometry", ["VGG", "even window", "padding past the window", "stride past the window"])
def test_chunks_give_the_same_bits_within_the_limit(geometry, rows, buffers):
    # sums of products of small integers are exact, whatever the order: so not a bit may differ
    x, w, dy, spec = tensors(GEOMETRIES[geometry], "float64", lambda rng, shape: integers(rng, shape, "float64"))
    workspace.set_limit(rows * row_bytes(spec) / 2**20)
    results = [result for result, *_ in all_passes(im2col.ALGORITHM, x, w, dy, spec)]
    assert_same_bits(results, [result for result, *_ in all_passes(naive.ALGORITHM, x, w, dy, spec)])
    assert len(buffers) == 3 * -(-spec.N * spec.OH // rows)
    assert max(nbytes for _, nbytes in buffers) <= workspace.limit()


def test_a_limit_below_one_row_still_takes_one_row(buffers):
    x, w, dy, spec = tensors(GEOMETRIES["VGG"], "float64", lambda rng, shape: integers(rng, shape, "float64"))
    workspace.set_limit(1e-6)
    results = [result for result, *_ in all_passes(im2col.ALGORITHM, x, w, dy, spec)]
    assert_same_bits(results, [result for result, *_ in all_passes(naive.ALGORITHM, x, w, dy, spec)])
    assert {nbytes for _, nbytes in buffers} == {row_bytes(spec)}


def test_pointwise_gathers_nothing(buffers):
    x, w, dy, spec = tensors(GEOMETRIES["pointwise"], "float64")
    list(all_passes(im2col.ALGORITHM, x, w, dy, spec))
    assert buffers == []


# ---- Which rung ----


def test_a_new_rung_is_picked_up(monkeypatch):
    calls = []

    def counted(name):
        def run(*arguments):
            calls.append(name)
            return getattr(naive, name)(*arguments)

        return run

    mine = Algorithm("mine", "to see", counted("forward"), counted("grad_input"), counted("grad_weight"))
    monkeypatch.setitem(ALGORITHMS, "mine", mine)
    x, w, dy, _ = tensors(GEOMETRIES["VGG"], "float64")
    y, cache = conv2d_forward(x, w, padding=1, algorithm="mine")
    conv2d_backward(dy, cache)
    assert calls == ["forward", "grad_input", "grad_weight"]
    np.testing.assert_array_equal(y, conv2d_forward(x, w, padding=1, algorithm="naive")[0])


def test_auto_takes_what_plan_says():
    x, w, dy, spec = tensors(GEOMETRIES["VGG"], "float32")
    y, cache = conv2d_forward(x, w, padding=1)
    dx, dw, _ = conv2d_backward(dy, cache)
    for direction, result, arguments in (
        ("forward", y, (x, w)),
        ("grad_input", dx, (dy, w)),
        ("grad_weight", dw, (dy, x)),
    ):
        chosen = conv2d.plan(spec, direction)
        assert (getattr(chosen, direction)(*arguments, spec) == result).all()
        assert conv2d.explain(spec, direction).startswith(f"{chosen.name}: {chosen.reason} (expected: {chosen.name} ")


def test_float64_is_for_checking_gradients():
    _, _, _, spec = tensors(GEOMETRIES["VGG"], "float64")
    assert conv2d.plan(spec, dtype=np.float64).name == "im2col"
    assert conv2d.explain(spec, dtype=np.float64) == f"im2col: {im2col.ALGORITHM.reason}"


def test_on_a_gpu_it_is_a_rule_that_nobody_has_measured():
    for geometry in GEOMETRIES.values():
        spec = ConvSpec.of(*geometry)
        for dtype in (np.float16, np.float32):
            chosen = conv2d.plan(spec, device="gpu", dtype=dtype)
            tried = conv2d.planning.ON_GPU[: conv2d.planning.ON_GPU.index(chosen.name)]
            assert chosen.why_not(spec, "gpu", dtype) is None
            assert all(ALGORITHMS[name].why_not(spec, "gpu", dtype) for name in tried)
            told = conv2d.explain(spec, device="gpu", dtype=dtype)
            assert told == f"{chosen.name}: {chosen.reason} (by a rule for GPUs; not measured yet)"
    assert conv2d.plan(ConvSpec.of(*GEOMETRIES["VGG"]), device="gpu").name == "implicit_gemm"
    assert conv2d.plan(spec, device="gpu", dtype=np.float64).name == "im2col"


def test_rungs_of_the_gpus_ladder_say_so_on_a_cpu():
    on_gpu = {"coalesced", "tiled"}
    assert on_gpu <= set(algorithms_on("gpu")) - set(algorithms_on("cpu"))
    for name in on_gpu:
        refuses(f'"{name}" cannot do ConvSpec(N=1, C=3, H=5', algorithm=name)
        refuses("it is a rung of the GPU's ladder only", algorithm=name)


@pytest.mark.parametrize(
    "device, ladder",
    [
        ("cpu", ["naive", "im2col", "direct", "implicit_gemm", "winograd2", "winograd"]),
        ("gpu", ["naive", "im2col", "coalesced", "tiled", "direct", "implicit_gemm", "winograd2", "winograd", "tf32"]),
    ],
)
def test_the_ladder_in_the_order_of_its_rungs(device, ladder):
    """Which stand between them, or above, is up to them."""
    assert [name for name in algorithms_on(device) if name in ladder] == ladder


def test_rows_are_named_by_their_keys():
    assert [row.name for row in ALGORITHMS.values()] == list(ALGORITHMS)


def test_spec_counts():
    spec = ConvSpec.of((2, 3, 8, 9), (4, 3, 3, 2), stride=(2, 1), padding=(1, 0))
    assert (spec.x_shape, spec.w_shape, spec.y_shape) == ((2, 3, 8, 9), (4, 3, 3, 2), (2, 4, 4, 8))
    assert (spec.columns, spec.macs) == (18, 2 * 4 * 4 * 8 * 18)
    assert spec.sizes == (2, 3, 8, 9, 4, 3, 2, 4, 8, 2, 1, 1, 0)


# ---- Errors ----


def refuses(message, x=(1, 3, 5, 6), w=(2, 3, 3, 3), b=None, **options):
    with pytest.raises(ValueError, match=re.escape(message)):
        conv2d_forward(np.zeros(x), np.zeros(w), b, **options)


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 3, 0, 6)])
def test_refuses_what_is_no_batch_of_images(shape):
    refuses(f"of which only N may be 0, got x {shape} and w (2, 3, 3, 3)", x=shape)


def test_refuses_what_are_no_filters():
    refuses("of which only N may be 0, got x (1, 3, 5, 6) and w (2, 27)", w=(2, 27))


def test_refuses_other_channels():
    refuses("x has 3 channels but the filters take 4: x (1, 3, 5, 6), w (2, 4, 3, 3)", w=(2, 4, 3, 3))


def test_refuses_a_window_that_does_not_fit():
    refuses("conv2d: a (9, 9) window does not fit into (5, 6) with padding (1, 1)", w=(2, 3, 9, 9), padding=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stride": 0}, "stride = 0"), ({"stride": (1, -1)}, "stride = -1"), ({"padding": -1}, "padding = -1")],
)
def test_refuses_a_senseless_geometry(options, message):
    refuses(f"conv2d: {message}: should be a whole number, at least", **options)


@pytest.mark.parametrize("value", [1.5, True, (1, 2, 3), (1,), "12", (1, None), np.array([1, 2])])
@pytest.mark.parametrize("option", ["stride", "padding"])
def test_refuses_what_is_no_pair(option, value):
    refuses(f"{option} must be an integer or a pair of integers (height, width), got {value!r}", **{option: value})


def test_accepts_numpy_integers():
    x, w, _, _ = tensors(GEOMETRIES["VGG"], "float64")
    assert conv2d_forward(x, w, stride=np.int64(2), padding=[np.int8(1), 1])[0].shape == (2, 4, 4, 5)


def test_refuses_mixed_dtypes():
    refuses("must share one dtype, got float64, float64, float32", b=np.zeros(2, np.float32))


def test_refuses_a_bias_of_another_size():
    refuses("b must have shape (2,), one value for each output, got (3,)", b=np.zeros(3))


def test_refuses_an_unknown_algorithm():
    refuses('no algorithm "fft"; there are "auto", "naive", "im2col"', algorithm="fft")


def test_refuses_what_the_algorithm_does_not_support(monkeypatch):
    picky = Algorithm("picky", "", naive.forward, naive.grad_input, naive.grad_weight, lambda spec, device: "too odd")
    monkeypatch.setitem(ALGORITHMS, "picky", picky)
    refuses('algorithm "picky" cannot do ConvSpec(N=1, C=3, H=5, W=6', algorithm="picky")
    refuses("too odd", algorithm="picky")
