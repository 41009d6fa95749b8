"""What an exercise in CUDA C is held to. The learner's function returns a source; the simulator runs it, and its
sentences are the diagnosis."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg import cudasim
from minivgg.backends.array import to
from minivgg.errors import BadInput
from minivgg.exercises.checks import result_of
from minivgg.ops.conv2d import ConvSpec, naive
from minivgg.testing import Report
from minivgg.testing.oracles import conv2d
from minivgg.testing.report import Broken

ORDERS = ("forward", "reverse", 1, 2)
UNIT = 2.0**-24  # the relative error of one rounding to float32


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and what must be in its last array afterwards, give or take `bound`."""

    on: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple
    y: np.ndarray
    expected: np.ndarray
    bound: np.ndarray


@dataclass(frozen=True)
class Task:
    """A kernel to be written: its declaration, a function that makes its launches, and what it may ask of memory.

    `thrift` is a rule about the traffic of the first launch: `frugal` raises Broken where that is too much, and
    `advice` says what to do then.
    """

    declaration: str
    launches: Callable[[], list[Launch]]
    thrift: str
    frugal: Callable[[Launch, cudasim.Launch], None]
    advice: str

    @functools.cached_property
    def name(self) -> str:
        return cudasim.kernels_of(f"__global__ {self.declaration}")[0]

    def kernel(self, source) -> cudasim.RawKernel:
        """The learner's source, compiled. Raises Broken where it is none, or of a kernel with other parameters."""
        if not isinstance(source, str):
            raise Broken("a string of CUDA C", f"{type(source).__name__}: {source!r:.60}")
        kernel = cudasim.RawKernel(source, self.name)
        asked = cudasim.RawKernel(f'extern "C" __global__ {self.declaration} {{}}', self.name)
        if [t.removeprefix("const ") for t in kernel.types] != [t.removeprefix("const ") for t in asked.types]:
            raise Broken(self.declaration, f"parameters of types {', '.join(kernel.types) or 'none'}")
        return kernel


def written_in_cuda(task: Task) -> Callable:
    """The learner's function → the report on its kernel. Raises BadInput where nothing can be compiled."""

    def check(function: Callable) -> Report:
        if why_not := cudasim.why_not():
            raise BadInput(f"kernels run on the simulator, which cannot compile here: {why_not}")
        kernels = []
        compiles = result_of(
            "the source compiles",
            'A kernel begins with extern "C" __global__ void and its name; lines are counted in your string.',
            [(task.name, _in_words(lambda: kernels.append(task.kernel(function()))))],
        )
        if not compiles.ok:
            return Report(task.name, [compiles])
        return Report(task.name, [compiles, *_held(task, kernels[0])])

    return check


def _held(task: Task, kernel: cudasim.RawKernel):
    """The rules, one after the other. What reaches past its arrays is not run without a guard."""

    launches = task.launches()

    def rule(title, advice, on=launches, then=lambda launch, seen: None, **checks):
        def trial(launch: Launch):
            launch.y[...] = np.nan
            with cudasim.checking(**checks) as seen:
                kernel(launch.grid, launch.block, launch.args)
            then(launch, seen[0])

        return result_of(title, advice, [(a.on, _in_words(functools.partial(trial, a))) for a in on])

    inside = rule(
        "threads stay inside the arrays, and meet at barriers",
        "Which index is the last that exists, and which thread has none left to do? A barrier is for all threads of a "
        "block: who has nothing to do must come to it, too.",
        memcheck=True,
    )
    yield inside
    if not inside.ok:
        return
    yield rule(
        "no two threads race for a place",
        "The sentence names the place and both lines. If it is shared memory, a __syncthreads() belongs between them, "
        "also from one turn of a loop to the next; if it is an array, two threads do the work of one.",
        racecheck=True,
    )
    yield rule(
        "any order of the threads gives the same bits",
        "Nobody knows which warp runs first. What one thread needs of another must be ready: a barrier.",
        orders=ORDERS,
    )
    yield rule(
        "the result is what the formula says",
        "nan is an element that nobody has written. Else work out the indices of the first wrong one by hand.",
        then=_compare,
        orders=("forward",),
    )
    yield rule(task.thrift, task.advice, launches[:1], task.frugal, traffic=True)


def _in_words(trial: Callable[[], None]) -> Callable[[], None]:
    """The simulator's own sentence in place of its exception."""

    def told():
        try:
            trial()
        except (cudasim.SimulatorError, cudasim.CompileError) as error:
            raise Broken("nothing for the simulator to object to", str(error)) from error

    return told


def _compare(launch: Launch, seen: cudasim.Launch) -> None:
    wrong = ~(np.abs(launch.y - launch.expected) <= launch.bound)
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        where = f"y[{', '.join(map(str, at))}]"
        raise Broken(
            f"{where} = {launch.expected[at]:.6g}", f"{launch.y[at]:.6g}, and {wrong.sum()} of {wrong.size} are wrong"
        )


# ---- 11.1: an addition and a ReLU, a thread for some of the elements ----


def _bias_relu_launches() -> list[Launch]:
    rng = np.random.default_rng(0)
    launches = []
    for pixels, channels, blocks, threads in ((64, 32, 2, 64), (37, 5, 3, 32), (1, 3, 1, 96), (9, 64, 2, 32)):
        x, b = (rng.standard_normal(shape, np.float32) for shape in ((pixels, channels), channels))
        y = np.empty_like(x)
        exact = x.astype(np.float64) + b
        launches.append(
            Launch(
                f"x ({pixels}, {channels}), {blocks} blocks of {threads} threads",
                (blocks,),
                (threads,),
                (x, b, y, np.int32(pixels), np.int32(channels)),
                y,
                np.maximum(exact, 0),
                UNIT * np.abs(exact),
            )
        )
    return launches


def _coalesced(launch: Launch, seen: cudasim.Launch) -> None:
    """No line takes more than half as many sectors again as its bytes need at best."""
    worst = max((t for t in seen.traffic if t.memory == "global"), key=lambda t: t.waste)
    if worst.waste > 1.5:
        each = worst.transactions / worst.requests
        raise Broken(
            f"about {worst.fewest / worst.requests:.1f} sectors a request at {worst.line}",
            f"{each:.1f} sectors:\n{seen.table()}",
        )


BIAS_RELU = Task(
    "void bias_relu(const float* x, const float* b, float* y, int pixels, int channels)",
    _bias_relu_launches,
    "neighbouring threads ask for neighbouring numbers",
    _coalesced,
    "In one request, thread after thread must come to element after element. So a thread's own elements are not side "
    "by side: from one to its next it is as far as there are threads in the whole grid.",
)

# ---- 11.2: a convolution through a tile in shared memory ----

TILE = 16


def _conv_launches() -> list[Launch]:
    rng = np.random.default_rng(0)
    launches = []
    for N, C, H, W, O in ((1, 2, 32, 32, 2), (2, 3, 10, 21, 2), (1, 1, 17, 3, 3)):
        x, w = rng.standard_normal((N, C, H, W), np.float32), rng.standard_normal((O, C, 3, 3), np.float32)
        y = np.empty((N, O, H, W), np.float32)
        exact, sizes = (
            conv2d(a.astype(np.float64), b.astype(np.float64), padding=1) for a, b in ((x, w), (abs(x), abs(w)))
        )
        launches.append(
            Launch(
                f"x ({N}, {C}, {H}, {W}), w ({O}, {C}, 3, 3)",
                (-(-W // TILE), -(-H // TILE), N * O),
                (TILE, TILE),
                (x, w, y, *map(np.int32, (C, O, H, W))),
                y,
                exact,
                (9 * C + 1) * UNIT * sizes,  # a product and an addition for each of 9·C terms: Higham (2002), §3.1
            )
        )
    return launches


def sectors_read(seen: cudasim.Launch) -> int:
    """What a launch has read from global memory, in sectors of 32 bytes."""
    return sum(t.transactions for t in seen.traffic if t.memory == "global" and t.access == "read")


def _half_of_naive(launch: Launch, seen: cudasim.Launch) -> None:
    """At most half of what the seven loops read of the same arrays. (The tile alone takes it to a third.)"""
    x, w = (to(a, "sim") for a in launch.args[:2])
    with cudasim.checking(traffic=True) as loops:
        naive.forward(x, w, ConvSpec.of(x.shape, w.shape, padding=1))
    most = sum(map(sectors_read, loops)) // 2
    if sectors_read(seen) > most:
        raise Broken(f"at most {most:,} sectors, half of naive.cu's", f"{sectors_read(seen):,}:\n{seen.table()}")


TILED_CONV = Task(
    "void tiled_conv(const float* x, const float* w, float* y, int C, int O, int H, int W)",
    _conv_launches,
    "global memory is read half as often as by the seven loops, or less",
    _half_of_naive,
    "Which line of the table reads most? Each pixel of the tile and its border should come from global memory once for "
    "the whole block: all nine products of a thread read __shared__ memory.",
)
