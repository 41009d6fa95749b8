"""Networks side by side: depth, windows, parameters, arithmetic, memory, what a unit sees, and a forward's time.

All but the time is computed from shapes.
"""

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np

from minivgg.insight.ledger import human, ledger
from minivgg.layers import Auxiliary, Concat, Conv2d, Layer, Linear, Sequential
from minivgg.models import build, initialise

_BYTES = 4  # float32


@dataclass(frozen=True)
class Entry:
    """One network, for one input shape (N, C, H, W). Bytes are of float32 and for the whole batch.

    `depth` counts weight layers from the image to the scores, on the longest way. `windows` are those of the
    convolutions, largest first. `parameters` and `macs` are those of inference; training has `head_parameters` more, in
    auxiliary heads. `seconds` is None where no time was taken.
    """

    name: str
    input: tuple[int, ...]
    depth: int
    windows: tuple[tuple[int, int], ...]
    parameters: int
    head_parameters: int
    macs: int
    inference_bytes: int
    training_bytes: int
    receptive_field: int | None
    seconds: float | None = None

    def as_dict(self) -> dict:
        """Everything, for JSON."""
        return asdict(self)


def describe(name: str, model: Layer, shape: tuple[int, int, int, int], seconds: float | None = None) -> Entry:
    """The entry of `model` for inputs of `shape`; nothing runs. Raises ValueError where a layer cannot take its input.

    Memory for inference: parameters, and the most that a single layer's input and output take together. For training by
    SGD with momentum: parameters, their gradients and velocities, and all layers' outputs, as the ledger counts them.
    Both leave out the scratch memory of single layers, and the filters that a frozen network keeps prepared.
    """
    book = ledger(model, shape)
    heads = book.heads
    windows = {layer.kernel_size for _, layer in model.walk() if isinstance(layer, Conv2d)}
    inference = book.parameters - heads.parameters
    return Entry(
        name,
        tuple(shape),
        depth(model),
        tuple(sorted(windows, reverse=True)),
        inference,
        heads.parameters,
        book.macs - heads.macs,
        _BYTES * (inference + _most_alive(model, tuple(shape))),
        _BYTES * 3 * book.parameters + book.activation_bytes,
        book.receptive_field,
        seconds,
    )


def depth(layer: Layer) -> int:
    """Weight layers (convolutions and linear layers) on the longest way through; auxiliary heads lie beside the way."""
    if isinstance(layer, Auxiliary):
        return 0
    if isinstance(layer, Sequential):
        return sum(map(depth, layer))
    if isinstance(layer, Concat):
        return max(map(depth, layer))
    return int(isinstance(layer, Conv2d | Linear))


def _most_alive(layer: Layer, shape: tuple) -> int:
    """The most values that an inference holds at once inside `layer`, fed with `shape`, its input and output included.

    A layer holds its input and its output. Branches hold the input, what those before have given, and in the end all
    outputs twice, for they are copied side by side.
    """
    size = int(np.prod(shape))
    if isinstance(layer, Auxiliary):
        return size
    if isinstance(layer, Sequential):
        most = size
        for child in layer:
            most, shape = max(most, _most_alive(child, shape)), child.output_shape(shape)
        return most
    if isinstance(layer, Concat):
        most, before = 0, 0
        for branch in layer:
            most = max(most, before + _most_alive(branch, shape))
            before += int(np.prod(branch.output_shape(shape)))
        return max(most, size + 2 * before)
    return size + int(np.prod(layer.output_shape(shape)))


def measure(model: Layer, shape: tuple[int, int, int, int], runs: int = 5) -> float:
    """Seconds of a forward of the frozen `model` on random images of `shape`: the median of `runs`, after one more.

    The one before compiles, and prepares the filters.
    """
    frozen = model.freeze()
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    frozen.forward(x)
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        frozen.forward(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def compare(names: list[str], *, input_size: int = 224, batch_size: int = 1, runs: int = 5, **options) -> list[Entry]:
    """An entry for each of the networks called `names`, on images of their own number of channels.

    `runs` = 0 takes no times. `options` are those of `models.build`. Networks are built one after another, so that one
    at a time is in memory. Raises BadInput for an unknown name, or an image too small for a network.
    """
    entries = []
    for name in names:
        model = build(name, input_size=input_size, init="zeros", **options)
        first = next(layer for _, layer in model.walk() if isinstance(layer, Conv2d))
        shape = (batch_size, first.weight.data.shape[1], input_size, input_size)
        if runs:  # weights that are all zero lie in one page of memory, and are read from it faster than real ones
            initialise(model, "he")
        entries.append(describe(name, model, shape, measure(model, shape, runs) if runs else None))
    return entries


HEADS = ("network", "depth", "windows", "parameters", "MACs", "inference", "training", "sees", "forward")


def table(entries: list[Entry]) -> str:
    """Aligned columns, and below them what the numbers are."""
    rows = [
        (
            entry.name,
            str(entry.depth),
            windows(entry),
            f"{entry.parameters:,}",
            human(entry.macs),
            human(entry.inference_bytes, 1024, "B"),
            human(entry.training_bytes, 1024, "B"),
            f"{entry.receptive_field} px" if entry.receptive_field else "",
            "" if entry.seconds is None else milliseconds(entry.seconds),
        )
        for entry in entries
    ]
    timed = any(row[-1] for row in rows)
    lines = [HEADS, *rows] if timed else [line[:-1] for line in (HEADS, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(line):
        cells = (f"{c:{w}}" if i in (0, 2) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:]), "", notes(entries)])


def notes(entries: list[Entry]) -> str:
    """What the numbers are, in words."""
    N, _, H, W = entries[0].input
    images = f"{N} image{'s' if N > 1 else ''} of {H}×{W} pixels"
    text = [
        f"For {images}. Depth: convolutions and linear layers on the longest way.",
        "Memory in float32: for inference, parameters and the largest input and output of a layer; for training,",
        "parameters, gradients, momentum and all outputs. Sees: pixels each way behind a unit of the last feature map.",
    ]
    text += [
        f"{entry.name} has {entry.head_parameters:,} parameters more in training, in auxiliary heads."
        for entry in entries
        if entry.head_parameters
    ]
    if entries[0].seconds is not None:
        text.append("Forward: of the frozen network, the median of a few runs, here and now.")
    return "\n".join(text)


def windows(entry: Entry) -> str:
    """((11, 11), (5, 5)) → "11×11 5×5"."""
    return " ".join(f"{h}×{w}" for h, w in entry.windows)


def milliseconds(seconds: float) -> str:
    """0.01234 → "12.3 ms", three digits at least."""
    thousand = 1000 * seconds
    return f"{thousand:.{max(0, 2 - int(np.log10(max(thousand, 1))))}f} ms"
