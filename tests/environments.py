"""minivgg where things are missing: a place to write to, a home, streams, cores, threads after a fork.

    python tests/environments.py

Each environment gets processes of its own; those that lock a part of the system get a namespace, too, so that nobody
else notices (Linux: unshare). Prints a line for each, and ends with status 1 if one failed. What this machine does not
allow is skipped, with the reason. A minute when Numba's cache is warm.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-X", "faulthandler"]
MINIVGG = [*PYTHON, "-m", "minivgg"]
KERNEL = 'extern "C" __global__ void answer(int* y) { y[threadIdx.x] = 42; }'

# A kernel on the CPU, one on the simulated GPU, and what looks for a cache.
USE = f"""
import numpy as np
from minivgg import cudasim
from minivgg.ops.conv2d import conv2d_forward, planning
from minivgg.ops.relu import relu_forward
from minivgg.training import datasets
from minivgg.weights import sources
print(relu_forward(np.float32([-1, 2]))[0])
assert not sources.SOURCES["vgg16-keras"].path.is_dir() and planning.table_path() and datasets.cache_dir()
y = np.zeros(2, np.int32)
try:
    cudasim.RawKernel({KERNEL!r}, "answer")(1, 2, (y,))
    print(y)
except cudasim.CompileError as error:
    print("not compiled:", error)
"""
USED = "[0. 2.]\n[42 42]\n"
FORK = """
import multiprocessing, os
import numpy as np
from minivgg.ops.conv2d import conv2d_forward, conv2d_backward
from minivgg.ops.relu import relu_forward
def work(i):
    x, w = (np.random.default_rng(i).standard_normal(shape).astype("f4") for shape in ((2, 3, 16, 16), (4, 3, 3, 3)))
    y, cache = conv2d_forward(relu_forward(x)[0], w, padding=1, algorithm="direct")
    return sum(float(g.sum()) for g in conv2d_backward(y, cache) if g is not None)
def grandchildren(i):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(int(work(i) != expected[i]))
expected = [work(i) for i in range(4)]
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(work, range(4)) == expected
    assert pool.map(grandchildren, range(4)) == [0] * 4
assert [work(i) for i in range(4)] == expected
print("forked")
"""


class Skipped(Exception):
    """What this machine does not allow."""


def run(command, says: str, *, status: int = 0, noise: int = 0, within: tuple[str, ...] = (), **changes) -> None:
    """Run `command`: it must end with `status`, print `says`, and have at most `noise` lines on stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run([*within, *command], cwd=ROOT, env=environment, capture_output=True, timeout=600)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert done.returncode == status, f"status {done.returncode}: {err[-2000:]}"
    assert says in out, f"printed {out!r}, {err[-2000:]!r}"
    assert "Traceback" not in err, err[-2000:]
    assert err.count("\n") <= noise, err


def namespace(*options: str, script: str = "") -> tuple[str, ...]:
    """What a command is put behind to run in a namespace of its own, after a shell script."""
    if not shutil.which("unshare"):
        raise Skipped("there is no unshare")
    command = ("unshare", *options, "sh", "-c", f'set -e; {script}\nexec "$@"', "sh")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise Skipped(f"the system does not allow it: {tried.stderr.strip()}")
    return command


def locked(*folders: Path) -> tuple[str, ...]:
    """A namespace in which nothing can be written to the folders."""
    there = [f"'{folder}'" for folder in folders if folder.is_dir()]
    mounts = "; ".join(f"mount --bind {f} {f}; mount -o remount,bind,ro {f}" for f in there)
    who = () if os.getuid() == 0 else ("--user", "--map-root-user")
    return namespace(*who, "--mount", script=mounts)


NO_CACHES = dict.fromkeys(("NUMBA_CACHE_DIR", "CUDASIM_CACHE", "MINIVGG_CACHE", "XDG_CACHE_HOME"))


def read_only_package_and_home() -> None:
    within = locked(ROOT, Path.home())
    run([*MINIVGG, "--version"], "minivgg ", within=within, **NO_CACHES)
    run([*PYTHON, "-c", USE], USED, within=within, noise=2, **NO_CACHES)


def nothing_writable() -> None:
    within = locked(ROOT, Path.home(), *map(Path, ("/tmp", "/var/tmp", "/dev/shm")), Path(tempfile.gettempdir()))
    run([*MINIVGG, "--version"], "minivgg ", within=within, **NO_CACHES)
    run([*PYTHON, "-W", "ignore", "-c", USE], "[0. 2.]\n", within=within, noise=3, **NO_CACHES)
    draw = ["compare", "vgg11", "--no-time", "--picture", "compare.png"]
    run([*MINIVGG, *draw], "", status=2, noise=1, within=within, **NO_CACHES)


def no_home_and_no_passwd_entry() -> None:
    within = namespace("--user", "--map-user=54321")
    nobody = NO_CACHES | {"HOME": None, "USER": None, "LOGNAME": None}
    run([*MINIVGG, "--version"], "minivgg ", within=within, **nobody)
    run([*PYTHON, "-c", USE], USED, within=within, noise=2, **nobody)
    for home in ("", "relative", "/nonexistent"):
        run([*MINIVGG, "weights", "list"], "vgg16", within=within, **nobody | {"HOME": home})


def somebody_elses_home() -> None:
    with tempfile.TemporaryDirectory() as home:
        within = namespace("--user", "--map-user=54321", script=f"chmod 0 '{home}'")
        nobody = NO_CACHES | {"HOME": home}
        run([*PYTHON, "-c", USE], USED, within=within, noise=2, **nobody)
        run([*MINIVGG, "weights", "list"], "vgg16", within=within, **nobody)
        Path(home).chmod(0o700)


def an_old_encoding() -> None:
    for encoding in ("ascii", "cp1252"):
        run([*MINIVGG, "bugs", "show", "conv2d-dw-rotated"], "WRONG", PYTHONIOENCODING=encoding)
    run([*MINIVGG, "info"], "", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    run([*PYTHON, "-c", USE], USED, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def closed_streams() -> None:
    for closing in (">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'"$@" {closing}', "sh"]
        run([*shell, *MINIVGG, "bugs"], "" if ">&-" in closing else "bugs", noise=0)
        run([*shell, *MINIVGG, "bugs", "show", "none"], "", status=2, noise=1)


def a_reader_that_goes_away() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images, labels = np.random.default_rng(0).integers(0, 255, (40, 32, 32), np.uint8), np.arange(40) % 4
        sets = {f"{s}_images": images for s in ("train", "test")} | {f"{s}_labels": labels for s in ("train", "test")}
        np.savez(f"{folder}/some.npz", **sets)
        train = ["train", "--data", f"{folder}/some.npz", "--model", "vgg11", "--width", "0.05", "--epochs", "1"]
        train += ["--batch-size", "10", "--run"]
        tries = [(["bugs"], subprocess.PIPE), ([*train, f"{folder}/a"], subprocess.PIPE)]
        tries += [([*train, f"{folder}/b"], subprocess.STDOUT)]
        for command, err in tries:
            process = subprocess.Popen([*MINIVGG, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=err, bufsize=0)
            if command[0] == "train":  # the other writes all at once, which a pipe may take before its end is shut
                process.stdout.read(1)
            process.stdout.close()
            said = process.stderr.read().decode() if process.stderr else ""
            assert process.wait(600) == 141, (process.returncode, said)
            assert "Traceback" not in said, said
            if process.stderr:
                process.stderr.close()
        assert all(Path(folder, run, "model.safetensors").is_file() for run in "ab")


def one_core() -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise Skipped("this system ties no process to a core")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        run([*PYTHON, "-c", USE], USED)
        run([*PYTHON, "-c", FORK], "forked")
    finally:
        os.sched_setaffinity(0, before)


def after_a_fork() -> None:
    if not hasattr(os, "fork"):
        raise Skipped("this system has no fork")
    run([*PYTHON, "-c", FORK], "forked")
    run([*PYTHON, "-c", FORK], "forked", NUMBA_THREADING_LAYER="workqueue")
    run([*PYTHON, "-c", FORK], "forked", MINIVGG_NUM_THREADS="2", NUMBA_NUM_THREADS="2")


ENVIRONMENTS: tuple[Callable[[], None], ...] = (
    read_only_package_and_home,
    nothing_writable,
    no_home_and_no_passwd_entry,
    somebody_elses_home,
    an_old_encoding,
    closed_streams,
    a_reader_that_goes_away,
    one_core,
    after_a_fork,
)


def main() -> int:
    """Try them all; returns the exit status."""
    failed = 0
    for environment in ENVIRONMENTS:
        began = time.perf_counter()
        try:
            environment()
            result = "fine"
        except Skipped as reason:
            result = f"SKIPPED: {reason}"
        except (AssertionError, subprocess.TimeoutExpired) as error:
            result, failed = f"FAILED: {error}", failed + 1
        print(f"{environment.__name__.replace('_', ' '):28} {time.perf_counter() - began:5.1f} s  {result}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
