"""The ledger of a network: layer by layer, what goes through it, what it holds, what it costs and what it sees.

Everything is computed from shapes; nothing runs and no weight is touched, so VGG-19 takes milliseconds.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from minivgg.layers import AdaptiveAvgPool2d, Auxiliary, Concat, Conv2d, Flatten, Layer, Linear, Sequential

_BYTES = 4  # float32


@dataclass(frozen=True)
class Field:
    """A receptive field: one unit sees `size` input pixels each way, and its neighbour lies `jump` pixels on.

    Through a window of k with stride s: size + (k − 1)·jump, jump·s. Araujo, Norris, Sim, Computing Receptive Fields
    of Convolutional Neural Networks (Distill 2019), eq. 2. Of two directions or several branches, the largest counts.
    """

    size: int = 1
    jump: int = 1

    def through(self, kernel: int, stride: int) -> "Field":
        return Field(self.size + (kernel - 1) * self.jump, self.jump * stride)


@dataclass(frozen=True)
class Row:
    """One layer. Bytes are of float32; `columns` is the whole im2col matrix, which is only ever held in chunks.

    `receptive_field` is None from the point on where a unit sees the image as a whole (after Flatten). `training_only`
    marks the layers of auxiliary heads.
    """

    name: str
    layer: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    column_bytes: int
    receptive_field: int | None
    training_only: bool = False


@dataclass(frozen=True)
class Ledger:
    """The rows of a network and their totals, for one input shape (N, C, H, W), auxiliary heads included.

    `receptive_field` is that of one unit of the last feature map before the classifier.
    """

    input: tuple[int, ...]
    rows: list[Row]
    receptive_field: int | None = None

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """All outputs together, as training holds them."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def largest_column_bytes(self) -> int:
        return max((row.column_bytes for row in self.rows), default=0)

    @property
    def heads(self) -> "Ledger":
        """The part that only training has: the auxiliary heads."""
        return Ledger(self.input, [row for row in self.rows if row.training_only])

    def as_dict(self) -> dict:
        """Everything, for JSON; `gmac` is macs / 10⁹ rounded to three digits."""
        totals = ("parameters", "macs", "activation_bytes", "largest_column_bytes", "receptive_field")
        return {
            "input": list(self.input),
            **{name: getattr(self, name) for name in totals},
            "gmac": round(self.macs / 1e9, 3),
            "layers": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        return _table(self)


def ledger(model: Layer, input_shape: tuple[int, int, int, int]) -> Ledger:
    """The ledger of `model` for inputs of `input_shape`. Raises ValueError where a layer cannot take its input.

    A multiply-accumulate (MAC) is counted for each product in convolutions and linear layers, biases and all else
    left out, as the literature does; a FLOP count is twice that.
    """
    rows = list(_rows(model, "", tuple(input_shape), Field()))
    seen = [field.size for _, field in rows if field]
    return Ledger(tuple(input_shape), [row for row, _ in rows], seen[-1] if seen else None)


def _rows(layer: Layer, name: str, shape: tuple, field: Field | None) -> Iterator[tuple[Row, Field | None]]:
    """Yield (row, field after it) for each leaf inside `layer`, fed with `shape` and `field`."""
    if isinstance(layer, Auxiliary):
        for row, _ in _rows(Sequential(layer.children()), name, shape, field):
            yield replace(row, training_only=True), field
    elif isinstance(layer, Sequential):
        for key, child in layer.children().items():
            for row, after in _rows(child, f"{name}.{key}".lstrip("."), shape, field):
                yield row, after
                field = after
            shape = child.output_shape(shape)
    elif isinstance(layer, Concat):
        branches = [list(_rows(c, f"{name}.{k}".lstrip("."), shape, field)) for k, c in layer.children().items()]
        widest = max((b[-1][1] for b in branches if b[-1][1]), key=lambda f: f.size, default=None)
        for branch in branches:
            yield from ((row, widest) for row, _ in branch)
    else:
        field = _field_after(layer, shape, field)
        yield _row(layer, name, shape, field), field


def _field_after(layer: Layer, shape: tuple, field: Field | None) -> Field | None:
    if field is None or isinstance(layer, Flatten | Linear):
        return None
    if isinstance(layer, AdaptiveAvgPool2d):
        windows = [
            (-(-size // out), max(1, size // out)) for size, out in zip(shape[2:], layer.output_size, strict=True)
        ]
    elif hasattr(layer, "kernel_size"):
        windows = list(zip(layer.kernel_size, layer.stride, strict=True))
    else:
        return field
    return max((field.through(*window) for window in windows), key=lambda f: f.size)


def _row(layer: Layer, name: str, shape: tuple, field: Field | None) -> Row:
    output, macs, columns = layer.output_shape(shape), 0, 0
    if isinstance(layer, Conv2d):
        spec = layer.spec(shape)
        macs, columns = spec.macs, 0 if spec.is_pointwise else spec.N * spec.OH * spec.OW * spec.columns * _BYTES
    elif isinstance(layer, Linear):
        macs = shape[0] * layer.weight.data.size
    size = None if field is None else field.size
    return Row(name, repr(layer), output, layer.parameter_count(), macs, math.prod(output) * _BYTES, columns, size)


def human(count: float, base: int = 1000, unit: str = "") -> str:
    """12345678 → "12.3 M"; with base 1024 and unit "B", "11.8 MiB". Zero is left blank."""
    if not count:
        return ""
    prefixes = ["", "K", "M", "G", "T"]
    power = min(int(math.log(count, base)), len(prefixes) - 1)
    infix = "i" if base == 1024 and power else ""
    number = f"{count:,.0f}" if power == 0 else f"{count / base**power:.1f}"
    return f"{number} {prefixes[power]}{infix}{unit}".rstrip()


def _table(book: Ledger) -> str:
    head = ("layer", "", "output", "parameters", "MACs", "activations", "im2col", "sees")
    lines = [
        (
            row.name,
            row.layer,
            "×".join(map(str, row.output[1:])),
            f"{row.parameters:,}" if row.parameters else "",
            human(row.macs),
            human(row.activation_bytes, 1024, "B"),
            human(row.column_bytes, 1024, "B"),
            f"{row.receptive_field} px" if row.receptive_field else "",
        )
        for row in book.rows
    ]
    totals = (
        "total",
        "",
        "",
        f"{book.parameters:,}",
        human(book.macs),
        human(book.activation_bytes, 1024, "B"),
        f"≤{human(book.largest_column_bytes, 1024, 'B')}",
        f"{book.receptive_field} px",
    )
    widths = [max(len(line[i]) for line in (head, *lines, totals)) for i in range(len(head))]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))

    def text(line):
        cells = (f"{v:{w}}" if i < 3 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    summary = (
        f"{human(book.parameters * _BYTES, 1024, 'B')} of parameters in float32, {book.macs / 1e9:.3f} GMAC for input "
        f"{'×'.join(map(str, book.input))}; im2col is held in chunks, never whole"
    )
    if (heads := book.heads).rows:
        summary += (
            f"\nof these {heads.parameters:,} parameters and {heads.macs / 1e9:.3f} GMAC are auxiliary heads', "
            "which only training has"
        )
    return "\n".join([text(head), rule, *map(text, lines), rule, text(totals), "", summary])
