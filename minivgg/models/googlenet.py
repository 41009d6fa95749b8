"""GoogLeNet as data: Szegedy et al., Going Deeper with Convolutions (2014), with torchvision's names.

An Inception module looks through several windows at once and joins what they see; 1×1 convolutions before the larger
windows keep that cheap. Nine of them make a network of 22 weight layers with a twentieth of VGG-16's parameters.

`googlenet` is torchvision's, whose published weights fit. It differs from the paper: batch norm after every convolution
instead of biases and local response normalisation, 3×3 windows where the paper has 5×5 (a slip that the weights were
trained with), and a 2×2 last pool. `googlenet_lrn` is the paper's own.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import (
    AdaptiveAvgPool2d,
    Auxiliary,
    AvgPool2d,
    BatchNorm2d,
    ChannelAffine,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minivgg.models.initializers import initialise
from minivgg.models.options import check_options
from minivgg.ops.conv2d import check_algorithm

# Filters of each module, paper table 1: 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; after the pool
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: torchvision's preprocessing
SMALLEST = 32  # pixels, which the five halvings bring down to one


def convolution(
    channels: int, filters: int, kernel: int, stride=1, padding=0, *, batch_norm=False, dtype=np.float32, **options
) -> Sequential:
    """A convolution, its batch norm (which makes a bias needless) if wanted, and a ReLU: `conv`, `bn`, `relu`."""
    layers = {"conv": Conv2d(channels, filters, kernel, stride, padding, not batch_norm, dtype=dtype, **options)}
    layers |= {"bn": BatchNorm2d(filters, eps=1e-3, dtype=dtype)} if batch_norm else {}
    return Sequential(layers | {"relu": ReLU()})


def inception(channels: int, filters: tuple, conv: Callable = convolution, window: int = 5) -> Concat:
    """The Inception module (paper, figure 2b): (N, channels, H, W) → (N, the four branches' filters together, H, W).

    `filters` are a row of `INCEPTIONS`: those of `branch1` (1×1), `branch2` (1×1, then 3×3), `branch3` (1×1, then
    `window` × `window`) and `branch4` (3×3 max-pool with stride 1, then 1×1). `conv` makes a convolution.
    """
    one, reduce3, three, reduce5, five, pooled = filters
    return Concat(
        {
            "branch1": conv(channels, one, 1),
            "branch2": Sequential(conv(channels, reduce3, 1), conv(reduce3, three, 3, padding=1)),
            "branch3": Sequential(conv(channels, reduce5, 1), conv(reduce5, five, window, padding=window // 2)),
            "branch4": Sequential(MaxPool2d(3, 1, 1, ceil_mode=True), conv(channels, pooled, 1)),
        }
    )


def outputs(filters: tuple) -> int:
    """How many channels an Inception module gives."""
    return filters[0] + filters[2] + filters[4] + filters[5]


def _head(channels: int, conv: Callable, width: Callable, hidden: int, classes: int, pools: list, dropout, dtype):
    """An auxiliary classifier (paper, §5): pooled to 4×4, 1×1 convolution, two linear layers."""
    layers = {f"pool{i}": pool for i, pool in enumerate(pools)}
    layers |= {"conv": conv(channels, width(128), 1), "flatten": Flatten()}
    layers |= {"fc1": Linear(16 * width(128), hidden, dtype=dtype), "relu": ReLU()}
    return Auxiliary(layers | {"dropout": Dropout(dropout), "fc2": Linear(hidden, classes, dtype=dtype)})


def googlenet(
    *,
    batch_norm: bool = True,
    aux_logits: bool = True,
    transform_input: bool = False,
    classes: int = 1000,
    channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    classifier_width: int = 1024,
    dropout: float | None = None,
    dropout_aux: float = 0.7,
    init: str = "he",
    seed: int = 0,
    algorithm: str = "auto",
    dtype=np.float32,
) -> Sequential:
    """A GoogLeNet: x (N, channels, H, W) → scores (N, classes), with torchvision's layer and parameter names.

    With `batch_norm` torchvision's, without it the paper's. `aux_logits` adds the auxiliary heads `aux1` and `aux2`,
    behind inception4a and 4d, for training: see `layers.Auxiliary`; `classifier_width` are their hidden units, and
    `dropout_aux` is theirs. `dropout` is that before the last layer, 0.2 with batch norm and 0.4 without unless given.
    `transform_input` takes images prepared as torchvision does (mean and standard deviation of ImageNet) to those that
    torchvision's published weights were trained with (mean and deviation one half): set it for these. Images of any
    size from 32 pixels are taken. Other options are those of `vgg`; `features_at` knows the layers as conv1, pool1, …
    inception3a, … avgpool, fc.

    Raises BadInput for an unknown algorithm, or a size, width or count out of range.
    """
    dropout = (0.2 if batch_norm else 0.4) if dropout is None else dropout
    check_options(classes=classes, channels=channels, input_size=input_size, width=width, dropout=dropout)
    check_options(classifier_width=classifier_width, dropout_aux=dropout_aux)
    if input_size < SMALLEST:
        raise BadInput(f"GoogLeNet halves its input five times, so input_size must be at least 32, got {input_size}")
    if transform_input and channels != 3:
        raise BadInput(f"transform_input is for three channels, red, green and blue; got {channels}")
    check_algorithm(algorithm)
    conv = partial(convolution, batch_norm=batch_norm, algorithm=algorithm, dtype=dtype)

    def scaled(filters: int) -> int:
        return max(1, round(filters * width))

    def pool(window: int = 3) -> MaxPool2d:
        return MaxPool2d(window, 2, ceil_mode=True)

    def norm(name: str) -> dict:
        return {} if batch_norm else {name: LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1.0)}  # as Caffe's

    layers = {}
    if transform_input:
        layers["transform"] = ChannelAffine([2 * s for s in STD], [2 * m - 1 for m in MEAN])
    layers |= {"conv1": conv(channels, scaled(64), 7, 2, 3), "maxpool1": pool(), **norm("norm1")}
    layers |= {"conv2": conv(scaled(64), scaled(64), 1), "conv3": conv(scaled(64), scaled(192), 3, padding=1)}
    layers |= {**norm("norm2"), "maxpool2": pool()}
    last = scaled(192)
    before = {"4a": {"maxpool3": pool()}, "5a": {"maxpool4": pool(2 if batch_norm else 3)}}
    heads = {"4a": "aux1", "4d": "aux2"}
    for name, filters in INCEPTIONS.items():
        filters = tuple(map(scaled, filters))
        layers |= before.get(name, {})
        layers[f"inception{name}"] = inception(last, filters, conv, window=3 if batch_norm else 5)
        last = outputs(filters)
        if aux_logits and name in heads:
            # the paper's pool where it fits, and then, for any size, what torchvision has instead of it
            pools = [] if batch_norm or math.ceil(input_size / 16) < 5 else [AvgPool2d(5, 3)]
            pools.append(AdaptiveAvgPool2d(4))
            layers[heads[name]] = _head(last, conv, scaled, classifier_width, classes, pools, dropout_aux, dtype)
    layers |= {"avgpool": AdaptiveAvgPool2d(1), "flatten": Flatten(), "dropout": Dropout(dropout)}
    model = Sequential(layers | {"fc": Linear(last, classes, dtype=dtype)})
    model.landmarks = {name.replace("maxpool", "pool"): name for name in layers if name not in heads.values()}
    model.landmarks["fc"] = "fc"
    return initialise(model, init, seed=seed)


googlenet_lrn = partial(googlenet, batch_norm=False)


def small_googlenet(
    *,
    classes: int = 10,
    channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    classifier_width: int | None = None,
    dropout: float = 0.0,
    init: str = "he",
    seed: int = 0,
    algorithm: str = "auto",
    dtype=np.float32,
) -> Sequential:
    """An article's small GoogLeNet, built right: x (N, channels, H, W) → scores (N, classes), for any H and W.

    A 3×3 convolution to 192 channels, two Inception modules of 256 channels each (1×1→64; 1×1→48→3×3→64; 1×1→64→5×5→96;
    3×3 max-pool→1×1→32), global average pooling, a linear layer. As printed it cannot run: it declares 512 inputs to
    the last layer, as if the outputs of both modules were joined, but the second module takes the first one's and gives
    256. Every convolution here has its ReLU, as in the paper (§5). Options are those of `vgg`; there is no hidden
    linear layer for `classifier_width`, which is taken so that all networks take the same.

    Raises BadInput for an unknown algorithm, or a size, width or count out of range.
    """
    check_options(classes=classes, channels=channels, input_size=input_size, width=width, dropout=dropout)
    check_algorithm(algorithm)
    conv = partial(convolution, algorithm=algorithm, dtype=dtype)
    first, *filters = (max(1, round(count * width)) for count in (192, 64, 48, 64, 64, 96, 32))
    last = outputs(filters)
    layers = {"conv1": conv(channels, first, 3, padding=1)}
    layers |= {"inception1": inception(first, filters, conv), "inception2": inception(last, filters, conv)}
    layers |= {"avgpool": AdaptiveAvgPool2d(1), "flatten": Flatten(), "dropout": Dropout(dropout)}
    model = Sequential(layers | {"fc": Linear(last, classes, dtype=dtype)})
    return initialise(model, init, seed=seed)
