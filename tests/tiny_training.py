"""A training that takes a second wherever it runs: eight images of 6×6 a batch, one convolution, one linear layer."""

import numpy as np

from minivgg.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import initialise
from minivgg.training.datasets import Dataset
from minivgg.training.loader import Loader
from minivgg.training.loop import Trainer
from minivgg.training.optim import SGD
from minivgg.training.preprocessing import fit
from minivgg.training.schedules import schedule


def halves(count, seed):
    """Images of 6×6 that are brighter above (class 0) or below (class 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 120, (count, 6, 6)) + 100 * (np.arange(6)[:, None] // 3 == labels[:, None, None])
    return Dataset(f"halves/{seed}", images.astype(np.uint8)[..., None], labels, ("above", "below"), 1)


def trainer(device, *, optimizer=SGD, epochs=2, lr=0.1, batches=3, dropout=0.3, **changes):
    # no bias before batch norm: its gradient is zero but for rounding, which Adam would make as large as any other
    convolution = Conv2d(1, 4, 3, padding=1, bias=False, algorithm="naive")
    layers = [convolution, BatchNorm2d(4), ReLU(), MaxPool2d(2), Flatten()]
    model = Sequential(*layers, Dropout(dropout, seed=3), Linear(36, 2))
    initialise(model, "he", seed=1)
    model.to(device)
    train = halves(8 * batches, 0)
    preprocessing = fit(train, 6)
    settings = {
        "model": model,
        "train": Loader(train, preprocessing, 8, shuffle=True, seed=4),
        "test": Loader(halves(8, 1), preprocessing, 8),
        "optimizer": optimizer(model.named_params(), weight_decay=1e-3),
        "schedule": schedule("cosine", epochs, warmup=0),
        "lr": lr,
        "epochs": epochs,
        "device": device,
    }
    return Trainer(**settings | changes)
