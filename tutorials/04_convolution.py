# %% [markdown]
# # 04 · Looking for the same thing everywhere
#
# A shirt that is moved by three pixels is the same shirt. **How can a network know that without seeing every shirt in
# every place?**
#
# By looking at all places with the same eyes. This notebook builds that: the definition in seven loops, the geometry
# of windows, and the one idea, *im2col*, that turns convolution into a matrix product, which computers do best. About
# an hour, three exercises.

# %%
import inspect
import os
import timeit
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import minivgg as mv
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures
from minivgg.ops.conv2d import ALGORITHMS, Algorithm, ConvSpec, conv2d_forward, naive
from minivgg.training.datasets import load
from minivgg.training.optim import SGD

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)
train, test = load("fashion-mnist-mini")

# %% [markdown]
# ## What is wrong with one template for each class
#
# Train the linear classifier of [notebook 01](01_linear_and_loss.ipynb) again, and then push the test pictures to the
# right, a pixel at a time.


# %%
def as_input(images):
    return (images.squeeze(-1)[:, None] / 128 - 1).astype(np.float32)


def pushed(images, by):
    return np.pad(images, ((0, 0), (0, 0), (by, 0), (0, 0)))[:, :, :28]


model = mv.Sequential(mv.Flatten(), mv.Linear(784, 10))
optimizer = SGD(model.named_params(), momentum=0.9)
for _ in range(1 if FAST else 4):
    for some in rng.permutation(len(train)).reshape(-1, 50):
        scores = model.forward(as_input(train.images[some]), train=True)
        _, cache = mv.softmax_cross_entropy_forward(scores, train.labels[some])
        model.zero_grad()
        model.backward(mv.softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(0.003)
shifts = range(9)
right = [
    np.mean(model.forward(as_input(pushed(test.images, by))).argmax(axis=1) == test.labels)
    for by in shifts
]

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2, 1))
axes[0].plot(shifts, right, "o-", color=pictures.BLUE)
axes[0].axhline(0.1, color=pictures.RED, linestyle="--", label="guessing")
axes[0].set(xlabel="pixels to the right", ylabel="test accuracy", ylim=(0, 1))
axes[0].legend()
axes[1].imshow(
    np.vstack([pushed(test.images[2:3], by)[0, :, :, 0] for by in (0, 4, 8)]), cmap="gray_r"
)
axes[1].set(xticks=[], yticks=[14, 42, 70], yticklabels=["0", "4", "8"])
axes[1].grid(False)
plt.show()
print(
    f"accuracy {right[0]:.1%} in place, {right[4]:.1%} four pixels to the right, {right[8]:.1%} eight"
)

# %% [markdown]
# ## One small filter, everywhere
#
# So take a template that is much smaller than the picture, say 3×3, and lay it on *every* place. At each place
# multiply what lies under it, element by element, and add up. The sums are a new picture: bright where the place looks
# like the template. Watch one being filled in.

# %%
image = np.zeros((6, 6))
image[1:5, 2:4] = 1
image[4, 4] = 1
edge = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])


def scenes():
    seen = np.full((4, 4), np.nan)
    for oh, ow in np.ndindex(4, 4):
        window = image[oh : oh + 3, ow : ow + 3]
        seen[oh, ow] = np.sum(window * edge)
        figure, axes = plt.subplots(1, 3, figsize=(8.4, 3), width_ratios=(6, 3, 4))
        drawing.matrix(axes[0], image, "the image", span=2)
        drawing.frame(axes[0], oh, ow, 3, 3)
        drawing.matrix(axes[1], edge, "the filter")
        drawing.matrix(axes[2], seen, f"what it sees: {seen[oh, ow]:g} here", span=4)
        drawing.frame(axes[2], oh, ow)
        plt.close(figure)
        yield figure


drawing.film(scenes())

# %% [markdown]
# This filter answers to upright edges: positive where it is bright on the left and dark on the right, negative the
# other way, and nothing in between. It needs nine weights, not $6\cdot6$, and it finds an edge wherever it is.
#
# A real layer does so with $C$ channels in and $O$ filters:
#
# $$y_{n,o,oh,ow} = \sum_{c}\sum_{kh}\sum_{kw} x_{n,\,c,\,oh\cdot s - p + kh,\,ow\cdot s - p + kw}\; w_{o,c,kh,kw}$$
#
# Four dimensions to go through, three to add up over. $s$ is the *stride*, how far the window moves each time; $p$ is
# the *padding*, how far it may reach over the edge, where $x$ counts as zero. (Mathematicians turn the filter around
# before they slide it, and call ours a cross-correlation. Everyone who trains networks calls it convolution: who
# learns the filter does not mind which way it is stored.)
#
# ## How many places?

# %%
figure, grid = plt.subplots(3, 1, figsize=(8, 4))
for axes, (size, kernel, stride, padding) in zip(
    grid, ((7, 3, 1, 0), (7, 3, 1, 1), (7, 3, 2, 1)), strict=True
):
    for place in range(-padding, size + padding):
        inside = 0 <= place < size
        axes.add_patch(
            plt.Rectangle((place, 0), 0.94, 0.8, color=pictures.BLUE if inside else "#DDDDDD")
        )
    starts = range(-padding, size + padding - kernel + 1, stride)
    for i, start in enumerate(starts):
        axes.plot(
            [start, start + kernel - 0.06], [-0.4 - 0.35 * i] * 2, color=pictures.RED, linewidth=3
        )
    axes.set(
        xlim=(-1.5, 8.5),
        ylim=(-3, 1),
        title=f"stride {stride}, padding {padding}: {len(starts)} windows",
    )
    axes.axis("off")
plt.show()

# %% [markdown]
# ### Exercise 04.1 · how many windows fit
#
# Write `output_size(size, kernel, stride, padding)`, an integer. You may assume that at least one window fits.
#
# <details><summary>Hint</summary>
#
# Along a line of `size + 2 * padding` places, where can a window begin? At the first place, and at every `stride`-th
# after it, as long as `kernel` places are left. Count the steps, then the places: one more.
#
# </details>


# %% exercise="04.1"
def output_size(size, kernel, stride, padding):
    ### BEGIN SOLUTION
    return (size + 2 * padding - kernel) // stride + 1
    ### END SOLUTION


# %%
check_exercise("04.1", output_size)

# %% [markdown]
# VGG's choice, 3×3 with stride 1 and padding 1, keeps the size: $(H + 2 - 3)/1 + 1 = H$. That is why it could be
# stacked sixteen deep, and only the pools make the picture smaller.
#
# ## The definition, in code
#
# In minivgg the geometry of a convolution is a `ConvSpec`. It knows all letters of the formula:

# %%
spec = ConvSpec.of((2, 3, 8, 9), (4, 3, 3, 3), stride=2, padding=1)
spec

# %%
print(f"x {spec.x_shape}, w {spec.w_shape} → y {spec.y_shape}; {spec.macs:,} multiply-adds")

# %% [markdown]
# ### Exercise 04.2 · convolution in seven loops
#
# Write `conv_forward(x, w, spec)`: x (N, C, H, W) and w (O, C, KH, KW) to y (N, O, OH, OW), in x's dtype.
# `spec.stride` and `spec.padding` are pairs, (down, right). Loops, please: nobody should leave here without having
# written them once.
#
# <details><summary>Hint: fewer colons</summary>
#
# `for n, o, oh, ow in np.ndindex(spec.y_shape):` is four loops in a line.
#
# </details>
# <details><summary>Hint: the edge</summary>
#
# Compute the row `h` and the column `v` that a tap of the filter looks at. If it is not in the image, there is nothing
# to add. Beware: in Python `x[..., -1]` is no error, but the *last* column.
#
# </details>


# %% exercise="04.2"
def conv_forward(x, w, spec):
    ### BEGIN SOLUTION
    y = np.zeros(spec.y_shape, x.dtype)
    (down, right), (top, left) = spec.stride, spec.padding
    for n, o, oh, ow in np.ndindex(spec.y_shape):
        for c, kh, kw in np.ndindex(spec.w_shape[1:]):
            h, v = oh * down - top + kh, ow * right - left + kw
            if 0 <= h < spec.H and 0 <= v < spec.W:
                y[n, o, oh, ow] += x[n, c, h, v] * w[o, c, kh, kw]
    return y
    ### END SOLUTION


# %%
check_exercise("04.2", conv_forward)

# %% [markdown]
# And now with your own code on a real picture. Four filters that people have drawn by hand for half a century; a
# network finds such ones by itself, in its first layer.

# %%
boot = (test.images[:1].squeeze(-1)[:, None] / 255).astype(np.float32)
by_hand = {
    "upright edges": edge,
    "level edges": edge.T,
    "outline": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "blur": np.ones((3, 3)) / 9,
}
filters = np.array(list(by_hand.values()), np.float32)[:, None]
seen = conv_forward(boot, filters, ConvSpec.of(boot.shape, filters.shape, padding=1))
figure, grid = plt.subplots(1, 5, figsize=(10, 2.4))
grid[0].imshow(boot[0, 0], cmap="gray_r")
grid[0].set_title("image")
for axes, name, y in zip(grid[1:], by_hand, seen[0], strict=True):
    axes.imshow(y, cmap="RdBu_r", vmin=-np.abs(y).max(), vmax=np.abs(y).max())
    axes.set_title(name, fontsize=11)
for axes in grid:
    axes.axis("off")
plt.show()

# %% [markdown]
# The library's `naive` is the same seven loops, written out, and compiled. Every faster algorithm in minivgg is held
# to it.

# %%
print(inspect.getsource(naive._forward.py_func))

# %% [markdown]
# ## How long would VGG take?
#
# Measure your loops on a small case, and count what VGG-16 asks for. Its thirteen convolutions, for one picture of
# 224×224 pixels:

# %%
vgg = [
    (f"conv{stage}_{i + 1}", ConvSpec.of((1, c, size, size), (o, c, 3, 3), padding=1))
    for stage, size, channels in (
        (1, 224, (3, 64, 64)),
        (2, 112, (64, 128, 128)),
        (3, 56, (128, 256, 256, 256)),
        (4, 28, (256, 512, 512, 512)),
        (5, 14, (512, 512, 512, 512)),
    )
    for i, (c, o) in enumerate(pairwise(channels))
]
total = sum(spec.macs for _, spec in vgg)
print(f"{len(vgg)} convolutions, {total / 1e9:.2f} billion multiply-adds")

# %% measured=true
small = ConvSpec.of((1, 3, 16, 16), (4, 3, 3, 3), padding=1)
x, w = rng.standard_normal(small.x_shape), rng.standard_normal(small.w_shape)
rates = {}
for name, function in (
    ("your loops in Python", conv_forward),
    ("the same loops, compiled", naive.forward),
):
    function(x, w, small)
    repeats = 1 if function is conv_forward else 200
    seconds = (
        min(timeit.repeat(lambda f=function: f(x, w, small), number=repeats, repeat=3)) / repeats
    )
    rates[name] = seconds / small.macs
    print(
        f"{name:26} {rates[name] * 1e9:9.2f} ns for each multiply-add, "
        f"VGG-16: {rates[name] * total:10,.0f} s a picture"
    )

# %% [markdown]
# Compiling helps a lot. It is not the end: a processor can do dozens of multiply-adds in the time of one, if they are
# laid out so that it can. There is one operation on which people have spent fifty years of such care: the product of
# two matrices. So make convolution a matrix product.
#
# ## im2col
#
# Lay what each window sees into one row of a matrix. Lay each filter into one column. Then every output is row times
# column, and all outputs together are one product.

# %%
tiny = np.arange(1, 17).reshape(4, 4)
rows = np.array([tiny[h : h + 3, v : v + 3].ravel() for h, v in np.ndindex(2, 2)])


def gathering():
    filled = np.full(rows.shape, np.nan)
    for place, (h, v) in enumerate(np.ndindex(2, 2)):
        filled[place] = rows[place]
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=(4, 9))
        drawing.matrix(axes[0], tiny, "image", span=16)
        drawing.frame(axes[0], h, v, 3, 3)
        drawing.matrix(axes[1], filled, "columns: a row for each window", span=16)
        drawing.frame(axes[1], place, 0, 1, 9)
        plt.close(figure)
        yield figure


drawing.film(gathering(), seconds=1.2)

# %% [markdown]
# Sixteen pixels have become thirty-six numbers; the inner ones are there four times. On a real layer nearly every
# pixel is there *nine* times. We pay in memory, and get a product in return.

# %% [markdown]
# ### Exercise 04.3 · im2col
#
# Write `im2col(x, spec)`: x (N, C, H, W) to a matrix (N·OH·OW, C·KH·KW). Rows in the order of $(n, oh, ow)$, and
# within a row $(c, kh, kw)$, the order in which a filter lies in memory. Zeros where a window reaches over the edge.
#
# <details><summary>Hint: loop over the filter, not over the image</summary>
#
# Pad $x$ first. Then, for a fixed tap $(kh, kw)$, what all windows see there is *one* slice of the padded image with
# steps of `stride`: nine slices, and no loop over pixels.
#
# </details>
# <details><summary>Hint: collecting</summary>
#
# Put the slices into an array (N, OH, OW, C, KH, KW), and reshape once, at the end. A slice is (N, C, OH, OW): move
# its channels to the back.
#
# </details>


# %% exercise="04.3"
def im2col(x, spec):
    ### BEGIN SOLUTION
    (down, right), (top, left) = spec.stride, spec.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    columns = np.empty((spec.N, spec.OH, spec.OW, spec.C, spec.KH, spec.KW), x.dtype)
    for kh, kw in np.ndindex(spec.KH, spec.KW):
        seen = padded[:, :, kh : kh + down * spec.OH : down, kw : kw + right * spec.OW : right]
        columns[..., kh, kw] = seen.transpose(0, 2, 3, 1)
    return columns.reshape(-1, spec.columns)
    ### END SOLUTION


# %%
check_exercise("04.3", im2col)

# %% [markdown]
# With it, a convolution is three lines. We make it a row of the library's table of algorithms, *the ladder*. Two of
# its three functions are still borrowed from the seven loops; they are the subject of the next notebook.


# %%
def my_forward(x, w, spec):
    y = im2col(x, spec) @ w.reshape(spec.O, -1).T
    return y.reshape(spec.N, spec.OH, spec.OW, spec.O).transpose(0, 3, 1, 2)


ALGORITHMS["mine"] = Algorithm(
    "mine", "my own im2col", my_forward, naive.grad_input, naive.grad_weight
)
x, w = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((5, 3, 3, 3))
mine, _ = conv2d_forward(x, w, stride=2, padding=1, algorithm="mine")
loops, _ = conv2d_forward(x, w, stride=2, padding=1, algorithm="naive")
print(f"largest difference from the seven loops: {np.abs(mine - loops).max():.1e}")

# %% [markdown]
# And from there it works in every network. A whole VGG, computed by your convolution:

# %%
pictures_in = np.pad(as_input(test.images[:4]), ((0, 0), (0, 0), (2, 2), (2, 2)))
scores = {}
for algorithm in ("mine", "auto"):
    network = mv.build(
        "vgg16", classes=10, channels=1, input_size=32, width=0.25, algorithm=algorithm, seed=0
    )
    scores[algorithm] = network.forward(pictures_in)
difference = np.abs(scores["mine"] - scores["auto"]).max() / np.abs(scores["auto"]).max()
print(
    f"VGG-16 by your convolution: {scores['mine'].shape} scores, "
    f"relative difference from ours {difference:.0e}"
)

# %% [markdown]
# ## What it costs
#
# The column matrix of each layer of VGG-16, for one picture, in float32, beside the picture that it is made of:

# %%
matrices = np.array([4 * spec.OH * spec.OW * spec.columns for _, spec in vgg]) / 2**20
inputs = np.array([4 * spec.C * spec.H * spec.W for _, spec in vgg]) / 2**20
figure, axes = plt.subplots(figsize=(8.5, 3.2))
places = np.arange(len(vgg))
axes.bar(places - 0.2, matrices, 0.4, color=pictures.ORANGE, label="column matrix")
axes.bar(places + 0.2, inputs, 0.4, color=pictures.BLUE, label="its input")
axes.set_xticks(places, [name for name, _ in vgg], rotation=45, ha="right")
axes.set(ylabel="MiB")
axes.legend()
plt.show()
print(
    f"conv1_2: {matrices[1]:.0f} MiB from {inputs[1]:.1f}; all layers {matrices.sum():.0f} MiB a picture"
)

# %% [markdown]
# Keeping that for the way back, as many a teaching framework does, costs gigabytes for a batch. The library makes the
# matrix in chunks that fit a small workspace, and makes it again in backward rather than keep it.

# %%
from minivgg.ops.conv2d import im2col as library

print(inspect.getsource(library.forward))
print(inspect.getsource(library._chunks))

# %% [markdown]
# ## Measure
#
# One layer from the middle of VGG, four ways.

# %% measured=true
spec = dict(vgg)["conv5_1"] if FAST else dict(vgg)["conv4_2"]
x = rng.standard_normal(spec.x_shape, dtype=np.float32)
w = rng.standard_normal(spec.w_shape, dtype=np.float32)
for name in ("naive", "mine", "im2col", "auto"):
    conv2d_forward(x, w, padding=1, algorithm=name)
    repeats = 1 if name == "naive" else 3
    run = timeit.repeat(
        lambda name=name: conv2d_forward(x, w, padding=1, algorithm=name), number=1, repeat=repeats
    )
    print(f"{name:7} {min(run) * 1e3:9.2f} ms   {2 * spec.macs / min(run) / 1e9:7.2f} GFLOP/s")

# %% [markdown]
# ## What you have now
#
# - One filter, everywhere: few weights, and what is learnt in one place is known in all.
# - $\lfloor (H + 2p - K)/s\rfloor + 1$ windows; 3×3 with padding 1 keeps the size.
# - Seven loops as the definition; im2col, which makes them one matrix product and pays in memory.
# - Your own convolution in a real VGG, by one argument.
#
# Next: [the way back through it](05_convolution_backward.ipynb), which turns out to be two more convolutions.
