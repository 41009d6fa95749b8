"""Layers that do a neighbouring ReLU's work on the way, and what a network becomes when it need not learn any more.

A ReLU by itself reads and writes every activation once more, forward and back, for a comparison. Its neighbours have
the numbers in registers anyway. So a `Sequential` whose `fused` is True (the default) runs

    Conv2d, ReLU           the convolution stores max(y, 0)
    ReLU, Conv2d           going back, the convolution stores dx where x > 0, and 0 elsewhere
    ReLU, MaxPool2d        the pool does both: relu(max) is max(relu), and what it passes on goes to one place alone
    Conv2d, ReLU, MaxPool2d    of 2×2, in a pass that nobody goes back through: the convolution stores one of each four

and leaves out what is done so. Subclasses of these layers, which may do something else, are left alone. Layers, names,
parameters, gradients stay what they are; `steps` says what is run. `model.fused = False`, for each Sequential in it,
runs the layers one by one.
"""

from minivgg.layers.base import Layer
from minivgg.layers.standard import BatchNorm2d, Conv2d, MaxPool2d, ReLU

Step = tuple[Layer, dict]


def steps(layers: list[Layer], keep: bool) -> list[Step]:
    """The layers to run one after another, each with the options of `forward` that make it do a neighbour's work.

    `keep` says whether the pass keeps what a backward needs.
    """
    result, done = [], 0
    for i, layer in enumerate(layers):
        if i < done:
            continue
        before = layers[i - 1] if i > 0 else None
        after, afterwards = [*layers[i + 1 : i + 3], None, None][:2]
        options = {}
        if type(layer) is Conv2d:
            pooled = type(after) is ReLU and type(afterwards) is MaxPool2d
            pools = pooled and not keep and _halves(afterwards)
            done = i + 3 if pools else done
            relu = type(after) is ReLU and (pools or not pooled)
            options = {"relu": relu, "pool": pools, "after_relu": type(before) is ReLU}
        elif type(layer) is MaxPool2d:
            options = {"relu": type(before) is ReLU}
        elif type(layer) is ReLU:
            if type(after) is MaxPool2d or (type(before) is Conv2d and type(after) is Conv2d):
                continue
            options = {"done": type(before) is Conv2d, "undone": type(after) is Conv2d}
        result.append((layer, {name: True for name, wanted in options.items() if wanted}))
    return result


def _halves(pool: MaxPool2d) -> bool:
    return (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == ((2, 2), (2, 2), (0, 0), False)


def frozen(named: dict[str, Layer]) -> dict[str, Layer]:
    """The layers of a network that has finished learning: nothing that only training has (dropout, auxiliary heads),
    and batch norms folded into convolutions."""
    result = {}
    for name, layer in named.items():
        last = result[next(reversed(result))] if result else None
        if layer.only_in_training:
            continue
        if type(layer) is BatchNorm2d and type(last) is Conv2d:
            last.fold(*layer.scale_and_shift())
        else:
            result[name] = layer.freeze()
    return result
