"""What every CUDA kernel takes on a GPU, by NVIDIA's compiler, for docs/kernels.md. Needs no GPU.

pip install -e '.[dev]'
python benchmarks/kernels.py
"""

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from readme import fill, table

from minivgg.backends import nvrtc
from minivgg.backends.cuda import PACKAGE, Kernel, variants
from minivgg.cudasim import kernels_of

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90")
LONGEST = 8  # characters of a define's value that a table has room for: a matrix has none


def rows_of(file: str, pool: Executor) -> list[list[str]]:
    """File, kernel, variant, registers on each architecture, bytes of static shared memory: a row for each kernel."""
    name, rows = kernels_of((PACKAGE / file).read_text(encoding="utf-8"))[0], []
    sources = [Kernel(file, name, tuple(sorted(defines.items()))).source() for defines in variants(file)]
    asked = [[pool.submit(nvrtc.taken, source, arch, file) for arch in ARCHITECTURES] for source in sources]
    for defines, answers in zip(variants(file), asked, strict=True):
        taken = [answer.result() for answer in answers]
        variant = ", ".join(f"{key}={value}" for key, value in defines.items() if len(value) <= LONGEST)
        for kernel in sorted(taken[0]):
            registers = [f"{usage[kernel].registers}{' spills' * (usage[kernel].spilled > 0)}" for usage in taken]
            rows.append([f"`{file}`", f"`{kernel}`", variant, *registers, f"{taken[0][kernel].shared:,}"])
    return rows


def main() -> None:
    files = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.cu"))
    head = ["file", "kernel", "variant", *(f"registers, {arch}" for arch in ARCHITECTURES), "shared memory, bytes"]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        rows = [row for file in files for row in rows_of(file, pool)]
    spilling = sum("spills" in "".join(row) for row in rows)
    fill("kernels", f"{table(head, rows, 3)}\n\nBy NVRTC {nvrtc.version()}; {spilling or 'none'} of them spill.", PAGE)


if __name__ == "__main__":
    main()
