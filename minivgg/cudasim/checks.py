"""What to look for while a kernel runs, and how what was found is put into words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

Order = str | int  # "forward", "reverse", or the seed of a shuffle


class SimulatorError(Exception):
    """A kernel that went wrong: all that the simulator raises is one of these, but for CompileError."""


class Refused(SimulatorError):
    """A launch that no GPU would take, or would misread: nothing has run."""


class OrderDependent(SimulatorError):
    """Another order of the threads gave another answer."""


class Race(SimulatorError):
    """Two threads used one place, one of them writing, and nothing says which comes first."""


@dataclass(frozen=True)
class Checks:
    """How carefully launches are watched; see `checking`."""

    orders: tuple[Order, ...] = ("forward", "reverse")
    racecheck: bool = False
    memcheck: bool = False
    traffic: bool = False
    seconds: float = 10
    launches: list["Launch"] | None = None

    def __post_init__(self):
        if not self.seconds > 0:
            raise Refused(f"seconds must be more than 0, got {self.seconds}")

    @property
    def watched(self) -> int:
        """The bits that watch.cpp understands."""
        return 1 * (self.memcheck or self.racecheck) + 2 * self.racecheck + 4 * self.traffic


_current = Checks()


def current() -> Checks:
    """The checks under which a launch runs now."""
    return _current


@contextmanager
def checking(**changes) -> Iterator[list["Launch"]]:
    """Inside, every launch of the simulator is watched more, or less; gives the list to which each adds its `Launch`.

    orders      the orders in which threads and blocks take turns, each a run of its own; all must give the same bits
    racecheck   find pairs of accesses to one place that no barrier, and no meeting of a warp, puts in an order
    memcheck    find accesses outside of the arrays (part of racecheck as well)
    traffic     count the transactions that a GPU would need
    seconds     how long a block may compute before it is taken for one without an end (10)

        with cudasim.checking(racecheck=True, orders=("forward", "reverse", 1, 2)) as launches:
            kernel(grid, block, (x, y))
    """
    global _current
    before, launches = _current, []
    _current = replace(before, **changes, launches=launches)
    try:
        yield launches
    finally:
        _current = before
        if before.launches is not None:
            before.launches.extend(launches)


@dataclass(frozen=True)
class Traffic:
    """What one line of a kernel asked of memory, in a launch as a whole.

    A warp's 32 lanes make a `request` together. In global memory it takes one transaction for each sector of 32 bytes
    that it touches; in shared memory, one pass for each word that the busiest of the 32 banks has to give. `fewest` is
    what the same bytes would take at best.
    """

    line: str
    memory: str  # "global" or "shared"
    access: str  # "read" or "write"
    size: int  # bytes a lane
    requests: int
    transactions: int
    fewest: int

    @property
    def waste(self) -> float:
        """Transactions over the fewest possible: 1 is perfect."""
        return self.transactions / max(self.fewest, 1)


@dataclass
class Launch:
    """One launch: which kernel, how large, and what was seen."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_mem: int
    traffic: list[Traffic] = field(default_factory=list)

    def table(self) -> str:
        """The traffic, one source line a row, the most wasteful first."""
        unit = {"global": "sectors", "shared": "passes"}
        head = ("line", "memory", "access", "bytes a lane", "requests", "transactions", "a request", "at best")
        rows = [head]
        for t in sorted(self.traffic, key=lambda t: t.fewest - t.transactions):
            each = f"{t.transactions / max(t.requests, 1):.1f} {unit[t.memory]}"
            best = f"{t.fewest / max(t.requests, 1):.1f}"
            rows.append((t.line, t.memory, t.access, str(t.size), f"{t.requests:,}", f"{t.transactions:,}", each, best))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        sides = "<<<>>>>>"
        cells = ([f"{c:{side}{w}}" for c, side, w in zip(row, sides, widths, strict=True)] for row in rows)
        return "\n".join("  ".join(row).rstrip() for row in cells)


# ---- Words ----


def in_words(text: str, line_of, arrays: list) -> str:
    """A message of the runtime's with source lines for @address@ and array elements for #array:byte:size#.

    `arrays` has (name, bytes, bytes of an element, or 0 for what was accessed).
    """
    text = re.sub(r"@([0-9a-f]+)@", lambda found: line_of(int(found[1], 16)), text)
    return re.sub(r"#(-?\d+):(-?\d+):(\d+)#", lambda found: _element(arrays, *map(int, found.groups())), text)


def _element(arrays: list, number: int, offset: int, size: int) -> str:
    name, nbytes, itemsize = arrays[number]
    itemsize = itemsize or size
    past = "" if 0 <= offset <= nbytes - size else f", which has {nbytes // itemsize} elements"
    return f"{name}[{offset // itemsize}]{past}"


def findings(text: str, line_of, arrays: list) -> tuple[list[str], list[Traffic]]:
    """What watch.cpp wrote: races, each a sentence and each pair of lines once, and the traffic by line."""
    races, traffic = {}, {}
    for row in text.splitlines():
        kind, *fields = row.split("\t")
        if kind == "race":
            first, second, where, one, other = (in_words(f, line_of, arrays) for f in fields)
            races.setdefault(
                (first, second), f"{where}: {one} at {first}, {other} at {second}, and nothing orders them"
            )
        else:
            line = in_words(fields[0], line_of, arrays)
            size, write, shared, *counts = map(int, fields[1:])
            key = (line, "shared" if shared else "global", "write" if write else "read", size)
            traffic[key] = [a + b for a, b in zip(traffic.get(key, (0, 0, 0)), counts, strict=True)]
    return list(races.values()), [Traffic(*key, *counts) for key, counts in traffic.items()]
