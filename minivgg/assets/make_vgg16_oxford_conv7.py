"""Make `vgg16_oxford_conv7.npz`, the pretrained layers that ship: Oxford's first seven convolutions, halved.

    python -m minivgg.assets.make_vgg16_oxford_conv7 vgg16_oxford_conv.npz

The argument holds the thirteen of configuration D in float32: w0 … w12 (O, C, 3, 3), b0 … b12. Weights are rounded to
float16, biases stay float32. The zip's timestamps are fixed, so the same zlib writes the same bytes.
"""

import sys
from pathlib import Path

import numpy as np

from minivgg.files import atomically
from minivgg.weights.sources import SOURCES

LAYERS = 7


def main(source: Path) -> None:
    """Write the npz beside this script."""
    path = SOURCES["oxford"].path
    with np.load(source, allow_pickle=False) as file, atomically(path) as temporary:
        arrays = {f"w{i}": file[f"w{i}"].astype(np.float16) for i in range(LAYERS)}
        arrays |= {f"b{i}": file[f"b{i}"] for i in range(LAYERS)}
        np.savez_compressed(temporary, **arrays)
    print(f"{path}: {LAYERS} convolutions, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
