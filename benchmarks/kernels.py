"""What every CUDA kernel takes on a GPU, by NVIDIA's compiler, for docs/kernels.md. Needs no GPU.

pip install -e '.[dev]'
python benchmarks/kernels.py
"""

from pathlib import Path

from readme import fill, table

from minivgg.backends import nvrtc
from minivgg.backends.cuda import PACKAGE, Kernel, variants
from minivgg.cudasim import kernels_of

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90")
LONGEST = 8  # characters of a define's value that a table has room for: a matrix has none


def rows_of(file: str) -> list[list[str]]:
    """File, kernel, variant, registers on each architecture, bytes of static shared memory: a row for each kernel."""
    rows = []
    for defines in variants(file):
        name = kernels_of((PACKAGE / file).read_text(encoding="utf-8"))[0]
        source = Kernel(file, name, tuple(sorted(defines.items()))).source()
        taken = [nvrtc.usage(nvrtc.compile(source, arch, file=file)[1]) for arch in ARCHITECTURES]
        variant = ", ".join(f"{key}={value}" for key, value in defines.items() if len(value) <= LONGEST)
        for kernel in sorted(taken[0]):
            registers = [str(usage[kernel].registers) for usage in taken]
            rows.append([f"`{file}`", f"`{kernel}`", variant, *registers, f"{taken[0][kernel].shared:,}"])
    return rows


def main() -> None:
    files = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.cu"))
    head = ["file", "kernel", "variant", *(f"registers, {arch}" for arch in ARCHITECTURES), "shared memory, bytes"]
    rows = [row for file in files for row in rows_of(file)]
    fill("kernels", f"{table(head, rows, 3)}\n\nBy NVRTC {nvrtc.version()}; none spills.", PAGE)


if __name__ == "__main__":
    main()
