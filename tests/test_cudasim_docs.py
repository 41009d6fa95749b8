"""docs/cudasim.md shows what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "cudasim.md").read_text()
KERNEL = re.search(r"```c\n(// reverse\.cu.*?)```", PAGE, re.DOTALL)[1]
TRANSPOSE = """\
extern "C" __global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][32 + PAD];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "reverse.cu").write_text(KERNEL)
    (tmp_path / "transpose.cu").write_text(TRANSPOSE)

    def run(command, *more):
        assert command in PAGE
        arguments = [sys.executable, *command.split()[1:], *more]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    run.folder = tmp_path
    return run


def shown(start):
    """The block of output that begins so, on one line, up to an ellipsis."""
    block = re.search(rf"```\n({re.escape(start)}.*?)```", PAGE, re.DOTALL)[1]
    return " ".join(block.split()).removesuffix(" …")


REVERSE = "python -m minivgg.cudasim reverse.cu --block 64 x=count:64 y=zeros:64"


def test_the_mistake_is_found_and_named(run):
    assert run(REVERSE) == (1, shown("reverse: y[0]") + "\n")
    status, printed = run(REVERSE, "--racecheck")
    assert status == 1
    assert shown("reverse: race") in printed


def test_with_the_barrier_both_checks_are_content(run):
    path = run.folder / "reverse.cu"
    path.write_text(KERNEL.replace("    y[", "    __syncthreads();\n    y["))
    status, printed = run(REVERSE, "--racecheck")
    assert status == 0
    assert "reverse: the same in 4 orders of threads" in printed
    assert "racecheck: nothing found" in printed


def test_the_table_of_traffic(run):
    command = "python -m minivgg.cudasim transpose.cu --block 32x32 -D PAD=0 --traffic x=random:32x32 y=zeros:32x32"
    status, printed = run(command)
    assert status == 0
    assert re.search(r"```\n(line .*?)```", PAGE, re.DOTALL)[1] in printed
