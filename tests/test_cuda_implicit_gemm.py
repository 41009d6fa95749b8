"""Implicit GEMM on the simulated GPU: each rung, each tile, bank conflicts, races, and how tiles are chosen."""

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends import workspace
from minivgg.backends.array import channels_last, to, to_cpu
from minivgg.ops.conv2d import ConvSpec, conv2d_forward, implicit_gemm, naive, tiling
from minivgg.testing import GEOMETRIES, check_conv
from minivgg.testing.arrays import integers, workspace_of

# More pixels and filters than the largest tile has, and more taps than a step; 16 bytes of channels, or an odd number.
VECTORS, ODD = ConvSpec.of((1, 8, 12, 13), (136, 8, 3, 3), 1, 1), ConvSpec.of((1, 7, 12, 13), (131, 7, 3, 3), 1, 1)
SMALL = ConvSpec.of((2, 4, 5, 4), (8, 4, 3, 3), 1, 1)
ALL_TILES = [(d, tile) for d in (np.float32, np.float64, np.float16) for tile in tiling.TILES[np.dtype(d).itemsize]]


def arrays(spec, dtype=np.float32, device="sim"):
    """x, w, dy of small integers, whose sums of products are exact, and so the same whatever the order."""
    rng = np.random.default_rng(0)
    drawn = (integers(rng, shape, dtype) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    return tuple(to(a, device) for a in drawn)


def same(found, expected):
    found, expected = to_cpu(found), to_cpu(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found == expected).all()


def by_naive(spec, dtype=np.float32):
    x, w, dy = (a.astype(np.float64) for a in arrays(spec, dtype, "cpu"))
    found = naive.forward(x, w, spec), naive.grad_input(dy, w, spec), naive.grad_weight(dy, x, spec)
    return [a.astype(dtype) for a in found]


def test_conformance():
    check_conv("implicit_gemm", "VGG", "even window", "stride past the window", devices=("sim",))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_all_geometries_on_every_rung(geometry):
    spec = ConvSpec.of(*GEOMETRIES[geometry])
    x, w, dy = arrays(spec)
    y, dx, dw = by_naive(spec)
    for rung in tiling.RUNGS:
        same(tiling.forward_on_gpu(x, w, spec, rung=rung), y)
        same(tiling.grad_input_on_gpu(dy, w, spec, rung=rung), dx)
    same(tiling.grad_weight_on_gpu(dy, x, spec), dw)


@pytest.mark.parametrize(
    ("dtype", "tile"), ALL_TILES, ids=lambda v: f"{v.BM}x{v.BN}" if hasattr(v, "BM") else v.__name__
)
def test_every_tile(dtype, tile):
    x, w, dy = arrays(VECTORS, dtype)
    y, dx, dw = by_naive(VECTORS, dtype)
    same(tiling.forward_on_gpu(x, w, VECTORS, tile=tile), y)
    same(tiling.grad_input_on_gpu(dy, w, VECTORS, tile=tile), dx)
    same(tiling.grad_weight_on_gpu(dy, x, VECTORS, tile=tile, parts=2), dw)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_odd_channels_in_a_large_tile(dtype):
    x, w, dy = arrays(ODD, dtype)
    y, dx, dw = by_naive(ODD, dtype)
    tile = tiling.TILES[x.itemsize][0]
    same(tiling.forward_on_gpu(x, w, ODD, tile=tile), y)
    same(tiling.grad_input_on_gpu(dy, w, ODD, tile=tile), dx)
    same(tiling.grad_weight_on_gpu(dy, x, ODD, tile=tile, parts=3), dw)


@pytest.mark.parametrize("spec", [SMALL, ConvSpec.of((2, 3, 7, 6), (5, 3, 3, 2), 2, 1)], ids=["vectors", "stride"])
def test_bias_relu_and_mask_are_applied_in_the_store(spec):
    x, w, dy = arrays(spec)
    y, dx, _ = by_naive(spec)
    b = to(integers(np.random.default_rng(1), spec.O, np.float32), "sim")
    z = y + to_cpu(b)[:, None, None]
    assert (z < 0).any() and (z > 0).any()
    same(implicit_gemm.forward(x, w, spec, bias=b), z)
    same(implicit_gemm.forward(x, w, spec, bias=b, relu=True), np.maximum(z, 0))
    same(implicit_gemm.forward(x, w, spec, relu=True), np.maximum(y, 0))
    same(tiling.forward_on_gpu(x, w, spec, bias=b, relu=True, rung="tiled"), np.maximum(z, 0))
    for order in (np.ascontiguousarray, channels_last):  # x is drawn with zeros in it: they are masked, too
        same(implicit_gemm.grad_input(dy, w, spec, mask=order(x)), np.where(to_cpu(x) > 0, dx, 0))


def test_a_nan_passes_the_relu():
    x, w, _ = arrays(SMALL)
    x[0, 0, 0, 0] = np.nan
    y = to_cpu(implicit_gemm.forward(x, w, SMALL, relu=True))
    assert np.isnan(y[0, :, :2, :2]).all() and not np.isnan(y[1]).any()


def test_prepared_filters():
    x, w, _ = arrays(SMALL)
    prepared = {}
    for _ in range(2):
        y, _ = conv2d_forward(x, w, None, padding=1, algorithm="implicit_gemm", prepared=prepared)
        same(y, by_naive(SMALL)[0])
    assert prepared["implicit_gemm"].shape == (3, 3, SMALL.C, SMALL.O)


def test_memory_that_begins_off_16_bytes():
    """A view into a longer array may begin anywhere; 16 bytes at once may not."""
    x, w, _ = arrays(SMALL)
    moved = to(np.zeros(x.size + 1, np.float32), "sim")[1:].reshape(x.shape[0], *x.shape[2:], x.shape[1])
    moved = moved.transpose(0, 3, 1, 2)
    moved[...] = x
    assert tiling.vector_of(4, 8, channels_last(x)) == 4 and tiling.vector_of(4, 8, moved) == 1
    same(implicit_gemm.forward(moved, w, SMALL), by_naive(SMALL)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_bank_conflicts(dtype):
    """Of 16 bytes a lane, which is all that the inner loops read and all that is copied, no request takes more passes
    through shared memory than its bytes need; and no gathering touches a sector that it does not use."""
    spec = ConvSpec.of((1, 32, 12, 11), (128, 32, 3, 3), 1, 1)
    x, w, dy = arrays(spec, dtype)
    tile = tiling.TILES[x.itemsize][0]
    with cudasim.checking(traffic=True, orders=("forward",)) as launches:
        tiling.forward_on_gpu(x, w, spec, tile=tile)
        tiling.grad_weight_on_gpu(dy, x, spec, tile=tile, parts=1)
    assert [launch.kernel for launch in launches][:2] == ["convolve", "grad_weight"]
    for launch in launches[:2]:
        wide = [line for line in launch.traffic if line.size == 16]
        assert {(line.memory, line.access) for line in wide} >= {
            ("shared", "read"),
            ("shared", "write"),
            ("global", "read"),
        }
        assert [line for line in wide if line.transactions != line.fewest] == []


@pytest.mark.parametrize("rung", tiling.RUNGS)
def test_no_races(rung):
    """Two steps of taps and of pixels at least, so that a stage is filled again; a tile with room to spare."""
    x, w, dy = arrays(SMALL)
    y, dx, dw = by_naive(SMALL)
    with cudasim.checking(racecheck=True, memcheck=True, orders=("forward", "reverse", 1, 2)):
        same(tiling.forward_on_gpu(x, w, SMALL, rung=rung), y)
        if rung == "pipelined":
            same(tiling.grad_input_on_gpu(dy, w, SMALL), dx)
            same(tiling.grad_weight_on_gpu(dy, x, SMALL, tile=tiling.TILES[4][-1], parts=1), dw)


def test_parts_of_a_filter_gradient_fit_the_workspace():
    spec = ConvSpec.of((2, 4, 20, 20), (4, 4, 3, 3), 1, 1)
    x, _, dy = arrays(spec)
    taken = []
    for limit in (0.001, 1e6):
        with workspace_of(limit), cudasim.checking() as launches:
            same(tiling.grad_weight_on_gpu(dy, x, spec), by_naive(spec)[2])
        taken.append([launch.grid[1] for launch in launches if launch.kernel == "grad_weight"])
        assert workspace.limit() > limit
    assert taken[0] == [1] and taken[1][0] > 1


def test_the_choice_of_a_tile():
    """Worked by hand, for 132 multiprocessors: the tiles of the busiest one, times their area, over their speed."""

    def chosen(rows, columns, terms=1 << 20, **parts):
        tile, number = tiling.choose(rows, columns, terms, tiling.TILES[4], 132, **parts)
        return tile.BM, tile.BN, number

    # 1568 tiles of 128 × 128: 12 each; where 3136 of 128 × 64 are 24 of half the area, but slower
    assert chosen(32 * 56 * 56, 256) == (128, 128, 1)
    # 196 tiles of 128 × 128: 2 each; 392 of 128 × 64: 3 of half the area
    assert chosen(32 * 14 * 14, 512) == (128, 64, 1)
    assert chosen(10, 10) == (32, 32, 1)
    # a filter gradient has few results, and long sums: its parts keep all busy, and no more than may be
    assert chosen(64, 576, most_parts=64)[2] > 8 and chosen(64, 576, most_parts=3)[2] == 3
