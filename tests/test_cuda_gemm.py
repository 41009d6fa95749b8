"""Our own matrix product on a GPU, in the simulator: every variant right on every shape and memory order, and each
asking less of memory than the one before."""

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import SimulatedArray, to
from minivgg.ops.gemm import VARIANTS_ON_GPU, gemm, gemm_on_gpu
from minivgg.testing.arrays import integers

# M, K, N: single elements; whole tiles, with vectors and without; several tiles with a rest
SHAPES = (1, 1, 1), (1, 40, 1), (128, 32, 128), (33, 31, 35), (132, 36, 260), (257, 17, 129)


def drawn(M, K, N, orders="CC", dtype="float32"):
    """Two matrices of integers, whose sums are exact in whatever order, and their product."""
    rng = np.random.default_rng(M + K + N)
    a, b = (np.asarray(integers(rng, s, dtype), order=o) for s, o in zip(((M, K), (K, N)), orders, strict=True))
    return to(a, "sim"), to(b, "sim"), np.einsum("mk,kn->mn", a, b)


@pytest.mark.parametrize("variant", VARIANTS_ON_GPU)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_product_is_the_sum_over_k(variant, orders, dtype):
    for shape in SHAPES:
        a, b, expected = drawn(*shape, orders, dtype)
        c = gemm_on_gpu(a, b, variant=variant)
        assert isinstance(c, SimulatedArray) and c.dtype == dtype
        np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("variant", VARIANTS_ON_GPU)
@pytest.mark.parametrize("shape", [(5, 9, 6), (8, 8, 8), (3, 40, 4)])
def test_no_races_and_nothing_out_of_bounds(variant, shape):
    a, b, expected = drawn(*shape)
    with cudasim.checking(racecheck=True, memcheck=True):
        np.testing.assert_array_equal(gemm_on_gpu(a, b, variant=variant), expected)
    with cudasim.checking(orders=("forward", "reverse", 1, 2)):
        np.testing.assert_array_equal(gemm_on_gpu(a, b, variant=variant), expected)


@pytest.mark.parametrize("variant", VARIANTS_ON_GPU)
def test_strided_and_misaligned_matrices(variant):
    a, b, expected = drawn(40, 24, 36)
    apart = np.full((80, 48), np.nan, np.float32)
    apart[::2, ::2] = a
    np.testing.assert_array_equal(gemm_on_gpu(to(apart, "sim")[::2, ::2], b, variant=variant), expected)
    odd = to(np.full(24 * 36 + 1, np.nan, np.float32), "sim")[1:].reshape(24, 36)  # 4 bytes from where 16 begin
    odd[...] = b
    np.testing.assert_array_equal(gemm_on_gpu(a, odd, variant=variant), expected)


@pytest.mark.parametrize("variant", VARIANTS_ON_GPU)
def test_into_a_matrix_that_is_there(variant):
    a, b, expected = drawn(5, 3, 7)
    out = to(np.full((5, 7), np.nan, np.float32), "sim")
    assert gemm_on_gpu(a, b, out, variant=variant) is out
    np.testing.assert_array_equal(out, expected)
    nothing = gemm_on_gpu(a[:, :0], b[:0], variant=variant)
    np.testing.assert_array_equal(nothing, np.zeros((5, 7)))


def test_gemm_is_the_vendors():
    a, b, expected = drawn(5, 3, 7, "FC")
    with cudasim.checking() as launches:
        c = gemm(a, b)
        assert gemm(a, b, out=c) is c
    assert isinstance(c, SimulatedArray)
    assert launches == []
    np.testing.assert_array_equal(c, expected)


def test_refuses_what_does_not_go_together():
    a, b, _ = drawn(5, 3, 7)
    with pytest.raises(ValueError, match=r"a \(5, 3\) · b \(5, 3\)"):
        gemm_on_gpu(a, a)
    for out in (a, to(np.zeros((7, 5), np.float32), "sim").T):
        with pytest.raises(ValueError, match=r"makes \(5, 7\), in C order"):
            gemm_on_gpu(a, b, out)
    with pytest.raises(KeyError, match="fastest"):
        gemm_on_gpu(a, b, variant="fastest")


# ---- What a learner comes to see ----


def traffic(variant):
    a, b, _ = drawn(128, 64, 128)
    with cudasim.checking(traffic=True) as launches:
        gemm_on_gpu(a, b, variant=variant)
    return launches[0].traffic


def test_each_variant_asks_less_of_global_memory():
    read = [
        sum(t.transactions for t in traffic(v) if (t.memory, t.access) == ("global", "read")) for v in VARIANTS_ON_GPU
    ]
    # sectors for a warp's product: 32 + 1, 1 + 4; then of a tile for 32 warps, and for 128 rows and columns
    products = 128 * 128 * 64 // 32
    assert read == [33 * products, 5 * products, 2 * 4 * products // 32, 2 * 128 * 64 * 4 // 32]


def test_of_shared_memory_the_registers_save_most():
    passes = {v: sum(t.transactions for t in traffic(v) if t.memory == "shared") for v in VARIANTS_ON_GPU}
    assert passes["naive"] == passes["coalesced"] == 0
    assert passes["register_blocked"] < passes["tiled"] / 6
    for variant in ("tiled", "register_blocked"):
        assert max(t.waste for t in traffic(variant)) == 1  # no bank conflicts, no sector that is not used
