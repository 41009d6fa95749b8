# %% [markdown]
# # 06 · Pooling, and keeping numbers in order
#
# A convolution says *where* it has seen an edge. A shirt is a shirt wherever it lies.
#
# **How does a network forget the place and keep the finding, and how does a gradient find its way back through what was
# thrown away? And when numbers grow or fade from layer to layer, can a layer put them in order again?**
#
# Max-pooling, averaging, AlexNet's local response normalisation that VGG tried and dropped, and batch norm, whose
# backward is the hardest of this course. About an hour and a half, two exercises.

# %%
import inspect
import itertools
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from minivgg.exercises import check_exercise
from minivgg.gradcheck import check
from minivgg.insight import pictures
from minivgg.insight.drawing import frame, matrix
from minivgg.training.datasets import load

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)
train, test = load("fashion-mnist-mini")

# %% [markdown]
# ## The largest of each window
#
# Max-pooling slides a window as a convolution does, channel by channel, and keeps the largest value. VGG's window is
# 2×2 and moves by 2: a quarter of the values is left. Below, the winners are framed.


# %%
x = np.array([[1, 3, 2, 0], [5, 2, 1, 1], [0, 1, 4, 4], [2, -1, 4, 3]])
y, dy = np.array([[5, 2], [2, 4]]), np.array([[10, -3], [7, 6]])
winners = [(1, 0), (0, 2), (3, 0), (2, 2)]
dx = np.zeros_like(x)
for (i, j), gradient in zip(winners, dy.ravel(), strict=True):
    dx[i, j] = gradient

figure, panels = plt.subplots(1, 4, figsize=(10, 2.9), width_ratios=(2, 1, 1, 2))
for axes, values, title in zip(panels, (x, y, dy, dx), ("x", "y", "dy", "dx"), strict=True):
    matrix(axes, values, title)
for axes in panels[0], panels[3]:
    for i, j in winners:
        frame(axes, i, j)
plt.show()

# %% [markdown]
# The way back needs no calculus worth the name. As long as nobody overtakes the winner, $y$ *is* the winner: its slope
# in that $x$ is 1, and 0 in the three others.
#
# $$y = x_{k^*}, \quad k^* = \arg\max_k x_k \qquad\Rightarrow\qquad dx_k = dy\,[k = k^*]$$
#
# So backward hands each $dy$ to the place where the winner stood, and what forward has to remember is that place, a
# number from 0 to 3 for each window. If windows overlap (AlexNet's are 3×3 and move by 2), one pixel may win several
# times, and its gradients *add up*.
#
# ### What if nobody is the largest?
#
# Look at the lower right window above: three fours. At a tie the function has a kink, and no slope: raise any of the
# three and $y$ rises, lower any one and nothing happens. Each choice of *one* winner is a gradient that some direction
# has. Libraries agree on the first in reading order. Is that a corner case? Here is how often all four values of a
# window are the same, in the pictures, and after a convolution with random filters and a ReLU:

# %%
from minivgg.layers import Conv2d, ReLU, Sequential
from minivgg.models.initializers import initialise
from minivgg.training.loader import Loader
from minivgg.training.preprocessing import fit

preprocessing = fit(train, 32, resize=28)
batch, labels = next(Loader(train, preprocessing, 64, shuffle=True).epoch(0))
maps = initialise(Sequential(Conv2d(1, 16, 3, padding=1), ReLU()), "he").forward(batch)


def share_of_ties(a):
    windows = a.reshape(*a.shape[:2], 16, 2, 16, 2).swapaxes(3, 4).reshape(-1, 4)
    return np.mean((windows == windows[:, :1]).all(axis=1))


shares = [share_of_ties(a) for a in (batch, maps)]
print(
    f"windows of four equal values: {shares[0]:.0%} in the pictures, {shares[1]:.0%} after a ReLU"
)

# %% [markdown]
# Not a corner case at all. Black background ties, and so does every window that the ReLU has emptied. (There it does no
# harm: ReLU's own backward stops whatever the pool hands to a zero.)

# %% [markdown]
# ### Exercise 06.1 · max-pooling, both ways
#
# Write `maxpool_forward(x, size, stride)` for x $(N, C, H, W)$ and square windows without padding, which gives `(y,
# cache)`, and `maxpool_backward(dy, cache)`, which gives `dx`. Windows may overlap or leave gaps. Of equal values, the
# first in reading order wins.
#
# <details><summary>Hint: all windows at once</summary>
#
# `np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))` has shape $(N, C, H', W', size, size)$, a
# window for every place; `[:, :, ::stride, ::stride]` keeps yours. Flatten the last two dimensions, and `argmax` tells
# the place of the winner; its first one, at a tie.
#
# </details>
# <details><summary>Hint: where the winner stood</summary>
#
# Place $k$ of the window at $(i, j)$ is row $i\cdot stride + \lfloor k / size\rfloor$ and column $j\cdot stride + k
# \bmod size$ of $x$.
#
# </details>
# <details><summary>Hint: adding to the same place twice</summary>
#
# `dx[rows, columns] += dy` adds only once where an index comes twice. `np.add.at(dx, (…), dy)` adds every time. A loop
# over the windows is all right, too.
#
# </details>


# %% exercise="06.1"
def maxpool_forward(x, size, stride):
    ### BEGIN SOLUTION
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[
        :, :, ::stride, ::stride
    ]
    flat = windows.reshape(*windows.shape[:4], size * size)
    winner = flat.argmax(axis=-1)
    y = np.take_along_axis(flat, winner[..., None], axis=-1)[..., 0]
    return y, (winner, x.shape, size, stride)
    ### END SOLUTION


def maxpool_backward(dy, cache):
    ### BEGIN SOLUTION
    winner, shape, size, stride = cache
    dx = np.zeros(shape, dy.dtype)
    n, c, i, j = np.indices(winner.shape)
    np.add.at(dx, (n, c, i * stride + winner // size, j * stride + winner % size), dy)
    return dx
    ### END SOLUTION


# %%
check_exercise("06.1", maxpool_forward, maxpool_backward)

# %% [markdown]
# A popular shortcut keeps no place at all: it compares, `x == y`, and hands the gradient to whoever matches. Where
# values are distinct that is the same. On a flat background it is four gradients for one:


# %%
def by_comparing(dy, cache):
    x, y, size = cache
    spread = [np.kron(a, np.ones((size, size))) for a in (y, dy)]
    return np.where(x == spread[0], spread[1], 0)


flat, dy = np.zeros((1, 2, 4, 4)), rng.standard_normal((1, 2, 2, 2))
y, cache = maxpool_forward(flat, 2, 2)
print(f"raise all of x by h, and Σ dy·y rises by h times {dy.sum():.4f}")
print(f"one winner for each window claims        h times {maxpool_backward(dy, cache).sum():.4f}")
compared = by_comparing(dy, (flat, y, 2))
print(f"comparing claims                         h times {compared.sum():.4f}")

# %% [markdown]
# Would the gradient check see it? At a kink there is no slope to compare with, only one on either side, and it asks
# that backward lie *between* them. Four gradients for one can:


# %%
def keeping_x(x):
    y, _ = maxpool_forward(x, 2, 2)
    return y, (x, y, 2)


report = check((keeping_x, by_comparing), flat)
verdict = "right" if report.ok else "wrong"
print(f"{verdict}, says the check, with {report.rows[0].kinks} kinks")

# %% [markdown]
# So a kink needs a rule of its own. Exercise 06.1 has one: of a window of equal values, exactly one place gets the
# gradient.
#
# Now the library's. Backward first, then the loop under it:

# %%
from minivgg.ops import maxpool

print(inspect.getsource(maxpool.maxpool2d_backward))
print(inspect.getsource(maxpool._backward))

# %% [markdown]
# It turns the question round: not "where does this $dy$ go?" but "which windows could this pixel have won?". Then each
# row of $dx$ is written by one thread, and no two ever add to the same place. The winner's number is kept in one byte,
# which is all that the cache holds:

# %%
y, cache = maxpool.maxpool2d_forward(maps, 2)
mine = maxpool_forward(maps, 2, 2)
assert np.array_equal(mine[0], y)
print(
    f"x has {maps.nbytes:,} bytes, the library keeps {cache.argmax.nbytes:,}, "
    f"mine {mine[1][0].nbytes:,} of integers"
)

# %% [markdown]
# ## The average of each window
#
# Averaging asks how much there is, not whether there is any. It is linear: a convolution whose filter is $1/k^2$
# everywhere, each channel for itself. So backward is its adjoint: every pixel of the window gets the same share,
# $dy/k^2$, and no place need be remembered.

# %%
from minivgg.ops.avgpool import adaptive_avgpool2d_forward, avgpool2d_forward

picture = batch[labels == 9][:1]
figure, grid = plt.subplots(2, 4, figsize=(9, 4.4))
pools = {"max": maxpool.maxpool2d_forward, "average": avgpool2d_forward}
for row, (name, pool) in zip(grid, pools.items(), strict=True):
    row[0].set_ylabel(name, fontsize=12)
    pooled = picture
    for axes in row:
        axes.imshow(pooled[0, 0], cmap="gray_r", vmin=picture.min(), vmax=picture.max())
        axes.set_title(f"{pooled.shape[2]}×{pooled.shape[3]}", fontsize=11)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        pooled, _ = pool(pooled, 2)
plt.show()

# %% [markdown]
# Max-pooling thickens what is bright: the ankle boot stays all there. Averaging fades it. For edges found by a ReLU
# layer, "is there one?" has proved the better question; over a whole map at the end of a network, the average.
#
# ### Whatever the size
#
# VGG's classifier wants 7×7 pixels. *Adaptive* pooling is told the output's size and makes windows to fit: window $i$
# of $O$ runs over the rows from $\lfloor iH/O\rfloor$ up to $\lceil (i+1)H/O\rceil$. They cover everything, and share a
# row where $O$ does not divide $H$.

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.2))
for axes, (H, O) in zip(panels, ((14, 7), (10, 7), (4, 7)), strict=True):
    for i in range(O):
        first, last = i * H // O, -(-(i + 1) * H // O)
        axes.barh(i, last - first, left=first, height=0.7, color=pictures.BLUE, alpha=0.8)
    ones = np.arange(H, dtype=float).reshape(1, 1, H, 1)
    centres = adaptive_avgpool2d_forward(ones, (O, 1))[0].ravel() + 0.5
    axes.plot(centres, range(O), "o", color=pictures.RED, markersize=5)
    axes.set(title=f"{H} rows to {O}", xlim=(0, H), yticks=range(O), xlabel="row of x")
    axes.invert_yaxis()
panels[0].set_ylabel("row of y")
plt.show()

# %% [markdown]
# The red points are the library's means of the row numbers: the middle of each bar. Fewer rows than outputs work as
# well; they are repeated.
#
# ## Local response normalisation, and why VGG dropped it
#
# AlexNet divided each value by what its neighbours *in other channels*, at the same pixel, have to say. A loud
# neighbour makes you quieter:
#
# $$y_c = \frac{x_c}{s_c^{\,\beta}}, \qquad s_c = k + \frac{\alpha}{n}\sum_{i\,\in\,n\text{ channels around }c} x_i^2,
# \qquad n = 5,\ \alpha = 5\cdot10^{-4},\ \beta = 0.75,\ k = 2$$
#
# Its backward is the product rule, with the sum turned round ($x_i$ stands in the sums of its neighbours, too):
# $dx_i = dy_i\,s_i^{-\beta} - \frac{2\alpha\beta}{n}\,x_i\sum_{c\ni i} dy_c\,x_c\,s_c^{-\beta-1}$. The library has it,
# and it is held to the slope:

# %%
from minivgg.ops.lrn import lrn_backward, lrn_forward

options = {"size": 5, "alpha": 0.5, "k": 2.0}
check((lrn_forward, lrn_backward), rng.standard_normal((1, 7, 2, 2)), options=options)

# %% [markdown]
# The paper tried it once, as network A-LRN, and printed (table 3, top-1 error at one scale): A 29.6%, A-LRN 29.7%.
# "Local response normalisation does not improve the performance, but leads to increased memory consumption and
# computation time." Can we see why? Look at what it does to an activation:

# %%
normalised, _ = lrn_forward(maps, 5, 5e-4, 0.75, 2.0)
ratio = (normalised / np.where(maps > 0, maps, 1))[maps > 0]
print(f"y / x: from {ratio.min():.4f} to {ratio.max():.4f}; k alone gives 2^−0.75 = {2**-0.75:.4f}")

# %% [markdown]
# With activations of the size of one, the neighbours change the result by two parts in a thousand, at most. The layer
# is a multiplication by 0.59, with a few digits of decoration. (AlexNet was fed with pixels on a scale of 255; with
# numbers of that size, the sum counts.) What does that cost? Times of a forward and a backward, beside those of the
# convolution before it:


# %% measured=true
from minivgg.layers import BatchNorm2d, LocalResponseNorm, MaxPool2d


def milliseconds(layer, x, repeat=2 if FAST else 6):
    dy = np.ones(layer.output_shape(x.shape), np.float32)
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        layer.forward(x, train=True)
        layer.backward(dy)
        times.append(1000 * (time.perf_counter() - began))
    return np.median(times[1:])


x = rng.standard_normal((4, 64, 56, 56)).astype(np.float32)
layers = [Conv2d(64, 64, 3, padding=1), LocalResponseNorm(5, 5e-4, k=2.0)]
for layer in (*layers, BatchNorm2d(64), ReLU(), MaxPool2d(2)):
    print(f"{layer!r:60} {milliseconds(layer, x):6.1f} ms, gives {layer.output_shape(x.shape)}")

# %% [markdown]
# And what does it give? The paper's experiment, small: A and A-LRN at an eighth of their width, trained on the same
# batches from the same weights. And, since we have a suspicion, a third network, which has in LRN's place that constant
# and nothing else.


# %%
from minivgg.layers import ChannelAffine
from minivgg.models.vgg import vgg
from minivgg.training.loop import Trainer, evaluate
from minivgg.training.optim import SGD
from minivgg.training.schedules import schedule

tests = Loader(test.subset(slice(0, 500 if FAST else 2000)), preprocessing, 250)


def learn(model, steps, rate, seed=0):
    batches = Loader(train, preprocessing, 64, shuffle=True, seed=seed)
    optimizer = SGD(model.named_params())
    trainer = Trainer(model, batches, tests, optimizer, schedule("constant", 9), rate, 9)
    losses = [trainer.step(*both)[0] for both in itertools.islice(batches.epoch(0), steps)]
    return losses, evaluate(model, tests).accuracy


steps, seeds = (10, 1) if FAST else (100, 4)
small = {"classes": 10, "channels": 1, "input_size": 32, "width": 1 / 8}
for name in ("A", "A-LRN", "A, constant"):
    found = []
    for seed in range(seeds):
        options = small | {"classifier_width": 64, "dropout": 0.0, "seed": seed}
        model = vgg("A" if name == "A" else "A-LRN", **options)
        if name == "A, constant":
            model.features[2] = ChannelAffine((2**-0.75,) * 8, (0.0,) * 8)
        found.append(learn(model, steps, 0.02, seed)[1])
    each = ", ".join(f"{accuracy:.1%}" for accuracy in found)
    print(f"{name:12} accuracy after {steps} steps: {each}; mean {np.mean(found):.1%}")

# %% [markdown]
# The means differ by a few points, and seeds of one and the same network by up to fifteen. So short a training cannot
# tell the three apart, and the paper's long one found 29.6 against 29.7. What is certain is the cost: a layer that
# takes about half the time of the convolution beside it, and one more map to keep. From B on it was gone, and nobody
# missed it.
#
# ## Batch norm
#
# The idea that stayed is blunter. Take a channel, all its values over the batch and over all pixels, $m$ of them.
# Subtract their mean, divide by their deviation. Then let the network choose mean and deviation itself, with two
# numbers $\gamma$ and $\beta$ a channel that are learnt:
#
# $$\mu = \tfrac1m\sum_i x_i, \qquad v = \tfrac1m\sum_i (x_i-\mu)^2, \qquad \hat x_i = \frac{x_i-\mu}{\sqrt{v +
# \varepsilon}}, \qquad y_i = \gamma\,\hat x_i + \beta$$
#
# Whatever the layer before does, too large or too small, what comes out has the same size. (The tiny $\varepsilon =
# 10^{-5}$ is for channels that are constant.)

# %%
channels = rng.standard_normal((3, 5000)) * [[0.3], [2.0], [5.0]] + [[4.0], [-3.0], [0.0]]
normalised = (channels - channels.mean(axis=1)[:, None]) / channels.std(axis=1)[:, None]
figure, panels = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
titles = "three channels", "the same, normalised"
for axes, values, title in zip(panels, (channels, normalised), titles, strict=True):
    axes.hist(values.T, np.linspace(-12, 12, 121), density=True, histtype="step", linewidth=1.8)
    axes.set(title=title, xlabel="value", ylim=(0, 1.5))
plt.show()

# %% [markdown]
# ### The way back, in full
#
# In all layers so far an $x_i$ touched its own few outputs. Here it touches *every* output of its channel, by three
# ways: directly, through the mean, and through the variance.
#
# ```text
#            ┌───────────────────────────┐
#     x_i ───┼──► μ ───────────┬─────────┼──► x̂_j ──► y_j     for all j
#            │    │            │         │
#            └────┴──► v ──────┴─────────┘
# ```
#
# Take them one by one. Write $\sigma = \sqrt{v + \varepsilon}$ and let $\langle\cdot\rangle$ be the mean over the
# channel's $m$ values.
#
# **1. To $\hat x$.** $y_i = \gamma\hat x_i + \beta$ is a linear layer of one number: $d\hat x_i = \gamma\,dy_i$, and
# $d\gamma = \sum_i dy_i\,\hat x_i$, $d\beta = \sum_i dy_i$.
#
# **2. The variance.** $v$ stands in every $\hat x_j = (x_j - \mu)(v+\varepsilon)^{-1/2}$. Differentiate the power, and
# find $\hat x_j$ again:
#
# $$dv = \sum_j d\hat x_j\,(x_j-\mu)\cdot\bigl(-\tfrac12\bigr)(v+\varepsilon)^{-3/2} = -\frac{1}{2\sigma^2}\sum_j d\hat
# x_j\,\hat x_j = -\frac{m}{2\sigma^2}\,\langle d\hat x\,\hat x\rangle$$
#
# **3. The mean.** $\mu$ stands in every $\hat x_j$ with slope $-1/\sigma$, and in $v$ with slope
# $-\frac2m\sum_j(x_j-\mu)$, which is zero: deviations from the mean cancel. So only the first counts:
#
# $$d\mu = -\frac1\sigma\sum_j d\hat x_j = -\frac m\sigma\,\langle d\hat x\rangle$$
#
# **4. Together.** $x_i$ has slope $1/\sigma$ in its own $\hat x_i$, $1/m$ in $\mu$, and $2(x_i-\mu)/m = 2\sigma\hat
# x_i/m$ in $v$:
#
# $$dx_i = \frac{d\hat x_i}{\sigma} + \frac{d\mu}{m} + \frac{2\sigma\hat x_i}{m}\,dv = \frac{\gamma}{\sigma}\Bigl(dy_i
# - \underbrace{\langle dy\rangle}_{\text{mean}} - \underbrace{\hat x_i\,\langle dy\,\hat x\rangle}_{\text{variance}}
# \Bigr)$$
#
# All the $m$'s have gone. Three terms, one for each way.

# %% [markdown]
# ### Exercise 06.2 · batch norm, both ways
#
# Write `batchnorm_forward(x, weight, bias)` for x $(N, C, H, W)$, weight ($\gamma$) and bias ($\beta$) $(C)$, with the
# batch's own statistics and $\varepsilon = 10^{-5}$, which gives `(y, cache)`; and `batchnorm_backward(dy, cache)`,
# which gives `(dx, dweight, dbias)`.
#
# <details><summary>Hint: over what?</summary>
#
# A channel's values are those of all samples and all pixels: `axis=(0, 2, 3)`. With `keepdims=True` the result meets x
# again; a vector of $C$ does so as `weight[:, None, None]`.
#
# </details>
# <details><summary>Hint: which variance?</summary>
#
# `x.var()` divides by $m$, as the formula does. Statisticians divide by $m - 1$ to judge a population by a sample; here
# nobody is judging.
#
# </details>
# <details><summary>Hint: what to keep</summary>
#
# Backward needs $\hat x$, $1/\sigma$ and $\gamma$. Two of its three answers are the two sums in the third.
#
# </details>


# %% exercise="06.2"
def batchnorm_forward(x, weight, bias):
    ### BEGIN SOLUTION
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    istd = 1 / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    xhat = (x - mean) * istd
    return weight[:, None, None] * xhat + bias[:, None, None], (xhat, istd, weight)
    ### END SOLUTION


def batchnorm_backward(dy, cache):
    ### BEGIN SOLUTION
    xhat, istd, weight = cache
    dbias = dy.sum(axis=(0, 2, 3))
    dweight = (dy * xhat).sum(axis=(0, 2, 3))
    m = dy.size // len(weight)
    through_mean, through_variance = dbias[:, None, None] / m, xhat * dweight[:, None, None] / m
    return weight[:, None, None] * istd * (dy - through_mean - through_variance), dweight, dbias
    ### END SOLUTION


# %%
check_exercise("06.2", batchnorm_forward, batchnorm_backward)

# %% [markdown]
# ### What the two terms are for
#
# Add the same number to all of a channel: $y$ does not change. Stretch it about its mean: $y$ does not change either. A
# gradient that asked for one of these would ask for nothing, so it must have no part in their directions. The two terms
# take away exactly that part:

# %%
x, dy = rng.standard_normal((8, 3, 4, 4)), rng.standard_normal((8, 3, 4, 4))
weight, bias = rng.standard_normal((2, 3))
y, cache = batchnorm_forward(x, weight, bias)
dx, _, _ = batchnorm_backward(dy, cache)
for name, direction in (("all up", np.ones_like(x)), ("stretched", cache[0])):
    before, after = ((a * direction).sum(axis=(0, 2, 3)) for a in (dy, dx))
    parts = np.array2string(after, formatter={"float": "{:+.0e}".format})
    print(f"{name:10} dy has {before.round(3)}, dx {parts}")
longer = batchnorm_forward(100 * x + 7, weight, bias)[0]
print(f"y of 100·x + 7 differs from y of x by at most {np.abs(longer - y).max():.0e}")

# %% [markdown]
# The second is not quite zero: by $\varepsilon$, $\langle\hat x^2\rangle = v/(v + \varepsilon)$ is not quite one.
#
# Forget one of the terms, and nothing complains: shapes fit, numbers look like gradients. The gradient check says which
# it is:


# %%
def forgetting(mean=1.0, variance=1.0, over=None):
    def backward(dy, cache):
        xhat, istd, weight = cache
        m = over or dy.size // len(weight)
        dbias, dweight = dy.sum(axis=(0, 2, 3)), (dy * xhat).sum(axis=(0, 2, 3))
        rest = dy - mean * dbias[:, None, None] / m - variance * xhat * dweight[:, None, None] / m
        return weight[:, None, None] * istd * rest, dweight, dbias

    return backward


wrong = {
    "no term for the mean": forgetting(mean=0),
    "no term for the variance": forgetting(variance=0),
    "neither: statistics as constants": forgetting(mean=0, variance=0),
    "sums divided by m − 1": forgetting(over=x.size // 3 - 1),
}
for name, backward in wrong.items():
    report = check((batchnorm_forward, backward), x, weight, bias)
    print(f"{name}\n   → {' '.join(report.diagnosis)}")


# %% [markdown]
# ### The trap of N − 1
#
# The opposite slip is to divide by $m - 1$ in *forward* and derive backward for $m$. It is a small mistake in a large
# batch, a large one in a small batch, and it comes in with an innocent default: PyTorch's `x.var()` divides by $m - 1$,
# NumPy's by $m$.


# %%
def statistician(x, weight, bias):
    istd = 1 / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True, ddof=1) + 1e-5)
    xhat = (x - x.mean(axis=(0, 2, 3), keepdims=True)) * istd
    return weight[:, None, None] * xhat + bias[:, None, None], (xhat, istd, weight)


for N in (4, 16, 128):
    some = rng.standard_normal((N, 3, 1, 1))
    report = check((statistician, batchnorm_backward), some, weight, bias)
    print(f"m = {N:3}: {' '.join(report.diagnosis)}")

# %% [markdown]
# At test time there is no batch to speak of, perhaps a single picture. So training keeps running averages of mean and
# variance, and the test uses them as constants. *There* $m - 1$ is right, since they estimate what all pictures would
# have; the library does both. And the constants are why both terms of backward vanish at test time.

# %%
from minivgg.ops import batchnorm

print(inspect.getsource(batchnorm.batchnorm_forward))
print(inspect.getsource(batchnorm.batchnorm_backward))
print(inspect.getsource(batchnorm.running_average))

# %% [markdown]
# Same three terms. What is more: mean and variance are summed in float64, block by block (a sum of a million float32
# values loses digits), and all the rest is one pass over memory.
#
# ## Both in a network
#
# Shells around your pairs. The norm takes over the library's in training only: at test time, with constants, there is
# nothing to derive.

# %%
from minivgg.layers import Flatten, Layer, Linear
from minivgg.testing import check_layer


class MyMaxPool(Layer):
    def output_shape(self, shape):
        return *shape[:2], shape[2] // 2, shape[3] // 2

    def _forward(self, x, train):
        return maxpool_forward(x, 2, 2)

    def _backward(self, dy, cache, need_dx):
        return maxpool_backward(dy, cache)


class MyBatchNorm(BatchNorm2d):
    def _forward(self, x, train):
        if not train:
            return super()._forward(x, train)
        m = x.size // x.shape[1]
        self.running_mean += 0.1 * (x.mean(axis=(0, 2, 3)) - self.running_mean)
        self.running_var += 0.1 * (x.var(axis=(0, 2, 3)) * m / (m - 1) - self.running_var)
        return batchnorm_forward(x, self.weight.data, self.bias.data)

    def _backward(self, dy, cache, need_dx):
        if isinstance(cache, batchnorm.BatchNormCache):
            return super()._backward(dy, cache, need_dx)
        dx, dweight, dbias = batchnorm_backward(dy, cache)
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx


polite = ["a foreign dy is refused"]
for layer, shape in ((MyMaxPool(), (2, 3, 6, 4)), (MyBatchNorm(3), (4, 3, 3, 2))):
    report = check_layer(layer, shape, without=polite, raise_on_failure=False)
    print(report.text(failures_only=True))


# %% [markdown]
# A small network, once with your layers and once with the library's, on the same batches:


# %%
def network(pool, norm):
    layers, channels = [], 1
    for filters in (8, 16, 32):
        layers += [
            Conv2d(channels, filters, 3, padding=1),
            *([norm(filters)] if norm else []),
            ReLU(),
            pool(),
        ]
        channels = filters
    return initialise(Sequential(*layers, Flatten(), Linear(32 * 16, 10)), "he", seed=1)


steps = 5 if FAST else 20
yours, _ = learn(network(MyMaxPool, MyBatchNorm), steps, 0.05)
ours, _ = learn(network(lambda: MaxPool2d(2), BatchNorm2d), steps, 0.05)
print(f"losses of yours: {np.round(yours[:3], 5)} … {yours[-1]:.4f}")
print(f"of the library:  {np.round(ours[:3], 5)} … {ours[-1]:.4f}")

# %% [markdown]
# The same but for the last digits: sums are taken in another order, and training makes the difference grow.
#
# ### What batch norm gives
#
# Not a better network so much as an easier one: it forgives learning rates. The same small network, with and without,
# at rates from 0.001 to 10:

# %%
from minivgg.training.loop import Diverged

rates = (1e-2, 1.0) if FAST else (1e-3, 1e-2, 1e-1, 1.0, 10.0)
steps = 10 if FAST else 40
found = {"with batch norm": [], "without": []}
for rate in rates:
    for name, norm in (("with batch norm", BatchNorm2d), ("without", None)):
        try:
            found[name].append(learn(network(lambda: MaxPool2d(2), norm), steps, rate)[1])
        except Diverged:
            found[name].append(np.nan)
figure, axes = plt.subplots(figsize=(6.5, 3.2))
for (name, accuracies), colour, mark in zip(
    found.items(), (pictures.BLUE, pictures.ORANGE), "os", strict=True
):
    axes.plot(rates, accuracies, f"{mark}-", color=colour, label=name)
    print(
        f"{name:16} {'  '.join(f'{rate:g}: {a:.1%}' for rate, a in zip(rates, accuracies, strict=True))}"
    )
axes.axhline(0.1, color=pictures.GREY, linestyle=":", label="guessing")
axes.set(xscale="log", xlabel="learning rate", ylabel=f"accuracy after {steps} steps", ylim=(0, 1))
axes.legend()
plt.show()

# %% [markdown]
# A step ten times too long ends the one training and slows the other; a hundred times is too much for both, in
# so few steps. (`nan` means that the loss stopped being a number.) VGG itself came out a few months before batch norm,
# and was trained without; how that could go well at all is the question of notebook 08.
#
# ## What you have now
#
# - Max-pooling's gradient goes to the winner, one winner each, and overlapping windows add up.
# - Averages share alike; adaptive windows cover everything.
# - LRN costs time, and gives nothing that we, or the paper, could measure.
# - Batch norm's backward takes away what the mean and the variance would have undone. Three terms; a check that is
#   worth having names the one you forgot.
#
# You now own every layer of VGG. Next, [we put them together](07_vgg.ipynb), and ask why in that way.
