"""CUDA C on any computer: kernels compiled as C++ and run on NumPy arrays, one thread at a time, under close watch.

    from minivgg import cudasim

    kernel = cudasim.RawKernel(source, "saxpy")                       # the call is CuPy's
    kernel((4,), (256,), (x, y, np.float32(2), np.int32(x.size)))

    with cudasim.checking(racecheck=True, memcheck=True):             # names the two lines, or the line and the array
        kernel(…)
    with cudasim.checking(traffic=True) as launches:                  # sectors and bank conflicts, line by line
        kernel(…)
    print(launches[0].table())

or, from a shell, `python -m minivgg.cudasim saxpy.cu --grid 4 --block 256 x=random:1000 y=zeros:1000 a=2 n=1000`.

What is there: shared memory, static and dynamic; barriers; warp shuffles and votes; atomics; `cp.async`, `ldmatrix` and
`mma.sync` (by the functions of `tensor_cores.h`); `__half`. What is not: `__activemask`, grid-wide synchronisation,
textures, streams, and time: it says what a kernel computes and what it asks of memory, not how fast a GPU would be.

It works by compiling the kernel with g++ or clang++ against `cuda_on_cpu.h`, and knows nothing of the rest of minivgg
but where it keeps what it built.
"""

from minivgg.cudasim.checks import Launch, OrderDependent, Race, Refused, SimulatorError, Traffic, checking
from minivgg.cudasim.compiler import CompileError, why_not
from minivgg.cudasim.kernel import RawKernel, kernels_of

__all__ = [
    "CompileError",
    "Launch",
    "OrderDependent",
    "Race",
    "RawKernel",
    "Refused",
    "SimulatorError",
    "Traffic",
    "checking",
    "kernels_of",
    "why_not",
]
