# %% [markdown]
# # 05 · The way back through a convolution
#
# Forward, each output asked nine pixels for their value. Now the loss says how it would like each output to change.
# **How much of that does one pixel owe, and how much one weight?**
#
# The formulas in the literature flip filters, swap channels and pad by $K-1-p$. You need none of that to get it right;
# it will fall out at the end. Training is three convolutions, and this is the other two. About an hour and a half,
# three exercises.

# %%
import inspect
import os
import timeit

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import minivgg as mv
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures
from minivgg.ops.conv2d import (
    ALGORITHMS,
    Algorithm,
    ConvSpec,
    conv2d_backward,
    conv2d_forward,
    naive,
)
from minivgg.testing import check_conv
from minivgg.training.datasets import load
from minivgg.training.optim import SGD

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## One product at a time
#
# In the innermost of the seven loops there is a single line:
#
# $$y_{n,o,oh,ow} \mathrel{+}= x_{n,c,h,v}\cdot w_{o,c,kh,kw}$$
#
# That is all a convolution does. And we know what a product owes: if $y \mathrel{+}= x\,w$, then a small change of $x$
# changes $y$ by $w$ times as much, and so
#
# $$dx_{n,c,h,v} \mathrel{+}= dy_{n,o,oh,ow}\cdot w_{o,c,kh,kw} \qquad\qquad
# dw_{o,c,kh,kw} \mathrel{+}= dy_{n,o,oh,ow}\cdot x_{n,c,h,v}$$
#
# with **the same indices**, for the same triples of $x$, $w$ and $y$ that met in forward. `+=`, because a pixel takes
# part in many products, and owes something for each. So the two backward passes are the seven loops of forward with
# another last line. No flip, no special padding; a tap that fell over the edge in forward falls over the edge here.

# %% [markdown]
# ### Exercise 05.1 · the gradient of the filters
#
# Write `grad_weight(dy, x, spec)`: dy (N, O, OH, OW) and x (N, C, H, W) to dw (O, C, KH, KW).
#
# <details><summary>Hint: seven loops</summary>
#
# Take your forward of the last notebook, and change what is added to what.
#
# </details>
# <details><summary>Hint: two loops</summary>
#
# For a fixed tap $(kh, kw)$, what all windows see there is one slice of the padded image, as in im2col. Then $dw$ at
# this tap is a sum over $n$, $oh$ and $ow$ of slice times dy: `np.einsum("nchw,nohw->oc", seen, dy)`.
#
# </details>


# %% exercise="05.1"
def grad_weight(dy, x, spec):
    ### BEGIN SOLUTION
    dw = np.zeros(spec.w_shape, dy.dtype)
    (down, right), (top, left) = spec.stride, spec.padding
    for n, o, oh, ow in np.ndindex(spec.y_shape):
        for c, kh, kw in np.ndindex(spec.w_shape[1:]):
            h, v = oh * down - top + kh, ow * right - left + kw
            if 0 <= h < spec.H and 0 <= v < spec.W:
                dw[o, c, kh, kw] += dy[n, o, oh, ow] * x[n, c, h, v]
    return dw
    ### END SOLUTION


# %%
check_exercise("05.1", grad_weight)

# %% [markdown]
# ### Exercise 05.2 · the gradient of the input
#
# Write `grad_input(dy, w, spec)`: dy (N, O, OH, OW) and w (O, C, KH, KW) to dx (N, C, H, W). `spec.x_shape` knows how
# large that is; with a stride, it cannot be told from dy alone.
#
# <details><summary>Hint: two loops</summary>
#
# Make a dx with its padding, $(H + 2p) \times (W + 2p)$. For a fixed tap, all windows add dy·w to one slice of it: the
# very slice that forward read there. Cut the padding off at the end.
#
# </details>
# <details><summary>Hint: if only the border is wrong</summary>
#
# What falls into the padding is lost, and rightly: forward read a zero there, which nobody owns. But a window that
# reaches over the edge has other taps, which lie inside.
#
# </details>


# %% exercise="05.2"
def grad_input(dy, w, spec):
    ### BEGIN SOLUTION
    (down, right), (top, left) = spec.stride, spec.padding
    padded = np.zeros((spec.N, spec.C, spec.H + 2 * top, spec.W + 2 * left), dy.dtype)
    for kh, kw in np.ndindex(spec.KH, spec.KW):
        owed = np.einsum("nohw,oc->nchw", dy, w[:, :, kh, kw])
        end = kh + down * spec.OH, kw + right * spec.OW
        padded[:, :, kh : end[0] : down, kw : end[1] : right] += owed
    return padded[:, :, top : top + spec.H, left : left + spec.W].copy()
    ### END SOLUTION


# %%
check_exercise("05.2", grad_input)

# %% [markdown]
# ## What it looks like
#
# Forward *gathers*: an output looks at nine pixels. Backward *scatters*: an output hands something to the same nine
# pixels. Each $dy$ stamps the filter, as large as itself, onto $dx$, and where stamps overlap they add up.

# %%
stamp = np.array([[1.0, 2, 1], [0, 3, 0], [-1, 0, 2]])[None, None]
upstream = np.zeros((1, 1, 4, 4))
upstream[0, 0, [0, 1, 3], [0, 2, 2]] = 1, 2, -1
scene = ConvSpec.of((1, 1, 6, 6), stamp.shape)


def stamping():
    so_far = np.zeros(upstream.shape)
    for oh, ow in np.argwhere(upstream[0, 0]):
        so_far[0, 0, oh, ow] = upstream[0, 0, oh, ow]
        figure, axes = plt.subplots(1, 3, figsize=(8.4, 3), width_ratios=(4, 3, 6))
        drawing.matrix(axes[0], upstream[0, 0], "dy", span=3)
        drawing.frame(axes[0], oh, ow)
        drawing.matrix(axes[1], stamp[0, 0], "w", span=3)
        drawing.matrix(axes[2], grad_input(so_far, stamp, scene)[0, 0], "dx so far", span=6)
        drawing.frame(axes[2], oh, ow, 3, 3)
        plt.close(figure)
        yield figure


drawing.film(stamping(), seconds=1.5)

# %% [markdown]
# ## Transposed
#
# For a fixed $w$, convolution is linear in $x$: there is a matrix $T$ with $y = T\,x$, if images are written as long
# vectors. We can look at it: push an image through that is zero but for a single one, and what comes out is a column.
# The same with `grad_input` gives a matrix that goes from $dy$ to $dx$.


# %%
def matrix_of(function, shape):
    ones = np.eye(np.prod(shape)).reshape(-1, *shape)
    return np.stack([function(one[None]).ravel() for one in ones], axis=1)


T = matrix_of(lambda x: naive.forward(x, stamp, scene), scene.x_shape[1:])
back = matrix_of(lambda dy: grad_input(dy, stamp, scene), scene.y_shape[1:])
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(36, 16))
drawing.matrix(axes[0], T, f"forward: y = T·x, T {T.shape}", numbers="")
drawing.matrix(axes[1], back, f"backward: dx = B·dy, B {back.shape}", numbers="")
plt.show()
print(f"B is T transposed: {np.array_equal(back, T.T)}")
print(
    f"{np.mean(T != 0):.0%} of T is not zero, and there are only {np.unique(T[T != 0]).size} values"
)

# %% [markdown]
# The bands are the filter, again and again. Backward is the *transpose*: not the inverse, which would undo forward,
# but the same connections used the other way. (A layer that has this as its forward is called a transposed
# convolution.)
#
# From it comes the best test there is for a linear layer. A matrix and its transpose satisfy, for *any* two vectors,
#
# $$\langle T x,\, dy\rangle = \langle x,\, T^\top dy\rangle$$
#
# with no step $h$, no tolerance but rounding, and in one line. It is the *adjoint identity*, and it works for $w$ too,
# since a convolution is linear in the filter as well:

# %%
spec = ConvSpec.of((2, 3, 9, 8), (4, 3, 3, 3), stride=2, padding=1)
x, w, dy = (rng.standard_normal(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
y = naive.forward(x, w, spec)
print(f"⟨y, dy⟩  = {np.vdot(y, dy):.12f}")
print(f"⟨x, dx⟩  = {np.vdot(x, grad_input(dy, w, spec)):.12f}")
print(f"⟨w, dw⟩  = {np.vdot(w, grad_weight(dy, x, spec)):.12f}")

# %% [markdown]
# ## The three convolutions of training
#
# Now the flip. Ask the question from the pixel's side: which outputs did pixel $(h, v)$ speak to? Those with $oh = h +
# p - kh$ for some tap $kh$ (with stride 1). As $kh$ goes up, $oh$ goes *down*. So, seen from dx, the filter lies over
# dy turned around:
#
# $$dx_{n,c,h,v} = \sum_o\sum_{kh,kw} dy_{n,o,\,h+p-kh,\,v+p-kw}\; w_{o,c,kh,kw}$$
#
# Turn the filter by 180°, let input and output channels change places, and it is an ordinary convolution of dy, with a
# padding of $K - 1 - p$. And $dw$ is one too: of $x$, with $dy$ as a very large filter, batch and channels having
# changed places. Nothing but forward is needed:


# %%
def dx_by_forward(dy, w, p):
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    return conv2d_forward(dy, turned, padding=w.shape[2] - 1 - p)[0]


def dw_by_forward(dy, x, p):
    return conv2d_forward(x.swapaxes(0, 1), dy.swapaxes(0, 1), padding=p)[0].swapaxes(0, 1)


spec = ConvSpec.of((2, 3, 9, 8), (4, 3, 3, 3), padding=1)
dy = rng.standard_normal(spec.y_shape)
print(
    f"dx: largest difference {np.abs(dx_by_forward(dy, w, 1) - grad_input(dy, w, spec)).max():.0e}"
)
print(
    f"dw: largest difference {np.abs(dw_by_forward(dy, x, 1) - grad_weight(dy, x, spec)).max():.0e}"
)

# %% [markdown]
# So whoever makes one convolution fast has made training fast; and a step of training costs three times a forward.
# (With a stride, spread dy out first, with $s - 1$ zeros between its pixels. Most of the work is then multiplying by
# zero, which is why libraries rather scatter.)
#
# ## Who is asked how often?
#
# Let every output hand back a one, through a filter of ones: dx then counts by how many windows each pixel was seen.

# %%
figure, grid = plt.subplots(1, 4, figsize=(11, 3))
for axes, (K, stride, padding) in zip(
    grid, ((3, 1, 0), (3, 1, 1), (3, 2, 1), (2, 3, 0)), strict=True
):
    seen = ConvSpec.of((1, 1, 8, 8), (1, 1, K, K), stride, padding)
    counts = grad_input(np.ones(seen.y_shape), np.ones(seen.w_shape), seen)[0, 0]
    drawing.matrix(axes, counts, f"{K}×{K}, stride {stride}, padding {padding}", span=9)
plt.show()

# %% [markdown]
# The border is heard less than the middle, even with padding. With a stride that does not divide the window evenly,
# there is a checkerboard, which shows in saliency maps and in pictures that networks generate. With a stride longer
# than the window, some pixels are not seen at all, and their gradient must be exactly zero.
#
# ## Fast: col2im
#
# By im2col, forward was $Y = X_{col}\,W^\top$, with $Y$ (pixels, O), $X_{col}$ (pixels, C·KH·KW) and $W$ (O, C·KH·KW).
# The way back through a matrix product is what notebook 01 found:
#
# $$dW = dY^\top X_{col} \qquad\qquad dX_{col} = dY\,W$$
#
# The left one is finished. The right one is the gradient of the *column matrix*, where most pixels stand many times.
# The way back from copying is adding up.

# %% [markdown]
# ### Exercise 05.3 · col2im, the adjoint of im2col
#
# Write `col2im(columns, spec)`: (N·OH·OW, C·KH·KW) to (N, C, H, W), each number added to the pixel that im2col has
# copied it from; what it took from the padding goes nowhere.
#
# <details><summary>Hint</summary>
#
# Reshape to (N, OH, OW, C, KH, KW). For each tap, `+=` a slice of it to the slice of a padded dx that im2col has read
# there. The two slices are the same in both functions.
#
# </details>


# %% exercise="05.3"
def col2im(columns, spec):
    ### BEGIN SOLUTION
    (down, right), (top, left) = spec.stride, spec.padding
    columns = columns.reshape(spec.N, spec.OH, spec.OW, spec.C, spec.KH, spec.KW)
    padded = np.zeros((spec.N, spec.C, spec.H + 2 * top, spec.W + 2 * left), columns.dtype)
    for kh, kw in np.ndindex(spec.KH, spec.KW):
        end = kh + down * spec.OH, kw + right * spec.OW
        padded[:, :, kh : end[0] : down, kw : end[1] : right] += columns[..., kh, kw].transpose(
            0, 3, 1, 2
        )
    return padded[:, :, top : top + spec.H, left : left + spec.W].copy()
    ### END SOLUTION


# %%
check_exercise("05.3", col2im)

# %% [markdown]
# ## A whole algorithm of your own
#
# With a gather for im2col (as a view, in one line: NumPy can show all windows without copying), these are three matrix
# products. A row of the ladder, and this time all of it is yours.


# %%
def im2col(x, spec):
    (down, right), (top, left) = spec.stride, spec.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (spec.KH, spec.KW), axis=(2, 3))
    return windows[:, :, ::down, ::right].transpose(0, 2, 3, 1, 4, 5).reshape(-1, spec.columns)


def pixels(y):
    return y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])


def my_forward(x, w, spec):
    y = im2col(x, spec) @ w.reshape(spec.O, -1).T
    return np.ascontiguousarray(y.reshape(spec.N, spec.OH, spec.OW, spec.O).transpose(0, 3, 1, 2))


def my_grad_weight(dy, x, spec):
    return (pixels(dy).T @ im2col(x, spec)).reshape(spec.w_shape)


def my_grad_input(dy, w, spec):
    return col2im(pixels(dy) @ w.reshape(spec.O, -1), spec)


ALGORITHMS["mine"] = Algorithm(
    "mine", "three matrix products", my_forward, my_grad_input, my_grad_weight
)
print(check_conv("mine", "VGG", "even window", "AlexNet's first", raise_on_failure=False))

# %% [markdown]
# Every rule that the library's own algorithms are held to. Now let it learn: a small VGG, once by your convolution and
# once by the library's, from the same weights on the same pictures.

# %%
train, test = load("fashion-mnist-mini")


def as_input(images):
    return np.pad(
        (images.squeeze(-1)[:, None] / 128 - 1).astype(np.float32), ((0, 0), (0, 0), (2, 2), (2, 2))
    )


def trained(algorithm, steps):
    options = {
        "classes": 10,
        "channels": 1,
        "input_size": 32,
        "width": 1 / 8,
        "classifier_width": 64,
    }
    model = mv.build("vgg11_bn", **options, algorithm=algorithm, seed=0)
    optimizer, order, history = (
        SGD(model.named_params(), momentum=0.9),
        np.random.default_rng(0),
        [],
    )
    for _ in range(steps):
        some = order.integers(0, len(train), 32)
        scores = model.forward(as_input(train.images[some]), train=True)
        loss, cache = mv.softmax_cross_entropy_forward(scores, train.labels[some])
        model.zero_grad()
        model.backward(mv.softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(0.02)
        history.append(loss)
    return model, history


steps = 20 if FAST else 120
(mine, my_losses), (_, losses) = trained("mine", steps), trained("auto", steps)
some = slice(0, 200 if FAST else 1000)
accuracy = np.mean(mine.forward(as_input(test.images[some])).argmax(axis=1) == test.labels[some])

# %%
figure, axes = plt.subplots(figsize=(7, 3))
axes.plot(losses, color=pictures.BLUE, linewidth=3, alpha=0.5, label="library")
axes.plot(my_losses, color=pictures.RED, linewidth=1, label="mine")
axes.axhline(np.log(10), color=pictures.GREY, linestyle="--", label="log 10")
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
axes.legend()
plt.show()
apart = np.abs(np.array(my_losses[:10]) - losses[:10]).max()
print(
    f"first ten losses differ by at most {apart:.0e}; "
    f"test accuracy of the VGG that you trained: {accuracy:.1%}"
)

# %% [markdown]
# The curves begin together and drift apart: two ways to add the same numbers round differently, and training magnifies
# any difference. Neither is more right.
#
# ## The library's, and the clock

# %%
from minivgg.ops.conv2d import im2col as library

print(inspect.getsource(library.grad_input))
print(inspect.getsource(library._scatter_add))

# %% [markdown]
# The same product and the same scatter (a GPU has its own), with two worries more: memory that stays small, and
# threads. Two threads that add to the same pixel at the same time would lose one of the sums, so each row of dx belongs
# to one thread, which collects from all windows that overlap it.

# %% measured=true
spec = ConvSpec.of((1, 128, 28, 28) if FAST else (4, 128, 56, 56), (128, 128, 3, 3), padding=1)
x, w, dy = (
    rng.standard_normal(s, dtype=np.float32) for s in (spec.x_shape, spec.w_shape, spec.y_shape)
)
print(f"{'':9}{'forward':>12}{'backward':>12}   (dx and dw)")
for name in ("mine", "im2col", "auto"):
    _, cache = conv2d_forward(x, w, padding=1, algorithm=name)
    conv2d_backward(dy, cache)
    forward = min(
        timeit.repeat(
            lambda n=name: conv2d_forward(x, w, padding=1, algorithm=n), number=1, repeat=3
        )
    )
    backward = min(timeit.repeat(lambda c=cache: conv2d_backward(dy, c), number=1, repeat=3))
    print(
        f"{name:9}{forward * 1e3:9.1f} ms{backward * 1e3:9.1f} ms   {backward / forward:.1f} times"
    )

# %% [markdown]
# ## What you have now
#
# - Every product hands dy·w to its pixel and dy·x to its weight. Same loops, same indices.
# - Backward is the transpose; $\langle y, dy\rangle = \langle x, dx\rangle = \langle w, dw\rangle$ tests it in a line.
# - Seen from the other side both are convolutions, with the filter turned; and im2col's way back is col2im.
# - A convolution of your own, both ways, held to every rule, that has trained a VGG.
#
# Next: [what stands between the convolutions](06_pooling_and_norms.ipynb).
