"""The tutorials: sources, notebooks and exercises are in step, and every cell runs."""

import os
import re
import subprocess
import sys

import pytest
from tutorial_files import TUTORIALS, build

from minivgg.exercises import EXERCISES

nbformat = pytest.importorskip("nbformat", reason="the tutorials are built with pip install -e '.[tutorials]'")

PACKAGE = TUTORIALS.parent / "minivgg"
each = pytest.mark.parametrize("source", build.SOURCES, ids=lambda source: source.stem)


def read(path):
    return nbformat.reads(path.read_text(encoding="utf-8"), 4)


def without_outputs(notebook):
    """What people wrote: everything but outputs and the count of executions."""
    return [(cell.id, cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def test_there_are_sources():
    assert len(build.SOURCES) >= 1


@each
def test_the_notebook_is_its_source(source):
    notebook = read(source.with_suffix(".ipynb"))
    assert without_outputs(notebook) == without_outputs(build.finished(source))
    assert notebook.metadata == build.finished(source).metadata


@each
def test_the_notebook_has_been_executed_from_its_beginning(source):
    cells = [cell for cell in read(source.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [o for o in outputs if o.get("data", {}).get("text/plain", "").startswith("<Fig") and len(o.data) == 1]
    assert not re.search(r" at 0x[0-9a-f]{6}", "".join(map(str, outputs)))  # an address: another one in each run


@each
def test_the_library_on_a_page_is_the_library(source):
    """What a page shows of it is read when the page is built: build it again when that has changed."""
    ours = {line.rstrip() for path in PACKAGE.rglob("*.c[up]*") for line in lines_of(path)}
    ours |= {line.rstrip() for path in PACKAGE.rglob("*.py") for line in lines_of(path)}
    for cell in read(source.with_suffix(".ipynb")).cells:
        if cell.cell_type == "code" and only_shows(cell.source):
            shown = "".join(output.text for output in cell.outputs).splitlines()
            assert not [line for line in shown if line.rstrip() not in ours], cell.id


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def only_shows(code):
    """Whether a cell does nothing but print sources."""
    kinds = r"(from .* import |import |OPS = |text = .*read_text|print\((inspect\.getsource|re\.search)|$)"
    return "print(" in code and all(re.match(kinds, line) for line in code.splitlines())


@each
def test_a_solution_is_praised_as_it_is_today(source):
    """The verdicts on a page name the exercise that follows, and where the library does the same."""
    ids = list(EXERCISES)
    for cell in read(source.with_suffix(".ipynb")).cells:
        for name in re.findall(r'^check_exercise\("(.*?)"', cell.source):
            following = ids[ids.index(name) + 1 :]
            then = f"; next is {following[0]}, {EXERCISES[following[0]].title}" if following else ""
            said = cell.outputs[0].data["text/plain"]
            assert said.startswith(f"✓ {name} {EXERCISES[name].title}: right")
            assert said.endswith(f"How we do it: {EXERCISES[name].ours}{then}.")


@each
def test_the_exercises_are_their_source(source):
    path, code = (TUTORIALS / "exercises" / source.with_suffix(suffix).name for suffix in (".ipynb", ".py"))
    if not build.functions_to_write(source):  # a notebook only to be read
        assert not path.exists() and not code.exists()
        return
    assert code.read_text(encoding="utf-8") == build.functions_to_write(source)
    notebook = read(path)
    assert without_outputs(notebook) == without_outputs(build.to_work_in(source))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@each
def test_no_solution_is_in_an_exercise(source):
    marked = [cell for cell in build.cells_of(source).cells if "SOLUTION" in cell.source]
    assert all("exercise" in cell.metadata for cell in marked)
    to_do = {cell.id: cell.source for cell in build.to_work_in(source).cells}
    for cell in marked:
        assert "SOLUTION" not in to_do[cell.id]
        for solution in build.SOLUTION.findall(cell.source):
            assert solution[1] not in to_do[cell.id]
        assert f'raise NotImplementedError("exercise {cell.metadata["exercise"]}")' in to_do[cell.id]


def test_each_exercise_is_in_one_cell_of_its_notebook_and_is_checked_there():
    cells = [cell for source in build.SOURCES for cell in build.cells_of(source).cells]
    assert sorted(cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata) == sorted(EXERCISES)
    text = "\n".join(cell.source for cell in cells)
    for row in EXERCISES.values():
        assert f'check_exercise("{row.id}", {", ".join(row.functions)})' in text
        assert f"### Exercise {row.id} · {row.title}\n" in text


@each
def test_text_and_code_are_apart(source):
    for cell in build.cells_of(source).cells:
        if cell.cell_type == "code":
            code = cell.source.replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")
            comments = re.findall(r"^ *#.*$", code, re.MULTILINE)
            assert len(comments) <= 2, f"prose in {cell.id}"
            assert not re.search(r"^\"\"\"", code), f"a text in {cell.id}"


@each
def test_code_runs_in_any_folder(source):
    """Pages are built in tutorials/ and worked on in tutorials/exercises/."""
    assert not [cell.id for cell in build.cells_of(source).cells if cell.cell_type == "code" and '"../' in cell.source]


@each
def test_code_is_not_wider_than_a_page(source):
    """A page of 1000 pixels shows 111 characters of code; the rest would have to be scrolled to."""
    code = [cell.source for cell in build.cells_of(source).cells if cell.cell_type == "code"]
    assert not [line for cell in code for line in cell.splitlines() if len(line) > 111]


@each
def test_no_line_of_a_formula_looks_like_a_list(source):
    """`- s_t$` at the beginning of a line is a list to Markdown, and the formula is then shown as it is written."""
    for cell in build.cells_of(source).cells:
        for paragraph in cell.source.split("\n\n") if cell.cell_type == "markdown" else ():
            for mark in re.finditer(r"^ *([-+*>]|#+|\d+[.)]) ", paragraph, re.MULTILINE):
                assert paragraph[: mark.start()].count("$") % 2 == 0, paragraph


@each
def test_notebooks_end_where_the_next_begins(source):
    """Each has a title with its number, begins with a question, and says how long it takes."""
    first = build.cells_of(source).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {source.stem[:2]} · ")
    assert "?" in first.source
    assert re.search(r"\b(minutes|hours?)\b", first.source)


def test_the_readme_lists_every_notebook():
    readme = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", readme)
    assert linked == [source.with_suffix(".ipynb").name for source in build.SOURCES]
    counts = [int(count or 0) for count in re.findall(r"^\| \[\d\d .* min \| *(\d*) *\|$", readme, re.MULTILINE)]
    assert counts == [len(build.solutions(source)) for source in build.SOURCES]


def test_links_lead_somewhere():
    for source in build.SOURCES:
        text = "\n".join(cell.source for cell in build.cells_of(source).cells if cell.cell_type == "markdown")
        folders = [TUTORIALS, *[TUTORIALS / "exercises"] * bool(build.functions_to_write(source))]
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            for folder in folders:
                assert link.startswith("http") or (folder / link).exists(), f"{source.name}: {link} in {folder.name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings; warnings.warn('look')", "look"), ("1 + 1", "")],
)
def test_a_cell_that_fails_or_warns_stops_the_build(code, says):
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TUTORIALS)!r}); import build, nbformat; "
         f"build.execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({code!r})]))"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (found.returncode != 0) == bool(says)
    assert says in found.stderr


@pytest.mark.slow
@each
def test_it_runs(source):
    ran = subprocess.run(
        [sys.executable, TUTORIALS / "build.py", "--check", source.stem[:2]],
        env=os.environ | {"MINIVGG_FAST": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
