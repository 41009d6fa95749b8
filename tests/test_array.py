"""Memory order, and kernels launched from several threads."""

import os
import subprocess
import sys
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from minivgg import caches
from minivgg.backends import array, jit
from minivgg.backends.array import channels_last, empty_like, memory_run, nchw, nhwc, on_gpu, ordered_like, xp_of
from minivgg.errors import BadInput

SHAPE = 2, 3, 4, 5
ORDERS = list(permutations(range(4)))


def in_order(axes, shape=SHAPE, dtype=np.float64):
    """Distinct values in memory that walks `axes`, the slowest first."""
    x = np.empty([shape[a] for a in axes], dtype).transpose(np.argsort(axes))
    x[...] = np.arange(x.size).reshape(shape)
    return x


all_orders = pytest.mark.parametrize("axes", ORDERS, ids=lambda axes: "".join("NCHW"[a] for a in axes))


# ---- Devices ----


def test_numpy_arrays_are_on_the_cpu():
    x = np.ones(3)
    assert not on_gpu(x)
    assert xp_of(x) is np
    assert array.to_cpu(x) is x
    assert array.to_cpu([1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["C order", "channels last"])
def test_a_simulated_array_is_told_by_its_type_and_keeps_its_memory_order(axes):
    x = in_order(axes)
    there = array.to(x, "sim")
    assert array.device_of(there) == "sim"
    assert on_gpu(there)
    assert there.strides == x.strides
    assert not np.shares_memory(there, x)
    assert array.to(there, "sim") is there
    back = array.to_cpu(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x)


def test_what_is_made_beside_a_simulated_array_is_one_too():
    x = array.to(np.ones(SHAPE), "sim")
    made = [xp_of(x).zeros(3), xp_of(x).ascontiguousarray(x), xp_of(x).arange(3), x + 1, x[0], x.reshape(-1), nhwc(x)]
    made += [channels_last(x), empty_like(x), memory_run(x), array.empty_on(x)(3, np.float32), x.sum(axis=0)]
    assert {array.device_of(a) for a in made} == {"sim"}
    assert xp_of(x).float32 is np.float32


def test_a_kernel_is_never_handed_gaps():
    x = array.to(np.ones(16), "sim")[::2]
    assert memory_run(x).flags.c_contiguous


def test_a_kernel_of_the_cpu_refuses_what_is_on_a_simulated_gpu():
    @jit.njit(cache=False)
    def total(x):
        return x.sum()

    assert total(np.ones(3)) == 3
    with pytest.raises(TypeError, match="handed an array that is on the simulated GPU"):
        total(array.to(np.ones(3), "sim"))


REASONS = {
    "gpu": "CuPy is not installed",
    "sim": "there is no no-such-compiler: install one",
    "tpu": "there are cpu, gpu",
}


@pytest.mark.parametrize(("device", "reason"), REASONS.items(), ids=REASONS)
def test_a_device_that_is_not_there_says_why(device, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert reason in array.why_not(device)
    with pytest.raises(BadInput, match=f"device {device}: .*{reason[:20]}"):
        array.check_device(device)
    assert array.why_not("cpu") is None


# ---- Memory order ----


@all_orders
def test_nhwc_is_the_transpose_and_contiguous(axes):
    x = in_order(axes)
    y = nhwc(x)
    np.testing.assert_array_equal(y, np.moveaxis(x, 1, -1))
    assert y.flags.c_contiguous


@all_orders
def test_nhwc_copies_only_if_it_must(axes):
    x = in_order(axes)
    assert np.shares_memory(nhwc(x), x) == (axes == (0, 2, 3, 1))


@all_orders
def test_nchw_inverts_nhwc(axes):
    x = in_order(axes)
    np.testing.assert_array_equal(nchw(nhwc(x)), x)


def test_nchw_is_a_view():
    x = np.zeros(SHAPE)
    assert np.shares_memory(nchw(x), x)


@all_orders
def test_channels_last_keeps_values_and_shape(axes):
    x = in_order(axes)
    np.testing.assert_array_equal(channels_last(x), x)
    assert channels_last(x).transpose(0, 2, 3, 1).flags.c_contiguous


def test_channels_last_of_channels_last_is_a_view():
    x = in_order((0, 2, 3, 1))
    assert np.shares_memory(channels_last(x), x)


@all_orders
def test_memory_run_of_empty_like_writes_through(axes):
    x = in_order(axes)
    y = empty_like(x)
    assert y.shape == x.shape
    memory_run(y)[:] = memory_run(x)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 4, 5), (1, 1, 1, 1), (3, 1, 1, 5), (2, 3, 4, 1)])
@all_orders
def test_memory_run_of_empty_like_writes_through_where_orders_coincide(axes, shape):
    x = in_order(axes, shape)
    y = empty_like(x)
    memory_run(y)[:] = memory_run(x)
    np.testing.assert_array_equal(y, x)


def test_memory_run_of_empty_like_writes_through_for_other_ranks():
    for x in np.arange(12.0), np.arange(12.0)[::2], np.arange(12.0).reshape(3, 4).T, np.arange(24.0).reshape(2, 3, 4).T:
        y = empty_like(x)
        memory_run(y)[:] = memory_run(x)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_memory_run_is_a_view_of_both_usual_orders(axes):
    x = in_order(axes)
    assert np.shares_memory(memory_run(x), x)
    assert memory_run(x).shape == (x.size,)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_empty_like_keeps_order_and_dtype(axes):
    x = in_order(axes, dtype=np.float32)
    assert (empty_like(x).strides, empty_like(x).dtype) == (x.strides, x.dtype)


def test_memory_run_walks_memory():
    x = in_order((0, 2, 3, 1))
    np.testing.assert_array_equal(memory_run(x), np.moveaxis(x, 1, -1).ravel())


@all_orders
def test_ordered_like_lets_two_arrays_walk_together(axes):
    x = in_order((0, 1, 2, 3))
    model = in_order(axes)
    np.testing.assert_array_equal(memory_run(ordered_like(x, model)), memory_run(model))
    np.testing.assert_array_equal(memory_run(ordered_like(model, x)), memory_run(x))


def test_ordered_like_copies_only_if_it_must():
    x, y = in_order((0, 2, 3, 1)), in_order((0, 1, 2, 3))
    assert np.shares_memory(ordered_like(x, x), x)
    assert np.shares_memory(ordered_like(y, y), y)
    assert not np.shares_memory(ordered_like(x, y), x)


# ---- In a process of its own ----


def run(code, **environment):
    root = Path(array.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_limit_comes_from_the_environment():
    ran = run("from minivgg.backends import workspace; print(workspace.limit())", MINIVGG_WORKSPACE="1.5")
    assert ran.stdout == f"{3 * 2**19}\n", ran.stderr


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_kernels_may_be_launched_from_several_threads(layer):
    # on the workqueue layer, two launches at once would end the whole process
    code = """
import threading, numba, numpy as np
from minivgg.ops.relu import relu_forward
x = np.arange(-50000.0, 50000.0)
wrong = []
def work():
    for _ in range(300):
        if relu_forward(x)[0].sum() != x[x > 0].sum():
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(len(wrong))
"""
    ran = run(code, NUMBA_THREADING_LAYER=layer)
    assert ran.stdout == "0\n", ran.stderr


def test_the_number_of_threads_comes_from_the_environment():
    code = "from minivgg.backends.jit import threads; print(threads())"
    assert run(code, NUMBA_NUM_THREADS="2", MINIVGG_NUM_THREADS="1").stdout == "1\n"
    ran = run(code, NUMBA_NUM_THREADS="2", MINIVGG_NUM_THREADS="many")
    assert "must be a number from 1 to 2, got many" in ran.stderr


def test_compiling_is_announced_once_and_to_people_alone(monkeypatch, capsys):
    monkeypatch.setattr(jit.threading, "Timer", AtOnce)
    monkeypatch.setattr(caches, "_said", set())
    with jit._patience():
        pass
    assert capsys.readouterr().err == ""  # nobody is looking
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in range(2):
        with jit._patience():
            pass
    assert capsys.readouterr().err == "minivgg: compiling for this processor; the next time it comes from the disk\n"


class AtOnce:
    """A timer that does not wait."""

    def __init__(self, seconds, function, arguments):
        self.start, self.cancel = partial(function, *arguments), lambda: None


def test_kernels_run_as_plain_python():
    code = """
import numpy as np
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, algorithms_on, naive
rng = np.random.default_rng(0)
x, w = rng.standard_normal((1, 3, 5, 6)), rng.standard_normal((2, 3, 3, 3))
for row in map(ALGORITHMS.get, algorithms_on("cpu")):
    spec = ConvSpec.of(x.shape, w.shape, 1, 1)
    print(row.name, abs(row.forward(x, w, spec) - naive.forward(x, w, spec)).max() < 1e-12)
"""
    ran = run(code, NUMBA_DISABLE_JIT="1")
    assert ran.stdout.count("True") == 6 and "False" not in ran.stdout, ran.stdout + ran.stderr
