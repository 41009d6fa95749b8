"""NVIDIA's run-time compiler by itself: CUDA C → machine code for any of its GPUs, with none at hand.

On a GPU CuPy calls NVRTC for us (`cuda.Kernel`). Here it is asked directly, so that a machine without a GPU can say
whether a kernel compiles for one, and what it takes there: registers, shared memory, spills. The library comes with
the wheel `nvidia-cuda-nvrtc-cu12` (or its sister for CUDA 13), CUDA's headers with `nvidia-cuda-runtime-cu12`; a CUDA
toolkit on the system does as well. Interface: NVRTC's manual, https://docs.nvidia.com/cuda/nvrtc/.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

OPTIONS = ("-std=c++17", "-default-device")  # of all our kernels; without the second, lambdas are the host's
_LIBRARIES = ("lib/libnvrtc.so.*[0-9]", "lib64/libnvrtc.so.*[0-9]", "bin/nvrtc64_*_0.dll")
_INSTALL = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"


class CompileError(Exception):
    """A source that NVRTC refuses: its log, or why there is no NVRTC."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on the GPU that it was compiled for: registers a thread; bytes of static shared memory a
    block; bytes of stack a thread, and of loads and stores of what found no place in registers."""

    registers: int
    shared: int
    stack: int
    spilled: int


def wheel_folders(*names: str) -> list[Path]:
    """The folders in which NVIDIA's wheels lie, those of `names` first, as far as they are installed."""
    found = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in found.submodule_search_locations] if found else []
    return [folder for name in names for root in roots for folder in sorted(root.glob(name), reverse=True)]


def _homes() -> list[Path]:
    """Where NVRTC may be: wheels of CUDA 12 and 13, then what the environment says, then the usual place."""
    named = [Path(os.environ[key]) for key in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(key)]
    return [*wheel_folders("cuda_nvrtc", "cu[0-9]*"), *named, Path("/usr/local/cuda")]


@functools.cache
def library_path() -> str | None:
    """The path (or bare name) of the NVRTC that is used; None if there is none."""
    here = (path for home in _homes() for pattern in _LIBRARIES for path in sorted(home.glob(pattern)))
    found = next(here, None)
    return str(found) if found else ctypes.util.find_library("nvrtc")


def include_folders() -> list[Path]:
    """Where cuda_fp16.h is, as far as it is to be found: the first folder of these."""
    homes = [*wheel_folders("cuda_runtime"), *_homes()]
    return [home / "include" for home in homes if (home / "include" / "cuda_fp16.h").exists()][:1]


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise CompileError(f"NVRTC, the compiler for NVIDIA's GPUs, is not here: {_INSTALL}")
    return ctypes.CDLL(path)


def version() -> str:
    """NVRTC's version, such as "12.9". Raises CompileError if there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile(source: str, arch: str, options: tuple[str, ...] = (), *, file: str = "kernel.cu") -> tuple[bytes, str]:
    """Machine code (a cubin) for `arch`, such as "sm_90", and the log, in which ptxas says what each kernel takes
    (`usage` reads it). `options` are NVRTC's, on top of `OPTIONS` and CUDA's headers. Raises CompileError with the log.
    """
    nvrtc, program = _library(), ctypes.c_void_p()
    headers = (f"-I{folder}" for folder in include_folders())
    given = [f"-arch={arch}", *OPTIONS, "--ptxas-options=-v", *headers, *options]
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), file.encode(), 0, None, None)
    if created:
        raise CompileError(f"NVRTC cannot start: error {created}")
    try:
        texts = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        failed = nvrtc.nvrtcCompileProgram(program, len(given), texts)
        log = _fetch(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if failed:
            raise CompileError(f"{file} does not compile for {arch}:\n{log}")
        return _fetch(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(program: ctypes.c_void_p, what: str) -> bytes:
    """The program's log or machine code: its size is asked for first, then the bytes."""
    size = ctypes.c_size_t()
    getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_library(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def taken(source: str, arch: str, file: str) -> dict[str, Usage]:
    """Kernel → what it takes on `arch`. Raises CompileError."""
    return usage(compile(source, arch, file=file)[1])


def usage(log: str) -> dict[str, Usage]:
    """Kernel → what it takes, from the log of `compile`."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        found[name] = Usage(
            number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes stack frame"), spilled
        )
    return found
