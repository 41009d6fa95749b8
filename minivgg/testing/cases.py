"""The shared tables: on what every op, convolution and layer is tried. One row here is all that a new one needs.

Between them the cases have odd sizes and even ones, N = 1 and a single pixel, windows that overlap, leave gaps, are not
square or as large as the image, and channels that do not fill vectors of 16.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from minivgg.backends.array import kind_of
from minivgg.gradcheck import Report, check
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
    Sigmoid,
)
from minivgg.ops.avgpool import (
    adaptive_avgpool2d_backward,
    adaptive_avgpool2d_forward,
    avgpool2d_backward,
    avgpool2d_forward,
)
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.conv2d import ConvSpec, conv2d_backward, conv2d_forward
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.flatten import flatten_backward, flatten_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.lrn import lrn_backward, lrn_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_forward,
)
from minivgg.testing import oracles
from minivgg.testing.arrays import away_from_zero, distinct, put, signed


class Case:
    """One way to call an op: the shapes of its arrays of floats, its options, and how the arrays are drawn.

    `Case((2, 3, 7, 6), kernel_size=3)`; `Case((7, 5), (6, 5))` for an op of two arrays.
    """

    def __init__(self, *shapes: tuple, draw: Callable = signed, **options):
        self.shapes, self.draw, self.options = shapes, draw, options

    def __repr__(self) -> str:
        shown = (f"{k}={np.asarray(v).tolist() if isinstance(v, np.ndarray) else v!r}" for k, v in self.options.items())
        return ", ".join([*map(str, self.shapes), *shown])


EVERYWHERE = ("cpu", "gpu")


@dataclass(frozen=True)
class Op:
    """An op, and what is known of it.

    `forward(*arrays, **options) -> (y, cache)` and `backward(dy, cache) -> gradients`, as all of `minivgg.ops`; or
    `-> y` and `backward(dy, *arrays)`. `oracle(*arrays, **options) -> y` is another way to the same y. `affine_in`
    names the arguments in which y is linear plus a constant. `bits`: another memory order gives the same to the last
    bit. `views`: y may be a view of the first argument, and its gradient one of dy. `halves`: on a GPU it takes
    float16, too. `names` are the arguments'.
    """

    name: str
    forward: Callable
    backward: Callable
    cases: tuple[Case, ...]
    oracle: Callable | None = None
    affine_in: tuple[str, ...] = ()
    bits: bool = False
    views: bool = False
    devices: tuple[str, ...] = ("cpu",)
    halves: bool = False
    names: tuple[str, ...] = field(default=())

    def arguments(self, case: Case) -> tuple[str, ...]:
        """What the arrays of a case are called."""
        if self.names:
            return self.names
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [name for name, p in inspect.signature(self.forward).parameters.items() if p.kind in kinds]
        count = len(case.shapes)
        return tuple([*names, *(f"argument {i}" for i in range(len(names), count))][:count])

    def runs(self, case: Case, device: str, dtype) -> bool:
        """Whether it can do this case on one of `backends.array.DEVICES`; what a GPU can, its simulator can, too."""
        kind, half = kind_of(device), np.dtype(dtype) == np.float16
        return kind in self.devices and (not half or (self.halves and kind == "gpu"))

    def eps(self, dtype) -> float:
        """The relative rounding of one operation of the op's in this dtype."""
        return float(np.finfo(dtype).eps)

    def call(self, arrays: tuple, options: dict) -> tuple:
        """(y, a function dy → the gradients of the arrays, as a tuple)"""
        result = self.forward(*arrays, **options)
        if isinstance(result, tuple):
            y, cache = result
            return y, lambda dy: self._gradients(self.backward(dy, cache), arrays)
        return result, lambda dy: self._gradients(self.backward(dy, *arrays), arrays)

    @staticmethod
    def _gradients(result, arrays: tuple) -> tuple:
        gradients = list(result) if isinstance(result, tuple | list) else [result]
        while len(gradients) > len(arrays) and gradients[-1] is None:  # that of an optional array which is not there
            gradients.pop()
        return tuple(gradients)

    def check_gradient(self, case: Case, device: str = "cpu", *, seed: int = 0, evaluations: int = 100) -> Report:
        """The gradient check of one case, by `minivgg.gradcheck`."""
        rng = np.random.default_rng(seed)
        arrays = [put(case.draw(rng, shape, np.float64), device) for shape in case.shapes]
        options = {key: put(value, device) for key, value in case.options.items()}
        return check((self.forward, self.backward), *arrays, options=options, seed=seed, evaluations=evaluations)


# ---- Convolutions ----

GEOMETRIES = {  # x, w, stride, padding
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
    "pointwise": ((2, 5, 4, 3), (6, 5, 1, 1), 1, 0),
    "pointwise with stride": ((2, 5, 6, 7), (3, 5, 1, 1), 2, 0),
    "pointwise with padding": ((1, 2, 3, 4), (3, 2, 1, 1), 1, 1),
    "VGG": ((2, 3, 8, 9), (4, 3, 3, 3), 1, 1),
    "VGG without padding": ((3, 2, 7, 5), (3, 2, 3, 3), 1, 0),
    "VGG of one pixel": ((1, 17, 1, 1), (15, 17, 3, 3), 1, 1),
    "whole vectors": ((2, 16, 6, 6), (32, 16, 3, 3), 1, 1),
    "many channels": ((1, 40, 5, 6), (35, 40, 3, 3), 1, 1),
    "tall window": ((2, 3, 7, 5), (2, 3, 4, 1), 1, (2, 0)),
    "wide window": ((2, 3, 5, 8), (2, 3, 1, 5), (1, 2), (0, 2)),
    "AlexNet's first": ((1, 3, 23, 19), (4, 3, 11, 11), 4, 2),
    "even window": ((2, 2, 6, 5), (3, 2, 2, 4), (2, 1), (1, 2)),
    "stride past the window": ((2, 2, 9, 10), (3, 2, 2, 1), (3, 4), 0),
    "window as large as the image": ((3, 4, 5, 6), (7, 4, 5, 6), 1, 0),
    "padding past the window": ((1, 2, 3, 2), (2, 2, 2, 2), (2, 3), (4, 3)),
}


def conv_case(geometry: str, *, bias: bool = True) -> Case:
    """The case of conv2d with a row of `GEOMETRIES`."""
    x, w, stride, padding = GEOMETRIES[geometry]
    return Case(x, w, *[w[:1]] * bias, stride=stride, padding=padding)


def spec_of(case: Case) -> ConvSpec:
    """The geometry of a case of conv2d."""
    return ConvSpec.of(*case.shapes[:2], case.options["stride"], case.options["padding"])


# ---- Ops ----

IMAGES, MATRIX, PIXEL = (3, 4, 5, 6), (7, 5), (1, 1, 1, 1)
LABELS, MEAN, VAR = np.array([2, 0, 3, 2]), np.array([0.3, -1.0, 2.0, 0.0]), np.array([0.5, 2.0, 1.0, 0.1])

_ROWS = (
    Op(
        "conv2d",
        conv2d_forward,
        conv2d_backward,
        (*map(conv_case, GEOMETRIES), conv_case("VGG", bias=False)),
        oracles.conv2d,
        affine_in=("x", "w", "b"),
        bits=True,
    ),
    Op(
        "linear",
        linear_forward,
        linear_backward,
        (Case((7, 5), (6, 5), (6,)), Case((1, 5), (6, 5)), Case((1, 1), (1, 1), (1,)), Case((3, 40), (33, 40), (33,))),
        oracles.linear,
        affine_in=("x", "w", "b"),
        devices=EVERYWHERE,
        halves=True,
    ),
    Op(
        "maxpool2d",
        maxpool2d_forward,
        maxpool2d_backward,
        tuple(
            Case(shape, draw=distinct, **options)
            for shape, options in [
                ((2, 3, 7, 6), {"kernel_size": 2}),
                ((2, 3, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
                ((1, 3, 7, 6), {"kernel_size": (2, 3), "stride": (3, 1), "padding": (1, 0)}),
                ((2, 17, 7, 6), {"kernel_size": 1, "stride": 3}),
                ((3, 1, 5, 4), {"kernel_size": (5, 4)}),
                (PIXEL, {"kernel_size": 1}),
                ((2, 3, 6, 7), {"kernel_size": 2, "relu": True}),
                ((2, 3, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "relu": True}),
                ((2, 3, 8, 7), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
                ((2, 3, 7, 6), {"kernel_size": 2, "ceil_mode": True, "relu": True}),
                ((1, 2, 5, 6), {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 1), "ceil_mode": True}),
            ]
        ),
        oracles.maxpool2d,
        bits=True,
        devices=EVERYWHERE,
        halves=True,
    ),
    Op(
        "avgpool2d",
        avgpool2d_forward,
        avgpool2d_backward,
        (
            Case((2, 3, 7, 6), kernel_size=2),
            Case((2, 3, 7, 6), kernel_size=3, stride=2, padding=1),
            Case((1, 3, 7, 6), kernel_size=(2, 3), stride=(3, 1), padding=(1, 0)),
            Case((2, 17, 7, 6), kernel_size=3, stride=2, padding=1, count_include_pad=False),
            Case(PIXEL, kernel_size=1),
        ),
        oracles.avgpool2d,
        affine_in=("x",),
        bits=True,
        devices=EVERYWHERE,
        halves=True,
    ),
    Op(
        "adaptive_avgpool2d",
        adaptive_avgpool2d_forward,
        adaptive_avgpool2d_backward,
        tuple(
            Case(shape, output_size=size)
            for shape, size in [((2, 3, 7, 6), 1), ((1, 17, 7, 6), (3, 4)), ((2, 3, 7, 6), (8, 15)), (PIXEL, 1)]
        ),
        oracles.adaptive_avgpool2d,
        affine_in=("x",),
        bits=True,
        devices=EVERYWHERE,
        halves=True,
    ),
    Op(
        "batchnorm",
        batchnorm_forward,
        batchnorm_backward,
        (
            Case((3, 4, 2, 5), (4,), (4,)),
            Case((1, 17, 3, 3), (17,), (17,)),
            Case((7, 4), (4,), (4,)),
            Case((3, 4, 2, 5), (4,), (4,), mean=MEAN, var=VAR),
            Case((1, 4), (4,), (4,), mean=MEAN, var=VAR),
        ),
        oracles.batchnorm,
        affine_in=("weight", "bias"),
        bits=True,
        devices=EVERYWHERE,
    ),
    Op(
        "lrn",
        lrn_forward,
        lrn_backward,
        (
            Case((2, 7, 3, 4), size=5, alpha=0.5, beta=0.75, k=1.0),
            Case((2, 7, 3, 4), size=4, alpha=0.5, beta=0.75, k=2.0),
            Case((1, 3, 3, 4), size=9, alpha=2.0, beta=0.6, k=1.0),
            Case((2, 17, 1, 1), size=1, alpha=0.5, beta=1.0, k=1.0),
        ),
        oracles.lrn,
        bits=True,
        devices=EVERYWHERE,
    ),
    Op(
        "relu",
        relu_forward,
        relu_backward,
        tuple(Case(shape, draw=away_from_zero) for shape in (IMAGES, MATRIX, PIXEL, (1, 33))),
        oracles.relu,
        bits=True,
        devices=EVERYWHERE,
        halves=True,
    ),
    # NumPy has another exponential for strided memory, which may round differently: no bits
    Op(
        "sigmoid",
        sigmoid_forward,
        sigmoid_backward,
        (Case(IMAGES), Case(MATRIX), Case(PIXEL)),
        oracles.sigmoid,
        devices=EVERYWHERE,
    ),
    Op(
        "dropout",
        partial(dropout_forward, seed=2**40 + 5, call=2**33 + 1),
        dropout_backward,
        (Case(IMAGES, p=0.4), Case(MATRIX, p=0.4), Case((1, 33), p=0.0)),
        affine_in=("x",),
        bits=True,
        devices=EVERYWHERE,
    ),
    Op(
        "flatten",
        flatten_forward,
        flatten_backward,
        (Case(IMAGES), Case(PIXEL)),
        oracles.flatten,
        affine_in=("x",),
        bits=True,
        devices=EVERYWHERE,
        halves=True,
        views=True,
    ),
    Op(
        "softmax",
        softmax_forward,
        softmax_backward,
        (Case((4, 5)), Case((1, 7)), Case((3, 1))),
        oracles.softmax,
        devices=EVERYWHERE,
    ),
    Op(
        "softmax_cross_entropy",
        softmax_cross_entropy_forward,
        softmax_cross_entropy_backward,
        (
            Case((4, 5), labels=LABELS),
            Case((4, 5), labels=LABELS, label_smoothing=0.1),
            Case((1, 2), labels=np.array([1])),
        ),
        oracles.softmax_cross_entropy,
        devices=EVERYWHERE,
    ),
)
CASES: dict[str, Op] = {op.name: op for op in _ROWS}

# ---- Layers: name → (a new layer, the shape of its input) ----

LAYERS: dict[str, tuple[Callable, tuple]] = {
    "Conv2d": (lambda: Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 6)),
    "Conv2d without bias": (lambda: Conv2d(3, 4, (1, 2), bias=False), (2, 3, 5, 5)),
    "Linear": (lambda: Linear(6, 4), (3, 6)),
    "Linear without bias": (lambda: Linear(6, 4, bias=False), (3, 6)),
    "BatchNorm2d": (lambda: BatchNorm2d(3), (4, 3, 3, 2)),
    "BatchNorm2d of a matrix": (lambda: BatchNorm2d(3), (5, 3)),
    "MaxPool2d": (lambda: MaxPool2d(3, 2, 1), (2, 3, 7, 6)),
    "MaxPool2d rounded up": (lambda: MaxPool2d(3, 2, ceil_mode=True), (2, 3, 6, 7)),
    "AvgPool2d": (lambda: AvgPool2d(2), (2, 3, 6, 6)),
    "AdaptiveAvgPool2d": (lambda: AdaptiveAvgPool2d((2, 3)), (2, 3, 5, 7)),
    "ReLU": (ReLU, (2, 3, 4, 4)),
    "Sigmoid": (Sigmoid, (2, 3, 4, 4)),
    "Dropout": (lambda: Dropout(0.4, seed=3), (2, 3, 4, 4)),
    "LocalResponseNorm": (lambda: LocalResponseNorm(3, alpha=0.5), (2, 5, 3, 3)),
    "Flatten": (Flatten, (2, 3, 4, 2)),
    "Concat": (lambda: Concat(Conv2d(3, 2, 1), Sequential(MaxPool2d(3, 1, 1), Conv2d(3, 4, 1))), (2, 3, 5, 5)),
    "Auxiliary": (lambda: Auxiliary(Conv2d(3, 2, 1), ReLU(), Flatten(), Linear(24, 5)), (2, 3, 3, 4)),
    "ChannelAffine": (lambda: ChannelAffine((0.5, -2, 3), (1, 0, -0.25)), (2, 3, 3, 4)),
    "Sequential": (
        lambda: Sequential(
            Conv2d(1, 3, 3, padding=1, bias=False), BatchNorm2d(3), ReLU(), MaxPool2d(2), Flatten(), Linear(12, 2)
        ),
        (4, 1, 4, 4),
    ),
}
