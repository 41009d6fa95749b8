# %% [markdown]
# # 10 · Fast on a CPU
#
# Compiled, the seven loops of a convolution are as short as a program can be. Nothing in them is superfluous. And yet
# the same processor can do the same layer many times faster.
#
# **How fast could it be at all, and where do the seven loops lose it?**
#
# We measure the roof first, and then climb: caches, vectors, registers, and at last an idea of mathematics, which goes
# through the roof. About 60 minutes, one exercise. The times on this page are of the machine that built it; run it, and
# they are yours.

# %%
import inspect
import os
import re
import timeit
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from minivgg.backends import microkernel
from minivgg.backends.jit import threads
from minivgg.bench.limits import fma_task, limits
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures
from minivgg.ops.conv2d import ConvSpec, algorithms_on, conv2d_forward, explain, toom_cook
from minivgg.ops.gemm import gemm

FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
threadpool_limits(1, "blas")
rng = np.random.default_rng(0)


def fewest_seconds(tasks, turns):
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(turns):
        for name, run in tasks.items():
            began = timeit.default_timer()
            run()
            best[name] = min(best[name], timeit.default_timer() - began)
    return best


# %% [markdown]
# ## The roof
#
# A processor does two things for us: it multiplies and adds, and it fetches numbers from memory. Each has a speed that
# no program can beat. No table knows how much of a machine is ours, so minivgg measures: multiply-adds that never leave
# the registers, and sums of an array that is larger than any cache.

# %% measured=true
roof = limits()
print(
    f"{threads()} threads: {roof['fma_gflops']:.0f} GFLOP/s; one thread: {roof['fma_gflops_1']:.0f}"
)
print(f"reading memory: {roof['read_gbs']:.1f} GB/s")
ridge = roof["fma_gflops"] / roof["read_gbs"]
print(
    f"so a byte must be worth {ridge:.0f} FLOP, or a float {4 * ridge:.0f}, to keep the units busy"
)

# %% [markdown]
# The last line is what this page is about. A number that is fetched from memory and used once keeps the arithmetic
# waiting nearly all of the time. So the first question about any operation is its *intensity*: how many FLOP is a byte
# good for, if every number is fetched only once?


# %%
def intensity(flop, floats):
    return flop / (4 * floats)


def of_convolution(spec):
    floats = sum(np.prod(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    return intensity(2 * spec.macs, floats)


layer = ConvSpec.of((1, 256, 56, 56), (256, 256, 3, 3), padding=1)
n = 4096
intensities = {
    "ReLU": intensity(1, 2),
    "linear layer, one image": intensity(2 * n * n, n * n + 2 * n),
    "linear layer, 64 images": intensity(2 * 64 * n * n, n * n + 2 * 64 * n),
    "VGG's conv3_2, one image": of_convolution(layer),
}
for name, flop in intensities.items():
    print(f"{name:26} {flop:8.2f} FLOP a byte")

# %% [markdown]
# Draw the two speeds over the intensity, and they make a roof. On its slope memory decides, on its flat part
# arithmetic. This picture is called a *roofline* (Williams, Waterman & Patterson, 2009).

# %% measured=true
figure, axes = plt.subplots(figsize=(9, 4))
reach = np.geomspace(0.05, 2000, 200)
axes.plot(reach, np.minimum(roof["fma_gflops"], roof["read_gbs"] * reach), color=pictures.GREY)
for (name, flop), colour in zip(
    intensities.items(),
    (pictures.RED, pictures.ORANGE, pictures.GREEN, pictures.BLUE),
    strict=True,
):
    best = min(roof["fma_gflops"], roof["read_gbs"] * flop)
    axes.plot(flop, best, "o", color=colour, markersize=9, label=f"{name}: {best:.0f} at most")
axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# A ReLU cannot be fast, whoever writes it; it can only be done in passing, while its number is in a register for
# another reason. A convolution has all it needs to be as fast as the processor: each of its numbers is wanted hundreds
# of times. *If* each were fetched only once. That "if" is the work.
#
# ## Caches
#
# Between memory and registers are caches: small, smaller, and fast. What was used a moment ago is still there. So the
# *order* of a computation decides what it costs, though its result is the same. Here is a matrix product, the heart of
# every convolution, in three orders.


# %%
@njit
def dot_by_dot(a, b, c):
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit
def row_by_row(a, b, c):
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit
def block_by_block(a, b, c):
    for first in range(0, a.shape[1], 64):
        for i in range(a.shape[0]):
            for k in range(first, min(first + 64, a.shape[1])):
                for j in range(b.shape[1]):
                    c[i, j] += a[i, k] * b[k, j]


# %% [markdown]
# Which elements of $b$ does each of them touch one after the other? Numbers say when.

# %%
small = np.zeros((4, 8))
column, whole, block = (np.full(small.shape, np.nan) for _ in range(3))
for step, (k, j) in enumerate((k, j) for j in range(8) for k in range(4)):
    column[k, j] = step
for step, (k, j) in enumerate(np.ndindex(4, 8)):
    whole[k, j] = step
for step, (k, j) in enumerate(np.ndindex(2, 8)):
    block[k, j] = step
figure, panels = plt.subplots(1, 3, figsize=(10, 2))
for axes, when, title in (
    (panels[0], column, "dot by dot: down the columns"),
    (panels[1], whole, "row by row: all of b, for each i"),
    (panels[2], block, "rows of a block, kept for all i"),
):
    drawing.matrix(axes, when, title, span=32)
plt.show()

# %% [markdown]
# Down a column, each step is a whole row further in memory: of the 64 bytes that a cache fetches, 4 are used. Along a
# row all 64 are used, and a vector of neighbours can be multiplied at once. But all of $b$ passes by for every row of
# $a$; if it is larger than a cache, then it comes from further away every time. A block of 64 rows fits, stays, and is
# used for every $i$ before the next one is fetched.

# %% measured=true
alone, together = fma_task(1), fma_task()
names = ("dot by dot", "row by row", "block by block", "the library's")
products = dict(zip(names, (dot_by_dot, row_by_row, block_by_block, gemm), strict=True))
for n in (128, 256) if FAST else (512, 2048):
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    print(f"{n} × {n}, b has {b.nbytes / 2**20:.1f} MiB")
    for name, product in products.items():
        if name == "dot by dot" and n > 512:
            continue
        c = np.zeros((n, n), np.float32)
        product(a, b, c)
        assert np.allclose(c, a @ b, atol=1e-3 * n**0.5)
        burst = together if product is gemm else alone
        took = fewest_seconds(
            {"product": lambda p=product, a=a, b=b, c=c: p(a, b, c), "burst": burst},
            turns=5 if n > 512 else 20,
        )
        speed = 2 * n**3 / took["product"] / 1e9
        share = speed / (burst() / took["burst"] / 1e9)
        print(f"  {name:15} {speed:7.1f} GFLOP/s, {share:6.1%} of what its threads can do")

# %% [markdown]
# The result is the same in each, and so is the number of multiplications; only the order differs. (The first three run
# on one thread, the library's on all; so compare the shares of what the machine could do at that moment. Dot by dot,
# the larger product would take a minute.) Blocks pay where $b$ is too large for a core's own cache and the next one is
# slow, or shared with busy neighbours. Where $b$ fits, it stays by itself, and a quick third-level cache keeps up with
# one thread of this kind: there blocks only cost. Something is still missing after the caches.
#
# ## Vectors, and a block of sums
#
# A register of an AVX-512 processor holds 16 floats, and a multiply-add does all 16. There are 32 such registers. A
# core starts two multiply-adds in each cycle, and fetches at most two vectors from its first-level cache in that time.
# Look at the innermost line of `block_by_block`: for one multiply-add it reads $b$, reads $c$, and writes $c$. It can
# never keep the units busy, wherever its numbers are.
#
# The cure is the same as for memory, one floor higher: keep a small block of *sums* in registers. With $r$ rows and $v$
# vectors across, a step along $k$ fetches $v$ vectors of $b$ and $r$ single numbers of $a$, and does $r\cdot v$
# multiply-adds:

# %%
print("rows  vectors  registers  fetched a step  multiply-adds  multiply-adds a fetch")
for rows, vectors in ((1, 1), (2, 2), (4, 2), (8, 2), (14, 2), (16, 2)):
    registers = rows * vectors + vectors + 1
    fits = "" if registers <= 32 else "   too many"
    fetched, products = rows + vectors, rows * vectors
    print(
        f"{rows:4} {vectors:8} {registers:10} {fetched:15} {products:14} {products / fetched:15.2f}{fits}"
    )

# %% [markdown]
# At one multiply-add a fetch the two speeds are in balance; 14 rows and 2 vectors are well on the safe side, and just
# fit. This is the *micro-kernel*. Every fast algorithm of minivgg is a way to bring numbers to it. Numba's own
# vectoriser would not keep 28 sums in registers, so the library traces a Python function into vector instructions; it
# still reads like one:

# %%
text = Path(microkernel.__file__).read_text()
print(re.search(r"def sums_of_products.*?(?=\n\n\n)", text, re.DOTALL)[0])

# %% [markdown]
# A step has room for a few more instructions: `meanwhile` mostly asks for a cache line that some later product will
# need. Asked for evenly, one in each step, memory answers while the units multiply, and its answer costs nothing.
#
# ## Fewer multiplications
#
# Now arithmetic runs at nearly its full speed, and a layer has so and so many multiplications. That is the end.
#
# Unless it can be done with fewer. Take the smallest piece of a convolution: a signal of four numbers, a filter of
# three, two outputs.
#
# $$y_0 = d_0 g_0 + d_1 g_1 + d_2 g_2 \qquad y_1 = d_1 g_0 + d_2 g_1 + d_3 g_2$$
#
# Six multiplications. Shmuel Winograd does it with four.
#
# ### Where it comes from: polynomials
#
# Multiply two polynomials, and their coefficients are convolved: of $g(t) = g_0 + g_1 t + g_2 t^2$ and $u(t) = u_0 +
# u_1 t$, the product has four coefficients, made of six products $g_i u_j$. But a polynomial of degree 3 is also known
# from its values at *four* points; and at a point, the product's value is one number times another. Four
# multiplications. Choose points at which values are cheap, $0$, $1$, $-1$ and $\infty$ (where a polynomial's "value" is
# its leading coefficient):
#
# | point | $g$ | $u$ |
# |---|---|---|
# | $0$ | $g_0$ | $u_0$ |
# | $1$ | $g_0 + g_1 + g_2$ | $u_0 + u_1$ |
# | $-1$ | $g_0 - g_1 + g_2$ | $u_0 - u_1$ |
# | $\infty$ | $g_2$ | $u_1$ |
#
# This makes four numbers of two and three. We want two numbers of four and three, the same thing *backwards*: the
# adjoint, which is found by transposing the matrices, as for every linear map in this course. Out comes
#
# $$m_0 = (d_0 - d_2)\,g_0 \qquad m_1 = (d_1 + d_2)\,\tfrac{g_0 + g_1 + g_2}{2} \qquad
# m_2 = (d_2 - d_1)\,\tfrac{g_0 - g_1 + g_2}{2} \qquad m_3 = (d_1 - d_3)\,g_2$$
#
# Two sums of these are $y_0$ and $y_1$. Which?

# %% [markdown]
# ### Exercise 10.1 · two outputs by four multiplications
#
# Write `f23(d, g)`, which gives $y_0$ and $y_1$ of a signal `d` of four numbers and a filter `g` of three. Only four
# times may something made of `d` be multiplied by something made of `g`. Halving is free: the filter's half can be
# prepared once, and used for all of the image.
#
# The checker passes numbers that are exact, and that count.
#
# <details><summary>Hint: the middle two</summary>
#
# Multiply out $m_1 + m_2$ and $m_1 - m_2$. In each of them half of the terms cancel, and the other half loses its
# factor of one half.
#
# </details>
# <details><summary>Hint: what is left</summary>
#
# $m_1 + m_2 = d_1 g_1 + d_2 g_0 + d_2 g_2$. What must be added so that $d_2 g_0$ goes, and $d_0 g_0$ comes?
#
# </details>


# %% exercise="10.1"
def f23(d, g):
    ### BEGIN SOLUTION
    m0 = (d[0] - d[2]) * g[0]
    m1 = (d[1] + d[2]) * ((g[0] + g[1] + g[2]) / 2)
    m2 = (d[2] - d[1]) * ((g[0] - g[1] + g[2]) / 2)
    m3 = (d[1] - d[3]) * g[2]
    return m0 + m1 + m2, m1 - m2 - m3
    ### END SOLUTION


# %%
check_exercise("10.1", f23)

# %% [markdown]
# In matrices, with $\odot$ for the product element by element:
#
# $$y = A^\top\,[(G g) \odot (B^\top d)]$$
#
# Toom and Cook's recipe makes the three matrices for any number of outputs and any filter. The library's, exactly, in
# fractions:

# %%
print(inspect.getsource(toom_cook.matrices))
made = toom_cook.matrices(2, 3)
for name, rows in zip(("A transposed", "G", "B transposed"), made, strict=True):
    print(f"\n{name}")
    for row in rows:
        print("".join(f"{number!s:>6}" for number in row))
d, g = [Fraction(v) for v in (3, 1, 4, 1)], [Fraction(v) for v in (2, 7, 1)]
products = [
    p * q
    for p, q in zip(toom_cook.times(made.filters, g), toom_cook.times(made.inputs, d), strict=True)
]
y = toom_cook.times(made.outputs, products)
print(f"\ny = {', '.join(map(str, y))}; yours: {', '.join(map(str, f23(d, g)))}")

# %% [markdown]
# Row by row it is yours, but for signs and for where the halves are kept.
#
# ### In two dimensions
#
# Do it along the columns of a tile, then along its rows. A 4×4 tile of the image gives 2×2 outputs of a 3×3 filter by
# $4\cdot4 = 16$ multiplications, where the definition takes $2\cdot2\cdot9 = 36$. Larger tiles save more. They need
# more points, and points far from 0 and 1 make large numbers of small ones, which cancel later. Both can be computed:

# %%
saved, grown, tiles = [], [], range(2, 7)
for m in tiles:
    saved.append(9 * m * m / (m + 2) ** 2)
    grown.append(toom_cook.growth(m, 3))
    print(
        f"F({m}×{m}, 3×3): {9 * m * m:3} multiplications become {(m + 2) ** 2:2}, "
        f"{saved[-1]:.2f} times fewer; rounding grows {grown[-1]:8.1f} times"
    )
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
labels = [f"F({m}×{m})" for m in tiles]
axes[0].bar(labels, saved, color=pictures.BLUE)
axes[0].set(title="multiplications: times fewer")
axes[1].bar(labels, grown, color=pictures.ORANGE)
axes[1].set(title="rounding: times more")
for panel in axes:
    panel.tick_params(axis="x", labelsize=9)
plt.show()

# %% [markdown]
# This is why the library stops at F(4×4, 3×3): a quarter of the multiplications, at the price of about a digit.
# Between the transforms, a product for each of the 36 places is summed over all channels, and *that* is a matrix
# product: the micro-kernel again.
#
# ## The ladder
#
# Now every rung on one layer, VGG's conv3_2 on one image. The time, its speed counted in the multiplications of the
# definition, and the error against float64. What a shared machine can do changes from minute to minute, so the roof is
# measured again, in turns with the rungs.

# %%
spec = ConvSpec.of((1, 64, 28, 28), (64, 64, 3, 3), padding=1) if FAST else layer
x = rng.standard_normal(spec.x_shape, np.float32)
w = rng.standard_normal(spec.w_shape, np.float32) / np.float32(spec.columns**0.5)
exact, _ = conv2d_forward(x.astype(np.float64), w.astype(np.float64), padding=1, algorithm="im2col")
rungs = algorithms_on("cpu")
errors = {}
for name in rungs:
    y, _ = conv2d_forward(x, w, padding=1, algorithm=name)
    errors[name] = np.abs(y - exact).max() / np.abs(exact).max()
print("\n".join(f"{name:14} largest error {error:.0e}" for name, error in errors.items()))

# %% measured=true
tasks = {name: lambda name=name: conv2d_forward(x, w, padding=1, algorithm=name) for name in rungs}
slow = {"naive": tasks.pop("naive")}
best = fewest_seconds(slow, 1) | fewest_seconds(tasks | {"the roof": together}, 3 if FAST else 60)
ladder = {name: 2 * spec.macs / took / 1e9 for name, took in best.items()}
ladder["the roof"] = together() / best["the roof"] / 1e9
for name in rungs:
    print(f"{name:14} {best[name] * 1e3:9.2f} ms {ladder[name]:9.1f} GFLOP/s")
print(f"{'the roof':14} {'':12} {ladder['the roof']:9.1f} GFLOP/s")

# %% measured=true
figure, axes = plt.subplots(figsize=(9, 3.6))
order = sorted(rungs, key=ladder.get)
axes.barh(order, [ladder[name] for name in order], color=pictures.BLUE)
axes.axvline(ladder["the roof"], color=pictures.RED, linestyle="--", label="the roof")
for place, name in enumerate(order):
    axes.text(ladder[name], place, f" {ladder[name]:.0f}", va="center", fontsize=9)
axes.set(xlabel="GFLOP/s, in the multiplications of the definition")
axes.margins(x=0.1)
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# The seven loops at the bottom, far from everything. `im2col` buys a matrix product with memory. `direct` and
# `implicit_gemm` bring the image to the micro-kernel without that, and come near the roof. The Winograd rungs do not
# obey it: they do fewer multiplications than we count, and so their bars can be longer than the processor allows.
#
# What is fastest depends on the layer: with three channels the transforms cost more than they save, and on maps of few
# pixels tiles are mostly empty. So the library estimates each, and can be asked:

# %%
for x_shape, outputs in (((1, 3, 224, 224), 64), ((1, 256, 56, 56), 256), ((1, 512, 2, 2), 512)):
    other = ConvSpec.of(x_shape, (outputs, x_shape[1], 3, 3), padding=1)
    print(f"{x_shape}: {explain(other).partition(' (')[0]}")

# %% [markdown]
# To race them all against PyTorch's convolutions, on your machine, layer by layer:
#
# ```sh
# minivgg bench conv
# ```
#
# ## What you have now
#
# - A roof of two speeds, measured; and an operation's intensity, which says under which part of it you are.
# - The same idea three times: fetch a number once, and use it often. From memory into caches by blocks, from caches
#   into registers by a block of sums.
# - Winograd's algorithm, from the values of polynomials: multiplications saved, accuracy paid.
# - A ladder whose last rungs pass the roof, because they do something else.
#
# Next: [the same ladder on a GPU](11_gpu.ipynb), where the question is who reads what, and when.
