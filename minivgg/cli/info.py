"""`minivgg info`: what a bug report should say about the machine."""

import os
import platform
from importlib import metadata
from pathlib import Path


def add(commands) -> None:
    command = commands.add_parser(
        "info",
        help="print versions, BLAS, threads and GPU",
        description="Print the versions of minivgg and what it stands on, the BLAS library, threads and GPU: "
        "what a bug report should say.",
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
    try:
        import cupy
    except ImportError:
        return "none (CuPy is not installed: pip install 'minivgg[cuda12]' or 'minivgg[cuda13]', not both)"
    if not cupy.cuda.is_available():
        return f"none (CuPy {cupy.__version__} finds no device)"
    return f"{cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}, CuPy {cupy.__version__}"
