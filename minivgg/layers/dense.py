"""A classifier as convolutions: the same weights, any image size, a map of scores instead of one answer.

A linear layer that reads a flattened map of P × P pixels is a P × P convolution that happens to have room for one
position; the linear layers after it are 1 × 1 convolutions. On a larger map they answer at every position. Simonyan &
Zisserman 2015, §3.2, after Sermanet et al., OverFeat (ICLR 2014).
"""

import copy

from minivgg.errors import BadInput
from minivgg.layers.base import Layer, Param
from minivgg.layers.standard import AdaptiveAvgPool2d, Conv2d, Flatten, Linear


def fully_convolutional(model: Layer) -> Layer:
    """`model` without its pool to a fixed size and its flattening, its linear layers as convolutions: x (N, C, H, W) →
    scores (N, classes, h, w).

    The parameters are the same arrays, seen in another shape. Where `model` would not have pooled (a VGG on images of
    the size it was built for: up to 224, a multiple of 32) the map is 1 × 1 and holds its scores; every 32 pixels more
    add a row or a column. Smaller images are refused by the first of the new convolutions.

    Raises BadInput for a network that does not go from maps to vectors by an `AdaptiveAvgPool2d` and a `Flatten`.
    """
    leaves = [layer for _, layer in model.walk() if not layer.children()]
    kinds = [type(layer) for layer in leaves]
    if kinds.count(AdaptiveAvgPool2d) != 1 or kinds.count(Flatten) != 1 or Linear not in kinds:
        raise BadInput("fully_convolutional takes a network with one AdaptiveAvgPool2d, one Flatten, and Linear layers")
    pool, first = leaves[kinds.index(AdaptiveAvgPool2d)], leaves[kinds.index(Linear)]

    def translated(layer: Layer) -> Layer:
        if isinstance(layer, Linear):
            return _convolution(layer, pool.output_size if layer is first else (1, 1))
        twin = copy.copy(layer)  # a layer stands at one place of one network
        twin._cache = None
        if layer.children():
            left_out = (AdaptiveAvgPool2d, Flatten)
            inside = {name: child for name, child in layer.children().items() if not isinstance(child, left_out)}
            twin._children = {name: translated(child) for name, child in inside.items()}
        return twin

    return translated(model)


def _convolution(linear: Linear, size: tuple[int, int]) -> Conv2d:
    """The convolution of `size` that computes what `linear` does: (O, C·KH·KW) is (O, C, KH, KW) in memory, too."""
    O, F = linear.weight.data.shape
    KH, KW = size
    layer = Conv2d(1, 1, size)  # whose weights are replaced at once
    layer.weight = Param(linear.weight.data.reshape(O, F // (KH * KW), KH, KW))
    layer.bias = linear.bias
    return layer
