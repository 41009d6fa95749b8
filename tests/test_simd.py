"""Vectors: what a traced function does when compiled, it does in NumPy, and both are what is meant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from minivgg.backends import microkernel, workspace
from minivgg.backends.microkernel import distance, even_rows, product, to_fetch
from minivgg.backends.simd import LANES, run_plain, traced, transpose

DTYPES = [np.float32, np.float64]


def arithmetic(code, x, y, n, strides):
    """Everything that a vector can do, written to y: 10 vectors for each of n."""
    for i in code.loop(n):
        a, b = x.load(i * strides[0]), x.load(strides[0] * i + strides[1])
        results = [
            a + b, a - b, a * b + x.broadcast(i), 2 * a - 1, 3 - a, -a, a.at_least(0.5), a.where_positive(b), x.zero(),
            a * b + a,
        ]  # fmt: skip
        for j, result in enumerate(results):
            y.store(i * (10 * LANES) + j * LANES, result)


def sums(code, x, y, n, strides):
    """A variable, a loop in a loop, and a condition."""
    total = code.variable(x.zero())
    for i in code.loop(n):
        for j in code.loop(2):
            for _ in code.when(j, 1):
                total.value = total.value + x.load(i * strides[0] + j)
            for _ in code.when_below(i, j):
                total.value = total.value + 3 * x.load(j)
    y.store(0, total.value)


def turned(code, x, y, n, strides):
    for i, vector in enumerate(transpose([x.load(LANES * i) for i in range(LANES)])):
        y.store(LANES * i, vector)


def compiled(function):
    inner = traced(function)

    @njit
    def call(x, y, n, strides):
        inner(x, y, n, strides)

    return call


FUNCTIONS = {function.__name__: (function, compiled(function)) for function in (arithmetic, sums, turned)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_is_what_it_is_in_numpy(name, dtype):
    function, call = FUNCTIONS[name]
    x = np.random.default_rng(0).standard_normal(400).astype(dtype)
    by_numpy, by_machine = np.full((2, 640), 7, dtype)
    run_plain(function, x, by_numpy, 4, (LANES, 5))
    call(x, by_machine, 4, (LANES, 5))
    np.testing.assert_allclose(by_machine, by_numpy, rtol=0, atol=4 * np.finfo(dtype).eps * abs(x).max() ** 2)


def test_transpose():
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    FUNCTIONS["turned"][1](x, y, 0, (0, 0))
    assert (y.reshape(16, 16) == x.reshape(16, 16).T).all()


def test_a_nan_passes_a_floor_and_hides_from_a_mask():
    x = np.full(2 * LANES, np.nan, np.float32)
    y = np.zeros(10 * LANES, np.float32)
    FUNCTIONS["arithmetic"][1](x, y, 1, (0, 0))
    assert np.isnan(y[6 * LANES : 7 * LANES]).all()  # at_least
    assert (y[7 * LANES : 8 * LANES] == 0).all()  # where_positive, with a NaN for a mask


def test_a_floor_of_zero_leaves_no_negative_zero():
    @traced
    def relu(code, x, floor):
        x.store(0, x.load(0).at_least(floor.broadcast(0)))

    @njit
    def call(x, floor):
        relu(x, floor)

    x = np.full(LANES, -0.0, np.float32)
    call(x, np.zeros(1, np.float32))
    assert not np.signbit(x).any()


def test_streamed_stores_arrive():
    @traced
    def copy(code, x, y):
        y.stream(0, x.load(0))

    @njit
    def call(x, y):
        copy(x, y)

    x, y = np.arange(16, dtype=np.float32), workspace.buffer("test", (16,), np.float32)
    call(x, y)
    assert (x == y).all()


def test_anything_may_be_fetched():
    @traced
    def fetch(code, x, at, y):
        x.fetch(at)
        y.store(0, x.load(0))

    @njit
    def call(x, at, y):
        fetch(x, at, y)

    x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    call(x, 1 << 40, y)  # far beyond everything
    assert (x == y).all()


@pytest.mark.parametrize("rows", range(1, 60))
def test_rows_are_shared_out_evenly(rows):
    size = even_rows(rows)
    assert size % 2 == 0 and 2 <= size <= 14
    blocks = -(-rows // 14)
    assert -(-rows // size) == blocks  # no more blocks than there must be
    assert size - 2 < -(-rows // blocks) <= size  # nor larger ones


@given(st.integers(1, 31), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.booleans(), st.sampled_from(DTYPES))
def test_product(rows, taps, steps, turned, add, dtype):
    rng = np.random.default_rng(rows)
    a, b = rng.standard_normal((taps, rows + 1, steps)), rng.standard_normal((taps, steps, 40))
    c = rng.standard_normal((rows + 1, 50))
    a, b, c = a.astype(dtype), b.astype(dtype), c.astype(dtype)
    expected = c[:rows, 3:35] * add + np.einsum("trk,tkj->rj", a[:, :rows].astype(float), b[:, :, 5:37].astype(float))
    outside = np.delete(c[:rows], np.s_[3:35], axis=1)
    strides = (a.shape[1] * steps, steps, 1)
    if turned:  # the other way round in memory
        a, strides = np.ascontiguousarray(a.transpose(0, 2, 1)), (a.shape[1] * steps, 1, a.shape[1])
    product(rows, a, 0, strides, b, 5, (steps * 40, 40), c, 3, 50, (taps, steps), int(add))
    # a sum of taps·steps + 1 terms below 5² each, in any order
    atol = (taps * steps + 1) ** 2 * 25 * np.finfo(dtype).eps
    np.testing.assert_allclose(c[:rows, 3:35], expected, rtol=0, atol=atol)
    assert (np.delete(c[:rows], np.s_[3:35], axis=1) == outside).all()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3000))
def test_products_share_what_they_fetch(rows, steps, products, length):
    """One after another, and in equal strides; together all of it, and less than a stride for each step beyond."""
    all_steps = -(-rows // 14) * steps
    places = []
    for number in range(products):
        at, apart = to_fetch(number, products, 7, length, rows, steps)
        places += [at + i * apart for i in range(all_steps)]
    assert places == list(range(7, 7 + len(places) * apart, apart))
    assert length <= len(places) * apart < length + len(places)


def test_a_product_fetches_line_by_line(monkeypatch):
    """In each step of all blocks of rows: 17 rows are 10 and 7, and the second block has six steps before it."""
    asked = []
    monkeypatch.setattr(microkernel, "_block", lambda *given: asked.append((given[0], *given[-2:])))
    zeros = np.zeros(1000, np.float32)
    plain = getattr(product, "py_func", product)
    plain(17, zeros, 0, (0, 3, 1), zeros, 0, (96, 32), zeros, 0, 32, (2, 3), 0, ((100, 16),))
    assert asked == [(10, 0, ((100, 16),)), (8, 6, ((100, 16),))]
    assert distance(zeros[8:], zeros[3:]) == -5
