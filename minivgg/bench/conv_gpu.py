"""The convolutions of VGG-16 on a GPU, pass by pass: every algorithm of `ALGORITHMS` beside cuDNN's and PyTorch's.

Three kinds of arithmetic, each a race of its own:

    fp32    strict float32: multiply-adds, or an error below 2e-5 (cuDNN is told CUDNN_FMA_MATH, PyTorch "ieee")
    tf32    float32 arrays, whose products may round their factors to TF32's 10 bits of fraction
    fp16    float16 arrays, sums in float32
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from minivgg.backends.array import channels_last
from minivgg.bench import cudnn, gpu, pytorch
from minivgg.bench.conv import DIRECTIONS, chosen_layers
from minivgg.bench.gpu import Task, timed
from minivgg.bench.race import check, heat
from minivgg.bench.record import best_rival, judge
from minivgg.errors import BadInput
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, check_algorithm, plan
from minivgg.progress import tqdm

BATCHES = (1, 32, 64)
_OPERANDS = {"forward": ("x", "w"), "grad_input": ("w", "y"), "grad_weight": ("x", "y")}  # "y" stands for dy
_RESULT = {"forward": "y", "grad_input": "x", "grad_weight": "w"}
_IMAGES, _FILTERS = 2, 16  # of a result, that are compared with float64
_TRIALS = 5  # runs of each algorithm of cuDNN's, to choose the fastest


@dataclass(frozen=True)
class Precision:
    """A kind of arithmetic: the arrays' dtype, the error that nothing but a mistake explains, and the limit.

    Rounding to 10 bits of fraction puts 4e-4 on a product, in the mean square; Winograd's sums multiply that by ten or
    so. Float32's own limit is not so generous, since it tells the strict from those that are not."""

    dtype: str
    wrong: float


PRECISIONS = {
    "fp32": Precision("float32", 2e-5),
    "tf32": Precision("float32", 1e-2),
    "fp16": Precision("float16", 2e-2),
}


# ---- Operands and references: the same functions on NumPy's arrays and on CuPy's


def numbers(xp, shape: tuple[int, ...], seed: int):
    """Numbers between −√3 and √3, their mean 0 and their variance 1, float32: those of `seed`, the same on any device.

    The bits of an index are stirred as in the end of MurmurHash3 (Appleby, 2011, public domain)."""
    bits = xp.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    bits ^= bits >> np.uint32(16)
    scale = np.float32(3**0.5)
    return (bits.astype(np.float32) * np.float32(2**-31) * scale - scale).reshape(shape)


def operands(xp, spec: ConvSpec, direction: str, precision: str, layout: str, seed: int) -> dict:
    """The two arrays that a pass takes, by the names "x", "w" and "y", in the memory order `layout`."""
    shapes = {"x": spec.x_shape, "w": spec.w_shape, "y": spec.y_shape}
    made = {}
    for i, name in enumerate(_OPERANDS[direction]):
        array = numbers(xp, shapes[name], 2 * seed + i).astype(PRECISIONS[precision].dtype)
        made[name] = channels_last(array) if layout == "NHWC" else array
    return made


def some_of(result, direction: str):
    """The part of a result that is compared: two images of y or dx, sixteen filters of dw."""
    return result[: _FILTERS if direction == "grad_weight" else _IMAGES]


def reference(xp, arrays: dict, spec: ConvSpec, direction: str):
    """`some_of` what a pass should compute, in float64: a matrix product for each place in the window."""
    down, right = spec.stride
    top, left = spec.padding
    a = {name: arrays[name] for name in _OPERANDS[direction]}  # there may be room for the result as well
    if direction == "grad_weight":
        a["y"] = a["y"][:, :_FILTERS]
    else:
        a = {name: array if name == "w" else array[:_IMAGES] for name, array in a.items()}
    a = {name: array.astype(np.float64) for name, array in a.items()}
    N = len(a["x"] if "x" in a else a["y"])
    padded = xp.zeros((N, spec.C, spec.H + 2 * top, spec.W + 2 * left))
    inside = (slice(None), slice(None), slice(top, top + spec.H), slice(left, left + spec.W))
    if "x" in a:
        padded[inside] = a["x"]
    y = xp.zeros((N, spec.O, spec.OH, spec.OW))
    dw = xp.zeros((min(_FILTERS, spec.O), *spec.w_shape[1:]))
    for kh in range(spec.KH):
        for kw in range(spec.KW):
            window = padded[:, :, kh : kh + down * spec.OH : down, kw : kw + right * spec.OW : right]
            if direction == "forward":
                y += xp.tensordot(window, a["w"][:, :, kh, kw], ((1,), (1,))).transpose(0, 3, 1, 2)
            elif direction == "grad_input":  # the window is a view of what is gathered
                window += xp.tensordot(a["y"], a["w"][:, :, kh, kw], ((1,), (0,))).transpose(0, 3, 1, 2)
            else:
                dw[:, :, kh, kw] = xp.tensordot(a["y"], window, ((0, 2, 3), (0, 2, 3)))
    return {"forward": y, "grad_input": padded[inside], "grad_weight": dw}[direction]


def error(xp, result, right, direction: str) -> float:
    """‖result − right‖ / ‖right‖, where `right` is `some_of` what it should be."""
    return float(xp.linalg.norm(some_of(result, direction).astype(np.float64) - right) / xp.linalg.norm(right))


def several_sets(spec: ConvSpec, direction: str, precision: str, layout: str) -> list[dict]:
    """Sets of operands on the GPU, together more than its second-level cache holds."""
    import cupy

    first = operands(cupy, spec, direction, precision, layout, 0)
    count = gpu.sets_beyond_cache(sum(array.nbytes for array in first.values()))
    return [first, *(operands(cupy, spec, direction, precision, layout, i) for i in range(1, count))]


def _room(spec: ConvSpec, direction: str, precision: str, layout: str):
    """An array on the GPU for what the pass computes."""
    import cupy

    shape = {"x": spec.x_shape, "w": spec.w_shape, "y": spec.y_shape}[_RESULT[direction]]
    result = cupy.empty(shape, PRECISIONS[precision].dtype)
    return channels_last(result) if layout == "NHWC" else result


# ---- Contestants: each takes a spec, a direction and a precision, and makes a Task in its own process


def ours(spec: ConvSpec, direction: str, precision: str, *, algorithm: str) -> Task:
    """One pass by an algorithm of `ALGORITHMS`, or by what "auto" chooses, on arrays in channels-last memory."""
    import cupy

    sets = several_sets(spec, direction, precision, "NHWC")
    dtype = PRECISIONS[precision].dtype
    chosen = plan(spec, direction, device="gpu", dtype=dtype) if algorithm == "auto" else ALGORITHMS[algorithm]
    first, second = {"forward": "xw", "grad_input": "yw", "grad_weight": "yx"}[direction]

    def run(i: int):
        arrays = sets[i % len(sets)]
        return getattr(chosen, direction)(arrays[first], arrays[second], spec)

    def verdict() -> dict:
        right = reference(cupy, sets[0], spec, direction)
        return {"error": error(cupy, run(0), right, direction), "chosen": chosen.name}

    return Task(run, verdict)


def by_cudnn(spec: ConvSpec, direction: str, precision: str, *, layout: str) -> Task:
    """One pass by the fastest algorithm that cuDNN has for arrays in this order, each of them timed first; all their
    times are told."""
    import cupy

    sets = several_sets(spec, direction, precision, layout)
    result = _room(spec, direction, precision, layout)
    sets = [arrays | {_RESULT[direction]: result} for arrays in sets]
    convolution = cudnn.Convolution(spec, direction, sets[0], layout=layout, math=precision)
    found = convolution.find(cupy.cuda.Device().mem_info[0] // 4)
    if not found:
        raise cudnn.CudnnError(f"no algorithm for {layout}")
    right, tried = reference(cupy, sets[0], spec, direction), []
    for algorithm in found:
        task = convolution.by(algorithm)
        run = partial(_on_set, task, sets)
        timed(run, 1)
        wrong = error(cupy, result, right, direction)
        seconds, _ = timed(run, _TRIALS, 1e-3)
        tried.append((seconds, algorithm, wrong))
        del task, run  # and its workspace
        cupy.get_default_memory_pool().free_all_blocks()
    trusted = [entry for entry in tried if entry[2] < PRECISIONS[precision].wrong] or tried
    _, chosen, _ = min(trusted, key=lambda entry: entry[0])
    best = convolution.by(chosen)

    def verdict() -> dict:
        best(sets[0])
        algorithms = [
            asdict(algorithm) | {"seconds": seconds, "error": wrong, "math": cudnn.MATH_NAMES[algorithm.math]}
            for seconds, algorithm, wrong in tried
        ]
        return {"error": error(cupy, result, right, direction), "chosen": chosen.name, "algorithms": algorithms}

    return Task(partial(_on_set, best, sets), verdict)


def _on_set(task: Callable[[dict], None], sets: list[dict], i: int) -> None:
    task(sets[i % len(sets)])


def by_pytorch(spec: ConvSpec, direction: str, precision: str, *, layout: str) -> Task:
    """One pass by PyTorch, which chooses by its own trials ("benchmark")."""
    import cupy
    import torch

    pytorch.set_precision(precision)
    sets = several_sets(spec, direction, precision, layout)
    unused = torch.from_dlpack(_room(spec, direction, precision, layout))  # of the right shape, as PyTorch wants it
    tensors = [
        [torch.from_dlpack(arrays[name]) if name in arrays else unused for name in ("x", "w", "y")] for arrays in sets
    ]
    convolve = pytorch.convolution_of(spec, direction)

    def run(i: int):
        return convolve(*tensors[i % len(tensors)])

    def verdict() -> dict:
        right = reference(cupy, sets[0], spec, direction)
        return {"error": error(cupy, cupy.from_dlpack(run(0)), right, direction)}

    return Task(run, verdict)


def contestants(algorithms: tuple[str, ...] | None, baseline: bool = False) -> tuple[dict[str, Callable], list[str]]:
    """Name → task, as far as this machine has them, and a line for each rival that it lacks. `algorithms` are keys of
    `ALGORITHMS`, or "auto"; None means all but the two that use no number twice, and take so long. `baseline` means
    cuDNN alone. Raises BadInput for a name that is not there."""
    tasks, lacks = {}, []
    for name in algorithms or ("auto", *(name for name in ALGORITHMS if name not in ("naive", "coalesced"))):
        check_algorithm(name)
        if not baseline:
            tasks[f"minivgg {name}"] = partial(ours, algorithm=name)
    if reason := cudnn.why_not():
        lacks.append(reason)
    else:
        tasks |= {f"cuDNN {layout}": partial(by_cudnn, layout=layout) for layout in cudnn.LAYOUTS}
    if reason := pytorch.why_not("cuda"):
        lacks.append(reason)
    elif not baseline:
        tasks["PyTorch NCHW"] = partial(by_pytorch, layout="NCHW")
        tasks["PyTorch channels last"] = partial(by_pytorch, layout="NHWC")
    return tasks, lacks


# ---- The race


def run(
    *,
    machine: dict,
    batches: tuple[int, ...] = BATCHES,
    precisions: tuple[str, ...] = tuple(PRECISIONS),
    size: int = 224,
    samples: int = 5,
    turn: float = 0.02,
    seconds: float = 1,
    algorithms: tuple[str, ...] | None = None,
    only: tuple[str, ...] | None = None,
    baseline: bool = False,
    progress: bool = True,
) -> dict:
    """Race `contestants` on VGG-16's convolutions, or on those named in `only`; returns the record.

    Each contestant has a process of its own; the GPU is taken to be ours alone. Raises BadInput for settings that make
    no race, and where there is no GPU.
    """
    check(samples, seconds)
    specs = {batch: chosen_layers(batch, size, only) for batch in batches}
    for name in precisions:
        if name not in PRECISIONS:
            raise BadInput(f'no precision "{name}"; there are {", ".join(PRECISIONS)}')
    tasks, lacks = contestants(algorithms, baseline)
    gpu.check()
    settings = {"size": size, "samples": samples, "turn": turn, "seconds": seconds}
    heats = [
        (precision, batch, *of_one)
        for precision in precisions
        for batch in batches
        for of_one in _geometries(specs[batch])
    ]
    with ExitStack() as stack, tqdm(heats, "racing", disable=not progress, unit="heat") as bar:
        workers = {name: stack.enter_context(gpu.worker_for(name)) for name in tasks}
        found = gpu.measure_limits()
        rows = [
            {"precision": precision, "batch": batch, "layers": names, "pass": direction, "spec": asdict(spec)}
            | _row(tasks, workers, spec, direction, precision, found, settings, _teller(bar, heat))
            for heat in bar
            for precision, batch, spec, names, direction in [heat]
        ]
    return gpu.record("conv_gpu", machine, settings, found, lacks, rows)


def _geometries(specs: dict[str, ConvSpec]) -> list[tuple[ConvSpec, list[str], str]]:
    """Each geometry once, with the layers that have it, for each pass."""
    found: dict[ConvSpec, list[str]] = {}
    for name, spec in specs.items():
        found.setdefault(spec, []).append(name)
    return [(spec, names, direction) for spec, names in found.items() for direction in DIRECTIONS]


def _teller(bar, heat: tuple) -> Callable[[str], None]:
    precision, batch, _, names, direction = heat
    return lambda doing: bar.set_postfix_str(f"{precision}, batch {batch}, {names[0]} {direction}: {doing}")


def _why_not(algorithm: str, spec: ConvSpec, dtype: str) -> str | None:
    return None if algorithm == "auto" else ALGORITHMS[algorithm].why_not(spec, "gpu", dtype)


def _row(tasks, workers, spec: ConvSpec, direction: str, precision: str, limits, settings, tell) -> dict:
    """One heat: one pass of one geometry in one precision."""
    names = {name: task.keywords.get("algorithm", "auto") for name, task in tasks.items()}
    refused = {name: why for name, a in names.items() if (why := _why_not(a, spec, PRECISIONS[precision].dtype))}
    entries = {
        n: (workers[n], partial(task, spec, direction, precision)) for n, task in tasks.items() if n not in refused
    }
    times = {name: settings[name] for name in ("samples", "turn", "seconds")}
    results, _ = heat(entries, value=True, progress=tell, alone=True, **times)
    for name, result in results.items():
        if result.failure and "CUDA" in result.failure:  # after an illegal access no more can be had from a process
            workers[name].close()
    flop, nbytes = 2 * spec.macs, traffic(spec, precision)
    least = gpu.least_seconds(flop, nbytes, limits, precision)
    rival, kind = best_rival(results), PRECISIONS[precision]
    judged = {}
    for name, result in results.items():
        said = result.value or {}
        found = said.get("error")
        judged[name] = judge(result, flop, least, rival, found, kind.wrong)
        if precision == "fp32" and found is not None and kind.wrong <= found < PRECISIONS["tf32"].wrong:
            judged[name] = {"unsupported": f"not strict float32: its error is {found:.1e}"}
        if "seconds" in judged[name]:
            judged[name] |= {key: value for key, value in said.items() if key != "error"}
    results = {name: judged.get(name) or {"unsupported": refused[name]} for name in tasks}
    return {"flop": flop, "bytes": nbytes, "results": results}


def traffic(spec: ConvSpec, precision: str) -> int:
    """Bytes that any way of doing one pass moves: two of x, w and y read, the third written."""
    sizes = sum(int(np.prod(shape)) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    return np.dtype(PRECISIONS[precision].dtype).itemsize * sizes
