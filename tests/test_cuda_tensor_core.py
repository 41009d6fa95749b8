"""The convolution on simulated tensor cores: fragments, how exact it is, its range, bank conflicts and races."""

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends import cuda
from minivgg.backends.array import to, to_cpu
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, conv2d_forward, implicit_gemm, naive, tensor_core, tiling
from minivgg.testing import check_conv
from minivgg.testing.arrays import integers, signed

UNITS = {"tf32": tensor_core.TF32, "fp16x3": tensor_core.FP16X3, "fp16": tensor_core.FP16}
LARGE = ConvSpec.of((1, 8, 12, 13), (136, 8, 3, 3), 1, 1)  # more pixels and filters than the largest tile has
SMALL = ConvSpec.of((2, 4, 5, 4), (8, 4, 3, 3), 1, 1)


def tile_of(name, number):
    ((_, tiles),) = UNITS[name].tiles.items()
    return tiles[number]


def drawn(spec, draw, name="tf32", dtype=None):
    """x, w, dy in the dtype of an algorithm, or in another."""
    dtype, rng = dtype or {"fp16": np.float16}.get(name, np.float32), np.random.default_rng(0)
    return tuple(to(draw(rng, shape, dtype), "sim") for shape in (spec.x_shape, spec.w_shape, spec.y_shape))


def passes(algorithm, x, w, dy, spec):
    """(y, dx, dw) in main memory."""
    row = ALGORITHMS[algorithm] if isinstance(algorithm, str) else algorithm
    answers = row.forward(x, w, spec), row.grad_input(dy, w, spec), row.grad_weight(dy, x, spec)
    return [to_cpu(a) for a in answers]


def in_float64(x, w, dy, spec):
    return passes(naive, *(to_cpu(a).astype(np.float64) for a in (x, w, dy)), spec)


@pytest.mark.parametrize("name", UNITS)
def test_conformance(name):
    check_conv(name, "even window", devices=("sim",))


@pytest.mark.parametrize(
    ("name", "tile"), [("tf32", 0), ("fp16x3", 2), ("fp16", 0), ("tf32", 3), ("fp16x3", 3), ("fp16", 3)]
)
def test_integers_come_out_exactly(name, tile):
    """Small ones fit the short factors, and their sums what they are stored in: what is off is an element in a wrong
    place."""
    x, w, dy = drawn(LARGE, integers, name)
    units, how = UNITS[name], {"units": UNITS[name], "tile": tile_of(name, tile)}
    found = (
        tiling.forward_on_gpu(x, w, LARGE, **how),
        tiling.grad_input_on_gpu(dy, w, LARGE, **how),
        tiling.grad_weight_on_gpu(dy, x, LARGE, units, how["tile"], parts=2),
    )
    for a, b in zip(found, in_float64(x, w, dy, LARGE), strict=True):
        assert (to_cpu(a) == b).all()


def test_exactness():
    """A product is off by `eps` of itself; each of the `terms` additions by 2⁻²⁴ of what is there, taken twice."""
    spec = ConvSpec.of((1, 16, 9, 8), (24, 16, 3, 3), 1, 1)
    terms = spec.columns, spec.O * spec.KH * spec.KW, spec.N * spec.OH * spec.OW
    for name, coarsest in (("tf32", 1e-3), ("fp16x3", 3e-7)):
        x, w, dy = drawn(spec, signed, name)
        expected, sizes = in_float64(x, w, dy, spec), in_float64(abs(x), abs(w), abs(dy), spec)
        for a, b, size, count in zip(passes(name, x, w, dy, spec), expected, sizes, terms, strict=True):
            assert (abs(a - b) <= (ALGORITHMS[name].eps + count * 2.0**-23) * size).all()
            error = np.linalg.norm(a - b) / np.linalg.norm(b)
            assert coarsest / 20 < error < coarsest  # short factors, and no shorter


def test_numbers_of_any_size():
    """A power of two changes no digit, as far as float32 reaches; in float16 it would be an infinity, or nothing."""
    x, w, dy = drawn(SMALL, signed)
    expected = passes("fp16x3", x, w, dy, SMALL)
    for power in (100.0, -100.0):
        y, _, dw = passes("fp16x3", x * np.float32(2**power), w, dy, SMALL)
        _, dx, _ = passes("fp16x3", x, w, dy * np.float32(2**power), SMALL)
        for found, e in zip((y, dx, dw), expected, strict=True):
            assert (found == e * np.float32(2**power)).all()
    for nothing in passes("fp16x3", 0 * x, w, 0 * dy, SMALL):
        assert (nothing == 0).all()


@pytest.mark.parametrize("name", UNITS)
def test_a_nan_stays_in_its_window(name):
    x, w, _ = drawn(SMALL, signed, name)
    expected = to_cpu(ALGORITHMS[name].forward(x, w, SMALL))
    x[0, 0, 0, 0] = np.nan
    y = to_cpu(ALGORITHMS[name].forward(x, w, SMALL))
    assert np.isnan(y[0, :, :2, :2]).all()
    assert np.allclose(y[1], expected[1], rtol=1e-2, atol=1e-2)  # the scale is another one


@pytest.mark.parametrize("name", UNITS)
def test_bias_relu_and_mask(name):
    x, w, dy = drawn(SMALL, integers, name)
    y, dx, _ = in_float64(x, w, dy, SMALL)
    b = to(integers(np.random.default_rng(1), SMALL.O, x.dtype), "sim")
    found = ALGORITHMS[name].forward(x, w, SMALL, bias=b, relu=True)
    assert (to_cpu(found) == np.maximum(y + to_cpu(b)[:, None, None], 0)).all()
    assert (to_cpu(ALGORITHMS[name].grad_input(dy, w, SMALL, mask=x)) == np.where(to_cpu(x) > 0, dx, 0)).all()


@pytest.mark.parametrize("name", ["tf32", "fp16x3"])
def test_float64_is_implicit_gemm_s(name):
    x, w, dy = drawn(SMALL, signed, dtype=np.float64)
    for a, b in zip(passes(name, x, w, dy, SMALL), passes(implicit_gemm, x, w, dy, SMALL), strict=True):
        assert a.dtype == np.float64 and (a == b).all()


@pytest.mark.parametrize("name", ["tf32", "fp16x3"])
def test_a_cpu_has_none(name):
    with pytest.raises(ValueError, match=f'"{name}" cannot do .*tensor cores, which a CPU does not have'):
        conv2d_forward(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), algorithm=name)


@pytest.mark.parametrize("name", UNITS)
def test_no_bank_conflicts(name):
    """In what the inner loops read, and in what is copied. A GPU reads a pair at once, a C++ compiler one by one."""
    spec = ConvSpec.of((1, 16, 12, 11), (128, 16, 3, 3), 1, 1)
    x, w, dy = drawn(spec, signed, name)
    units, tile = UNITS[name], tile_of(name, {"tf32": 0, "fp16x3": 2, "fp16": 0}[name])
    with cudasim.checking(traffic=True, orders=("forward",)) as launches:
        tiling.forward_on_gpu(x, w, spec, units=units, tile=tile)
        tiling.grad_weight_on_gpu(dy, x, spec, units, tile, parts=1)
    lines = [line for launch in launches for line in launch.traffic if line.memory == "shared"]
    inner = [line for line in lines if "tensor_core.cu" in line.line or line.size == 16]
    assert {line.access for line in inner} == {"read", "write"}
    source = (cuda.PACKAGE / units.file).read_text().splitlines()
    pair = f"tensor_core.cu:{1 + next(i for i, line in enumerate(source) if 'const Pair*' in line)}"
    assert {line.transactions / line.fewest for line in inner if line.line == pair} <= {1, 2}
    assert {line.transactions / line.fewest for line in inner if line.line != pair} == {1}


@pytest.mark.parametrize("name", UNITS)
def test_no_races(name):
    x, w, dy = drawn(SMALL, signed, name)
    expected = passes(name, x, w, dy, SMALL)
    with cudasim.checking(racecheck=True, memcheck=True, orders=("forward", "reverse", 1, 2)):
        for a, b in zip(passes(name, x, w, dy, SMALL), expected, strict=True):
            assert (a == b).all()
