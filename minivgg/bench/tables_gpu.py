"""A GPU race's record as tables: an overview first, then precision by precision and batch by batch."""

import math

from minivgg.bench.record import is_rival
from minivgg.bench.tables import (
    COUNTED,
    ERROR,
    Table,
    count,
    details,
    duration,
    failures,
    layer_names,
    matrix,
    task_name,
    times,
    total,
    totals,
)

PRECISIONS = {"fp32": "strict float32", "tf32": "float32 with TF32", "fp16": "float16"}
PLAIN = "cuDNN without Winograd"  # the fastest of its other algorithms, whatever the memory order
_PASSES = {"forward": "forward", "grad_input": "input gradient", "grad_weight": "weight gradient"}
_MEMORY = "Memory is the most that the process held on the GPU: operands, results and scratch."
_QUEUED = "the GPU's own time from the first kernel to the last, launched ahead"
_TIMED = f"{_QUEUED}, each run on the next of several operands, so that the second-level cache holds none of them"


def conv(record: dict) -> list[Table]:
    """The overview; a table for each precision and batch; what cuDNN has, for each; and every heat."""
    found = [_overview(record)]
    for precision, batch in parts(record):
        of_one = part(record, precision, batch)
        found += [_of_part(of_one), *([_of_cudnn(of_one)] if _algorithms(of_one) else [])]
    return [*found, details(record, _row_title, _MEMORY)]


def parts(record: dict) -> list[tuple[str, int]]:
    """The pairs of precision and batch that were raced, in that order."""
    found = {(row["precision"], row["batch"]) for row in record["rows"]}
    return sorted(found, key=lambda pair: (list(PRECISIONS).index(pair[0]), pair[1]))


def part(record: dict, precision: str, batch: int) -> dict:
    """The record of one precision and batch, with `PLAIN` as a contestant, where cuDNN was one."""
    rows = [_with_plain(row) for row in record["rows"] if (row["precision"], row["batch"]) == (precision, batch)]
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    return record | {"rows": rows, "contestants": names, "precision": precision, "batch": batch}


def _with_plain(row: dict) -> dict:
    """The row, and in it the fastest of cuDNN's algorithms that are not Winograd's, by the trials that chose one."""
    known = next((r for r in row["results"].values() if r.get("times_rival")), None)
    plain = [a for r in row["results"].values() for a in r.get("algorithms", ()) if "WINOGRAD" not in a["name"]]
    if known is None or not plain:
        return row
    best = min(plain, key=lambda algorithm: algorithm["seconds"])
    least, rival = known["share_of_limit"] * known["seconds"], known["times_rival"] * known["seconds"]
    result = {"seconds": best["seconds"], "error": best["error"], "chosen": best["name"]}
    result |= {"share_of_limit": least / best["seconds"], "times_rival": rival / best["seconds"]}
    result |= {"gflops": row["flop"] / best["seconds"] / 1e9}
    return row | {"results": row["results"] | {PLAIN: result}}


def _row_title(row: dict) -> str:
    return f"{row['precision']}, batch {row['batch']}, {layer_names(row)} {_PASSES[row['pass']]}"


def _overview(record: dict) -> Table:
    """Contestants by precision and batch: the time of all layers and passes."""
    found = {key: part(record, *key) for key in parts(record)}
    names = list(dict.fromkeys(name for of_one in found.values() for name in of_one["contestants"]))
    cells = []
    for name in names:
        line = [name]
        for of_one in found.values():
            done = [row for row in of_one["rows"] if "seconds" in row["results"].get(name, {})]
            line.append(total(name, done) if len(done) == len(of_one["rows"]) else "")
        cells.append(line)
    size, samples = record["settings"]["size"], record["settings"]["samples"]
    caption = (
        f"Time of {count(record['rows'])} of VGG-16, {size}×{size} pixels, forward and both gradients: medians of up "
        f"to {samples} interleaved samples, {_TIMED}; in brackets, how many times as fast as the best of cuDNN and "
        "PyTorch with the same layer and pass. Empty where it does not do all of them."
    )
    head = ["", *(f"{precision}, batch {batch}" for precision, batch in found)]
    return Table(head, cells, "\n\n".join([caption, limits_say(record)]))


def _of_part(of_one: dict) -> Table:
    """One precision and batch: a line for each contestant, as for the CPU, and how it compares with `PLAIN`."""
    rows, names = of_one["rows"], of_one["contestants"]
    head, cells, partial = totals(rows, names, any(map(is_rival, names)))
    if PLAIN in names:
        head.append("× cuDNN without Winograd")
        for line in cells:
            line.append(times(_ratio(rows, line[0])))
    caption = (
        f"{_named(of_one)}: {_TIMED}, summed; in brackets, and as the range over layers and passes, how many times as "
        f"fast as the best rival. {COUNTED}. {ERROR} Compared over two images, or sixteen filters."
    )
    caption += " * Only the layers that it does." if partial else ""
    return Table(head, cells, "\n".join([caption, *failures(of_one)]))


def _named(of_one: dict) -> str:
    return f"{PRECISIONS[of_one['precision']]}, batch {of_one['batch']}"


def _ratio(rows: list[dict], name: str) -> float | None:
    """How many times as fast as `PLAIN` a contestant does all of the rows; None if it does not."""
    if not all("seconds" in row["results"].get(n, {}) for row in rows for n in (name, PLAIN)):
        return None
    plain, mine = (sum(len(row["layers"]) * row["results"][n]["seconds"] for row in rows) for n in (PLAIN, name))
    return plain / mine


def _algorithms(of_one: dict) -> list[tuple[str, str]]:
    """Memory order and name of every algorithm that cuDNN has for some of the rows."""
    results = [pair for row in of_one["rows"] for pair in row["results"].items()]
    return list(dict.fromkeys((name, a["name"]) for name, result in results for a in result.get("algorithms", ())))


def _of_cudnn(of_one: dict) -> Table:
    """One precision and batch: what each algorithm of cuDNN's takes over the layers that it does, and how often it was
    the fastest of its memory order."""
    cells, rows = [], of_one["rows"]
    for name, algorithm in _algorithms(of_one):
        line = [name, algorithm]
        chosen = 0
        for direction in _PASSES:
            here = [row for row in rows if row["pass"] == direction]
            tried = [(row, _seconds_of(row["results"][name], algorithm)) for row in here]
            done = [(row, seconds) for row, seconds in tried if seconds is not None]
            seconds = sum(len(row["layers"]) * seconds for row, seconds in done)
            line.append(duration(seconds) + ("*" if len(done) < len(here) else "") if done else "")
            chosen += sum(len(row["layers"]) * (row["results"][name].get("chosen") == algorithm) for row, _ in done)
        cells.append([*line, str(chosen) if chosen else ""])
    caption = (
        f"{_named(of_one)}: each of cuDNN's algorithms, the mean of five runs, summed over the layers that it does "
        f"(* not all); and for how many of {sum(len(row['layers']) for row in rows)} layers and passes it was the "
        "fastest of its memory order."
    )
    return Table(["", "algorithm", *_PASSES.values(), "fastest"], cells, caption, left=2)


def _seconds_of(result: dict, algorithm: str) -> float | None:
    """The best time of an algorithm, which may have been tried with several kinds of arithmetic."""
    return min((a["seconds"] for a in result.get("algorithms", ()) if a["name"] == algorithm), default=None)


def vgg(record: dict) -> list[Table]:
    """Tasks by contestants, and every heat, with memory."""
    names = record["contestants"]
    caption = (
        f"VGG-16, medians of up to {record['settings']['samples']} interleaved samples, {_QUEUED}; in brackets, how "
        "many times as fast as the best of PyTorch's ways. A step is forward, backward and SGD with momentum, dropout "
        "included. Below each time, the most memory that the process held on the GPU."
    )
    cells = [
        line
        for row, shown in zip(record["rows"], matrix(record, vgg_title), strict=True)
        for line in (shown, ["", *(_memory(row["results"].get(name, {})) for name in names)])
    ]
    notes = "\n\n".join([caption, *failures(record), limits_say(record)])
    return [Table(["", *names], cells, notes), details(record, vgg_title, _MEMORY)]


def vgg_title(row: dict) -> str:
    """A task in words, with its arithmetic."""
    return f"{task_name(row)}, {PRECISIONS[row['precision']]}"


def _memory(result: dict) -> str:
    nbytes = result.get("memory_bytes")
    return "" if nbytes is None else f"{nbytes / 1e9:.{max(0, 2 - math.floor(math.log10(max(1, nbytes / 1e9))))}f} GB"


def limits_say(record: dict) -> str:
    """The limits, the machine, and who was missing."""
    limits, machine = record["limits"], record["machine"]
    bandwidth = max(rate for name, rate in limits.items() if name.endswith("_gbs"))
    rates = [f"{limits[f'{p}_gflops'] / 1e3:.1f} TFLOP/s {says}" for p, says in PRECISIONS.items()]
    there = {name.split()[0] for name in record["contestants"]}  # "cuDNN NCHW" → "cuDNN"
    known = ("CuPy", "CUDA driver", *(name for name in ("cuDNN", "PyTorch") if name in there))
    libraries = [f"{name} {machine[name].split()[0]}" for name in known]
    lacks = "".join(f" Not in it: {reason}." for reason in record["lacks"])
    return (
        "The limit is the longer of FLOP / peak and bytes / bandwidth, all measured by kernels of ours: "
        f"{', '.join(rates)} (multiply-adds; products by mma.sync, which on Hopper is not the tensor cores' fastest "
        f"way, so that cuDNN may pass 100%), and {bandwidth:.0f} GB/s. "
        f"On {machine['GPU']}, {', '.join(libraries)}, {record['date']}.{lacks}"
    )
