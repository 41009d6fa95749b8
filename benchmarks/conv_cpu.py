"""VGG-16's convolutions on the CPU, every algorithm of ours beside PyTorch's, for the README.

    pip install -e '.[bench]'
    python benchmarks/conv_cpu.py [--threads N] [--samples 9] [--redraw]

Writes `benchmarks/results/conv_cpu.json`, `docs/conv_cpu.png` and the README's table. Needs a quiet machine, about
half an hour, and 8 GB of memory. `minivgg bench conv` is the same race with more options.
"""

from races import main

from minivgg.bench import conv

if __name__ == "__main__":
    main("conv_cpu", conv.run, __doc__)
