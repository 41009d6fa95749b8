"""CUDA graphs: what a function launches on a GPU, recorded once, and then launched as a whole, as often as one likes.

A launch from Python takes the host some microseconds, and a training step of VGG-16 has about 190 of them; a graph is
a single one. It repeats what was recorded to the last argument: the same kernels on the same memory, with the same
numbers.

Not everything can be part of a graph. What CuPy refuses to record (cuBLAS, as of CuPy 14: github.com/cupy/cupy/issues/
6290, and its tests/cupy_tests/cuda_tests/test_graph.py), and what the host says anew each time (a learning rate, the
number of a dropout mask), is given to `between`. There a recording is cut: it is a list of graphs with calls in
between, and a replay goes through that list.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar

import numpy as np

from minivgg.backends.array import device_of, on_gpu, xp_of

_recording: ContextVar["Recording | None"] = ContextVar("recording", default=None)


def recording() -> bool:
    """Whether launches are being recorded, and not done."""
    return _recording.get() is not None


def between(call: Callable, *arrays) -> None:
    """`call(*arrays)`, and nothing else unless launches are being recorded.

    In a recording, nothing is called yet: it will be in each replay, after what was recorded before and before what is
    recorded after it. Its results must go into `arrays`, or into what outlives the recording; what it finds elsewhere,
    it finds as it is then.
    """
    if (current := _recording.get()) is None:
        call(*arrays)
    else:
        current.cut(call, arrays)


class DeviceScalar:
    """A number that the host sets anew in each step, and that kernels on a GPU read from memory: so their launches are
    the same in all steps, and can be recorded. To kernels of the CPU it is an argument like any other."""

    def __init__(self):
        self._value, self._cells = None, {}

    def set(self, value: float) -> None:
        """Give it a value, from the place of this call on. Nobody waits: on a GPU it is a launch, in its order."""
        self._value = value
        for cell in self._cells.values():
            cell.fill(value)

    def of(self, x, dtype=None):
        """What a kernel on `x` takes: a number of the dtype, by default x's, or on a GPU an array there of one."""
        dtype = np.dtype(dtype or x.dtype)
        if not on_gpu(x):
            return dtype.type(self._value)
        if (key := (device_of(x), dtype)) not in self._cells:
            cell = self._cells[key] = xp_of(x).empty(1, dtype)
            between(lambda: cell.fill(self._value))
        return self._cells[key]


class Recording:
    """What `work()` launches on the current GPU, to be launched again by `replay()`. `result` is what it returned:
    arrays that hold what the latest replay computed, and nothing before the first.

    While it records, nothing runs on the GPU, and everything must have run before: kernels are compiled by their first
    launch. Graphs know addresses, so whatever `work` allocates comes from a pool of its own, reserved as long as the
    recording lives; within it, memory is used again as it is without a graph. CuPy captures in CUDA's "relaxed" mode,
    so that this pool may grow on the way (see the source of `cupy.cuda.Stream.begin_capture`).

    Arrays from outside must stay where they are as long as the recording lives; what `work` itself refers to, lives as
    long. Raises whatever `work` or CUDA raises; then nothing has been recorded, and the GPU is as it was.
    """

    def __init__(self, work: Callable):
        cupy = sys.modules["cupy"]
        self._work, self._parts = work, []
        cupy.get_default_memory_pool().free_all_blocks()  # what nobody uses there is lost to another pool
        self._pool = cupy.cuda.MemoryPool()
        self._stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        token = _recording.set(self)
        try:
            with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
                self._stream.begin_capture()
                try:
                    self.result = work()
                except BaseException:
                    with suppress(Exception):  # a capture that CUDA has given up is an error, and yet it is over
                        self._stream.end_capture()
                    raise
                self._end_part()
        finally:
            _recording.reset(token)

    def replay(self) -> None:
        """Run it again, on the current stream, where everything that it has to wait for should be, too."""
        for part in self._parts:
            part()

    def cut(self, call: Callable, arrays: tuple) -> None:
        """End a graph, note a call for the replays, and begin the next graph. See `between`."""
        self._end_part()
        borrowed = tuple(map(self._borrowed, arrays))
        self._parts.append(lambda: call(*borrowed))
        self._stream.begin_capture()

    def _end_part(self) -> None:
        self._parts.append(self._stream.end_capture().launch)

    def _borrowed(self, array):
        """`array` without a claim on its memory: when the last who has one is gone, the pool lends it to others, as the
        graphs expect it to. An array that is not on the GPU stays what it is."""
        if device_of(array) != "gpu":
            return array
        cuda = sys.modules["cupy"].cuda
        memory = cuda.UnownedMemory(array.data.ptr, array.nbytes, self._pool, array.device.id)
        return type(array)(array.shape, array.dtype, cuda.MemoryPointer(memory, 0), array.strides)
