"""Which rung "auto" takes: the estimates against arithmetic by hand, and the choices that they are made for."""

import json

import pytest

from minivgg.backends.jit import threads
from minivgg.errors import BadInput
from minivgg.ops import conv2d
from minivgg.ops.conv2d import ConvSpec, planning


def vgg(N, C, size, O):
    return ConvSpec(N, C, size, size, O, 3, 3, (1, 1), (1, 1))


@pytest.mark.parametrize(
    "spec, direction, prepared, name",
    [
        (vgg(8, 3, 224, 64), "forward", False, "direct"),  # three channels: nothing to win by transforms
        (
            vgg(8, 3, 224, 64),
            "grad_input",
            False,
            "im2col",
        ),  # 3 outputs in a block of 32 are few, 27 columns are not
        (vgg(8, 64, 224, 64), "forward", False, "winograd"),
        (vgg(8, 512, 28, 512), "grad_weight", False, "winograd"),
        (vgg(1, 512, 14, 512), "forward", False, "winograd2"),  # few tiles: half as many filters to transform
        (vgg(128, 512, 2, 512), "forward", False, "winograd2"),  # a tile of 4 × 4 would be three quarters empty
        (ConvSpec(8, 3, 224, 224, 96, 11, 11, (4, 4), (2, 2)), "forward", False, "direct"),  # AlexNet
    ],
)
def test_the_plan_knows_its_trade(spec, direction, prepared, name, monkeypatch):
    monkeypatch.setattr(planning, "measurements", lambda threads: {})
    assert conv2d.plan(spec, direction, prepared=prepared).name == name


def test_the_plan_believes_what_was_measured(monkeypatch, tmp_path):
    spec = vgg(8, 64, 224, 64)
    table = {planning.machine(threads()): {planning.key(spec, "forward"): {"naive": 0.0}}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("MINIVGG_TUNING", str(tmp_path / "table.json"))
    planning.measurements.cache_clear()
    try:
        assert conv2d.plan(spec).name == "naive"
        assert conv2d.plan(spec, "grad_weight").name == "winograd"
    finally:
        planning.measurements.cache_clear()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_table_of_measurements_is_named(content, monkeypatch, tmp_path):
    (tmp_path / "table.json").write_text(content)
    monkeypatch.setenv("MINIVGG_TUNING", str(tmp_path / "table.json"))
    planning.measurements.cache_clear()
    try:
        with pytest.raises(BadInput, match=r"table\.json: not a table of measurements"):
            conv2d.plan(vgg(1, 3, 8, 4))
    finally:
        planning.measurements.cache_clear()


# ---- By hand: FLOP at 230 GFLOP/s a thread, gathered bytes at 15 GB/s, filters at what they come by ----


def conv(N=1, C=32, H=4, W=4, O=32, K=3, stride=1, padding=1):
    return ConvSpec.of((N, C, H, W), (O, C, K, K), stride, padding)


@pytest.mark.parametrize(
    "rows, factor",
    [(14, 1), (28, 1), (1, 4), (2, 2), (4, 1), (5, 6 / 5), (15, 16 / 15), (29, 30 / 29)],
)
def test_how_long_few_rows_take(rows, factor):
    """In blocks of an even number of rows, 14 at most; and never faster than four rows."""
    assert planning._rows_factor(rows) == pytest.approx(factor)


def test_winograd_by_hand():
    # 4 tiles of 2×2, 16 planes: 2·4·16·32·32 FLOP; tiles of 32 + 32 channels; filters of 16·32·32 numbers
    flop, transforms, filters = 131072, 4 * 16 * 4 * 64, 4 * 16 * 1024
    expected = flop / 230e9 + transforms / 15e9 + filters / 20e9
    assert planning.estimate("winograd2", conv(), "forward", 1) == pytest.approx(expected)
    assert planning.estimate("winograd2", conv(), "grad_input", 1) == pytest.approx(expected)
    two = flop / 460e9 + transforms / 30e9 + filters / 20e9
    assert planning.estimate("winograd2", conv(), "forward", 2) == pytest.approx(two)
    prepared = flop / 230e9 + transforms / 15e9 + filters / 60e9
    assert planning.estimate("winograd2", conv(), "forward", 1, prepared=True) == pytest.approx(prepared)
    # one tile of 4×4 for each of four images, 36 planes
    larger = 2 * 4 * 36 * 1024 / 230e9 + 4 * 36 * 4 * 64 / 15e9 + 4 * 36 * 1024 / 20e9
    assert planning.estimate("winograd", conv(N=4), "forward", 1) == pytest.approx(larger)


def test_winograd_rounds_up():
    # 5×7 pixels are 2 × 2 tiles of 4×4 each; 48 outputs take two blocks of 32, but a gradient of 32 inputs takes one
    spec = conv(H=5, W=7, O=48)
    flop, transforms, filters = 2 * 4 * 36 * 32 * 48, 4 * 36 * 4 * 80, 4 * 36 * 32 * 48
    forward = flop * 64 / 48 / 230e9 + transforms / 15e9 + filters / 20e9
    assert planning.estimate("winograd", spec, "forward", 1) == pytest.approx(forward)
    grad_input = flop / 230e9 + transforms / 15e9 + filters / 20e9
    assert planning.estimate("winograd", spec, "grad_input", 1) == pytest.approx(grad_input)


def test_direct_by_hand():
    spec = conv(H=14, W=14)  # 9·32·32 multiply-adds a pixel; a row is one block; x is copied to bands, and read there
    flop, image, filters = 2 * 196 * 9216, 4 * 196 * 32, 4 * 9216
    forward = flop / 230e9 + 2 * image / 15e9 + filters / 8e9
    assert planning.estimate("direct", spec, "forward", 1) == pytest.approx(forward)
    assert planning.estimate("direct", spec, "forward", 1, prepared=True) == pytest.approx(forward - filters / 8e9)
    assert planning.estimate("direct", spec, "grad_input", 1) == pytest.approx(forward)
    # the gradient of the filters, 3·32 rows at a time, is read and written once for each image of 512 pixels or fewer
    grad_weight = flop / 230e9 + (image + filters) / 15e9 + 3 * filters / 8e9
    assert planning.estimate("direct", spec, "grad_weight", 1) == pytest.approx(grad_weight)
    large = conv(N=2, H=32, W=32)
    grad_weight = 2 * 2048 * 9216 / 230e9 + (4 * 2048 * 32 + 2 * 2 * filters) / 15e9 + 3 * filters / 8e9
    assert planning.estimate("direct", large, "grad_weight", 1) == pytest.approx(grad_weight)


def test_direct_with_a_stride_multiplies_zeros():
    flop, filters = 2 * 196 * 9216, 4 * 9216
    spec = conv(H=28, W=14, stride=(2, 1))  # 14×14 outputs; the gradient of 28×14 inputs takes twice as many products
    grad_input = 2 * flop / 230e9 + 8 * 392 * 32 / 15e9 + filters / 8e9
    assert planning.estimate("direct", spec, "grad_input", 1) == pytest.approx(grad_input)
    spec = conv(H=28, W=28, stride=2)  # and of 28×28, four times as many
    forward = flop / 230e9 + 8 * 196 * 32 / 15e9 + filters / 8e9
    assert planning.estimate("direct", spec, "forward", 1) == pytest.approx(forward)
    grad_input = 4 * flop / 230e9 + 8 * 784 * 32 / 15e9 + filters / 8e9
    assert planning.estimate("direct", spec, "grad_input", 1) == pytest.approx(grad_input)


def test_direct_reads_large_filters_for_every_band():
    spec = conv(C=256, O=256, H=14, W=14)  # 2.4 MB of filters, more than the second-level cache holds
    flop, image, filters = 2 * 196 * 9 * 65536, 4 * 196 * 256, 4 * 9 * 65536
    for workers, bands in ((1, 4), (2, 8), (4, 14)):  # four for each worker, but no more than there are rows
        expected = flop / 230e9 / workers + 2 * image / 15e9 / workers + filters / 8e9
        expected += bands * filters / 60e9 / workers
        assert planning.estimate("direct", spec, "forward", workers) == pytest.approx(expected)
    grad_weight = flop / 230e9 + (image + filters) / 15e9 + 3 * filters / 8e9  # which adds to them, and has no bands
    assert planning.estimate("direct", spec, "grad_weight", 1) == pytest.approx(grad_weight)


def test_implicit_gemm_by_hand():
    spec = conv(H=7, W=8)  # 56 pixels are two panels
    flop, columns, filters = 2 * 56 * 9216, 4 * 56 * 288, 4 * 9216
    forward = flop / 230e9 + 1.5 * columns / 15e9 + filters / 8e9
    assert planning.estimate("implicit_gemm", spec, "forward", 1) == pytest.approx(forward)
    assert planning.estimate("implicit_gemm", spec, "grad_weight", 1) == pytest.approx(forward + 2 * filters / 8e9)
    large = conv(C=256, O=256, H=7, W=8)
    flop, columns, filters = 2 * 56 * 9 * 65536, 4 * 56 * 2304, 4 * 9 * 65536
    forward = flop / 230e9 + 1.5 * columns / 15e9 + filters / 8e9 + 2 * filters / 60e9
    assert planning.estimate("implicit_gemm", large, "forward", 1) == pytest.approx(forward)
    grad_weight = flop / 230e9 + 1.5 * columns / 15e9 + 3 * filters / 8e9
    assert planning.estimate("implicit_gemm", large, "grad_weight", 1) == pytest.approx(grad_weight)


def test_im2col_by_hand():
    spec = conv(N=2, H=14, W=14, O=48)  # a matrix of 392 × 288, times 48 rows of filters, which take two blocks of 32
    flop, columns, others = 2 * 392 * 288 * 48, 4 * 392 * 288, 4 * 392 * 48
    forward = flop * 64 / 48 / 230e9 + (4 * columns + others) / 15e9 + 50e-6
    assert planning.estimate("im2col", spec, "forward", 1) == pytest.approx(forward)
    grad_input = flop / 230e9 + (4 * columns + others) / 15e9 + 50e-6  # 288 columns are nine whole blocks
    assert planning.estimate("im2col", spec, "grad_input", 1) == pytest.approx(grad_input)
    two = flop * 64 / 48 / 460e9 + (4 * columns + others) / 30e9 + 50e-6
    assert planning.estimate("im2col", spec, "grad_weight", 2) == pytest.approx(two)


def test_whole_blocks_of_outputs_are_computed():
    for name in ("direct", "implicit_gemm"):
        few, whole = (planning.estimate(name, conv(H=14, W=14, O=O), "forward", 1, prepared=True) for O in (3, 32))
        assert few == pytest.approx(whole)


def test_nothing_is_known_of_others():
    assert planning.estimate("mine", conv(), "forward", 1) == float("inf")


def test_the_key_of_a_measurement():
    spec = ConvSpec.of((2, 3, 8, 9), (4, 3, 3, 5), (2, 1), (1, 0))
    assert planning.key(spec, "forward") == "forward 2x3x8x9 to 4, 3x5 stride 2x1 padding 1x0"


def test_maps_that_are_not_square():
    """Rows of 29 pixels take three blocks of 10, whichever way the image is turned; many images share the bands."""
    spec = conv(N=3, C=256, O=256, H=2, W=29)
    flop, image, filters = 2 * 3 * 58 * 9 * 65536, 4 * 3 * 58 * 256, 4 * 9 * 65536
    expected = flop * 30 / 29 / 230e9 + 2 * image / 15e9 + filters / 8e9 + 3 * 2 * filters / 60e9
    assert planning.estimate("direct", spec, "forward", 1) == pytest.approx(expected)
    assert planning.estimate("direct", spec, "grad_input", 1) == pytest.approx(expected)
    tall = conv(N=5, C=256, O=256, H=29, W=2)  # rows of two: twice the time; one band an image, for four tasks
    flop, image = 2 * 5 * 58 * 9 * 65536, 4 * 5 * 58 * 256
    expected = flop * 2 / 230e9 + 2 * image / 15e9 + filters / 8e9 + 5 * filters / 60e9
    for direction in ("forward", "grad_input"):
        assert planning.estimate("direct", tall, direction, 1) == pytest.approx(expected)


def test_filters_that_just_fit():
    """1 MB of them is not read again for each band, and a little more is."""
    for O, readings in ((256, 0), (288, 4)):
        spec = conv(C=1024, O=O, H=14, W=14, K=1, padding=0)
        flop, image, filters = 2 * 196 * 1024 * O, 4 * 196 * 1024, 4 * 1024 * O
        expected = flop / 230e9 + 2 * image / 15e9 + filters / 8e9 + readings * filters / 60e9
        assert planning.estimate("direct", spec, "forward", 1) == pytest.approx(expected)


def test_panels_of_28_pixels():
    for W, panels in ((28, 1), (29, 2)):
        spec = conv(C=256, O=256, H=1, W=W)
        flop, columns, filters = 2 * W * 9 * 65536, 4 * W * 2304, 4 * 9 * 65536
        expected = flop / 230e9 + 1.5 * columns / 15e9 + filters / 8e9 + panels * filters / 60e9
        assert planning.estimate("implicit_gemm", spec, "forward", 1) == pytest.approx(expected)


@pytest.mark.parametrize("tiles, factor", [(1, 4), (5, 6 / 5), (58, 1), (100, 1)])
def test_few_tiles_take_longer(tiles, factor):
    """Beyond 56 they are in blocks of 14."""
    flop, transforms, filters = 2 * tiles * 36 * 1024, 4 * 36 * tiles * 64, 4 * 36 * 1024
    expected = flop * factor / 230e9 + transforms / 15e9 + filters / 20e9
    assert planning.estimate("winograd", conv(N=tiles), "forward", 1) == pytest.approx(expected)
