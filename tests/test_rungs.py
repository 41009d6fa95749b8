"""The fast rungs where they branch: the smallest shapes that take every path, quick even as plain Python.

So `mutate.py` can ask them about each mutant. Everything is float64 here, and compared with one `einsum`: a mistake of
a single number in a single place is a million times larger than rounding.
"""

import numpy as np
import pytest

from minivgg.backends import workspace
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, direct, implicit_gemm, packing, winograd
from minivgg.ops.conv2d.toom_cook import growth
from minivgg.testing import oracles

FAST = "direct", "implicit_gemm", "winograd2", "winograd"

# name → x (N, C, H, W), O, window, stride, padding
CASES = {
    "little of everything": ((2, 3, 5, 6), 5, (3, 3), (1, 1), (1, 1)),
    "a pixel": ((1, 1, 1, 1), 1, (3, 3), (1, 1), (1, 1)),
    "channels fill a vector": ((1, 16, 7, 5), 16, (3, 3), (1, 1), (0, 2)),
    "a channel more than a vector": ((1, 17, 6, 5), 17, (3, 3), (1, 1), (1, 0)),
    "two blocks of outputs": ((1, 2, 4, 5), 40, (3, 3), (1, 1), (1, 1)),
    "two blocks of inputs": ((1, 34, 4, 5), 16, (3, 3), (1, 1), (1, 1)),
    "whole tiles": ((1, 17, 6, 6), 48, (3, 3), (1, 1), (0, 0)),
    "whole blocks": ((1, 32, 4, 4), 64, (3, 3), (1, 1), (1, 1)),
    "many pixels": ((1, 2, 5, 35), 3, (3, 3), (1, 1), (1, 1)),
    "stride": ((2, 3, 8, 7), 5, (3, 3), (2, 1), (1, 1)),
    "many images, stride": ((9, 1, 9, 5), 2, (3, 3), (2, 3), (1, 1)),
    "steps over pixels": ((1, 2, 9, 8), 34, (2, 2), (3, 3), (0, 1)),
    "a wide window": ((1, 3, 6, 9), 3, (1, 5), (1, 2), (1, 2)),
    "pointwise": ((2, 17, 3, 2), 4, (1, 1), (1, 1), (0, 0)),
}


def drawn(case):
    """(spec, x, w, dy), random and signed."""
    x_shape, O, window, stride, padding = CASES[case]
    rng, spec = np.random.default_rng(0), ConvSpec.of(x_shape, (O, x_shape[1], *window), stride, padding)
    return spec, *(rng.standard_normal(shape) for shape in (x_shape, spec.w_shape, spec.y_shape))


# ---- How the work is shared out: by hand ----


@pytest.mark.parametrize(
    "tiles, blocks, workers, expected",
    [
        (1, 1, 1, (2, 1)),  # a pair at least, for the micro-kernel takes rows in pairs
        (120, 4, 2, (60, 4)),  # a group for each worker
        (128, 4, 2, (66, 4)),  # the same, but rows of planes must not lie a power of two apart
        (125, 4, 2, (66, 4)),
        (200, 4, 2, (50, 4)),  # as many for one as for the other
        (6272, 2, 2, (56, 2)),
        (60, 4, 2, (60, 2)),  # too few tiles for two groups: every worker has half of the outputs
        (60, 3, 8, (60, 1)),
        (120, 8, 8, (60, 2)),  # two groups for eight: each worker has a quarter of the outputs
    ],
)
def test_shares_of_winograd(tiles, blocks, workers, expected):
    assert winograd._tiling(tiles, blocks, workers) == expected


def test_portions_of_winograd(monkeypatch):
    """As many tiles as the cache holds, or as twice the gradient; not more than there are, and one at least."""
    monkeypatch.setattr(winograd, "_CHUNK", 1000)
    portions = [
        winograd._tiles_at_once(*sizes) for sizes in ((90, 10, 9), (90, 100, 9), (90, 100, 1000), (90, 5000, 9))
    ]
    assert portions == [90, 10, 20, 1]


def test_what_winograd_asks_for(monkeypatch):
    shapes = {}
    monkeypatch.setattr(winograd, "threads", lambda: 3)
    monkeypatch.setattr(winograd, "_CHUNK", 0)
    monkeypatch.setattr(
        winograd.kernels, "convolve", lambda *given: shapes.update(forward=[m.shape for m in given[-5:-2]])
    )
    monkeypatch.setattr(winograd.kernels, "correlate", lambda *given: shapes.update(dw=[m.shape for m in given[-4:]]))
    spec = ConvSpec.of((3, 50, 40, 40), (34, 50, 3, 3), 1, 1)
    x, w, dy = (np.zeros(shape, np.float32) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    assert winograd.transform(4, w).shape == (36, 2, 50, 32)
    # 300 tiles are 5 groups of 64, nearly, 6 for three workers, of 50; 64 or 80 numbers a row, and 16 apart
    ALGORITHMS["winograd"].forward(x, w, spec)
    assert shapes["forward"] == [(3, 36, 50, 80), (3, 36, 50, 80), (3, 36 * 80)]
    few = ConvSpec.of((3, 3, 40, 40), (64, 3, 3, 3), 1, 1)  # more outputs at a time than inputs: they take the patch
    ALGORITHMS["winograd"].forward(np.zeros(few.x_shape), np.zeros(few.w_shape), few)
    assert shapes["forward"] == [(3, 36, 50, 48), (3, 36, 50, 80), (3, 36 * 64)]
    # twice a gradient of 34 × 80 is as much as 34 tiles of 80 + 80 numbers
    ALGORITHMS["winograd"].grad_weight(dy, x, spec)
    assert shapes["dw"] == [(36, 34, 80), (36, 34, 80), (36, 34, 80), (3, 36 * 80)]


def test_winograd_pads_filters_to_vectors_if_it_must():
    for O, C, expected in ((16, 32, None), (17, 16, (32, 3, 3, 16)), (32, 17, (32, 3, 3, 32))):
        w = np.ones((O, 3, 3, C))
        padded = winograd._padded(w)
        assert padded is w if expected is None else padded.shape == expected


def test_winograd_refuses_more_padding_than_its_tiles_reach():
    for padding, reason in ((2, None), (3, "its padding must be at most 2")):
        assert winograd.supports(ConvSpec.of((1, 1, 4, 4), (1, 1, 3, 3), 1, padding), "cpu") == reason


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


def test_how_direct_shares_the_cache(monkeypatch):
    seen = []
    monkeypatch.setattr(direct, "_convolve", lambda *given: seen.append((given[-3].shape, given[-2])))
    monkeypatch.setattr(direct, "_convolve_streaming", lambda *given: seen.append((given[-4].shape, given[-3].shape)))
    monkeypatch.setattr(direct, "threads", lambda: 3)
    monkeypatch.setattr(direct, "streams", lambda y, at_once: True)
    monkeypatch.setattr(direct, "_L1", 26000)
    monkeypatch.setattr(direct, "_L2", 4000)
    for O, together in ((64, (3, 2 * 14 * 32)), (96, 2)):
        spec = ConvSpec.of((2, 4, 41, 7), (O, 4, 3, 2), (2, 1), (1, 1))
        direct.forward(np.zeros(spec.x_shape), np.zeros(spec.w_shape), spec)
        # 9 columns, 4 channels, and the stride's 2 rows are 576 bytes: three times in half of the cache, of 7 in a task
        bands = (3, (3 - 1) * 2 + 3 + 1, 9, 4)
        # 3 × 2 × 4 × 32 numbers are 6144 bytes: two blocks in half of the cache; past the caches if those are all
        assert seen[-1] == (bands, together)
    direct.grad_input(np.zeros(spec.y_shape), np.zeros(spec.w_shape), spec, mask=np.zeros(spec.x_shape))
    assert seen[-1][1] == 1  # 3 × 2 × 96 × 32 numbers, and a mask
    monkeypatch.setattr(direct, "_L1", 6000)
    direct.forward(np.zeros(spec.x_shape), np.zeros(spec.w_shape), spec)
    assert seen[-1][1] == 1


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    "O, C, size, window, stride",
    [
        (64, 3, (3, 27), (3, 3), 1),  # blocks of 14 and 13 pixels; 27 steps for 28 and 26 lines
        (32, 1, (2, 13), (1, 2), 1),  # two steps for 28 lines: most of them go afterwards
        (96, 2, (17, 6), (5, 2), (2, 1)),  # bands of two rows; 20 steps for 14 lines, of three blocks
        (64, 32, (2, 4), (3, 2), 1),  # here dx has 32 channels, and goes past the caches as well
    ],
)
def test_direct_past_the_caches(O, C, size, window, stride, mask, monkeypatch):
    """Streaming changes the way of a result to memory, and nothing else."""
    spec = ConvSpec.of((2, C, *size), (O, C, *window), stride, 1)
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    b = rng.standard_normal(O, np.float32)
    expected = direct.forward(x, w, spec, bias=b, relu=True), direct.grad_input(dy, w, spec, mask=x if mask else None)
    streamed, run = [], direct._convolve_streaming
    monkeypatch.setattr(direct, "_convolve_streaming", lambda *given: (streamed.append(1), run(*given)))
    monkeypatch.setattr(direct, "streams", lambda y, at_once: y.shape[-1] % at_once == 0)
    monkeypatch.setattr(direct, "_L1", 1 << 20)
    found = direct.forward(x, w, spec, bias=b, relu=True), direct.grad_input(dy, w, spec, mask=x if mask else None)
    assert len(streamed) == (1 if mask or C % 32 else 2)
    for a, b in zip(expected, found, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    "x_shape, parts",
    [
        ((2, 1, 7, 6), 2),  # three groups of 28 pixels for three threads: two parts each, so that all have two tasks
        ((3, 1, 5, 7), 2),  # four, one of them short
        ((1, 1, 4, 7), 5),  # one, which six tasks would share; but there are five blocks of outputs
        ((2, 1, 6, 14), 1),  # six: two for each thread
    ],
)
def test_how_implicit_gemm_shares(x_shape, parts, monkeypatch):
    seen = []
    monkeypatch.setattr(implicit_gemm, "_convolve", lambda *given: seen.append((given[-3].shape, given[-2])))
    monkeypatch.setattr(implicit_gemm, "threads", lambda: 3)
    spec = ConvSpec.of(x_shape, (160, 1, 3, 3), padding=1)
    implicit_gemm.forward(np.zeros(x_shape), np.zeros(spec.w_shape), spec)
    assert seen == [((3, 28, 9), parts)]


@pytest.mark.parametrize("gathered, H, rows", [(1000, 3, 4), (1000, 1, 2), (1, 3, 1), (4 << 20, 300, 300 * 2)])
def test_how_much_implicit_gemm_gathers(gathered, H, rows, monkeypatch):
    """Rows of 27 columns, and one more for the micro-kernel, in float64 are 224 bytes."""
    seen = []
    monkeypatch.setattr(implicit_gemm, "_correlate", lambda *given: seen.append((given[2].shape, given[-1].shape)))
    monkeypatch.setattr(implicit_gemm, "_GATHERED", gathered)
    spec = ConvSpec.of((1, 3, H, 2), (5, 3, 3, 3), padding=1)
    implicit_gemm.grad_weight(np.zeros(spec.y_shape), np.zeros(spec.x_shape), spec)
    assert seen == [((28, 32), (rows, 28))]


def test_direct_copies_no_whole_blocks():
    for O, copied in ((64, False), (33, True)):
        spec = ConvSpec.of((1, 3, 2, 2), (O, 3, 1, 1))
        x, dy = np.ones((1, 2, 2, 3)), np.ones((1, 2, 2, O))
        ((pixels, wide, padding),) = packing.widened_parts(x, dy, spec)
        assert pixels.shape == x.shape and wide.shape == (1, 2, 2, 64) and padding == (0, 0)
        assert np.shares_memory(dy, wide) != copied


def test_direct_does_on_a_cpu_what_a_gpu_has_no_room_for(monkeypatch):
    monkeypatch.setattr(direct.direct_on_gpu, "why_not", lambda spec: "no room")
    spec = drawn("a pixel")[0]
    assert (direct.supports(spec, "cpu"), direct.supports(spec, "gpu")) == (None, "no room")


@pytest.mark.parametrize("name", FAST)
def test_row(name):
    row, m = ALGORITHMS[name], {"winograd2": 2, "winograd": 4}.get(name)
    assert row.fuses
    assert row.pools is (m is not None)
    assert row.growth == (max(growth(m, 3), growth(3, m)) if m else 1)
    assert row.supports(drawn("little of everything")[0], "gpu") is None


@pytest.mark.parametrize(
    "nbytes, O, streamed", [(1 << 24, 32, False), ((1 << 24) + 128, 32, True), (1 << 25, 16, False)]
)
def test_what_goes_past_the_caches(nbytes, O, streamed):
    """More than 16 MB, in whole blocks, and aligned."""
    memory = workspace.buffer("test", (nbytes + 64,), np.uint8)
    y = memory[:nbytes].view(np.float32).reshape(1, -1, O)
    assert packing.streams(y, 32) is streamed
    assert not packing.streams(memory[4 : nbytes + 4].view(np.float32).reshape(1, -1, O), 32)


def test_direct_adds_up_no_more_than_some_products_in_a_row():
    """Else its error would be that of a sum of 4608, or 12544: 1.1e-6 and 2e-6."""
    rng = np.random.default_rng(0)
    for C, O, size in ((512, 3, 4), (3, 2, 112)):
        spec = ConvSpec.of((2, C, size, size), (O, C, 3, 3), padding=1)
        x, w, dy = (rng.standard_normal(shape, np.float32) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
        for run, a, b in ((direct.forward, x, w), (direct.grad_weight, dy, x)):
            exact = run(a.astype(float), b.astype(float), spec)
            assert np.linalg.norm(run(a, b, spec) - exact) < 0.9e-6 * np.linalg.norm(exact)


# ---- Every path ----


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
    mask = np.where(abs(x) < 0.3, 0, x)  # as a ReLU leaves it, where it is zero
    np.testing.assert_allclose(algorithm.grad_input(dy, w, spec, mask=mask), np.where(mask > 0, dx, 0), **near)
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
    monkeypatch.setattr(direct, "_L2", 3000 if request.param <= 2 else 1)
    monkeypatch.setattr(direct, "_CHAIN", 1 + request.param * 2)
    monkeypatch.setattr(implicit_gemm, "_GATHERED", 1 if request.param == 1 else 700)
    monkeypatch.setattr(packing, "_LAST_CACHE", 0)
    monkeypatch.setattr(winograd, "_CHUNK", 1)
    monkeypatch.setattr(winograd, "_GROUP", 4)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "case",
    ["little of everything", "two blocks of outputs", "whole tiles", "stride", "many images, stride", "many pixels"],
)
def test_in_crumbs(name, case, crumbs):
    if ALGORITHMS[name].supports(drawn(case)[0], "cpu") is None:
        compare(ALGORITHMS[name], case)
