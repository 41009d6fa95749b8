"""One contestant: a process that prepares a task, and runs it when it is told to.

    python -m minivgg.bench.worker MODULE …

It imports the modules, which memory is counted from, then reads pickled requests (method, arguments) from standard
input and answers each on standard output with a pickled (value, None) or (None, "what went wrong").
"""

import importlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minivgg.backends import workspace


class Contestant:
    """What the coordinator may ask for, in this order: `prepare`, `warm_up`, `sample` many times, `finish`."""

    def __init__(self):
        self._baseline = _resident("VmRSS")
        self._run: Callable | None = None

    def prepare(self, make: Callable[[], Callable]) -> None:
        """Call `make`, which builds all that the task needs and returns the task."""
        self._run = None  # what a failed race may have left
        self._run = make()
        _forget_peak()

    def warm_up(self) -> None:
        """Run the task twice, to compile and to touch memory."""
        self._mean(2, 0)

    def sample(self, turn: float) -> float:
        """Seconds that the task takes: the mean over a turn of so many seconds, or over one run if that is longer.

        Before the turn the task runs for half as long, at least once, and is not timed: that wakes the threads, fetches
        what the others drove from the caches, and has the system find again what it put away as the contestant slept.
        """
        self._mean(1, turn / 2)
        return self._mean(1, turn)

    def finish(self, value: bool) -> tuple[int | None, object]:
        """Forget the task; returns the most bytes that it held, inputs and weights included and imports not (None where
        the system does not say; Linux does), and, if that is asked for, what the task computes."""
        peak = _resident("VmHWM")
        memory = None if peak is None else max(0, peak - self._baseline)
        answer = self._run() if value else None
        self._run = None
        workspace.release()
        return memory, answer

    def _mean(self, least: int, seconds: float) -> float:
        """Run the task at least so often and for so many seconds; returns the seconds of one run."""
        began, runs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds or runs < least:
            self._run()
            runs += 1
        return elapsed / runs


def _resident(key: str) -> int | None:
    """Bytes of main memory that this process holds (VmRSS), or held at most (VmHWM); None if that is not to be had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _forget_peak() -> None:
    """Let VmHWM start again from what is held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main(kind: type = Contestant) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which then ends us
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    try:
        for module in sys.argv[1:]:
            importlib.import_module(module)
        contestant, problem = kind(), None
    except ImportError as error:
        contestant, problem = None, str(error)
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:  # the coordinator is gone
            return
        try:
            reply = (None, problem) if problem else (getattr(contestant, method)(*arguments), None)
        except Exception as error:
            reply = None, f"{type(error).__name__}: {error}"
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


if __name__ == "__main__":
    main()
