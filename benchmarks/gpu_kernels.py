"""Every convolution algorithm, then every op and layer, once on a GPU and on small shapes, for compute-sanitizer.

    compute-sanitizer --tool racecheck python benchmarks/gpu_kernels.py [--device gpu]

A sanitizer slows kernels down by a factor of ten to a hundred, so the shapes are tiny; rests of tiles, strides and
padding are among them. --device sim does the same in the simulator.
"""

import argparse

import numpy as np

from minivgg.backends.array import channels_last, to
from minivgg.cli.main import main as minivgg
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec

SPECS = (
    ConvSpec(2, 3, 9, 11, 5, 3, 3, (1, 1), (1, 1)),
    ConvSpec(1, 16, 8, 8, 32, 3, 3, (1, 1), (1, 1)),  # 16 bytes a copy
    ConvSpec(2, 4, 9, 8, 5, 3, 2, (2, 1), (1, 0)),
)


def convolutions(device: str) -> None:
    """All three passes of every algorithm that can do them, in every dtype that it takes."""
    rng = np.random.default_rng(0)
    for name, row in ALGORITHMS.items():
        for spec in (spec for spec in SPECS if row.supports(spec, "gpu") is None):
            for dtype in row.dtypes:
                shapes = spec.x_shape, spec.w_shape, spec.y_shape
                x, w, dy = (to(channels_last(rng.standard_normal(s).astype(dtype)), device) for s in shapes)
                row.forward(x, w, spec), row.grad_input(dy, w, spec), row.grad_weight(dy, x, spec)
        print(name, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("gpu", "sim"), default="gpu")
    device = parser.parse_args().device
    convolutions(device)
    raise SystemExit(minivgg(["gradcheck", "--device", device]))
