"""AlexNet as data: the network that VGG is compared with. Eight weight layers, large windows first.

`alexnet` is the one column that torchvision has (Krizhevsky, One Weird Trick for Parallelizing Convolutional Neural
Networks, 2014): its published weights fit. `alexnet_lrn` is that of the 2012 paper (Krizhevsky, Sutskever & Hinton,
ImageNet Classification with Deep Convolutional Neural Networks), whole: the paper cut it in two for two GPUs, each with
half of the filters, and let convolutions 2, 4 and 5 see their own half alone (`groups=2` in PyTorch). Here every filter
sees all channels, which gives 62,378,344 parameters for 60,965,224; weights of the two-column net do not fit.

A token is a convolution, filters:window/stride, each followed by a ReLU; `LRN`; or `pool`, 3×3 with stride 2, so that
windows overlap.
"""

from functools import partial

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import (
    AdaptiveAvgPool2d,
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
    "one column": "64:11/4 pool 192:5 pool 384:3 256:3 256:3 pool",
    "2012": "96:11/4 LRN pool 256:5 LRN pool 384:3 384:3 256:3 pool",
}
SMALLEST = 63  # pixels: one less, and the last pool has no window


def _features(configuration: str, channels: int, width: float, options: dict) -> tuple[Sequential, dict, int]:
    """The layers up to the last pool, what the literature calls them, and how many channels come out."""
    layers, names, number = [], {}, 0
    for token in configuration.split():
        if token == "pool":
            new = {"pool": MaxPool2d(3, 2)}
        elif token == "LRN":  # the paper's α = 10⁻⁴ stands before the sum over 5 channels, ours before their mean
            new = {"norm": LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)}
        else:
            filters, _, window = token.partition(":")
            kernel, _, stride = window.partition("/")
            out, number = max(1, round(int(filters) * width)), number + 1
            padding = min(2, int(kernel) // 2)
            conv = Conv2d(channels, out, int(kernel), int(stride or 1), padding, **options)
            new, channels = {"conv": conv, "relu": ReLU()}, out
        for kind, layer in new.items():
            names[f"{kind}{number}"] = f"features.{len(layers)}"
            layers.append(layer)
    return Sequential(*layers), names, channels


def alexnet(
    configuration: str = "one column",
    *,
    classes: int = 1000,
    channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    classifier_width: int = 4096,
    dropout: float = 0.5,
    init: str = "he",
    seed: int = 0,
    algorithm: str = "auto",
    dtype=np.float32,
) -> Sequential:
    """An AlexNet: x (N, channels, H, W) → scores (N, classes), with torchvision's layer and parameter names.

    `configuration` is a key of `CONFIGURATIONS`; options are those of `vgg`. Images of other sizes than `input_size`
    are taken too, from 63 pixels up: the last feature map is averaged down to what `input_size` gives, 6 pixels at
    most, each way. `features_at` knows the layers as conv1, relu1, norm1, pool1, … pool5, fc6, relu6, … fc8.

    The first convolution has padding 2, so that 224 pixels give the paper's 55. Raises BadInput for an unknown
    configuration or algorithm, or a size, width or count out of range.
    """
    if configuration not in CONFIGURATIONS:
        raise BadInput(f'no AlexNet "{configuration}"; there are {", ".join(CONFIGURATIONS)}')
    check_options(classes=classes, channels=channels, input_size=input_size, width=width, dropout=dropout)
    check_options(classifier_width=classifier_width)
    if input_size < SMALLEST:
        raise BadInput(f"AlexNet's large strides need an input_size of at least {SMALLEST}, got {input_size}")
    check_algorithm(algorithm)
    options = {"algorithm": algorithm, "dtype": dtype}
    features, names, last = _features(CONFIGURATIONS[configuration], channels, width, options)
    pixels = min(6, features.output_shape((1, channels, input_size, input_size))[2])
    fc6 = Linear(last * pixels**2, classifier_width, dtype=dtype)
    fc7 = Linear(classifier_width, classifier_width, dtype=dtype)
    fc8 = Linear(classifier_width, classes, dtype=dtype)
    if configuration == "2012":
        classifier = {"fc6": fc6, "relu6": ReLU(), "drop6": Dropout(dropout)}
        classifier |= {"fc7": fc7, "relu7": ReLU(), "drop7": Dropout(dropout), "fc8": fc8}
    else:  # torchvision drops before the linear layers: its parameters are at 1, 4 and 6
        classifier = {"drop5": Dropout(dropout), "fc6": fc6, "relu6": ReLU()}
        classifier |= {"drop6": Dropout(dropout), "fc7": fc7, "relu7": ReLU(), "fc8": fc8}
    model = Sequential(
        {
            "features": features,
            "avgpool": AdaptiveAvgPool2d(pixels),
            "flatten": Flatten(),
            "classifier": Sequential(*classifier.values()),
        }
    )
    model.landmarks = names | {name: f"classifier.{i}" for i, name in enumerate(classifier)}
    return initialise(model, init, seed=seed)


alexnet_lrn = partial(alexnet, "2012")
