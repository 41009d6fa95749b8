# %% [markdown]
# # 01 · Scores, a loss, and which way to move
#
# A network looks at a picture and answers with ten numbers, one for each kind of garment. It is wrong.
#
# **How wrong, as a single number? And which way should each of its thousands of weights move, so that it is less wrong
# next time?**
#
# Everything later in this course, nineteen layers deep, is these two questions asked again. Here we answer them for
# the smallest network there is: one layer. About 45 minutes, three exercises.

# %%
import inspect
import os

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from minivgg.exercises import check_exercise
from minivgg.gradcheck import check
from minivgg.insight import pictures
from minivgg.training.datasets import load

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## The pictures
#
# Twelve thousand photographs of clothes come with minivgg (a part of Fashion-MNIST). Each has 28×28 grey pixels and
# one of ten labels.

# %%
train, test = load("fashion-mnist-mini")
print(f"training {train.images.shape}, test {test.images.shape}, {train.images.dtype}")

# %%
figure, grid = plt.subplots(2, 10, figsize=(10, 2.5))
for k, name in enumerate(train.classes):
    for axes, image in zip(grid[:, k], train.images[train.labels == k], strict=False):
        axes.imshow(image.squeeze(), cmap="gray_r")
        axes.axis("off")
    grid[0, k].set_title(name, fontsize=9)
plt.show()

# %% [markdown]
# For a network, a picture is a row of numbers. We flatten each one to $F = 28\cdot28 = 784$ features and bring them to
# about the size of one, around zero: a matrix $x$ of shape $(N, F)$, one row a picture.


# %%
def features(dataset):
    pixels = dataset.images.reshape(len(dataset), -1) / 255
    return ((pixels - 0.3) / 0.35).astype(np.float32)


x_train, x_test = features(train), features(test)
print(
    f"x {x_train.shape} {x_train.dtype}, mean {x_train.mean():+.2f}, standard deviation {x_train.std():.2f}"
)

# %% [markdown]
# ## A score is a dot product
#
# Give each class $o$ a row of weights $w_o$, as long as a picture, and a number $b_o$. The class's *score* is how well
# the picture matches its row:
#
# $$y_{no} = \sum_f x_{nf}\,w_{of} + b_o \qquad\text{or, all at once,}\qquad y = x\,w^\top + b$$
#
# with $x\,(N, F)$, $w\,(O, F)$, $b\,(O)$ and $y\,(N, O)$. The row is a template: where it is positive, bright pixels
# speak for the class, where it is negative they speak against it. Let us see that the matrix product is nothing but
# these dot products.

# %%
w, b = rng.standard_normal((10, 784)) * 0.01, rng.standard_normal(10)
n, o = 3, 7
by_hand = b[o]
for f in range(784):
    by_hand += x_train[n, f] * w[o, f]
y = x_train[:5] @ w.T + b
print(
    f"784 products, added up: {by_hand:.12f}\nthe matrix product:     {y[n, o]:.12f}, one of {y.shape}"
)

# %% [markdown]
# ## The way back
#
# Suppose somebody, later in the network, turns $y$ into a single number: the loss $L$. And suppose they hand us
# $dy_{no} = \partial L/\partial y_{no}$: how much the loss grows for each bit that $y_{no}$ grows. We owe three
# answers: $dx$, $dw$ and $db$. The chain rule adds up, over every output that a number touches, what that output
# passes back:
#
# | a number | touches | through the factor | and so its gradient is |
# |---|---|---|---|
# | $w_{of}$ | $y_{no}$ for every sample $n$ | $x_{nf}$ | $dw_{of} = \sum_n dy_{no}\,x_{nf}$ |
# | $x_{nf}$ | $y_{no}$ for every output $o$ | $w_{of}$ | $dx_{nf} = \sum_o dy_{no}\,w_{of}$ |
# | $b_o$ | $y_{no}$ for every sample $n$ | $1$ | $db_o = \sum_n dy_{no}$ |
#
# Read a row slowly, once. Whatever stands in the sum and not on the left is what is summed over; a product of two
# matrices does exactly that to the index they share. Shapes then leave only one way to write it.

# %% [markdown]
# ### Exercise 01.1 · the linear layer, both ways
#
# Write `linear_forward(x, w, b)`, which gives `(y, cache)`, and `linear_backward(dy, cache)`, which gives `(dx, dw,
# db)`. The cache is whatever your backward needs; nobody else looks into it.
#
# <details><summary>Hint: which product?</summary>
#
# Write the shapes under the letters. $dw\,(O, F)$ from $dy\,(N, O)$ and $x\,(N, F)$: the index that has to go is $N$,
# so it must be in the middle, $(O, N)\cdot(N, F)$. Which factor has to be transposed?
#
# </details>
# <details><summary>Hint: the bias</summary>
#
# One number of $b$ was added to all rows of $y$. NumPy copied it there without a word (broadcasting). The way back
# from copying is adding up.
#
# </details>


# %% exercise="01.1"
def linear_forward(x, w, b):
    ### BEGIN SOLUTION
    return x @ w.T + b, (x, w)
    ### END SOLUTION


def linear_backward(dy, cache):
    ### BEGIN SOLUTION
    x, w = cache
    return dy @ w, dy.T @ x, dy.sum(axis=0)
    ### END SOLUTION


# %%
check_exercise("01.1", linear_forward, linear_backward)

# %% [markdown]
# That answer did not come from comparing with a stored solution. Your backward was held to the *slope of your own
# forward*: change an input a little, look how much the output changes, and compare with what backward said. How that
# is done so that nothing slips through is the next notebook. Here is what it says of a layer whose author averaged
# where a sum is due:


# %%
def averaged(dy, cache):
    dx, dw, db = linear_backward(dy, cache)
    return dx, dw / len(dy), db


check(
    (linear_forward, averaged),
    rng.standard_normal((7, 5)),
    rng.standard_normal((6, 5)),
    rng.standard_normal(6),
)

# %% [markdown]
# The row that is wrong, the ratio, and a sentence on what kind of wrong. Seven samples, seven times too small.
#
# Now read how the library does it. What else does it care about?

# %%
from minivgg.ops import linear

print(inspect.getsource(linear))

# %% [markdown]
# The same two lines of mathematics. The rest is manners: errors that give both shapes, a first layer that does not
# compute a $dx$ nobody wants, and `gemm`, a matrix product that notebook 10 is about.

# %% [markdown]
# ## From scores to probabilities
#
# A score can be any number. To say how wrong they are, together, we first make them comparable: positive, and summing
# to one. *Softmax* does so by the exponential:
#
# $$p_{nk} = \frac{e^{s_{nk}}}{\sum_j e^{s_{nj}}}$$

# %%
scores = np.array([2.0, 1.0, 0.2, -1.0])
figure, panels = plt.subplots(1, 4, figsize=(10, 2.4), sharey=True)
for axes, factor in zip(panels, (0, 1, 3, 10), strict=True):
    p = np.exp(factor * scores) / np.exp(factor * scores).sum()
    axes.bar(["a", "b", "c", "d"], p, color=pictures.BLUE)
    axes.set_title(f"scores × {factor}", fontsize=11)
    for k, value in enumerate(p):
        axes.text(k, value + 0.02, f"{value:.2f}", ha="center", fontsize=9)
panels[0].set(ylabel="probability", ylim=(0, 1.15))
plt.show()

# %% [markdown]
# Only *differences* of scores matter: add 5 to all of them, and top and bottom both gain a factor $e^5$, which
# cancels. And the larger the differences, the surer the answer, from "no idea" on the left to "certainly a".
#
# That freedom is worth having, because exponentials are dangerous company:

# %%
for s in (700.0, 710.0):
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(np.array([s, s]))
        print(f"scores {s:g}, {s:g}: exponentials {e}, probabilities {e / e.sum()}")

# %% [markdown]
# ### Exercise 01.2 · softmax, without overflow
#
# Write `softmax_forward(x)`: scores $(N, K)$ to probabilities $(N, K)$. Two scores of 800 are as good as two scores of
# 0, and must give one half each.
#
# <details><summary>Hint: which number to take away</summary>
#
# Take the same number from all scores of a row; the result is the same by mathematics. If it is the row's largest, the
# largest exponent is 0, and the sum is at least 1: nothing can overflow, and nothing is divided by zero.
#
# </details>
# <details><summary>Hint: shapes</summary>
#
# `x.max(axis=1)` has shape $(N)$, and $(N, K) - (N)$ does not do what you want. `keepdims=True` makes it $(N, 1)$.
#
# </details>


# %% exercise="01.2"
def softmax_forward(x):
    ### BEGIN SOLUTION
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
    ### END SOLUTION


# %%
check_exercise("01.2", softmax_forward)

# %% [markdown]
# ## One number for how wrong
#
# The network gave the true class a probability $p$. A fair price for that is $-\log p$: nothing if it was certain,
# more the less it believed in the truth, and without limit if it was certain of something else. The loss is the mean
# price over the batch, the *cross-entropy*:
#
# $$L = -\frac1N\sum_n \log p_{n,\,\mathrm{label}_n}$$

# %%
p = np.linspace(0.002, 1, 500)
figure, axes = plt.subplots(figsize=(6.5, 3.2))
axes.plot(p, -np.log(p), color=pictures.BLUE, linewidth=2)
for value, word in (
    (1.0, "certain, and right"),
    (0.5, "a coin"),
    (0.1, "one in ten"),
    (0.01, "surprised"),
):
    axes.plot(value, -np.log(value), "o", color=pictures.RED)
    axes.annotate(
        f"{word}: {np.log(1 / value):.2f}",
        (value, -np.log(value)),
        (4, 8),
        textcoords="offset points",
    )
axes.set(
    xlabel="probability given to the truth",
    ylabel="price: −log p",
    xlim=(0, 1.35),
    ylim=(-0.2, 5.6),
)
plt.show()

# %% [markdown]
# ### Why every training log begins with the same number
#
# Before it has learnt anything, a network that starts with small weights gives all $K$ classes about the same score.
# Then each gets $p = 1/K$, and whatever the label, the price is $-\log(1/K) = \log K$. A first loss that is far from
# it says that something is wrong before training has begun: the weights are too large, or the inputs are.


# %%
def first_loss(spread):
    w = rng.standard_normal((10, 784)) * spread
    p = softmax_forward(x_train @ w.T)
    return -np.log(np.maximum(p[np.arange(len(p)), train.labels], 1e-300)).mean()


spreads = 10.0 ** np.arange(-4, 1)
losses = [first_loss(spread) for spread in spreads]
print(f"{np.log(10):.4f} for ten classes, {np.log(1000):.4f} for ImageNet's thousand\n")
for spread, loss in zip(spreads, losses, strict=True):
    print(f"weights of size {spread:<7g} first loss {loss:8.4f}")

# %% [markdown]
# Large random weights are not merely ignorant, they are *sure* of nonsense, and pay for it.
#
# ## The gradient, and a small miracle
#
# How does the loss change with a score $s_{nk}$? Take one sample, with label $t$:
#
# $$L = -\log\frac{e^{s_t}}{\sum_j e^{s_j}} = -s_t + \log\sum_j e^{s_j}$$
#
# The first term has slope $-1$ in $s_t$ and none in the other scores. The second has slope $e^{s_k}/\sum_j e^{s_j} =
# p_k$ in each $s_k$. Together:
#
# $$\frac{\partial L}{\partial s_k} = p_k - [k = t] \qquad\text{and for the mean over a batch}\qquad
# ds_{nk} = \frac{1}{N}\,\bigl(p_{nk} - [k = t_n]\bigr)$$
#
# What was believed, less what was true. No exponential left, no logarithm, and it can never be larger than $1/N$.

# %% [markdown]
# ### Exercise 01.3 · cross-entropy, both ways
#
# Write `cross_entropy_forward(scores, labels)`, which gives `(loss, cache)`, and `cross_entropy_backward(dloss,
# cache)`, which gives the gradient of the scores. `labels` are integers $(N)$. `dloss` is what the loss's own gradient
# is multiplied by: 1 when the loss is the end of the network, something else when it is one term of several.
#
# <details><summary>Hint: picking out the true class</summary>
#
# `p[np.arange(N), labels]` takes from row 0 the element `labels[0]`, from row 1 the element `labels[1]`, and so on.
# You can also subtract from such places, but subtract from a copy: the cache may be needed again.
#
# </details>
# <details><summary>Hint: the logarithm of zero</summary>
#
# A hopeless class can have a probability that is rounded to 0. From the formula above,
# $-\log p_t = \log\sum_j e^{s_j} - s_t$, after the row's largest score has been taken from all.
#
# </details>


# %% exercise="01.3"
def cross_entropy_forward(scores, labels):
    ### BEGIN SOLUTION
    shifted = scores - scores.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1)
    prices = np.log(totals) - shifted[np.arange(len(labels)), labels]
    return prices.mean(), (np.exp(shifted) / totals[:, None], labels)
    ### END SOLUTION


def cross_entropy_backward(dloss, cache):
    ### BEGIN SOLUTION
    p, labels = cache
    dscores = p.copy()
    dscores[np.arange(len(labels)), labels] -= 1
    return dscores * p.dtype.type(dloss / len(labels))
    ### END SOLUTION


# %%
check_exercise("01.3", cross_entropy_forward, cross_entropy_backward)

# %%
from minivgg.ops.softmax_cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)

print(inspect.getsource(softmax_cross_entropy_forward))
print(inspect.getsource(softmax_cross_entropy_backward))

# %% [markdown]
# Ours compares with a whole distribution of targets, so that some of the probability may be spread over all classes
# (label smoothing, which some of VGG's descendants train with). With none of it, the line at the end is yours.
#
# ## Downhill
#
# You have the slope of the loss in every weight. *Gradient descent* takes a small step against it, again and again,
# each time on a handful of pictures:
#
# $$w \leftarrow w - \eta\,dw, \qquad b \leftarrow b - \eta\,db$$
#
# This is a complete learning machine, and every line of it is yours:

# %%
w, b = np.zeros((10, 784), np.float32), np.zeros(10, np.float32)
epochs, rate, batch = (2 if FAST else 10), np.float32(0.02), 50
history = []
for _ in range(epochs):
    order = rng.permutation(len(train))
    for some in order.reshape(-1, batch):
        scores, linear_cache = linear_forward(x_train[some], w, b)
        loss, loss_cache = cross_entropy_forward(scores, train.labels[some])
        _, dw, db = linear_backward(cross_entropy_backward(np.float32(1), loss_cache), linear_cache)
        w -= rate * dw
        b -= rate * db
        history.append(loss)
linear_accuracy = np.mean((x_test @ w.T + b).argmax(axis=1) == test.labels)
print(
    f"first loss {history[0]:.4f} (log 10 = {np.log(10):.4f}), last {np.mean(history[-200:]):.4f}"
)
print(f"test accuracy {linear_accuracy:.1%}, by guessing 10%")

# %%
figure, axes = plt.subplots(figsize=(7, 3))
axes.plot(history, color="#BBBBBB", linewidth=0.7, label="each batch")
smooth = np.convolve(history, np.ones(100) / 100, "valid")
axes.plot(
    np.arange(len(smooth)) + 50, smooth, color=pictures.BLUE, linewidth=2, label="mean of 100"
)
axes.axhline(np.log(10), color=pictures.RED, linestyle="--", label="log 10: no idea")
axes.set(xlabel="step", ylabel="loss", ylim=(0, 2.5))
axes.legend()
plt.show()

# %% [markdown]
# ### What has it learnt?
#
# A row of $w$ has as many numbers as a picture, so it can be looked at as one. Red speaks for the class, blue against.

# %%
figure, grid = plt.subplots(1, 10, figsize=(10, 1.6))
span = np.abs(w).max() * 0.6
for axes, template, name in zip(grid, w.reshape(10, 28, 28), train.classes, strict=True):
    axes.imshow(template, cmap="RdBu_r", vmin=-span, vmax=span)
    axes.set_title(name, fontsize=9)
    axes.axis("off")
plt.show()

# %% [markdown]
# Templates, indeed: the trousers' gap between the legs, the boot's shaft. One template for each class is all this
# network has. A shirt that is moved three pixels to the left no longer matches, and this is why we will need
# convolutions.
#
# ## Your layer in a real network
#
# A `Layer` of minivgg is a thin shell around such a pair: it keeps the parameters and the cache. Here is one around
# *yours*, and it is held to the promises that every layer of the library makes.

# %%
from minivgg.layers import Layer, Param, ReLU, Sequential
from minivgg.testing import check_layer


class MyLinear(Layer):
    def __init__(self, inputs, outputs):
        self.weight = Param(
            (rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)).astype(np.float32)
        )
        self.bias = Param(np.zeros(outputs, np.float32))

    def output_shape(self, shape):
        return shape[0], len(self.bias.data)

    def _forward(self, x, train):
        return linear_forward(x, self.weight.data, self.bias.data)

    def _backward(self, dy, cache, need_dx):
        dx, dw, db = linear_backward(dy, cache)
        self.weight.accumulate(dw)
        self.bias.accumulate(db)
        return dx


print(
    check_layer(MyLinear(6, 4), (3, 6), without=["a foreign dy is refused"], raise_on_failure=False)
)

# %% [markdown]
# Two of them with a ReLU between can do what one cannot: the first makes features, the second weighs them. The
# optimiser, from now on, is the library's.

# %%
from minivgg.training.optim import SGD

model = Sequential(MyLinear(784, 128), ReLU(), MyLinear(128, 10))
optimizer = SGD(model.named_params(), momentum=0.9)
for _ in range(epochs):
    for some in rng.permutation(len(train)).reshape(-1, batch):
        scores = model.forward(x_train[some], train=True)
        _, loss_cache = cross_entropy_forward(scores, train.labels[some])
        model.zero_grad()
        model.backward(cross_entropy_backward(np.float32(1), loss_cache), need_dx=False)
        optimizer.step(0.01)
deep_accuracy = np.mean(model.forward(x_test).argmax(axis=1) == test.labels)
print(
    f"one layer {linear_accuracy:.1%}, two layers {deep_accuracy:.1%} right on {len(test):,} test pictures"
)

# %% [markdown]
# ## What you have now
#
# - A score is a dot product, a layer is many of them, and the gradient of each factor is the other one times $dy$.
# - Softmax sees only differences of scores; take the largest away first.
# - The loss starts at $\log K$. Look, every time.
# - Its gradient is *believed less true*, divided by the batch.
#
# You trusted a checker. Next, [you build one](02_gradient_checking.ipynb), and find out how the famous ones are fooled.
