"""The coordinator: asks every contestant for one sample in turn, and says what the medians are."""

import math
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput

# Seconds between two turns, in which the threads of the one before fall asleep: 10 ms for GNU's OpenMP, which PyTorch
# uses on Linux, 200 ms for LLVM's.
PAUSE = 0.03 if sys.platform == "linux" else 0.25


class Failed(Exception):
    """A contestant cannot go on. The message, one line, says why."""


class Worker:
    """A contestant's process, started when first asked for something, and again after it died. A context manager.

    `threads` is what each library in it may use; `imports` are modules to import, whose memory is not counted.
    `program` is the module that runs there.
    """

    def __init__(self, threads: int, imports: tuple[str, ...] = (), program: str = "minivgg.bench.worker"):
        self.threads, self.imports, self.program = threads, imports, program
        self._process: subprocess.Popen | None = None
        self._errors = None  # the process's standard error, a file

    def ask(self, method: str, *arguments):
        """What `worker.Contestant` answers. Raises Failed if it cannot, or if the process dies of it."""
        if self._process is None:
            self._start()
        try:
            pickle.dump((method, arguments), self._process.stdin)
            self._process.stdin.flush()
            value, problem = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise Failed(self._autopsy()) from error
        if problem:
            raise Failed(textwrap.shorten(problem, 200, placeholder=" …"))
        return value

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._errors.close()
            self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.program, *self.imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | environment(self.threads),
        )

    def _autopsy(self) -> str:
        """Why the process died, as far as it said; it is buried, so that the next question starts another."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = "none"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        killed = " (killed: out of memory?)" if status == -9 else ""
        return f"the process died, exit status {status}{killed}" + (f": {lines[-1].strip()}" if lines else "")


def environment(threads: int) -> dict[str, str]:
    """What a contestant's process starts with: the same number of threads for every library, and huge pages for
    PyTorch's tensors, which it does not take unless told."""
    names = ("NUMBA_NUM_THREADS", "MINIVGG_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"THP_MEM_ALLOC_ENABLE": "1"}


def cores() -> int:
    """Cores that this process may use. Two hardware threads of one core count once: they share its multipliers."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(cpu)
    return len(siblings)


class Neighbours:
    """How busy other programs keep the machine, seen in the pauses between turns, when all of ours sleep.

    PyTorch's threads wait for one another by spinning, so that a core which is not there costs them far more than ours:
    20 ms instead of 0.2 for a small layer. A fair race needs a quiet machine, and a record should say whether it was.
    """

    def __init__(self):
        self._idle = self._all = 0.0

    def pause(self) -> None:
        """Sleep for PAUSE seconds till the contestant's threads do, too, and for as long again to watch."""
        time.sleep(PAUSE)
        before = self._ticks()
        time.sleep(PAUSE)
        spent = self._ticks() - before
        self._idle += spent[3:5].sum()
        self._all += spent.sum()

    @property
    def busy(self) -> float | None:
        """The share of all cores' time that others took; None before the first pause, or if the system does not say."""
        return float(1 - self._idle / self._all) if self._all else None

    @staticmethod
    def _ticks() -> np.ndarray:
        """What the cores have done so far: user, nice, system, idle, iowait, irq, softirq; zeros if that is secret."""
        try:
            return np.array(Path("/proc/stat").read_text().split()[1:8], float)
        except OSError:
            return np.zeros(7)


@dataclass
class Result:
    """What one contestant did in one heat: `samples` in seconds a run, the peak `memory` in bytes, and `failure`, why
    there is none of it. `value` is what the task computes, where it was asked for."""

    samples: list[float] = field(default_factory=list)
    memory: int | None = None
    value: object = None
    failure: str | None = None

    @property
    def median(self) -> float:
        """Seconds; not a number where it failed."""
        return statistics.median(self.samples) if self.samples else math.nan

    def as_dict(self) -> dict:
        """For JSON, unless it failed: median and quartiles in seconds, how many samples, and memory in bytes."""
        lower, upper = (float(q) for q in np.quantile(self.samples, (0.25, 0.75)))
        times = {"seconds": self.median, "lower": lower, "upper": upper, "samples": len(self.samples)}
        return times | {"memory_bytes": self.memory}


def heat(
    entries: dict[str, tuple[Worker, Callable]],
    *,
    samples: int,
    turn: float,
    seconds: float,
    value: bool = False,
    progress: Callable[[str], None] = lambda doing: None,
    alone: bool = False,
) -> tuple[dict[str, Result], float | None]:
    """Race the entries: name → (worker, what its `prepare` takes). All prepare and warm up; then everybody gives one
    sample, then everybody the next, until there are `samples` of each. A sample is the mean over `turn` seconds at
    least, after half as many that do not count (see `worker.Contestant.sample`). On a virtual machine the first pass
    of a large network took up to twice as long after the 8 seconds in which the others had theirs, and the next ones
    less and less: `turn` has to be long enough for that. Returns name → result, and `Neighbours.busy`.

    A contestant so slow that its next sample would bring it past `seconds` in all stops early, but never without a
    sample. One that fails says so in its result and leaves the others to race on. `progress` is told what goes on.
    `alone` says that nobody else uses what is timed, a GPU: then there are no pauses, and nobody is busy.
    """
    check(samples, seconds)
    results, neighbours = {name: Result() for name in entries}, Neighbours()

    def still_running() -> list[str]:
        return [name for name, result in results.items() if not result.failure]

    def ask(name: str, *questions: tuple):
        """The answer to the last question; None if the contestant fails at any."""
        try:
            return [entries[name][0].ask(*question) for question in questions][-1]
        except Failed as failed:
            results[name] = Result(failure=str(failed))

    for name, (_, make) in entries.items():
        progress(f"{name} warms up")
        ask(name, ("prepare", make), ("warm_up",))
    for number in range(samples):
        for name in still_running():
            taken = results[name].samples
            if taken and sum(taken) + taken[-1] > seconds:
                continue
            progress(f"{name}, sample {number + 1} of {samples}")
            if not alone:
                neighbours.pause()
            taken.append(ask(name, ("sample", turn)))
    for name in still_running():
        result = results[name]
        result.memory, result.value = ask(name, ("finish", value)) or (None, None)
    return results, neighbours.busy


def check(samples: int, seconds: float, threads: int = 1) -> None:
    """Raise BadInput unless these settings make a race."""
    if samples < 1:
        raise BadInput(f"a race needs at least one sample, got {samples}")
    if not seconds > 0:
        raise BadInput(f"the time for each contestant must be positive, got {seconds:g} s")
    if not 1 <= threads <= (os.cpu_count() or 1):
        raise BadInput(f"threads must be from 1 to {os.cpu_count()}, the cores of this machine, got {threads}")
