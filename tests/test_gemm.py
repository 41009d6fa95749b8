"""The shared matrix product: right for every shape and memory order, the same bits on any number of threads."""

import threading

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import minivgg.ops.gemm as module
from minivgg.backends import workspace
from minivgg.ops.gemm import gemm


def matrix(rng, M, N, order):
    return np.asarray(rng.standard_normal((M, N)), order=order)


def check(M, N, K, order_a, order_b, dtype):
    rng = np.random.default_rng(M * N * K)
    a, b = (matrix(rng, *s).astype(dtype, order="K") for s in ((M, K, order_a), (K, N, order_b)))
    exact = [f.astype(np.float64) for f in (a, b)]
    # each element sums K products, in whatever order: K roundings of the sum of magnitudes
    bound = K * np.finfo(dtype).eps * (np.abs(exact[0]) @ np.abs(exact[1]))
    assert (np.abs(gemm(a, b) - np.einsum("mk,kn->mn", *exact)) <= bound).all()


orders = st.sampled_from("CF")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), orders, orders)
def test_product_is_the_sum_over_k(dtype, M, N, K, order_a, order_b):
    check(M, N, K, order_a, order_b, dtype)


edges = st.sampled_from([1, 2, 13, 14, 15, 16, 31, 32, 33])  # of the micro-kernel and its vectors


@given(edges, edges, st.integers(1, 520), orders, orders)
def test_product_over_a_long_dimension(dtype, M, N, K, order_a, order_b):
    check(M, N, K, order_a, order_b, dtype)


@pytest.mark.parametrize("order", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize(("M", "K", "N"), [(1, 257, 528), (449, 257, 1), (227, 3, 530)])
def test_product_of_several_blocks(M, K, N, order, dtype):
    check(M, N, K, *order, dtype)


@pytest.mark.parametrize("M", [1, 2, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize(("K", "N"), [(15, 2), (16, 3), (37, 5), (80, 7)])
def test_few_rows_against_rows(M, K, N, dtype, monkeypatch):
    """As of a small batch and the weights of a linear layer: in stretches, three rows of weights at a time."""
    monkeypatch.setattr("minivgg.ops.gemm._STRETCH", 32)
    check(M, N, K, "C", "F", dtype)
    check(M, N, K, "F", "F", dtype)


def test_few_rows_are_multiplied_where_they_lie(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "_by_rows", lambda a, b, c, stretch, sums: taken.append((a.shape, b.shape, sums.shape)))
    monkeypatch.setattr(module, "threads", lambda: 3)
    x, w = (np.ones(shape, np.float32) for shape in ((16, 48), (5, 48)))
    gemm(x, w.T)
    gemm(x, w[:2].T)
    assert taken == [((16, 48), (5, 48), (3, 32)), ((16, 48), (2, 48), (3, 32))]  # room for 3 × 8 sums, in vectors
    for others in ((np.ones((17, 48), np.float32), w.T), (x, w.T.copy()), (x.astype(float), w.T.astype(float))):
        gemm(*others)
    gemm(x, w[:1].T)
    assert len(taken) == 2


def test_how_blocks_are_cut(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_blocks", lambda *given: seen.append((*given[5:7], *(m.shape for m in given[7:10]))))
    monkeypatch.setattr(module, "threads", lambda: 3)
    a, b = np.ones((230, 600), np.float32), np.ones((600, 1540), np.float32)
    gemm(a, b)
    # 1540 columns are four blocks of at most 512, and so six for three threads: 9 × 32; 230 rows are two blocks of at
    # most 224: 9 × 14. Copies are of 256 steps, rows 16 numbers further apart
    assert seen == [(126, 288, (3, (126 + 16) * (256 + 16)), (3, 256 * 288), (3, 14 * 32))]


@pytest.mark.parametrize(("rows", "streamed"), [(2048, False), (2050, True)])
def test_more_than_32_mb_go_past_the_caches(rows, streamed, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_blocks", lambda *given: seen.append(given[-1]))
    gemm(np.ones((rows, 9), np.float32), np.ones((9, 4096), np.float32))
    assert seen == [streamed]


@pytest.mark.parametrize(("M", "N"), [(1, 32), (15, 48), (230, 576), (2, 33)])
def test_past_the_caches_it_is_the_same_product(M, N, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (matrix(rng, *s, "C").astype(np.float32) for s in ((M, 9), (9, N)))
    memory = np.full(M * N + 32, np.nan, np.float32)
    start = 16 - memory.ctypes.data // 4 % 16  # where 64 bytes begin
    out = memory[start : start + M * N].reshape(M, N)
    expected = gemm(a, b)
    monkeypatch.setattr("minivgg.ops.gemm._PAST_CACHES", 0)
    np.testing.assert_array_equal(gemm(a, b, out=out), expected)
    assert np.isnan(memory[:start]).all()
    assert np.isnan(memory[start + M * N :]).all()


def test_strided_factors_and_results(dtype):
    rng = np.random.default_rng(0)
    a, b = (matrix(rng, 60, 80, "C").astype(dtype)[::2, ::2] for _ in range(2))
    larger = np.full((60, 80), np.nan, dtype)
    gemm(a.T, b, out=larger[:40, ::2])
    np.testing.assert_allclose(larger[:40, ::2], a.T.astype(float) @ b, rtol=0, atol=30 * 16 * np.finfo(dtype).eps)
    assert np.isnan(larger[40:]).all()
    assert np.isnan(larger[:, 1::2]).all()


@pytest.mark.parametrize(("M", "K", "N"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_products_are_zero(M, K, N, dtype):
    np.testing.assert_array_equal(gemm(np.ones((M, K), dtype), np.ones((K, N), dtype)), np.zeros((M, N)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_goes_where_it_belongs(value, dtype):
    a, b = np.ones((37, 21), dtype), np.ones((21, 45), dtype)
    a[36, 20], b[20, 44] = value, value
    with np.errstate(invalid="ignore"):  # of what fills the last panel, when the kernel runs as plain Python
        y = gemm(a, b)
    np.testing.assert_array_equal(y[36], np.full(45, value))
    np.testing.assert_array_equal(y[:, 44], np.full(37, value))
    np.testing.assert_array_equal(y[:36, :44], np.full((36, 44), 21))


@pytest.fixture
def many_pieces(monkeypatch):
    """Every product in as many pieces as there may be, so that their seams are seen."""
    monkeypatch.setattr("minivgg.ops.gemm._WORK", 1)


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize("shape", [(700, 64, 90), (64, 64, 700), (600, 5, 600)])
def test_writes_into_a_slice_and_nowhere_else(shape):
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b = matrix(rng, M, K, "C"), matrix(rng, K, N, "C")
    larger = np.full((M + 2, N), np.nan)
    result = gemm(a, b, out=larger[1:-1])
    assert np.shares_memory(result, larger)
    np.testing.assert_allclose(larger[1:-1], a @ b, rtol=0, atol=1e-12)
    assert np.isnan(larger[[0, -1]]).all()


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize(
    ("shape", "order"), [((701, 64, 90), "C"), ((64, 64, 701), "C"), ((15, 700, 33), "C"), ((15, 700, 33), "F")]
)
def test_same_bits_on_one_thread_and_two(shape, order, dtype):
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b = matrix(rng, M, K, "C").astype(dtype), matrix(rng, K, N, order).astype(dtype, order="K")
    before, results = numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(gemm(a, b))
    numba.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_blas_keeps_its_own_threads():
    before = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    a = np.ones((400, 400))
    callers = [threading.Thread(target=lambda: [gemm(a, a) for _ in range(20)]) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"] == before


@pytest.mark.usefixtures("many_pieces")
def test_overflow_in_any_thread_is_infinity_without_a_warning():
    a = np.full((600, 4), 1e300)
    assert np.isposinf(gemm(a, a.T)).all()


def test_pieces_are_as_large_as_they_pay(monkeypatch):
    shapes = []
    monkeypatch.setattr("minivgg.ops.gemm._multiply", lambda a, b, out: shapes.append((a.shape, b.shape)))
    gemm(np.ones((3000, 512)), np.ones((512, 32)))
    assert sorted(shapes) == [((952, 512), (512, 32)), ((1024, 512), (512, 32)), ((1024, 512), (512, 32))]
    shapes.clear()
    gemm(np.ones((64, 2048)), np.ones((2048, 600)))
    assert sorted(shapes) == [((64, 2048), (2048, n)) for n in (88, 256, 256)]
    shapes.clear()
    for N, size in ((2, 16384), (1, 16384)):  # a product with a vector pays for a thread sooner
        gemm(np.broadcast_to(1.0, (20000, 512)), np.broadcast_to(1.0, (512, N)))
        assert sorted(shapes) == [((M, 512), (512, N)) for M in (20000 - size, size)]
        shapes.clear()


def test_blas_has_one_thread(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_multiply", lambda a, b, out: seen.extend(threadpool_info()))
    gemm(np.ones((3, 3)), np.ones((3, 3)))
    assert {pool["num_threads"] for pool in seen if pool["user_api"] == "blas"} == {1}


def test_who_multiplies(monkeypatch):
    """Our own kernel does it in float32, but for the product with a vector, unless that is a mere multiplication."""
    asked = []
    monkeypatch.setattr(module, "_by_blas", lambda a, b, out: asked.append("BLAS"))
    monkeypatch.setattr(module, "_by_blocks", lambda a, b, out: asked.append("ours"))
    for dtype, (M, K, N), who in (
        ("float64", (4, 5, 6), "BLAS"),
        ("float32", (4, 5, 6), "ours"),
        ("float32", (2, 5, 6), "ours"),
        ("float32", (1, 2, 6), "BLAS"),
        ("float32", (6, 2, 1), "BLAS"),
        ("float32", (6, 1, 1), "ours"),
    ):
        gemm(np.ones((M, K), dtype), np.ones((K, N), dtype))
        assert asked.pop() == who


@pytest.mark.parametrize(
    "length, most, unit, workers, expected",
    [
        (1000, 224, 14, 1, 210),  # five blocks of 15 units
        (1000, 224, 14, 3, 168),  # six, for three
        (448, 224, 14, 2, 224),
        (10, 224, 14, 4, 14),  # a unit at least
    ],
)
def test_shares(length, most, unit, workers, expected):
    assert module._share(length, most, unit, workers) == expected


@pytest.fixture
def blocks(monkeypatch):
    """What our kernel was asked for, in place of it: (rows, columns, scratch of a, streaming)."""
    asked = []
    monkeypatch.setattr(module, "_blocks", lambda *given: asked.append((given[5], given[6], given[7], given[10])))
    monkeypatch.setattr(module, "threads", lambda: 2)
    return asked


def result(M, N, start):
    """A matrix whose memory begins `start` bytes behind where 64 bytes do."""
    memory = workspace.buffer("test", (4 * M * N + start,), np.uint8)
    return memory[start:].view(np.float32).reshape(M, N)


def test_two_workers_share_columns_or_rows(blocks):
    for N, expected in ((100, (210, 64)), (20, (168, 32))):
        gemm(np.ones((1000, 9), np.float32), np.ones((9, N), np.float32))
        assert blocks.pop()[:2] == expected


def test_a_row_too_many_is_of_zeros(blocks):
    for M, expected in ((4, 7), (3, 0)):
        workspace.buffer("gemm a", (2, 30 * 272), np.float32)[...] = 7
        gemm(np.ones((M, 9), np.float32), np.ones((9, 6), np.float32))
        assert (blocks.pop()[2] == expected).all()


@pytest.mark.parametrize(
    "N, K, start, limit, streamed",
    [
        (16, 256, 0, 255, True),
        (16, 256, 0, 256, False),  # not larger than the caches
        (16, 257, 0, 255, False),  # added to a second time
        (16, 256, 4, 255, False),  # not aligned, at its beginning or in its rows
        (17, 256, 0, 255, False),
    ],
)
def test_what_goes_past_the_caches(N, K, start, limit, streamed, blocks, monkeypatch):
    monkeypatch.setattr(module, "_PAST_CACHES", limit)
    gemm(np.ones((4, K), np.float32), np.ones((K, N), np.float32), out=result(4, N, start))
    assert blocks.pop()[3] == streamed


def test_transposed_factors_are_not_copied_beforehand():
    matrix = np.ones((3, 4))
    for one, turned in ((matrix, False), (matrix.T, True), (matrix[:1], False)):
        found, found_turned = module._rows_of(one)
        assert found_turned is turned
        assert np.shares_memory(found, matrix)
