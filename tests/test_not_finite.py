"""An infinity or a NaN reaches what the definition lets it reach: by every algorithm of the CPU, in every pass."""

import re

import numpy as np
import pytest

from minivgg.ops.conv2d import (
    ALGORITHMS,
    ConvSpec,
    algorithms_on,
    conv2d_backward,
    conv2d_forward,
    explain,
    naive,
    taps,
)
from minivgg.ops.conv2d.spec import Algorithm
from minivgg.testing import GEOMETRIES
from minivgg.testing.convolutions import check_conv, contains_what_is_not_finite

INF, NAN = np.inf, np.nan
RUNGS = algorithms_on("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, where the tests compute


def counts(a):
    """(not finite, NaN)"""
    return int((~np.isfinite(a)).sum()), int(np.isnan(a).sum())


def same(found, expected, tolerance=1e-3):
    """The same infinities and NaNs, and between them about the same numbers."""
    where = f"{counts(found)} not finite and NaN, not {counts(expected)}"
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(found), kind(expected), where)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("algorithm", ["auto", *RUNGS])
@pytest.mark.parametrize(("value", "expected"), [(INF, (9, 0)), (-INF, (9, 0)), (NAN, (9, 9))])
def test_one_pixel_of_an_image(algorithm, value, expected):
    """Winograd gave 24 NaNs and an infinity, and a NaN reached 25 pixels."""
    x, w = np.ones((1, 1, 16, 16), np.float32), np.ones((1, 1, 3, 3), np.float32)
    x[0, 0, 7, 6] = value
    y, _ = conv2d_forward(x, w, padding=1, algorithm=algorithm)
    assert counts(y) == expected
    assert (~np.isfinite(y[0, 0, 6:9, 5:8])).all()


@pytest.mark.parametrize("algorithm", ["auto", *RUNGS])
def test_one_weight_and_zero_padding(algorithm):
    """0 · ∞ is NaN: direct, implicit GEMM and im2col gave 288 values that are not finite, for 242."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 12, 12), (4, 3, 3, 3)))
    w[1, 0, 0, 2] = INF
    y, cache = conv2d_forward(x, w, padding=1, algorithm=algorithm)
    assert counts(y) == (2 * 11 * 11, 0)
    dx, dw, _ = conv2d_backward(np.ones_like(y), cache)
    assert (counts(dx), counts(dw)) == ((2 * 11 * 11, 0), (0, 0))


@pytest.mark.parametrize("where", ["x", "w", "dy"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("algorithm", [rung for rung in RUNGS if rung != "naive"])
def test_every_pass_on_every_geometry(algorithm, geometry, where, dtype):
    spec, row = ConvSpec.of(*GEOMETRIES[geometry]), ALGORITHMS[algorithm]
    if row.why_not(spec, "cpu", dtype):
        pytest.skip("not its geometry")
    rng = np.random.default_rng(0)
    for value in (INF, -INF, NAN):
        shapes = {"x": spec.x_shape, "w": spec.w_shape, "dy": spec.y_shape}
        given = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        given[where].reshape(-1)[rng.integers(given[where].size)] = value
        x, w, dy = given.values()
        same(row.forward(x, w, spec), naive.forward(x, w, spec))
        same(row.grad_input(dy, w, spec), naive.grad_input(dy, w, spec))
        same(row.grad_weight(dy, x, spec), naive.grad_weight(dy, x, spec))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_taps_are_the_definition(geometry, dtype, laid_out):
    spec, rng = ConvSpec.of(*GEOMETRIES[geometry]), np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s).astype(dtype) for s in (spec.x_shape, spec.w_shape, spec.y_shape))
    given = laid_out(x), laid_out(w), laid_out(dy)
    tolerance = 1e3 * np.finfo(dtype).eps  # sums of at most some hundred terms
    same(taps.forward(*given[:2], spec), naive.forward(x, w, spec), tolerance)
    same(taps.grad_input(given[2], given[1], spec), naive.grad_input(dy, w, spec), tolerance)
    same(taps.grad_weight(given[2], given[0], spec), naive.grad_weight(dy, x, spec), tolerance)


# x, w, bias, options: every way out of a kernel, whole vectors and single numbers, whole tiles and parts of some
WAYS = [
    ((2, 3, 9, 9), 4, {}),
    ((2, 16, 8, 8), 32, {}),
    ((2, 16, 8, 8), 32, {"relu": True}),
    ((2, 5, 9, 11), 33, {"relu": True}),
    ((1, 16, 8, 8), 64, {"pool": True}),
    ((1, 16, 9, 10), 32, {"pool": True, "relu": True}),
    ((1, 3, 7, 7), 5, {"pool": True, "relu": True, "prepared": True}),
    ((1, 16, 8, 8), 32, {"relu": True, "prepared": True}),
]


@pytest.mark.parametrize(("shape", "O", "options"), WAYS)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("where", ["x", "w", "b"])
@pytest.mark.parametrize("algorithm", ["auto", *RUNGS])
def test_with_what_is_done_in_registers(algorithm, where, value, shape, O, options):
    """A ReLU makes 0 of −∞, and a pool takes the larger one: what is looked at is what there was before."""
    rng = np.random.default_rng(1)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (shape, (O, shape[1], 3, 3), (O,)))
    given = {"x": x, "w": w, "b": b}[where]
    given.reshape(-1)[rng.integers(given.size)] = value

    def options_of():  # filters are prepared anew
        return options | ({"prepared": {}} if "prepared" in options else {})

    y, _ = conv2d_forward(x, w, b, padding=1, algorithm=algorithm, **options_of())
    expected, _ = conv2d_forward(x, w, b, padding=1, algorithm="naive", **options_of())
    same(y, expected)


@pytest.mark.parametrize("algorithm", ["auto", *RUNGS])
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 3, 9, 7)])
def test_a_gradient_under_a_mask(algorithm, shape):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (32, shape[1], 3, 3)))
    dy = rng.standard_normal((shape[0], 32, *shape[2:])).astype(np.float32)
    dy[0, 7, 2, 3] = INF
    found, expected = (
        conv2d_backward(dy, conv2d_forward(x, w, padding=1, algorithm=row)[1], after_relu=True)
        for row in (algorithm, "naive")
    )
    for f, e in zip(found[:2], expected[:2], strict=True):
        same(f, e)


def test_a_first_layer_too_large_for_the_caches():
    """Which is written past them, by a kernel of its own, with an odd number of pixels in a row."""
    x = np.zeros((1, 3, 363, 363), np.float32)
    w = np.ones((64, 3, 3, 3), np.float32)
    x[0, 1, 200, 361] = -INF
    y, _ = conv2d_forward(x, w, padding=1, algorithm="direct")
    assert y.nbytes > 1 << 24
    expected = np.zeros((363, 363), bool)
    expected[199:202, 360:363] = True
    assert (np.isneginf(y) == expected).all() and counts(y) == (64 * 9, 0)


@pytest.mark.parametrize("algorithm", ["winograd", "winograd2", "auto"])
def test_finite_numbers_that_overflow_between(algorithm):
    """Their transform is past float32, their convolution is not."""
    x, w = np.zeros((1, 16, 8, 8), np.float32), np.full((32, 16, 3, 3), 0.01, np.float32)
    x[0, 3, 3, 3:6] = 3e38
    y, _ = conv2d_forward(x, w, padding=1, algorithm=algorithm)
    assert np.isfinite(y).all()
    same(y, naive.forward(x, w, ConvSpec.of(x.shape, w.shape, 1, 1)))


def test_what_was_left_in_memory_is_not_looked_at():
    """Padded channels and pixels, and the row that an odd block reads from, hold anything: the bits must not know."""
    rng = np.random.default_rng(0)
    for shape, O in (((1, 3, 9, 9), 5), ((2, 17, 7, 5), 33), ((1, 3, 363, 363), 64)):
        x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (O, shape[1], 3, 3)))
        for rung in RUNGS[1:]:
            before = conv2d_forward(x, w, padding=1, algorithm=rung)[0].copy()
            conv2d_forward(np.full_like(x, NAN), w, padding=1, algorithm=rung)  # leaves NaNs everywhere
            np.testing.assert_array_equal(conv2d_forward(x, w, padding=1, algorithm=rung)[0], before)


def test_all_finite_sees_each_place():
    for size in (1, 5, 1 << 14, (1 << 14) + 1, 100_000):
        a = np.zeros(size, np.float32)
        assert taps.all_finite(a)
        for place in {0, size // 2, size - 1}:
            for value in (INF, -INF, NAN):
                a[place] = value
                assert not taps.all_finite(a)
                a[place] = 0
    assert taps.all_finite(np.zeros((0, 3), np.float32))


def test_a_rung_that_mixes_is_told_so():
    def mixed(x, w, spec):
        return naive.forward(x, w, spec) + 0 * x.sum()

    mine = Algorithm("mine", "", mixed, naive.grad_input, naive.grad_weight)
    report = check_conv(mine, "VGG", raise_on_failure=False)
    assert [r.rule for r in report.failures] == [contains_what_is_not_finite.title]
    says_so = Algorithm("mine", "", mixed, naive.grad_input, naive.grad_weight, mixes=("cpu",))
    assert check_conv(says_so, "VGG", raise_on_failure=False).ok


def test_what_auto_promises_is_said():
    vgg = ConvSpec.of((8, 128, 56, 56), (128, 128, 3, 3), 1, 1)
    assert re.search("winograd: .*what is not finite stays where the definition puts it$", explain(vgg))
    assert "relative to the largest number of its tile" in explain(vgg)
    assert "not finite" in conv2d_forward.__doc__
