# %% [markdown]
# # 08 · Training: why VGG would not, and how it does
#
# Every layer is right, every gradient is checked, the network is assembled. The loss stands at 2.30 and does not move.
#
# **What is wrong with a network in which nothing is wrong? And once it moves: how to move it faster, further, and not
# into a corner?**
#
# First the start of the weights, derived and measured with the doctor; then momentum and weight decay, schedules and
# augmentation; and at the end a real run, with your start and your optimiser. About an hour and a half, two exercises.

# %%
import inspect
import itertools
import json
import os
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import minivgg
from minivgg.exercises import check_exercise
from minivgg.insight import doctor, pictures
from minivgg.models.vgg import vgg
from minivgg.training.datasets import load
from minivgg.training.loader import Loader
from minivgg.training.loop import Trainer, evaluate
from minivgg.training.optim import SGD
from minivgg.training.preprocessing import fit
from minivgg.training.schedules import schedule

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)
train, test = load("fashion-mnist-mini")
preprocessing = fit(train, 32, resize=28)
tests = Loader(test.subset(slice(0, 250 if FAST else 2000)), preprocessing, 250)

# %% [markdown]
# ## The commonest complaint
#
# Configuration D, sixteen layers, at an eighth of its width. The weights are drawn with a standard deviation of 0.01,
# as in many copies of VGG on the web. Here are the first steps:

# %%
small = {"classes": 10, "channels": 1, "input_size": 32, "width": 1 / 8, "classifier_width": 128}


def first_losses(model, steps, rate=0.01, seed=0):
    batches = Loader(train, preprocessing, 64, shuffle=True, seed=seed)
    optimizer = SGD(model.named_params(), 0.9, 5e-4)
    trainer = Trainer(model, batches, tests, optimizer, schedule("constant", 9), rate, 9)
    return [trainer.step(*both)[0] for both in itertools.islice(batches.epoch(0), steps)]


stuck = first_losses(vgg("D", **small, init="normal:0.01"), 5 if FAST else 10)
print("  ".join(f"{loss:.6f}" for loss in stuck[:10]))
print(f"log 10 = {np.log(10):.6f}")

# %% [markdown]
# The loss of somebody who has no idea, to three digits, and there it stays. A learner who sees this suspects every line
# that they have written. Let us rather ask the doctor: one batch forward and back, no step taken, and at each layer how
# large the activations are, how large the gradients, and which share of a weight a step would change.

# %%
batch, labels = next(Loader(train, preprocessing, 64, shuffle=True).epoch(0))
checkup = doctor.examine(vgg("D", **small, init="normal:0.01"), batch, labels)
print(checkup)

# %%
for finding in doctor.diagnose(checkup):
    print(textwrap.fill(str(finding), 100))

# %% [markdown]
# ## How a layer changes the size of things
#
# An output is a sum of $n$ products, where $n$ is the *fan-in*: $C\cdot K\cdot K$ for a convolution. Let the weights be
# independent of the inputs, with mean 0 and variance $\sigma^2$. Then the products have mean 0, nothing cancels or
# conspires, and variances add up:
#
# $$y = \sum_{i=1}^n w_i x_i \qquad\Rightarrow\qquad \operatorname{Var}[y] = n\,\sigma^2\,\mathrm{E}[x^2]$$
#
# Not the variance of $x$: its *mean square*, since a ReLU's output does not have mean 0. And what is that? If $y$ is
# symmetric about zero, the ReLU throws away one half of it, and so of the mean square: $\mathrm{E}[\max(y,0)^2] =
# \tfrac12 \operatorname{Var}[y]$. One layer, from mean square to mean square:
#
# $$\mathrm{E}[x_{l+1}^2] = \frac{n\,\sigma^2}{2}\;\mathrm{E}[x_l^2]$$
#
# A factor a layer. Sixteen of them in a row make a power of sixteen, and a power of anything but one is all or nothing.
# So ask for a factor of one, and get He's rule ([2015](https://arxiv.org/abs/1502.01852), section 2.2):
#
# $$\boxed{\;\sigma = \sqrt{2 / n}\;}$$

# %% [markdown]
# ### Exercise 08.1 · the standard deviation that He found
#
# Write `he_std(shape)`: the standard deviation for weights of this shape, $(O, C, KH, KW)$ for a convolution or $(O,
# F)$ for a linear layer.
#
# <details><summary>Hint</summary>
#
# How many products are added up for *one* output? The number of filters does not matter: each is a sum of its own.
#
# </details>


# %% exercise="08.1"
def he_std(shape):
    ### BEGIN SOLUTION
    return np.sqrt(2 / np.prod(shape[1:]))
    ### END SOLUTION


# %%
check_exercise("08.1", he_std)

# %% [markdown]
# Is the derivation true? Thirty layers of 256 units, with nothing in them but weights and ReLUs, and the root mean
# square after each:

# %%
depth, width = 30, 256
starts = {
    "σ = 0.01": 0.01,
    "σ = 0.1": 0.1,
    "Glorot √(1/n)": np.sqrt(1 / width),
    "He √(2/n)": float(he_std((width, width))),
}
figure, axes = plt.subplots(figsize=(7.5, 3.6))
for (name, sigma), colour, mark in zip(
    starts.items(),
    (pictures.BLUE, pictures.RED, pictures.ORANGE, pictures.GREEN),
    "ovs^",
    strict=True,
):
    x, sizes = rng.standard_normal((200, width)), []
    for _ in range(depth):
        x = np.maximum(x @ (sigma * rng.standard_normal((width, width))), 0)
        sizes.append(np.sqrt(np.mean(x**2)))
    found, rule = (sizes[-1] / sizes[0]) ** (1 / (depth - 1)), sigma * np.sqrt(width / 2)
    axes.semilogy(range(1, depth + 1), sizes, f"{mark}-", color=colour, markersize=4, label=name)
    print(f"{name:14} a factor of {found:.4f} a layer, by the rule {rule:.4f}")
axes.set(xlabel="layer", ylabel="root mean square")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# Where the factor found and the rule differ a little, that is chance: 256 units are not infinitely many.
#
# The gradient meets the same matrices on its way back, transposed, and half of it is stopped by each ReLU: the same
# factors once more. (He's rule could as well count fan-*outs*; where channels stay the same it makes no difference.)
#
# ## The doctor compares
#
# D from four starts (a number is the deviation), and with batch norm. The fourth is yours:


# %%
def start_of(method, **options):
    return lambda: vgg("D", **small, init=method, **options)


def yours(configuration="D", **options):
    model, draw = vgg(configuration, **small | options, init="zeros"), np.random.default_rng(0)
    weights = [p.data for name, p in model.named_params().items() if p.data.ndim > 1]
    for w in weights:
        w[...] = draw.standard_normal(w.shape) * he_std(w.shape)
    weights[-1] *= 0.1
    return model


trials = doctor.try_initialisers(
    {
        "0.01": start_of("normal:0.01"),
        "0.1": start_of("normal:0.1"),
        "Glorot": start_of("xavier"),
        "yours": yours,
        "0.01 + BN": start_of("normal:0.01", batch_norm=True),
    },
    batch,
    labels,
)
print(doctor.trials_table(trials))

# %%
pictures.spreads(
    {name: [(row.name, row.rms, row.gradient) for row in c.rows] for name, c in trials.items()}
)

# %% [markdown]
# Batch norm repairs a bad start: where it stands, the factor is one, whatever it was. (The linear layers at the end
# have none, and there the dashed line falls.) That is why VGG "needs" it. It does not: it needs a start. (The scores'
# own layer is drawn ten times smaller: a network that has seen nothing should not have an opinion.)
#
# ### Does the doctor tell the truth?
#
# `benchmarks/doctor.py` has trained D at half its width from many starts for 156 steps. Here is what the doctor said
# before, and what came of it, read from its file:

# %%
results = Path(minivgg.__file__).parents[1] / "benchmarks" / "results" / "doctor.json"
measured = json.loads(results.read_text(encoding="utf-8"))["starts"]
print(f"{'start':24} {'× a layer':>9}  {'the doctor':42} {'test accuracy':>20}")
for name, found in measured.items():
    accuracy = found["test_accuracy"]
    outcome = f"{accuracy:.1%}" if accuracy else f"no number at step {len(found['losses']) + 1}"
    print(f"{name:24} {found['factor']:9.2f}  {found['verdict']:42} {outcome:>20}")

# %% [markdown]
# The paper itself says variance 0.01, a deviation of 0.1, and starts its deep networks from the trained layers of A.
# Its authors found afterwards that a rule in the manner of Glorot & Bengio would have done; and He's paper, half a year
# later, has the missing factor of $\sqrt2$ a layer. (That 0.1 looks harmless in our own table is the narrow network's
# doing: at an eighth of the width it is near He's.)
#
# Now train. Network A has eleven layers and is the quickest to show it; the same batches, from two starts:

# %%
steps = 10 if FAST else 120
stuck = first_losses(vgg("A", **small, init="normal:0.01"), steps, rate=0.02)
moving = first_losses(yours("A"), steps, rate=0.02)
figure, axes = plt.subplots(figsize=(7, 3))
axes.plot(stuck, color=pictures.RED, linewidth=2, label="std 0.01")
axes.plot(moving, color=pictures.GREEN, linewidth=1.5, label="yours")
axes.axhline(np.log(10), color=pictures.GREY, linestyle=":", label="log 10: no idea")
axes.set(xlabel="step", ylabel="loss", title="network A, without batch norm", ylim=(0, 2.6))
axes.legend(loc="lower left")
plt.show()
print(f"yours: first {moving[0]:.3f}, last ten {np.mean(moving[-10:]):.3f}")

# %%
from minivgg.models import initializers

print(inspect.getsource(initializers.he))
print(inspect.getsource(initializers.initialise))

# %% [markdown]
# ## Momentum
#
# Plain descent takes a step against the slope. In a ravine, steep across and flat along, the slope points at the wall:
# a step short enough not to be thrown out is far too short to get anywhere. *Momentum* lets steps add up. What points
# the same way each time grows; what goes to and fro cancels.
#
# $$v \leftarrow \mu\,v + dw, \qquad w \leftarrow w - \eta\,v$$
#
# A constant slope $g$ fills $v$ up to $g + \mu g + \mu^2 g + \dots = g / (1 - \mu)$: with $\mu = 0.9$, ten times the
# step.


# %%
def descend(steps, rate, momentum):
    steep = np.array([1.0, 25.0])
    w, v = np.array([-9.0, 1.0]), np.zeros(2)
    path = [w]
    for _ in range(steps):
        v = momentum * v + steep * w
        w = w - rate * v
        path.append(w)
    return np.array(path)


figure, panels = plt.subplots(1, 3, figsize=(11, 2.8), sharey=True)
across, along = np.meshgrid(np.linspace(-10, 3, 200), np.linspace(-2, 2, 100))
cases = ((0.035, 0.0), (0.085, 0.0), (0.035, 0.8))
for axes, (rate, momentum) in zip(panels, cases, strict=True):
    axes.contour(
        across, along, across**2 + 25 * along**2, levels=[1, 5, 15, 35, 65, 105], colors="#CCCCCC"
    )
    path = descend(25, rate, momentum)
    inside = np.abs(path[:, 1]) < 3
    axes.plot(*path[inside].T, "o-", color=pictures.BLUE, markersize=3, linewidth=1.2)
    axes.plot(0, 0, "*", color=pictures.RED, markersize=12)
    axes.set(title=f"rate {rate}, momentum {momentum}", xlim=(-10, 3), ylim=(-2, 2))
    axes.grid(False)
    print(
        f"rate {rate}, momentum {momentum}: after 25 steps at distance {np.linalg.norm(path[-1]):.3g}"
    )
plt.show()

# %% [markdown]
# ## Weight decay
#
# Of two networks that fit the pictures alike, prefer the one with smaller weights: add $\frac\lambda2\|w\|^2$ to the
# loss. Its gradient is $\lambda w$, and so each step takes a little of the weight itself away:
#
# $$v \leftarrow \mu\,v + (dw + \lambda\,w)$$
#
# The paper: $\mu = 0.9$, $\lambda = 5\cdot10^{-4}$. It is meant for weights. A bias does not multiply anything, and a
# batch norm's $\gamma$ is there to be whatever it must be; the library leaves both alone.

# %% [markdown]
# ### Exercise 08.2 · momentum and weight decay
#
# Write `sgd(w, dw, v, rate, momentum, decay)`: one step. It gives `(w, v)`, the new weights and the new velocity, as
# new arrays in the dtype of the old.
#
# <details><summary>Hint</summary>
#
# Two lines, in the order of the formulas. The step is taken with the velocity that has just been made. The rate stands
# outside: when the schedule lowers it, it lowers the whole step, old momentum included.
#
# </details>


# %% exercise="08.2"
def sgd(w, dw, v, rate, momentum, decay):
    ### BEGIN SOLUTION
    v = momentum * v + (dw + decay * w)
    return w - rate * v, v
    ### END SOLUTION


# %%
check_exercise("08.2", sgd)

# %%
from minivgg.training import optim

print(inspect.getsource(optim.Optimizer.step))
print(inspect.getsource(optim.SGD))
print(inspect.getsource(optim._sgd))

# %% [markdown]
# The same two lines, in one pass: $w$, $dw$ and $v$ are read once and two of them written once, where NumPy would make
# three arrays in between. Yours, as an optimiser for a network, beside ours:


# %%
class MySGD(optim.Optimizer):
    slots = ("momentum",)

    def step(self, lr):
        for name, p in self.params.items():
            v, decay = self.state[f"momentum.{name}"], self.weight_decay if p.data.ndim > 1 else 0.0
            p.data[...], v[...] = sgd(p.data, p.grad, v, float(lr), 0.9, decay)


def weights_after(optimizer, steps=3):
    model = yours("A", dropout=0.0)
    batches = Loader(train, preprocessing, 64, shuffle=True)
    steering = optimizer(model.named_params(), weight_decay=5e-4)
    trainer = Trainer(model, batches, tests, steering, schedule("constant", 9), 0.02, 9)
    for both in itertools.islice(batches.epoch(0), steps):
        trainer.step(*both)
    return np.concatenate([p.data.ravel() for p in model.named_params().values()])


mine, ours = weights_after(MySGD), weights_after(SGD)
print(f"after 3 steps, {len(mine):,} weights differ by at most {np.abs(mine - ours).max():.1e}")

# %% [markdown]
# ## Schedules
#
# A long step gets far and cannot settle: it keeps jumping over the valley it has found. So one begins with long steps
# and ends with short ones. The paper divided the rate by ten whenever the error had stopped falling, three times in
# all. A cosine does it smoothly. And a *warm-up* begins gently, until momentum and batch statistics have found their
# feet.

# %%
figure, axes = plt.subplots(figsize=(7.5, 3))
epochs = np.linspace(0, 30, 601)
for name, style in (("constant", ":"), ("step", "--"), ("cosine", "-")):
    plan = schedule(name, 30, warmup=2.0)
    axes.plot(epochs, [plan(e) for e in epochs], style, linewidth=2, label=name)
plateau, factors = schedule("plateau", 30), []
errors = np.r_[
    np.linspace(0.5, 0.2, 8), np.full(5, 0.2), np.linspace(0.15, 0.12, 5), np.full(12, 0.12)
]
for e, error in enumerate(errors):
    factors.append(plateau(e))
    plateau.observe(error)
axes.step(range(30), factors, where="post", linewidth=2, label="plateau (the paper's)")
axes.set(xlabel="epoch of 30", ylabel="factor for the rate")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %%
from minivgg.training import schedules

print(inspect.getsource(schedules.Cosine))
print(inspect.getsource(schedules.Plateau))

# %% [markdown]
# ## Augmentation
#
# A boot that is moved by two pixels is still a boot, and so is its mirror image. The network does not know that, until
# it has seen them. Draw a new version of each picture every time it is shown, and no two epochs are the same:

# %%
from minivgg.training.augmentation import Augmentation

augmentation = Augmentation(pad=3, flip=True)
figure, grid = plt.subplots(2, 9, figsize=(10, 2.5))
for row, index in zip(
    grid, (np.flatnonzero(train.labels == 9)[0], np.flatnonzero(train.labels == 3)[1]), strict=True
):
    image = train.image(index)
    shown = [preprocessing(image), *(augmentation(image, preprocessing, rng) for _ in range(8))]
    for axes, version in zip(row, shown, strict=True):
        axes.imshow(version[0], cmap="gray_r")
        axes.axis("off")
    row[0].set_title("as it is", fontsize=10)
plt.show()

# %% [markdown]
# Which changes keep the label is knowledge about the *data*: clothes may be mirrored, digits and letters may not. The
# paper crops 224 pixels from a picture resized to 256 to 512, mirrors, and shifts the colour of the light.
#
# What it gives shows where the network could learn pictures by heart: few of them, seen often.


# %%
def run_of(pictures_count, epochs, augmentation):
    some = train.subset(np.arange(pictures_count) * (len(train) // pictures_count))
    few = Loader(test.subset(slice(0, 500)), preprocessing, 250)
    batches = Loader(some, preprocessing, 50, augmentation=augmentation, shuffle=True)
    model = yours("A", dropout=0.0)
    plan = schedule("cosine", epochs, warmup=1.0)
    trainer = Trainer(model, batches, few, MySGD(model.named_params(), 5e-4), plan, 0.02, epochs)
    trainer.fit(progress=False)
    return trainer


count, epochs = (100, 2) if FAST else (500, 40)
found = {
    "as they are": run_of(count, epochs, None),
    "augmented": run_of(count, epochs, Augmentation(pad=1, flip=True)),
}
figure, axes = plt.subplots(figsize=(7.5, 3.2))
for (name, trainer), colour in zip(found.items(), (pictures.ORANGE, pictures.BLUE), strict=True):
    for part, style in (("train", "--"), ("test", "-")):
        line = [row[f"{part}_accuracy"] for row in trainer.history]
        axes.plot(
            range(1, epochs + 1), line, style, color=colour, linewidth=2, label=f"{name}, {part}"
        )
    last = trainer.history[-1]
    print(f"{name:12} training {last['train_accuracy']:.1%}, test {last['test_accuracy']:.1%}")
axes.set(xlabel=f"epoch, {count} pictures", ylabel="right", ylim=(0, 1.02))
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# Dashed: on what it was trained with (augmented: on changed pictures, which are harder). Without augmentation the
# network knows all of its pictures by heart in the end, and has long stopped learning anything about others. With it,
# it starts slower and ends higher. In a short training, augmentation costs more than it gives; VGG was shown each
# picture 74 times.
#
# ## A real run
#
# Everything together: network A at an eighth of its width, without batch norm; your start, your optimiser, a cosine
# after a warm-up, augmentation, dropout; all ten thousand pictures.

# %%
epochs = 2 if FAST else 8
pictures_seen = train.subset(slice(0, 320)) if FAST else train
batches = Loader(
    pictures_seen, preprocessing, 64, augmentation=Augmentation(pad=1, flip=True), shuffle=True
)
model = yours("A", dropout=0.1)
optimizer = MySGD(model.named_params(), weight_decay=5e-4)
trainer = Trainer(
    model, batches, tests, optimizer, schedule("cosine", epochs, warmup=1.0), 0.03, epochs
)
trainer.fit(progress=False)
pictures.curves(trainer.history)

# %%
result = evaluate(model, tests)
worst = pictures.worst(result.scores, result.labels, 12)
shown = [test.image(i) for i in worst]
print(f"{result.accuracy:.1%} right on {len(result.labels):,} pictures it has never seen")
pictures.mistakes(shown, result.labels[worst], result.scores[worst], test.classes)

# %% [markdown]
# Look at its worst mistakes before blaming it. Some you would have made as well.
#
# On the command line all this is `minivgg train`, which also writes checkpoints, goes on where it was stopped, and
# leaves its curves behind; `minivgg doctor` looks at a network before you spend a night on it.
#
# ## What you have now
#
# - A layer multiplies sizes by $\sigma\sqrt{n/2}$; deep networks need that to be one. $\sqrt{2/n}$.
# - A loss that stands at $\log K$ is not a bug, it is a start. Ask the doctor.
# - Momentum adds up what agrees, decay keeps weights small, the schedule settles, augmentation tells the network what
#   does not matter.
#
# You have trained a VGG with parts of your own. [The next notebook](09_using.ipynb) takes one that somebody trained for
# weeks, and looks inside.
