"""Layers that do a neighbouring ReLU's work on the way, and what a network becomes when it need not learn any more.

A ReLU by itself reads and writes every activation once more, forward and back, for a comparison. Its neighbours have
the numbers in registers anyway. So a `Sequential` whose `fused` is True (the default) runs

    Conv2d, ReLU           the convolution stores max(y, 0)
    ReLU, Conv2d           going back, the convolution stores dx where x > 0, and 0 elsewhere
    ReLU, MaxPool2d        the pool does both: relu(max) is max(relu), and what it passes on goes to one place alone

and leaves out a ReLU whose both passes are done so. Layers, names, parameters, gradients stay what they are; `steps`
says what is run. `model.fused = False`, for each Sequential in it, runs the layers one by one.
"""

from minivgg.layers.base import Layer
from minivgg.layers.standard import BatchNorm2d, Conv2d, Dropout, MaxPool2d, ReLU

Step = tuple[Layer, dict]


def steps(layers: list[Layer]) -> list[Step]:
    """The layers to run one after another, each with the options of `forward` that make it do a neighbour's work."""
    result = []
    for i, layer in enumerate(layers):
        before = layers[i - 1] if i > 0 else None
        after, afterwards = [*layers[i + 1 : i + 3], None, None][:2]
        options = {}
        if isinstance(layer, Conv2d):
            pooled = isinstance(afterwards, MaxPool2d)
            options = {"relu": isinstance(after, ReLU) and not pooled, "after_relu": isinstance(before, ReLU)}
        elif isinstance(layer, MaxPool2d):
            options = {"relu": isinstance(before, ReLU)}
        elif isinstance(layer, ReLU):
            if isinstance(after, MaxPool2d) or (isinstance(before, Conv2d) and isinstance(after, Conv2d)):
                continue
            options = {"done": isinstance(before, Conv2d), "undone": isinstance(after, Conv2d)}
        result.append((layer, {name: True for name, wanted in options.items() if wanted}))
    return result


def frozen(named: dict[str, Layer]) -> dict[str, Layer]:
    """The layers of a network that has finished learning: no dropout, and batch norms folded into convolutions."""
    result = {}
    for name, layer in named.items():
        last = result[next(reversed(result))] if result else None
        if isinstance(layer, Dropout):
            continue
        if isinstance(layer, BatchNorm2d) and isinstance(last, Conv2d):
            last.fold(*layer.scale_and_shift())
        else:
            result[name] = layer.freeze()
    return result
