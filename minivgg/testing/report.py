"""What a check found: one result for each rule, and a text that helps whoever broke one."""

import textwrap
from dataclasses import dataclass, field


class Broken(Exception):
    """Raised by a rule: what it expected, what it found, and where, as far as the trial does not tell.

    `gradient` is the report of the gradient check, where there is one.
    """

    def __init__(self, expected: str, found: str, *, where: str = "", gradient=None):
        super().__init__(expected, found)
        self.expected, self.found, self.where, self.gradient = expected, found, where, gradient


@dataclass
class Result:
    """One rule. `trials` counts where it was tried (0: it did not apply), `failures` where it was broken; the texts are
    of the first failure, `error` is the exception if it was one, and `gradient` the gradient check's report."""

    rule: str
    advice: str
    trials: int = 0
    failures: int = 0
    on: str = ""
    expected: str = ""
    found: str = ""
    error: Exception | None = field(default=None, repr=False)
    gradient: object = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        return not self.failures

    def record(self, on: str, broken: Exception | None) -> None:
        """Count one trial."""
        self.trials += 1
        if broken is None:
            return
        self.failures += 1
        if self.failures > 1:
            return
        if isinstance(broken, Broken):
            self.on = f"{on}, {broken.where}" if broken.where else on
            self.expected, self.found, self.gradient = broken.expected, broken.found, broken.gradient
        else:
            self.on, self.error = on, broken
            self.expected, self.found = "an answer", f"{type(broken).__name__}: {broken}"

    def __str__(self) -> str:
        if self.ok:
            tried = f"{self.trials} trial{'s' * (self.trials != 1)}" if self.trials else "does not apply"
            return f"✓ {self.rule} ({tried})"
        more = f", and {self.failures - 1} more of {self.trials} trials" if self.failures > 1 else ""
        lines = {"on": self.on + more, "expected": self.expected, "found": self.found, "next": self.advice}
        return "\n".join([f"✗ {self.rule}", *(_paragraph(*line) for line in lines.items())])


def _paragraph(head: str, text: str) -> str:
    """`text` beside its heading; tables are left as wide as they are."""
    lines = text.splitlines() if "\n" in text else textwrap.wrap(text, 100)
    return textwrap.indent("\n".join(lines), " " * 13).replace(" " * 13, f"    {head:9}", 1)


@dataclass
class Report:
    """All rules that `subject` was held to. Truth is `ok`; print it, or `raise_if_failed()`."""

    subject: str
    results: list[Result]

    @property
    def ok(self) -> bool:
        return not self.failures

    def __bool__(self) -> bool:
        return self.ok

    @property
    def failures(self) -> list[Result]:
        """The broken rules."""
        return [result for result in self.results if not result.ok]

    def __getitem__(self, rule: str) -> Result:
        return next(result for result in self.results if result.rule == rule)

    def raise_if_failed(self) -> "Report":
        """The report itself. Raises AssertionError, with the broken rules, if there are any."""
        if self.ok:
            return self
        raise AssertionError(f"\n{self.text(failures_only=True)}") from self.failures[0].error

    def text(self, *, failures_only: bool = False) -> str:
        """A heading, and a line or a paragraph for each rule."""
        tried = sum(result.trials > 0 for result in self.results)
        broken = len(self.failures)
        verdict = f"breaks {broken} of {tried} rules" if broken else f"keeps all {tried} rules"
        shown = self.failures if failures_only else self.results
        return "\n".join([f"{self.subject} {verdict}", *map(str, shown)])

    def __str__(self) -> str:
        return self.text()
