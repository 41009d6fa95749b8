"""The CUDA kernels of every op but convolution, in the simulator: held to the rules, and to what the CPU answers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import constant_on, device_of, on_gpu, to, to_cpu
from minivgg.layers import Conv2d, Dropout
from minivgg.ops.avgpool import adaptive_avgpool2d_forward, avgpool2d_backward, avgpool2d_forward
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.channels import add_per_channel, sum_per_channel
from minivgg.ops.conv2d import conv2d_backward, conv2d_forward
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.lrn import lrn_backward, lrn_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)
from minivgg.testing import check_layer, check_op
from minivgg.testing.arrays import MEMORY_ORDERS
from minivgg.testing.cases import CASES, LAYERS

EPS = np.finfo(np.float32).eps


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def on_both(function, *arrays):
    """What `function` answers on the CPU and on the simulated GPU, as tuples of NumPy arrays."""
    answers = []
    for device in ("cpu", "sim"):
        answer = function(*(to(a, device) for a in arrays))
        answer = answer if isinstance(answer, tuple) else (answer,)
        assert device == "cpu" or {device_of(a) for a in answer} == {"sim"}
        answers.append([to_cpu(a) for a in answer])
    return answers


def same_bits(function, *arrays):
    for cpu, sim in zip(*on_both(function, *arrays), strict=True):
        np.testing.assert_array_equal(sim, cpu)
        assert sim.dtype == cpu.dtype


def both_ways(forward, backward, **options):
    """A function of x and dy: (y, dx)."""

    def run(x, dy):
        y, cache = forward(x, **options)
        return y, backward(dy, cache)

    return run


# ---- The rules ----


@pytest.mark.parametrize("name", [name for name in CASES if name != "conv2d"])
def test_every_op_keeps_the_rules(name):
    check_op(name, devices=("sim",))


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_the_rules(name):
    make, shape = LAYERS[name]
    layer = make()
    for _, leaf in layer.walk():
        if isinstance(leaf, Conv2d):
            leaf.algorithm = "naive"
    check_layer(layer, shape, devices=("sim",))


def test_what_stands_above_a_convolution_keeps_the_rules():
    row, naive = CASES["conv2d"], partial(conv2d_forward, algorithm="naive")
    cases = [case for case in row.cases if case.shapes[0] in ((1, 1, 1, 1), (2, 5, 4, 3))]
    assert len(cases) == 2
    check_op(replace(row, forward=naive, cases=tuple(cases), devices=("gpu",)), devices=("sim",))


# ---- Bit for bit what the CPU says ----


@pytest.mark.parametrize("order", MEMORY_ORDERS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 1, 3, 5), (70, 33), (1000,)], ids=str)
@pytest.mark.parametrize("seed, call, p", [(0, 0, 0.5), (2**64 - 1, 2**63 + 12345, 0.3), (7, 2**32, 1 - 2**-34)])
def test_dropout_draws_the_same_mask(order, shape, seed, call, p):
    x = normal(*shape)
    x = x if x.ndim < 2 else MEMORY_ORDERS[order](x)
    same_bits(both_ways(dropout_forward, dropout_backward, p=p, seed=seed, call=call), x, x)


def test_the_number_of_a_dropout_mask_may_lie_on_the_gpu():
    x, number = to(np.ones((4, 100), np.float32), "sim"), to(np.array([2**63 + 5], np.uint64), "sim")
    y, cache = dropout_forward(x, 0.4, seed=3, call=number)
    np.testing.assert_array_equal(y, dropout_forward(to_cpu(x), 0.4, seed=3, call=2**63 + 5)[0])
    np.testing.assert_array_equal(dropout_backward(x, cache), y)
    for wrong in (to(np.array([5]), "sim"), to(np.array([5, 6], np.uint64), "sim")):
        with pytest.raises(ValueError, match="dropout: call must be an int, or one uint64 where x is"):
            dropout_forward(x, call=wrong)
    with pytest.raises(ValueError, match="dropout: call must be an int, or one uint64 where x is"):
        dropout_forward(to_cpu(x), call=number)
    with pytest.raises(ValueError, match="dropout: seed and call must be in"):
        dropout_forward(x, seed=-1, call=number)


def test_twins_of_a_dropout_layer_count_for_themselves_on_a_gpu():
    x = to(np.ones((4, 100), np.float32), "sim")
    layer = Dropout(0.5)
    layer.forward(x, train=True)
    twin = layer.twin()
    y = layer.forward(x, train=True)
    for _ in range(3):
        twin.forward(x, train=True)
    np.testing.assert_array_equal(layer.backward(x), y)


POOLS = {
    "VGG's": {"kernel_size": 2},
    "after a ReLU": {"kernel_size": 2, "relu": True},
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1, "relu": True},
    "with gaps": {"kernel_size": (1, 2), "stride": (3, 4)},
    "rounded up": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "two bytes": {"kernel_size": (17, 16), "stride": 2, "relu": True},
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_max_pools_agree_on_ties_and_nans(name, order):
    x = np.random.default_rng(1).integers(-3, 4, (2, 3, 17, 18)).astype(np.float32)  # many ties
    x[0, :, 3, 2:5], x[1, 0] = np.nan, -1
    x = MEMORY_ORDERS[order](x)
    y, cache = maxpool2d_forward(x, **POOLS[name])
    same_bits(both_ways(maxpool2d_forward, maxpool2d_backward, **POOLS[name]), x, normal(*y.shape))
    on_sim = maxpool2d_forward(to(x, "sim"), **POOLS[name])[1].argmax
    np.testing.assert_array_equal(to_cpu(on_sim), cache.argmax)
    assert on_sim.dtype == (np.uint16 if name == "two bytes" else np.uint8)


def test_average_pools_agree():
    x, dy = normal(2, 5, 11, 9), normal(2, 5, 6, 5, seed=1)
    same_bits(both_ways(avgpool2d_forward, avgpool2d_backward, kernel_size=3, stride=2, padding=1), x, dy)
    same_bits(both_ways(avgpool2d_forward, avgpool2d_backward, kernel_size=1, stride=2), x, dy)  # pixels in no window
    same_bits(both_ways(adaptive_avgpool2d_forward, avgpool2d_backward, output_size=(6, 5)), x, dy)
    larger = normal(2, 5, 13, 20, seed=1)
    same_bits(both_ways(adaptive_avgpool2d_forward, avgpool2d_backward, output_size=(13, 20)), x, larger)


def test_constants_are_copied_to_a_device_once():
    x, values = to(normal(2), "sim"), np.arange(6).reshape(2, 3)
    one, two = constant_on(x, values), constant_on(x, values.copy())
    assert one is two
    assert device_of(one) == "sim"
    np.testing.assert_array_equal(one, values)
    assert constant_on(x, values.astype(np.float32)).dtype == np.float32


# ---- More than one block, and numbers that are hard to add ----


@pytest.mark.parametrize("shape", [(3, 40, 21, 19), (1500, 3), (9, 7)], ids=str)
def test_channels_are_summed_and_added_to(shape):
    x, b = normal(*shape) + 100, normal(shape[1])
    _, (total,) = on_both(sum_per_channel, x)
    axes = (0, 2, 3)[: x.ndim - 1]
    np.testing.assert_allclose(total, x.sum(axis=axes, dtype=np.float64), rtol=EPS)  # one rounding, of the sum itself
    same_bits(lambda x, b: add_per_channel(x.copy(), b), x, b)  # a copy, because it may add in place


@pytest.mark.parametrize("shape", [(3, 40, 21, 19), (1500, 3)], ids=str)
def test_batch_norm_survives_a_large_mean(shape):
    x, weight, bias, dy = normal(*shape) + 1000, normal(shape[1], seed=1), normal(shape[1], seed=2), normal(*shape)

    def run(x, weight, bias, dy):
        y, cache = batchnorm_forward(x, weight, bias)
        return cache.mean, cache.var, y, *batchnorm_backward(dy, cache)

    cpu, sim = on_both(run, x, weight, bias, dy)
    exact = run(*(a.astype(np.float64) for a in (x, weight, bias, dy)))
    # sums in float64 of the very numbers: as good as in exact arithmetic
    for found, expected in zip(sim[:2], exact[:2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    # the centre is rounded to float32, half a unit of 1000, which is more than any sum makes: allow both twice over
    for found, expected, on_cpu in zip(sim[2:], exact[2:], cpu[2:], strict=True):
        allowed = 2 * np.abs(on_cpu - expected).max() + 8 * EPS * np.abs(expected).max()
        assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize("classes", [1000, 33, 1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_many_classes(classes, label_smoothing):
    scores, labels = 50 * normal(300, classes), np.arange(300) * 7 % classes

    def run(scores, labels):
        loss, cache = softmax_cross_entropy_forward(scores, labels, label_smoothing)
        return loss, softmax_cross_entropy_backward(1, cache), softmax_cross_entropy_backward(2 * loss, cache)

    _, (loss, dscores, twice) = on_both(run, scores, labels)
    exact_loss, exact, exact_twice = run(scores.astype(np.float64), labels)
    # shifted scores reach 400, whose rounding is 400·eps/2; an exponential, a logarithm and some 20 sums add less
    np.testing.assert_allclose(loss, exact_loss, rtol=400 * EPS)
    np.testing.assert_allclose(dscores, exact, atol=400 * EPS / 300)
    np.testing.assert_allclose(twice, exact_twice, atol=2 * exact_loss * 800 * EPS / 300)
    assert loss.shape == ()


def test_scores_at_the_edges():
    scores = normal(5, 4)
    scores[0, 1], scores[1], scores[2, 3], scores[3, 2], scores[4] = -np.inf, 1e30, np.nan, np.inf, -np.inf
    labels = np.array([0, 1, 2, 3, 0])
    with np.errstate(invalid="ignore"):
        (expected,), (found,) = on_both(lambda x: softmax_forward(x)[0], scores)
        np.testing.assert_allclose(found, expected, rtol=8 * EPS)
        assert np.isnan(found[2:]).all()
        (expected,), (found,) = on_both(lambda *a: softmax_cross_entropy_forward(*a)[1].probabilities, scores, labels)
        np.testing.assert_allclose(found, expected, rtol=8 * EPS)
    # a class that is ruled out costs nothing, unless it is asked for
    (expected,), (found,) = on_both(lambda *a: softmax_cross_entropy_forward(*a)[0], scores[:2], labels[:2] * 0)
    np.testing.assert_allclose(found, expected, rtol=8 * EPS)
    assert np.isfinite(found)


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_a_label_out_of_range_makes_the_loss_a_nan(wrong):
    labels = to(np.array([2, wrong, 0]), "sim")
    loss, cache = softmax_cross_entropy_forward(to(normal(3, 5), "sim"), labels)
    assert np.isnan(to_cpu(loss))
    assert np.isfinite(to_cpu(cache.probabilities)).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_labels_of_any_integer_type(dtype):
    scores, labels = to(normal(3, 5), "sim"), np.array([2, 4, 0])
    loss, _ = softmax_cross_entropy_forward(scores, to(labels.astype(dtype), "sim"))
    np.testing.assert_array_equal(loss, softmax_cross_entropy_forward(scores, to(labels, "sim"))[0])


# ---- What stands above a convolution, where its algorithm fuses nothing ----


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_bias_relu_and_pool_follow_a_convolution(relu, pool):
    x, w, b = normal(2, 3, 6, 7), normal(5, 3, 3, 3, seed=1), normal(5, seed=2)
    run = lambda *a: conv2d_forward(*a, padding=1, algorithm="naive", relu=relu, pool=pool)[0]  # noqa: E731
    (cpu,), (sim,) = on_both(run, x, w, b)
    assert (sim.min() >= 0) == relu
    np.testing.assert_allclose(sim, cpu, atol=27 * EPS * np.abs(x).max() * np.abs(w).max())  # sums of 27 products


def test_the_mask_of_a_relu_before_a_convolution():
    x, w, dy = np.maximum(normal(2, 3, 6, 7), 0), normal(5, 3, 3, 3, seed=1), normal(2, 5, 4, 5, seed=2)

    def run(x, w, dy):
        return conv2d_backward(dy, conv2d_forward(x, w, algorithm="naive")[1], after_relu=True)[0]

    (cpu,), (sim,) = on_both(run, x, w, dy)
    np.testing.assert_allclose(sim, cpu, atol=45 * EPS * np.abs(w).max() * np.abs(dy).max())
    assert not sim[x == 0].any()


# ---- Every kernel under watch, on tiny shapes ----

IMAGE, MATRIX = (2, 3, 5, 4), (3, 35)


def _classify(x, dy):
    loss, cache = softmax_cross_entropy_forward(x, to(np.array([0, 34, 2]), "sim"), 0.1)
    return loss, softmax_cross_entropy_backward(loss, cache)


def _normalise(x, dy):
    C = x.shape[1]
    y, cache = batchnorm_forward(x, *(to(normal(C, seed=s, dtype=x.dtype), "sim") for s in (1, 2)))
    return y, *batchnorm_backward(dy, cache)


def _linear(x, dy):
    y, cache = linear_forward(x, to(normal(4, 35), "sim"), to(normal(4), "sim"))
    return y, *linear_backward(y, cache)


WATCHED = {
    "maxpool": (both_ways(maxpool2d_forward, maxpool2d_backward, kernel_size=1, relu=True), IMAGE),
    "maxpool, overlapping": (
        both_ways(maxpool2d_forward, maxpool2d_backward, kernel_size=3, stride=1, padding=1),
        IMAGE,
    ),
    "avgpool": (both_ways(avgpool2d_forward, avgpool2d_backward, kernel_size=3, stride=1, padding=1), IMAGE),
    "batchnorm": (_normalise, IMAGE),
    "batchnorm of a matrix": (_normalise, MATRIX),
    "dropout": (both_ways(dropout_forward, dropout_backward, p=0.3), IMAGE),
    "lrn": (both_ways(lrn_forward, lrn_backward, size=2), IMAGE),
    "sigmoid": (both_ways(sigmoid_forward, sigmoid_backward), MATRIX),
    "softmax": (both_ways(softmax_forward, softmax_backward), MATRIX),
    "softmax_cross_entropy": (_classify, MATRIX),
    "channels": (lambda x, dy: (sum_per_channel(x), add_per_channel(dy.copy(), dy[0])), MATRIX),
    "linear": (_linear, MATRIX),
}


@pytest.mark.parametrize("name", WATCHED)
def test_no_kernel_races_or_leaves_its_arrays(name):
    run, shape = WATCHED[name]
    x, dy = to(normal(*shape), "sim"), to(normal(*shape, seed=1), "sim")
    with cudasim.checking(orders=("forward", "reverse", 1, 2)):
        expected = run(x, dy)
    with cudasim.checking(racecheck=True, memcheck=True) as launches:
        found = run(x, dy)
    assert launches
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(to_cpu(f), to_cpu(e))
        assert on_gpu(f)
