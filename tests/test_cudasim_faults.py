"""What is wrong in a kernel is found, and named: races, missing and divergent barriers, deadlocks, overruns, masks."""

import numpy as np
import pytest

from minivgg import cudasim

# Each kernel is right, or wrong in one way, which -D switches on; the lines that a message must name carry a mark.
SOURCE = r"""
extern "C" {

__global__ void neighbours(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];                     // written
#ifndef NO_BARRIER
    __syncthreads();
#endif
    float left = tile[(threadIdx.x + 63) % 64];             // read
#ifdef AGAIN
    tile[threadIdx.x] = left;                               // written again
    __syncthreads();
    left = tile[threadIdx.x];
#endif
    y[threadIdx.x] = left;
}

__global__ void within_a_warp(const float* x, float* y) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];                     // put
#ifndef NO_SYNCWARP
    __syncwarp();
#endif
    y[threadIdx.x] = tile[31 - threadIdx.x];                // got
}

__global__ void across_blocks(float* y) {
    y[threadIdx.x + BLOCKS_APART * blockIdx.x] = blockIdx.x;    // everybody
}

__global__ void sums(const int* x, int* y) {
#ifdef NO_ATOMIC
    y[0] += x[threadIdx.x];                                 // added
#else
    atomicAdd(y, x[threadIdx.x]);
#endif
}

__global__ void early_return(float* y) {
    if (threadIdx.x >= 20) return;
    __syncthreads();                                        // waited for
    y[threadIdx.x] = 1;
}

__global__ void two_places(float* y) {
    if (threadIdx.x < 32) __syncthreads();                  // first half
    else __syncthreads();                                   // second half
    y[threadIdx.x] = 1;
}

__global__ void deadlock(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);    // wants all 32
    else __syncthreads();
}

__global__ void not_in_mask(int* y) { y[threadIdx.x] = __shfl_sync(0xfu, 1, 0); }     // mask of four

__global__ void lane_left_out(int* y) {
    if (threadIdx.x < 4) y[threadIdx.x] = __shfl_sync(0xfu, 1, 7);       // lane seven
}

__global__ void returned_lane(int* y) {
    if (threadIdx.x == 5) return;
    y[threadIdx.x] = __any_sync(~0u, 1);                    // all but one
}

__global__ void asserts(const int* x) { assert(x[threadIdx.x] >= 0); }   // asserted

__global__ void past_the_end(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = x[i];                                // one too many
}

__global__ void before_the_start(const float* x, float* y) { y[threadIdx.x] = x[int(threadIdx.x) - 1]; }  // minus one

__global__ void past_a_tile(float* y) {
    __shared__ float first[32], second[32];
    first[threadIdx.x + 1] = 1;                             // thirty-two
    second[threadIdx.x] = 2;
    y[threadIdx.x] = second[threadIdx.x];
}

__global__ void past_dynamic(float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = 1;                                  // asked for too little
    y[threadIdx.x] = 1;
}

__global__ void copies_out_of_range(const float* x, float* y) {
    __shared__ float tile[32];
    cp_async<4>(&tile[threadIdx.x], x + threadIdx.x + 1);   // copied from too far
    cp_async_commit();
    cp_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}

__global__ void copies_askew(const float* x, float* y) {
    __shared__ __align__(16) float tile[128];
    cp_async<16>(&tile[4 * threadIdx.x], x + 4 * threadIdx.x + 2);    // begins in the middle
    cp_async_commit();
    cp_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}

}
"""


def line(mark):
    return next(f"test.cu:{n}" for n, text in enumerate(SOURCE.split("\n"), 1) if text.endswith(f"// {mark}"))


def launch(name, block, *args, grid=1, shared_mem=0, options=(), **checks):
    with cudasim.checking(**checks):
        cudasim.RawKernel(SOURCE, name, ("-DBLOCKS_APART=0", *options), file="test.cu")(
            grid, block, args, shared_mem=shared_mem
        )


def floats(n):
    return np.arange(n, dtype=np.float32)


RIGHT = {
    "a barrier between": ("neighbours", 64, floats(64), floats(64)),
    "a warp meets": ("within_a_warp", 32, floats(32), floats(32)),
    "atomics": ("sums", 64, np.ones(64, np.int32), np.zeros(1, np.int32)),
    "within bounds": ("past_the_end", 32, floats(33), floats(33), np.int32(31)),
}


@pytest.mark.parametrize("arguments", RIGHT.values(), ids=RIGHT)
def test_nothing_is_found_in_what_is_right(arguments):
    launch(*arguments, orders=("forward", "reverse", 1, 2, 3))
    launch(*arguments, racecheck=True, memcheck=True)


WRONG_IN_ANOTHER_ORDER = {
    "no barrier": (("neighbours", 64, floats(64), floats(64)), {"options": ("-DNO_BARRIER",)}, "y["),
    "a barrier too few": (("neighbours", 64, floats(64), floats(64)), {"options": ("-DAGAIN",)}, "y["),
    "no __syncwarp": (("within_a_warp", 32, floats(32), floats(32)), {"options": ("-DNO_SYNCWARP",)}, "y["),
    "blocks write to one place": (("across_blocks", 4, floats(4)), {"grid": 3}, "y[0] is 2.0 with the threads in forw"),
}


@pytest.mark.parametrize(("arguments", "how", "message"), WRONG_IN_ANOTHER_ORDER.values(), ids=WRONG_IN_ANOTHER_ORDER)
def test_another_order_of_threads_gives_another_answer(arguments, how, message):
    with pytest.raises(cudasim.OrderDependent) as caught:
        launch(*arguments, **how)
    assert message in str(caught.value)
    assert "a barrier is missing, or threads write to one place" in str(caught.value)


RACES = {
    "no barrier": (("neighbours", 64, floats(64), floats(64)), "-DNO_BARRIER", ("shared tile[", "written", "read")),
    "a barrier too few": (("neighbours", 64, floats(64), floats(64)), "-DAGAIN", ("read", "written again")),
    "no __syncwarp": (("within_a_warp", 32, floats(32), floats(32)), "-DNO_SYNCWARP", ("tile[", "put", "got")),
    "no atomic": (("sums", 64, np.ones(64, np.int32), np.zeros(1, np.int32)), "-DNO_ATOMIC", ("y[0]", "added")),
}


@pytest.mark.parametrize(("arguments", "option", "words"), RACES.values(), ids=RACES)
def test_races_are_found_in_any_order_and_both_lines_named(arguments, option, words):
    place, *marks = words if "[" in words[0] else ("", *words)
    for order in ("forward", "reverse", 1):
        with pytest.raises(cudasim.Race) as caught:
            launch(*arguments, options=(option,), racecheck=True, orders=(order,))
        for expected in (place, *map(line, marks)):
            assert expected in str(caught.value)


def test_a_race_between_blocks_names_them():
    with pytest.raises(cudasim.Race) as caught:
        launch("across_blocks", 4, floats(4), grid=2, racecheck=True)
    place = line("everybody")
    assert str(caught.value) == (
        f"across_blocks: race: y[0]: thread (0,0,0) of block (0,0,0) writes at {place}, "
        f"thread (0,0,0) of block (1,0,0) writes at {place}, and nothing orders them"
    )


STUCK = {
    "threads return before a barrier": (("early_return", 32, floats(32)), "divergent barrier", ["waited for"]),
    "barriers in two branches": (("two_places", 64, floats(64)), "divergent barriers", ["first half", "second half"]),
    "a warp waits for lanes at a barrier": (("deadlock", 32, floats(32)), "deadlock", ["wants all 32"]),
    "the caller is not in the mask": (
        ("not_in_mask", 32, np.zeros(32, np.int32)),
        "leaves out the lane",
        ["mask of four"],
    ),
    "a shuffle from outside the mask": (("lane_left_out", 32, np.zeros(32, np.int32)), "leaves out", ["lane seven"]),
    "a lane of the mask is gone": (
        ("returned_lane", 32, np.zeros(32, np.int32)),
        "a lane that has returned",
        ["all but one"],
    ),
    "a failed assertion": (
        ("asserts", 2, np.array([1, -1], np.int32)),
        "assertion failed: x[threadIdx.x]",
        ["asserted"],
    ),
    "sixteen bytes that begin elsewhere": (
        ("copies_askew", 2, floats(16), floats(2)),
        "cp_async<16> from or to an address that is no multiple of 16",
        ["begins in the middle"],
    ),
}


@pytest.mark.parametrize(("arguments", "words", "marks"), STUCK.values(), ids=STUCK)
def test_what_would_hang_a_gpu_is_told(arguments, words, marks):
    with pytest.raises(cudasim.SimulatorError) as caught:
        launch(*arguments)
    for expected in (words, *map(line, marks)):
        assert expected in str(caught.value)
    launch("neighbours", 64, floats(64), floats(64))  # and nothing is left of it


OVERRUNS = {
    "past an array": (
        ("past_the_end", 32, floats(30), floats(32), np.int32(30)),
        {},
        "reads 4 bytes of x[30], which has 30 elements",
        "one too many",
    ),
    "past an output": (
        ("past_the_end", 32, floats(32), floats(30), np.int32(30)),
        {},
        "writes 4 bytes of y[30], which has 30 elements",
        "one too many",
    ),
    "before an array": (
        ("before_the_start", 4, floats(4), floats(4)),
        {},
        "thread (0,0,0) of block (0,0,0) reads 4 bytes of x[-1]",
        "minus one",
    ),
    "past a shared array": (
        ("past_a_tile", 32, floats(32)),
        {},
        "thread (31,0,0) of block (0,0,0) writes 4 bytes of shared first[32], which has 32",
        "thirty-two",
    ),
    "past dynamic shared memory": (
        ("past_dynamic", 32, floats(32)),
        {"shared_mem": 100},
        "dynamic shared memory[25], which has 25 elements",
        "asked for too little",
    ),
    "an asynchronous copy": (
        ("copies_out_of_range", 32, floats(32), floats(32)),
        {},
        "reads 4 bytes of x[32], which has 32",
        "copied from too far",
    ),
}


@pytest.mark.parametrize(("arguments", "how", "words", "mark"), OVERRUNS.values(), ids=OVERRUNS)
def test_overruns_are_found_before_they_happen(arguments, how, words, mark):
    for checks in ({"memcheck": True}, {"racecheck": True}):
        with pytest.raises(cudasim.SimulatorError) as caught:
            launch(*arguments, **how, **checks)
        assert "out of bounds" in str(caught.value)
        assert words in str(caught.value)
        assert line(mark) in str(caught.value)


def test_behind_the_last_shared_array_nothing_is_ours_to_write():
    source = """
    extern "C" __global__ void past(float* y) {
        __shared__ float only[32];
        only[threadIdx.x + 1] = 1;
        y[threadIdx.x] = only[threadIdx.x];
    }"""
    with (
        cudasim.checking(memcheck=True),
        pytest.raises(cudasim.SimulatorError, match=r"writes 4 bytes of shared only\[32\], which has 32"),
    ):
        cudasim.RawKernel(source, "past")(1, 32, (floats(32),))


# ---- Traffic ----

TRANSPOSE = r"""
extern "C" __global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][32 + PAD];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void straight(const float* x, float* y) {
    y[threadIdx.x * 32 + threadIdx.y] = x[threadIdx.y * 32 + threadIdx.x];
}
extern "C" __global__ void fours(const float4* x, float4* y) {
    __shared__ float4 tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x];
}
"""


def traffic(name, block, options=("-DPAD=0",)):
    x, y = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32)
    with cudasim.checking(traffic=True) as launches:
        cudasim.RawKernel(TRANSPOSE, name, options, file="test.cu")(1, block, (x, y))
    assert name == "fours" or (y == x.T).all()
    (launched,) = launches
    return launched, {(t.memory, t.access): (t.requests, t.transactions, t.fewest) for t in launched.traffic}


def test_a_column_of_a_matrix_costs_a_sector_an_element():
    _, counts = traffic("straight", (32, 32))
    assert counts["global", "read"] == (32, 128, 128)  # a warp reads 128 bytes side by side: 4 sectors of 32
    assert counts["global", "write"] == (32, 1024, 128)


@pytest.mark.parametrize(("pad", "passes"), [(0, 1024), (1, 32)])
def test_a_column_of_shared_memory_is_one_bank_unless_padded(pad, passes):
    _, counts = traffic("transpose", (32, 32), (f"-DPAD={pad}",))
    assert counts["shared", "read"] == (32, passes, 32)
    assert counts["shared", "write"] == (32, 32, 32)
    assert counts["global", "write"] == (32, 128, 128)


def test_sixteen_bytes_a_lane_take_four_passes_at_best():
    _, counts = traffic("fours", 32)
    assert counts["shared", "write"] == (1, 4, 4)
    assert counts["global", "read"] == (1, 16, 16)


def test_the_table_has_the_most_wasteful_line_on_top():
    launched, _ = traffic("transpose", (32, 32))
    rows = launched.table().splitlines()
    assert rows[0].split() == [
        "line",
        "memory",
        "access",
        "bytes",
        "a",
        "lane",
        "requests",
        "transactions",
        "a",
        "request",
        "at",
        "best",
    ]
    assert rows[1].split() == ["test.cu:6", "shared", "read", "4", "32", "1,024", "32.0", "passes", "1.0"]
    assert len({len(row) for row in rows[1:] if row.endswith("1.0")}) == 1
