"""The simulator computes what a GPU would: indices, shared memory, warps, atomics, halves, tensor cores, copies."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivgg import cudasim

SOURCE = r"""
extern "C" {

__global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

__global__ void who(int* all) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    all[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

__global__ void reverse_static(const double* x, double* y) {
    __shared__ double tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void reverse_dynamic(const double* x, double* y) {
    extern __shared__ double tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void unwritten(float* y) {
    __shared__ float tile[32];
    y[threadIdx.x] = tile[threadIdx.x];
}

__global__ void warps(const int* x, int* y, int width) {
    const int v = x[threadIdx.x], n = blockDim.x, i = threadIdx.x;
    y[i] = __shfl_sync(~0u, v, 3, width);
    y[n + i] = __shfl_up_sync(~0u, v, 2, width);
    y[2 * n + i] = __shfl_down_sync(~0u, v, 2, width);
    y[3 * n + i] = __shfl_xor_sync(~0u, v, 5, width);
    y[4 * n + i] = __ballot_sync(~0u, v > 0);
    y[5 * n + i] = __any_sync(~0u, v > 98) + 2 * __all_sync(~0u, v > -100);
}

__global__ void halves_of_a_warp(int* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, int(threadIdx.x), 7);
    else y[threadIdx.x] = __shfl_sync(0xffff0000u, int(threadIdx.x), 23);
}

__global__ void votes(const int* x, int* y) {
    y[3 * threadIdx.x] = __syncthreads_count(x[threadIdx.x] > 0);
    y[3 * threadIdx.x + 1] = __syncthreads_and(x[threadIdx.x] > 0);
    y[3 * threadIdx.x + 2] = __syncthreads_or(x[threadIdx.x] > 0);
}

__global__ void atomics(const int* x, int* y) {
    const int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(&y[0], v), atomicSub(&y[1], v), atomicMax(&y[2], v), atomicMin(&y[3], v);
    atomicAnd(&y[4], v), atomicOr(&y[5], v);
    for (int old = y[6], seen; (seen = atomicCAS(&y[6], old, old + 1)) != old; old = seen) {}
}

__global__ void to_half(const float* x, unsigned short* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    __half h = __float2half(x[i]);
    if (i < n) memcpy(&y[i], &h, 2);
}

__global__ void from_half(const __half* x, float* y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __half2float(x[i]);
}

__global__ void multiply_tf32(const float* a, const float* b, float* d) {
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
    unsigned fa[4], fb[2];
    for (int i = 0; i < 4; i++) fa[i] = to_tf32(a[(group + 8 * (i % 2)) * 8 + member + 4 * (i / 2)]);
    for (int i = 0; i < 2; i++) fb[i] = to_tf32(b[(member + 4 * i) * 8 + group]);
    float fd[4] = {0, 0, 0, 0};
    mma_tf32(fd, fa, fb);
    for (int i = 0; i < 4; i++) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = fd[i];
}

__global__ void multiply_f16(const __half* a, const __half* b, float* d) {
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
    unsigned fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
        __half two[2] = {a[(group + 8 * (i % 2)) * 16 + 2 * member + 8 * (i / 2)],
                         a[(group + 8 * (i % 2)) * 16 + 2 * member + 8 * (i / 2) + 1]};
        memcpy(&fa[i], two, 4);
    }
    for (int i = 0; i < 2; i++) {
        __half two[2] = {b[(2 * member + 8 * i) * 8 + group], b[(2 * member + 8 * i + 1) * 8 + group]};
        memcpy(&fb[i], two, 4);
    }
    float fd[4] = {1, 1, 1, 1};
    mma_f16(fd, fa, fb);
    for (int i = 0; i < 4; i++) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = fd[i];
}

__global__ void load_matrices(const uint4* x, unsigned* y) {
    __shared__ uint4 rows[32];
    rows[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    unsigned four[2][4], two[2][2];
    ldmatrix<false>(four[0], rows + threadIdx.x), ldmatrix<true>(four[1], rows + threadIdx.x);
    ldmatrix<false>(two[0], rows + threadIdx.x % 16), ldmatrix<true>(two[1], rows + threadIdx.x % 16);
    for (int i = 0; i < 8; i++) y[i * 32 + threadIdx.x] = four[i / 4][i % 4];
    for (int i = 0; i < 4; i++) y[(8 + i) * 32 + threadIdx.x] = two[i / 2][i % 2];
}

__global__ void landing(const float* x, float* y) {
    __shared__ float tile[2][32];
    for (int i = 0; i < 2; i++) {
        cp_async<4>(&tile[i][threadIdx.x], x + 32 * i + threadIdx.x);
        cp_async_commit();
    }
    for (int left = 2; left >= 0; left--) {
        if (left == 1) cp_async_wait<1>();
        if (left == 0) cp_async_wait<0>();
        __syncthreads();
        for (int i = 0; i < 2; i++) y[((2 - left) * 2 + i) * 32 + threadIdx.x] = tile[i][31 - threadIdx.x];
        __syncthreads();
    }
}

__global__ void vectors(const float4* x, float* y) {
    const float4 v = x[threadIdx.x];
    y[threadIdx.x] = v.x + 2 * v.y + 3 * v.z + 4 * v.w;
}

__global__ void arithmetic(unsigned a, unsigned b, unsigned* y) {
    y[0] = __umulhi(a, b), y[1] = __popc(a), y[2] = __clz(b), y[3] = __ffs(b), y[4] = __float_as_uint(1.5f);
    y[5] = max(a, b), y[6] = min(2, 3);
}

}
"""


def launch(name, grid, block, *args, shared_mem=0, orders=("forward", "reverse", 1, 2)):
    with cudasim.checking(orders=orders, memcheck=False):
        cudasim.RawKernel(SOURCE, name, file="test.cu")(grid, block, args, shared_mem=shared_mem)


def test_a_thread_an_element():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 70)).astype(np.float32)
    expected = np.float32(3) * x + y
    launch("saxpy", (3,), (32,), x, y, np.float32(3), np.int32(70))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("grid", "block"), [((2, 3, 2), (4, 3, 2)), ((5,), (1024,)), (1, 1)])
def test_every_thread_of_every_block_runs_once(grid, block):
    blocks, threads = np.prod(grid), np.prod(block)
    y = np.full((blocks, threads), -1, np.int32)
    launch("who", grid, block, y)
    np.testing.assert_array_equal(y, 1000 * np.arange(blocks)[:, None] + np.arange(threads))


@pytest.mark.parametrize(("name", "bytes_"), [("reverse_static", 0), ("reverse_dynamic", 512)])
def test_shared_memory_and_a_barrier(name, bytes_):
    x, y = np.arange(64.0), np.zeros(64)
    launch(name, 1, 64, x, y, shared_mem=bytes_)
    np.testing.assert_array_equal(y, x[::-1])


def test_shared_memory_that_nobody_wrote_is_no_number():
    y = np.zeros(32, np.float32)
    launch("unwritten", 2, 32, y)
    assert np.isnan(y).all()


@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_and_votes_are_those_of_cuda(width):
    x = np.random.default_rng(1).integers(-99, 99, 64).astype(np.int32)
    y = np.zeros((6, 64), np.int32)
    launch("warps", 1, 64, x, y, np.int32(width))
    lane = np.arange(64)
    first, within = lane - lane % width, lane % width
    warp = lane - lane % 32
    np.testing.assert_array_equal(y[0], x[first + 3])
    np.testing.assert_array_equal(y[1], x[np.where(within >= 2, lane - 2, lane)])
    np.testing.assert_array_equal(y[2], x[np.where(within + 2 < width, lane + 2, lane)])
    np.testing.assert_array_equal(y[3], x[warp + ((lane - warp) ^ 5)])
    ballots = [(np.flatnonzero(x[w : w + 32] > 0), w) for w in (0, 32)]
    np.testing.assert_array_equal(y[4].view(np.uint32)[::32], [sum(1 << int(i) for i in bits) for bits, _ in ballots])
    np.testing.assert_array_equal(y[5], np.where((x.reshape(2, 32) > 98).any(1), 3, 2).repeat(32))


def test_parts_of_a_warp_meet_by_themselves():
    y = np.zeros(32, np.int32)
    launch("halves_of_a_warp", 1, 32, y)
    np.testing.assert_array_equal(y, [7] * 16 + [23] * 16)


def test_barriers_that_vote():
    x = np.random.default_rng(2).integers(-1, 2, 96).astype(np.int32)
    y = np.zeros((96, 3), np.int32)
    launch("votes", 1, 96, x, y)
    np.testing.assert_array_equal(y, [[(x > 0).sum(), (x > 0).all(), (x > 0).any()]] * 96)


def test_atomics():
    x = np.random.default_rng(3).integers(-1000, 1000, 128).astype(np.int32)
    y = np.array([0, 0, -(2**31), 2**31 - 1, -1, 0, 0], np.int32)
    launch("atomics", 2, 64, x, y)
    ands, ors = np.bitwise_and.reduce(x), np.bitwise_or.reduce(x)
    np.testing.assert_array_equal(y, [x.sum(), -x.sum(), x.max(), x.min(), ands, ors, 128])


def test_every_half_is_the_float_that_numpy_says():
    bits = np.arange(2**16, dtype=np.uint16)
    y = np.zeros(2**16, np.float32)
    launch("from_half", 256, 256, bits.view(np.float16), y, orders=("forward",))
    np.testing.assert_array_equal(y, bits.view(np.float16).astype(np.float32))


@given(st.lists(st.floats(width=32), min_size=1, max_size=64))
def test_floats_round_to_the_halves_that_numpy_says(values):
    x = np.zeros(64, np.float32)
    x[: len(values)] = values
    y = np.zeros(64, np.uint16)
    launch("to_half", 1, 64, x, y, np.int32(64), orders=("forward",))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y.view(np.float16), x.astype(np.float16))


def test_halfway_between_two_halves_goes_to_the_even_one():
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2  # exact
    x = np.resize(between, 123 * 256)
    y = np.zeros(x.size, np.uint16)
    launch("to_half", 123, 256, x, y, np.int32(x.size), orders=("forward",))
    np.testing.assert_array_equal(y.view(np.float16), x.astype(np.float16))


def test_tensor_cores_multiply_matrices():
    rng = np.random.default_rng(4)
    a, b = (rng.integers(-1023, 1024, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))  # exact in TF32
    d = np.zeros((16, 8), np.float32)
    launch("multiply_tf32", 1, 32, a, b, d)
    np.testing.assert_array_equal(d, a @ b)
    a, b = (rng.integers(-99, 99, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    launch("multiply_f16", 1, 32, a, b, d)
    np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32) + 1)


def test_tf32_keeps_ten_bits_rounded_to_nearest():
    a, d = np.zeros((16, 8), np.float32), np.zeros((16, 8), np.float32)
    b = np.eye(8, dtype=np.float32)
    a[:, 0] = 1 + np.arange(16) * 2.0**-13  # eighths of the last bit that TF32 keeps
    launch("multiply_tf32", 1, 32, a, b, d)
    np.testing.assert_array_equal(d[:, 0], 1 + np.floor(np.arange(16) / 8 + 0.5) * 2.0**-10)


def test_matrices_are_loaded_by_rows_or_by_columns():
    x, y = np.arange(4 * 8 * 8, dtype=np.float16).reshape(4, 8, 8), np.zeros((12, 32), np.uint32)
    launch("load_matrices", 1, 32, x.view(np.uint32), y)
    turned = x.transpose(0, 2, 1)
    np.testing.assert_array_equal(y.view(np.float16).reshape(12, 8, 8), np.concatenate([x, turned, x[:2], turned[:2]]))


def test_asynchronous_copies_land_when_they_are_waited_for_and_not_before():
    x, y = np.arange(64, dtype=np.float32).reshape(2, 32), np.zeros((3, 2, 32), np.float32)
    launch("landing", 1, 32, x, y)
    nothing = np.full(32, np.nan)
    np.testing.assert_array_equal(y, [[nothing, nothing], [x[0, ::-1], nothing], [x[0, ::-1], x[1, ::-1]]])


def test_vectors_and_arithmetic():
    x, y = np.arange(32, dtype=np.float32), np.zeros(8, np.float32)
    launch("vectors", 1, 8, x, y)
    np.testing.assert_array_equal(y, x.reshape(8, 4) @ np.arange(1, 5, dtype=np.float32))
    z = np.zeros(7, np.uint32)
    a, b = 0xDEADBEEF, 0x00FF00F0
    launch("arithmetic", 1, 1, np.uint32(a), np.uint32(b), z)
    assert z.tolist() == [a * b >> 32, 24, 8, 5, 0x3FC00000, a, 2]


# ---- Being asked for what no GPU would do ----

X, Y, N = np.zeros(8, np.float32), np.zeros(8, np.float32), np.int32(8)
REFUSALS = {
    "too many threads": ((1, 1025, X, Y, np.float32(1), N), "a block has at most 1024 threads, this one 1025"),
    "an empty grid": ((0, 32, X, Y, np.float32(1), N), "every size is at least 1"),
    "a grid too high": (((1, 70000), 32, X, Y, np.float32(1), N), "a grid is at most"),
    "too few arguments": ((1, 32, X, Y), "takes 4 arguments (const float32* x, float32* y, float32 a, int32 n), got 2"),
    "the wrong dtype": ((1, 32, X.astype("f8"), Y, np.float32(1), N), "x is declared const float32*, but got float64"),
    "the wrong number": ((1, 32, X, Y, np.float64(1), N), "a is declared float32, but got float64"),
    "a Python number": ((1, 32, X, Y, 1.0, N), "a is a float32: pass np.float32(…), not 1.0"),
    "a list": ((1, 32, [0], Y, np.float32(1), N), "x is a const float32*, so an array of float32, not [0]"),
    "gaps": ((1, 32, np.zeros(16, np.float32)[::2], Y, np.float32(1), N), "x (8,) has gaps in memory"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(arguments, message):
    with pytest.raises(cudasim.SimulatorError) as caught:
        launch("saxpy", *arguments)
    assert message in str(caught.value)


def test_an_output_must_be_writeable():
    y = np.zeros(8, np.float32)
    y.flags.writeable = False
    with pytest.raises(cudasim.SimulatorError, match="y is written to, but the array is read-only"):
        launch("saxpy", 1, 32, X, y, np.float32(1), N)


def test_too_much_shared_memory():
    with pytest.raises(cudasim.SimulatorError, match="at most 232448 bytes of shared memory"):
        launch("reverse_dynamic", 1, 32, np.zeros(8), np.zeros(8), shared_mem=228 << 10)


def test_a_kernel_that_is_not_there():
    with pytest.raises(cudasim.SimulatorError, match=r"test\.cu has no kernel saxpi; there is saxpy, who"):
        launch("saxpi", 1, 32)


def test_errors_of_the_compiler_name_the_line_of_the_kernel():
    with pytest.raises(cudasim.CompileError, match=r"mine\.cu:3.*nonsense"):
        cudasim.RawKernel('\nextern "C" __global__ void k(float* y) {\n y[0] = nonsense; }', "k", file="mine.cu")(
            1, 1, (X,)
        )


def test_without_a_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        cudasim.CompileError, match=r"there is no no-such-compiler: install one \(Debian.*name it in CXX"
    ):
        cudasim.RawKernel('extern "C" __global__ void fresh() {}', "fresh")(1, 1, ())


def test_what_is_built_stays_on_disk(tmp_path, monkeypatch):
    source = 'extern "C" __global__ void one(int* y) { y[0] = 1; }'
    start = "import numpy as np; from minivgg import cudasim; y = np.zeros(1, np.int32)"
    run = f"{start}; k = cudasim.RawKernel({source!r}, 'one')"
    monkeypatch.setenv("CUDASIM_CACHE", str(tmp_path))
    libraries = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", f"{run}; k(1, 1, (y,)); print(y[0])"], capture_output=True, text=True
        )
        assert done.stdout.strip() == "1", done.stderr
        libraries.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("*.so")})
    assert len(libraries[0]) == 1
    assert libraries[0] == libraries[1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


# ---- From a shell ----


def shell(tmp_path, *arguments):
    (tmp_path / "test.cu").write_text(SOURCE)
    command = [sys.executable, "-m", "minivgg.cudasim", str(tmp_path / "test.cu"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_runs_a_kernel_and_shows_what_it_wrote(tmp_path):
    values = ["x=count:8", "y=ones:8", "a=2", "n=8"]
    done = shell(tmp_path, "--kernel", "saxpy", "--grid", "2", "--block", "4", *values, "--traffic", "--racecheck")
    assert done.returncode == 0, done.stderr
    assert "saxpy: the same in 4 orders of threads" in done.stdout
    assert "[ 1.  3.  5.  7.  9. 11. 13. 15.]" in done.stdout
    assert "racecheck: nothing found" in done.stdout
    assert "test.cu:6  global  write" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose one with --kernel"),
        (["--kernel", "who"], "who needs a value for int32* all"),
        (["--kernel", "who", "all=zeros:4", "b=1"], "who has no parameter b; it has all"),
        (["--kernel", "who", "all=4"], "all=FILL:SHAPE, a fill of random, zeros, ones, count and a shape as 32x64"),
        (["--kernel", "who", "all=zeros:4:int32"], "a shape as 32x64, not 'zeros:4:int32'"),
        (["--kernel", "who", "all=zeros:-4"], "a shape as 32x64, not 'zeros:-4'"),
        (["--kernel", "who", "--block", "2000", "all=zeros:4"], "a block has at most 1024 threads"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong(tmp_path, arguments, message):
    done = shell(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
