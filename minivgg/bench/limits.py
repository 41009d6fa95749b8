"""What the machine could do at best: multiply-adds a second, and bytes a second. Measured, because no table knows how
many of a cloud machine's cores, and how much of its memory's speed, are ours.
"""

import time
from collections.abc import Callable

import numba
import numpy as np

from minivgg.backends.jit import kernel, prange
from minivgg.backends.simd import LANES, traced

_ROUNDS = 1 << 22
_ARRAY = 256 << 20  # bytes: several times the last cache of most machines
_SAMPLES = 11


def limits() -> dict[str, float]:
    """{"fma_gflops": …, "read_gbs": …, "copy_gbs": …, "triad_gbs": …} with as many threads as Numba has, the best of
    eleven samples each, and "fma_gflops_1", one thread's.

    A fused multiply-add is two FLOP. Read is a reduction of 256 MiB, copy is b ← a, triad c ← a + s·b, and their bytes
    are those that the program asks for, as in McCalpin's STREAM: a cache that reads what it is about to overwrite moves
    more. Takes about three seconds, and 768 MiB.
    """
    threads = numba.get_num_threads()
    a, b, c = (np.ones(_ARRAY // 4, np.float32) for _ in range(3))  # of zeros, all pages would be one
    each = a.size // threads // (4 * LANES) * (4 * LANES)
    shares, sums = a[: threads * each].reshape(threads, each), np.empty((threads, LANES), np.float32)
    return {
        "fma_gflops": _gflops(fma_task()),
        "fma_gflops_1": _gflops(fma_task(1)),
        "read_gbs": shares.nbytes / _best(lambda: _read(shares, sums)) / 1e9,
        "copy_gbs": 2 * a.nbytes / _best(lambda: _copy(a, b)) / 1e9,
        "triad_gbs": 3 * a.nbytes / _best(lambda: _triad(a, b, np.float32(3), c)) / 1e9,
    }


def _best(run) -> float:
    """The fewest seconds that `run` takes."""
    run()
    times = []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


# ---- Arithmetic: independent chains of multiply-adds that never leave the registers. An instruction takes about four
# cycles and two start in each, so that eight chains keep the multipliers busy, if each fits one register; where one
# takes two or four, six chains do, and twelve would not fit the register file. The better of both counts.


def _chains(code, numbers, rounds, chains):
    """`rounds` times v ← v·a + b in each of `chains` vectors; numbers: a, b, and room for the sum of all v."""
    a, b = numbers.load(0), numbers.load(LANES)
    vectors = [code.variable(b * i) for i in range(chains)]
    for _ in code.loop(rounds):
        for v in vectors:
            v.value = v.value * a + b
    numbers.store(2 * LANES, sum((v.value for v in vectors[1:]), start=vectors[0].value))


@traced
def _chains_6(code, numbers, rounds):
    _chains(code, numbers, rounds, 6)


@traced
def _chains_12(code, numbers, rounds):
    _chains(code, numbers, rounds, 12)


@kernel
def _run_6(numbers, rounds):
    for t in prange(len(numbers)):
        _chains_6(numbers[t], rounds)


@kernel
def _run_12(numbers, rounds):
    for t in prange(len(numbers)):
        _chains_12(numbers[t], rounds)


def fma_task(threads: int | None = None) -> Callable[[], float]:
    """A burst of multiply-adds on `threads` threads (None: all that Numba has), some 10 ms, which returns its FLOP.

    To be raced beside other tasks: what a shared machine can do at best differs from minute to minute.
    """
    # a = b = ½: so v goes to one, and is never a denormal
    numbers = np.full((threads or numba.get_num_threads(), 4 * LANES), 0.5, np.float32)
    kernels = {6: _run_6, 12: _run_12}
    chains = max(kernels, key=lambda count: count / _best(lambda: kernels[count](numbers, _ROUNDS)))

    def burst():
        kernels[chains](numbers, _ROUNDS)
        return 2.0 * len(numbers) * _ROUNDS * chains * LANES

    return burst


def _gflops(burst) -> float:
    return burst() / _best(burst) / 1e9


# ---- Memory


@traced
def _sum_up(code, a, sums, blocks):
    """The sum of blocks · 4 · 16 numbers, by lanes: four chains, so that none waits for its last addition."""
    totals = [code.variable(a.zero()) for _ in range(4)]
    for i in code.loop(blocks):
        for j, total in enumerate(totals):
            total.value = total.value + a.load(i * (4 * LANES) + j * LANES)
    sums.store(0, totals[0].value + totals[1].value + totals[2].value + totals[3].value)


@kernel
def _read(shares, sums):
    for t in prange(len(shares)):
        _sum_up(shares[t], sums[t], shares.shape[1] // (4 * LANES))


@kernel
def _copy(a, b):
    for i in prange(a.size):
        b[i] = a[i]


@kernel
def _triad(a, b, s, c):
    for i in prange(a.size):
        c[i] = a[i] + s * b[i]
