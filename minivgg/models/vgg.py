"""The VGG family as data: every configuration of Simonyan & Zisserman 2015, table 1, and two well-known teachers' nets.

A configuration is five stages, each ended by a 2×2 max-pool. A number is a 3×3 convolution with so many filters,
padding 1, and a ReLU; `256:1` is a 1×1 convolution; `LRN` is local response normalisation.
"""

import itertools
from functools import partial

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
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

CONFIGURATIONS = {
    "A": "64 | 128 | 256 256 | 512 512 | 512 512",
    "A-LRN": "64 LRN | 128 | 256 256 | 512 512 | 512 512",
    "B": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
    "C": "64 64 | 128 128 | 256 256 256:1 | 512 512 512:1 | 512 512 512:1",
    "D": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
    "E": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
}


def _stage(stage: str, channels: int, width: float, batch_norm: bool, options: dict) -> tuple[list, int]:
    """The layers of one stage, and how many channels come out of it."""
    layers = []
    for token in stage.split():
        if token == "LRN":
            layers.append(LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0))
            continue
        filters, _, size = token.partition(":")
        kernel, out = int(size or 3), max(1, round(int(filters) * width))
        layers.append(Conv2d(channels, out, kernel, padding=kernel // 2, **options))
        layers += [BatchNorm2d(out, dtype=options["dtype"])] if batch_norm else []
        layers.append(ReLU())
        channels = out
    return [*layers, MaxPool2d(2)], channels


def _landmarks(model: Sequential) -> dict[str, str]:
    """What the literature calls the layers (conv1_1, relu1_1, pool1, … fc6, relu6, drop6, fc7, … fc8) → our names."""
    names, stage, number, linear = {}, 1, 0, 5
    for path, layer in model.walk():
        match layer:
            case Conv2d():
                number += 1
                names[f"conv{stage}_{number}"] = path
            case BatchNorm2d():
                names[f"bn{stage}_{number}"] = path
            case LocalResponseNorm():
                names[f"norm{stage}"] = path
            case MaxPool2d():
                names[f"pool{stage}"], stage, number = path, stage + 1, 0
            case Linear():
                linear += 1
                names[f"fc{linear}"] = path
            case ReLU():
                names[f"relu{stage}_{number}" if stage <= 5 else f"relu{linear}"] = path
            case Dropout():
                names[f"drop{linear}"] = path
    return names


def _classifier(features: int, width: int, classes: int, dropout: float, dtype) -> Sequential:
    """FC, ReLU, dropout, FC, ReLU, dropout, FC, in torchvision's order: parameters at 0, 3 and 6."""
    return Sequential(
        Linear(features, width, dtype=dtype),
        ReLU(),
        Dropout(dropout),
        Linear(width, width, dtype=dtype),
        ReLU(),
        Dropout(dropout),
        Linear(width, classes, dtype=dtype),
    )


def vgg(
    configuration: str = "D",
    *,
    batch_norm: bool = False,
    classes: int = 1000,
    channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    classifier_width: int = 4096,
    dropout: float = 0.5,
    named_blocks: bool = False,
    init: str = "he",
    seed: int = 0,
    algorithm: str = "auto",
    dtype=np.float32,
) -> Sequential:
    """A VGG: x (N, channels, H, W) → scores (N, classes), with torchvision's layer and parameter names.

    `configuration` is the paper's letter, a key of `CONFIGURATIONS`. `width` multiplies the number of filters. Images
    of other sizes than `input_size` (a pixel count, at least 32) are taken too, from 32 up: the last feature map is
    averaged down to input_size // 32 pixels, at most 7, each way, before the classifier. With `named_blocks` the stages
    are layers `block1` to `block5` instead of one flat `features`. `init` and `seed` are those of `initialise`, except
    "lsuv", which needs images; `algorithm` is that of every convolution.

    For features instead of scores: `model.features_at("relu4_3")` ends at any layer, by the paper's and Caffe's names
    (conv1_1 … relu5_3, pool1 … pool5, fc6, relu6, fc7, relu7, fc8; fc7 comes before its ReLU); a vector of any length
    comes from `classes`, or from another last layer: `model.classifier[6] = initialise(Linear(4096, 128))`.

    Raises BadInput for an unknown configuration or algorithm, or a size, width or count out of range.
    """
    if configuration not in CONFIGURATIONS:
        raise BadInput(f'no VGG configuration "{configuration}"; there are {", ".join(CONFIGURATIONS)}')
    check_options(classes=classes, channels=channels, input_size=input_size, width=width, dropout=dropout)
    check_options(classifier_width=classifier_width)
    if input_size < 32:
        raise BadInput(f"a VGG halves its input five times, so input_size must be at least 32, got {input_size}")
    check_algorithm(algorithm)
    stages, pixels, in_channels = [], min(7, input_size // 32), channels
    for stage in CONFIGURATIONS[configuration].split("|"):
        layers, in_channels = _stage(stage, in_channels, width, batch_norm, {"algorithm": algorithm, "dtype": dtype})
        stages.append(layers)
    if named_blocks:
        extractor = {f"block{i}": Sequential(*layers) for i, layers in enumerate(stages, start=1)}
    else:
        extractor = {"features": Sequential(*itertools.chain(*stages))}
    classifier = _classifier(in_channels * pixels**2, classifier_width, classes, dropout, dtype)
    model = Sequential(
        extractor | {"avgpool": AdaptiveAvgPool2d(pixels), "flatten": Flatten(), "classifier": classifier}
    )
    model.landmarks = _landmarks(model)
    return initialise(model, init, seed=seed)


vgg11, vgg13, vgg16, vgg19 = (partial(vgg, c) for c in "ABDE")
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = (partial(vgg, c, batch_norm=True) for c in "ABDE")


# Five blocks of two convolutions, each a layer of its own (`model.block3`): configuration B under a teacher's names.
block_vgg = partial(vgg, "B", named_blocks=True)

# The VGG-11 that courses build for Fashion-MNIST at 224×224: grey images, ten classes; 112, 56, 28, 14, 7 pixels.
keras_vgg11 = partial(vgg, "A", named_blocks=True, channels=1, classes=10)
