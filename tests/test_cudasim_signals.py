"""What would kill Python ends the launch instead, with a sentence, and the next launch works.

Large frames, recursion, bad addresses, division by zero, traps, loops without an end, Ctrl-C.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minivgg import cudasim

SOURCE = r"""
#ifndef BYTES
#define BYTES 4
#endif
extern "C" {

// every thread fills its own array, and looks whether it is still as it was when all the others have filled theirs
__global__ void frame(int* y) {
    volatile char mine[BYTES];
    for (int i = 0; i < BYTES; i++) mine[i] = threadIdx.x + i;                  // filled
    __syncthreads();
    int wrong = 0;
    for (int i = 0; i < BYTES; i++) wrong += mine[i] != char(threadIdx.x + i);
    y[threadIdx.x] = wrong;
}

__device__ int deeper(int n, int* y) {
    volatile int some[50];
    some[n % 50] = n;                                                           // called
    return deeper(n + 1, y) + some[n % 50];
}
__global__ void recursion(int* y) { y[0] = deeper(1, y); }

__global__ void divides(int* y, int a, int b) { y[0] = a / b; }                 // divided
__global__ void remainder_of(int* y, int a, int b) { y[0] = a % b; }            // left over
__global__ void points_nowhere(int* y, int at) { *(int*)(size_t)at = 1; }       // nowhere
__global__ void jumps_nowhere(int* y, int at) { ((void (*)())(size_t)at)(); }
__global__ void aborts(int* y) { abort(); }                                     // aborted
__global__ void exits(int* y) { exit(0); }                                      // exited
__global__ void exits_at_once(int* y) { _Exit(0); }                             // exited at once
__global__ void traps(int* y) { __builtin_trap(); }                             // trapped
__global__ void traps_as_cuda_does(int* y) { __trap(); }                        // __trap
__global__ void asserts(int* y) { assert(y[0] == 1); }                          // asserted

__global__ void loops(int* y) { while (((volatile int*)y)[0] == 0) {} }         // looped
__global__ void loops_writing(int* y) { volatile int* p = y; while (!p[0]) p[1]++; }        // wrote
__global__ void loops_at_a_barrier(int* y) { while (((volatile int*)y)[0] == 0) __syncthreads(); }   // met
__global__ void loops_with_atomics(int* y) { while (atomicAdd(y, 0) == 0) {} }     // added
__global__ void loops_in_a_warp(int* y) { while (__any_sync(~0u, 1)) {} }       // voted
__global__ void loops_in_the_library(float* y) { while (y[0] >= 0) y[0] = expf(y[0]) * 1e-9f; }     // calculated

__global__ void fine(int* y) { y[threadIdx.x] = 42; }

}
"""
LINES = {text.rpartition("// ")[2].strip(): f"test.cu:{n}" for n, text in enumerate(SOURCE.split("\n"), 1)}


def launch(name, *args, block=32, options=(), dtype=np.int32, **checks):
    y = np.zeros(1024, dtype)
    with cudasim.checking(**{"seconds": 0.2} | checks):
        cudasim.RawKernel(SOURCE, name, options, file="test.cu")(1, block, (y, *map(np.int32, args)))
    return y


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """After each launch the process's handlers and clock are as before, and a right kernel runs."""
    numbers = [signal.SIGSEGV, signal.SIGINT, signal.SIGVTALRM, signal.SIGABRT]
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert launch("fine")[:32].tolist() == [42] * 32
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


@pytest.mark.parametrize("block", [1, 2, 64])
@pytest.mark.parametrize("kib", [1, 255, 300, 511, 512])
def test_threads_keep_their_locals_apart(kib, block):
    wrong = launch("frame", block=block, options=(f"-DBYTES={kib << 10}",), orders=("forward",), seconds=20)
    assert not wrong.any()


@pytest.mark.parametrize("watched", [{}, {"memcheck": True}])
@pytest.mark.parametrize("kib", [700, 5000, 100000])
def test_more_local_memory_than_cuda_has_is_an_error(kib, watched):
    with pytest.raises(cudasim.SimulatorError, match=r"thread \(0,0,0\) of block .* 512 KiB of local memory") as error:
        launch("frame", options=(f"-DBYTES={kib << 10}",), **watched)
    assert "in test.cu:" in str(error.value)


FAULTS = {
    "recursion": ((), "512 KiB of local memory .* calls within calls"),
    "divides": ((7, 0), "divides an integer by zero, .*, in {divided}"),
    "remainder_of": ((-(2**31), -1), "the least integer by -1; .*, in {left over}"),
    "points_nowhere": ((8,), "uses address 0x8, where there is no memory .* memcheck says .*, in {nowhere}"),
    "jumps_nowhere": ((8,), "uses address 0x8, where there is no memory"),
    "aborts": ((), "called abort, in {aborted}"),
    "exits": ((), "called exit, in {exited}"),
    "exits_at_once": ((), "called _Exit, in {exited at once}"),
    "traps": ((), "put a trap, in {trapped}"),
    "traps_as_cuda_does": ((), "the kernel called __trap, at {__trap}"),
    "asserts": ((), r"assertion failed: y\[0\] == 1, at {asserted}"),
}


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="other processors do not trap")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_sentence(name):
    args, message = FAULTS[name]
    for key, line in LINES.items():
        message = message.replace(f"{{{key}}}", line)
    for _ in range(3):  # as well after a fault as before
        with pytest.raises(cudasim.SimulatorError, match=message) as error:
            launch(name, *args)
        assert "thread (0,0,0) of block (0,0,0)" in str(error.value)


ENDLESS = {
    "loops": "looped",
    "loops_writing": "wrote",
    "loops_at_a_barrier": "met",
    "loops_with_atomics": "added",
    "loops_in_a_warp": "voted",
    "loops_in_the_library": "calculated",
}


@pytest.mark.parametrize("watched", [{}, {"memcheck": True}, {"racecheck": True}])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_loop_without_an_end_is_stopped(name, watched):
    dtype = np.float32 if name == "loops_in_the_library" else np.int32
    for _ in range(20):
        start = time.thread_time()
        with pytest.raises(cudasim.SimulatorError, match=r"no end: a block has computed for 0.2 s") as error:
            launch(name, dtype=dtype, **watched)
        assert time.thread_time() - start < 10
        if "in cuda_on_cpu.h:" not in str(error.value):  # it was in the middle of an atomicAdd, say
            break
    assert LINES[ENDLESS[name]] in str(error.value)


def test_many_short_blocks_may_take_longer():
    source = 'extern "C" __global__ void many(int* y) { for (int i = 0; i < 3000000; i++) ((volatile int*)y)[0]++; }'
    y, start = np.zeros(1, np.int32), time.thread_time()
    with cudasim.checking(seconds=0.15, orders=("forward",)):
        cudasim.RawKernel(source, "many")(600, 1, (y,))
    assert y[0] == 600 * 3000000
    assert time.thread_time() - start > 0.15


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_the_limit_is_a_time(seconds):
    with pytest.raises(cudasim.SimulatorError, match="seconds must be more than 0"), cudasim.checking(seconds=seconds):
        pass


def test_exceptions_do_not_compile():  # nor would they for a GPU
    with pytest.raises(cudasim.CompileError, match=r"test.cu:1.*exception"):
        cudasim.RawKernel('extern "C" __global__ void f(int* y) { throw 1; }', "f", file="test.cu")(
            1, 1, (np.zeros(1, np.int32),)
        )


def test_it_works_in_any_thread_and_in_several():
    def use(name):
        try:
            results.append(launch(name)[0])
        except cudasim.SimulatorError as error:
            results.append(str(error))

    results = []
    threads = [threading.Thread(target=use, args=(name,)) for name in ("fine", "aborts", "fine", "loops", "fine")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(42) == 3
    assert sum("called abort" in str(result) for result in results) == 1
    assert sum("no end" in str(result) for result in results) == 1


def test_faulthandler_keeps_its_own(tmp_path):
    code = f"""
import faulthandler, numpy as np
from minivgg import cudasim
faulthandler.enable()
y = np.zeros(32, np.int32)
kernel = cudasim.RawKernel({SOURCE!r}, "points_nowhere")
for _ in range(2):
    try:
        kernel(1, 32, (y, np.int32(8)))
    except cudasim.SimulatorError:
        print("caught", flush=True)
faulthandler._sigsegv()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "caught\ncaught\n"
    assert done.stderr.startswith("Fatal Python error: Segmentation fault")
    assert done.returncode == -signal.SIGSEGV
    assert faulthandler.is_enabled() in (True, False)


@pytest.mark.parametrize("checks", [{}, {"memcheck": True}])
def test_ctrl_c_ends_a_long_kernel(checks):
    code = f"""
import numpy as np
from minivgg import cudasim
kernel = cudasim.RawKernel({SOURCE!r}, "loops_writing")
y = np.zeros(32, np.int32)
with cudasim.checking(seconds=1000, **{checks!r}):
    kernel.types, kernel._library(True)
    print("ready", flush=True)
    try:
        kernel(1, 32, (y,))
    except KeyboardInterrupt:
        print("interrupted")
kernel = cudasim.RawKernel({SOURCE!r}, "fine")
kernel(1, 32, (y,))
print(y[0])
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n42\n"
    assert process.returncode == 0


# ---- From a shell ----

MISSES = 'extern "C" __global__ void misses(float* y) { y[threadIdx.x * 100000000] = 1; }\n'


def test_memcheck_comes_before_what_it_should_find(tmp_path):
    (tmp_path / "misses.cu").write_text(MISSES)
    command = [sys.executable, "-m", "minivgg.cudasim", str(tmp_path / "misses.cu"), "y=zeros:32"]
    done = subprocess.run([*command, "--memcheck"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "out of bounds: thread (1,0,0) of block (0,0,0) writes 4 bytes of " in done.stderr
    assert done.stderr.endswith("in misses.cu:1\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "where there is no memory of its own: memcheck says which array it missed, in misses.cu:1" in done.stderr


def test_the_shell_stops_what_has_no_end(tmp_path):
    (tmp_path / "test.cu").write_text(SOURCE)
    command = [sys.executable, "-m", "minivgg.cudasim", str(tmp_path / "test.cu"), "--kernel", "loops", "y=zeros:4"]
    done = subprocess.run([*command, "--seconds", "0.2"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"in {LINES['looped']}" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_frames_are_given_back():
    def resident():
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    launch("frame", block=64, options=(f"-DBYTES={500 << 10}",), seconds=20)  # compiled, and the stacks are there
    before = resident()
    for _ in range(2):
        launch("frame", block=256, options=(f"-DBYTES={500 << 10}",), orders=("forward",), seconds=20)
    assert resident() - before < 30 << 20, "256 frames of 500 KiB are 125 MiB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kernels_share_their_threads_stacks():
    """Linux allows a process 65,530 pieces of memory, and guard pages make two for each thread: 32 kernels of 1024."""

    def pieces():
        with open("/proc/self/maps") as file:  # noqa: PTH123
            return sum(1 for _ in file)

    launch("frame", block=1024, orders=("forward",))
    before = pieces()
    for size in 8, 16, 24:
        launch("frame", block=1024, options=(f"-DBYTES={size}",), orders=("forward",))
    assert pieces() - before < 200
