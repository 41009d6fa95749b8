# %% [markdown]
# # 02 · Is the gradient right?
#
# Your backward runs. The shapes fit. The loss goes down. **Is the gradient right?**
#
# None of the three says so. This notebook builds the instrument that does, finds the ways in which such instruments
# are fooled, and ends in a zoo: eight wrong gradients as heat-maps, for you to name. About an hour, two exercises.

# %%
import inspect
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from minivgg import (
    Linear,
    ReLU,
    Sequential,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from minivgg.exercises import check_exercise
from minivgg.gradcheck import check
from minivgg.gradcheck.zoo import ZOO
from minivgg.insight import pictures
from minivgg.models.initializers import initialise
from minivgg.training.datasets import load
from minivgg.training.optim import SGD

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## Wrong gradients learn, too
#
# The zoo of minivgg holds bugs that can be planted in the library: real functions are swapped for wrong ones, and back
# again. Here is one network, trained three times: as it should be, with a weight gradient that forgets the last sample
# of each batch, and with a ReLU that lets a hundredth of the gradient leak through where it should let nothing.


# %%
def losses(steps):
    train, _ = load("fashion-mnist-mini")
    x = (train.images.reshape(len(train), -1) / 128 - 1).astype(np.float32)
    order, model = np.random.default_rng(1), Sequential(Linear(784, 64), ReLU(), Linear(64, 10))
    initialise(model, "he", seed=0)
    optimizer, history = SGD(model.named_params(), momentum=0.9), []
    for _ in range(steps):
        some = order.integers(0, len(x), 32)
        loss, cache = softmax_cross_entropy_forward(
            model.forward(x[some], train=True), train.labels[some]
        )
        model.zero_grad()
        model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(0.01)
        history.append(loss)
    return np.convolve(history, np.ones(20) / 20, "valid")


steps = 60 if FAST else 400
curves = {"right": losses(steps)}
for name in ("linear-dw-last-sample-lost", "relu-leaks"):
    with ZOO[name].plant():
        curves[name] = losses(steps)

# %%
figure, axes = plt.subplots(figsize=(7, 3.2))
for (name, curve), style in zip(curves.items(), ("-", "--", ":"), strict=True):
    axes.plot(curve, style, linewidth=2, label=name)
axes.set(xlabel="step", ylabel="loss, mean of 20", ylim=(0, None))
axes.legend()
plt.show()
for name, curve in curves.items():
    print(f"{name:28} last loss {curve[-1]:.3f}")

# %% [markdown]
# Nobody would find these bugs in a training log. Whatever they cost, nobody will ever know.
#
# ## The slope, measured
#
# The gradient is a claim about a slope, and a slope can be measured: go a step $h$ to each side along a direction $v$,
# and see how far the function rose.
#
# $$D(h) = \frac{f(x + h\,v) - f(x - h\,v)}{2h}$$
#
# Taylor says how good that is. Write both terms out; everything of even order cancels:
#
# $$f(x \pm h v) = f \pm h f' + \tfrac{h^2}{2} f'' \pm \tfrac{h^3}{6} f''' + \dots \qquad\Rightarrow\qquad
# D(h) = f' + \tfrac{h^2}{6} f''' + \dots$$
#
# The difference to *one* side, $(f(x + hv) - f(x))/h$, is off by $\tfrac h2 f''$. With $f''$ and $f'''$ of one
# size, that is three hundred times worse at $h = 1/100$, for the same price of two evaluations.

# %% [markdown]
# ### Exercise 02.1 · a central difference
#
# Write `central_difference(f, x, v, h)`: the slope of `f`, a function from arrays to a number, at `x` along `v`.
#
# <details><summary>Hint</summary>
#
# One line. Make new arrays, `x + h * v`; whoever writes `x += h * v` has moved somebody else's `x`.
#
# </details>


# %% exercise="02.1"
def central_difference(f, x, v, h):
    ### BEGIN SOLUTION
    return (f(x + h * v) - f(x - h * v)) / (2 * h)
    ### END SOLUTION


# %%
check_exercise("02.1", central_difference)

# %% [markdown]
# ## Choosing h: the V
#
# The smaller $h$, the better? Take a function whose slope we know, and look.


# %%
def errors(dtype, one_sided=False):
    x, v = (rng.standard_normal(20).astype(dtype) for _ in range(2))
    slope = np.sum(np.cos(x.astype(float)) * v.astype(float))

    def f(x):
        return np.sum(np.sin(x), dtype=dtype)

    def difference(h):
        if one_sided:
            return (float(f(x + dtype(h) * v)) - float(f(x))) / h
        return central_difference(lambda z: float(f(z)), x, v, dtype(h))

    return [abs(difference(h) - slope) / abs(slope) + 1e-17 for h in steps_h]


steps_h = 10.0 ** np.arange(-12, 0.1, 0.25)
figure, axes = plt.subplots(figsize=(7.5, 4))
for label, colour, series in (
    ("one-sided, float64", pictures.ORANGE, errors(np.float64, one_sided=True)),
    ("central, float64", pictures.BLUE, errors(np.float64)),
    ("central, float32", pictures.RED, errors(np.float32)),
):
    axes.loglog(steps_h, series, "o-", markersize=3, color=colour, label=label)
axes.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-13, 1e2))
axes.legend()
plt.show()

# %% [markdown]
# A V, three times. On the right arm the step is too long: the error is Taylor's, and its slope shows the power of $h$,
# one for the one-sided difference and two for the central one. On the left arm the step is too short. A computer keeps
# $f$ to about 16 digits; the difference of two nearly equal numbers keeps fewer, and dividing by $2h$ makes what is
# lost large: an error of about $\epsilon/h$, with $\epsilon\approx10^{-16}$.
#
# The two arms meet where $h^2 \approx \epsilon/h$, at $h \approx \sqrt[3]{\epsilon}$:

# %%
for dtype in (np.float64, np.float32):
    eps = float(np.finfo(dtype).eps)
    print(
        f"{dtype.__name__}: ε = {eps:.1e}, best h about {eps ** (1 / 3):.0e}, "
        f"error there about {eps ** (2 / 3):.0e}"
    )

# %% [markdown]
# And this is **float32's trap**. There the best that can be done is an error of about $10^{-4}$, if $h$ is just right,
# and with $h = 10^{-6}$, a good choice for float64, the answer is mostly noise. People then loosen the tolerance until
# the test passes, and it tests nothing any more. Check gradients in float64, always, also of code that will run in
# float32.
#
# ## A direction for all elements at once
#
# A layer's output is not one number. Choose an upstream gradient $dy$, as the rest of a network would, and make it
# one: $f(x) = \langle dy, y(x)\rangle$. The chain rule then demands, for every direction $v$,
#
# $$\Bigl\langle dy,\ \frac{y(x + hv) - y(x - hv)}{2h}\Bigr\rangle \;\approx\; \langle dx, v\rangle$$
#
# Two forwards for *all* elements of $dx$, rather than two for each. If a single element of $dx$ is wrong by $\delta$,
# the right side is off by $\delta\,v_i$: with $v$ drawn at random it will show. Unless it cancels, and that has
# measure zero.
#
# ## Fooled by ones
#
# Which $dy$? The simplest is all ones; then $f$ is just `y.sum()`, and many a famous teaching check does exactly that.
# Now take softmax, and a backward that is *seven times too large*:

# %%
from minivgg.ops.softmax_cross_entropy import softmax_backward, softmax_forward


def seven_times(dy, cache):
    return 7 * softmax_backward(dy, cache)


x, v = rng.standard_normal((2, 4, 6))
for name, dy in (("ones", np.ones((4, 6))), ("random", rng.standard_normal((4, 6)))):
    y, cache = softmax_forward(x)
    claimed = np.sum(seven_times(dy, cache) * v)
    measured = central_difference(lambda z, dy=dy: np.sum(dy * softmax_forward(z)[0]), x, v, 1e-5)
    print(f"dy {name:7} measured {measured:+z.6f}   claimed {claimed:+z.6f}")

# %% [markdown]
# Under ones, both are zero. Of course: the rows of softmax sum to one *whatever the input*, so the sum of all outputs
# does not change, its slope is zero, and so is seven times it. A check with $dy = 1$ is blind to everything in
# softmax's backward. So it is to most of batch norm's. Ours draws $dy$ at random, of both signs, and refuses a
# constant one:

# %%
try:
    check((softmax_forward, softmax_backward), x, dy=np.ones((4, 6)))
except ValueError as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# ### Exercise 02.2 · a gradient check that sees the zoo
#
# Write `is_right(forward, backward, x)`, which answers `True` or `False`. `forward(x)` gives `(y, cache)`, and
# `backward(dy, cache)` gives $dx$. The checker of your checker plants nine bugs of the zoo, in softmax, sigmoid and
# flatten, among them one of one part in ten thousand and one that computes in float32; all must be refused. And it
# hands you right gradients, which must be accepted. Both at once: that is the art.
#
# <details><summary>Hint: the steps</summary>
#
# Draw `dy` and `v` with `rng.standard_normal`, in the shapes of $y$ and $x$. Measure along $v$ with $h = 10^{-5}$,
# compare with $\langle dx, v\rangle$, and do so for a handful of draws.
#
# </details>
# <details><summary>Hint: how near is near enough?</summary>
#
# The V above: at $h = 10^{-5}$ in float64 the slope is known to about $10^{-10}$ of what it is made of, and float32
# errs by some $10^{-8}$. What it is made of is $\sum|dx\cdot v|$; the slope itself may happen to be almost zero. A
# tolerance of $10^{-9}$ of that lies between.
#
# </details>


# %% exercise="02.2"
def is_right(forward, backward, x):
    ### BEGIN SOLUTION
    rng = np.random.default_rng(0)
    y, _ = forward(x)
    for _ in range(10):
        dy, v, h = rng.standard_normal(y.shape), rng.standard_normal(x.shape), 1e-5
        rise = forward(x + h * v)[0] - forward(x - h * v)[0]
        dx = backward(dy, forward(x)[1])
        error = abs(np.sum(dy * rise) / (2 * h) - np.sum(dx * v))
        if not error <= 1e-9 * (np.sum(np.abs(dx * v)) + np.sum(np.abs(dy * y))):
            return False
    return True
    ### END SOLUTION


# %%
check_exercise("02.2", is_right)

# %% [markdown]
# ## Kinks
#
# ReLU has a corner at 0. If $x$ is nearer to it than $h$, one foot of the difference stands on each side of it, and
# the measured slope is neither 0 nor 1:

# %%
from minivgg.ops.relu import relu_backward, relu_forward

kinked = np.array([[-0.5, 2e-6, 0.7]])
for h in (1e-5, 1e-6):
    slope = central_difference(
        lambda z: relu_forward(z)[0][0, 1], kinked, np.array([[0.0, 1, 0]]), h
    )
    print(f"h = {h:g}: slope of relu at 0.000002 measured as {slope:.2f}, true slope 1")

# %% [markdown]
# A false alarm. With ten thousand activations some are always that near, so that people loosen the tolerance again.
# The remedy is to *know* when a corner lies between the feet: compare which units are on at $x - h$ and at $x + h$.
# The library's check takes shorter steps until none switches, and exactly at a corner it accepts what lies between the
# slopes to the left and to the right.

# %%
check((relu_forward, relu_backward), np.array([[-0.5, 0.0, 0.7], [1e-9, -2.0, 3.0]]))

# %% [markdown]
# ## A second witness: the remainder
#
# Instead of choosing one $h$, watch how fast the linear prediction becomes good:
#
# $$R(t) = \bigl|\,f(x + t v) - f(x) - t\,\langle dx, v\rangle\,\bigr|$$
#
# If $dx$ is right, what remains is $\tfrac{t^2}{2}f''$: halve $t$ and $R$ falls to a quarter, slope two in a doubly
# logarithmic plot. If $dx$ is wrong, an error of first order stays, and the slope is one. No tolerance anywhere.

# %%
y, cache = softmax_forward(x)
dy = rng.standard_normal(y.shape)
ts = 10.0 ** np.arange(-4, 0.1, 0.25)
figure, axes = plt.subplots(figsize=(6.5, 3.6))
for name, back, colour in (
    ("right", softmax_backward, pictures.BLUE),
    ("seven times", seven_times, pictures.RED),
):
    claim = np.sum(back(dy, cache) * v)
    remainder = [abs(np.sum(dy * (softmax_forward(x + t * v)[0] - y)) - t * claim) for t in ts]
    slope = np.polyfit(np.log(ts[:8]), np.log(remainder[:8]), 1)[0]
    axes.loglog(ts, remainder, "o-", markersize=4, color=colour, label=f"{name}: slope {slope:.2f}")
axes.set(xlabel="step t", ylabel="remainder")
axes.legend()
plt.show()

# %% [markdown]
# ## The library's
#
# This is the heart of minivgg's check. It is your central difference, with two things more: a second step, to take
# away Taylor's $h^2$, and a bound on its own error, from rounding that it measures. So nobody has to choose a
# tolerance.

# %%
from minivgg.gradcheck import numeric

print(inspect.getsource(numeric.central))

# %%
report = check((softmax_forward, seven_times), x)
report

# %% [markdown]
# And as a picture: where it is wrong, the V of this very gradient (a wrong one has a floor and no V), and the
# remainder.

# %%
report.plot()

# %% [markdown]
# ## The zoo: name the bug
#
# Below are eight convolutions with a bug. Each map is the error of a gradient, dark where it is right. A filter
# gradient is shown as a tile for each pair of output channel (down) and input channel (across), an input gradient as a
# tile for each image and channel. The words to choose from:
#
# 1. the filter gradient is rotated by 180°
# 2. the last column of each filter learns nothing
# 3. one filter's gradient is added twice
# 4. windows that reach into the padding are skipped
# 5. the last image of the batch gets no gradient
# 6. what falls over the left edge comes back in on the right
# 7. `=` where `+=` was meant: where windows overlap, only the last one counts
# 8. all images get the sum of all images' gradients
#
# Some are plain to see. Two look alike: which, and what further experiment would tell them apart?

# %%
from minivgg.gradcheck.picture import draw_error

suspects = [
    "conv2d-dw-rotated",
    "conv2d-dw-last-tap-forgotten",
    "conv2d-dw-last-filter-twice",
    "conv2d-dx-border-zero",
    "conv2d-dx-last-image-lost",
    "conv2d-dx-wraps-around",
    "conv2d-dx-assigned",
    "conv2d-dx-images-leak",
]
suspects = np.random.default_rng(8).permutation(suspects).tolist()
figure, grid = plt.subplots(2, 4, figsize=(13, 6.2))
for letter, name, axes in zip("ABCDEFGH", suspects, grid.flat, strict=True):
    with ZOO[name].plant():
        report = ZOO[name].case.check()
        row = next(row for row in report.rows if not row.ok)
        draw_error(figure, axes, report.points[row.argument], row)
    axes.set_title(f"{letter}: the gradient of {row.argument}")
    axes.grid(False)
    figure.axes[-1].set_ylabel("")
plt.show()

# %% [markdown]
# Decide before you scroll on.
#
# <details><summary>A hint</summary>
#
# B and E are wrong everywhere. A leak between images vanishes when the batch has one image. That is the experiment.
#
# </details>
#
# ### What they are, and what the check says of them

# %%
for letter, name in zip("ABCDEFGH", suspects, strict=True):
    said = textwrap.fill("; ".join(ZOO[name].check().diagnosis), 100, subsequent_indent=" " * 5)
    print(f"{letter}  {ZOO[name].says}\n   → {said}\n")

# %% [markdown]
# ## Measured: rules that people use
#
# Three rules, on every bug of softmax, sigmoid, ReLU and flatten that a single backward can show: an upstream gradient
# of ones with NumPy's `allclose`, one element at random within 1 %, and yours.


# %%
def by_ones(forward, backward, x):
    y, cache = forward(x)
    dx, h = backward(np.ones_like(y), cache), 1e-5
    numeric = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        numeric[i] = (forward(x + step)[0].sum() - forward(x - step)[0].sum()) / (2 * h)
    return np.allclose(dx, numeric, rtol=1e-5, atol=1e-7)


def by_one_element(forward, backward, x):
    generator = np.random.default_rng(0)
    y, cache = forward(x)
    i, dy, h = tuple(generator.integers(0, x.shape)), generator.standard_normal(y.shape), 1e-5
    step = np.zeros_like(x)
    step[i] = h
    slope = np.sum(dy * (forward(x + step)[0] - forward(x - step)[0])) / (2 * h)
    return abs(backward(dy, cache)[i] - slope) <= 0.01 * abs(slope) + 1e-7


caught = dict.fromkeys((by_ones, by_one_element, is_right), 0)
shown = [
    bug
    for bug in ZOO.values()
    if bug.op in ("softmax", "sigmoid", "relu", "flatten") and bug.case.draw == "normal"
]
shown = [
    bug
    for bug in shown
    if not any(bug.name.endswith(end) for end in ("memory", "shared", "on-dy", "by-dy"))
]
for bug in shown:
    with bug.plant():
        (forward, backward), (inputs, *_), _ = bug.case.subject(0)
        for rule in caught:
            caught[rule] += not rule(forward, backward, inputs.copy())
for rule, count in caught.items():
    print(f"{rule.__name__:15} catches {count:2} of {len(shown)}")

# %% [markdown]
# ## What you have now
#
# - A slope, measured by a central difference in float64, with $h$ near $\sqrt[3]\epsilon$.
# - Random signed directions, random signed upstream gradients. Never ones.
# - An eye for error maps; and when you want more than an eye, `check`, `report.plot()` and `minivgg bugs`.
#
# From here on every layer you write is held to this: next, [two layers without weights](03_relu_dropout.ipynb).
