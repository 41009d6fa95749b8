"""VGG-16 as a whole on a GPU, forward passes and training steps, beside PyTorch's, for the README.

    pip install -e '.[cuda13]' torch                          # or cuda12
    python benchmarks/vgg_gpu.py [--precisions fp32 tf32] [--redraw]

Writes `benchmarks/results/vgg_gpu.json`, `docs/vgg_gpu.png`, and the tables in the README and docs/races_gpu.md.
What a machine lacks is skipped, and said. `minivgg bench vgg --device gpu` is the same race with more options.
"""

from races import main_on_gpu

from minivgg.bench import vgg_gpu

if __name__ == "__main__":
    main_on_gpu("vgg_gpu", vgg_gpu.run, __doc__, tuple(vgg_gpu.WRONG))
