"""Which rung is the fastest for a convolution on this machine: estimated by a page of arithmetic, or measured.

An algorithm's time is taken to be its multiplications at the speed of the multiply-add units, and what it copies and
transforms at the speed of the cache it goes through. The constants are those of one AVX-512 core; what matters is their
ratio. `minivgg bench conv --tune` measures instead, and keeps what it finds for this machine.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding

from minivgg.caches import user_folder
from minivgg.errors import BadInput
from minivgg.ops.conv2d.spec import ConvSpec

PASSES = ("forward", "grad_input", "grad_weight")

# What "auto" tries on a GPU, in this order. A guess until a race on one says better: im2col does every geometry by the
# vendor's product, but its column matrix goes through memory, which implicit GEMM saves. The first takes float16 alone;
# of float32 tensor cores would drop digits, which nobody has asked for.
ON_GPU = ("fp16", "implicit_gemm", "im2col")

_FLOPS = 230e9  # a second and thread: what the micro-kernel reaches
_CACHE = 15e9  # bytes a second and thread that a transform or a gathering gets through
_STREAM = 60e9  # bytes a second and thread that the multiply-add units read from the third-level cache on the way
_MEMORY = 20e9  # bytes a second, for all threads together
_CALLS = 50e-6  # seconds that im2col spends between its kernels


def _even(n: int) -> int:
    return n + n % 2


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _view(spec: ConvSpec, direction: str) -> tuple[int, int, int, int, int]:
    """(inputs, outputs, height and width of what is produced, how often zeros are multiplied) of a pass."""
    if direction == "grad_input":
        return spec.O, spec.C, spec.H, spec.W, spec.stride[0] * spec.stride[1]
    return spec.C, spec.O, spec.OH, spec.OW, 1


def _rows_factor(rows: int) -> float:
    """How much longer a block of so few rows takes than its operations: 8 sums at least keep the units busy."""
    blocks = -(-rows // 14)
    return blocks * max(4, _even(-(-rows // blocks))) / rows


def _exact(
    spec: ConvSpec, direction: str, threads: int, prepared: bool, *, rows: int, gathered: int, readings: int = 0
) -> float:
    """An algorithm that multiplies as the definition does, `rows` at a time, copies `gathered` bytes, and reads all
    filters `readings` times, which costs nothing as long as the second-level cache holds them."""
    _, outputs, _, _, zeros = _view(spec, direction)
    waste = _rows_factor(rows) * _up(outputs, 32) / outputs * zeros
    filters = 0 if prepared else 4 * spec.O * spec.columns * (3 if direction == "grad_weight" else 1) / 8e9
    if 4 * spec.O * spec.columns > 1 << 20:
        filters += readings * 4 * spec.O * spec.columns / (_STREAM * threads)
    return 2 * spec.macs * waste / (_FLOPS * threads) + gathered / (_CACHE * threads) + filters


def _direct(spec: ConvSpec, direction: str, threads: int, prepared: bool) -> float:
    inputs, _, H, W, _ = _view(spec, direction)
    if direction == "grad_weight":  # here the rows are the filters', and are added to again and again
        filters = 4 * spec.KW * spec.C * spec.KH * spec.O * spec.N * max(1, spec.OH * spec.OW // 512)
        rows = min(14, spec.KW * spec.C)
        return _exact(spec, direction, threads, prepared, rows=rows, gathered=4 * spec.N * H * W * inputs + filters)
    bands = spec.N * min(H, -(-4 * threads // spec.N))
    return _exact(spec, direction, threads, prepared, rows=W, gathered=8 * spec.N * H * W * inputs, readings=bands)


def _implicit_gemm(spec: ConvSpec, direction: str, threads: int, prepared: bool) -> float:
    inputs, _, H, W, _ = _view(spec, direction)
    columns = 4 * spec.N * H * W * spec.KH * spec.KW * inputs
    panels = 0 if direction == "grad_weight" else -(-spec.N * H * W // 28)
    rows = min(14, spec.N * H * W)
    return _exact(spec, direction, threads, prepared, rows=rows, gathered=1.5 * columns, readings=panels)


def _im2col(spec: ConvSpec, direction: str, threads: int, prepared: bool) -> float:
    """The column matrix is written, read by a product with rows of filters as its columns, and grad_input reads it to
    add up what belongs to the same pixel. Not much of that is in vectors."""
    columns = 4 * spec.N * spec.OH * spec.OW * spec.columns
    waste = _up(spec.columns, 32) / spec.columns if direction == "grad_input" else _up(spec.O, 32) / spec.O
    others = 4 * spec.N * spec.OH * spec.OW * spec.O
    return 2 * spec.macs * waste / (_FLOPS * threads) + (4 * columns + others) / (_CACHE * threads) + _CALLS


def _winograd(m: int, spec: ConvSpec, direction: str, threads: int, prepared: bool) -> float:
    _, outputs, H, W, _ = _view(spec, direction)
    planes = (m + 2) ** 2
    tiles = spec.N * -(-H // m) * -(-W // m)
    filters = 4 * planes * spec.C * spec.O
    products = 2 * tiles * planes * spec.C * spec.O * _rows_factor(min(tiles, 56))
    transforms = 4 * planes * tiles * (spec.C + spec.O)
    products *= _up(outputs, 32) / outputs
    once = filters / (_STREAM if prepared else _MEMORY)
    return products / (_FLOPS * threads) + transforms / (_CACHE * threads) + once


ESTIMATES: dict[str, Callable[..., float]] = {
    "im2col": _im2col,
    "direct": _direct,
    "implicit_gemm": _implicit_gemm,
    "winograd2": functools.partial(_winograd, 2),
    "winograd": functools.partial(_winograd, 4),
}


def estimate(name: str, spec: ConvSpec, direction: str, threads: int, prepared: bool = False) -> float:
    """Seconds that a pass should take, for one image at least; infinite for an algorithm that nothing is known of."""
    spec = spec if spec.N else dataclasses.replace(spec, N=1)
    return ESTIMATES[name](spec, direction, threads, prepared) if name in ESTIMATES else float("inf")


@functools.lru_cache(4096)
def key(spec: ConvSpec, direction: str) -> str:
    """How a convolution is called in the table of measurements."""
    window = f"{spec.KH}x{spec.KW} stride {spec.stride[0]}x{spec.stride[1]} padding {spec.padding[0]}x{spec.padding[1]}"
    return f"{direction} {spec.N}x{spec.C}x{spec.H}x{spec.W} to {spec.O}, {window}"


def table_path() -> Path:
    """Where this machine's measurements are kept: `MINIVGG_TUNING`, or a file in the user's cache folder."""
    return Path(os.environ.get("MINIVGG_TUNING") or user_folder("minivgg", "MINIVGG_CACHE") / "conv_cpu.json")


@functools.cache
def measurements(threads: int) -> dict[str, dict[str, float]]:
    """Convolution → algorithm → seconds, as measured on this kind of processor; empty where nobody has."""
    return read_table(table_path()).get(machine(threads), {})


def read_table(path: Path) -> dict:
    """All measurements of a file, by machine; none if it is not there. Raises BadInput if it is not such a table."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # a home that is not there, or not ours
        table = {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a table of measurements ({error}); delete it, and tune again") from error
    if not isinstance(table, dict):
        raise BadInput(f"{path}: not a table of measurements; delete it, and tune again")
    return table


def machine(threads: int) -> str:
    """What a measurement holds for: a kind of processor, and so many threads."""
    return f"{llvmlite.binding.get_host_cpu_name()}, {threads} threads"
