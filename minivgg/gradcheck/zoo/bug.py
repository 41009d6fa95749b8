"""What a bug is, and how it is planted: the real function is swapped for a wrong one wherever minivgg holds it."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minivgg.gradcheck.report import Report
from minivgg.gradcheck.zoo.cases import Case
from minivgg.ops.conv2d import ALGORITHMS

_HERE = __name__.rpartition(".")[0]  # the zoo keeps the originals: a bug calls what it spoils


@dataclasses.dataclass(frozen=True)
class Bug:
    """`victim`, a function or a method, becomes `culprit`. `says` explains it in a line, `shows` are words that the
    report on `case` has for it. What no gradient can show is seen by a `rule`: `rule(rng) -> str`, "" if it is kept."""

    name: str
    victim: Callable
    culprit: Callable
    case: Case
    says: str
    shows: str
    rule: Callable[[np.random.Generator], str] | None = None

    @property
    def op(self) -> str:
        return self.case.op

    @property
    def caught_by(self) -> str:
        """Who catches it: "gradcheck", or the rule's name in words."""
        return self.rule.__name__.replace("_", " ") if self.rule else "gradcheck"

    def plant(self):
        """A context in which minivgg has this bug."""
        return swapped(self.victim, self.culprit)

    def check(self, seed: int = 0) -> Report:
        """The report of the gradient check with the bug planted."""
        with self.plant():
            return self.case.check(seed)

    def seen(self, seed: int = 0) -> str:
        """What whoever catches it has to say: a report or a sentence, "" if nothing was noticed."""
        if self.rule:
            with self.plant():
                return self.rule(np.random.default_rng(seed))
        report = self.check(seed)
        return "" if report.ok else str(report)


ZOO: dict[str, Bug] = {}


def bug(victim: Callable, case: Case, shows: str, rule: Callable | None = None):
    """Decorate what takes the place of `victim`: its name (with hyphens) names the bug, its docstring explains it."""

    def add(culprit: Callable) -> Callable:
        name, says = culprit.__name__.replace("_", "-"), culprit.__doc__
        functools.update_wrapper(culprit, victim)  # so that a report speaks of the op, and not of the bug
        ZOO[name] = Bug(name, victim, culprit, case, says, shows, rule)
        return culprit

    return add


@contextmanager
def swapped(old: Callable, new: Callable) -> Iterator[None]:
    """Put `new` wherever minivgg holds `old`: in modules, in classes, in rows of `ALGORITHMS`; and back at the end."""
    rows = dict(ALGORITHMS)
    try:
        _replace(old, new)
        for name, row in rows.items():
            held = {field: new for field, value in vars(row).items() if value is old}
            ALGORITHMS[name] = dataclasses.replace(row, **held) if held else row
        yield
    finally:
        ALGORITHMS.update(rows)
        _replace(new, old)  # everywhere: also in what was imported meanwhile


def _replace(old: Callable, new: Callable) -> None:
    modules = [m for name, m in sys.modules.items() if _ours(name) and not name.startswith(_HERE)]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type) and _ours(c.__module__)}
    for owner in (*modules, *classes):
        for name in [name for name, value in vars(owner).items() if value is old]:
            setattr(owner, name, new)


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "minivgg"
