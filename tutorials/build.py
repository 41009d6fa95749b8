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
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.S | re.M)
WORK_IN = (
    "*This is the notebook to work in: where a cell raises `NotImplementedError`, it is your turn. "
    "The finished page, with a solution to compare with, is [{name}](../{name}).*"
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
    command = f"minivgg check {cells[0].metadata['exercise']} --file {source.name}"
    head = f'"""The exercises of ../{source.stem}.ipynb: {command}"""\n\nimport numpy as np'
    return "\n\n\n".join([head, *map(skeleton, cells)]) + "\n"


def solutions(source: Path) -> dict[str, str]:
    """Exercise → the code that solves it."""
    cells = [cell for cell in cells_of(source).cells if "exercise" in cell.metadata]
    return {cell.metadata["exercise"]: SOLUTION.sub(r"\2", cell.source) for cell in cells}


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a fresh process. Raises CellExecutionError if one fails, or writes to stderr."""
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False)
    client.coalesce_streams = True
    client.resources = {"metadata": {"path": str(HERE)}}
    client.extra_arguments = ["--IPKernelApp.log_level=ERROR"]
    with tempfile.TemporaryDirectory() as scratch:
        # a build solves nothing for anybody
        os.environ["MINIVGG_EXERCISES"] = f"{scratch}/exercises.json"
        client.execute()
    notebook.metadata = METADATA  # without the version of Python
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(kept, cell.outputs) if output]
    return notebook


def kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output without what changes from run to run. Raises CellExecutionError if it is a warning."""
    if output.get("name") == "stderr":
        if output.text.startswith("minivgg: compiling"):  # said on a machine's first run alone
            return None
        raise CellExecutionError(f"written to stderr: {output.text}", "warning", output.text)
    if "metadata" in output:
        output.metadata = {}
    return output


def keep_measurements(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Put back the outputs of cells that read the clock, where their code is what it was."""
    cells = nbformat.read(path, 4).cells if path.exists() else []
    before = {cell.source: cell.outputs for cell in cells if cell.metadata.get("measured")}
    for cell in notebook.cells:
        if cell.metadata.get("measured"):
            cell.outputs = before.get(cell.source, cell.outputs)


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
        if code := functions_to_write(source):
            write(to_work_in(source), HERE / "exercises" / target.name)
            (HERE / "exercises" / source.name).write_text(code, encoding="utf-8")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
