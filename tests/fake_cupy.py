"""As much of CuPy as a training step needs, without a GPU: streams that record, graphs that replay, pools of memory.

What CuPy would launch, this does at once, in main memory; kernels run in the simulator. While a stream is captured, it
does nothing and notes it down instead, with addresses, not arrays: whoever loses an array there finds another's numbers
in its place, as on a GPU. What CuPy refuses during a capture is refused, with its kind of error: cuBLAS, reading a
number, and, as a courtesy of this one, compiling a kernel. It is no proof of what CUDA itself would say.
"""

import contextlib
import ctypes
import functools
import types

import numpy as np

from minivgg import cudasim
from minivgg.backends.array import SimulatedArray


class Pool:
    """Memory that is never given back, and lent again as soon as nobody holds it. A pool that dies leaves rubbish."""

    everything = []  # noqa: RUF012 (so that no address ever becomes somebody else's)

    def __init__(self):
        self.free, self.all, self.given_back = {}, [], 0

    def malloc(self, size):
        buffers = self.free.setdefault(size, [])
        if not buffers:
            buffers.append(np.full(size + 8, 0xFF, np.uint8))
            self.all.append(buffers[-1])
            self.everything.append(buffers[-1])
        return MemoryPointer(_Lent(self, buffers.pop(), size), 0)

    def free_all_blocks(self):
        self.given_back += 1

    def __del__(self):
        for buffer in self.all:
            buffer.fill(0xFF)


class _Lent:
    def __init__(self, pool, buffer, size):
        self.pool, self.buffer, self.size, self.ptr = pool, buffer, size, buffer.ctypes.data

    def __del__(self):
        self.pool.free[self.size].append(self.buffer)


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        assert device_id == 0  # to look for it would be a call that a capture does not allow
        self.ptr, self.size, self.owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset


class Stream:
    current = None  # but for those in `with`, the default stream
    capturing = 0  # streams

    def __init__(self, non_blocking=False):
        self.non_blocking, self.launches, self.broken = non_blocking, None, False

    def __enter__(self):
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *_):
        Stream.current = self.before

    def begin_capture(self):
        assert Stream.current is self and self.non_blocking and self.launches is None
        self.launches = []
        Stream.capturing += 1

    def end_capture(self):
        assert self.launches is not None
        launches, self.launches = self.launches, None
        Stream.capturing -= 1
        if self.broken:
            self.broken = False
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(launches)


def _capturing():
    return Stream.current is not None and Stream.current.launches is not None


class Graph:
    replays = 0

    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        assert not _capturing()
        Graph.replays += 1
        for launch in self.launches:
            launch()


def _do(launch):
    """On the GPU: now, or when what is captured is replayed."""
    if _capturing():
        Stream.current.launches.append(launch)
    else:
        launch()


def _raw(a):
    """What is on the GPU, by its address and with no hold on it; of others, they themselves."""
    if not isinstance(a, Array):
        assert not isinstance(a, np.ndarray) or a.ndim == 0, "NumPy's arrays and CuPy's do not mix"
        return [_raw(x) for x in a] if isinstance(a, list) else a
    begin, end = np.lib.array_utils.byte_bounds(a)  # of a part of an array, with gaps
    memory = (ctypes.c_char * max(end - begin, 1)).from_address(begin)
    return np.ndarray(a.shape, a.dtype, memory, 0, a.strides)


def _compute(function, *arguments, out=None):
    """function(*arguments) as a new array on the GPU, or into `out`."""
    arguments = [_raw(a) for a in arguments]
    with np.errstate(all="ignore"):
        like = np.asarray(function(*arguments))  # in a capture for its shape alone
    out = Array(like.shape, like.dtype, None, like.strides) if out is None else out
    target = _raw(out)

    def launch():
        with np.errstate(all="ignore"):
            target[...] = function(*arguments)

    _do(launch)
    return out


class Array(SimulatedArray):
    __module__ = "cupy"
    allocator = default = Pool()  # of arrays made now

    def __new__(cls, shape, dtype=float, memptr=None, strides=None):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memptr = memptr or Array.allocator.malloc(size)
        room = (ctypes.c_char * (size or 1)).from_address(memptr.ptr)
        array = super().__new__(cls, shape, dtype, room, 0, strides)
        array.memory = memptr.mem
        return array

    def __array_finalize__(self, source):
        self.memory = getattr(source, "memory", None)  # views hold it as well

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self):
        return types.SimpleNamespace(id=0)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        (out,) = out or (None,)
        return _compute(functools.partial(getattr(ufunc, method), **options), *inputs, out=out)

    def __setitem__(self, key, value):
        _compute(np.asarray if np.ndim(value) else lambda v: v, value, out=self[key])

    def reshape(self, *shape):
        view = super().reshape(*shape)
        return view if np.may_share_memory(view, self) else _compute(lambda a: a.reshape(*shape), self)

    def fill(self, value):
        _compute(lambda: value, out=self)

    def get(self):
        if _capturing():
            Stream.current.broken = True
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        return _raw(self).copy("K")

    def _number(self, *_):
        if _capturing():
            raise RuntimeError("the device-to-host copy needs a stream that waits, and this one is capturing")
        return _raw(self).item()

    item = _number

    def __float__(self):
        return float(self._number())

    def __int__(self):
        return int(self._number())

    def __bool__(self):
        return bool(self._number())


def _method(name):
    def method(self, *arguments, **options):
        return _compute(lambda a: getattr(a, name)(*arguments, **options), self)

    return method


for _name in ("argmax", "astype", "copy", "max", "mean", "sum", "all"):
    setattr(Array, _name, _method(_name))


def _asarray(a):
    array = Array(a.shape, a.dtype)
    _raw(array)[...] = a  # from main memory: a capture does not notice it
    return array


def _ascontiguousarray(a, dtype=None):
    same = a.flags.c_contiguous and dtype in (None, a.dtype)
    return a if same else _compute(lambda x: np.ascontiguousarray(x, dtype), a)


def _matmul(a, b, out=None):
    if _capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    return _compute(np.matmul, a, b, out=out)


@contextlib.contextmanager
def _using_allocator(malloc):
    before, Array.allocator = Array.allocator, malloc.__self__
    try:
        yield
    finally:
        Array.allocator = before


class _RawKernel:
    compiled = set()  # noqa: RUF012 (of all kernels)

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        assert self.kernel in self.compiled or not _capturing(), "compiled in a capture"
        self.compiled.add(self.kernel)
        simulated, arguments = self.kernel._simulated, tuple(map(_raw, arguments))

        def launch():
            with cudasim.checking(orders=("forward",)):
                simulated(grid, block, arguments, shared_mem=shared_mem)

        _do(launch)


def cupy():
    """A module that can be taken for CuPy. Its kernels are made by `compiled`, for `cuda.Kernel._compiled`."""
    module = types.ModuleType("cupy")
    own = {"asarray": _asarray, "ascontiguousarray": _ascontiguousarray, "empty": Array, "matmul": _matmul}

    def of_numpy(name):
        function = getattr(np, name)
        return lambda *arguments, **options: _compute(functools.partial(function, **options), *arguments)

    module.__dict__.update(own, ndarray=Array, split=np.split, __getattr__=of_numpy)
    for name in ("empty_like", "zeros", "full", "zeros_like"):  # what they take is no array's content
        module.__dict__[name] = functools.partial(_made, getattr(np, name))
    module.get_default_memory_pool = lambda: Array.default
    module.cuda = types.SimpleNamespace(
        MemoryPointer=MemoryPointer,
        MemoryPool=Pool,
        Stream=Stream,
        UnownedMemory=UnownedMemory,
        is_available=lambda: True,
        using_allocator=_using_allocator,
    )
    return module


def _made(function, *arguments, **options):
    arguments = tuple(_raw(a) if isinstance(a, Array) else a for a in arguments)
    return _compute(lambda: function(*arguments, **options))


compiled = property(_RawKernel)
