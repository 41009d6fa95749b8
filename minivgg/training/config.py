"""The settings of a training run, and what they are when nobody sets them."""

from dataclasses import dataclass

from minivgg.errors import BadInput
from minivgg.training.graph import check_graphs

OPTIMIZERS = ("sgd", "adam")


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
    scale: tuple[int, int] | None = None
    pad: int | None = None
    flip: bool = True
    colour: float = 0.0
    seed: int = 0
    device: str = "cpu"
    graphs: bool = False

    def __post_init__(self):
        for name, low in {"epochs": 1, "batch_size": 1, "lr": 0, "weight_decay": 0, "warmup": 0, "seed": 0}.items():
            if not getattr(self, name) >= low:
                raise BadInput(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise BadInput(f'no optimizer "{self.optimizer}"; there are {", ".join(OPTIMIZERS)}')
        check_graphs(self.graphs, self.device)
        if not 0 <= self.label_smoothing < 1:
            raise BadInput(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
