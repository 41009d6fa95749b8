"""How weights start: the difference, for a deep VGG without batch norm, between training and never moving.

A layer multiplies the variance of what flows through it by its fan-in (C·KH·KW inputs a sum) times the variance of its
weights, and ReLU halves it. `he` makes that product one; `paper` does not, which is why the paper's deeper nets had to
start from a trained shallow one.
"""

import math
from collections.abc import Callable

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import Auxiliary, BatchNorm2d, Dropout, Layer, walk_forward
from minivgg.models.options import check_memory, check_options


def he(shape: tuple, fan_in: int, fan_out: int) -> float:
    """Standard deviation √(2 / fan_in): variance kept through ReLU layers. He et al. 2015, §2.2."""
    return math.sqrt(2 / fan_in)


def xavier(shape: tuple, fan_in: int, fan_out: int) -> float:
    """Standard deviation √(2 / (fan_in + fan_out)): forward and backward in balance. Glorot & Bengio 2010, eq. 12."""
    return math.sqrt(2 / (fan_in + fan_out))


def paper(shape: tuple, fan_in: int, fan_out: int) -> float:
    """Standard deviation 0.1, a variance of 10⁻². Simonyan & Zisserman 2015, §3.1 (several ports read it as 0.01)."""
    return 0.1


NORMAL = {"he": he, "xavier": xavier, "paper": paper}
METHODS = (*NORMAL, "lsuv", "zeros")


def normal(std: float) -> Callable[[tuple, int, int], float]:
    """Standard deviation `std`, whatever the shape."""
    return lambda shape, fan_in, fan_out: std


def initialise(model: Layer, method: str = "he", *, seed: int = 0, x=None) -> Layer:
    """Draw the weights of all convolutions and linear layers, zero the biases, and seed the dropouts; returns `model`.

    `method`: "he", "xavier", "paper" and "normal:STD" (such as "normal:0.01") draw from normal distributions; "lsuv"
    makes every layer's output on the batch `x` have variance one; "zeros" draws nothing (for loading weights, or
    counting them). With "he" and "xavier" the last of several layers, which makes the scores, starts ten times smaller:
    a network that has seen nothing should have no opinion, and a loss of log(classes); so does the last layer of each
    auxiliary head. Batch norms start at weight 1, bias 0. The same seed gives the same bits. Raises BadInput for
    another method, "lsuv" without `x`, a seed that is none, or parameters that this machine's memory cannot hold: those
    of a layer that has just been made do not take any yet.
    """
    deviation = _deviation(method)
    check_options(seed=seed)
    check_memory("the network's parameters", sum(p.data.nbytes for p in model.named_params().values()))
    rng = np.random.default_rng(seed)
    for _, layer in model.walk():
        if isinstance(layer, Dropout):
            layer.seed, layer.calls = int(rng.integers(2**63)), 0
    layers = _weighted(model)
    for layer in layers if method != "zeros" else ():
        _draw(layer, deviation, rng)
    if method in ("he", "xavier") and len(layers) > 1:
        heads = [_weighted(head) for _, head in model.walk() if isinstance(head, Auxiliary)]
        for last in (layers[-1], *(head[-1] for head in heads if head)):
            last.weight.data *= last.weight.data.dtype.type(0.1)
    if method == "lsuv":
        if x is None:
            raise BadInput('the initialiser "lsuv" needs a batch of images, x')
        _lsuv(model, x)
    return model


def _weighted(model: Layer) -> list[Layer]:
    """The convolutions and linear layers inside `model`."""
    return [layer for _, layer in model.walk() if hasattr(layer, "weight") and not isinstance(layer, BatchNorm2d)]


def _deviation(method: str) -> Callable[[tuple, int, int], float] | None:
    """The function for a method's standard deviation, None if it has none. Raises BadInput for an unknown method."""
    name, _, number = method.partition(":")
    if name == "normal":
        try:
            std = float(number)
        except ValueError:
            std = math.nan
        if not 0 < std < math.inf:
            raise BadInput(f'initialiser "{method}": after normal: comes a standard deviation above 0, as normal:0.01')
        return normal(std)
    if method not in METHODS:
        raise BadInput(f'no initialiser "{method}"; there are {", ".join(METHODS)}, and normal:STD')
    return NORMAL.get(method)


def _draw(layer: Layer, deviation, rng) -> None:
    """Fill a layer's weights in (O, C, KH, KW) order, from a normal distribution, or orthonormal rows if `deviation`
    is None."""
    w = layer.weight.data
    fan_in = math.prod(w.shape[1:])
    normal = rng.standard_normal(w.shape, np.float32)
    if deviation is None:
        rows, flat = len(w), normal.reshape(len(w), -1)
        q, _ = np.linalg.qr(flat.T if rows < fan_in else flat)
        normal = (q.T if rows < fan_in else q).reshape(w.shape)
    else:
        normal *= np.float32(deviation(w.shape, fan_in, math.prod(w.shape) // w.shape[1]))
    w[...] = normal
    if layer.bias:
        layer.bias.data[...] = 0


def _lsuv(model: Layer, x, tolerance=0.02, attempts=10) -> None:
    """Scale each layer's weights until its output on x has variance one. Mishkin & Matas, All You Need Is a Good Init
    (ICLR 2016), algorithm 1."""
    for _, layer, inputs in walk_forward(model, x):
        if not hasattr(layer, "weight") or isinstance(layer, BatchNorm2d):
            continue
        for _ in range(attempts):
            variance = float(layer.forward(inputs).var())
            if abs(variance - 1) < tolerance or variance == 0:
                break
            layer.weight.data /= layer.weight.data.dtype.type(math.sqrt(variance))
