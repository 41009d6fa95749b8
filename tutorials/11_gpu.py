# %% [markdown]
# # 11 · On a GPU, and without one
#
# A graphics card has thousands of arithmetic units, and a memory that feeds a small part of them. Your seven loops
# will run on it as they are: give each output a thread of its own, and there is nothing left to do.
#
# **So why do the seven loops leave most of a GPU idle, and what must a kernel do so that they do not?**
#
# The answer is nearly always *who reads what, when*. This can be seen without a GPU: minivgg comes with a simulator
# which compiles CUDA C with your C++ compiler, runs it a thread at a time, watches every access, and counts what a GPU
# would have to fetch. It knows nothing of time. About 75 minutes, two exercises.

# %%
import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minivgg as mv
from minivgg import cudasim
from minivgg.backends.array import to
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures
from minivgg.ops.conv2d import (
    ALGORITHMS,
    Algorithm,
    ConvSpec,
    algorithms_on,
    conv2d_forward,
    explain,
    naive,
)

plt.rcParams.update(pictures.STYLE)
rng = np.random.default_rng(0)
print(cudasim.why_not() or "kernels can be compiled here")

# %% [markdown]
# ## Threads and blocks
#
# A *kernel* is a function that very many threads run at once. They come in *blocks* of up to 1024; the blocks of a
# launch are its *grid*. Each thread is told where it stands, and works out from that what its share is.

# %%
who_source = """\
extern "C" __global__ void who(int* block, int* thread, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    block[i] = blockIdx.x;
    thread[i] = threadIdx.x;
}
"""
who = cudasim.RawKernel(who_source, "who", file="who.cu")
block, thread = np.full((2, 28), -1, np.int32)
who((4,), (8,), (block, thread, np.int32(28)))

# %%
figure, grid = plt.subplots(2, 1, figsize=(10, 2))
drawing.matrix(grid[0], block[None], "blockIdx.x: which block has written element i")
drawing.matrix(grid[1], thread[None], "threadIdx.x: which thread of it")
plt.show()

# %% [markdown]
# Four blocks of eight make 32 threads for 28 elements, so the last four find nothing to do, and must notice:
# `if (i >= count) return;`. Forget that line, and they write past the end of the array. On a GPU that is silent, until
# one day it is not. The simulator can be asked to look:

# %%
careless = cudasim.RawKernel(
    who_source.replace("    if (i >= count) return;\n", ""), "who", file="who.cu"
)
try:
    with cudasim.checking(memcheck=True):
        careless((4,), (8,), (block, thread, np.int32(28)))
except cudasim.SimulatorError as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# ## Thirty-two at a time
#
# Threads are not as free as that sounds. Hardware runs them in *warps* of 32 neighbours, which go through the program
# in step: when a line reads memory, 32 addresses go out together, as one request. Memory answers in *sectors* of 32
# bytes, eight floats; a sector is fetched as a whole, however little of it is wanted.
#
# So one request costs anything between one sector (all lanes want the same float) and 32 (each wants another sector).
# Let lane $i$ read element $i\cdot s$, and count:

# %%
strided_source = """\
extern "C" __global__ void strided(const float* x, float* y, int stride) {
    y[threadIdx.x] = x[threadIdx.x * stride];
}
"""
strided = cudasim.RawKernel(strided_source, "strided", file="strided.cu")
x, y = rng.standard_normal(32 * 12, np.float32), np.empty(32, np.float32)
strides, sectors = range(13), []
with cudasim.checking(traffic=True) as launches:
    for stride in strides:
        strided((1,), (32,), (x[: 31 * stride + 1], y, np.int32(stride)))
for launch in launches:
    sectors += [line.transactions for line in launch.traffic if line.access == "read"]
figure, axes = plt.subplots(figsize=(7, 3))
axes.bar(strides, sectors, color=pictures.BLUE)
axes.axhline(4, color=pictures.RED, linestyle="--", label="32 floats, and nothing else: 4 sectors")
axes.set(xlabel="distance between what neighbouring lanes read", ylabel="sectors a request")
axes.legend()
plt.show()
print(f"stride 1: {sectors[1]} sectors, stride 2: {sectors[2]}, from 8 on: {sectors[8]}")

# %% [markdown]
# From a stride of 8 on, seven of every eight floats that come are thrown away. Neighbouring threads should read
# neighbouring numbers; then the request is *coalesced*.
#
# ### The habit to unlearn
#
# On a CPU one gives each thread a stretch of the array of its own, so that it runs along its cache lines. Here is that
# habit in CUDA, and beside it the opposite: from one of its elements to its next, a thread goes as far as there are
# threads in the grid.

# %%
copies_source = """\
extern "C" __global__ void own_stretch(const float* x, float* y, int count) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    const int each = count / (gridDim.x * blockDim.x);
    for (int i = thread * each; i < (thread + 1) * each; i++)
        y[i] = x[i];
}

extern "C" __global__ void in_step(const float* x, float* y, int count) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = thread; i < count; i += gridDim.x * blockDim.x)
        y[i] = x[i];
}
"""
x, y = rng.standard_normal(1024, np.float32), np.empty(1024, np.float32)
for name in ("own_stretch", "in_step"):
    copy = cudasim.RawKernel(copies_source, name, file="copies.cu")
    with cudasim.checking(traffic=True) as launches:
        copy((2,), (64,), (x, y, np.int32(x.size)))
    print(f"{name}: {'right' if np.array_equal(x, y) else 'wrong'}\n{launches[0].table()}\n")

# %%
figure, grid = plt.subplots(2, 1, figsize=(10, 2.2))
i = np.arange(32)
for axes, turn, title in (
    (grid[0], i % 4, "own stretch: the turn in which element i is read, by 8 threads"),
    (grid[1], i // 8, "in step: all threads together move along"),
):
    drawing.matrix(axes, turn[None], title, span=3)
plt.show()

# %% [markdown]
# Both copy every element once. Look along a row for one number: that is what is read at the same time. In the upper
# row the 1s are scattered; in the lower they are neighbours.

# %% [markdown]
# ### Exercise 11.1 · bias and ReLU, coalesced
#
# Write `bias_relu()`, which gives the source of a kernel, as a string:
#
# ```c
# extern "C" __global__ void bias_relu(
#     const float* x, const float* b, float* y, int pixels, int channels)
# ```
#
# `x` and `y` are matrices (pixels, channels), row after row; y = max(x + b, 0), with one `b` for each channel. The grid
# has one dimension, and it may have fewer threads than there are elements, or more. Neighbouring lanes must read
# neighbouring numbers.
#
# The checker runs it under the simulator: inside the arrays? the same in any order of the threads? races? right? how
# many sectors?
#
# <details><summary>Hint: the loop</summary>
#
# The loop of `in_step`, over `pixels * channels` elements.
#
# </details>
# <details><summary>Hint: which b?</summary>
#
# Element $i$ of a matrix with rows of length `channels` is in row `i / channels` and column `i % channels`.
#
# </details>


# %% exercise="11.1"
def bias_relu():
    ### BEGIN SOLUTION
    return """\
extern "C" __global__ void bias_relu(
    const float* x, const float* b, float* y, int pixels, int channels
) {
    const int first = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = first; i < pixels * channels; i += gridDim.x * blockDim.x) {
        const float sum = x[i] + b[i % channels];
        y[i] = sum > 0 ? sum : 0;
    }
}
"""
    ### END SOLUTION


# %%
check_exercise("11.1", bias_relu)

# %% [markdown]
# ## Sharing
#
# Coalescing fetches nothing in vain. The next idea is to fetch nothing *twice*. The threads of a block have a small
# memory in common, on the chip, for as long as the block lives: `__shared__`. One thread can put something there, and
# another can take it.
#
# But threads do not run at the same time just because they are drawn side by side. This kernel turns 64 numbers around
# by way of shared memory:

# %%
reverse_source = """\
extern "C" __global__ void reverse(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];

    y[threadIdx.x] = tile[63 - threadIdx.x];
}
"""
reverse = cudasim.RawKernel(reverse_source, "reverse", file="reverse.cu")
x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
try:
    reverse((1,), (64,), (x, y))
except cudasim.OrderDependent as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# The simulator runs each launch in two orders of the threads, forwards and backwards, and asks for the same bits. On a
# GPU this kernel may pass all your tests, and fail on the day when the second warp is early. What exactly went wrong?

# %%
try:
    with cudasim.checking(racecheck=True):
        reverse((1,), (64,), (x, y))
except cudasim.Race as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# Two threads, one place, one of them writes, and *nothing orders them*. The cure is a barrier, at which every thread of
# the block waits for all others:

# %%
cured = cudasim.RawKernel(
    reverse_source.replace("\n\n", "\n    __syncthreads();\n"), "reverse", file="reverse.cu"
)
print(cured.source)
with cudasim.checking(orders=("forward", "reverse", 1, 2, 3)):
    cured((1,), (64,), (x, y))
with cudasim.checking(racecheck=True, memcheck=True):
    cured((1,), (64,), (x, y))
print("five orders give the same, and no race; reversed:", np.array_equal(y, x[::-1]))

# %% [markdown]
# *Every* thread. If one of them leaves before, or waits somewhere else, the others wait for ever:

# %%
early = cudasim.RawKernel(
    reverse_source.replace("\n\n", "\n    if (threadIdx.x > 40) return;\n    __syncthreads();\n"),
    "reverse",
    file="reverse.cu",
)
try:
    early((1,), (64,), (x, y))
except cudasim.SimulatorError as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# ## Banks
#
# Shared memory is fast because it is 32 memories, *banks*: word $i$ lies in bank $i \bmod 32$, and each bank gives one
# word at a time. If all lanes want words of different banks, the request takes one pass. If two want different words
# of one bank, two. The famous trap is a square: in a tile of 32×32, a column is 32 words of *one* bank. The cure is a
# column that nobody uses.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 4))
for axes, wide in zip(panels, (32, 33), strict=True):
    banks = (np.arange(32)[:, None] * wide + np.arange(wide)) % 32
    axes.imshow(banks, cmap="twilight")
    drawing.frame(axes, 0, 5, 32, 1)
    axes.set_title(f"rows of {wide}, banks of column 5: {len(set(banks[:, 5]))}")
    axes.grid(False)
    axes.set(xlabel="column", ylabel="row")
plt.show()

# %%
transpose_source = """\
extern "C" __global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][32 + PAD];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
"""
x, y = rng.standard_normal((32, 32), np.float32), np.empty((32, 32), np.float32)
for pad in (0, 1):
    transpose = cudasim.RawKernel(
        transpose_source, "transpose", (f"-DPAD={pad}",), file="transpose.cu"
    )
    with cudasim.checking(traffic=True) as launches:
        transpose((1,), (32, 32), (x, y))
    right = "right" if np.array_equal(x.T, y) else "wrong"
    print(f"tile[32][{32 + pad}]: {right}\n{launches[0].table()}\n")

# %% [markdown]
# And this is why the detour is taken at all: written without a tile, a transpose has to read rows and write columns,
# and one of the two is not coalesced. Through shared memory both are.
#
# ## A convolution through a tile
#
# The library's lowest rung on a GPU is the seven loops. Four of them are the grid:

# %%
OPS = Path(mv.__file__).parent / "ops" / "conv2d"
text = (OPS / "naive.cu").read_text()
print(re.search(r'extern "C" __global__ void forward.*?\n}', text, re.DOTALL)[0])

# %% [markdown]
# Arrays can live on the simulated GPU, and then its kernels compute. We ask the seven loops what they read:

# %%
spec = ConvSpec.of((1, 4, 32, 32), (8, 4, 3, 3), padding=1)
x = rng.standard_normal(spec.x_shape, np.float32)
w = rng.standard_normal(spec.w_shape, np.float32)
with cudasim.checking(traffic=True) as launches:
    expected, _ = conv2d_forward(to(x, "sim"), to(w, "sim"), padding=1, algorithm="naive")
print(launches[0].table())


def sectors_read(launches):
    lines = [line for launch in launches for line in launch.traffic]
    return sum(t.transactions for t in lines if (t.memory, t.access) == ("global", "read"))


naive_sectors = sectors_read(launches)
print(
    f"\nx and w have {(x.nbytes + w.nbytes) // 32:,} sectors; {naive_sectors:,} are asked for: "
    f"each {naive_sectors * 32 / (x.nbytes + w.nbytes):.0f} times"
)

# %% [markdown]
# It *is* coalesced, except that some windows begin in the middle of a sector. But each pixel is asked for by nine
# windows, for each filter again. Caches soften that, and cannot cure it. Let a block of 16×16 threads make 16×16
# outputs of one filter. Together they look at no more than 18×18 pixels of a channel:

# %%
times = np.zeros((18, 18))
for kh, kw in np.ndindex(3, 3):
    times[kh : kh + 16, kw : kw + 16] += 1
figure, axes = plt.subplots(figsize=(5.4, 5.2))
drawing.matrix(axes, times, "how many of the block's outputs want each pixel", span=18)
drawing.frame(axes, 1, 1, 16, 16)
plt.show()
print(f"{times.sum():.0f} reads of {times.size} pixels: {times.sum() / times.size:.1f} for each")

# %% [markdown]
# Inside the frame are the block's own pixels, around it the *halo*. So, for each channel: load the tile with its halo
# into shared memory, together; wait; let each thread take its nine products from there; **wait again**, because the
# next channel will be written over this one; go on.

# %% [markdown]
# ### Exercise 11.2 · a convolution through a tile
#
# Write `tiled_conv()`, which gives the source of
#
# ```c
# extern "C" __global__ void tiled_conv(
#     const float* x, const float* w, float* y, int C, int O, int H, int W)
# ```
#
# `x` is (N, C, H, W), `w` (O, C, 3, 3) and `y` (N, O, H, W); stride 1, padding 1. A block has 16×16 threads, for 16×16
# pixels; `blockIdx.x` counts tiles to the right, `blockIdx.y` tiles down, and `blockIdx.z` is $n\cdot O + o$. H and W
# need not be multiples of 16.
#
# <details><summary>Hint: 256 threads load 324 pixels</summary>
#
# Number the threads, `thread = threadIdx.y * 16 + threadIdx.x`, and let each load the elements `i = thread`, `thread +
# 256`, … of the tile: row `i / 18`, column `i % 18`. The tile begins one pixel above and to the left of the block's
# outputs. What is outside the image is 0.
#
# </details>
# <details><summary>Hint: at the edge</summary>
#
# A thread whose output is outside the image has nothing to write. It must still help to load, and it must come to
# every barrier: so no `return` before the end.
#
# </details>
# <details><summary>Hint: the checker speaks of a race between the products and the loading</summary>
#
# A fast warp begins to load channel 1 while a slow one is still multiplying channel 0. How many barriers does one turn
# of the loop have?
#
# </details>


# %% exercise="11.2"
def tiled_conv():
    ### BEGIN SOLUTION
    return """\
extern "C" __global__ void tiled_conv(
    const float* x, const float* w, float* y, int C, int O, int H, int W
) {
    __shared__ float tile[18][18];
    const int n = blockIdx.z / O, o = blockIdx.z % O;
    const int top = blockIdx.y * 16, left = blockIdx.x * 16;
    const int row = threadIdx.y, column = threadIdx.x;
    float sum = 0;
    for (int c = 0; c < C; c++) {
        for (int i = row * 16 + column; i < 18 * 18; i += 256) {
            const int h = top + i / 18 - 1, v = left + i % 18 - 1;
            const bool inside = 0 <= h && h < H && 0 <= v && v < W;
            tile[i / 18][i % 18] = inside ? x[((n * C + c) * H + h) * W + v] : 0;
        }
        __syncthreads();
        for (int kh = 0; kh < 3; kh++)
            for (int kw = 0; kw < 3; kw++)
                sum += tile[row + kh][column + kw] * w[((o * C + c) * 3 + kh) * 3 + kw];
        __syncthreads();
    }
    const int oh = top + row, ow = left + column;
    if (oh < H && ow < W) y[((n * O + o) * H + oh) * W + ow] = sum;
}
"""
    ### END SOLUTION


# %%
check_exercise("11.2", tiled_conv)

# %% [markdown]
# Now as a rung of the ladder. `forward` launches your kernel; the two gradients are still borrowed from the seven
# loops.


# %%
def my_forward(x, w, spec):
    kernel = cudasim.RawKernel(tiled_conv(), "tiled_conv", file="mine.cu")
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    y = to(np.empty(spec.y_shape, np.float32), "sim")
    grid = -(-spec.OW // 16), -(-spec.OH // 16), spec.N * spec.O
    sizes = map(np.int32, (spec.C, spec.O, spec.H, spec.W))
    kernel(grid, (16, 16), (x, w, y, *sizes))
    return y


def only_vgg(spec, device):
    fits = (spec.KH, spec.KW, *spec.stride, *spec.padding) == (3, 3, 1, 1, 1, 1)
    return None if fits and device != "cpu" else "3×3 with stride 1 and padding 1, on a GPU"


ALGORITHMS["mine"] = Algorithm(
    "mine", "my own tile", my_forward, naive.grad_input, naive.grad_weight, only_vgg
)
with cudasim.checking(traffic=True) as launches:
    y, _ = conv2d_forward(to(x, "sim"), to(w, "sim"), padding=1, algorithm="mine")
print(launches[0].table())
print(f"\nlargest difference from the seven loops: {np.abs(y - expected).max():.1e}")
print(f"sectors read: {sectors_read(launches):,}, by the seven loops {naive_sectors:,}")

# %% [markdown]
# And what is left to be had? Each number from the tile takes two passes, not one: a warp is two rows of 16, the second
# begins 18 words after the first, and so both want the banks that they overlap in. (How wide must a row of the tile be
# for them not to overlap?) And `w` is read from global memory for every product, nine sectors a channel for each warp.
#
# A whole VGG-11, narrow, computed by your kernel, on the simulated GPU:

# %%
images = rng.standard_normal((1, 3, 32, 32), np.float32)
scores = {}
for algorithm, device in (("mine", "sim"), ("auto", "cpu")):
    network = mv.build(
        "vgg11", classes=10, input_size=32, width=0.0625, algorithm=algorithm, seed=0
    )
    network.to(device)
    scores[algorithm] = to(network.forward(to(images, device)), "cpu")
difference = np.abs(scores["mine"] - scores["auto"]).max() / np.abs(scores["auto"]).max()
print(f"VGG-11 by your kernel: relative difference from the CPU's {difference:.0e}")

# %% [markdown]
# ## The matrix that is never there
#
# Your tile is used for one filter. A matrix product uses each number it has fetched for a whole tile of *rows and
# columns*; that is where the rest of the factor is. And im2col makes a convolution a matrix product, but its matrix has
# nine times the pixels, to be written and read again.
#
# *Implicit GEMM* multiplies by the matrix of im2col without ever having it. A block of threads needs only a small
# panel of it at a time, so it gathers that panel, straight from the image, into shared memory; multiplies; and writes
# the next one over it.

# %%
tiny = np.arange(1, 17).reshape(4, 4)
columns = np.array([tiny[h : h + 3, v : v + 3].ravel() for h, v in np.ndindex(2, 2)])
weights = np.arange(9)[:, None] % 3 - 1


def panels_of_im2col():
    sums = np.zeros((4, 1))
    for first in range(0, 9, 3):
        panel = np.full(columns.shape, np.nan)
        panel[:, first : first + 3] = columns[:, first : first + 3]
        sums = sums + columns[:, first : first + 3] @ weights[first : first + 3]
        figure, axes = plt.subplots(1, 4, figsize=(10, 3.4), width_ratios=(4, 9, 1.2, 1))
        drawing.matrix(axes[0], tiny, f"image: row {first // 3} of each window", span=16)
        for h, v in np.ndindex(2, 2):
            drawing.frame(axes[0], h + first // 3, v, 1, 3)
        drawing.matrix(axes[1], panel, "of the column matrix, this panel exists", span=16)
        drawing.frame(axes[1], 0, first, 4, 3)
        drawing.matrix(axes[2], weights, "filter", span=4)
        drawing.frame(axes[2], first, 0, 3, 1)
        drawing.matrix(axes[3], sums, "sums", span=20)
        plt.close(figure)
        yield figure


drawing.film(panels_of_im2col(), seconds=1.5)

# %% [markdown]
# The library's, in its simplest form. `panel` is gathered, `filter_panel` is loaded, a barrier, 16 products a thread,
# a barrier:

# %%
text = (OPS / "implicit_gemm.cu").read_text()
print(re.search(r'extern "C" __global__ void tiled.*?\n}', text, re.DOTALL)[0])

# %% [markdown]
# ## The ladder, in sectors
#
# One layer, every rung that the library has for a GPU, and what each asks of memory for the same convolution. im2col is
# left out: its product is the vendor's, and not a kernel of ours.

# %%
spec = ConvSpec.of((1, 16, 16, 16), (64, 16, 3, 3), padding=1)
x = rng.standard_normal(spec.x_shape, np.float32)
w = rng.standard_normal(spec.w_shape, np.float32)
rungs = [name for name in algorithms_on("sim") if name != "im2col"]
asked = {}
for name in rungs:
    with cudasim.checking(traffic=True) as launches:
        conv2d_forward(to(x, "sim"), to(w, "sim"), padding=1, algorithm=name)
    lines = [line for launch in launches for line in launch.traffic]
    asked[name] = [
        sum(t.transactions for t in lines if t.memory == memory) for memory in ("global", "shared")
    ]
order = sorted(rungs, key=lambda name: -asked[name][0])
least = (x.nbytes + w.nbytes + 4 * np.prod(spec.y_shape)) // 32
for name in order:
    print(
        f"{name:14} {asked[name][0]:9,} sectors of global memory, "
        f"{asked[name][1]:9,} passes of shared memory"
    )
print(f"{'once each':14} {least:9,}")

# %%
figure, axes = plt.subplots(figsize=(9, 4))
places = np.arange(len(order))
for shift, k, colour, label in (
    (-0.2, 0, pictures.BLUE, "global: sectors"),
    (0.2, 1, pictures.ORANGE, "shared: passes"),
):
    axes.bar(places + shift, [asked[name][k] for name in order], 0.4, color=colour, label=label)
axes.axhline(least, color=pictures.RED, linestyle="--", label="each array once")
axes.set_xticks(places, order, rotation=30, ha="right")
axes.set(yscale="log", ylabel="transactions", title=f"{spec.macs:,} multiply-adds")
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# `naive` to `coalesced`: another layout, channels last, so that lanes share a pixel and read filters side by side.
# *Yours* reads from global memory a tile at a time, but for one filter. `tiled` shares its pixels among 32 filters, and
# the filters among 16 pixels; global traffic falls again, and now each product takes two reads from *shared* memory.
# `direct` keeps a block of 8×8 sums in registers and uses each number that it reads eight times: the orange bar falls,
# too. `implicit_gemm` gathers panels, and so reads a pixel for several windows; in return it takes any geometry.
# Winograd does fewer products at all, and `tf32` and `fp16x3` do theirs on tensor cores, which multiply small matrices
# in one instruction.
#
# On a layer this small some tiles are partly empty, which costs the rungs with large tiles most; and what a cache holds
# costs less than what it does not. Sectors are not seconds.
#
# ## And on a real GPU?
#
# **Nothing on this page was timed on a GPU**, and the simulator cannot tell: it does not know what a GPU would be
# waiting for. These are the same kernels that a GPU runs, though, and how they do beside cuDNN is one command, on a
# machine that has both:
#
# ```sh
# bash benchmarks/gpu.sh
# ```
#
# It tests every kernel there, has NVIDIA's own `compute-sanitizer` look for what our simulator looks for, and races
# each rung against each algorithm of cuDNN; tables and pictures go to `docs/`. What the library would choose by itself,
# and why:

# %%
spec = ConvSpec.of((32, 256, 56, 56), (256, 256, 3, 3), padding=1)
print(textwrap.fill(explain(spec, device="gpu"), 100))

# %% [markdown]
# ## What you have now
#
# - A warp's 32 lanes make one request, and it costs what it touches: neighbours should read neighbours.
# - Shared memory fetches once for a block, at the price of barriers: one after writing, one before writing again.
# - 32 banks; a column that nobody uses.
# - A kernel of your own that was run in several orders, without a race, inside its arrays, right, and frugal, in a
#   real VGG.
# - Implicit GEMM: the matrix of im2col, a panel at a time, never stored.
#
# This was the last page of the course. The ladder has room for a rung of yours.
