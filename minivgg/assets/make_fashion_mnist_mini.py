"""Make `fashion_mnist_mini.npz`, the data set that ships: the first 1,000 training and 200 test images of each class.

    python -m minivgg.assets.make_fashion_mnist_mini [FOLDER]

FOLDER holds the four idx.gz files of Fashion-MNIST (default: where Debian's package dataset-fashion-mnist puts them);
their sha256 is checked. Images stay in file order, which mixes the classes. The zip's timestamps are fixed, so the
same zlib writes the same bytes.
"""

import sys
from pathlib import Path

import numpy as np

from minivgg.training.datasets import ASSETS, FASHION_MNIST_DEBIAN, read_fashion_mnist

TRAIN_PER_CLASS, TEST_PER_CLASS = 1000, 200


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` of each label in `labels` (N,), ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def main(folder: Path) -> None:
    """Write the npz beside this script, from the four files in `folder`."""
    train, test = read_fashion_mnist(folder)
    train = train.subset(first_of_each_class(train.labels, TRAIN_PER_CLASS))
    test = test.subset(first_of_each_class(test.labels, TEST_PER_CLASS))
    path = ASSETS / "fashion_mnist_mini.npz"
    np.savez_compressed(
        path,
        train_images=train.images[..., 0],
        train_labels=train.labels.astype(np.uint8),
        test_images=test.images[..., 0],
        test_labels=test.labels.astype(np.uint8),
        classes=np.array(train.classes),
    )
    print(f"{path}: {len(train)} + {len(test)} images, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FASHION_MNIST_DEBIAN)
