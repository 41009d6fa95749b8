"""VGG-16's convolutions on a GPU: every algorithm of ours beside cuDNN's and PyTorch's, for the README.

    pip install -e '.[cuda13]' torch nvidia-cudnn-cu13        # or cuda12, and nvidia-cudnn-cu12
    python benchmarks/conv_gpu.py [--batches 1 32 64] [--precisions fp32 tf32 fp16] [--baseline] [--redraw]

Writes `benchmarks/results/conv_gpu.json`, `docs/conv_gpu.png`, and the tables in the README and docs/races_gpu.md.
--baseline times cuDNN's algorithms alone, each by its name, into `conv_gpu_baseline.json`. What a machine lacks is
skipped, and said. `minivgg bench conv --device gpu` is the same race with more options.
"""

from races import main_on_gpu

from minivgg.bench import conv_gpu

if __name__ == "__main__":
    main_on_gpu("conv_gpu", conv_gpu.run, __doc__, tuple(conv_gpu.PRECISIONS), conv_gpu.BATCHES)
