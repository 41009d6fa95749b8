"""Memory that is used again: scratch buffers, and the pool that large arrays come from."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivgg.backends import workspace


@pytest.fixture(autouse=True)
def fresh_workspace():
    before = workspace.limit() / 2**20
    workspace.release()
    yield
    workspace.release()
    workspace.set_limit(before)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (7, 11, 13)])
def test_buffer_is_aligned(shape, dtype):
    x = workspace.buffer("test", shape, dtype)
    assert (x.shape, x.dtype) == (shape, dtype)
    assert x.ctypes.data % 64 == 0
    assert x.flags.c_contiguous
    assert x.flags.writeable


def test_buffer_is_reused_for_requests_that_fit():
    x = workspace.buffer("test", (10, 10), np.float64)
    for shape, dtype in [((10, 10), np.float64), ((200,), np.float32), ((3,), np.uint8)]:
        assert workspace.buffer("test", shape, dtype).ctypes.data == x.ctypes.data


def test_buffer_grows_and_stays():
    small = workspace.buffer("test", (10,), np.float64)
    large = workspace.buffer("test", (1000,), np.float64)
    large[:] = 1
    assert not np.shares_memory(small, large)
    assert np.shares_memory(workspace.buffer("test", (10,), np.float64), large)


def test_buffers_of_two_purposes_are_apart():
    assert not np.shares_memory(workspace.buffer("one", (9,), float), workspace.buffer("two", (9,), float))


def test_buffers_of_two_threads_are_apart():
    mine, theirs = workspace.buffer("test", (9,), float), []
    thread = threading.Thread(target=lambda: theirs.append(workspace.buffer("test", (9,), float)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


def test_release_gives_the_memory_back():
    before = workspace.buffer("test", (9,), float)
    workspace.release()
    assert not np.shares_memory(workspace.buffer("test", (9,), float), before)


def test_limit_is_in_mebibytes():
    workspace.set_limit(0.5)
    assert workspace.limit() == 2**19


@pytest.mark.parametrize("mib", [0, -1, float("nan"), float("inf"), "many"])
def test_limit_must_be_positive(mib):
    with pytest.raises(ValueError, match=f"must be a positive number of MiB, got {mib}"):
        workspace.set_limit(mib)


# ---- The pool ----


def test_memory_of_a_large_array_serves_the_next_one():
    first = workspace.empty((1, 1024, 1024), np.float32)
    first[:] = 1
    place = first.ctypes.data
    assert place % 64 == 0
    second = workspace.empty((1024, 1024), np.float32)
    assert second.ctypes.data != place  # somebody holds the first
    view = first[0, 0, 1:]
    del first
    third = workspace.empty((1024, 1024), np.float32)
    assert third.ctypes.data != place  # a view holds it still
    assert (view == 1).all()
    del view
    assert workspace.empty((512, 1536), np.float32).ctypes.data == place  # three quarters of it


def test_memory_is_shared_out_and_grows_together_again():
    """Of 12 MiB, a quarter each for three arrays; what two of them leave serves one of twice their size."""
    before = list(workspace._slabs)
    whole = workspace.empty((12 << 20,), np.uint8)
    place = whole.ctypes.data
    del whole
    parts = [workspace.empty((3 << 20,), np.uint8) for _ in range(3)]
    assert [part.ctypes.data - place for part in parts] == [0, 3 << 20, 6 << 20]
    del parts[:2]
    assert workspace.empty((6 << 20,), np.uint8).ctypes.data == place
    workspace.release()
    assert len(workspace._slabs) == len(before) + 1  # the third still holds it
    del parts
    workspace.release()
    assert workspace._slabs == before


def test_a_small_array_holds_no_large_memory():
    whole = workspace.empty((64 << 20,), np.uint8)
    place = whole.ctypes.data
    del whole
    assert workspace.empty((2 << 20,), np.uint8).ctypes.data == place  # one of 32 parts
    assert not place <= workspace.empty(((2 << 20) - 64,), np.uint8).ctypes.data < place + (64 << 20)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1 << 18, 1 << 21)), max_size=40))
def test_arrays_of_the_pool_never_overlap(orders):
    """Each order puts a new array in one of six places, whose old one goes: all others keep what was written."""
    workspace.release()
    before = workspace._in_use, list(workspace._slabs)
    held = {}
    for number, (place, size) in enumerate(orders):
        held.pop(place, None)
        held[place] = number, workspace.empty((size,), np.int32)
        held[place][1][:] = number
        assert held[place][1].ctypes.data % 64 == 0
        assert all((array[:: 1 << 10] == n).all() and array[-1] == n for n, array in held.values())
    held.clear()
    workspace.release()
    assert (workspace._in_use, workspace._slabs) == before


def test_idle_memory_is_bounded():
    for mib in (8, 4, 2, 8, 4, 2, 16, 3, 8):
        workspace.empty((mib << 20,), np.uint8)  # dropped at once
    assert sum(slab.memory.nbytes for slab in workspace._slabs) <= 1.25 * workspace._most_in_use
