"""The fast rungs where they branch: the smallest shapes that take every path, quick even as plain Python.

So `mutate.py` can ask them about each mutant. Everything is float64 here, and compared with one `einsum`: a mistake of
a single number in a single place is a million times larger than rounding.
"""

import numpy as np
import pytest

from minivgg.backends import workspace
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, direct, implicit_gemm, packing, winograd
from minivgg.testing import oracles

FAST = "direct", "implicit_gemm", "winograd2", "winograd"

# name → x (N, C, H, W), O, window, stride, padding
CASES = {
    "little of everything": ((2, 3, 5, 6), 2, (3, 3), (1, 1), (1, 1)),
    "a pixel": ((1, 1, 1, 1), 1, (3, 3), (1, 1), (1, 1)),
    "channels fill a vector": ((1, 16, 7, 5), 16, (3, 3), (1, 1), (0, 2)),
    "a channel more than a vector": ((1, 17, 6, 5), 17, (3, 3), (1, 1), (1, 0)),
    "two blocks of outputs": ((1, 2, 4, 5), 40, (3, 3), (1, 1), (1, 1)),
    "two blocks of inputs": ((1, 34, 4, 5), 3, (3, 3), (1, 1), (1, 1)),
    "whole blocks": ((1, 32, 4, 4), 32, (3, 3), (1, 1), (1, 1)),
    "many pixels": ((1, 2, 5, 35), 3, (3, 3), (1, 1), (1, 1)),
    "stride": ((2, 3, 8, 7), 5, (3, 3), (2, 1), (1, 1)),
    "many images, stride": ((9, 1, 9, 5), 2, (3, 3), (2, 3), (1, 1)),
    "steps over pixels": ((1, 2, 9, 8), 34, (2, 2), (3, 3), (0, 0)),
    "a wide window": ((1, 5, 6, 9), 3, (2, 5), (1, 2), (1, 2)),
    "pointwise": ((2, 18, 3, 2), 4, (1, 1), (1, 1), (0, 0)),
}


def drawn(case):
    """(spec, x, w, dy), random and signed."""
    x_shape, O, window, stride, padding = CASES[case]
    rng, spec = np.random.default_rng(0), ConvSpec.of(x_shape, (O, x_shape[1], *window), stride, padding)
    return spec, *(rng.standard_normal(shape) for shape in (x_shape, spec.w_shape, spec.y_shape))


def expected_gradients(x, w, dy, spec):
    """dx by handing each output's share back to the pixels it looked at, and dw."""
    seen = oracles.windows(x, (spec.KH, spec.KW), spec.stride, spec.padding)
    dw = np.einsum("nohw,nchwij->ocij", dy, seen)
    shares = np.einsum("nohw,ocij->nchwij", dy, w)
    (top, left), (sh, sw) = spec.padding, spec.stride
    padded = np.zeros((spec.N, spec.C, spec.H + 2 * top, spec.W + 2 * left))
    for i, j in np.ndindex(spec.OH, spec.OW):
        padded[:, :, i * sh : i * sh + spec.KH, j * sw : j * sw + spec.KW] += shares[:, :, i, j]
    return padded[:, :, top : top + spec.H, left : left + spec.W], dw


def compare(algorithm, case):
    spec, x, w, dy = drawn(case)
    b = np.linspace(-1, 1, spec.O)
    y = oracles.conv2d(x, w, stride=spec.stride, padding=spec.padding)
    dx, dw = expected_gradients(x, w, dy, spec)
    near = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(algorithm.forward(x, w, spec), y, **near)
    fused = np.maximum(y + b[:, None, None], 0)
    np.testing.assert_allclose(algorithm.forward(x, w, spec, bias=b, relu=True), fused, **near)
    prepared = algorithm.prepare(w).copy()
    np.testing.assert_allclose(algorithm.forward(x, w, spec, bias=b, relu=True, prepared=prepared), fused, **near)
    if algorithm.pools and min(spec.OH, spec.OW) > 1:
        pooled = algorithm.forward(x, w, spec, bias=b, relu=True, pool=True)
        np.testing.assert_allclose(pooled, oracles.maxpool2d(fused, 2), **near)
    np.testing.assert_allclose(algorithm.grad_input(dy, w, spec), dx, **near)
    np.testing.assert_allclose(algorithm.grad_input(dy, w, spec, mask=x), np.where(x > 0, dx, 0), **near)
    np.testing.assert_allclose(algorithm.grad_weight(dy, x, spec), dw, **near)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", CASES)
def test_every_path(name, case):
    algorithm, (spec, *_) = ALGORITHMS[name], drawn(case)
    if algorithm.supports(spec, "cpu"):
        assert name.startswith("winograd") and (spec.KH, spec.KW, *spec.stride) != (3, 3, 1, 1)
    else:
        compare(algorithm, case)


# ---- The same in other portions: nothing may depend on how large a cache is thought to be, or on who does what ----


@pytest.fixture(params=[1, 2, 3, 7], ids="{} workers".format)
def crumbs(request, monkeypatch):
    """Caches of nothing, or nearly, so that portions are as small as they get, and so many workers to share them."""
    for module in (direct, implicit_gemm, winograd):
        monkeypatch.setattr(module, "threads", lambda: request.param)
    monkeypatch.setattr(direct, "_L2", 3000 if request.param == 2 else 1)
    monkeypatch.setattr(implicit_gemm, "_GATHERED", 1)
    monkeypatch.setattr(packing, "_LAST_CACHE", 0)
    monkeypatch.setattr(winograd, "_CHUNK", 1)
    monkeypatch.setattr(winograd, "_GROUP", 4)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "case", ["little of everything", "two blocks of outputs", "stride", "many images, stride", "many pixels"]
)
def test_in_crumbs(name, case, crumbs):
    if ALGORITHMS[name].supports(drawn(case)[0], "cpu") is None:
        compare(ALGORITHMS[name], case)


@pytest.mark.parametrize(
    "tiles, blocks, workers, expected",
    [
        (1, 1, 1, (2, 1)),  # a pair at least, for the micro-kernel takes rows in pairs
        (128, 4, 2, (64, 4)),  # a group for each worker
        (200, 4, 2, (50, 4)),  # as many for one as for the other
        (6272, 2, 2, (64, 2)),
        (60, 4, 2, (60, 2)),  # too few tiles for two groups: every worker has half of the outputs
        (60, 3, 8, (60, 1)),
    ],
)
def test_shares_of_winograd(tiles, blocks, workers, expected):
    assert winograd._tiling(tiles, blocks, workers) == expected


def test_bands_of_direct():
    """Half of 1 MB holds 8 rows of 64 kB; twenty tasks for a hundred rows take five each; a row at least."""
    rows = direct._band_rows
    assert [rows(100, 1 << 16, 1), rows(100, 1 << 16, 20), rows(7, 1 << 16, 2), rows(100, 1 << 21, 1)] == [8, 5, 4, 1]
    assert direct._band_shape(3, 5, 6, (2, 4), (3, 7)) == (2 * 2 + 3 + 1, 4 * 4 + 7, 6)


def test_what_direct_asks_for(monkeypatch):
    asked, take = {}, workspace.buffer

    def recorded(purpose, shape, dtype):
        asked[purpose] = shape
        return take(purpose, shape, dtype)

    monkeypatch.setattr(workspace, "buffer", recorded)
    monkeypatch.setattr(direct, "threads", lambda: 3)
    monkeypatch.setattr(direct, "_L2", 20000)
    spec = ConvSpec.of((2, 4, 20, 7), (5, 4, 3, 2), (1, 2), (1, 1))
    x, w, dy = (np.zeros(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    # 4 columns of outputs look at 8 pixels of 4 channels, 256 bytes a row: half of the cache holds 39 rows, but four
    # tasks for each of three workers are six for an image of 20 rows, so four rows each
    direct.forward(x, w, spec)
    assert asked["direct bands"] == (3, 4 - 1 + 3 + 1, 8, 4)
    # 4 outputs of dy, 32 wide, are 1024 bytes a row, 341 for each worker: 10000 // (256 + 341) rows fit; but adding to
    # dw, of 3 × 8 × 32 numbers, twice 6144 bytes, pays off from 12 rows on only
    direct.grad_weight(dy, x, spec)
    assert asked["direct filters"] == (3, 8, 32)
    assert asked["direct bands"] == (16 - 1 + 3 + 1, 8, 4)
    monkeypatch.setattr(direct, "_L2", 10000)
    direct.grad_weight(dy, x, spec)  # 8 rows with dy, 12 for dw's sake, 19 without dy
    assert asked["direct bands"] == (12 - 1 + 3 + 1, 8, 4)


def test_whole_blocks_are_not_copied():
    wide, narrow = (np.ones((1, 2, 2, O)) for O in (64, 33))
    assert direct.widened(wide) is wide
    assert direct.widened(narrow).shape == (1, 2, 2, 64)


def test_rows_of_the_ladder():
    for name in FAST:
        assert ALGORITHMS[name].fuses
        why_not = ALGORITHMS[name].supports(drawn("little of everything")[0], "gpu")
        assert why_not == (None if name == "implicit_gemm" else "it runs on the CPU only, so far")


@pytest.mark.parametrize(
    "nbytes, O, streamed", [(1 << 24, 32, False), ((1 << 24) + 128, 32, True), (1 << 25, 16, False)]
)
def test_what_goes_past_the_caches(nbytes, O, streamed):
    """More than 16 MB, in whole blocks, and aligned."""
    memory = workspace.buffer("test", (nbytes + 64,), np.uint8)
    y = memory[:nbytes].view(np.float32).reshape(-1, O)
    assert packing.streams(y, 32) is streamed
    assert not packing.streams(memory[4 : nbytes + 4].view(np.float32).reshape(-1, O), 32)
