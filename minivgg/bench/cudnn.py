"""cuDNN's convolutions, algorithm by algorithm, through its C library: the rival that a GPU's convolutions are held to.

CuPy no longer wraps cuDNN, and PyTorch does not say which algorithm it took. cuDNN's own interface of named algorithms
(deprecated since version 9 in favour of graphs, and still there) says both what each takes and what it is called.
Signatures and numbers are those of cudnn_graph.h, cudnn_ops.h and cudnn_cnn.h of cuDNN 9.
"""

import ctypes
import ctypes.util
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minivgg.backends.nvrtc import wheel_folders
from minivgg.ops.conv2d.spec import ConvSpec

DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2}  # cudnnDataType_t
LAYOUTS = {"NCHW": 0, "NHWC": 1}  # cudnnTensorFormat_t
MATH = {"fp32": 3, "tf32": 0, "fp16": 1}  # cudnnMathType_t: FMA alone; the default, which takes TF32; tensor cores
MATH_NAMES = ("default", "tensor cores", "tensor cores with conversion", "FMA")
_CROSS_CORRELATION = 1  # cudnnConvolutionMode_t
_MOST = 32  # results that we have room for: an algorithm may be tried with more than one kind of arithmetic


class Pass(NamedTuple):
    """How cuDNN calls a pass: the name in its functions, which two arrays it takes and which it makes, in its order,
    and its algorithms by number."""

    name: str
    arrays: tuple[str, str, str]
    algorithms: tuple[str, ...]


PASSES = {
    "forward": Pass(
        "Forward",
        ("x", "w", "y"),
        (
            *("IMPLICIT_GEMM", "IMPLICIT_PRECOMP_GEMM", "GEMM", "DIRECT", "FFT", "FFT_TILING", "WINOGRAD"),
            "WINOGRAD_NONFUSED",
        ),
    ),
    "grad_input": Pass(
        "BackwardData",
        ("w", "y", "x"),
        ("ALGO_0", "ALGO_1", "FFT", "FFT_TILING", "WINOGRAD", "WINOGRAD_NONFUSED"),
    ),
    "grad_weight": Pass(
        "BackwardFilter",
        ("x", "y", "w"),
        ("ALGO_0", "ALGO_1", "FFT", "ALGO_3", "WINOGRAD", "WINOGRAD_NONFUSED", "FFT_TILING"),
    ),
}


class Performance(ctypes.Structure):
    """cudnnConvolutionFwdAlgoPerf_t, and its two sisters, which look the same."""

    _fields_ = (
        ("algo", ctypes.c_int),
        ("status", ctypes.c_int),
        ("time", ctypes.c_float),  # milliseconds
        ("memory", ctypes.c_size_t),
        ("determinism", ctypes.c_int),
        ("mathType", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
    )


class CudnnError(Exception):
    """What cuDNN says when it does not do what it was asked."""


@dataclass(frozen=True)
class Found:
    """One algorithm that cuDNN has for a pass: its name and number, seconds by cuDNN's own watch, bytes of workspace,
    kind of arithmetic (an index of `MATH_NAMES`), and whether two runs give the same bits."""

    name: str
    number: int
    seconds: float
    workspace: int
    math: int
    deterministic: bool

    @property
    def winograd(self) -> bool:
        return "WINOGRAD" in self.name


@functools.cache
def library() -> ctypes.CDLL | None:
    """cuDNN 9, of a wheel or of the system; None if there is none. Its parts and cuBLAS, which it looks for by name,
    are loaded first."""
    for folder in wheel_folders("cublas", "cu[0-9]*", "cuda_nvrtc", "cudnn"):
        for pattern in ("libcublasLt.so.*", "libcublas.so.*", "libnvrtc.so.*", "libcudnn_graph.so.9"):
            for path in sorted((folder / "lib").glob(pattern)):
                _load(str(path))
    here = [str(path) for folder in wheel_folders("cudnn") for path in (folder / "lib").glob("libcudnn.so.9")]
    return next(filter(None, map(_load, [*here, "libcudnn.so.9"])), None)


def _load(path: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def why_not() -> str | None:
    """Why there is no cuDNN to race against; None if there is."""
    if library() is None:
        return "cuDNN is not here: pip install nvidia-cudnn-cu12 (or -cu13)"
    return None


def version() -> str:
    """Such as "9.28.0"."""
    major, rest = divmod(_function("cudnnGetVersion", ctypes.c_size_t)(), 10_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _function(name: str, result=ctypes.c_int):
    function = getattr(library(), name)
    function.restype = result
    return function


def _call(name: str, *arguments) -> None:
    """Call a function of cuDNN's. Raises CudnnError unless it succeeds."""
    status = _function(name)(*arguments)
    if status:
        said = _function("cudnnGetErrorString", ctypes.c_char_p)(status) or b"?"
        raise CudnnError(f"{name}: {said.decode()}")


def _made(kind: str) -> ctypes.c_void_p:
    """A new descriptor; all of them live as long as the process, which is one race."""
    descriptor = ctypes.c_void_p()
    _call(f"cudnnCreate{kind}Descriptor", ctypes.byref(descriptor))
    return descriptor


def descriptors(spec: ConvSpec, dtype: str, layout: str) -> dict[str, ctypes.c_void_p]:
    """cuDNN's descriptions of x, w, y and the convolution "conv", whose sums are in float32 (float64 for float64)."""
    made = {"x": _made("Tensor"), "y": _made("Tensor"), "w": _made("Filter"), "conv": _made("Convolution")}
    kind, order = DATA_TYPES[dtype], LAYOUTS[layout]
    _call("cudnnSetTensor4dDescriptor", made["x"], order, kind, *spec.x_shape)
    _call("cudnnSetTensor4dDescriptor", made["y"], order, kind, *spec.y_shape)
    _call("cudnnSetFilter4dDescriptor", made["w"], kind, order, *spec.w_shape)
    sums = DATA_TYPES["float64" if dtype == "float64" else "float32"]
    geometry = (*spec.padding, *spec.stride, 1, 1)
    _call("cudnnSetConvolution2dDescriptor", made["conv"], *geometry, _CROSS_CORRELATION, sums)
    return made


class Convolution:
    """One pass of one geometry by cuDNN, on arrays of CuPy's that lie in memory as `layout` says: x and dy as
    (N, C, H, W) or (N, H, W, C), w as (O, C, KH, KW) or (O, KH, KW, C). `math` is one of `MATH`.

    `arrays`: "x", "w" and "y" (which stands for dy in a gradient), of which the pass overwrites one.
    """

    def __init__(self, spec: ConvSpec, direction: str, arrays: dict, *, layout: str, math: str):
        self.direction = PASSES[direction]
        self.arrays, self.layout = arrays, layout
        self.dtype = np.dtype(arrays["x"].dtype).name
        self.described = descriptors(spec, self.dtype, layout)
        self.handle = _handle()
        scale = ctypes.c_double if self.dtype == "float64" else ctypes.c_float
        self._one, self._zero = scale(1), scale(0)
        self._set_math(MATH[math])

    def _set_math(self, math: int) -> None:
        _call("cudnnSetConvolutionMathType", self.described["conv"], math)

    def _pointers(self, arrays: dict) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(arrays[name].data.ptr) for name in self.direction.arrays]

    def find(self, workspace: int) -> list[Found]:
        """All algorithms that work within `workspace` bytes, the fastest first: cuDNN runs each of them."""
        a, b, result = self._pointers(self.arrays)
        first, second, third = (self.described[name] for name in self.direction.arrays)
        results, count = (Performance * _MOST)(), ctypes.c_int()
        scratch = _scratch(workspace)
        _call(
            f"cudnnFindConvolution{self.direction.name}AlgorithmEx",
            *(self.handle, first, a, second, b, self.described["conv"], third, result),
            *(_MOST, ctypes.byref(count), results),
            *(ctypes.c_void_p(scratch.ptr), ctypes.c_size_t(workspace)),
        )
        return [
            Found(self.direction.algorithms[p.algo], p.algo, p.time / 1e3, p.memory, p.mathType, bool(p.determinism))
            for p in results[: count.value]
            if p.status == 0
        ]

    def by(self, found: Found) -> Callable[[dict], None]:
        """What runs the pass by one algorithm, on the arrays that it is given."""
        scratch = _scratch(found.workspace)
        name = f"cudnnConvolution{self.direction.name}"
        first, second, third = (self.described[name] for name in self.direction.arrays)

        def run(arrays: dict) -> None:
            self._set_math(found.math)
            a, b, result = self._pointers(arrays)
            work = (found.number, ctypes.c_void_p(scratch.ptr), ctypes.c_size_t(found.workspace))
            _call(
                name,
                *(self.handle, ctypes.byref(self._one), first, a, second, b, self.described["conv"], *work),
                *(ctypes.byref(self._zero), third, result),
            )

        return run


def _scratch(size: int):
    """So many bytes on the GPU, by CuPy's allocator; they are given back when nobody holds this object any more."""
    import cupy

    return cupy.cuda.alloc(max(1, size))


@functools.cache
def _handle() -> ctypes.c_void_p:
    """The process's cuDNN, working on the default stream."""
    handle = ctypes.c_void_p()
    _call("cudnnCreate", ctypes.byref(handle))
    return handle
