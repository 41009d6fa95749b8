"""No code of the library stands in a notebook: it is read there with `inspect.getsource`, and written by the reader.

Copied code diverges from what it was copied from. So no four statements in a row, and no four lines of CUDA C, may be
those of the library, whatever its names have become; solutions included.
"""

import ast
import copy
import inspect
import re

import pytest
from tutorial_files import TUTORIALS, build

from minivgg.insight import ledger
from minivgg.ops import batchnorm, maxpool

PACKAGE = TUTORIALS.parent / "minivgg"
RUN = 4
# A layer around a pair of functions is the same lines whatever the pair: it accumulates what backward gives
SHELLS = {"MyLinear", "MyMaxPool", "MyBatchNorm"}


class Nameless(ast.NodeTransformer):
    """Variables, arguments and annotations are anybody's; attributes, constants and keywords are not."""

    def visit_Name(self, node):
        return ast.Name("_", ast.Load())

    def visit_arg(self, node):
        return ast.arg("_")


def statements(code: str) -> list[tuple[str, str]]:
    """(outermost name, dump) of each statement in order: of a compound one its head, and then what is in it."""
    found = []

    def walk(body, outermost):
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom) or isinstance(getattr(node, "value", None), ast.Constant):
                continue  # imports must be the same, and a text or a number is no code
            name = outermost or getattr(node, "name", "")
            head = copy.copy(node)
            for part in ("body", "orelse", "finalbody", "handlers", "decorator_list"):
                if hasattr(head, part):
                    setattr(head, part, [])
            if isinstance(head, ast.FunctionDef | ast.ClassDef):
                head.name, head.returns = "_", None
            found.append((name, ast.dump(Nameless().visit(copy.deepcopy(head)))))
            for part in ("body", "orelse", "finalbody"):
                walk(getattr(node, part, []), name)
            for handler in getattr(node, "handlers", []):
                walk(handler.body, name)

    walk(ast.parse(code).body, "")
    return found


def lines_of_c(code: str) -> list[tuple[str, str]]:
    """("", line without its names) of each line of C that says something."""
    lines = (re.sub(r"//.*|\s+", "", re.sub(r"\b[a-zA-Z_]\w*\b(?!\s*\()", "_", line)) for line in code.splitlines())
    return [("", line) for line in lines if re.search(r"\w", line)]


def runs(parts: list[tuple[str, str]]) -> dict[tuple[str, ...], str]:
    """Each run of `RUN` parts, and the outermost name where it begins."""
    return {tuple(text for _, text in parts[i : i + RUN]): parts[i][0] for i in range(len(parts) - RUN + 1)}


def all_runs(pattern: str, parts) -> set[tuple[str, ...]]:
    return {run for path in PACKAGE.rglob(pattern) for run in runs(parts(path.read_text(encoding="utf-8")))}


OURS = all_runs("*.py", statements)
OURS_IN_C = all_runs("*.cu", lines_of_c) | all_runs("*.cuh", lines_of_c)


def repeated(code: str) -> list[str]:
    """Where the code of a cell repeats the library's."""
    code = re.sub(r"^%.*$", "", code, flags=re.MULTILINE)
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    kernels = [text for text in texts if isinstance(text, str) and "__global__" in text]
    found = [name or run[0] for run, name in runs(statements(code)).items() if run in OURS and name not in SHELLS]
    return found + [run[0] for kernel in kernels for run in runs(lines_of_c(kernel)) if run in OURS_IN_C]


@pytest.mark.parametrize("source", build.SOURCES, ids=lambda source: source.stem)
def test_nothing_is_repeated(source):
    for cell in build.finished(source).cells:
        if cell.cell_type == "code":
            assert not repeated(cell.source), cell.id


class Renamed(ast.NodeTransformer):
    def visit_Name(self, node):
        return ast.Name(f"{node.id}_of_mine", node.ctx)

    def visit_arg(self, node):
        return ast.arg(f"{node.arg}_of_mine")


@pytest.mark.parametrize("ours", [batchnorm.batchnorm_backward, maxpool.maxpool2d_forward, ledger.ledger])
def test_a_copy_is_found_whatever_its_names(ours):
    code = inspect.getsource(ours)
    assert repeated(code)
    assert repeated(ast.unparse(Renamed().visit(ast.parse(code))))


def test_a_copied_kernel_is_found_whatever_its_names():
    text = (PACKAGE / "ops" / "conv2d" / "naive.cu").read_text(encoding="utf-8")
    kernel = re.search(r'extern "C" __global__ void forward.*?\n}', text, re.DOTALL)[0]
    for code in (kernel, kernel.replace("sum", "total").replace("forward", "mine")):
        assert repeated(f"source = {code!r}")
