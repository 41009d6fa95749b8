"""The convolutions of VGG-16, pass by pass: every algorithm of `ALGORITHMS` beside PyTorch's."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

import numpy as np

from minivgg.backends.array import channels_last
from minivgg.bench import pytorch
from minivgg.bench.race import Worker, check
from minivgg.bench.record import race, recorded, worker_for
from minivgg.errors import BadInput
from minivgg.models.vgg import CONFIGURATIONS
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, algorithms_on, check_algorithm, plan
from minivgg.ops.conv2d.planning import PASSES
from minivgg.progress import tqdm

DIRECTIONS = PASSES
RIVALS = {"PyTorch NCHW": False, "PyTorch channels last": True}  # name → channels_last
QUICK = ("conv1_1", "conv3_1")


def layers(batch: int, size: int) -> dict[str, ConvSpec]:
    """VGG-16's convolutions, "conv1_1" to "conv5_3", for images of size × size pixels."""
    specs, channels = {}, 3
    for s, stage in enumerate(CONFIGURATIONS["D"].split("|"), start=1):
        for i, filters in enumerate(map(int, stage.split()), start=1):
            specs[f"conv{s}_{i}"] = ConvSpec(batch, channels, size, size, filters, 3, 3, (1, 1), (1, 1))
            channels = filters
        size //= 2
    return specs


def chosen_layers(batch: int, size: int, only: tuple[str, ...] | None) -> dict[str, ConvSpec]:
    """`layers(batch, size)`, or those named in `only`. Raises BadInput for a size or a name that makes no sense."""
    if batch < 1:
        raise BadInput(f"the batch must have at least one image, got {batch}")
    if size < 32:
        raise BadInput(f"a VGG halves its input five times, so images have at least 32 pixels each way, got {size}")
    specs = layers(batch, size)
    for name in only or ():
        if name not in specs:
            raise BadInput(f'no layer "{name}" in VGG-16; there are {", ".join(specs)}')
    return {name: spec for name, spec in specs.items() if only is None or name in only}


def operands(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, C, H, W), w (O, C, KH, KW) and dy (N, O, OH, OW): float32, channels last, always the same numbers."""
    rng = np.random.default_rng(0)
    shapes = spec.x_shape, spec.w_shape, spec.y_shape
    return tuple(channels_last(rng.standard_normal(shape, np.float32)) for shape in shapes)


def ours(x, w, dy, spec: ConvSpec, direction: str, *, algorithm: str) -> Callable[[], np.ndarray]:
    """One pass by an algorithm of `ALGORITHMS`, or by what "auto" chooses: "forward" → y, "grad_input" → dx,
    "grad_weight" → dw."""
    chosen = plan(spec, direction) if algorithm == "auto" else ALGORITHMS[algorithm]
    a, b = {"forward": (x, w), "grad_input": (dy, w), "grad_weight": (dy, x)}[direction]
    return partial(getattr(chosen, direction), a, b, spec)


def prepare(task: Callable, spec: ConvSpec, direction: str) -> Callable[[], np.ndarray]:
    """What a contestant does first: its operands, and a task on them."""
    return task(*operands(spec), spec, direction)


def reference(spec: ConvSpec, direction: str) -> np.ndarray:
    """What a pass should compute, in float64."""
    return ours(*(a.astype(np.float64) for a in operands(spec)), spec, direction, algorithm="im2col")()


def contestants(algorithms: tuple[str, ...] | None) -> dict[str, Callable]:
    """Name → task. `algorithms` are keys of `ALGORITHMS`, or "auto"; None means all that a CPU has but the
    seven loops, which take hundreds of times as long. Raises BadInput for a name that is not there."""
    if algorithms is None:
        algorithms = ("auto", *(name for name in algorithms_on("cpu") if name != "naive"))
    for name in algorithms:
        check_algorithm(name)
    tasks = {f"minivgg {name}": partial(ours, algorithm=name) for name in algorithms}
    if pytorch.installed():
        tasks |= {name: partial(pytorch.convolution, channels_last=last) for name, last in RIVALS.items()}
    return tasks


def run(
    *,
    machine: dict,
    threads: int,
    batch: int = 8,
    size: int = 224,
    samples: int = 9,
    turn: float = 0.05,
    seconds: float = 20,
    algorithms: tuple[str, ...] | None = None,
    only: tuple[str, ...] | None = None,
    progress: bool = True,
) -> dict:
    """Race `contestants(algorithms)` on `layers(batch, size)`, or on those named in `only`; returns the record.

    Layers of the same geometry are raced once. Each contestant gives `samples` samples a pass, `turn` seconds each, or
    fewer if those take more than `seconds`. Raises BadInput for settings that make no race.
    """
    check(samples, seconds, threads)
    specs = chosen_layers(batch, size, only)
    geometries: dict[ConvSpec, list[str]] = {}
    for name, spec in specs.items():
        geometries.setdefault(spec, []).append(name)
    tasks = contestants(algorithms)
    settings = {"threads": threads, "batch": batch, "size": size, "samples": samples, "turn": turn, "seconds": seconds}

    def run_heats(limits: dict) -> list[dict]:
        heats = [(spec, names, direction) for spec, names in geometries.items() for direction in DIRECTIONS]
        with ExitStack() as stack, tqdm(heats, "racing", disable=not progress, unit="heat") as bar:
            peak = stack.enter_context(Worker(threads))
            workers = {name: stack.enter_context(worker_for(name, threads)) for name in tasks}
            return [
                {"layers": names, "pass": direction, "spec": asdict(spec)}
                | _row(tasks, workers, peak, spec, direction, limits, settings, _teller(bar, names, direction))
                for spec, names, direction in bar
            ]

    return recorded("conv", machine, settings, run_heats)


def _row(tasks, workers, peak, spec: ConvSpec, direction: str, limits, settings, tell) -> dict:
    """One heat: one pass of one geometry."""
    refused = {name: why for name, task in tasks.items() if (why := _why_not(task, spec))}
    row = race(
        {n: (workers[n], partial(prepare, task, spec, direction)) for n, task in tasks.items() if n not in refused},
        peak,
        flop=2 * spec.macs,
        nbytes=_traffic(spec),
        limits=limits,
        reference=reference(spec, direction),
        **{name: settings[name] for name in ("samples", "turn", "seconds")},
        progress=tell,
    )
    row["results"] = {n: row["results"].get(n) or {"unsupported": refused[n]} for n in tasks}
    return row


def _teller(bar, names: list[str], direction: str) -> Callable[[str], None]:
    return lambda doing: bar.set_postfix_str(f"{', '.join(names)} {direction}: {doing}")


def _why_not(task: partial, spec: ConvSpec) -> str | None:
    """Why one of our algorithms does not do this geometry; None if it does."""
    name = task.keywords.get("algorithm", "auto")
    return None if name == "auto" else ALGORITHMS[name].supports(spec, "cpu")


def _traffic(spec: ConvSpec) -> int:
    """Bytes that any way of doing one pass moves: two of x, w and y read, the third written."""
    return 4 * sum(int(np.prod(shape)) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
