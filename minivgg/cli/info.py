"""`minivgg info`: what a bug report should say about the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def add(commands) -> None:
    command = commands.add_parser(
        "info",
        help="print versions, BLAS, threads and GPU",
        description="Print the versions of minivgg and what it stands on, the BLAS library, threads, GPU, and the "
        "compilers for CUDA C with and without one: what a bug report should say.",
    )
    command.set_defaults(command=run)


def run(arguments) -> None:
    rows = describe()
    width = max(map(len, rows))
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows.items()))


def describe() -> dict[str, str]:
    """Name → value of everything that `minivgg info` prints."""
    import llvmlite
    import matplotlib
    import numba
    import numpy as np
    import PIL
    import safetensors

    from minivgg import __version__
    from minivgg.backends import workspace
    from minivgg.backends.jit import threads

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "minivgg": __version__,
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "NumPy": np.__version__,
        "Numba": f"{numba.__version__} (llvmlite {llvmlite.__version__})",
        "Matplotlib": matplotlib.__version__,
        "Pillow": PIL.__version__,
        "safetensors": safetensors.__version__,
        "BLAS": f"{blas['name']} {blas['version']}",
        "PyTorch": _version("torch") or "not installed (only races need it: pip install 'minivgg[bench]')",
        "CPU": f"{os.cpu_count()} cores, {_cpu_model()}, LLVM calls it {numba.core.config.CPU_NAME or _cpu_name()}",
        "threads": f"{threads()} of {numba.config.NUMBA_NUM_THREADS} (MINIVGG_NUM_THREADS)",
        "workspace": f"{workspace.limit() / 2**20:g} MiB",
        "GPU": _gpu(),
        "GPU simulator": _simulator(),
        "NVRTC": _nvrtc(),
    }


def _version(distribution: str) -> str | None:
    """The version of what is installed under this name, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """What the maker calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _cpu_name() -> str:
    from llvmlite import binding

    return binding.get_host_cpu_name()


def _gpu() -> str:
    from minivgg.bench import gpu

    if reason := gpu.why_not():
        return f"none ({reason})"
    about = gpu.machine()
    return (
        f"{about['GPU']}, {about['GPU memory']}, compute capability {about['compute capability']}, CUDA driver "
        f"{about['CUDA driver']}, CuPy {about['CuPy']}"
    )


def _simulator() -> str:
    """The C++ compiler that the simulator of CUDA uses."""
    from minivgg.cudasim import CompileError, compiler

    try:
        command = compiler.command()
    except CompileError as error:
        return f"none ({error})"
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return f"{' '.join(command)}: {said[0] if said else 'says no version'}"


def _nvrtc() -> str:
    from minivgg.backends import nvrtc

    if nvrtc.library_path() is None:
        return "none (only tests without a GPU need it: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12)"
    return nvrtc.version()
