"""What no op and no layer takes is refused, in a sentence that names it and says what to write.

Every op of `CASES` and every argument of it is tried, so a new op is, too.
"""

import re

import numpy as np
import pytest

from minivgg.backends.array import to, why_not
from minivgg.errors import BadInput
from minivgg.layers import (
    AdaptiveAvgPool2d,
    Auxiliary,
    AvgPool2d,
    BatchNorm2d,
    ChannelAffine,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minivgg.ops.avgpool import adaptive_avgpool2d_forward, avgpool2d_forward
from minivgg.ops.batchnorm import batchnorm_forward
from minivgg.ops.conv2d import conv2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.softmax_cross_entropy import softmax_forward
from minivgg.testing import CASES
from minivgg.testing.trials import Trial

# ---- Arrays ----


class Tagged(np.ndarray):
    """Whatever it means by its numbers, kernels would not know."""


def unaligned(a):
    """The same numbers, one byte off."""
    bytes_ = np.empty(a.nbytes + 1, np.uint8)
    result = bytes_[1:].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


FOREIGN = {  # what x is, and what the sentence says of it
    "int64": (lambda a: a.astype(np.int64), "is of dtype int64, not float32 or float64"),
    "uint8": (lambda a: abs(a).astype(np.uint8), "is of dtype uint8"),
    "bool": (lambda a: a > 0, "is of dtype bool"),
    "complex": (lambda a: a.astype(np.complex64), "is of dtype complex64"),
    "object": (lambda a: a.astype(object), "is of dtype object"),
    "longdouble": (lambda a: a.astype(np.longdouble), f"is of dtype {np.dtype(np.longdouble)}"),
    "float16": (lambda a: a.astype(np.float16), "is of dtype float16"),
    "foreign float32": (lambda a: a.astype(a.dtype.newbyteorder()), f"is of dtype {np.dtype('f4').newbyteorder()}"),
    "foreign float64": (lambda a: a.astype(">f8" if np.little_endian else "<f8"), "f8, not float32 or float64"),
    "text": (lambda a: a.astype(str), "is of dtype <U"),
    "structured": (lambda a: np.zeros(a.shape, [("r", "f4"), ("g", "f4")]), "for one of its fields"),
    "unaligned": (unaligned, "is not aligned in memory: write "),
    "list": (lambda a: a.tolist(), "is of type list, not a NumPy array: write np.asarray("),
    "None": (lambda a: None, "is of type NoneType"),
    "number": (lambda a: 2.5, "is of type float"),
    "scalar": (lambda a: np.float32(2.5), "is of type float32, not a NumPy array"),
    "masked": (np.ma.masked_array, ".filled(0)"),
    "subclass": (lambda a: a.view(Tagged), "is of type Tagged, not a NumPy array: write np.asarray("),
}


def refused(said, call, *words):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        call()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", CASES)
def test_every_argument_of_every_op(name, kind):
    make, said = FOREIGN[kind]
    for case in CASES[name].cases[:2]:
        trial = Trial(CASES[name], case, np.dtype(np.float32), "cpu")
        arrays = trial.arguments()
        for i, argument in enumerate(trial.op.arguments(case)):
            if argument == "b" and kind == "None":
                continue
            given = *arrays[:i], make(arrays[i]), *arrays[i + 1 :]
            refused(said, lambda given=given, t=trial: t.op.call(given, t.options), f": {argument} ", "write ")


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind not in ("structured", "text")])
@pytest.mark.parametrize("name", [name for name in CASES if name != "softmax_cross_entropy"])
def test_every_upstream_gradient(name, kind):
    trial = Trial(CASES[name], CASES[name].cases[0], np.dtype(np.float32), "cpu")
    _, backward = trial.op.call(trial.arguments(), trial.options)
    refused(": dy ", lambda: backward(FOREIGN[kind][0](trial.upstream())), "_backward: ", "write ")


@pytest.mark.skipif(why_not("sim") is not None, reason=f"no simulated GPU: {why_not('sim')}")
@pytest.mark.parametrize("kind", ["int64", "bool", "complex", "foreign float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_every_op_on_a_gpu(name, kind):
    op = CASES[name]
    trial = Trial(op, op.cases[0], np.dtype(np.float32), "sim")
    x, *others = (to(a, "cpu") for a in trial.arguments())
    given = [to(a, "sim") for a in (FOREIGN[kind][0](x), *others)]
    if kind == "float16" and (op.halves or name == "conv2d"):  # it takes them, but not mixed with others
        given = [*given, given[0].astype(np.float32)][:2] if others else []
    if given:
        refused("float16" if kind == "float16" else FOREIGN[kind][1], lambda: op.call(tuple(given), trial.options))


def test_a_gpu_s_and_a_cpu_s_arrays_do_not_go_together():
    x, w = to(np.ones((1, 1, 3, 3), np.float32), "sim"), np.ones((1, 1, 3, 3), np.float32)
    refused("conv2d: x and w must be on one device, got sim, cpu", lambda: conv2d_forward(x, w))


@pytest.mark.parametrize(
    ("dtypes", "write"),
    [
        (("f8", "f4", "f4"), "got float64, float32, float32: write x.astype(np.float32)"),
        (("f4", "f8", "f8"), "got float32, float64, float64: write x.astype(np.float64)"),
        (("f4", "f4", "f8"), "got float32, float32, float64: write b.astype(np.float32)"),
    ],
)
def test_one_dtype_throughout(dtypes, write):
    x, w, b = (np.ones(shape, dtype) for shape, dtype in zip(((1, 3, 4, 4), (2, 3, 3, 3), (2,)), dtypes, strict=True))
    refused(f"conv2d: x, w and b must share one dtype, {write}", lambda: conv2d_forward(x, w, b))
    x, weight, bias = (np.ones(shape, dtype) for shape, dtype in zip(((2, 3), 3, 3), dtypes, strict=True))
    refused("batchnorm: x, weight and bias must share one dtype", lambda: batchnorm_forward(x, weight, bias))


def test_numbers_that_came_out_wrong():
    """Each of these gave an answer: 2 for the mean of 1 to 4, NaNs, zeros, and two of four numbers lost."""
    four = np.arange(1, 5).reshape(1, 1, 2, 2)
    refused("avgpool2d: x is of dtype int64", lambda: avgpool2d_forward(four, 2))
    refused("adaptive_avgpool2d: x is of dtype int64", lambda: adaptive_avgpool2d_forward(four, 1))
    refused("softmax: x is of dtype uint8", lambda: softmax_forward(np.array([[1, 2]], np.uint8)))
    refused("batchnorm: x is of dtype", lambda: batchnorm_forward(four, np.ones(1, int), np.zeros(1, int)))
    assert avgpool2d_forward(four.astype(np.float32), 2)[0].item() == 2.5
    numbers = np.array([1.1, 2.2, -3.3, 4.4], ">f4")
    refused("relu: x is not aligned in memory: write x.copy()", lambda: relu_forward(unaligned(numbers.astype("f4"))))
    refused("relu: x is of dtype >f4", lambda: relu_forward(numbers))
    np.testing.assert_array_equal(relu_forward(numbers.astype("f4"))[0], np.array([1.1, 2.2, 0, 4.4], "f4"))


@pytest.mark.parametrize("name", CASES)
def test_arrays_that_are_only_read_are_taken(name, tmp_path):
    """Also those of a file: `numpy.memmap`."""
    for case in CASES[name].cases[:2]:
        trial = Trial(CASES[name], case, np.dtype(np.float32), "cpu")
        expected, arrays, mapped = trial.run(), trial.arguments(), []
        for i, a in enumerate(arrays):
            a.flags.writeable = False
            np.save(tmp_path / f"{i}.npy", a)
            mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
        dy = trial.upstream()
        if isinstance(dy, np.ndarray):
            dy.flags.writeable = False
        for given in arrays, tuple(mapped):
            found = trial.run(given, dy)
            assert found.keys() == expected.keys()
            for answer in found:
                np.testing.assert_array_equal(found[answer], expected[answer])


def test_relu_at_a_nan_and_at_minus_zero():
    """PyTorch passes dy on at a NaN, and minus zero; here neither, on every device."""
    for device in ("cpu", "sim"):
        if why_not(device) is None:
            x = to(np.array([np.nan, -0.0, 0.0, -1, 2], np.float32), device)
            y, cache = relu_forward(x)
            np.testing.assert_array_equal(to(y, "cpu"), [np.nan, 0, 0, 0, 2])
            assert not np.signbit(to(y, "cpu")[1:]).any()
            np.testing.assert_array_equal(to(relu_backward(x * 0 + 3, cache), "cpu")[1:], [0, 0, 0, 3])
            assert to(relu_backward(to(np.full(5, 3, np.float32), device), cache), "cpu")[0] == 0


# ---- Layers ----

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv2d(0, 1, 3), "Conv2d: in_channels = 0: should be a whole number, at least 1"),
        (lambda: Conv2d(1, -2, 3), "Conv2d: out_channels = -2: should be a whole number, at least 1"),
        (lambda: Conv2d(1.5, 1, 3), "Conv2d: in_channels = 1.5"),
        (lambda: Conv2d(True, 1, 3), "Conv2d: in_channels = True"),
        (lambda: Conv2d("3", 1, 3), "Conv2d: in_channels = '3'"),
        (lambda: Conv2d(1, 1, 0), "Conv2d: kernel_size = 0: should be a whole number, at least 1"),
        (lambda: Conv2d(1, 1, 2.5), "Conv2d: kernel_size must be an integer or a pair of integers"),
        (lambda: Conv2d(1, 1, 3, stride=0), "Conv2d: stride = 0: should be a whole number, at least 1"),
        (lambda: Conv2d(1, 1, 3, stride=(1, -1)), "Conv2d: stride = -1"),
        (lambda: Conv2d(1, 1, 3, stride=True), "Conv2d: stride must be an integer or a pair"),
        (lambda: Conv2d(1, 1, 3, padding=-1), "Conv2d: padding = -1: should be a whole number, at least 0"),
        (lambda: Conv2d(1, 1, 3, algorithm="fast"), 'conv2d: no algorithm "fast"; there are "auto"'),
        (lambda: Conv2d(1, 1, 3, dtype="int32"), "Conv2d: dtype = int32: should be float32 or float64, or float16 on"),
        (lambda: Linear(1, 1, dtype=">f4"), "Linear: dtype = >f4: should be float32 or float64"),
        (lambda: Linear(0, 1), "Linear: in_features = 0: should be a whole number, at least 1"),
        (lambda: Linear(1, INF), "Linear: out_features = inf"),
        (lambda: BatchNorm2d(0), "BatchNorm2d: num_features = 0: should be a whole number, at least 1"),
        (lambda: BatchNorm2d(3, eps=-1), "BatchNorm2d: eps = -1: should be a number, at least 0"),
        (lambda: BatchNorm2d(3, eps=NAN), "BatchNorm2d: eps = nan"),
        (lambda: BatchNorm2d(3, momentum=1.5), "momentum = 1.5: should be a number, at least 0 and at most 1"),
        (lambda: BatchNorm2d(3, momentum=None), "BatchNorm2d: momentum = None"),
        (lambda: MaxPool2d(0), "MaxPool2d: kernel_size = 0: should be a whole number, at least 1"),
        (lambda: MaxPool2d(2, 0), "MaxPool2d: stride = 0: should be a whole number, at least 1"),
        (lambda: MaxPool2d(2, padding=2), "MaxPool2d: padding (2, 2) must be at most half the window (2, 2)"),
        (lambda: AvgPool2d(3, padding=-1), "AvgPool2d: padding = -1: should be a whole number, at least 0"),
        (lambda: AvgPool2d(3, padding=(1, 2)), "AvgPool2d: padding (1, 2) must be at most half the window (3, 3)"),
        (lambda: AdaptiveAvgPool2d((1, 0)), "AdaptiveAvgPool2d: output_size = 0: should be a whole number, at least 1"),
        (lambda: Dropout(1.01), "Dropout: p = 1.01: should be a number, at least 0 and at most 1"),
        (lambda: Dropout(NAN), "Dropout: p = nan"),
        (lambda: Dropout(0.5, seed=-1), "Dropout: seed = -1: should be a whole number, at least 0"),
        (lambda: LocalResponseNorm(2.5), "LocalResponseNorm: size = 2.5: should be a whole number, at least 1"),
        (lambda: LocalResponseNorm(k=0), "LocalResponseNorm: k = 0: should be a number, above 0"),
        (lambda: LocalResponseNorm(alpha=-1), "LocalResponseNorm: alpha = -1: should be a number, at least 0"),
        (lambda: LocalResponseNorm(beta=INF), "LocalResponseNorm: beta = inf"),
        (lambda: ChannelAffine((1, 2), (0,)), "ChannelAffine: scale and shift have 2 and 1 numbers"),
        (lambda: ChannelAffine((1, NAN), (0, 0)), "ChannelAffine: scale = nan: should be a number, finite"),
        (lambda: Auxiliary(Flatten(), share=-1), "Auxiliary: share = -1: should be a number, at least 0"),
        (lambda: Concat(), "Concat: no branches"),
        (lambda: Sequential(ReLU), "Sequential: 0 is <class 'minivgg.layers.standard.ReLU'>, not a layer"),
        (lambda: Sequential({"a": ReLU(), "b": 3}), "Sequential: b is 3, not a layer"),
        (lambda: Sequential(ReLU()).astype(int), "Sequential: dtype = <class 'int'>: should be float32 or float64"),
    ],
)
def test_layers_are_refused_when_they_are_made(make, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        make()


def test_what_is_at_the_end_of_a_range_is_taken():
    layers = [Dropout(0), Dropout(1), BatchNorm2d(1, eps=0, momentum=1), MaxPool2d(3, padding=1), AvgPool2d(1, 5)]
    layers += [LocalResponseNorm(1, alpha=0, beta=0), Linear(1, 1), Conv2d(np.int64(1), 1, 1), Auxiliary(share=0)]
    assert all(map(repr, layers))


def test_one_layer_has_one_place():
    relu = ReLU()
    with pytest.raises(BadInput, match=r"one layer stands twice, but has one cache: write layer\.twin\(\)"):
        Sequential(relu, Conv2d(1, 1, 1), relu)
    Sequential(relu, relu.twin())


# ---- Containers ----


def network():
    return Sequential(
        {
            "features": Sequential(
                Conv2d(3, 4, 3, padding=1), ReLU(), MaxPool2d(2), Concat(Conv2d(4, 2, 3), Sequential(Conv2d(4, 2, 3)))
            ),
            "classifier": Sequential(Flatten(), Linear(16, 2)),
        }
    )


X = np.ones((2, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (
            X.astype(float),
            "features.0 (Conv2d): conv2d: x, w and b must share one dtype, got float64, float32,",
        ),
        (X.astype(">f4"), "features.0 (Conv2d): conv2d: x is of dtype >f4, not float32 or float64"),
        (X.tolist(), "features.0 (Conv2d): conv2d: x is of type list, not a NumPy array"),
        (X[0], "features.0 (Conv2d): conv2d: expected x (N, C, H, W) and w (O, C, KH, KW)"),
        (X[:, :2], "features.0 (Conv2d): conv2d: x has 2 channels but the filters take 3: x (2, 2, 8, 8)"),
        (X[:, :, :1], "): maxpool2d: a (2, 2) window does not fit into (1, 8)"),
        (X[:, :, :4, :4], "features.3.0 (Conv2d): conv2d: a (3, 3) window does not fit into (2, 2)"),
        (X[:, :, :6, :], "classifier.1 (Linear): linear: expected x (N, F) and w (O, F) with the same F, got x (2, 8)"),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_an_error_says_which_layer(x, said, train):
    refused(said, lambda: network().forward(x, train=train))


def test_an_error_of_a_backward_or_of_a_shape_says_which_layer():
    net = network()
    net.forward(X, train=True)
    said = "classifier.1 (Linear): linear_backward: dy must have the output's shape (2, 2) and dtype float32"
    refused(said, lambda: net.backward(np.ones((2, 2))), "got (2, 2) float64: write dy.astype(np.float32)")
    refused("features.3.0 (Conv2d): conv2d: a (3, 3) window", lambda: net.output_shape((1, 3, 4, 4)))
    net["features"][3][1][0].weight.data = np.ones((2, 5, 3, 3), np.float32)
    refused("features.3.1.0 (Conv2d): conv2d: x has 4 channels but the filters take 5", lambda: net.forward(X))


def test_an_error_keeps_its_kind():
    class Short(ReLU):
        def _forward(self, x, train):
            raise MemoryError("1 GiB")

    class Odd(ReLU):
        def _forward(self, x, train):
            raise BadInput("odd")

    with pytest.raises(MemoryError, match=r"^0\.1 \(Short\): 1 GiB$"):
        Sequential(Sequential(ReLU(), Short())).forward(X)
    with pytest.raises(BadInput, match=r"^0\.1 \(Odd\): odd$"):
        Sequential(Sequential(ReLU(), Odd())).forward(X)
