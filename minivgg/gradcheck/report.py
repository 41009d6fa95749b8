"""What a check has found: rows for arguments, rows for invariants, a diagnosis; as a table, as HTML, as a picture."""

import html
import math
from dataclasses import dataclass, field
from pathlib import Path

from minivgg.figures import check_path, save
from minivgg.gradcheck.invariants import REPEATABLE, Invariant
from minivgg.gradcheck.numeric import Point


@dataclass
class Row:
    """One argument. The worst of its probes: where (an index, or words for a direction that touches many elements), the
    slope there measured (`numeric`) and claimed (`analytic`), and how far they may be apart (`tolerance`).

    `kinks` is the number of undecided branches, `order` the exponent of the Taylor remainder: 2 if the gradient is
    right, 1 if it is wrong, nan if forward is linear here. `h` is the step.
    """

    argument: str
    shape: tuple[int, ...]
    where: str | tuple
    numeric: float
    analytic: float
    tolerance: float
    ok: bool
    kinks: int = 0
    order: float = math.nan
    h: float = math.nan

    @property
    def error(self) -> float:
        return abs(self.analytic - self.numeric)

    @property
    def ratio(self) -> float:
        """analytic / numeric, nan where numeric is 0."""
        return self.analytic / self.numeric if self.numeric else math.nan

    @property
    def verdict(self) -> str:
        return "WRONG" if not self.ok else "ok, kinks" if self.kinks else "ok"

    def cells(self) -> list[str]:
        shape = "×".join(map(str, self.shape)) or "scalar"
        where = self.where if isinstance(self.where, str) else "[" + ", ".join(map(str, self.where)) + "]"
        numbers = [f"{v:.6g}" for v in (self.numeric, self.analytic)]
        small = [f"{v:.1e}" for v in (self.error, self.tolerance)]
        ratio = "" if math.isnan(self.ratio) else f"{self.ratio:.6f}" if abs(self.ratio) < 1e4 else f"{self.ratio:.1e}"
        order = "linear" if math.isnan(self.order) else "kink" if self.ok and self.kinks else f"{self.order:.2f}"
        return [self.argument, shape, where, *numbers, ratio, *small, order, str(self.kinks or ""), self.verdict]


_HEADS = (
    *("argument", "shape", "worst at"),  # words, to the left
    *("numeric", "analytic", "ratio", "error", "tolerance", "Taylor", "kinks"),  # numbers, to the right
    "verdict",
)
_WORDS = 0, 1, 2, len(_HEADS) - 1


@dataclass
class Report:
    """The result of `check`: `ok` or not, which is its truth as well. Print it, show it in a notebook, `plot()` it, or
    `raise_if_failed()`. There are no rows where two runs differ, since nothing can be measured there.

    `diagnosis` says, a sentence each, what is wrong; `evaluations` counts the forwards that slopes have taken, and
    `seconds` is the time of the whole check.
    """

    target: str
    rows: list[Row]
    invariants: list[Invariant]
    diagnosis: list[str]
    evaluations: int
    seconds: float
    points: dict[str, Point] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows) and all(i.ok for i in self.invariants)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def broken(self) -> list[str]:
        """The names of the invariants that do not hold."""
        return [i.name for i in self.invariants if not i.ok]

    @property
    def kinks(self) -> int:
        """How many branches (of ReLU, max-pool, …) are undecided at the arguments given: the most of any argument."""
        return max((row.kinks for row in self.rows), default=0)

    def raise_if_failed(self) -> "Report":
        """The report itself. Raises AssertionError, with the table, if anything is wrong."""
        if not self.ok:
            raise AssertionError(f"\n{self}")
        return self

    def __str__(self) -> str:
        cells = [list(_HEADS), *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
        lines.insert(1, "  ".join("─" * w for w in widths))
        held = len(self.invariants) - len(self.broken)
        lines = [*lines, ""] if self.rows else []
        lines += [f"{held} of {len(self.invariants)} invariants hold", *(f"✗ not so: {i}" for i in self.broken)]
        lines += ["", "Diagnosis", *(f"• {sentence}" for sentence in self.diagnosis)] if self.diagnosis else []
        return "\n".join([self._title(), "", *lines])

    __repr__ = __str__

    def _title(self) -> str:
        kinks = f", {self.kinks} kink{'s' * (self.kinks > 1)}" if self.kinks else ""
        return (
            f"{self.target}: {self._verdict()} ({self.evaluations} forwards{kinks})"  # no seconds: same seed, same text
        )

    def _verdict(self) -> str:
        """ "Right" is said only where everything holds."""
        if self.ok:
            return "the gradient is right"
        if REPEATABLE in self.broken:
            return "the gradient cannot be judged, since two runs on the same arguments differ"
        broken = f"{len(self.broken)} invariant{'s do' if len(self.broken) > 1 else ' does'} not hold"
        if all(row.ok for row in self.rows):
            return f"NOT right: the slopes agree, but {broken}"
        return "the gradient is WRONG" + (f", and {broken}" if self.broken else "")

    def _repr_html_(self) -> str:
        def row(cells, tag="td", style=""):
            sides = ("left" if i in _WORDS else "right" for i in range(len(cells)))
            parts = (
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )
            return f"<tr{style}>{''.join(parts)}</tr>"

        wrong = ' style="font-weight:bold;background:#f6d5c2;color:#000"'
        rows = "".join(row(r.cells(), style="" if r.ok else wrong) for r in self.rows)
        notes = [f"✗ not so: {name}" for name in self.broken] + self.diagnosis
        listed = f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""
        title = f"<p><b>{html.escape(self._title())}</b></p>"
        return f"{title}<table><thead>{row(_HEADS, 'th')}</thead><tbody>{rows}</tbody></table>{listed}"

    def plot(self, path: str | Path | None = None, argument: str | None = None):
        """A matplotlib Figure of one argument (the first that is wrong, or the first): the error over the tensor, the
        error against the step h, and the Taylor remainder. Saved to `path` if there is one; nothing is shown.

        Measures up to a thousand elements again: two forwards each. Raises ValueError where nothing can be measured,
        the gradient being missing or misshapen, or for an unknown argument.
        """
        if path is not None:
            check_path(path)
        from minivgg.gradcheck.picture import picture  # here, since matplotlib takes half a second to import

        rows = {row.argument: row for row in self.rows if row.argument in self.points}
        if argument is None:
            argument = next((name for name, row in rows.items() if not row.ok), next(iter(rows), None))
        if argument not in rows:
            raise ValueError(f"nothing was measured for {argument}; there is {', '.join(rows) or 'no other argument'}")
        figure = picture(self.points[argument], rows[argument], self._title())
        if path is not None:
            save(figure, path)
        return figure


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    return [f"{cell:{'<' if i in _WORDS else '>'}{widths[i]}}" for i, cell in enumerate(cells)]
