"""Measuring which algorithm is the fastest on this machine, for `plan` to believe: `minivgg bench conv --tune`."""

import json
import time
from collections.abc import Callable, Iterable

from minivgg.backends.jit import threads
from minivgg.bench.conv import operands, ours
from minivgg.files import atomically
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, plan
from minivgg.ops.conv2d.planning import PASSES, key, machine, measurements, read_table, table_path
from minivgg.progress import tqdm

_SECONDS = 0.3  # that a measurement may take, once its algorithm is compiled
_SAMPLES = 7


def fastest(task: Callable) -> float:
    """The shortest of some runs, in seconds: what the others have more is other programs' doing."""
    task()
    samples, end = [], time.perf_counter() + _SECONDS
    while len(samples) < _SAMPLES and (not samples or time.perf_counter() < end):
        start = time.perf_counter()
        task()
        samples.append(time.perf_counter() - start)
    return min(samples)


def tune(specs: Iterable[ConvSpec], progress: bool = True) -> list[tuple[ConvSpec, str, dict[str, float], str]]:
    """Measure every algorithm but the seven loops on every pass of `specs`, and add it to this machine's table.

    → (spec, pass, seconds by algorithm, what `plan` would have chosen before). Takes a third of a second for each
    measurement; the table is `planning.table_path()`, replaced as a whole, so that an interruption loses nothing else.
    """
    found = []
    work = [(spec, direction) for spec in dict.fromkeys(specs) for direction in PASSES]
    for spec, direction in tqdm(work, "tuning", disable=not progress, unit="pass"):
        arrays = operands(spec)
        names = [n for n, row in ALGORITHMS.items() if n != "naive" and row.supports(spec, "cpu") is None]
        times = {name: fastest(ours(*arrays, spec, direction, algorithm=name)) for name in names}
        found.append((spec, direction, times, plan(spec, direction).name))
    path = table_path()
    table = read_table(path)
    table.setdefault(machine(threads()), {}).update({key(spec, d): times for spec, d, times, _ in found})
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(table, indent=1))
    measurements.cache_clear()
    return found


def tuned_table(found: list) -> str:
    """What was measured, as a table: milliseconds, the fastest, and how far the plan was from it."""
    names = list(dict.fromkeys(name for _, _, times, _ in found for name in times))
    rows = [["pass", *names, "fastest", "plan was"]]
    for spec, direction, times, chosen in found:
        best = min(times, key=times.get)
        name = f"{direction} {spec.N}×{spec.C}×{spec.H}×{spec.W} → {spec.O}"
        was = "right" if chosen == best else f"{chosen}, {times[chosen] / times[best]:.2f}× as long"
        rows.append([name, *(f"{times[n] * 1e3:.2f}" if n in times else "" for n in names), best, was])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = ["<", *">" * len(names), "<", "<"]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )
