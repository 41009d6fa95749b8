# %% [markdown]
# # 00 · A tour
#
# **What can a network do that is small enough to read in a weekend?**
#
# Five minutes: train one, ask it, look inside, break it, race it. Nothing is explained here; everything that you see
# is built, line by line, in the notebooks that follow. No exercises yet. Press shift-enter, and look.

# %%
import os
import tempfile
import timeit
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minivgg.gradcheck import check
from minivgg.gradcheck.zoo import ZOO
from minivgg.insight import pictures, seeing
from minivgg.ops.conv2d import ConvSpec, algorithms_on, conv2d_forward
from minivgg.ops.softmax_cross_entropy import softmax_backward, softmax_forward
from minivgg.training.config import Config
from minivgg.training.loop import evaluate
from minivgg.training.run import Run

# %matplotlib inline
FAST = "MINIVGG_FAST" in os.environ
rng = np.random.default_rng(0)

# %% [markdown]
# ## Train
#
# A small VGG, with batch norm, on 10,000 photographs of clothes that come with minivgg. Every forward and every
# backward in it is written by hand; there is no autograd.

# %%
run = Run(Config(epochs=1 if FAST else 3, warmup=0.5), Path(tempfile.mkdtemp()))
trainer = run.trainer
trainer.model

# %%
trainer.fit(progress=False)
for row in trainer.history:
    print(
        f"epoch {row['epoch']}: loss {row['train_loss']:.3f}, test accuracy {row['test_accuracy']:.1%}"
    )

# %%
plt.rcParams["figure.dpi"] = 80
pictures.curves(trainer.history)

# %% [markdown]
# What it does on 2,000 pictures that it has never seen:

# %%
result = evaluate(trainer.model, trainer.test)
pictures.confusion(result.scores.argmax(axis=1), result.labels, run.classes)

# %% [markdown]
# Shirts are the trouble, and would be yours:

# %%
worst = pictures.worst(result.scores, result.labels, 12)
pictures.mistakes(
    [run.test_set.image(i) for i in worst], result.labels[worst], result.scores[worst], run.classes
)

# %% [markdown]
# ## Look inside
#
# The first layer's filters, sixteen templates of 3×3 weights, and what they make of a picture:

# %%
pictures.filters(seeing.first_filters(trainer.model))

# %%
shown = [run.test_set.image(int(np.argmax(run.test_set.labels == k))) for k in (9, 5, 1)]
x = np.stack([run.preprocessing(image) for image in shown])
seen = [run.preprocessing.denormalise(image) for image in x]
pictures.maps(seeing.feature_maps(trainer.model, x[:1])[0], seen[0], "After the first layer")

# %% [markdown]
# And what did it look at when it decided? A gradient can say: that of the class's score with respect to every pixel
# (saliency), or with respect to the maps of an inner layer (Grad-CAM).

# %%
answers = [run.classes[k] for k in trainer.model.forward(x).argmax(axis=1)]
heats = []
for image in x:
    saliency = seeing.saliency(trainer.model, image[None])
    layer = seeing.stage_layers(trainer.model)[2]
    heats.append(
        [saliency / saliency.max(), seeing.grad_cam(trainer.model, image[None], layer=layer)]
    )
pictures.heat(seen, heats, answers, ["saliency", f"Grad-CAM at {layer}"], "share of maximum")

# %% [markdown]
# ## Break it
#
# Is a backward right? minivgg measures the slope of forward and compares. Here is softmax as it should be, and softmax
# with a bug from the zoo, one that many a famous gradient check lets pass:

# %%
check((softmax_forward, softmax_backward), rng.standard_normal((4, 6)))

# %%
report = ZOO["softmax-seven-times"].check()
report

# %%
report.plot()

# %% [markdown]
# ## Race it
#
# One convolution, many algorithms: from seven loops, which are the definition, to one that makes do with a quarter of
# the multiplications. All give the same answer, up to rounding, and any network uses any of them by one argument.

# %%
x = rng.standard_normal((2, 8, 12, 12), dtype=np.float32)
w = rng.standard_normal((8, 8, 3, 3), dtype=np.float32)
exact, _ = conv2d_forward(x.astype(float), w.astype(float), padding=1, algorithm="naive")
for name in algorithms_on("cpu"):
    y, _ = conv2d_forward(x, w, padding=1, algorithm=name)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    print(f"{name:14} relative error {error:.0e}")

# %% measured=true
spec = ConvSpec.of((1, 64, 28, 28) if FAST else (1, 64, 112, 112), (64, 64, 3, 3), padding=1)
x = rng.standard_normal(spec.x_shape, dtype=np.float32)
w = rng.standard_normal(spec.w_shape, dtype=np.float32)
seconds = {}
for name in algorithms_on("cpu"):
    convolve = partial(conv2d_forward, x, w, padding=1, algorithm=name)
    convolve()
    once = [timeit.timeit(convolve, number=1)]
    while sum(once) < 0.2:
        once.append(timeit.timeit(convolve, number=1))
    seconds[name] = min(once)
with plt.rc_context(pictures.STYLE):
    figure, axes = plt.subplots(figsize=(8, 3))
    speeds = [2 * spec.macs / s / 1e9 for s in seconds.values()]
    axes.bar_label(axes.barh(list(seconds), speeds, color=pictures.BLUE), fmt="%.3g", padding=4)
    axes.set(xlabel="GFLOP/s, counted as seven loops", xlim=(0, 1.15 * max(speeds)))
    axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## The path
#
# [The course](README.md) goes from here through one dot product, the loss, gradient checking, convolution and its way
# back, to whole VGGs and to what makes them fast. In each notebook you write a layer, have it checked, and put it into
# a network.
#
# Begin with [scores, a loss, and which way to move](01_linear_and_loss.ipynb).
