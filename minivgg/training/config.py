"""The settings of a training run, and what they are when nobody sets them."""

import math
import reprlib
from dataclasses import dataclass, fields

from minivgg.errors import BadInput, check_range
from minivgg.models import options
from minivgg.training.graph import check_graphs

OPTIMIZERS = ("sgd", "adam")
_PIXELS = options.RANGES["input_size"]
_RATE = {"low": 0, "high": 1e38}  # which float32 can hold
# Of `errors.check_range`: the command line, a run's config.json and its network's description all go by this.
RANGES = options.RANGES | {
    "size": _PIXELS | {"high": 2048},  # of more, a VGG would want gigabytes an image
    "resize": _PIXELS,
    "pad": _PIXELS | {"low": 0},
    "epochs": {"low": 1, "high": 1_000_000, "integer": True},
    "batch_size": {"low": 1, "high": 1_000_000, "integer": True},
    "lr": _RATE,
    "momentum": {"low": 0, "high": 1, "high_open": True},
    "weight_decay": _RATE,
    "warmup": {"low": 0, "high": 1_000_000},
    "label_smoothing": {"low": 0, "high": 1},
    "max_norm": {"low": 0, "high": math.inf, "low_open": True},
    "clip_norm": {"low": 0, "high": math.inf, "low_open": True},
    "colour": {"low": 0, "high": 1000},
}


@dataclass(frozen=True)
class Config:
    """The settings of a run. The defaults train a small VGG with batch norm on the bundled images, on any laptop.

    Whatever is None follows from something else: `size`, `resize` and `pad` from the images (28×28 ones are padded to
    32; photographs of any size are scaled and cropped to 64), a model's options from the model's own defaults.
    """

    data: str = "fashion-mnist-mini"
    download: bool = False
    size: int | None = None
    resize: int | None = None
    model: str = "vgg11_bn"
    width: float | None = 0.25
    classifier_width: int | None = 256
    dropout: float | None = 0.2
    init: str = "he"
    init_from: str | None = None
    algorithm: str | None = None
    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    scale: tuple | None = None  # (low, high)
    pad: int | None = None
    flip: bool = True
    colour: float = 0.0
    seed: int = 0
    device: str = "cpu"
    graphs: bool = False

    def __post_init__(self):
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if value is None and isinstance(None, setting.type):
                continue
            if name in RANGES:
                check_setting(name, value)
            elif name == "scale":
                check_scale(value)
            elif not isinstance(value, setting.type):
                raise BadInput(
                    f"{name} = {reprlib.repr(value)}: should be {'yes or no' if setting.type is bool else 'text'}"
                )
        if self.optimizer not in OPTIMIZERS:
            raise BadInput(f'no optimizer "{self.optimizer}"; there are {", ".join(OPTIMIZERS)}')
        check_graphs(self.graphs, self.device)


def check_setting(name: str, value, owner: str = "") -> None:
    """Raise BadInput, with its range and who takes it, for a number that the setting `name` cannot be."""
    check_range(f"{owner}{name}", value, **RANGES[name])


def check_scale(scale, owner: str = "") -> None:
    """Raise BadInput unless `scale` is (low, high): two sizes in pixels, the first not above the second."""
    if not isinstance(scale, tuple) or len(scale) != 2:
        raise BadInput(f"{owner}scale = {reprlib.repr(scale)}: should be two sizes, (low, high)")
    for size in scale:
        check_range(f"{owner}scale", size, **_PIXELS)
    if scale[0] > scale[1]:
        raise BadInput(f"{owner}scale = {scale}: should be (low, high) with low <= high")
