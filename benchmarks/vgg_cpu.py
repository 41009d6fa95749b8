"""VGG-16 as a whole on the CPU, forward passes and training steps, beside PyTorch's, for the README.

    pip install -e '.[bench]'
    python benchmarks/vgg_cpu.py [--threads N] [--samples 9] [--redraw]

Writes `benchmarks/results/vgg_cpu.json`, `docs/vgg_cpu.png` and the README's table. Needs a quiet machine, about
half an hour, and 14 GB of memory. `minivgg bench vgg` is the same race with more options.
"""

from races import main

from minivgg.bench import vgg

if __name__ == "__main__":
    main("vgg_cpu", vgg.run, __doc__)
