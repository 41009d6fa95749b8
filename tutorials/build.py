"""Make the notebooks from their sources: `python tutorials/build.py [01 …]`, after `pip install -e '.[tutorials]'`.

`NN_name.py` (jupytext's percent format) is what people write and review. From it come

    NN_name.ipynb              executed, with outputs and pictures, to be read
    exercises/NN_name.ipynb    the same without outputs, and without what stands between the marks
                               `### BEGIN SOLUTION` and `### END SOLUTION`: to be worked in
    exercises/NN_name.py       only the functions to be written, for `minivgg check ID --file`

A cell that holds an exercise says so: `# %% exercise="01.2"`. One that reads the clock says `# %% measured=true`: its
outputs stay as they are while its code does, so that building again gives the same bytes; `--measure` renews them.

`--check` executes everything and writes nothing: the exit status is 1 if a cell fails or warns. With MINIVGG_FAST=1
in the environment, cells that train or measure are short; what is written here should be made without.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))
SOLUTION = re.compile(
    r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.DOTALL | re.MULTILINE
)
WORK_IN = (
    "*This is the notebook to work in: where a cell raises `NotImplementedError`, it is your turn. \
The finished page, with a solution to compare with, is [{name}](../{name}).*"
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(source: Path) -> nbformat.NotebookNode:
    """The notebook that a source is, marks and all, with nothing in it that changes from build to build."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = METADATA
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem[:2]}-{number:03}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("exercise", "measured")}
    return notebook


def finished(source: Path) -> nbformat.NotebookNode:
    """With solutions, not yet executed."""
    notebook = cells_of(source)
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(r"\2", cell.source).rstrip("\n")
    return notebook


def to_work_in(source: Path) -> nbformat.NotebookNode:
    """Without solutions, and with a word on what to do."""
    notebook = cells_of(source)
    for cell in notebook.cells:
        cell.source = skeleton(cell)
    word = nbformat.v4.new_markdown_cell(
        WORK_IN.format(name=f"{source.stem}.ipynb"), id=f"{source.stem[:2]}-work-in"
    )
    notebook.cells.insert(1, word)
    return notebook


def skeleton(cell) -> str:
    """The cell's code with NotImplementedError for each solution."""
    todo = rf'\1raise NotImplementedError("exercise {cell.metadata.get("exercise")}")  # your code here\n'
    return SOLUTION.sub(todo, cell.source).rstrip("\n")


def functions_to_write(source: Path) -> str:
    """A Python file of the exercises alone; "" if there are none."""
    cells = [cell for cell in cells_of(source).cells if "exercise" in cell.metadata]
    if not cells:
        return ""
    head = f'"""The exercises of ../{source.stem}.ipynb: minivgg check {cells[0].metadata["exercise"]} --file …"""'
    return (
        "\n\n\n".join([f"{head}\n\nimport numpy as np", *(skeleton(cell) for cell in cells)]) + "\n"
    )


def solutions(source: Path) -> dict[str, str]:
    """Exercise → the code that solves it."""
    cells = [cell for cell in cells_of(source).cells if "exercise" in cell.metadata]
    return {cell.metadata["exercise"]: SOLUTION.sub(r"\2", cell.source) for cell in cells}


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a fresh process. Raises CellExecutionError for one that fails, or writes to stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINIVGG_EXERCISES"] = (
            f"{scratch}/exercises.json"  # a build solves nothing for anybody
        )
        client = NotebookClient(
            notebook, timeout=900, kernel_name="python3", record_timing=False, coalesce_streams=True
        )
        client.resources = {"metadata": {"path": str(HERE)}}
        client.extra_arguments = ["--IPKernelApp.log_level=ERROR"]
        client.execute()
    notebook.metadata = METADATA  # without the version of Python
    for cell in notebook.cells:
        if (
            cell.cell_type == "code"
        ):  # that something compiles is said on a machine's first run alone
            cell.outputs = [
                o for o in cell.outputs if not o.get("text", "").startswith("minivgg: compiling")
            ]
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise CellExecutionError(
                    f"{cell.source}\n\nwrites to stderr: {output.text}", "warning", output.text
                )
            if "metadata" in output:
                output.metadata = {}
    return notebook


def keep_measurements(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Put back the outputs of cells that read the clock, where their code is what it was."""
    before = {cell.id: cell for cell in nbformat.read(path, 4).cells} if path.exists() else {}
    for cell in notebook.cells:
        old = before.get(cell.id)
        if cell.metadata.get("measured") and old is not None and old.source == cell.source:
            cell.outputs = old.outputs


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, 4) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="which ones (default: all)")
    parser.add_argument("--check", action="store_true", help="execute, and write nothing")
    parser.add_argument("--measure", action="store_true", help="renew what was measured, too")
    arguments = parser.parse_args()
    failed = 0
    (HERE / "exercises").mkdir(exist_ok=True)
    for source in SOURCES:
        if arguments.numbers and source.stem[:2] not in arguments.numbers:
            continue
        began, target = time.perf_counter(), source.with_suffix(".ipynb")
        try:
            notebook = execute(finished(source))
        except CellExecutionError as error:
            print(f"{source.name} fails:\n{error}", file=sys.stderr)
            failed += 1
            continue
        print(f"{source.stem}: {time.perf_counter() - began:.1f} s", flush=True)
        if arguments.check:
            continue
        if not arguments.measure:
            keep_measurements(notebook, target)
        write(notebook, target)
        write(to_work_in(source), HERE / "exercises" / target.name)
        if code := functions_to_write(source):
            (HERE / "exercises" / source.name).write_text(code, encoding="utf-8")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
