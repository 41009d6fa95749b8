"""Kill trainings, go on with them, and print what came of it, as JSON: for test_kills.py, in a process of its own.

The process is warm (everything imported and compiled), and each training is a fork of it: so it takes half a second
instead of three, and eighty can be killed. Numba runs one thread and no OpenMP, whose threads no fork survives.
"""

import io
import json
import os
import random
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np

import minivgg.cli.train
from minivgg.cli.main import main

SETTINGS = "--model small_googlenet --width 0.02 --dropout 0.5 --size 8 --epochs 3 --batch-size 8 --schedule plateau"
EVENTS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod")


def data(path):
    rng = np.random.default_rng(0)
    images = {f"{part}_images": rng.integers(0, 256, (24, 8, 8), np.uint8) for part in ("train", "test")}
    np.savez(path, **images, **{f"{part}_labels": rng.integers(0, 2, 24) for part in ("train", "test")})
    return str(path)


def forked(arguments, before=lambda: None, after=lambda child: None):
    """The exit status of `minivgg train` (minus the number of the signal that ended it), and what it said on stderr."""
    read, write = os.pipe()
    if not (child := os.fork()):
        error, status = io.StringIO(), 99
        try:
            signal.alarm(60)  # a child that hangs ends, and is seen
            with redirect_stdout(io.StringIO()), redirect_stderr(error):
                before()
                status = main(["train", "--quiet", "--save-minutes", "0", *arguments])
        except BaseException as unexpected:  # of whatever kind, it is to be seen
            error.write(f"traceback: {unexpected!r}")
        finally:
            os.write(write, error.getvalue().encode()[-2000:])
            os._exit(status)
    os.close(write)
    after(child)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


def at_boundary(folder, number, count=lambda: None):
    """Have this process killed at the number-th time that it changes something in the folder.

    Of a write, half is then done: an fsync is where all of it would have been.
    """
    seen, fsync = 0, os.fsync

    def change(descriptor=None):
        nonlocal seen
        seen += 1
        count()
        if seen == number:
            if descriptor is not None and (size := os.fstat(descriptor).st_size) and size < 1 << 30:
                with suppress(OSError):  # a folder
                    os.ftruncate(descriptor, size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (writes or event in EVENTS) and str(folder) in str(arguments[0]):
            change()

    def watched(descriptor):
        change(descriptor)
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = watched


def outcome(folder, whole):
    """What is wrong with a run that was killed and gone on with; nothing, if it is the run that never stopped."""
    names, expected = ({path.name for path in place.iterdir()} for place in (folder, whole))
    if names != expected:
        return f"there are {sorted(names)}"
    if (folder / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes():
        return "other weights"
    logs = ([line.split(",")[:6] for line in (place / "log.csv").read_text().split()] for place in (folder, whole))
    return None if next(logs) == next(logs) else "another log"


def go_on(folder, npz, **options):
    started = (folder / "config.json").exists()  # else nothing was there to go on with, and the name is free
    return forked(
        ["--resume", str(folder)] if started else ["--run", str(folder), "--data", npz, *SETTINGS.split()], **options
    )


def run(base, at_random, at_boundaries):
    minivgg.cli.train._draw = lambda session: None  # seconds of Matplotlib's, and none of a training's state
    npz, whole, counted = data(base / "data.npz"), base / "whole", base / "count"
    begin = ["--data", npz, *SETTINGS.split(), "--run"]
    with redirect_stdout(io.StringIO()):
        main(["train", "--quiet", *begin, str(base / "warm")])
    began = time.monotonic()
    assert forked([*begin, str(whole)]) == (0, ""), forked([*begin, str(whole)])
    duration = time.monotonic() - began

    def mark():
        with os.fdopen(os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb") as file:
            file.write(b".")

    forked([*begin, str(base / "counting")], before=lambda: at_boundary(base / "counting", 0, mark))
    changes = counted.stat().st_size
    first = at_boundaries // 2  # the first files of a run, and then all over it
    numbers = [*range(1, first + 1), *np.linspace(first + 1, changes, at_boundaries - first).astype(int).tolist()]
    rng, results = random.Random(0), []
    for kind, cases in (("boundary", numbers), ("random", [rng.random() for _ in range(at_random)])):
        for i, case in enumerate(cases):
            folder, how = base / f"{kind}-{i}", {}
            if kind == "boundary":
                how["before"] = lambda folder=folder, case=case: at_boundary(folder, case)
            else:
                how["after"] = lambda child, case=case: (
                    time.sleep(0.8 * case * duration),
                    os.kill(child, signal.SIGKILL),
                )
            killed, _ = forked([*begin, str(folder)], **how)
            again, _ = go_on(folder, npz, **how) if i % 2 else (None, "")  # and once more on the way
            status, said = go_on(folder, npz)
            results.append([kind, case, killed, again, status, said, outcome(folder, whole) if not status else "ended"])
    return {"duration": duration, "changes": changes, "results": results}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
