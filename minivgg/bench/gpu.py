"""A GPU's clock, memory and limits, and a contestant that is timed by them.

    python -m minivgg.bench.gpu MODULE …

is a contestant's process, as `worker` is for the CPU. A sample is the mean of many runs between two events in the GPU's
queue. Before the first event stands a short delay, so that the program has put all runs into the queue by the time the
first starts: what Python takes to launch them is not in the figure, and gaps between kernels are only there where an
algorithm waits for itself. Each run takes the next of several sets of operands, more than the second-level cache holds.
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.backends.cuda import kernel
from minivgg.bench import pytorch, worker
from minivgg.bench.race import Worker, cores
from minivgg.bench.worker import main
from minivgg.errors import BadInput

_KERNELS = "bench/limits.cu"
_CHAINS = 8  # as there
_THREADS = 256
_ARRAY = 1 << 29  # bytes: ten times the second-level cache of an H100
_SAMPLES = 11
_MOST_RUNS = 64  # in one turn: with a few kernels each they fit the GPU's queue
_LONGEST_DELAY = 0.02


def why_not() -> str | None:
    """Why there is no GPU to work on; None if there is one."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed: pip install 'minivgg[cuda12]' or 'minivgg[cuda13]', not both"
    if not cupy.cuda.is_available():
        return f"CuPy {cupy.__version__} finds no device"
    return None


@dataclass
class Task:
    """What a contestant does: `run(i)` puts the i-th run into the queue, `verdict()` says how right its results are:
    {"error": …} and whatever else is to be recorded."""

    run: Callable[[int], object]
    verdict: Callable[[], dict]


def timed(run: Callable[[int], object], runs: int, delay: float = 0.0) -> tuple[float, float]:
    """Seconds that the GPU takes for one of `runs` runs, and that the program takes to ask for one. The first starts
    after `delay` seconds."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    _wait(min(delay, _LONGEST_DELAY))
    start.record()
    began = time.perf_counter()
    for i in range(runs):
        run(i)
    asking = (time.perf_counter() - began) / runs
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3 / runs, asking


def _wait(seconds: float) -> None:
    """Keep the GPU busy for a while: one warp that multiplies."""
    if seconds:
        _chain(int(seconds * _rounds_per_second()))


def _chain(rounds: int) -> None:
    import cupy

    kernel(_KERNELS, "fma_chains")(1, 32, cupy.full(2 + 32, 0.5, np.float32), rounds)


@functools.cache
def _rounds_per_second() -> float:
    _chain(1)
    trial = 200_000
    return trial / timed(lambda _: _chain(trial), 1)[0]


class Contestant(worker.Contestant):
    """`worker.Contestant` on a GPU: `prepare` takes what makes a `Task`."""

    def __init__(self):
        self._task: Task | None = None
        self._seconds = self._asking = 0.0

    def prepare(self, make: Callable[[], Task]) -> None:
        self._task = None
        release()
        self._task = make()
        release()  # what was only needed to make it

    def warm_up(self) -> None:
        """Run the task, to compile and to choose algorithms, and then to learn how long it takes."""
        timed(self._task.run, 2)
        self._seconds, self._asking = timed(self._task.run, 3)

    def sample(self, turn: float) -> float:
        """Seconds of one run, the mean over a turn of so many seconds, after half as long that does not count."""
        runs = min(_MOST_RUNS, max(1, round(turn / self._seconds)))
        timed(self._task.run, -(-runs // 2))
        mean, self._asking = timed(self._task.run, runs, 1.5 * runs * self._asking)
        return mean

    def finish(self, value: bool) -> tuple[int | None, object]:
        """Forget the task; returns the most bytes of the GPU's memory that it held, operands included, and, if that is
        asked for, the task's verdict."""
        memory = held()
        answer = self._task.verdict() if value else None
        self._task = None
        release()
        return memory, answer


def _torch():
    """PyTorch, if this process has imported it and it has a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch and torch.cuda.is_available() else None


def held() -> int:
    """The most bytes of the GPU's memory that CuPy and PyTorch held for arrays since `release`."""
    import cupy

    torch = _torch()
    return cupy.get_default_memory_pool().total_bytes() + (torch.cuda.max_memory_allocated() if torch else 0)


def release() -> None:
    """Give unused memory back to the other contestants, and let `held` start again."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    if torch := _torch():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def processors() -> int:
    """How many multiprocessors the GPU has."""
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"]


def sets_beyond_cache(nbytes: int) -> int:
    """How many sets of operands of so many bytes are four times what the second-level cache holds: at least one, at
    most sixteen."""
    import cupy

    cache = cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"]
    return min(16, max(1, -(-4 * cache // nbytes)))


def machine() -> dict[str, str]:
    """Name → value: the GPU, its driver, and the libraries that race on it."""
    import cupy

    from minivgg.bench import cudnn

    about = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "GPU": about["name"].decode(),
        "GPU memory": f"{about['totalGlobalMem'] / 2**30:.0f} GiB",
        "multiprocessors": str(about["multiProcessorCount"]),
        "second-level cache": f"{about['l2CacheSize'] / 2**20:g} MiB",
        "compute capability": f"{about['major']}.{about['minor']}",
        "CUDA driver": str(cupy.cuda.runtime.driverGetVersion()),
        "CUDA": str(cupy.cuda.runtime.runtimeGetVersion()),
        "CuPy": cupy.__version__,
        "cuDNN": cudnn.why_not() or cudnn.version(),
    }


def limits() -> dict[str, float]:
    """{"fp32_gflops", "tf32_gflops", "fp16_gflops", "read_gbs", "copy_gbs"}: the best of eleven samples each.

    Multiply-adds of float32, and products of matrices on the tensor cores by `mma.sync`, in registers; 512 MiB read,
    and 512 MiB copied to as many. An H100's tensor cores do more for `wgmma`, which we do not measure.
    """
    import cupy

    threads = 2048 * processors()
    numbers = cupy.full(2 + threads, 0.5, np.float32)
    a, b = (cupy.ones(_ARRAY // 4, np.float32) for _ in range(2))
    count, rounds = np.int64(_ARRAY // 16), 20_000

    def gflops(name: str, flop: int, share: int) -> float:
        """`flop`: of a thread in one round of one chain; `share`: of all threads, one in so many runs."""
        blocks = threads // _THREADS // share
        chain = kernel(_KERNELS, name)
        seconds = _best(lambda _: chain(blocks, _THREADS, numbers, rounds))
        return flop * _CHAINS * rounds * blocks * _THREADS / seconds / 1e9

    def gbs(name: str, target, nbytes: int) -> float:
        over = kernel(_KERNELS, name)
        blocks = threads // _THREADS
        return nbytes / _best(lambda _: over(blocks, _THREADS, a, target, count)) / 1e9

    return {
        "fp32_gflops": gflops("fma_chains", 2, 1),
        "tf32_gflops": gflops("mma_tf32_chains", 2 * 16 * 8 * 8 // 32, 2),  # half the threads: registers
        "fp16_gflops": gflops("mma_f16_chains", 2 * 16 * 8 * 16 // 32, 2),
        "read_gbs": gbs("read_all", numbers, a.nbytes),
        "copy_gbs": gbs("copy_all", b, 2 * a.nbytes),
    }


def _best(run: Callable[[int], object]) -> float:
    """The fewest seconds that the GPU takes for a run."""
    run(0)
    return min(timed(run, 1)[0] for _ in range(_SAMPLES))


def limits_task() -> Task:
    """A task whose verdict is `limits`."""
    return Task(lambda i: None, limits)


# ---- What the coordinator asks


def check() -> None:
    """Raise BadInput unless there is a GPU to race on."""
    if reason := why_not():
        raise BadInput(f"no race on a GPU: {reason}")


def worker_for(name: str) -> Worker:
    """A process for a contestant."""
    return Worker(cores(), pytorch.MODULES if name.startswith("PyTorch") else (), "minivgg.bench.gpu")


def measure_limits() -> dict[str, float]:
    """`limits` in a process of its own."""
    with worker_for("limits") as worker:
        worker.ask("prepare", limits_task)
        return worker.ask("finish", True)[1]


def least_seconds(flop: int, nbytes: int, limits: dict[str, float], precision: str) -> float:
    """What a task takes at least, by the measured limits, if it does so many FLOP and moves so many bytes."""
    bandwidth = max(rate for name, rate in limits.items() if name.endswith("_gbs"))
    return max(flop / limits[f"{precision}_gflops"], nbytes / bandwidth) / 1e9


def record(race: str, machine: dict, settings: dict, limits: dict, lacks: list[str], rows: list[dict]) -> dict:
    """The record of a race on a GPU (see `minivgg.bench.record`); `lacks` are reasons why a rival is not in it."""
    return {
        "race": race,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "settings": settings,
        "limits": limits,
        "lacks": lacks,
        "contestants": list(dict.fromkeys(name for row in rows for name in row["results"])),
        "rows": rows,
    }


if __name__ == "__main__":
    main(Contestant)
