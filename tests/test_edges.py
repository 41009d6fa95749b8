"""At the edges of what there is: no image, one pixel, one channel, windows larger than the map, and little memory."""

import itertools
import re
import tracemalloc

import numpy as np
import pytest

from minivgg.backends import workspace
from minivgg.backends.array import to, why_not
from minivgg.gradcheck import check
from minivgg.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import build
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, algorithms_on, conv2d_backward, conv2d_forward, explain, naive
from minivgg.ops.relu import relu_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_forward
from minivgg.testing import CASES
from minivgg.testing.arrays import workspace_of
from minivgg.testing.rules import takes_an_empty_batch
from minivgg.testing.trials import Trial

DEVICES = [
    "cpu",
    pytest.param("sim", marks=pytest.mark.skipif(why_not("sim") is not None, reason="no simulated GPU")),
]
NO_ANSWER = {"softmax_cross_entropy"}  # a mean over nothing

# ---- No image ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_no_image_gives_none(name, device):
    """The rule says: or it is refused. Here: which are."""
    for case in CASES[name].cases:
        trial = Trial(CASES[name], case, np.dtype(np.float32), device)
        x, *others = trial.arguments()
        statistics_of_the_batch = name == "batchnorm" and "mean" not in case.options
        if name in NO_ANSWER or statistics_of_the_batch:
            with pytest.raises(ValueError, match=r"not empty|no value a channel"):
                trial.op.call((x[:0], *others), trial.options)
        else:
            y, backward = trial.op.call((x[:0], *others), trial.options)
            assert y.shape[0] == 0 and y.shape[1:] == trial.y_shape[1:] and y.dtype == np.float32
            dx, *gradients = backward(y)
            assert dx.shape == (0, *x.shape[1:]) and dx.dtype == np.float32
            assert all(not to(g, "cpu").any() and g.shape == a.shape for g, a in zip(gradients, others, strict=True))
            takes_an_empty_batch.holds(trial)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_no_image_by_every_algorithm(algorithm, device):
    w, b = (to(np.full(shape, np.inf, np.float32), device) for shape in ((4, 3, 3, 3), 4))
    x = to(np.ones((0, 3, 8, 6), np.float32), device)
    y, cache = conv2d_forward(x, w, b, padding=1, algorithm=algorithm, relu=True)
    assert y.shape == (0, 4, 8, 6)
    dx, dw, db = conv2d_backward(y, cache, after_relu=True)
    assert dx.shape == x.shape and dw.shape == w.shape and not to(dw, "cpu").any() and not to(db, "cpu").any()
    assert conv2d_forward(x, w, b, padding=1, algorithm=algorithm, pool=True, prepared={})[0].shape == (0, 4, 4, 3)
    assert conv2d_backward(y, cache, need_dx=False)[0] is None


@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_a_plan_for_no_image(direction):
    spec = ConvSpec.of((0, 3, 8, 8), (4, 3, 3, 3), 1, 1)
    assert "expected" in explain(spec, direction)


def test_no_image_through_a_network():
    net = Sequential(
        Conv2d(3, 4, 3, padding=1), ReLU(), MaxPool2d(2), BatchNorm2d(4), Dropout(0.5), Flatten(), Linear(64, 2)
    )
    x = np.ones((0, 3, 8, 8), np.float32)
    for run in net, net.freeze():
        assert run.forward(x).shape == (0, 2)
    net.forward(x, keep=True)
    assert net.backward(np.ones((0, 2), np.float32)).shape == x.shape
    assert not any(p.grad.any() for p in net.named_params().values())
    with pytest.raises(ValueError, match=r"^3 \(BatchNorm2d\): batchnorm: .* has no value a channel"):
        net.forward(x, train=True)
    with pytest.raises(ValueError, match=r"scores \(N, K\), not empty"):
        softmax_cross_entropy_forward(net.forward(x), np.zeros(0, int))


def test_no_image_through_a_network_by_name():
    net = build("vgg11", input_size=32, classifier_width=8, width=0.05)
    assert net.forward(np.ones((0, 3, 32, 32), np.float32)).shape == (0, 1000)


def test_a_gradient_check_says_that_there_is_nothing_to_check():
    with pytest.raises(ValueError, match="Sequential: x must be finite, and not empty"):
        check(Sequential(Conv2d(2, 3, 3), ReLU()), np.ones((0, 2, 5, 5)))


# ---- Small maps, odd counts ----


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max(initial=0)))


SIZES = [  # x, w, stride, padding
    ((1, 1, 1, 1), (1, 1, 3, 3), 1, 1),
    ((2, 1, 1, 1), (1, 1, 5, 5), 1, 2),
    ((1, 2, 2, 3), (3, 2, 7, 5), 2, 3),  # the window is larger than the map, the padding too
    ((3, 1, 4, 4), (1, 1, 2, 2), 7, 0),  # the stride is larger than the map
    ((3, 1, 4, 5), (1, 1, 3, 3), (9, 1), (1, 0)),
    ((1, 1, 9, 1), (33, 1, 3, 1), 1, (1, 0)),
    ((1, 31, 3, 3), (1, 31, 3, 3), 1, 1),
    ((5, 33, 5, 4), (31, 33, 3, 3), 1, 2),
    ((1, 1, 5, 5), (1, 1, 3, 3), 1, (2, 0)),
    ((7, 3, 1, 40), (2, 3, 1, 1), 1, 0),
    ((1, 1, 2, 2), (1, 1, 1, 1), 1, 4),
    ((1, 3, 57, 1), (17, 3, 3, 3), (2, 3), (0, 1)),
]


@pytest.mark.parametrize(("x", "w", "stride", "padding"), SIZES)
@pytest.mark.parametrize("algorithm", ["auto", *algorithms_on("cpu")])
def test_odd_sizes(algorithm, x, w, stride, padding, dtype):
    spec, rng = ConvSpec.of(x, w, stride, padding), np.random.default_rng(0)
    if algorithm != "auto" and ALGORITHMS[algorithm].why_not(spec, "cpu", dtype):
        pytest.skip("not its geometry")
    x, w, dy = (rng.standard_normal(shape).astype(dtype) for shape in (x, w, spec.y_shape))
    y, cache = conv2d_forward(x, w, stride=stride, padding=padding, algorithm=algorithm)
    close(y, naive.forward(x.astype(float), w.astype(float), spec))
    dx, dw, _ = conv2d_backward(dy, cache)
    close(dx, naive.grad_input(dy.astype(float), w.astype(float), spec))
    close(dw, naive.grad_weight(dy.astype(float), x.astype(float), spec))


# ---- Memory ----


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm"])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), ((2, 3), (0, 2)), (1, (4, 0))])
@pytest.mark.parametrize("rows", [1, 3, 7, 12, 1000])
def test_the_filters_gradient_widens_no_more_than_it_may(algorithm, stride, padding, rows):
    """O = 1 is widened to 32: in as many parts as the limit asks for, each with its own beginning in x."""
    spec, rng = ConvSpec.of((3, 2, 13, 11), (1, 2, 3, 3), stride, padding), np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in (spec.x_shape, spec.y_shape))
    row = spec.OW * 32 * 4
    workspace.release()
    with workspace_of(rows * row):
        dw = ALGORITHMS[algorithm].grad_weight(dy, x, spec)
        taken = workspace._local.__dict__["widened upstream"].nbytes
    assert taken <= rows * row
    close(dw, naive.grad_weight(dy.astype(float), x.astype(float), spec))


@pytest.mark.parametrize("algorithm", ["auto", "direct", "implicit_gemm"])
def test_one_filter_on_a_large_image(algorithm):
    """2049² pixels and one filter: dy widened to 32 outputs would take half a gigabyte, and 64 MiB are allowed."""
    x = np.ones((1, 1, 2049, 2049), np.float32)
    y, cache = conv2d_forward(x, np.ones((1, 1, 3, 3), np.float32), padding=1, algorithm=algorithm)
    workspace.release()
    tracemalloc.start()
    _, dw, _ = conv2d_backward(np.ones_like(y), cache, need_dx=False)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 << 20
    sides = np.array([2048, 2049, 2048])
    np.testing.assert_allclose(dw[0, 0], np.outer(sides, sides), rtol=1e-4)


def test_too_little_memory_says_where_and_how_much():
    x = np.broadcast_to(np.float32(0), (1, 1 << 20, 1 << 11, 1 << 11))  # 16 TiB, if anybody wrote them down
    said = "no memory for 1.64e+04 GiB at once; make the batch, the image or the network smaller"
    with pytest.raises(MemoryError, match=f"^{re.escape(said)}$"):
        relu_forward(x)
    with pytest.raises(MemoryError, match=rf"^features\.0 \(ReLU\): {re.escape(said)}$"):
        Sequential({"features": Sequential(ReLU())}).forward(x)
    assert workspace._in_use < 1 << 40  # what could not be had is not counted


def test_numbers_of_pixels_past_32_bits_in_the_plan():
    spec = ConvSpec.of((1, 1, 46342, 46342), (1, 1, 3, 3), 1, 1)
    assert spec.macs == 46342**2 * 9
    for direction, prepared in itertools.product(("forward", "grad_input", "grad_weight"), (False, True)):
        assert "expected" in explain(spec, direction, prepared=prepared)


def test_given_statistics_of_no_pixel():
    x, ones = np.ones((0, 3, 2, 2), np.float32), np.ones(3, np.float32)
    y, cache = batchnorm_forward(x, ones, ones, mean=ones, var=ones)
    dx, dweight, dbias = batchnorm_backward(y, cache)
    assert (y.shape, dx.shape, dweight.tolist(), dbias.tolist()) == (x.shape, x.shape, [0] * 3, [0] * 3)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "dropout"])
def test_a_single_number(name, dtype):
    """An array without dimensions has any shape, too."""
    op, x = CASES[name], np.array(1.5, dtype)
    options = {"p": 0.0} if name == "dropout" else {}
    y, cache = op.forward(x, **options)
    dx = op.backward(np.array(2, dtype), cache)
    expected = {"sigmoid": 1 / (1 + np.exp(-1.5))}.get(name, 1.5)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == ((), dtype, (), dtype)
