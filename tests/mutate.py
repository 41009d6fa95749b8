"""Mutation testing of `minivgg/ops`: change one thing in the arithmetic, and see whether the tests notice.

    python tests/mutate.py                     all of ops, in an hour or two
    python tests/mutate.py relu gemm            some files of it, in minutes

Each mutant is one change of one place: an operator, a comparison, a constant, an index, a statement left out. It lives
only in memory, in a forked process that imports the changed module and runs the tests of that file until the first one
fails. Kernels run as plain Python (`NUMBA_DISABLE_JIT`), so that nothing is compiled, and tests that are marked
`compiled`, because they take minutes so, are left out. A mutant on which the tests pass has survived: either a test is
missing, or the change changes nothing that anyone could see, and then `tests/mutation_survivors.toml` says why.
Exit status 1 if a survivor is not explained there, or the score is below 95%.
"""

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import os
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
OPS = ROOT / "minivgg" / "ops"
EXPLAINED = Path(__file__).with_name("mutation_survivors.toml")
SECONDS = 120  # a mutant that runs longer loops for ever, and counts as noticed: the tests take a tenth of it

# The test files that answer for each file of ops, fastest first; behind -k, which of their tests.
TESTS = {
    "avgpool": ["pooling", "defaults"],
    "batchnorm": ["norms", "defaults"],
    "channels": ["norms", "linear", "conv2d"],
    "conv2d/__init__": ["conv2d", "defaults"],
    "conv2d/direct": ["rungs -k 'direct or implicit'", "winograd"],
    "conv2d/im2col": ["conv2d"],
    "conv2d/implicit_gemm": ["rungs -k implicit"],
    "conv2d/naive": ["conv2d"],
    "conv2d/packing": ["rungs"],
    "conv2d/planning": ["planning"],
    "conv2d/spec": ["defaults", "conv2d", "ledger"],
    "conv2d/toom_cook": ["winograd", "cuda_winograd -k matrices"],
    "conv2d/winograd": ["rungs -k winograd", "winograd"],
    "conv2d/winograd_kernels": ["rungs -k winograd"],
    "conv2d/winograd_on_gpu": ["cuda_winograd -k 'not rules'"],
    "dropout": ["elementwise", "defaults"],
    "flatten": ["elementwise"],
    "gemm": ["gemm"],
    "linear": ["linear", "defaults"],
    "lrn": ["norms", "defaults"],
    "maxpool": ["pooling", "defaults"],
    "relu": ["elementwise"],
    "sigmoid": ["elementwise"],
    "softmax_cross_entropy": ["softmax_cross_entropy", "defaults"],
    "windows": ["pooling", "linear", "conv2d"],
}

_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Mutant(NamedTuple):
    """One change: of which file, on which line, in words, and the changed module."""

    file: str
    line: int
    change: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line}: {self.change}"


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of one file of ops."""
    tree = ast.parse((OPS / f"{file}.py").read_text())
    for place, (node, _) in enumerate(_code(tree)):
        for change in _changes(node):
            changed = copy.deepcopy(tree)
            twin, (parent, field, index) = list(_code(changed))[place]
            before = ast.unparse(twin)
            new = change(twin)
            if index is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[index] = new
            ast.fix_missing_locations(changed)
            yield Mutant(file, node.lineno, f"{before}  →  {ast.unparse(new)}", changed)


def _code(tree: ast.AST) -> Iterator[tuple[ast.AST, tuple]]:
    """Every node that is arithmetic, with its place (parent, field, index): no docstrings, annotations or messages."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.expr | ast.stmt) and not hasattr(node, "skipped"):
                    if field in ("annotation", "returns", "decorator_list") or isinstance(
                        node, ast.JoinedStr | ast.Raise
                    ):
                        for inner in ast.walk(node):
                            inner.skipped = True
                    else:
                        yield node, (parent, field, index)


def _changes(node: ast.AST) -> Iterator:
    """Functions from the node to what it is turned into."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATORS:
        yield lambda n: _with(n, op=_OPERATORS[type(n.op)]())
    if isinstance(node, ast.BoolOp):
        yield lambda n: _with(n, op=_OPERATORS[type(n.op)]())
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in _OPERATORS:
                yield lambda n, i=i: _with(n, ops=[_OPERATORS[type(o)]() if j == i else o for j, o in enumerate(n.ops)])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield lambda n: n.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: ast.Constant(not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda n: ast.Constant(n.value + 1)
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        for i in range(len(node.elts) - 1):
            if ast.dump(node.elts[i]) != ast.dump(node.elts[i + 1]):
                yield lambda n, i=i: _with(n, elts=[*n.elts[:i], n.elts[i + 1], n.elts[i], *n.elts[i + 2 :]])
    if isinstance(node, ast.IfExp):
        yield lambda n: _with(n, body=n.orelse, orelse=n.body)
    if isinstance(node, ast.Continue) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield lambda n: ast.Pass()


def _with(node: ast.AST, **fields) -> ast.AST:
    twin = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


class _Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the import of one module give the mutant instead."""

    def __init__(self, mutant: Mutant):
        self.path = OPS / f"{mutant.file}.py"
        self.name = "minivgg.ops." + mutant.file.replace("/__init__", "").replace("/", ".")
        self.tree = mutant.tree

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def survives(file: str, mutant: Mutant | None = None) -> bool:
    """Whether the tests of a file of ops pass on the mutant, or on the code as it is."""
    child = os.fork()
    if child == 0:
        _in_child(file, mutant)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _in_child(file: str, mutant: Mutant | None) -> None:
    """Run the tests in this process and end it: status 0 if they pass."""
    import pytest

    signal.alarm(SECONDS if mutant else 0)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if mutant:
        sys.meta_path.insert(0, _Planter(mutant))
    words = []
    for name, *options in map(shlex.split, TESTS[file]):
        words += [str(ROOT / "tests" / f"test_{name}.py"), *options]
    os._exit(
        int(
            pytest.main(
                ["-x", "-q", "-m", "not compiled", "-p", "no:cacheprovider", "--tb=no", "--assert=plain", *words]
            )
        )
    )


def explanations() -> dict[str, str]:
    """Mutant, as it is printed but without its line number → why it may survive."""
    entries = tomllib.loads(EXPLAINED.read_text())["survivor"] if EXPLAINED.exists() else []
    return {f"{e['file']}: {e['change']}": e["why"] for e in entries}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=sorted(TESTS), metavar="FILE", help="such as relu or conv2d/naive")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    arguments = parser.parse_args()
    os.environ |= {"NUMBA_DISABLE_JIT": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for slow in ("numba", "pytest", "scipy.signal", "scipy.special", "matplotlib.pyplot"):  # once, for all the forks
        importlib.import_module(slow)
    for file in arguments.files:
        if not survives(file):
            print(f"{file}: its tests fail on the code as it is; nothing to learn from mutants", file=sys.stderr)
            return 2
    chosen = [mutant for file in arguments.files for mutant in mutants(file)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda mutant: survives(mutant.file, mutant), chosen)
        outcomes = list(tqdm(results, total=len(chosen), unit="mutant"))
    survivors = [mutant for mutant, survived in zip(chosen, outcomes, strict=True) if survived]
    reasons = explanations()
    unexplained = 0
    for mutant in survivors:
        why = reasons.get(f"{mutant.file}: {mutant.change}")
        unexplained += why is None
        print(f"{mutant}\n    {why or 'NOT EXPLAINED: write a test, or say why in mutation_survivors.toml'}")
    score = 1 - len(survivors) / len(chosen)
    print(
        f"{len(chosen)} mutants, {len(chosen) - len(survivors)} noticed: score {score:.1%}; {unexplained} not explained"
    )
    return int(unexplained > 0 or score < 0.95)


if __name__ == "__main__":
    sys.exit(main())
