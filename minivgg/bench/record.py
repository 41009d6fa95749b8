"""A race's record, row by row: what each contestant reached, beside the best of PyTorch and beside the machine's limit.

A record is a dict for JSON: {"race", "date", "machine", "settings", "limits", "contestants", "rows"}. `machine` is what
`minivgg info` prints; a row is what `race` returns, and what it was about. Seconds, bytes and FLOP throughout; GFLOP/s
count a convolution as the seven loops do it, two FLOP for each multiply-add.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minivgg.bench import pytorch
from minivgg.bench.limits import fma_task, limits
from minivgg.bench.race import Result, Worker, heat
from minivgg.files import atomically

WRONG = 1e-4  # an error that no order of float32 additions explains: whoever makes it has not done the task
PEAK = "FMA peak"  # a contestant that does multiply-adds in registers, and nothing else


def is_rival(name: str) -> bool:
    """Whether a contestant is none of ours."""
    return not name.startswith("minivgg")


def worker_for(name: str, threads: int) -> Worker:
    """A process for a contestant, which has imported what it needs: a library's code is not a task's memory."""
    return Worker(threads, pytorch.MODULES if name.startswith("PyTorch") else ("minivgg.models",))


def recorded(race: str, machine: dict, settings: dict, run_heats: Callable[[dict], list[dict]]) -> dict:
    """The record of a race: measures the limits of the machine, and has `run_heats(limits)` make the rows."""
    found = measure_limits(settings["threads"])
    rows = run_heats(found)
    return {
        "race": race,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "settings": settings,
        "limits": found,
        "contestants": list(dict.fromkeys(name for row in rows for name in row["results"])),
        "rows": rows,
    }


def measure_limits(threads: int) -> dict[str, float]:
    """`limits.limits` in a process of its own, on so many threads."""
    with Worker(threads) as worker:
        worker.ask("prepare", partial(partial, limits))
        return worker.ask("finish", True)[1]


def race(
    entries: dict[str, tuple[Worker, Callable]],
    peak: Worker,
    *,
    flop: int,
    nbytes: int,
    limits: dict[str, float],
    reference: np.ndarray | None = None,
    **settings,
) -> dict:
    """Run one heat, beside a measurement of the FMA peak, and judge it:

    {"flop", "bytes", "fma_gflops", "busy" (see `Neighbours`), "results": {contestant: …}}.

    `flop` and `nbytes`, what the task cannot do without, make the limit: max(flop / peak, nbytes / bandwidth) seconds.
    `reference` is what the tasks should compute, in float64: then results have an "error", ‖value − reference‖ /
    ‖reference‖. `settings` are those of `heat`.
    """
    entries = {PEAK: (peak, fma_task), **entries}
    results, busy = heat(entries, value=True, **settings)
    top = results.pop(PEAK)
    fma = limits["fma_gflops"] if top.failure else top.value / top.median / 1e9
    bandwidth = max(rate for name, rate in limits.items() if name.endswith("_gbs"))
    least = max(flop / fma, nbytes / bandwidth) / 1e9
    errors = {n: error(r.value, reference) for n, r in results.items() if reference is not None and not r.failure}
    rival = best_rival(results)
    judged = {name: judge(result, flop, least, rival, errors.get(name)) for name, result in results.items()}
    return {"flop": flop, "bytes": nbytes, "fma_gflops": fma, "busy": busy, "results": judged}


def best_rival(results: dict[str, Result]) -> float | None:
    """The lowest median of those that are not ours; None if there are none."""
    return min((r.median for name, r in results.items() if is_rival(name) and not r.failure), default=None)


def judge(
    result: Result, flop: int, least: float, rival: float | None, found: float | None, wrong: float = WRONG
) -> dict:
    """A result as a dict, with GFLOP/s, share of the limit, how many times as fast as the best rival, and the error
    that was found, of which `wrong` is too much."""
    if result.failure:
        return {"failure": result.failure}
    if found is not None and not found < wrong:
        return {"failure": f"the result is wrong: its error is {found:.1e}"}
    return result.as_dict() | {
        "gflops": flop / result.median / 1e9,
        "share_of_limit": least / result.median,
        "times_rival": rival / result.median if rival else None,
        "error": found,
    }


def error(value: np.ndarray, reference: np.ndarray) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference))


def save(record: dict, path: Path) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
