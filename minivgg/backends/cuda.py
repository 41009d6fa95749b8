"""A kernel from a .cu file: compiled by NVRTC for a GPU, by a C++ compiler for the simulator. The same call either way.

    kernel("ops/relu.cu", "relu_forward", T=x.dtype).over(x.size, x, y)

`T=float32` becomes `#define T float`: one source serves every dtype and tile size. In front of that stand
`tensor_cores.h` of the simulator, and behind it `kernels.cuh`, this folder's few helpers. All of it is pasted, what a
file includes as well, and nothing is said by options, because CuPy's disk cache knows a kernel by its text.

Where the arrays are decides where it runs: see `backends.array`. Nothing is compiled before the first launch.

A file lists the choices that it may be compiled with, in comment lines such as

    // variants: T=float|double TILE=8|16
    // variants: T=__half TILE=16

each of which stands for all combinations of what it names (and for one without defines, if it names nothing); types are
C's or NumPy's (uint8). `// variants: tiling.py` says that the function `variants` of the Python file beside it knows
them, as dicts of what `kernel` takes: where they are computed. No others are compiled: so the tests, which have NVRTC
compile each variant and read what it takes, know all that can ever run.
"""

import functools
import importlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minivgg import cudasim
from minivgg.backends import nvrtc
from minivgg.backends.array import device_of, on_gpu

PACKAGE = Path(__file__).parents[1]
THREADS = 256  # of a block, where a kernel has no reason to choose
ACROSS = 32  # channels of a block of pixels: see kernels.cuh
_BLOCKS = 128  # or more, where there is work for so many: a large GPU has as many multiprocessors
_TENSOR_CORES, _HELPERS = PACKAGE / "cudasim" / "tensor_cores.h", PACKAGE / "backends" / "kernels.cuh"
_TYPES = {"float16": "__half", "float32": "float", "float64": "double", "uint8": "unsigned char"} | {
    "uint16": "unsigned short"
}


@functools.lru_cache(1024)
def kernel(file: str, name: str, **defines) -> "Kernel":
    """The kernel `name` of `file` (relative to the package), compiled with `defines`: numbers, names or dtypes.

    Raises ValueError for defines that are none of the file's `variants`.
    """
    return Kernel(file, name, tuple(sorted((key, _c_name(value)) for key, value in defines.items())))


@functools.cache
def variants(file: str) -> list[dict[str, str]]:
    """The defines of every variant that `file` lists; none where it lists nothing. ValueError for what is no list."""
    found = []
    for line in re.findall(r"^// variants:(.*)", (PACKAGE / file).read_text(encoding="utf-8"), re.MULTILINE):
        if beside := re.fullmatch(r" (\w+)\.py", line):
            module = importlib.import_module(".".join([PACKAGE.name, *Path(file).parent.parts, beside[1]]))
            found += [{key: _c_name(value) for key, value in choice.items()} for choice in module.variants()]
            continue
        if not all(re.fullmatch(r"\w+=\w+(\|\w+)*", word) for word in line.split()):
            raise ValueError(f'{file}: "// variants:{line}" should look like "// variants: T=float|double TILE=16"')
        names, values = zip(*(word.split("=") for word in line.split()), strict=True) if line.split() else ((), ())
        choices = itertools.product(*([_TYPES.get(v, v) for v in value.split("|")] for value in values))
        found += [dict(zip(names, choice, strict=True)) for choice in choices]
    return found


def _c_name(value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, np.dtype | type):
        return _TYPES[np.dtype(value).name]
    return str(value)


def twin(file: str, name: str, *, over: str = "elements") -> Callable:
    """Decorates a kernel of the CPU's: where its first argument is on a GPU, the CUDA kernel `name` runs instead, with
    the same arguments and some numbers behind them.

    over    "elements": flat arrays, a thread for each element; their number is added
            "pixels": the first is (pixels, C), a thread for each element; both numbers are added
            "blocks": the same, and the second says how many pixels each block of threads has to go through
    """

    def decorate(on_cpu: Callable) -> Callable:
        @functools.wraps(on_cpu)
        def run(first, *others):
            if not on_gpu(first):
                return on_cpu(first, *others)
            on_cuda = kernel(file, name, T=first.dtype)
            if over == "elements":
                return on_cuda.over(first.size, first, *others)
            return on_cuda.over_pixels(*first.shape, first, *others, each=others[0] if over == "blocks" else None)

        return run

    return decorate


def accumulator(dtype) -> np.dtype:
    """The type that kernels keep sums of such numbers in, `Acc` in kernels.cuh: float32 for float16, else the same."""
    return np.promote_types(dtype, np.float32)


class Kernel:
    """One kernel with its compile-time choices made. See `kernel`."""

    def __init__(self, file: str, name: str, defines: tuple[tuple[str, str], ...]):
        self.file, self.name, self.defines = file, name, dict(defines)
        if self.defines not in variants(file):
            asked = " ".join(f"{key}={value}" for key, value in defines)
            raise ValueError(f'{file} has no variant "{asked}": its lines "// variants: …" say what there is')

    def source(self, simulated: bool = False) -> str:
        """All that is compiled; errors still name the kernel's own file and lines."""
        defines = "".join(f"#define {key} {value}\n" for key, value in self.defines.items())
        half = "" if simulated or "__half" not in self.defines.values() else "#include <cuda_fp16.h>\n"
        tensor_cores = "" if simulated else _pasted(_TENSOR_CORES)  # the simulator brings its own
        return half + tensor_cores + defines + _pasted(_HELPERS) + _pasted(PACKAGE / self.file)

    def __call__(self, grid, block, *args, shared_mem: int = 0) -> None:
        """Launch. Arrays go as they are, Python integers as int, Python floats as the define `T`.

        Raises OverflowError for an integer that int does not hold; `cudasim`'s or CuPy's errors.
        """
        gpu = any(device_of(a) == "gpu" for a in args)
        launch = self._launch_on_gpu if gpu else self._simulated
        launch(_sizes(grid), _sizes(block), tuple(map(self._argument, args)), shared_mem=shared_mem)

    def over(self, count: int, *args) -> None:
        """Launch `count` threads or a few more; `count` goes to the kernel as its last argument, a long long."""
        if count:
            threads = min(THREADS, max(32, count // (32 * _BLOCKS) * 32))
            self(-(-count // threads), threads, *args, np.int64(count))

    def over_pixels(self, pixels: int, channels: int, *args, each: int | None = None) -> None:
        """Launch a thread for each number of an array (pixels, channels), in blocks of 32 channels and a few pixels.

        Both numbers go to the kernel as its last arguments. With `each`, a block goes through so many pixels.
        """
        down = THREADS // ACROSS if pixels > 8 * _BLOCKS else 2
        grid = -(-pixels // (each or down)) * -(-channels // ACROSS)
        if grid:
            self(grid, (ACROSS, down), *args, pixels, channels)

    def _argument(self, value):
        if isinstance(value, np.generic):  # of which some are Python's numbers, too
            return value
        if isinstance(value, bool | int):
            return np.int32(value)
        if isinstance(value, float):
            return np.float64(value) if self.defines.get("T") == "double" else np.float32(value)
        return value

    @functools.cached_property
    def _simulated(self):
        return cudasim.RawKernel(self.source(simulated=True), self.name, file=Path(self.file).name)

    @functools.cached_property
    def _compiled(self):
        import cupy

        return cupy.RawKernel(self.source(), self.name, nvrtc.OPTIONS)

    def _launch_on_gpu(self, grid, block, args, *, shared_mem) -> None:
        if shared_mem > 48 << 10:  # what a block gets without asking
            self._compiled.max_dynamic_shared_size_bytes = shared_mem
        self._compiled(grid, block, args, shared_mem=shared_mem)


@functools.cache
def _pasted(path: Path) -> str:
    """The text of a file, with that of the files beside it that it includes in quotes."""
    parts = re.split(r'^#include "(.+)"\n', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text, line = "", 1
    for part, included in itertools.zip_longest(parts[::2], parts[1::2]):
        text += f'#line {line} "{path.name}"\n{part}\n' + (_pasted(path.parent / included) if included else "")
        line += part.count("\n") + 1
    return text


def _sizes(sizes) -> tuple[int, ...]:
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)
