"""Mutation testing of `minivgg/ops`: change one thing in the arithmetic, and see whether the tests notice.

    python tests/mutate.py                      all of ops: some 3,000 mutants, most of them noticed in half a second
    python tests/mutate.py relu gemm            some files of it, in minutes
    python tests/mutate.py --record …           and write the scores into tests/mutation_survivors.toml

Each mutant is one change of one place: an operator, a comparison, a constant, an index, a statement left out. It lives
only in memory, in a forked process that imports the changed module and runs the tests of that file until the first one
fails. Kernels run as plain Python (`NUMBA_DISABLE_JIT`), so that nothing is compiled, and tests that are marked
`compiled`, because they take minutes so, are left out. A mutant whose tests take more than three times the processor's
time that they take otherwise is noticed, too: it is late, and loops for ever as a rule.

A mutant on which the tests pass has survived: either a test is missing, or the change changes nothing that anyone could
see, and then `tests/mutation_survivors.toml` says why. Exit status 1 if a survivor is not explained there, or the score
is below 95%.
"""

import argparse
import ast
import copy
import datetime
import gc
import importlib
import importlib.abc
import importlib.util
import itertools
import json
import math
import os
import re
import resource
import signal
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
OPS = ROOT / "minivgg" / "ops"
EXPLAINED = Path(__file__).with_name("mutation_survivors.toml")

# The test files that answer for each file of ops, fastest first, and which of their tests.
_MOST = "-k not naive and not im2col"  # of test_conv2d: those two hold a rung to everything, which takes longest
TESTS = {
    "avgpool": "pooling defaults",
    "batchnorm": "norms defaults",
    "channels": f"norms linear conv2d {_MOST}",
    "conv2d/__init__": f"conv2d_dtypes conv2d_options planning defaults conv2d {_MOST}",
    "conv2d/direct": "rungs winograd -k direct or implicit",
    "conv2d/im2col": "conv2d -k im2col or chunks or limit or pointwise",
    "conv2d/implicit_gemm": "rungs -k implicit",
    "conv2d/naive": "conv2d -k (hand or naive) and not conforms",
    "conv2d/packing": "rungs edges -k rungs or widens",
    "conv2d/planning": "planning",
    "conv2d/spec": f"conv2d_dtypes defaults ledger conv2d {_MOST}",
    "conv2d/taps": "not_finite -k taps or all_finite",
    "conv2d/toom_cook": "winograd",
    "conv2d/winograd": "winograd rungs -k winograd",
    "conv2d/winograd_kernels": "rungs -k winograd",
    "dropout": "defaults elementwise -k dropout or philox or defaults",
    "flatten": "elementwise -k flatten",
    "gemm": "gemm",
    "linear": "linear defaults",
    "lrn": "norms defaults",
    "maxpool": "pooling defaults",
    "relu": "elementwise -k relu",
    "sigmoid": "elementwise -k sigmoid",
    "softmax_cross_entropy": "softmax_cross_entropy defaults",
    "windows": f"refusals pooling linear conv2d {_MOST}",
}

# What runs on a GPU alone is held by the simulator's tests, each of which compiles: thousands would take days.
ON_GPU = {"conv2d/direct_on_gpu", "conv2d/tensor_core", "conv2d/tiling", "conv2d/winograd_on_gpu"}

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
_SAY_MORE = ast.expr | ast.keyword | ast.Assign | ast.AugAssign | ast.Return  # a number says little by itself


class Mutant(NamedTuple):
    """One change: of which file, on which line, in which function, in words; and in a tree, at its place, the new."""

    file: str
    line: int
    function: str
    change: str
    tree: ast.Module
    place: tuple  # parent, field, index
    new: ast.AST

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line}: {self.function}: {self.change}"


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of one file of ops. They share its tree, which is left as it is: a fork makes its own change."""
    tree = ast.parse((OPS / f"{file}.py").read_text())
    for node, place, function in list(_code(tree)):
        for new in _changes(node):
            more = isinstance(node, ast.Constant) and isinstance(place[0], _SAY_MORE)
            before = ast.unparse(place[0] if more else node)
            _put(new, *place)
            after = ast.unparse(place[0] if more else new)
            _put(node, *place)
            yield Mutant(file, node.lineno, function, f"{before}  →  {after}", tree, place, new)


def _put(node: ast.AST, parent: ast.AST, field: str, index: int | None) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _code(tree: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, tuple, str]]:
    """Every node that is arithmetic, its place (parent, field, index) and its function.

    No docstrings, annotations or messages; and nothing that launches CUDA kernels, neither what is named `…_on_gpu` or
    `…_ON_GPU` nor what stands under `if on_gpu(…)`: what it does shows on a GPU or in the simulator only, whose own
    tests hold it, and would take minutes for each mutant. Nor what makes no difference by what Python and NumPy say:
    the 1 of −1 in a reshape, where any negative number stands for what is left, a zip's `strict`, and which line a
    warning names. Nor, in functions and calls named `…_to_fetch`, what memory is asked for before it is needed.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("test", "body") and _asks_for_a_gpu(tree):
            continue
        if field == "value" and isinstance(tree, ast.keyword) and tree.arg in ("strict", "stacklevel"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field in ("annotation", "returns", "decorator_list") or isinstance(node, ast.JoinedStr | ast.Raise):
                continue
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("_ON_GPU"):
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("to_fetch"):
                continue
            inside = function
            if isinstance(node, ast.FunctionDef):
                if node.name.endswith(("_on_gpu", "to_fetch")):
                    continue
                inside = f"{function}.{node.name}".lstrip(".")
            if isinstance(node, ast.expr | ast.stmt):
                yield node, (tree, field, index), inside
            if isinstance(node, ast.AST) and not (_reshapes(tree) and isinstance(node, ast.UnaryOp)):
                yield from _code(node, inside)


def _reshapes(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"


def _asks_for_a_gpu(node: ast.AST) -> bool:
    """Whether this is `if on_gpu(…)` or `… if on_gpu(…) else …`."""
    test = node.test if isinstance(node, ast.If | ast.IfExp) else None
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "on_gpu"


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What the node is turned into, one after the other."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATORS:
        yield _with(node, op=_OPERATORS[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        yield _with(node, op=_OPERATORS[type(node.op)]())
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in _OPERATORS:
                yield _with(node, ops=[_OPERATORS[type(o)]() if j == i else o for j, o in enumerate(node.ops)])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        for i in range(len(node.elts) - 1):
            if ast.dump(node.elts[i]) != ast.dump(node.elts[i + 1]):
                yield _with(node, elts=[*node.elts[:i], node.elts[i + 1], node.elts[i], *node.elts[i + 2 :]])
    if isinstance(node, ast.IfExp) and not _asks_for_a_gpu(node):
        yield _with(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.Continue) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()


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
        _put(mutant.new, *mutant.place)
        self.tree = ast.fix_missing_locations(mutant.tree)

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class Outcome(NamedTuple):
    """What became of a mutant: whether the tests passed, whether they ran out of time, and how long they took."""

    survived: bool
    late: bool
    seconds: float  # of the processor


def outcomes(work: Iterable[tuple[str, Mutant | None, float]], jobs: int) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of mutants (file, mutant or None for the code as it is, seconds), numbered, as they come.

    Without threads: a fork takes along the locks that other threads hold at that moment, and would wait for them.
    """
    numbered, running = enumerate(work), {}
    while True:
        for number, task in itertools.islice(numbered, jobs - len(running)):
            child = os.fork()
            if child == 0:
                _in_child(*task)
            running[child] = number
        if not running:
            return
        child, status, used = os.wait4(-1, 0)
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM)
        yield running.pop(child), Outcome(status == 0, late, used.ru_utime + used.ru_stime)


def _in_child(file: str, mutant: Mutant | None, seconds: float) -> None:
    """Run the tests in this process and end it: status 0 if they pass."""
    import pytest

    if mutant:
        sys.meta_path.insert(0, _Planter(mutant))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.RLIM_INFINITY))
        signal.alarm(math.ceil(20 * seconds))  # should it wait for something instead
    importlib.import_module("minivgg.backends.microkernel")._block = _quick_block
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    names, _, which = TESTS[file].partition(" -k ")
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in names.split()]
    options = ["-x", "-q", "-m", "not compiled", "-p", "no:cacheprovider", "--tb=no", "--assert=plain"]
    os._exit(int(pytest.main([*options, "-k", which, *files])))


def _quick_block(rows, a, a_at, a_strides, b, b_at, b_strides, c, c_at, c_row, lengths, add, *_):
    """What `microkernel._block` does, by NumPy: number by number, it takes half of the time of all tests of kernels."""
    (a_tap, a_row, a_step), (b_tap, b_step), (taps, steps) = a_strides, b_strides, lengths
    t, i, k, j = np.ogrid[:taps, :rows, :steps, :32]
    of_a = a.reshape(-1)[a_at + t * a_tap + i * a_row + k * a_step][..., 0]
    of_b = b.reshape(-1)[b_at + t * b_tap + k * b_step + j][:, 0]
    at, to = (c_at + c_row * i + j)[0, :, 0], c.reshape(-1)
    assert c_at >= 0
    assert np.shares_memory(to, c)
    with np.errstate(all="ignore"):
        product = np.einsum("tik,tkj->ij", of_a, of_b)
        if rows in range(2, 15, 2) and add in (0, 1):
            to[at] = product + to[at] if add else product


def explanations() -> dict[tuple[str, str, str], str]:
    """(file, function, change) → why such a mutant may survive."""
    entries = tomllib.loads(EXPLAINED.read_text()).get("survivor", [])
    return {(e["file"], e["function"], change): e["why"] for e in entries for change in e["changes"]}


def ask(file: str, jobs: int) -> tuple[dict, int]:
    """(the score of a file, how many survivors are not explained), and print them."""
    [(_, usual)] = outcomes([(file, None, 0)], 1)
    if not usual.survived:
        raise SystemExit(f"{file}: its tests fail on the code as it is; nothing to learn from mutants")
    chosen, late, survivors = list(mutants(file)), 0, []
    results = outcomes(((file, mutant, 3 + 3 * usual.seconds) for mutant in chosen), jobs)
    for i, outcome in tqdm(results, total=len(chosen), unit="mutant", desc=file):
        late += outcome.late
        survivors += [chosen[i]] if outcome.survived else []
    reasons, unexplained = explanations(), 0
    for mutant in survivors:
        why = reasons.get((file, mutant.function, mutant.change))
        unexplained += why is None
        print(f"{mutant}\n    {why or 'NOT EXPLAINED: write a test, or say why in mutation_survivors.toml'}")
    score = {"mutants": len(chosen), "noticed": len(chosen) - len(survivors), "late": late}
    print(f"{file}: {score}", flush=True)
    return score | {"date": datetime.date.today()}, unexplained


def record(file: str, score: dict) -> None:
    """Write the score of a file into the table at the top of the explanations, and add it up."""
    text = EXPLAINED.read_text()
    rows = tomllib.loads(text)["scores"] | {file: score}
    rows = {file: rows[file] for file in TESTS if file in rows}
    rows["all"] = {key: sum(row[key] for row in rows.values()) for key in ("mutants", "noticed", "late")}
    rows["all"]["date"] = min(row["date"] for row in rows.values() if "date" in row)
    lines = []
    for file, row in rows.items():
        row["score"] = round(row["noticed"] / row["mutants"], 3)
        columns = ", ".join(f"{key} = {row[key]!s:>5}" for key in ("mutants", "noticed", "late", "score", "date"))
        lines.append(f"{json.dumps(file):26} = {{ {columns} }}\n")
    EXPLAINED.write_text(re.sub(r"(?<=\[scores\]\n).*?(?=\n\[)", "".join(lines), text, flags=re.DOTALL))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE", help="such as relu or conv2d/naive")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--record", action="store_true", help=f"write the scores into {EXPLAINED.name}")
    arguments = parser.parse_args()
    os.environ |= {"NUMBA_DISABLE_JIT": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for slow in ("numba", "pytest", "hypothesis", "scipy.signal", "scipy.special", "matplotlib.pyplot"):  # once for all
        importlib.import_module(slow)
    importlib.import_module("minivgg.testing")  # and what it needs; but of the package itself, every fork has its own
    for name in [name for name in sys.modules if name.partition(".")[0] == "minivgg"]:
        del sys.modules[name]
    gc.freeze()  # what is here already is no garbage: forks need not look through it
    tqdm.monitor_interval = 0  # no thread of its own
    count = noticed = unexplained = 0
    for file in arguments.files:
        score, more = ask(file, arguments.jobs)
        if arguments.record:
            record(file, score)
        count, noticed, unexplained = count + score["mutants"], noticed + score["noticed"], unexplained + more
    print(f"{count} mutants, {noticed} noticed: score {noticed / count:.1%}; {unexplained} not explained")
    return int(unexplained > 0 or noticed < 0.95 * count)


if __name__ == "__main__":
    sys.exit(main())
