"""`RawKernel`: a CUDA kernel that runs on NumPy arrays, called as CuPy's is."""

import ctypes
import functools
import re
import threading

import numpy as np

from minivgg.cudasim import compiler
from minivgg.cudasim.checks import (
    Checks,
    Launch,
    OrderDependent,
    Race,
    Refused,
    SimulatorError,
    current,
    findings,
    in_words,
)

MAX_THREADS, MAX_GRID = 1024, (2**31 - 1, 65535, 65535)
MAX_STATIC_SHARED, MAX_SHARED = 48 << 10, 227 << 10  # bytes a block may declare, and may ask for at launch (sm_90)
_ORDERS = {"forward": 0, "reverse": 1}
_one_launch_at_a_time = threading.RLock()
_stacks = (ctypes.c_size_t * 2)()  # where the threads' stacks are, and their size: for runtime.cpp to fill in


def kernels_of(source: str) -> list[str]:
    """The names of the `__global__` functions of a source."""
    return re.findall(r"__global__[\w\s]*?\b(\w+)\s*\(", re.sub(r"__launch_bounds__\s*\([^)]*\)", "", source))


class RawKernel:
    """One `__global__` function of a CUDA C source, to be launched on NumPy arrays.

        kernel = RawKernel(source, "scale", ("-DTILE=16",))
        kernel((blocks,), (threads,), (x, y, np.float32(2), np.int32(n)))

    The call is that of `cupy.RawKernel`: grid and block are tuples of one to three sizes, the arguments are arrays
    without gaps and NumPy numbers, of the very types that the kernel declares. Messages call the source `file`.

    A launch runs once in each order of threads that `checking` names, and must give the same bits. Raises CompileError;
    Refused for a launch that no GPU would take; SimulatorError for what goes wrong inside it (divergent barriers,
    deadlock, wrong masks, failed assertions, addresses without memory, loops without an end); OrderDependent; Race.
    """

    def __init__(self, source: str, name: str, options: tuple[str, ...] = (), *, file: str = "kernel.cu"):
        self.source, self.name, self.options, self.file = source, name, tuple(options), file
        if name not in (there := kernels_of(source)):
            raise Refused(f"{file} has no kernel {name}; there is {', '.join(there) or 'none'}")

    def __call__(self, grid, block, args, *, shared_mem: int = 0) -> None:
        with _one_launch_at_a_time:  # signals are the process's
            self._launch(grid, block, args, shared_mem)

    def _launch(self, grid, block, args, shared_mem) -> None:
        checks = current()
        library = self._library(bool(checks.watched))
        grid, block = _sizes(grid, "grid"), _sizes(block, "block")
        self._check_launch(library, grid, block, shared_mem)
        self._check_arguments(library, args)
        launch = Launch(self.name, grid, block, shared_mem)
        if checks.launches is not None:
            checks.launches.append(launch)
        if checks.watched:
            return self._run_watched(library, checks, launch, args)
        written = [a for a, type_ in zip(args, library.types, strict=True) if _is_output(type_)]
        before = [a.copy() for a in written] if len(checks.orders) > 1 else []
        first = None
        for order in checks.orders:
            for array, content in zip(written, before, strict=False):
                array[...] = content
            self._run(library, launch, args, order)
            if first is None:
                first = [a.copy() for a in written] if len(checks.orders) > 1 else []
            else:
                self._compare(library, args, first, written, (checks.orders[0], order))

    @functools.cached_property
    def parameters(self) -> list[str]:
        """The names of the kernel's parameters, macros expanded that stand for some of them."""
        source = self.source.replace("\\\n", " ")
        macros = dict(re.findall(r"^#define +(\w+) +(.*)", source, re.MULTILINE))
        declared = re.search(rf"__global__[^;{{}}]*?\b{re.escape(self.name)}\s*\(([^)]*)\)", source)[1]
        declared = re.sub(r"\w+", lambda word: macros.get(word[0], word[0]), declared)
        return [re.findall(r"\w+", part)[-1] for part in declared.split(",") if part.strip()]

    @property
    def types(self) -> list[str]:
        """The types of its parameters, as "const float32*" or "int32"."""
        return self._library(False).types

    def _library(self, watched: bool) -> "_Library":
        return _library(self.source, self.name, self.options, self.file, watched)

    # ---- Refusing what a GPU would refuse, and what it would silently misread ----

    def _check_launch(self, library, grid, block, shared_mem) -> None:
        others = set(kernels_of(self.source)) - {self.name}
        static = sum(array.nbytes for array in library.shared if array.function not in others)
        refusals = (
            (np.prod(block) > MAX_THREADS, f"a block has at most {MAX_THREADS} threads, this one {np.prod(block)}"),
            (block[2] > 64, f"a block is at most 64 threads deep, this one {block[2]}"),
            (any(g > most for g, most in zip(grid, MAX_GRID, strict=True)), f"a grid is at most {MAX_GRID}"),
            (min(*grid, *block) < 1, "every size is at least 1"),
            (
                static > MAX_STATIC_SHARED,
                f"a block declares at most {MAX_STATIC_SHARED} bytes of shared memory, here {static}",
            ),
            (static + shared_mem > MAX_SHARED, f"a block has at most {MAX_SHARED} bytes of shared memory"),
        )
        for wrong, why in refusals:
            if wrong:
                raise Refused(f"{self.name}: cannot launch grid {grid}, block {block}: {why}")

    def _check_arguments(self, library, args) -> None:
        if len(args) != len(library.types):
            declared = ", ".join(f"{type_} {name}" for name, type_ in zip(self.parameters, library.types, strict=True))
            raise Refused(f"{self.name} takes {len(library.types)} arguments ({declared}), got {len(args)}")
        for name, type_, value in zip(self.parameters, library.types, args, strict=True):
            wanted = type_.removeprefix("const ").removesuffix("*")
            if type_.endswith("*"):
                if not isinstance(value, np.ndarray):
                    raise Refused(f"{self.name}: {name} is a {type_}, so an array of {wanted}, not {value!r}")
                if not _is_dense(value):
                    raise Refused(
                        f"{self.name}: {name} {value.shape} has gaps in memory (strides {value.strides}), "
                        "which the kernel cannot know of: pass a contiguous copy"
                    )
                if _is_output(type_) and not value.flags.writeable:
                    raise Refused(f"{self.name}: {name} is written to, but the array is read-only")
            elif isinstance(value, np.ndarray) or not isinstance(value, np.generic):
                raise Refused(f"{self.name}: {name} is a {type_}: pass np.{wanted}(…), not {value!r}")
            if str(value.dtype) != wanted and wanted != "other":
                raise Refused(f"{self.name}: {name} is declared {type_}, but got {value.dtype}")

    # ---- Running ----

    def _run(self, library, launch: Launch, args, order) -> None:
        kind, seed = (_ORDERS[order], 0) if order in _ORDERS else (2, int(order))
        holders = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else np.array(a) for a in args]
        places = [ctypes.addressof(h) if isinstance(h, ctypes.c_void_p) else h.ctypes.data for h in holders]
        error = library.launch(places, launch.grid, launch.block, launch.shared_mem, kind, seed, current().seconds)
        if error:
            arrays = self._arrays(library, args)
            raise SimulatorError(f"{self.name}: {in_words(error, library.line_of, arrays)}")

    def _compare(self, library, args, first, second, orders) -> None:
        outputs = [n for n, type_ in zip(self.parameters, library.types, strict=True) if _is_output(type_)]
        for name, a, b in zip(outputs, first, second, strict=True):
            different = ~((a == b) | ((a != a) & (b != b)))
            if different.any():
                at = np.unravel_index(np.argmax(different), a.shape)
                where = ", ".join(map(str, at))
                raise OrderDependent(
                    f"{self.name}: {name}[{where}] is {a[at]} with the threads in {_order(orders[0])} and {b[at]} in "
                    f"{_order(orders[1])}: a barrier is missing, or threads write to one place. "
                    "checking(racecheck=True) names the lines"
                )

    def _arrays(self, library, args) -> list[tuple[str, int, int]]:
        """(name, bytes, bytes of an element) by the number that the runtime knows each array by; −1 is the last."""
        named = [
            (name, a.nbytes, a.itemsize) if isinstance(a, np.ndarray) else ("", 0, 0)
            for name, a in zip(self.parameters, args, strict=True)
        ]
        static = [(f"shared {array.name}", array.nbytes, 0) for array in library.shared]
        return [*named, *static, ("dynamic shared memory", library.dynamic, 0)]

    def _run_watched(self, library, checks: Checks, launch: Launch, args) -> None:
        guarded, originals, copies = [], [], {}
        for a in args:
            if isinstance(a, np.ndarray):
                same = (a.ctypes.data, a.dtype, a.shape, a.strides)  # an array that is passed twice stays one
                copy = copies[same] if same in copies else copies.setdefault(same, _guarded(a))
                originals.append((a, copy))
                a = copy
            guarded.append(a)
        library.watch(checks.watched, guarded, launch.shared_mem)
        try:
            self._run(library, launch, guarded, checks.orders[0])
        finally:
            text = library.found()
            library.watch(0, [], 0)
        for original, copy in originals:
            if original.flags.writeable:
                original[...] = copy
        races, launch.traffic = findings(text, library.line_of, self._arrays(library, args))
        if races:
            more = f" ({len(races)} pairs of lines in all)" if len(races) > 1 else ""
            raise Race(f"{self.name}: race{more}: " + "; ".join(races[:5]))


def _sizes(sizes, what: str) -> tuple[int, int, int]:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(int(s) for s in sizes)
    if not 1 <= len(sizes) <= 3:
        raise Refused(f"{what} takes one to three sizes, got {sizes}")
    return sizes + (1,) * (3 - len(sizes))


def _is_output(type_: str) -> bool:
    return type_.endswith("*") and not type_.startswith("const ")


def _is_dense(a: np.ndarray) -> bool:
    """Whether the elements of `a` fill one stretch of memory, in whatever order of the dimensions."""
    order = np.argsort(a.strides)[::-1]
    return a.transpose(order).flags.c_contiguous


def _order(order) -> str:
    return f"{order} order" if isinstance(order, str) else f"shuffled order {order}"


GUARD = 4096  # bytes around a copied array, so that what runs over an end does not run into the next array


def _guarded(a: np.ndarray) -> np.ndarray:
    memory = np.full(a.nbytes + 2 * GUARD + 64, 0xFF, np.uint8)
    start = GUARD + -(memory.ctypes.data + GUARD) % 64
    order = np.argsort(a.strides, kind="stable")[::-1] if not a.flags.c_contiguous else range(a.ndim)
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape([a.shape[i] for i in order])
    copy = copy.transpose(np.argsort(order)) if a.ndim else copy.reshape(())
    copy[...] = a
    return copy


@functools.lru_cache(1024)
def _library(source: str, name: str, options: tuple[str, ...], file: str, watched: bool) -> "_Library":
    how = {"options": options, "file": file, "watched": watched}
    try:  # all kernels of a source at once: most of the time goes to the header
        return _Library(compiler.build(source, tuple(kernels_of(source)), **how), name)
    except compiler.CompileError:  # one of the others may be switched off by these options
        return _Library(compiler.build(source, (name,), **how), name)


class _Library:
    """A built kernel: what ctypes needs to know to call it."""

    def __init__(self, path, name: str):
        self.path, self._dll = path, compiler.load(path)
        signature = getattr(self._dll, f"cudasim_signature_{name}")
        signature.restype = ctypes.c_char_p
        self.types = [type_ for type_ in signature().decode().split(",") if type_]
        self._call = getattr(self._dll, f"cudasim_call_{name}")
        self._dll.cudasim_launch.restype = ctypes.c_char_p
        self._dll.cudasim_findings.restype = ctypes.c_char_p
        self._dll.cudasim_image.restype = ctypes.c_size_t
        self.shared = compiler.shared_arrays(path)
        self.dynamic = 0

    def launch(self, places, grid, block, shared_mem, order, seed, seconds) -> str | None:
        self.dynamic = shared_mem
        three = ctypes.c_uint * 3
        message = self._dll.cudasim_launch(
            self._call,
            (ctypes.c_void_p * len(places))(*places),
            three(*grid),
            three(*block),
            ctypes.c_size_t(shared_mem),
            order,
            ctypes.c_uint64(seed),
            ctypes.c_double(seconds),
            _stacks,
        )
        return message and message.decode()

    def watch(self, what: int, args: list, shared_mem: int) -> None:
        """Follow accesses from now on (`what` is `Checks.watched`), to these arguments and to the shared arrays."""
        self._dll.cudasim_watch(what)
        for number, a in enumerate(args):
            if isinstance(a, np.ndarray):
                self._array(a.ctypes.data, a.nbytes, a.itemsize, 0, number)
        for number, array in enumerate(self.shared, len(args)):
            self._array(self._dll.cudasim_image() + array.address, array.nbytes, 1, 1, number)

    def _array(self, begin, size, granule, shared, number) -> None:
        self._dll.cudasim_array(ctypes.c_void_p(begin), ctypes.c_size_t(size), granule, shared, number)

    def found(self) -> str:
        return self._dll.cudasim_findings().decode()

    def line_of(self, address: int) -> str:
        return compiler.line_of(self.path, address)
