"""The house: imports go down only, rooms stay small, importing compiles nothing, public names are explained."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minivgg"
FLOORS = [  # from the ground
    {"errors", "files", "texts"},
    {"caches", "figures", "progress", "streams"},
    {"cudasim"},
    {"backends"},
    {"ops"},
    {"layers"},
    {"models"},
    {"gradcheck", "training", "weights", "insight"},
    {"bench"},  # trains networks, and draws
    {"testing"},
    {"exercises"},
    {"__init__"},
    {"cli"},
    {"__main__", "assets"},  # scripts
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONTRACT = {"forward", "grad_input", "grad_weight", "supports"}  # what an algorithm's functions do, `Algorithm` says


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def room_of(module):
    """`minivgg.ops.conv2d` → "ops"; `minivgg` → "__init__"."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path):
    """Yield (line, module) for every module of minivgg that the file imports, wherever in the file."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if (
                module == "minivgg"
            ):  # `from minivgg import ops` imports ops, the version is anybody's, the rest the root
                rooms = [alias.name for alias in node.names if alias.name != "__version__"]
                modules = [f"minivgg.{room}" if room in FLOOR else "minivgg" for room in rooms]
            else:
                modules = [module]
        yield from ((node.lineno, module) for module in modules if module.split(".")[0] == "minivgg")


def test_every_room_has_a_floor():
    assert {room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES} <= set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_imports_go_down_only(path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    up = [
        f"line {line}: {here} imports {module}"
        for line, module in imports_of(path)
        if room_of(module) != here and not FLOOR[room_of(module)] < FLOOR[here]
    ]
    assert not up


IN_C = {".cu", ".cuh", ".h", ".cpp"}


def test_lines_of_c_have_at_most_120_characters():  # of Python's, ruff says so
    files = [path for path in PACKAGE.rglob("*") if path.suffix in IN_C]
    assert len(files) > 20
    assert [str(path) for path in files if max(map(len, path.read_text(encoding="utf-8").splitlines())) > 120] == []


def test_files_have_at_most_400_lines():
    files = [
        path
        for folder in ("minivgg", "tests", "benchmarks", "tutorials")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", *IN_C}
    ]
    assert len(files) > 20
    lines = {str(path.relative_to(ROOT)): len(lines_of(path)) for path in files}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def lines_of(path):
    """A file's lines; of a notebook's source those of code that are not empty: its text is there to be read at length,
    and between two cells are blank lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if path.parent.name != "tutorials" or (line and not line.startswith("#"))]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a fresh process compiled while it imported minivgg and all its operations, and its modules: line by line."""
    code = """
import pkgutil, sys
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import minivgg, minivgg.ops
    for module in pkgutil.walk_packages(minivgg.ops.__path__, "minivgg.ops."):
        __import__(module.name)
for _, compilation in recorder.buffer:
    print("compiled", compilation.data["dispatcher"].py_func.__qualname__)
print(*sys.modules, sep="\\n")
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}  # nothing compiled before
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_importing_compiles_nothing(imported):
    assert "minivgg.ops.conv2d.im2col" in imported
    assert [line for line in imported if line.startswith("compiled")] == []


@pytest.mark.parametrize("heavy", ["matplotlib", "cupy", "torch"])
def test_importing_does_without(heavy, imported):
    assert heavy not in imported


def test_operations_explain_themselves():
    silent = []
    for path in sorted((PACKAGE / "ops").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        algorithm = any(isinstance(n, ast.ImportFrom) and n.module == "minivgg.ops.conv2d.spec" for n in tree.body)
        for node in [tree, *tree.body]:
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and not ast.get_docstring(node):
                name = getattr(node, "name", "the module")
                if not name.startswith("_") and not (algorithm and name in CONTRACT):
                    silent.append(f"{path.relative_to(ROOT)}: {name}")
    assert silent == []
