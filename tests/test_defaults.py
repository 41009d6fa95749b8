"""What an option is when nobody gives it: PyTorch's value, so that no one who knows PyTorch is surprised."""

import inspect

import pytest

from minivgg.ops.avgpool import avgpool2d_forward
from minivgg.ops.batchnorm import batchnorm_forward, running_average
from minivgg.ops.conv2d import Algorithm, ConvSpec, conv2d_backward, conv2d_forward
from minivgg.ops.conv2d.spec import supports_everything
from minivgg.ops.dropout import dropout_forward
from minivgg.ops.linear import linear_backward
from minivgg.ops.lrn import lrn_forward
from minivgg.ops.maxpool import maxpool2d_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_forward

DEFAULTS = {
    Algorithm: {
        "supports": supports_everything,
        "fuses": False,
        "pools": False,
        "prepare": None,
        "growth": 1.0,
        "eps": 2.0**-23,
        "mixes": (),
        "dtypes": ("float32", "float64"),
    },
    avgpool2d_forward: {"stride": None, "padding": 0, "count_include_pad": True},
    batchnorm_forward: {"mean": None, "var": None, "eps": 1e-5},
    running_average: {"momentum": 0.1},
    ConvSpec: {"stride": (1, 1), "padding": (0, 0)},
    ConvSpec.of: {"stride": 1, "padding": 0},
    conv2d_forward: {
        "b": None,
        "stride": 1,
        "padding": 0,
        "algorithm": "auto",
        "relu": False,
        "pool": False,
        "prepared": None,
    },
    conv2d_backward: {"need_dx": True, "after_relu": False},
    dropout_forward: {"p": 0.5, "seed": 0, "call": 0},
    linear_backward: {"need_dx": True},
    lrn_forward: {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0},
    maxpool2d_forward: {"stride": None, "padding": 0, "ceil_mode": False, "relu": False},
    softmax_cross_entropy_forward: {"label_smoothing": 0.0},
}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__qualname__)
def test_defaults(function):
    parameters = inspect.signature(function).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[function]


def test_spec_has_no_secret_fields():
    assert ConvSpec.of((1, 1, 2, 2), (1, 1, 1, 1)) == ConvSpec(1, 1, 2, 2, 1, 1, 1)
