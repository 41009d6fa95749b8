"""Running a learner's code, and saying what came of it."""

import importlib.util
import sys
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.exercises.progress import record
from minivgg.exercises.table import EXERCISES, Exercise
from minivgg.testing import Report, Result

# What to read first where several rules are broken: one mistake breaks many, and the first of these says most
FIRST = (
    "arguments and dy are left alone",
    "twice the same gives the same bits",
    "four numbers come out normalised",  # says more than the next one where both are broken
    "forward computes what the formula says",
    "gradients are the slopes of forward",
)

# What the gradient check's diagnosis usually means in ten lines of one's own
NEXT = {
    "which is N": "Who divides by the number of samples? It happens once, where the mean is taken: in the loss.",
    "constant factor": "Does forward scale by something that backward leaves out, or scales by twice?",
    "the sign is wrong": "Differentiate one term on paper, and look at the minus signs.",
    "rotated by 180°": "Write out which x meets which w in forward. Backward uses the very same pairs: no flip.",
    "transposed": "Write the shape under each factor, with letters for dimensions: which one is summed over?",
    "mask": "Which elements did forward let through? Backward needs the same ones, from the cache.",
    "wrong only in the border": "Padding: a window that reaches over the edge still has a part inside.",
    "wrong only in the last": "A loop or a slice that ends one too early.",
    "shifted by": "An index that is off by one: print it for the first window.",
    "what goes through the": "Each x of a channel moves its mean and its variance, and so every y: two terms more.",
    "right numbers in the wrong places": "Print where forward's winner stood, and where backward puts its gradient.",
    "all zeros": "What is computed is not returned, or multiplied by something that is zero.",
    "a batch leak": "A sum that runs over samples, too: look at axis=.",
    "none of the known patterns": "Work the smallest case by hand: one sample, one channel, one element of dy.",
}
DRAW = "`.plot()` on this verdict, or --picture wrong.png on the command line, draws where it is wrong."


@dataclass
class Verdict:
    """What is to be said of an answer. Print it, or let a notebook show it; `plot()` draws a wrong gradient. Its truth
    is `ok`.

    `report` is the conformance suite's, None where there is none: the answer is not written yet (`missing` says what
    to write), or it ended the program in the middle (`ended` says where).
    """

    exercise: Exercise
    report: Report | None
    missing: str = ""
    ended: str = ""

    @property
    def ok(self) -> bool:
        return self.report is not None and self.report.ok

    def __bool__(self) -> bool:
        return self.ok

    @property
    def _failures(self) -> list[Result]:
        return [] if self.report is None else self.report.failures

    @property
    def first(self) -> Result | None:
        """The broken rule to look at first."""
        return min(self._failures, key=lambda r: FIRST.index(r.rule) if r.rule in FIRST else len(FIRST), default=None)

    def plot(self, path: str | Path | None = None):
        """The picture of the wrong gradient. Raises BadInput if the mistake is not in a gradient."""
        reports = [result.gradient for result in self._failures if result.gradient is not None]
        if not reports:
            raise BadInput(f"{self.exercise.id}: no wrong gradient to draw")
        return reports[0].plot(path)

    def __str__(self) -> str:
        name = f"{self.exercise.id} {self.exercise.title}"
        if self.missing:
            return f"… {name}: not yet\n\n{self.missing}"
        if self.ended:
            return f"✗ {name}: not right yet\n\n{self.ended}"
        if self.ok:
            rules = [result for result in self.report.results if result.trials]
            trials = sum(result.trials for result in rules)
            held = f"{len(rules)} rule{'s' * (len(rules) > 1)} in {trials:,} trials"
            return f"✓ {name}: right, by {held}\n\n{self._onwards()}"
        others = [r.rule for r in self.report.failures if r is not self.first]
        lines = [f"✗ {name}: not right yet", "", *self._told(self.first)]
        if others:
            lines += ["", "Also broken, and maybe for the same reason:", *(f"  {rule}" for rule in others)]
        return "\n".join(lines)

    __repr__ = __str__

    def _onwards(self) -> str:
        ids = list(EXERCISES)
        following = ids[ids.index(self.exercise.id) + 1 :]
        then = f"; next is {following[0]}, {EXERCISES[following[0]].title}" if following else ""
        return f"How we do it: {self.exercise.ours}{then}."

    def _told(self, result: Result) -> list[str]:
        if result.gradient is not None:
            diagnosis = "\n".join(result.gradient.diagnosis)
            advice = next((advice for sign, advice in NEXT.items() if sign in diagnosis), "")
            result = replace(result, advice=f"{advice} {DRAW}".lstrip())
        told = str(result).removeprefix("✗ ")
        where = _last_line_of_theirs(result.error)
        return [*told.splitlines(), *([f"    in       {where}"] if where else [])]


def check_exercise(exercise: str, *functions: Callable) -> Verdict:
    """Hold a learner's functions, in the order of the exercise, to its rules, and remember the result.

    Raises BadInput for an unknown exercise, or for another number of functions.
    """
    row = exercise_row(exercise)
    if len(functions) != len(row.functions) or not all(map(callable, functions)):
        raise BadInput(f"exercise {exercise} takes {len(row.functions)}: {', '.join(row.functions)}")
    verdict = _held(row, functions)
    record(exercise, verdict.ok)
    return verdict


def _held(row: Exercise, functions: tuple[Callable, ...]) -> Verdict:
    try:
        with np.errstate(all="ignore"):  # what a wrong answer overflows in, the rules say better
            report = row.check(*functions)
    except (Exception, KeyboardInterrupt):  # ours, and Ctrl-C: the rules catch what exceptions an answer raises
        raise
    except BaseException as error:  # SystemExit, and what else would end the program without a word
        what = f"It ends the program, by {type(error).__name__}, where it should return an answer"
        where = _last_line_of_theirs(error)
        return Verdict(row, None, ended=f"{what}{f': in {where}' if where else '.'}")
    errors = [result.error for result in report.failures]
    if any(isinstance(error, NotImplementedError) for error in errors):
        where = next(filter(None, map(_last_line_of_theirs, errors)), "").partition(":")[0]
        missing = f"It raises NotImplementedError{f' in {where}' if where else ''}: that is where your code goes."
        return Verdict(row, None, missing + f"\n{_to_write(row)}")
    return Verdict(row, report)


def check_file(exercise: str, path: Path) -> Verdict:
    """The same with the functions that a Python file defines.

    Raises BadInput if the file cannot be run, with the line that fails, or lacks a function.
    """
    row = exercise_row(exercise)
    found = vars(_run(Path(path)))
    missing = [name for name in row.functions if not callable(found.get(name))]
    if missing:
        raise BadInput(f"{path}: there is no function {' and no '.join(missing)} in it. {_to_write(row)}")
    return check_exercise(exercise, *(found[name] for name in row.functions))


def exercise_row(exercise: str) -> Exercise:
    """The row of the table. Raises BadInput for an unknown exercise."""
    if exercise not in EXERCISES:
        raise BadInput(f'no exercise "{exercise}"; there are {", ".join(EXERCISES)}')
    return EXERCISES[exercise]


def _to_write(row: Exercise) -> str:
    count = len(row.functions)
    return f"Exercise {row.id}, {row.title}, asks for {'a function' if count == 1 else f'{count} functions'}: " + (
        f"{', '.join(row.functions)}. Notebook {row.id[:2]} says what, and has hints."
    )


def _run(path: Path):
    """The module that a file is."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    name = f"exercise_{path.stem}".replace(".", "_")
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit is no Exception
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(path, error)
        place = f"line {line}: " if line else ""
        raise BadInput(f"{path}: {place}{type(error).__name__}: {error}") from error
    return module


def _line_in(path: Path, error: BaseException) -> int | None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _last_line_of_theirs(error: BaseException | None) -> str:
    """Where in their code an exception came from: the last line that is neither ours nor a library's."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    for frame in reversed(frames):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and Path(__file__).parents[1] not in path.parents:
            return textwrap.shorten(f"{frame.name}, line {frame.lineno}: {frame.line}", 110)
    return ""
