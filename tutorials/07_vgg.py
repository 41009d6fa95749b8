# %% [markdown]
# # 07 · VGG: one idea, sixteen times
#
# AlexNet looked with windows of 11×11, 5×5 and 3×3. VGG took 3×3 everywhere, and went deeper until it stopped helping.
#
# **How can such small windows see a whole cat? What is gained by many small ones in place of a large one? And where, of
# 138 million numbers, are they all?**
#
# We compute how far a unit sees, set stacks of small windows against large ones, assemble the six networks of the paper
# from a table, and find their parameters, their arithmetic and their memory in three different places. About an hour,
# two exercises.

# %%
import inspect
import json
import os
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import minivgg
from minivgg.exercises import check_exercise
from minivgg.insight import pictures
from minivgg.insight.ledger import human, ledger

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## How far a unit sees
#
# A unit of the first 3×3 layer sees 3×3 pixels. One of the second sees 3×3 units of the first, whose own windows
# overlap: 5×5 pixels. Each further layer adds one pixel on every side.
#
# Pooling changes the pace. After a 2×2 pool with stride 2, neighbours lie two pixels apart, so that the next 3×3 window
# reaches *two* pixels further on each side; after the second pool, four. Draw it in one dimension:


# %%
def pyramid(axes, windows, title):
    """Which units of each layer, and which pixels, the middle unit of the last layer depends on."""
    jumps, spans = [1], []
    for _, stride in windows:
        jumps.append(jumps[-1] * stride)
    first, last = 0, 0
    for size, stride in reversed(windows):
        spans.append((first, last))
        first, last = first * stride, last * stride + size - 1
    spans = [(first, last), *reversed(spans)]
    offset = 0.0
    for level, ((low, high), jump) in enumerate(zip(spans, jumps, strict=True)):
        places = offset + jump * np.arange(low, high + 1)
        axes.plot(
            places,
            [level] * len(places),
            "s",
            markersize=9,
            color=pictures.BLUE if level else pictures.RED,
        )
        axes.text(
            last + 1.2, level, f"{len(places)}", va="center", fontsize=10, color=pictures.GREY
        )
        if level < len(windows):
            size, stride = windows[level]
            for unit in range(spans[level + 1][0], spans[level + 1][1] + 1):
                for k in range(size):
                    ends = (
                        offset + jump * (unit * stride + k),
                        offset + jump * (unit * stride + (size - 1) / 2),
                    )
                    axes.plot(ends, [level, level + 1], color="#BBBBBB", linewidth=0.8, zorder=0)
            offset += jump * (size - 1) / 2
    names = ["pixels", *(f"{size}, stride {stride}" for size, stride in windows)]
    axes.set(
        yticks=range(len(names)), yticklabels=names, xticks=[], title=title, xlim=(-0.8, last + 2)
    )
    axes.grid(False)


figure, panels = plt.subplots(1, 3, figsize=(11, 3), width_ratios=(5, 7, 10))
pyramid(panels[0], [(3, 1), (3, 1)], "two windows of 3")
pyramid(panels[1], [(3, 1), (3, 1), (3, 1)], "three")
pyramid(panels[2], [(3, 1), (2, 2), (3, 1)], "with a pool between")
plt.show()

# %% [markdown]
# So keep two numbers: the field $r$, how many pixels a unit sees, and the jump $j$, how many pixels lie between it and
# its neighbour. Before any layer both are 1. A window of $k$ with stride $s$ reaches $k - 1$ neighbours further, and
# then the jump grows:
#
# $$r \leftarrow r + (k - 1)\,j, \qquad j \leftarrow j\,s$$

# %% [markdown]
# ### Exercise 07.1 · how far a unit sees
#
# Write `receptive_field(windows)`. `windows` is a list of `(size, stride)`, from the first layer to the last; the
# answer is how many pixels one unit after the last of them sees, each way.
#
# <details><summary>Hint</summary>
#
# A loop with two numbers. Which of the two must be changed first? A layer's own stride says how far *its* outputs lie
# apart; it does not widen its own window.
#
# </details>


# %% exercise="07.1"
def receptive_field(windows):
    ### BEGIN SOLUTION
    field, jump = 1, 1
    for size, stride in windows:
        field += (size - 1) * jump
        jump *= stride
    return field
    ### END SOLUTION


# %%
check_exercise("07.1", receptive_field)

# %% [markdown]
# A formula about "seeing" can be put to the test: let a unit's gradient run back to the pixels, and count those that
# get any. (Max-pooling would let one pixel in four through; for measuring, averages stand in its place, and all weights
# are positive.)

# %%
from minivgg.layers import AvgPool2d, Conv2d, MaxPool2d, Sequential
from minivgg.models.vgg import CONFIGURATIONS, vgg


def windows_of(configuration):
    """(size, stride) of every layer of a row of the table, pools included."""
    sizes = [stage.replace("LRN", "").split() for stage in CONFIGURATIONS[configuration].split("|")]
    return [
        w for stage in sizes for w in [*((int(t.partition(":")[2] or 3), 1) for t in stage), (2, 2)]
    ]


def pixels_reached(configuration, size=448):
    layers = []
    for window, stride in windows_of(configuration):
        layer = (
            AvgPool2d(2)
            if stride == 2
            else Conv2d(1, 1, window, padding=window // 2, algorithm="direct")
        )
        if stride == 1:
            layer.weight.data[...], layer.bias.data[...] = 1 / window**2, 0
        layers.append(layer)
    net = Sequential(*layers)
    y = net.forward(np.ones((1, 1, size, size), np.float32), train=True)
    dy = np.zeros_like(y)
    dy[0, 0, y.shape[2] // 2, y.shape[3] // 2] = 1
    return net.backward(dy)[0, 0]


for configuration in ("A", "B", "C", "D", "E"):
    reached = np.count_nonzero(pixels_reached(configuration).any(axis=0))
    field = receptive_field(windows_of(configuration))
    print(f"{configuration}: by your formula {field}, by a gradient {reached} pixels")

# %% [markdown]
# A unit of E's last map sees 268 pixels, more than the 224 there are. How much of that does it *use*? Here is the
# gradient itself, for D:

# %%
reached = pixels_reached("D")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(1, 1.6))
shown = left.imshow(reached, cmap="cividis")
left.set(xticks=[], yticks=[], title="what one unit of D gets from each pixel")
left.grid(False)
figure.colorbar(shown, ax=left, label="share", shrink=0.85)
right.plot(reached.sum(axis=0), color=pictures.BLUE, linewidth=2)
inside = np.flatnonzero(reached.any(axis=0))
right.axvspan(
    inside[0],
    inside[-1],
    color=pictures.ORANGE,
    alpha=0.15,
    label=f"receptive field, {len(inside)} pixels",
)
right.set(
    xlabel="column",
    ylabel="share of a column",
    title="its sum over rows",
    ylim=(0, 1.3 * reached.sum(axis=0).max()),
)
right.legend(loc="upper left")
plt.show()
order = np.sort(reached.sum(axis=0))[::-1].cumsum()
print(f"{np.searchsorted(order, 0.9) + 1} of {len(inside)} columns carry 90% of it")

# %% [markdown]
# A bell, not a box: pixels in the middle reach the unit by many paths, those at the rim by one. The *effective* field
# is about half as wide ([Luo et al. 2016](https://arxiv.org/abs/1701.04128)). With learnt weights it looks different,
# but the rim stays faint.
#
# ## Many small ones, or a large one
#
# Two layers of 3×3 see 5×5, three see 7×7. So why not take a large window at once? Let $C$ channels go in and out:

# %%
stacks = {"one 5×5": (5,), "two 3×3": (3, 3), "one 7×7": (7,), "three 3×3": (3, 3, 3)}
C, H = 256, 56
print(
    f"{'':10} {'sees':>5} {'weights':>9}   for C = {C}: {'parameters':>12} {'MACs at 56×56':>14} {'ReLUs':>6}"
)
for name, windows in stacks.items():
    net = Sequential(*(Conv2d(C, C, k, padding=k // 2) for k in windows))
    book, side = ledger(net, (1, C, H, H)), receptive_field([(k, 1) for k in windows])
    weights = f"{sum(k * k for k in windows)} C²"
    print(
        f"{name:10} {side:>3}×{side} {weights:>9} "
        f"{book.parameters:>27,} {human(book.macs):>14} {len(windows):>6}"
    )

# %% [markdown]
# The same view for 28% fewer weights, or 45% fewer, and multiplications are saved in the same proportion; and a ReLU
# after each instead of one at the end.
#
# Are the small ones as able? Without a ReLU between them, two layers are *one* layer: sliding $b$ over what $a$ has
# made is sliding one 5×5 filter, the convolution of the two.

# %%
from minivgg.ops.conv2d import conv2d_forward

a, b, image = (
    rng.standard_normal((3, 3)),
    rng.standard_normal((3, 3)),
    rng.standard_normal((1, 1, 12, 12)),
)
both = np.zeros((5, 5))
for i, j in np.ndindex(3, 3):
    both[i : i + 3, j : j + 3] += a * b[i, j]


def slide(x, filter):
    return conv2d_forward(x, filter[None, None], None)[0]


print(
    f"two 3×3 and one 5×5 differ by {np.abs(slide(slide(image, a), b) - slide(image, both)).max():.0e}"
)
rectified = slide(np.maximum(slide(image, a), 0), b)
print(f"with a ReLU between, by       {np.abs(rectified - slide(image, both)).max():.1f}")

# %% [markdown]
# Of the 25 numbers of a 5×5 only some can be had from 18: a stack is a large window *under a constraint*, which the
# paper calls a regularisation. With the ReLU between, it can do what no single filter can.
#
# ### What was measured
#
# The paper replaced each pair of B's 3×3 layers by one 5×5: its top-1 error rose by 7% (section 4.1, on a centre crop).
# The same in small, three stages on the bundled pictures, is measured by `benchmarks/stacks.py`; here is what it found,
# read from its file:

# %%
results = Path(minivgg.__file__).parents[1] / "benchmarks" / "results" / "stacks.json"
kept = json.loads(results.read_text(encoding="utf-8"))
print(
    f"{kept['settings']['epochs']} epochs, filters {kept['settings']['filters']}, the same settings for all\n"
)
for name in stacks:
    accuracies = [run["test_accuracy"] for run in kept["runs"] if run["stack"] == name]
    print(
        f"{name:10} mean {statistics.mean(accuracies):.2%}, "
        f"from {min(accuracies):.1%} to {max(accuracies):.1%} in {len(accuracies)} runs"
    )

# %% [markdown]
# Honestly: *no difference* that stands out from that between seeds. Small grey pictures, three epochs and a few filters
# are not ImageNet, and the gain that the paper saw is not to be had for nothing everywhere. What does hold everywhere
# is the arithmetic:


# %% measured=true
def milliseconds(net, x, repeat=2 if FAST else 6):
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        net.forward(x)
        times.append(1000 * (time.perf_counter() - began))
    return np.median(times[1:])


x = rng.standard_normal((4, 64, 56, 56)).astype(np.float32)
for name, windows in stacks.items():
    times = {}
    for algorithm in ("direct", "auto"):
        net = Sequential(*(Conv2d(64, 64, k, padding=k // 2, algorithm=algorithm) for k in windows))
        for layer in net:
            layer.weight.data[...] = rng.standard_normal(layer.weight.data.shape) / 50
        times[algorithm] = milliseconds(net, x)
    print(f"{name:10} " + ", ".join(f"{algorithm} {ms:6.1f} ms" for algorithm, ms in times.items()))

# %% [markdown]
# And "auto" knows a trick for 3×3 and stride 1 that it does not have for large windows (Winograd's, notebook 10).
#
# ## Six networks in a table
#
# The paper describes all its networks by one table: five stages, each ended by a 2×2 pool, each with twice the channels
# of the one before, up to 512. So does the library, as data:

# %%
for letter, stages in CONFIGURATIONS.items():
    print(f"{letter:6} {stages}")

# %%
figure, axes = plt.subplots(figsize=(10, 4.2))
colours = {"64": "#CCE3F3", "128": "#99C7E7", "256": "#66AADB", "512": "#338ECF"}
for row, text in enumerate(CONFIGURATIONS.values()):
    left, depth = 0, 3
    for stage in text.split("|"):
        for token in stage.split():
            filters, _, size = token.partition(":")
            norm, small = token == "LRN", size == "1"
            colour = pictures.GREEN if norm else pictures.ORANGE if small else colours[filters]
            axes.barh(row, 0.9, left=left, height=0.7, color=colour)
            axes.text(
                left + 0.45,
                row,
                f"{filters}\n1×1" if small else filters,
                ha="center",
                va="center",
                fontsize=8,
            )
            left, depth = left + 1, depth + (not norm)
        axes.barh(row, 0.22, left=left, height=0.7, color=pictures.RED)
        left += 0.4
    for name in ("4096", "4096", "1000"):
        axes.barh(row, 0.9, left=left, height=0.7, color="#BBBBBB")
        axes.text(left + 0.45, row, name, ha="center", va="center", fontsize=7.5)
        left += 1
    axes.text(left + 0.2, row, f"{depth} layers", va="center", fontsize=10)
axes.set(
    yticks=range(len(CONFIGURATIONS)), yticklabels=list(CONFIGURATIONS), xticks=[], xlim=(-0.2, 24)
)
axes.set_title("blue 3×3, orange 1×1, green LRN, red 2×2 max-pool, grey linear", fontsize=11)
axes.invert_yaxis()
axes.grid(False)
plt.show()

# %% [markdown]
# Read down: each network is one above it with something added or, from C to D, widened, so that what the change is
# worth can be read from the errors. A network *is* this line of text and a dozen lines that read it. Here are yours:

# %%
from minivgg.layers import AdaptiveAvgPool2d, Dropout, Flatten, Linear, LocalResponseNorm, ReLU


def assemble(configuration, width=1.0, classes=1000, hidden=4096):
    layers, channels = [], 3
    for stage in CONFIGURATIONS[configuration].split("|"):
        for token in stage.split():
            if token == "LRN":
                layers.append(LocalResponseNorm(5, 5e-4, k=2.0))
                continue
            filters, _, size = token.partition(":")
            kernel, filters = int(size or 3), round(int(filters) * width)
            layers += [Conv2d(channels, filters, kernel, padding=kernel // 2), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    layers += [AdaptiveAvgPool2d(7), Flatten()]
    for inputs, outputs in ((channels * 49, hidden), (hidden, hidden)):
        layers += [Linear(inputs, outputs), ReLU(), Dropout(0.5)]
    return Sequential(*layers, Linear(hidden, classes))


for configuration in CONFIGURATIONS:
    mine = assemble(configuration, width=1 / 8, hidden=64)
    ours = vgg(configuration, width=1 / 8, classifier_width=64, init="zeros")
    shapes = [list(net.state_shapes().values()) for net in (mine, ours)]
    same = shapes[0] == shapes[1]
    print(f"{configuration:6} {len(shapes[0]):2} arrays, the same shapes as the library's: {same}")

# %%
print(inspect.getsource(vgg))

# %% [markdown]
# Beyond yours it has batch norms, other image sizes, a start for the weights (the next notebook's matter), and names:
# `model.features_at("relu4_3")` is a network up to what the literature calls relu4_3.

# %% [markdown]
# ### Exercise 07.2 · counting parameters
#
# Write `parameters(configuration, channels, classes)`: how many numbers such a network learns, weights and biases.
# `configuration` is a row of the table, as text; `channels` are those of the picture, 3 if it has colours. After the
# last pool come 512 maps of 7×7, and linear layers to 4096, to 4096, and to the classes. Build nothing: count.
#
# <details><summary>Hint: one convolution</summary>
#
# Each of $O$ filters has a weight for every channel and every place in its window, and one bias: $O\,(C\,K^2 + 1)$.
# Then $O$ is the next layer's $C$.
#
# </details>
# <details><summary>Hint: reading the text</summary>
#
# `configuration.replace("|", " ").split()` gives the tokens: `"64"`, `"256:1"` (a window of 1×1), `"LRN"` (learns
# nothing).
#
# </details>


# %% exercise="07.2"
def parameters(configuration, channels, classes):
    ### BEGIN SOLUTION
    total = 0
    for token in configuration.replace("|", " ").replace("LRN", " ").split():
        filters, _, size = token.partition(":")
        total += int(filters) * (channels * int(size or 3) ** 2 + 1)
        channels = int(filters)
    widths = channels * 7 * 7, 4096, 4096, classes
    return total + sum(widths[i + 1] * (widths[i] + 1) for i in range(3))
    ### END SOLUTION


# %%
check_exercise("07.2", parameters)

# %%
head = parameters("512", 0, 1000) - 512
print(f"{'':6} {'parameters':>12} {'of these in linear layers':>26}")
for letter, text in CONFIGURATIONS.items():
    total = parameters(text, 3, 1000)
    print(f"{letter:6} {total:>12,} {head / total:>26.0%}")

# %% [markdown]
# The paper's table 2 says 133, 133, 134, 138 and 144 million. From A to E eight convolutions are added, and the count
# grows by a twelfth: it is almost all in the linear layers, the same in each, and one of them alone (25,088 to 4096)
# has 103 million.
#
# ## Three maps of one network
#
# Parameters are what is downloaded and kept; multiplications are what takes time; activations are what training has to
# hold in memory until backward comes by. The *ledger* counts all three, layer by layer, from shapes alone:

# %%
book = ledger(vgg("D", init="zeros"), (1, 3, 224, 224))
print(book)

# %%
model = vgg("D", init="zeros")
roles = {path: name for name, path in model.landmarks.items() if name.startswith(("conv", "fc"))}
rows = [row for row in book.rows if row.name in roles]
figure, panels = plt.subplots(1, 3, figsize=(11, 5), sharey=True)
columns = (
    ("parameters", "Parameters", 1e6, "millions", pictures.BLUE),
    ("macs", "Multiplications", 1e9, "billions", pictures.ORANGE),
    ("activation_bytes", "Activations", 2**20, "MiB, float32", pictures.GREEN),
)
for axes, (key, title, unit, label, colour) in zip(panels, columns, strict=True):
    values = [getattr(row, key) / unit for row in rows]
    bars = axes.barh([roles[row.name] for row in rows], values, color=colour)
    axes.bar_label(
        bars, [f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in values], padding=3, fontsize=9
    )
    axes.set(title=title, xlabel=label, xlim=(0, 1.2 * max(values)))
    axes.grid(axis="y", visible=False)
panels[0].invert_yaxis()
plt.show()
early = sum(row.activation_bytes for row in rows[:4]) / sum(row.activation_bytes for row in rows)
convolutions = sum(row.macs for row in rows[:-3]) / book.macs
print(
    f"linear layers hold {sum(row.parameters for row in rows[-3:]) / book.parameters:.0%} of the parameters"
)
print(f"convolutions do    {convolutions:.1%} of the multiplications")
print(f"the first four keep {early:.0%} of what these layers put out")

# %% [markdown]
# Three questions, three places. The *file* is large because of the end: a network that ends in an average over the map
# instead of 25,088 numbers side by side would be a tenth of it, and that is what came after VGG. *Time* goes by in the
# middle, evenly: a pool takes a quarter of the pixels and the next stage has twice the channels in and out, so that
# each layer of a new stage costs the same, until the channels stop doubling. *Memory* is spent at the beginning, where
# maps are large; im2col would need nine times as much again, which is why the library never holds it whole.
#
# ## C's 1×1
#
# Network C has, at the end of its last three stages, convolutions with a window of one pixel. What can a window of one
# pixel do? It mixes channels: a linear layer, the same at every pixel.

# %%
x, w, b = (
    rng.standard_normal((2, 5, 4, 3)),
    rng.standard_normal((6, 5, 1, 1)),
    rng.standard_normal(6),
)
y, _ = conv2d_forward(x, w, b)
pixels = x.transpose(0, 2, 3, 1).reshape(-1, 5)
by_linear = (pixels @ w.reshape(6, 5).T + b).reshape(2, 4, 3, 6).transpose(0, 3, 1, 2)
print(
    f"a 1×1 convolution and a linear layer at each pixel differ by {np.abs(y - by_linear).max():.0e}"
)
fields = {letter: receptive_field(windows_of(letter)) for letter in "BCD"}
books = {letter: ledger(vgg(letter, init="zeros"), (1, 3, 224, 224)) for letter in "BCD"}
for letter, (depth, error) in {"B": (13, 28.7), "C": (16, 28.1), "D": (16, 27.0)}.items():
    size, work = fields[letter], books[letter].macs / 1e9
    print(
        f"{letter}: {depth} layers, sees {size} px, {work:.1f} GMAC, the paper's top-1 error {error}%"
    )

# %% [markdown]
# C sees no more than B and has three more ReLUs: it is better, so non-linearity helps by itself. D has as many layers
# as C and sees further: it is better still, so *context* is worth something, too (the paper's table 3, one scale, 256).
# An experiment with three rows, each differing by one thing from the next.
#
# ## What you have now
#
# - Field and jump: two numbers in a loop say how far a unit sees; a gradient agrees.
# - A stack of 3×3 sees as far as a large window with fewer weights and more ReLUs.
# - A network is a line of a table.
# - Parameters at the end, time in the middle, memory at the beginning.
#
# It is assembled. It will not train: [the next notebook](08_training.ipynb) finds out why, and mends it.
