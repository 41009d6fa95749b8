"""Every CUDA kernel compiles for NVIDIA's GPUs, with none at hand, and keeps its numbers in registers.

A kernel cannot escape: each variant that a .cu file lists is compiled, each `__global__` function of it must be among
what was compiled, and what is not listed does not run anywhere, in the simulator neither.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from minivgg.backends import cuda, nvrtc
from minivgg.backends.cuda import PACKAGE, Kernel, variants
from minivgg.cudasim import kernels_of

ARCHITECTURES = ("sm_80", "sm_90", "sm_90a")  # A100, H100, and H100 with its own instructions
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.cu"))

needs_nvrtc = pytest.mark.skipif(
    nvrtc.library_path() is None, reason="NVRTC is not here: pip install -e '.[dev]' brings it, on Linux"
)

SPILLS = """extern "C" __global__ void __launch_bounds__(1024) crowded(float* x) {
    __shared__ float turn[1024];
    float own[200];
    #pragma unroll
    for (int i = 0; i < 200; i++) own[i] = x[i * 1024 + threadIdx.x];
    turn[threadIdx.x] = own[0];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 200; i++) x[i * 1024 + threadIdx.x] = own[i] * own[199 - i] + turn[i];
}
extern "C" __global__ void roomy(float* x) { x[threadIdx.x] *= 2; }
"""


def said(defines):
    return " ".join(f"{key}={value[:20]}" for key, value in defines.items()) or "no defines"


def source_of(file, defines):
    name, *_ = kernels_of((PACKAGE / file).read_text(encoding="utf-8"))
    return Kernel(file, name, tuple(sorted(defines.items()))).source()


@pytest.fixture(scope="module")
def compilers():
    """Processes that compile, one a core: all variants take minutes, and NVRTC uses one core in a process."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_kernels_lists_its_variants(file):
    assert variants(file), f'{file} needs a line such as "// variants: T=float|double": see minivgg/backends/cuda.py'


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_compiles_and_spills_nothing(file, arch, compilers):
    text, compiled = (PACKAGE / file).read_text(encoding="utf-8"), set()
    special = arch.endswith("a") and "SM90" not in text  # as sm_90: one tells that it compiles
    chosen = variants(file)[: 1 if special else None]
    asked = [compilers.submit(nvrtc.taken, source_of(file, defines), arch, file) for defines in chosen]
    for defines, answer in zip(chosen, asked, strict=True):
        taken = answer.result()
        compiled |= set(taken)
        spilled = {name: usage for name, usage in taken.items() if usage.spilled}
        assert not spilled, f"{file} ({said(defines)}) does not fit the registers of {arch}"
    assert special or compiled >= set(kernels_of(text))


def test_what_is_not_listed_does_not_run():
    with pytest.raises(ValueError, match=r'relu\.cu has no variant "T=float TILE=3"'):
        cuda.kernel("ops/relu.cu", "relu_forward", T=np.float32, TILE=3)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A function that makes a .cu file of these lines."""
    monkeypatch.setattr(cuda, "PACKAGE", tmp_path)
    variants.cache_clear()
    yield lambda *lines: (tmp_path / "some.cu").write_text("\n".join(lines)) and "some.cu"
    variants.cache_clear()


def test_a_line_stands_for_all_combinations(file):
    assert variants(file("// The idea", "// variants: T=float|uint8 TILE=8|16", "// variants: T=__half TILE=4")) == [
        {"T": "float", "TILE": "8"},
        {"T": "float", "TILE": "16"},
        {"T": "unsigned char", "TILE": "8"},
        {"T": "unsigned char", "TILE": "16"},
        {"T": "__half", "TILE": "4"},
    ]


def test_a_file_without_choices_says_so(file):
    assert variants(file("// variants:")) == [{}]


def test_a_python_file_beside_it_may_know_them():
    found = variants("ops/conv2d/winograd.cu")
    assert {(choice["T"], choice["TILE"]) for choice in found} == {(t, m) for t in ("float", "double") for m in "24"}
    assert all(choice["FUSED"] == "1" for choice in found if "STEP" in choice)


def test_a_file_that_lists_nothing_has_none(file):
    assert variants(file("// T=float")) == []


@pytest.mark.parametrize("line", ["T", "T=", "T=float,double", "T=float|"])
def test_a_list_that_makes_no_sense_is_told(line, file):
    with pytest.raises(ValueError, match="should look like"):
        variants(file(f"// variants: {line}"))


@needs_nvrtc
def test_usage_is_read_from_the_log():
    code, log = nvrtc.compile(SPILLS, "sm_90")
    assert code.startswith(b"\x7fELF")
    taken = nvrtc.usage(log)
    assert set(taken) == {"crowded", "roomy"}
    assert taken["crowded"].registers == 64  # all that 1024 threads leave to each
    assert taken["crowded"].shared == 4096
    assert taken["crowded"].spilled > taken["crowded"].stack > 0
    assert taken["roomy"] == nvrtc.Usage(taken["roomy"].registers, 0, 0, 0)
    assert 0 < taken["roomy"].registers < 32


@needs_nvrtc
def test_what_does_not_compile_is_told_with_its_line():
    with pytest.raises(nvrtc.CompileError, match=r"mine\.cu does not compile for sm_90:\n(.*\n)*mine\.cu\(2\)"):
        nvrtc.compile('extern "C" __global__ void f() {\n  wrong; }', "sm_90", file="mine.cu")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nvrtc, "library_path", lambda: None)
    nvrtc._library.cache_clear()
    with pytest.raises(nvrtc.CompileError, match="pip install nvidia-cuda-nvrtc-cu12"):
        nvrtc.compile("", "sm_90")


@pytest.mark.parametrize("file", FILES)
def test_the_page_has_every_kernel(file):
    page = (PACKAGE.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    source = (PACKAGE / file).read_text(encoding="utf-8")
    missing = [name for name in kernels_of(source) if f"| `{file}`" not in page or f"| `{name}`" not in page]
    assert not missing, "python benchmarks/kernels.py writes docs/kernels.md"
