"""`minivgg gradcheck`: hold every gradient to the slope of its forward."""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import NamedTuple

from minivgg.cli import network

# A network is checked at a size at which thousands of forwards take seconds: 4 to 32 filters a layer, 8 hidden units,
# 4 classes, and two images of 32×32, which a VGG's five pools halve to a single pixel (AlexNet's strides need 63×63).
WIDTH, CLASSIFIER_WIDTH, CLASSES, SIZE, BATCH = 1 / 16, 8, 4, 32, 2


def add(commands) -> None:
    command = commands.add_parser(
        "gradcheck",
        help="hold every gradient to the slope of its forward",
        description="Check gradients against central differences in float64: of a network with its loss "
        f"({SIZE}×{SIZE} images, {WIDTH:g} of its filters), or, without MODEL, of every op and layer. Prints a table; "
        "under what is wrong, what kind of wrong it is. Exit status: 0 all right, 1 a gradient is wrong, 2 bad input.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="vgg11 … vgg19_bn, the paper's A … E, alexnet, googlenet, …"
    )
    command.add_argument("--all", action="store_true", help="every op, layer, convolution algorithm and network")
    command.add_argument("--algorithm", metavar="NAME", help="how to convolve (default: auto; with --all, every way)")
    command.add_argument("--device", **network.DEVICE)
    command.add_argument(
        "--jobs", type=int, default=None, metavar="N", help="processes (default: one a core for --all)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights, inputs and directions")
    command.add_argument("--train", action="store_true", default=True, help="layers as they are in training")
    command.add_argument("--test", dest="train", action="store_false", help="layers as they are at test time")
    command.set_defaults(command=run)


@dataclass
class Subject:
    """One row of the table: what is checked, and each case with its check, to be called for a `gradcheck.Report`."""

    what: str
    checks: list[tuple[str, Callable]]
    reports: list[tuple[str, object]] = field(default_factory=list)  # (case, Report or the exception it raised)
    seconds: float = 0.0

    def run(self) -> None:
        began = time.perf_counter()
        for case, check in self.checks:
            try:
                self.reports.append((case, check()))
            except Exception as error:  # what is under test may raise anything; the others are checked all the same
                self.reports.append((case, error))
        self.seconds = time.perf_counter() - began

    @property
    def wrong(self) -> list[tuple[str, object]]:
        return [(case, r) for case, r in self.reports if isinstance(r, Exception) or not r.ok]

    def cells(self) -> list[str]:
        reports = [report for _, report in self.reports if not isinstance(report, Exception)]
        rows = [row for report in reports for row in report.rows]
        names = list(dict.fromkeys(row.argument for row in rows))
        arguments = " ".join(names) if len(names) < 5 else f"{names[0]} and {len(names) - 1} parameters"
        worst = max((_share(row) for row in rows), default=0.0)
        kinks = sum(report.kinks for report in reports)
        verdict = f"WRONG in {len(self.wrong)}" if self.wrong else "ok"
        cases = str(len(self.checks))
        return [self.what, arguments, cases, f"{worst:.2g}", str(kinks or ""), f"{self.seconds:.1f}", verdict]

    def notes(self) -> Iterator[str]:
        """What to print under the row."""
        for case, report in self.wrong:
            yield f"  ✗ {case}"
            if isinstance(report, Exception):
                yield f"    • raised {type(report).__name__}: {report}"
                continue
            for row in report.rows:
                if not row.ok:
                    yield f"    {row.argument} at {row.cells()[2]}: {row.analytic:.6g}, measured {row.numeric:.6g}"
            yield from (f"    • {sentence}" for sentence in report.diagnosis)


class Answer(NamedTuple):
    """What is printed of a subject: its cells of the table, what stands under them, and whether something is wrong."""

    cells: list[str]
    notes: list[str]
    wrong: bool


def answer_to(subject: Subject) -> Answer:
    """Run a subject's checks."""
    from minivgg.testing.arrays import threads

    with threads(1):  # the arrays are so small that waking a second one takes longer than the work
        subject.run()
    return Answer(subject.cells(), list(subject.notes()), bool(subject.wrong))


def run(arguments) -> int:
    from minivgg.progress import tqdm

    subjects = list(_subjects(arguments))
    total = sum(len(subject.checks) for subject in subjects)
    began = time.perf_counter()
    answers = {}
    with tqdm(total=total, unit="case", leave=False, disable=None) as bar:
        for number, answer in _answers(arguments, subjects):
            answers[number] = answer
            bar.set_description(subjects[number].what)
            bar.update(len(subjects[number].checks))
    answers = [answers[number] for number in range(len(subjects))]
    print(table(answers))
    wrong = [subject.what for subject, answer in zip(subjects, answers, strict=True) if answer.wrong]
    verdict = f"WRONG: {', '.join(wrong)}" if wrong else "all gradients are right"
    print(f"\n{total} cases in {time.perf_counter() - began:.1f} s, seed {arguments.seed}: {verdict}")
    return int(bool(wrong))


def _answers(arguments, subjects: list[Subject]) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of each subject, as they come: from several processes, the last first, which take longest."""
    jobs = arguments.jobs or (os.cpu_count() if arguments.all else 1)
    if jobs == 1:
        yield from ((number, answer_to(subject)) for number, subject in enumerate(subjects))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(_answer_elsewhere, arguments, number): number for number in reversed(range(len(subjects)))
        }
        yield from ((waiting[done], done.result()) for done in as_completed(waiting))


def _answer_elsewhere(arguments, number: int) -> Answer:
    """In a process of its own, which has to find its subject again: models and checks do not travel."""
    if not _elsewhere:
        _elsewhere.extend(_subjects(arguments))
    return answer_to(_elsewhere[number])


_elsewhere: list[Subject] = []


def _share(row) -> float:
    """The error as a share of its tolerance; at a kink, where there is no tolerance, 0 is right."""
    return row.error / row.tolerance if row.tolerance else math.inf if row.error else 0.0


def table(answers: list[Answer]) -> str:
    """Aligned columns, and notes under what is wrong. "worst" is the largest error as a share of its tolerance."""
    heads = ["what", "arguments", "cases", "worst", "kinks", "seconds", "verdict"]
    rows = [answer.cells for answer in answers]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    sides = "<<>>>><"

    def line(cells):
        return "  ".join(f"{c:{s}{w}}" for c, s, w in zip(cells, sides, widths, strict=True)).rstrip()

    lines = [line(heads), "  ".join("─" * width for width in widths)]
    for answer in answers:
        lines += [line(answer.cells), *answer.notes]
    return "\n".join(lines)


def _subjects(arguments) -> Iterator[Subject]:
    """What the command line asks for. Raises BadInput if that does not exist."""
    from minivgg.backends.array import check_device
    from minivgg.errors import BadInput
    from minivgg.ops.conv2d import algorithms_on, check_algorithm

    if arguments.model and arguments.all:
        raise BadInput("--all checks every network: leave out MODEL")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise BadInput(f"--jobs must be at least 1, got {arguments.jobs}")
    if arguments.seed < 0:
        raise BadInput(f"--seed must be at least 0, got {arguments.seed}")
    check_algorithm(arguments.algorithm or "auto")
    check_device(arguments.device)
    if not arguments.model:
        everything = arguments.all and not arguments.algorithm
        yield from _ops(arguments, algorithms_on(arguments.device) if everything else [arguments.algorithm or "auto"])
        yield from _layers(arguments)
    if arguments.model or arguments.all:
        yield from _models(arguments)


def _ops(arguments, algorithms: list[str]) -> Iterator[Subject]:
    from minivgg.backends.array import kind_of
    from minivgg.ops.conv2d import ALGORITHMS
    from minivgg.testing.cases import CASES, Case, spec_of

    def checks(op, cases):
        for case in cases:
            if op.runs(case, arguments.device, "float64"):
                yield repr(case), lambda case=case: op.check_gradient(case, arguments.device, seed=arguments.seed)

    for op in CASES.values():
        if op.name != "conv2d":
            yield Subject(op.name, list(checks(op, op.cases)))
            continue
        for name in algorithms:
            supported = [
                Case(*case.shapes, draw=case.draw, **case.options, algorithm=name)
                for case in op.cases
                if name == "auto" or not ALGORITHMS[name].why_not(spec_of(case), kind_of(arguments.device), "float64")
            ]
            if supported:
                yield Subject(f"conv2d, {name}", list(checks(op, supported)))


def _layers(arguments) -> Iterator[Subject]:
    from minivgg.layers import Conv2d
    from minivgg.testing.cases import LAYERS

    for name, (make, shape) in LAYERS.items():
        layer = make()
        for _, leaf in layer.walk():
            if isinstance(leaf, Conv2d):
                leaf.algorithm = arguments.algorithm or "auto"
        yield Subject(name, [(f"x {shape}", lambda layer=layer, shape=shape: _check(arguments, layer, shape))])


def _models(arguments) -> Iterator[Subject]:
    from minivgg.layers import Conv2d
    from minivgg.models import MODELS, build, smallest_input

    same = {}  # networks with the same layers are one network under two names
    for name in [arguments.model] if arguments.model else MODELS:
        size = max(SIZE, smallest_input(name))
        options = {"width": WIDTH, "classifier_width": CLASSIFIER_WIDTH, "classes": CLASSES, "input_size": size}
        model = build(name, **options, algorithm=arguments.algorithm or "auto", seed=arguments.seed)
        same.setdefault(repr(model), (model, size, []))[2].append(name)
    for model, size, names in same.values():
        channels = next(leaf for _, leaf in model.walk() if isinstance(leaf, Conv2d)).weight.data.shape[1]
        shape = (BATCH, channels, size, size)
        check = lambda model=model, shape=shape: _check(arguments, model, shape, labels=True)  # noqa: E731
        yield Subject(" = ".join(names), [(f"x {shape} and its loss", check)])


def _check(arguments, layer, shape: tuple, labels: bool = False):
    """The report on a layer, or on a network and its loss."""
    import numpy as np

    from minivgg.gradcheck import check
    from minivgg.testing.arrays import put, signed

    rng = np.random.default_rng(arguments.seed)
    x = put(signed(rng, shape, np.float64), arguments.device)
    given = {"labels": put(rng.integers(0, CLASSES, len(x)), arguments.device)} if labels else {}
    evaluations = 0 if labels else 100  # 0: three probes for each of up to a hundred parameters
    return check(layer, x, train=arguments.train, seed=arguments.seed, evaluations=evaluations, **given)
