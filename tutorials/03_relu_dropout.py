# %% [markdown]
# # 03 · Two masks
#
# Two layers have no weights at all, cost next to nothing, and change what a network can do. One throws away what is
# negative. The other throws away half of everything, by lot.
#
# **Why would a network get better by throwing things away? And what does the way back need to remember of it?**
#
# About 40 minutes, two exercises.

# %%
import inspect
import os

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import minivgg as mv
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures
from minivgg.models.initializers import initialise
from minivgg.training.datasets import load
from minivgg.training.optim import SGD

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## Without a bend, depth is nothing
#
# Two linear layers in a row are $x\,A^\top B^\top = x\,(BA)^\top$: one linear layer, with a product for a weight. A
# hundred of them are one, too. Something must bend between them. The simplest bend is
#
# $$\mathrm{relu}(x) = \max(x, 0)$$
#
# A sum of such bends is a line with as many corners as there are units (below, the first one is at the left edge), and
# can follow any curve:

# %%
x = np.linspace(-3, 3, 400)
target = np.sin(2 * x) + 0.3 * x
figure, panels = plt.subplots(1, 4, figsize=(11, 2.6), sharey=True)
for axes, units in zip(panels, (1, 4, 8, 30), strict=True):
    corners = np.linspace(-3, 3, units, endpoint=False)
    bends = np.maximum(x[:, None] - corners, 0)
    design = np.column_stack([np.ones_like(x), bends])
    fit = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    axes.plot(x, target, color="#BBBBBB", linewidth=4)
    axes.plot(x, fit, color=pictures.BLUE)
    axes.set_title(
        f"{units} unit{'s' * (units > 1)}, error {np.std(fit - target):.3f}", fontsize=10
    )
plt.show()

# %% [markdown]
# ## The way back: a mask
#
# The slope of relu is 1 where $x > 0$ and 0 where $x < 0$. At $x = 0$ it has none; there we say 0, as everybody does,
# and so do the library and the checker. The chain rule is then a gate:
#
# $$dx = dy \odot [x > 0]$$
#
# What must be remembered is one bit for each element. The sign of $y$ has it too: $y > 0$ exactly where $x > 0$. Since
# the *next* layer keeps $y$ anyway, as its own input, remembering costs nothing at all.

# %% [markdown]
# ### Exercise 03.1 · ReLU, both ways
#
# Write `relu_forward(x)`, which gives `(y, cache)`, and `relu_backward(dy, cache)`, which gives dx. Any shape.
#
# <details><summary>Hint: in place?</summary>
#
# `x[x < 0] = 0` is fast, and it destroys the input of whoever else holds it, a skip connection for example. The same
# for `dy *= mask`. Make new arrays.
#
# </details>
# <details><summary>Hint: dtypes</summary>
#
# `dy * (y > 0)` keeps dy's dtype. `np.where(y > 0, dy, 0.0)` does so, too, in NumPy 2.
#
# </details>


# %% exercise="03.1"
def relu_forward(x):
    ### BEGIN SOLUTION
    y = np.maximum(x, 0)
    return y, y
    ### END SOLUTION


def relu_backward(dy, cache):
    ### BEGIN SOLUTION
    return dy * (cache > 0)
    ### END SOLUTION


# %%
check_exercise("03.1", relu_forward, relu_backward)

# %% [markdown]
# As a picture: what goes forward, the mask, and what comes back. Red is positive.

# %%
x, dy = np.round(rng.standard_normal((2, 5, 6)), 1)
y, cache = relu_forward(x)
figure, panels = plt.subplots(1, 4, figsize=(11, 2.6))
for axes, values, title in zip(
    panels, (x, y, dy, relu_backward(dy, cache)), ("x", "y = relu(x)", "dy", "dx"), strict=True
):
    drawing.matrix(axes, values, title, span=2)
plt.show()

# %%
from minivgg.ops import relu

print(inspect.getsource(relu))

# %% [markdown]
# The library says the same in a compiled loop (`twin` names its twin in CUDA C, for a GPU), and one thing with care: `0
# if x <= 0 else x` lets a NaN pass, where `x if x > 0 else 0` would quietly turn it into a zero, and hide the moment
# when a training run went wrong.
#
# ## Dead units
#
# A gate that is closed for *every* picture passes no gradient, so its weights never change, so it stays closed. Such a
# unit is dead. One large step can do it. Train a small network at three learning rates, and count.


# %%
train, test = load("fashion-mnist-mini")


def as_input(images):
    return (images.reshape(len(images), -1) / 128 - 1).astype(np.float32)


def trained(layers, rate, some, epochs, seed=0):
    model = initialise(mv.Sequential(*layers), "he", seed=seed)
    optimizer, order = SGD(model.named_params(), momentum=0.9), np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in order.permutation(some).reshape(-1, 50):
            scores = model.forward(as_input(train.images[batch]), train=True)
            _, cache = mv.softmax_cross_entropy_forward(scores, train.labels[batch])
            model.zero_grad()
            model.backward(mv.softmax_cross_entropy_backward(1, cache), need_dx=False)
            optimizer.step(rate)
    return model


def accuracy(model, dataset):
    return np.mean(model.forward(as_input(dataset.images)).argmax(axis=1) == dataset.labels)


rates, ever = (0.003, 0.03, 0.1), []
for rate in rates:
    model = trained(
        [mv.Linear(784, 100), mv.ReLU(), mv.Linear(100, 10)], rate, 2000, 2 if FAST else 5
    )
    hidden = model[1].forward(model[0].forward(as_input(test.images)))
    ever.append(np.mean(hidden > 0, axis=0))
    print(
        f"rate {rate:<6g} {np.mean(ever[-1] == 0):4.0%} of 100 units dead, "
        f"accuracy {accuracy(model, test):.1%}"
    )

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.5), sharey=True)
for axes, rate, share in zip(panels, rates, ever, strict=True):
    axes.hist(share, bins=np.linspace(0, 1, 21), color=pictures.BLUE)
    axes.set(title=f"learning rate {rate:g}", xlabel="share of pictures that open it")
panels[0].set_ylabel("units")
plt.show()

# %% [markdown]
# The tall bar of the last picture is the graveyard, with those that hardly ever open. A warm-up of the learning rate, a
# start that is scaled to the layer's width, and batch norm (which pulls every unit back to where half of the pictures
# open it) are the usual remedies.
#
# ## The other mask: dropout
#
# Ten thousand pictures, a hundred thousand weights: a network can learn its training set by heart. *Dropout* makes
# that hard: at each step every unit is thrown away with probability $p$, so that no unit can rely on another one being
# there.
#
# At test time all units are there. Then a sum over them is larger than in training, $1/(1-p)$ times as large.
# *Inverted* dropout corrects that in training, once and for all, so that at test time there is nothing to do:
#
# $$y_i = \begin{cases} x_i/(1-p) & \text{with probability } 1 - p\\ 0 & \text{else}\end{cases}
# \qquad\qquad \mathbb{E}[y_i] = (1-p)\cdot\frac{x_i}{1-p} = x_i$$
#
# For the way back the lot has been drawn: dropout is then a multiplication by a fixed mask of $0$ and $1/(1-p)$, and
# backward is the *same* multiplication. The same: a fresh mask would send the gradient to units that took no part.

# %% [markdown]
# ### Exercise 03.2 · inverted dropout, both ways
#
# Write `dropout_forward(x, p, seed)`, which gives `(y, cache)`, and `dropout_backward(dy, cache)`. The same seed must
# give the same mask, in every run: draw from `np.random.default_rng(seed)`.
#
# <details><summary>Hint: who survives</summary>
#
# `rng.random(x.shape) >= p` is true with probability $1 - p$.
#
# </details>
# <details><summary>Hint: dtypes</summary>
#
# A float32 array divided by a Python float stays float32; by a NumPy float64 it does not.
#
# </details>


# %% exercise="03.2"
def dropout_forward(x, p, seed):
    ### BEGIN SOLUTION
    keep = np.random.default_rng(seed).random(x.shape) >= p
    return x * keep / (1 - p), (keep, p)
    ### END SOLUTION


def dropout_backward(dy, cache):
    ### BEGIN SOLUTION
    keep, p = cache
    return dy * keep / (1 - p)
    ### END SOLUTION


# %%
check_exercise("03.2", dropout_forward, dropout_backward)

# %% [markdown]
# The mean stays; the spread does not. That is the price: noise, on purpose.

# %%
ones = np.ones(100_000)
for p in (0.1, 0.5, 0.9):
    y, _ = dropout_forward(ones, p, seed=1)
    print(
        f"p = {p}: mean {y.mean():.3f}, standard deviation {y.std():.3f}, "
        f"√(p / (1 − p)) = {np.sqrt(p / (1 - p)):.3f}"
    )

# %% [markdown]
# ## A mask that is never stored
#
# Your cache holds a mask as large as $x$. The library's holds next to nothing:

# %%
from minivgg.ops import dropout

x = rng.standard_normal((64, 4096), dtype=np.float32)
_, mine = dropout_forward(x, 0.5, seed=1)
_, theirs = dropout.dropout_forward(x, 0.5, seed=1, call=0)
print(f"mine: {mine[0].nbytes:,} bytes\nthe library's: {theirs}")

# %% [markdown]
# How can backward know who was dropped, if nobody wrote it down? By drawing again. A usual generator has a state, and
# gives whatever comes next. A *counter-based* one (Philox, of 2011) is a function: (seed, call, which element) → a
# random number. Ask it the same question twice, in any order, on any thread or on a GPU, and it gives the same answer.
# It is a cipher, in fact, that scrambles the counter in ten rounds of multiplying and mixing:

# %%
print(inspect.getsource(dropout._round.py_func))
print(inspect.getsource(dropout.philox.py_func))

# %% [markdown]
# Is a scrambled counter random enough? Feed it 0, 1, 2, …, after one round, two, and all ten, and look. Each point is
# one number (the four words that belong to a counter, added up) against the next.

# %%
counters = 2000 if FAST else 20000
figure, panels = plt.subplots(1, 3, figsize=(10, 3.3))
zero, seed_word = np.uint64(0), np.uint64(7)
for axes, title, scramble in (
    (panels[0], "one round", lambda c: dropout._round(c, zero, zero, zero, seed_word, zero)),
    (
        panels[1],
        "two rounds",
        lambda c: dropout._round(
            *dropout._round(c, zero, zero, zero, seed_word, zero), seed_word, zero
        ),
    ),
    (panels[2], "ten rounds", lambda c: dropout.philox(c, zero, zero, zero, seed_word, zero)),
):
    words = (
        np.array([sum(map(int, scramble(np.uint64(c)))) % 2**32 for c in range(counters)]) / 2**32
    )
    axes.plot(words[:-1], words[1:], ",", color=pictures.BLUE)
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
plt.show()

# %% [markdown]
# ## Does it help?
#
# A large network, few pictures: 300 of them, many times over. Both networks learn those by heart, or nearly. What do
# they make of pictures that they have not seen?


# %%
def layers(p):
    hidden = [mv.Linear(784, 256), mv.ReLU(), mv.Dropout(p), mv.Linear(256, 256), mv.ReLU()]
    return [*hidden, mv.Dropout(p), mv.Linear(256, 10)]


epochs, seeds = (10, 1) if FAST else (150, 3)
seen = train.subset(slice(300))
for p in (0.0, 0.5):
    models = [trained(layers(p), 0.01, 300, epochs, seed) for seed in range(seeds)]
    known, new = ([accuracy(model, some) for model in models] for some in (seen, test))
    each = ", ".join(f"{a:.1%}" for a in new)
    print(
        f"p = {p}: {np.mean(known):.1%} of what it has seen, {np.mean(new):.1%} of others ({each})"
    )

# %% [markdown]
# A little, and no more than one seed differs from another: it is no miracle. It was made for networks with more weights
# to learn by heart with.

# %%
vgg = mv.build("vgg16", init="zeros")
sizes = {name: p.data.size for name, p in vgg.named_params().items()}
linear = sum(size for name, size in sizes.items() if name.startswith("classifier"))
print(
    f"{linear / sum(sizes.values()):.0%} of VGG-16's {sum(sizes.values()):,} weights are in linear layers"
)

# %% [markdown]
# Between those, VGG has dropout with $p = 0.5$. Its convolutions have none: few weights, used everywhere, are hard to
# learn a picture by heart with. And since batch norm came, dropout has become rarer.
#
# ## What you have now
#
# - A bend, without which depth is nothing; its way back is a gate, $y > 0$.
# - Dead units: closed for all, for ever. Count them.
# - Inverted dropout: scale in training, do nothing at test time; the same mask back.
# - A random number that is a function of its place can be asked for again, and need not be stored.
#
# Next: the layer that this course is about, [convolution](04_convolution.ipynb).
