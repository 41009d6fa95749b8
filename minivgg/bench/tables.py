"""A race's record as tables, for the terminal and for the README."""

import math
from dataclasses import dataclass

from minivgg.bench.record import is_rival

COUNTED = (
    "GFLOP/s count every algorithm as direct convolution, two FLOP for each multiply-add of the seven loops; Winograd "
    "does with fewer, and so may pass 100% of the limit"
)
ERROR = "Error: ‖result − reference‖ / ‖reference‖, with a reference in float64."
BUSY = 0.05  # share of the cores from which on a machine is not quiet
_MEMORY = (
    "Memory is the most that the process held beyond what it held after its imports: inputs, weights, scratch and "
    "compiled code."
)
_VERSIONS = ("Python", "NumPy", "Numba", "PyTorch")
_PASSES = {"forward": "forward", "grad_input": "input gradient", "grad_weight": "weight gradient"}


@dataclass(frozen=True)
class Table:
    """Column heads, rows of cells (the first `left` columns are flushed left), and what must be known to read them."""

    head: list[str]
    rows: list[list[str]]
    caption: str
    left: int = 1

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

        def line(cells):
            padded = (f"{c:{'<' if i < self.left else '>'}{widths[i]}}" for i, c in enumerate(cells))
            return "  ".join(padded).rstrip()

        return "\n".join([line(self.head), "─" * len(line(self.head)), *map(line, self.rows), "", self.caption])


def duration(seconds: float) -> str:
    """0.0123 → "12.3 ms": three digits, in a unit that suits."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            value = seconds * scale
            return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {unit}"


def times(ratio: float | None) -> str:
    """1.234 → "1.23×"; nothing for None."""
    return "" if ratio is None else f"{ratio:.2f}×"


def tables(record: dict) -> list[Table]:
    """The summary first, then the details. Where there was no rival, there are no ratios."""
    from minivgg.bench import tables_gpu  # which stands on this file

    return {"conv": _conv, "vgg": _vgg, "conv_gpu": tables_gpu.conv, "vgg_gpu": tables_gpu.vgg}[record["race"]](record)


def summary(record: dict) -> Table:
    """The first of `tables`: what the README shows."""
    return tables(record)[0]


def _conv(record: dict) -> list[Table]:
    return [_conv_totals(record), details(record, lambda row: f"{layer_names(row)} {_PASSES[row['pass']]}")]


def _vgg(record: dict) -> list[Table]:
    return [_vgg_matrix(record), details(record, lambda row: task_name(row))]


# ---- Convolutions


def layer_names(row: dict) -> str:
    """The layers of a row in short: "conv5_1" to "conv5_3" → "conv5_1–3"."""
    first, *rest = row["layers"]
    return first + (f"–{rest[-1].rpartition('_')[2]}" if rest else "")


def totals(rows: list[dict], names: list[str], ratios: bool) -> tuple[list[str], list[list[str]], bool]:
    """Head and lines of a table, one for each contestant: time of each pass over all layers, and how it compares with
    its best rival and the limit; and whether some do only some of the layers."""
    cells, partial = [], False
    for name in names:
        done = [row for row in rows if "seconds" in row["results"].get(name, {})]
        line = [name]
        for direction in _PASSES:
            here = [row for row in done if row["pass"] == direction]
            fewer = len(here) < sum(row["pass"] == direction for row in rows)
            partial |= fewer and bool(here)
            line.append(total(name, here) + ("*" if fewer and here else ""))
        line.append(total(name, done) if len(done) == len(rows) else "")
        if ratios:
            line.append(_range([row["results"][name]["times_rival"] for row in done]))
        line.append(_percent(_mean_share(name, done)))
        line.append(f"{max(row['results'][name]['error'] for row in done):.1e}" if done else "")
        cells.append(line)
    head = ["", *_PASSES.values(), "all three", *(["each layer"] if ratios else []), "of the limit", "error up to"]
    return head, cells, partial


def _conv_totals(record: dict) -> Table:
    settings, rows, names = record["settings"], record["rows"], record["contestants"]
    ratios = any(map(is_rival, names))
    head, cells, partial = totals(rows, names, ratios)
    caption = (
        f"Time of {count(rows)} of VGG-16 at batch {settings['batch']}, {settings['size']}×{settings['size']} pixels, "
        f"float32, {settings['threads']} threads: {_samples(settings)}, summed"
    )
    if ratios:
        caption += (
            "; in brackets, and as the range over layers and passes, how many times as fast as the better of PyTorch's "
            "two ways with the same layer"
        )
    caption += f". Each gets its data in the memory order it likes best. {COUNTED}. {ERROR}"
    caption += " * Only the layers that it does." if partial else ""
    return Table(head, cells, f"{caption}\n\n{limits_say(record)}")


def total(name: str, rows: list[dict]) -> str:
    """Seconds of a contestant over rows, each as often as VGG-16 has it, and the ratio to PyTorch's best of each."""
    if not rows:
        return ""
    seconds = sum(len(row["layers"]) * row["results"][name]["seconds"] for row in rows)
    if any(row["results"][name]["times_rival"] is None for row in rows):
        return duration(seconds)
    rival = sum(
        len(row["layers"]) * row["results"][name]["seconds"] * row["results"][name]["times_rival"] for row in rows
    )
    return f"{duration(seconds)} ({times(rival / seconds)})"


def _mean_share(name: str, rows: list[dict]) -> float | None:
    """The least time that the layers could take, as a share of what they took."""
    seconds = [len(row["layers"]) * row["results"][name]["seconds"] for row in rows]
    least = [s * row["results"][name]["share_of_limit"] for s, row in zip(seconds, rows, strict=True)]
    return sum(least) / sum(seconds) if rows else None


def _range(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{min(known):.2f}–{times(max(known))}" if known else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def count(rows: list[dict]) -> str:
    names = {layer for row in rows for layer in row["layers"]}
    return f"the {len(names)} convolutions" if len(names) > 1 else "one convolution"


# ---- Networks


def task_name(row: dict) -> str:
    """A task in words: "forward, 8 images of 224×224"."""
    images = "1 image" if row["batch"] == 1 else f"{row['batch']} images"
    return f"{'training step' if row['what'] == 'step' else 'forward'}, {images} of {row['size']}×{row['size']}"


def _samples(settings: dict) -> str:
    return (
        f"medians of up to {settings['samples']} interleaved samples, each the mean over {settings['turn']:g} s or "
        "more after half as long to warm up"
    )


def _vgg_matrix(record: dict) -> Table:
    settings, names = record["settings"], record["contestants"]
    caption = (
        f"VGG-16, float32, {settings['threads']} threads: {_samples(settings)}"
        + ("; in brackets, how many times as fast as the best of PyTorch's ways" if any(map(is_rival, names)) else "")
        + ". A step is forward, backward and SGD with momentum, dropout included."
    )
    return Table(["", *names], matrix(record, task_name), "\n\n".join([caption, *failures(record), limits_say(record)]))


def matrix(record: dict, title) -> list[list[str]]:
    """Tasks by contestants: seconds, and the ratio to the best rival."""
    names = record["contestants"]
    return [[title(row), *(_cell(row["results"].get(name)) for name in names)] for row in record["rows"]]


def failures(record: dict) -> list[str]:
    """A line for each way in which a contestant failed."""
    results = [pair for row in record["rows"] for pair in row["results"].items()]
    return list(dict.fromkeys(f"{name}: {result['failure']}" for name, result in results if "failure" in result))


def _cell(result: dict | None) -> str:
    if result is None:
        return ""
    if "failure" in result:
        return "failed"
    ratio = result["times_rival"]
    return duration(result["seconds"]) + (f" ({times(ratio)})" if ratio else "")


# ---- Both


def details(record: dict, title, memory: str = _MEMORY) -> Table:
    """A line for each task and contestant."""
    rival = "× rival" if record["race"].endswith("_gpu") else "× PyTorch"
    head = ["", "", "median", "quartiles", rival, "GFLOP/s", "of the limit", "error", "memory"]
    cells = []
    for row in record["rows"]:
        for i, (name, result) in enumerate(row["results"].items()):
            line = ["" if i else title(row), name]
            if "seconds" in result:
                line += [
                    duration(result["seconds"]),
                    f"{duration(result['lower'])} – {duration(result['upper'])}",
                    times(result["times_rival"]),
                    f"{result['gflops']:.0f}",
                    _percent(result["share_of_limit"]),
                    "" if result["error"] is None else f"{result['error']:.1e}",
                    "" if result["memory_bytes"] is None else f"{result['memory_bytes'] / 1e6:.0f} MB",
                ]
            else:
                line += ["failed" if "failure" in result else "not done", *[""] * 6]
            cells.append(line)
    caption = f"{COUNTED}. {ERROR} {memory}"
    reasons = dict.fromkeys(
        f"{name}: {result.get('failure') or result['unsupported']}"
        for row in record["rows"]
        for name, result in row["results"].items()
        if "seconds" not in result
    )
    return Table(head, cells, "\n".join([caption, *reasons]), left=2)


def limits_say(record: dict) -> str:
    """The limit, the machine, and whether it was ours alone."""
    peaks = sorted(round(row["fma_gflops"]) for row in record["rows"])
    found = f"{peaks[0]}" if peaks[0] == peaks[-1] else f"{peaks[0]} to {peaks[-1]}"
    bandwidth = max(rate for name, rate in record["limits"].items() if name.endswith("_gbs"))
    versions = {name: said for name, said in record["machine"].items() if name in _VERSIONS}
    if not any(is_rival(name) for name in record["contestants"]):
        del versions["PyTorch"]
    machine = [record["machine"]["CPU"], *(f"{name} {said.split()[0]}" for name, said in versions.items())]
    return (
        f"The limit is the longer of FLOP / peak and bytes / bandwidth, both measured: {found} GFLOP/s of fused "
        f"multiply-adds, raced beside the others, and {bandwidth:.0f} GB/s. "
        f"On {', '.join(machine)}, {record['date']}." + _busy_says(record["rows"])
    )


def _busy_says(rows: list[dict]) -> str:
    shares = [row["busy"] for row in rows if row["busy"] is not None and row["busy"] >= BUSY]
    if not shares:
        return ""
    return (
        f" In {len(shares)} of {len(rows)} heats other programs took {BUSY:.0%} to {max(shares):.0%} of the cores: "
        "PyTorch's threads, which spin while they wait, lose far more by that than ours. Race again on a quiet machine."
    )
