"""minivgg: convolutional networks written from scratch in Python, to be read, learnt from, and raced.

The map, from the ground up; each floor uses only those below it:

    *.py        errors, and how all else writes a file, keeps a cache, saves a figure, prints a line
    cudasim/    runs CUDA C on the CPU, and finds races, overruns and wasted transactions; knows nothing of the rest
    backends/   where arithmetic meets the machine: memory order, compiled kernels, reused buffers, CPU, GPU, simulator
    ops/        arithmetic: pure functions, `<name>_forward` beside `<name>_backward`, `<name>.cu` beside `<name>.py`;
                `ops/conv2d/` is the ladder
    layers/     thin objects that own parameters and caches: `Layer`, `Sequential`, `Conv2d`, …
    models/     networks as data: VGG, AlexNet, GoogLeNet, and how weights start
    training/   data, augmentation, optimisers, schedules, the loop, runs that resume bit for bit
    weights/    published weights: safetensors, PyTorch, Keras and npz files read and written
    insight/    the ledger of a network (shapes, parameters, arithmetic, memory), comparisons, and every picture
    gradcheck/  is a gradient right, and if not, what kind of wrong is it?
    bench/      honest timing, and the races against PyTorch
    testing/    the conformance suite: what our tests run, and what an op of yours is held to
    exercises/  those of the tutorials, and who looks at a learner's answers
    cli/        the command line, one file a command

Dimensions have one name each, everywhere:

    N C H W     images: batch, channels, height, width       x is (N, C, H, W)
    O KH KW     filters: how many, and their size             w is (O, C, KH, KW)
    OH OW       the output's height and width                 y is (N, O, OH, OW)
    dx dw db dy gradients of the loss with respect to x, w, b and y

A tensor's *shape* is always (N, C, H, W); its *memory order* is free (see `backends/array.py`).

Importing `minivgg` compiles nothing and imports next to nothing: what is named here is fetched when first used.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "minivgg.layers": (
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
    ),
    "minivgg.models": ("build", "initialise"),
    "minivgg.ops.conv2d": ("ALGORITHMS", "conv2d_backward", "conv2d_forward"),
    "minivgg.ops.softmax_cross_entropy": ("softmax_cross_entropy_backward", "softmax_cross_entropy_forward"),
    "minivgg.insight.ledger": ("ledger",),
    "minivgg.errors": ("BadInput",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'minivgg' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
