"""What a check is run on: an op or a layer, the shapes of its arguments, and the numbers in them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minivgg.gradcheck.check import check
from minivgg.gradcheck.report import Report
from minivgg.gradcheck.targets import Target, as_target
from minivgg.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Sigmoid,
)
from minivgg.ops import avgpool, batchnorm, conv2d, dropout, flatten, linear, lrn, maxpool, relu, sigmoid
from minivgg.ops import softmax_cross_entropy as softmax

HOMES = {
    "adaptive_avgpool2d": avgpool,
    "avgpool2d": avgpool,
    "batchnorm": batchnorm,
    "conv2d": conv2d,
    "dropout": dropout,
    "flatten": flatten,
    "linear": linear,
    "lrn": lrn,
    "maxpool2d": maxpool,
    "relu": relu,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "softmax_cross_entropy": softmax,
}

DRAWS: dict[str, Callable] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-8 * rng.standard_normal(shape),
    "large": lambda rng, shape: 1e8 * rng.standard_normal(shape),
    "far from zero": lambda rng, shape: 1e3 + rng.standard_normal(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "ties": lambda rng, shape: np.round(rng.standard_normal(shape)),
    "kinks nearby": lambda rng, shape: np.round(rng.standard_normal(shape)) + 1e-7 * rng.standard_normal(shape),
    "float32": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "channels last": lambda rng, shape: np.moveaxis(rng.standard_normal((shape[0], *shape[2:], *shape[1:2])), -1, 1),
    # beyond what an exponential bears, and each row in ascending order
    "hundreds": lambda rng, shape: 900 * np.sign(rng.standard_normal(shape)) + rng.standard_normal(shape),
    "ascending": lambda rng, shape: np.sort(rng.standard_normal(shape).ravel()).reshape(shape),
}
EVERYDAY = tuple(DRAWS)[:10]  # what a right op is held to


@dataclass(frozen=True)
class Case:
    """`op` by name, or a `layer` by how it is made. `shapes` are those of x and the other arguments; the numbers of x
    are drawn as `draw` says, the others normal. `classes`: how many, where integer labels (N,) are handed over too."""

    op: str
    shapes: tuple
    options: dict = field(default_factory=dict)
    draw: str = "normal"
    classes: int = 0
    layer: Callable[[], Layer] | None = None

    def subject(self, seed: int) -> tuple:
        """(target, inputs, options) as `check` takes them, from the functions that minivgg holds now."""
        rng = np.random.default_rng(seed)
        x, *others = self.shapes
        inputs = [DRAWS[self.draw](rng, x), *(rng.standard_normal(shape) for shape in others)]
        if self.layer:
            return self.layer(), inputs, self.options
        inputs += [rng.integers(0, self.classes, x[0])] if self.classes else []
        home = HOMES[self.op]
        return (getattr(home, f"{self.op}_forward"), getattr(home, f"{self.op}_backward")), inputs, self.options

    def check(self, seed: int = 0) -> Report:
        """The gradient check's report."""
        target, inputs, options = self.subject(seed)
        keywords = options if self.layer else {"options": options}
        with np.errstate(all="ignore"):
            return check(target, *inputs, seed=seed, **keywords)

    def target(self, seed: int) -> Target:
        """The same for other checkers: forward and backward behind one face."""
        target, inputs, options = self.subject(seed)
        keywords = {"options": {}, "labels": None, "shape": None, "train": True}
        keywords |= options if self.layer else {"options": options}
        return as_target(target, tuple(inputs), rng=np.random.default_rng(seed), **keywords)


def op(name: str, *shapes: tuple, draw="normal", classes=0, **options) -> Case:
    """The case of an operation with these shapes and options."""
    return Case(name, shapes, options, draw, classes)


def layer(name: str, make: Callable[[], Layer], shape: tuple, **keywords) -> Case:
    """The case of a layer on an x of this shape; keywords are those of `check`."""
    return Case(name, (shape,), keywords, layer=make)


X = 2, 3, 4, 3
IMAGES, FILTERS, BIASES = (3, 2, 4, 4), (2, 2, 3, 3), (2,)

CONV2D = op("conv2d", IMAGES, FILTERS, BIASES, padding=1)
NAIVE = op("conv2d", IMAGES, FILTERS, BIASES, padding=1, algorithm="naive")
FAST = {
    name: op("conv2d", (3, 2, 6, 5), FILTERS, BIASES, padding=1, algorithm=name)
    for name in ("direct", "implicit_gemm", "winograd2", "winograd")
}
STRIDED = op("conv2d", (2, 2, 6, 5), FILTERS, BIASES, stride=2, padding=1)
WITH_GAPS = op("conv2d", (2, 2, 5, 5), (2, 2, 2, 2), stride=3)
POINTWISE = op("conv2d", X, (3, 3, 1, 1))
MAXPOOL = op("maxpool2d", (2, 2, 6, 4), kernel_size=2)
OVERLAPPING = op("maxpool2d", (1, 2, 7, 5), kernel_size=3, stride=2, padding=1)
AVGPOOL = op("avgpool2d", (3, 2, 6, 2), kernel_size=2)
PADDED = op("avgpool2d", (1, 2, 6, 4), kernel_size=2, padding=1)
COUNTING_PIXELS = op("avgpool2d", (1, 2, 6, 4), kernel_size=2, padding=1, count_include_pad=False)
ADAPTIVE = op("adaptive_avgpool2d", (1, 2, 5, 4), output_size=(3, 2))
RELU = op("relu", X)
SIGMOID = op("sigmoid", (3, 4))
DROPOUT = op("dropout", X, p=0.4, seed=7)
FLATTEN = op("flatten", X)
LINEAR = op("linear", (3, 4), (4, 4), (4,))
BATCHNORM = op("batchnorm", X, (3,), (3,))
GIVEN = op("batchnorm", X, (3,), (3,), mean=np.array([0.3, -0.5, 1]), var=np.array([0.5, 1.5, 2]))
LRN = op("lrn", (1, 7, 2, 2), size=5, alpha=0.5)
EVEN_LRN = op("lrn", (1, 7, 2, 2), size=4, alpha=0.5)
SOFTMAX = op("softmax", (4, 6))
LOSS = op("softmax_cross_entropy", (8, 3), classes=3)
SMOOTHED = op("softmax_cross_entropy", (8, 3), classes=3, label_smoothing=0.1)


def _small_network() -> Sequential:
    return Sequential(Conv2d(1, 2, 3), BatchNorm2d(2), ReLU(), MaxPool2d(2), Dropout(), Flatten(), Linear(2, 4))


def _branches() -> Concat:
    return Concat(Conv2d(2, 2, 1), Sequential(Conv2d(2, 2, 3, padding=1), Sigmoid()))


CONV_LAYER = layer("Conv2d", lambda: Conv2d(2, 2, 3), (2, 2, 4, 4))
LINEAR_LAYER = layer("Linear", lambda: Linear(4, 3), (3, 4))
BATCHNORM_LAYER = layer("BatchNorm2d", lambda: BatchNorm2d(3), X)
AT_TEST_TIME = layer("BatchNorm2d", lambda: BatchNorm2d(3), X, train=False)
DROPOUT_LAYER = layer("Dropout", lambda: Dropout(0.4, seed=7), X)
LRN_LAYER = layer("LocalResponseNorm", lambda: LocalResponseNorm(3, 0.5), (1, 4, 2, 2))
STACK = layer("Sequential", lambda: Sequential(Linear(4, 4), Sigmoid(), Linear(4, 4)), (3, 4))
BRANCHES = layer("Concat", _branches, (2, 2, 3, 3))
NETWORK = layer("network and loss", _small_network, (3, 1, 4, 4), labels=np.array([0, 3, 1]))

# Right as they stand: no check may complain of any of these, however x is drawn.
RIGHT: dict[str, Case] = {
    "conv2d": CONV2D,
    "conv2d, naive": NAIVE,
    **{f"conv2d, {name}": case for name, case in FAST.items()},
    "conv2d, stride 2": STRIDED,
    "conv2d, stride 3": WITH_GAPS,
    "conv2d, 1×1 filters": POINTWISE,
    "conv2d, all ones": op("conv2d", (1, 1, 1, 1), (1, 1, 1, 1), (1,)),
    "linear": LINEAR,
    "linear, all ones": op("linear", (1, 1), (1, 1), (1,)),
    "maxpool2d": MAXPOOL,
    "maxpool2d, overlapping": OVERLAPPING,
    "maxpool2d, one pixel": op("maxpool2d", (1, 1, 1, 1), kernel_size=1),
    "avgpool2d": AVGPOOL,
    "avgpool2d, padded": PADDED,
    "avgpool2d, padding left out": COUNTING_PIXELS,
    "adaptive_avgpool2d": ADAPTIVE,
    "relu": RELU,
    "relu, one number": op("relu", (1, 1)),
    "sigmoid": SIGMOID,
    "sigmoid, one number": op("sigmoid", (1, 1)),
    "dropout": DROPOUT,
    "flatten": FLATTEN,
    "batchnorm": BATCHNORM,
    "batchnorm, of a matrix": op("batchnorm", (4, 3), (3,), (3,)),
    "batchnorm, over two pixels": op("batchnorm", (2, 3, 1, 1), (3,), (3,)),
    "batchnorm, N = 1": op("batchnorm", (1, 2, 3, 3), (2,), (2,)),
    "batchnorm, given statistics": GIVEN,
    "lrn": LRN,
    "lrn, even window": EVEN_LRN,
    "softmax": SOFTMAX,
    "softmax, one class": op("softmax", (1, 1)),
    "softmax_cross_entropy": SMOOTHED,
    "softmax_cross_entropy, N = 1": op("softmax_cross_entropy", (1, 3), classes=3),
    "Conv2d": CONV_LAYER,
    "MaxPool2d": layer("MaxPool2d", lambda: MaxPool2d(2), X),
    "AvgPool2d": layer("AvgPool2d", lambda: AvgPool2d(2), X),
    "AdaptiveAvgPool2d": layer("AdaptiveAvgPool2d", lambda: AdaptiveAvgPool2d(2), X),
    "ReLU": layer("ReLU", ReLU, X),
    "Sigmoid": layer("Sigmoid", Sigmoid, X),
    "Flatten": layer("Flatten", Flatten, X),
    "Linear": LINEAR_LAYER,
    "BatchNorm2d": BATCHNORM_LAYER,
    "BatchNorm2d, test time": AT_TEST_TIME,
    "Dropout": DROPOUT_LAYER,
    "LocalResponseNorm": LRN_LAYER,
    "Sequential": STACK,
    "Concat": BRANCHES,
    "network and loss": NETWORK,
}
