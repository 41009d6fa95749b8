"""The exercises as data: what to write, what it is held to, where to read on. One row is all that a new one needs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.exercises import checks, checks_of_networks, checks_of_using, counting, kernels
from minivgg.testing import CASES, Case, Report
from minivgg.testing.arrays import distinct
from minivgg.testing.cases import LABELS


@dataclass(frozen=True)
class Exercise:
    """`id` is the notebook's number and a count. The learner writes `functions`, which `check` takes in this order.
    `ours` is where the library has the same."""

    id: str
    title: str
    functions: tuple[str, ...]
    check: Callable[..., Report]
    ours: str


# a layer as wide as the one before comes first: what is transposed still fits there, and can be named
LINEAR = Case((3, 4), (4, 4), (4,)), *(case for case in CASES["linear"].cases if len(case.shapes) == 3)
# small ones first, where the gradient check measures every element, and can say more; then overlaps, gaps, and more
# places than a byte can number
POOLS = (
    *(Case(shape, draw=distinct, kernel_size=k, stride=s) for shape, k, s in [
        ((1, 2, 4, 4), 2, 2), ((2, 3, 7, 5), 3, 2), ((1, 2, 6, 5), 2, 1), ((1, 2, 7, 7), 2, 3), ((3, 1, 4, 4), 4, 4),
    ]),
    Case((1, 1, 17, 17), draw=checks_of_networks.ascending, kernel_size=17, stride=17),
)  # fmt: skip
NORMED = tuple(Case(x, x[1:2], x[1:2]) for x in ((2, 3, 2, 2), (3, 4, 2, 5), (1, 17, 3, 3)))
SCORES = Case((4, 5), labels=LABELS), Case((1, 2), labels=np.array([1]))
DROPPED = tuple(Case(shape, p=p, seed=7) for shape, p in [((3, 4, 5, 6), 0.4), ((7, 5), 0.4), ((1, 33), 0.0)])
# their generator may draw float32 numbers for float32 arrays, and so another mask
MASKS = "float32 gives what float64 gives"

_ROWS = (
    Exercise(
        "01.1",
        "the linear layer, both ways",
        ("linear_forward", "linear_backward"),
        checks.pair("linear", *LINEAR),
        "minivgg.ops.linear",
    ),
    Exercise(
        "01.2",
        "softmax, without overflow",
        ("softmax_forward",),
        checks.softmax,
        "minivgg.ops.softmax_cross_entropy.softmax_forward",
    ),
    Exercise(
        "01.3",
        "cross-entropy, both ways",
        ("cross_entropy_forward", "cross_entropy_backward"),
        checks.pair("softmax_cross_entropy", *SCORES, extra=checks.no_log_of_zero),
        "minivgg.ops.softmax_cross_entropy",
    ),
    Exercise(
        "02.1",
        "a central difference",
        ("central_difference",),
        checks.slope_of,
        "minivgg.gradcheck.numeric.central",
    ),
    Exercise(
        "02.2",
        "a gradient check that sees the zoo",
        ("is_right",),
        checks.gradient_check,
        "minivgg.gradcheck.check",
    ),
    Exercise(
        "03.1",
        "ReLU, both ways",
        ("relu_forward", "relu_backward"),
        checks.pair("relu"),
        "minivgg.ops.relu",
    ),
    Exercise(
        "03.2",
        "inverted dropout, both ways",
        ("dropout_forward", "dropout_backward"),
        checks.pair("dropout", *DROPPED, without=(MASKS,), extra=checks.keeps_the_mean),
        "minivgg.ops.dropout",
    ),
    Exercise(
        "04.1",
        "how many windows fit",
        ("output_size",),
        checks.counts_places,
        "minivgg.ops.windows.output_size",
    ),
    Exercise(
        "04.2",
        "convolution in seven loops",
        ("conv_forward",),
        checks.forward_only(checks.CONV_FORWARD),
        "minivgg.ops.conv2d.naive",
    ),
    Exercise(
        "04.3",
        "im2col",
        ("im2col",),
        checks.forward_only(checks.IM2COL),
        "minivgg.ops.conv2d.im2col",
    ),
    Exercise(
        "05.1",
        "the gradient of the filters",
        ("grad_weight",),
        checks.conv_pass("grad_weight"),
        "minivgg.ops.conv2d.naive",
    ),
    Exercise(
        "05.2",
        "the gradient of the input",
        ("grad_input",),
        checks.conv_pass("grad_input"),
        "minivgg.ops.conv2d.naive",
    ),
    Exercise(
        "05.3",
        "col2im, the adjoint of im2col",
        ("col2im",),
        checks.forward_only(checks.COL2IM),
        "minivgg.ops.conv2d.im2col",
    ),
    Exercise(
        "06.1",
        "max-pooling, both ways",
        ("maxpool_forward", "maxpool_backward"),
        checks.pair("maxpool2d", *POOLS, extra=checks_of_networks.one_of_equals),
        "minivgg.ops.maxpool",
    ),
    Exercise(
        "06.2",
        "batch norm, both ways",
        ("batchnorm_forward", "batchnorm_backward"),
        checks.pair("batchnorm", *NORMED, extra=checks_of_networks.normalises),
        "minivgg.ops.batchnorm",
    ),
    Exercise(
        "07.1",
        "how far a unit sees",
        ("receptive_field",),
        checks_of_networks.sees,
        "minivgg.insight.ledger",
    ),
    Exercise(
        "07.2",
        "counting parameters",
        ("parameters",),
        checks_of_networks.counts_parameters,
        "minivgg.insight.ledger, and `minivgg summary vgg16`",
    ),
    Exercise(
        "08.1",
        "the standard deviation that He found",
        ("he_std",),
        checks_of_networks.he_deviation,
        "minivgg.models.initializers.he",
    ),
    Exercise(
        "08.2",
        "momentum and weight decay",
        ("sgd",),
        checks_of_networks.takes_steps,
        "minivgg.training.optim.SGD",
    ),
    Exercise(
        "09.1",
        "where the network sees it",
        ("grad_cam",),
        checks_of_using.grad_cam,
        "minivgg.insight.seeing.grad_cam_maps",
    ),
    Exercise(
        "09.2",
        "a linear layer that slides",
        ("slide",),
        checks_of_using.slides,
        "minivgg.layers.dense",
    ),
    Exercise(
        "10.1",
        "two outputs by four multiplications",
        ("f23",),
        counting.winograd,
        "minivgg.ops.conv2d.toom_cook",
    ),
    Exercise(
        "11.1",
        "bias and ReLU, coalesced",
        ("bias_relu",),
        kernels.written_in_cuda(kernels.BIAS_RELU),
        "minivgg/ops/channels.cu",
    ),
    Exercise(
        "11.2",
        "a convolution through a tile",
        ("tiled_conv",),
        kernels.written_in_cuda(kernels.TILED_CONV),
        "minivgg/ops/conv2d/direct.cu",
    ),
)
EXERCISES: dict[str, Exercise] = {row.id: row for row in _ROWS}
