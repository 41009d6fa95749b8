"""What the races on a GPU need of CuPy and cuDNN, without either: arrays in main memory, kernels in the simulator."""

import ctypes
import time
import types

import numpy as np

from minivgg.backends.array import SimulatedArray, xp_of
from minivgg.bench import cudnn, gpu
from minivgg.bench.race import Failed
from minivgg.ops.conv2d import ConvSpec, naive


def with_addresses(monkeypatch):
    """Have simulated arrays know their address, as CuPy's do."""
    where = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))
    monkeypatch.setattr(SimulatedArray, "data", where, raising=False)
    monkeypatch.setattr(SimulatedArray, "get", lambda self: np.asarray(self), raising=False)


class Event:
    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


class Memory:
    """Of the GPU: 64 MiB, all of it free."""

    def __init__(self, size):
        self.room = np.empty(size, np.uint8)
        self.ptr = self.room.ctypes.data


class Pool:
    def __init__(self):
        self.given_back = 0

    def total_bytes(self):
        return 1000

    def free_all_blocks(self):
        self.given_back += 1


def cupy(cache=1 << 14):
    """A module that can be taken for CuPy, with one GPU of one multiprocessor, and a cache of so many bytes."""
    module, pool = types.ModuleType("cupy"), Pool()

    about = {"name": b"Fake GPU", "multiProcessorCount": 1, "l2CacheSize": cache, "totalGlobalMem": 1 << 30}
    module.__getattr__ = xp_of(np.zeros(0).view(SimulatedArray)).__getattr__
    module.__version__ = "0.0"
    module.get_default_memory_pool = lambda: pool
    module.cuda = types.SimpleNamespace(
        Event=Event,
        get_elapsed_time=lambda start, end: (end.time - start.time) * 1e3,
        alloc=Memory,
        Device=lambda: types.SimpleNamespace(mem_info=(1 << 26, 1 << 26)),
        is_available=lambda: True,
        runtime=types.SimpleNamespace(
            getDeviceProperties=lambda device: about | {"major": 9, "minor": 0},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        ),
    )
    return module


class Cudnn:
    """cuDNN's library: the functions that the race calls, with cuDNN's arguments in cuDNN's order. It has an explicit
    product and Winograd's algorithm, of which the latter is said to be faster, and one that does not work."""

    def __init__(self, wrong=()):
        self.descriptors, self.wrong, self.ran = {}, wrong, []

    def __getattr__(self, name):
        function = _Function(getattr(type(self), f"_{name.removeprefix('cudnn')}", None), self, name)
        setattr(self, name, function)
        return function

    def _GetVersion(self):
        return 92800

    def _GetErrorString(self, status):
        return b"CUDNN_STATUS_NOT_SUPPORTED"

    def _Create(self, handle):
        handle._obj.value = 7
        return 0

    def _make(self, descriptor):
        descriptor._obj.value = len(self.descriptors) + 1
        self.descriptors[descriptor._obj.value] = {}
        return 0

    _CreateTensorDescriptor = _CreateFilterDescriptor = _CreateConvolutionDescriptor = _make

    def _SetTensor4dDescriptor(self, descriptor, layout, kind, *shape):
        self.descriptors[descriptor.value] |= {"layout": layout, "kind": kind, "shape": shape}
        return 0

    def _SetFilter4dDescriptor(self, descriptor, kind, layout, *shape):
        self.descriptors[descriptor.value] |= {"layout": layout, "kind": kind, "shape": shape}
        return 0

    def _SetConvolution2dDescriptor(self, descriptor, *geometry):
        top, left, down, right, dilation_h, dilation_w, mode, kind = geometry
        assert (dilation_h, dilation_w, mode) == (1, 1, 1)
        self.descriptors[descriptor.value] |= {"stride": (down, right), "padding": (top, left), "kind": kind}
        return 0

    def _SetConvolutionMathType(self, descriptor, math):
        self.descriptors[descriptor.value]["math"] = math
        return 0

    def _find(self, handle, first, a, second, b, conv, third, result, room, count, results, workspace, size):
        assert handle.value == 7 and room == len(results) and workspace.value and size.value > 0
        math = self.descriptors[conv.value]["math"]
        for i, (algorithm, status, milliseconds) in enumerate(((5, 0, 1.0), (1, 0, 2.0), (0, 3000, -1.0))):
            results[i].algo, results[i].status, results[i].time = algorithm, status, milliseconds
            results[i].memory, results[i].determinism, results[i].mathType = 64, 1, math
        count._obj.value = 3
        return 0

    _FindConvolutionForwardAlgorithmEx = _find
    _FindConvolutionBackwardDataAlgorithmEx = _find
    _FindConvolutionBackwardFilterAlgorithmEx = _find

    def _run(self, direction, handle, one, first, a, second, b, conv, algorithm, workspace, size, zero, third, result):
        assert (one._obj.value, zero._obj.value) == (1, 0) and size.value == 64
        arrays = {
            name: self._array(descriptor, pointer)
            for name, descriptor, pointer in zip(
                cudnn.PASSES[direction].arrays, (first, second, third), (a, b, result), strict=True
            )
        }
        geometry = self.descriptors[conv.value]
        spec = ConvSpec.of(arrays["x"].shape, arrays["w"].shape, geometry["stride"], geometry["padding"])
        given = {"forward": "xw", "grad_input": "yw", "grad_weight": "yx"}[direction]
        made = getattr(naive, direction)(*(arrays[name].astype(np.float64) for name in given), spec)
        arrays[cudnn.PASSES[direction].arrays[2]][...] = made * (2 if algorithm in self.wrong else 1)
        self.ran.append((direction, algorithm))
        return 0

    def _ConvolutionForward(self, *arguments):
        return self._run("forward", *arguments)

    def _ConvolutionBackwardData(self, *arguments):
        return self._run("grad_input", *arguments)

    def _ConvolutionBackwardFilter(self, *arguments):
        return self._run("grad_weight", *arguments)

    def _array(self, descriptor, pointer):
        """The array behind a pointer, as its descriptor says that it lies."""
        told = self.descriptors[descriptor.value]
        dtype = np.dtype({0: "float32", 1: "float64", 2: "float16"}[told["kind"]])
        size = int(np.prod(told["shape"]))
        flat = np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(pointer.value), dtype)
        N, C, H, W = told["shape"]
        return flat.reshape(N, H, W, C).transpose(0, 3, 1, 2) if told["layout"] else flat.reshape(N, C, H, W)


class _Function:
    """A function of a library: it can be called, and told what it returns."""

    def __init__(self, does, library, name):
        assert does, f"cuDNN has no {name}, as far as this fake knows"
        self.does, self.library, self.restype = does, library, None

    def __call__(self, *arguments):
        return self.does(self.library, *arguments)


class Here:
    """A contestant's worker in this very process."""

    def __init__(self, name="", log=None):
        self.contestant, self.closed = gpu.Contestant(), 0

    def ask(self, method, *arguments):
        try:
            return getattr(self.contestant, method)(*arguments)
        except Exception as error:
            raise Failed(f"{type(error).__name__}: {error}") from error

    def close(self):
        self.closed += 1

    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda self, *exception: None  # noqa: E731
