"""The exercises as data: what to write, what it is held to, where to read on. One row is all that a new one needs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.exercises import checks
from minivgg.testing import CASES, Case, Report
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
SCORES = Case((4, 5), labels=LABELS), Case((1, 2), labels=np.array([1]))

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
)
EXERCISES: dict[str, Exercise] = {row.id: row for row in _ROWS}
