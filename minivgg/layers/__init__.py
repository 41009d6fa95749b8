"""Layers: thin objects that own parameters and caches, and leave arithmetic to `minivgg.ops`.

A layer is called forward and then backward; the data always flows through plain method calls:

    y = layer.forward(x, train=True)      # keeps what backward needs
    dx = layer.backward(dy)               # leaves gradients in each Param.grad, and lets go of the cache

`train` is an argument, not a mode: it makes dropout drop and batch norm use (and record) the batch's statistics. What
backward needs is kept when training; `keep=True` keeps it at test time too, as for the saliency of a prediction.

`base` is the contract, `standard` the layers, `containers` layers made of layers. A new layer is an op in `ops/`, and
its `_forward` and `_backward` in `standard`.
"""

from minivgg.layers.base import Layer, Param
from minivgg.layers.containers import (
    Auxiliary,
    Concat,
    Sequential,
    auxiliary_loss_backward,
    auxiliary_loss_forward,
    walk_forward,
)
from minivgg.layers.standard import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    ChannelAffine,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sigmoid,
)

__all__ = [
    "AdaptiveAvgPool2d",
    "Auxiliary",
    "AvgPool2d",
    "BatchNorm2d",
    "ChannelAffine",
    "Concat",
    "Conv2d",
    "Dropout",
    "Flatten",
    "Layer",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Param",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "auxiliary_loss_backward",
    "auxiliary_loss_forward",
    "walk_forward",
]
