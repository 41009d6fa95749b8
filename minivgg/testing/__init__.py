"""The conformance suite: what our own tests run, and what an op, a layer or an algorithm of yours is held to.

    from minivgg.testing import check_op

    def relu_forward(x):
        return np.maximum(x, 0), x

    def relu_backward(dy, x):
        return np.where(x > 0, dy, 0)

    check_op((relu_forward, relu_backward), "relu")

Silence means that some eighteen rules hold on all cases of a table, in float32 and float64 (and on a GPU in float16,
where an op takes it), in every memory order: that forward computes what a formula says, gradients are slopes, nothing
is written over, a second run gives the same bits, and so on. Otherwise there is an AssertionError that says which rule
is broken on which arguments, what was expected and found, and where to look next. With `raise_on_failure=False` the
result is a report on all rules.

    check_op(pair, …)        a pair (forward, backward), or the name of one of ours
    check_layer(layer, …)    a `Layer`: the same rules over its input and parameters, and those of a layer
    check_conv(algorithm)    a convolution `Algorithm`: the same rules on every geometry, and the seven loops as oracle

The tables are `CASES` (op → cases), `LAYERS` and `GEOMETRIES`: a new op gets everything from one row.

To read the rooms in order: `arrays`, `oracles` and `cases` (on what), `trials` and `rules` (what must hold), `report`
and `suite` (how it is told), `layers` and `convolutions` (what else must hold of those).
"""

from minivgg.testing.arrays import devices
from minivgg.testing.cases import CASES, GEOMETRIES, LAYERS, Case, Op
from minivgg.testing.convolutions import check_conv
from minivgg.testing.layers import check_layer
from minivgg.testing.report import Report, Result
from minivgg.testing.suite import check_op

__all__ = [
    "CASES",
    "GEOMETRIES",
    "LAYERS",
    "Case",
    "Op",
    "Report",
    "Result",
    "check_conv",
    "check_layer",
    "check_op",
    "devices",
]
