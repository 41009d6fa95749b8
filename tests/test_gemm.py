"""The shared matrix product: right for every shape and memory order, the same bits on any number of threads."""

import threading

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minivgg.ops.gemm import gemm


def matrix(rng, M, N, order):
    return np.asarray(rng.standard_normal((M, N)), order=order)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.sampled_from("CF"), st.sampled_from("CF"))
def test_product_is_the_sum_over_k(M, N, K, order_a, order_b):
    rng = np.random.default_rng(M * N * K)
    a, b = matrix(rng, M, K, order_a), matrix(rng, K, N, order_b)
    # each element sums K products, in whatever order: K roundings of the sum of magnitudes
    bound = K * np.finfo(float).eps * (np.abs(a) @ np.abs(b))
    assert (np.abs(gemm(a, b) - np.einsum("mk,kn->mn", a, b)) <= bound).all()


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
@pytest.mark.parametrize("shape", [(701, 64, 90), (64, 64, 701)])
def test_same_bits_on_one_thread_and_two(shape):
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b = (matrix(rng, *s, "C").astype(np.float32) for s in ((M, K), (K, N)))
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
