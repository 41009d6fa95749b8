"""What the front door does about relu, pool, prepared and after_relu: for a rung that does all, and for the rest.

On numbers that any rung gets right, and rungs that are the seven loops and say what they were handed.
"""

import dataclasses

import numpy as np
import pytest

from minivgg.ops import conv2d
from minivgg.ops.conv2d import ALGORITHMS, Algorithm, ConvSpec, conv2d_backward, conv2d_forward, naive, planning
from minivgg.ops.maxpool import maxpool2d_forward
from minivgg.testing.arrays import integers

SIZES = [(5, 6), (2, 2), (2, 5), (4, 3)]
TOO_SMALL_TO_POOL = [(1, 4), (4, 1), (1, 1)]


def tensors(size=(5, 6)):
    """(x, w, b): signed integers as float64, so that sums are exact."""
    rng = np.random.default_rng(0)
    return [integers(rng, shape, "float64") for shape in ((2, 3, *size), (4, 3, 3, 3), (4,))]


def plain(x, w, b):
    return naive.forward(x, w, ConvSpec.of(x.shape, w.shape, padding=1)) + b[:, None, None]


def halved(y):
    return maxpool2d_forward(y, 2)[0]


@pytest.fixture
def handed(monkeypatch):
    """Makes "clever" a rung that fuses, pools and prepares. Gives the options that its forwards and gradients got."""
    got = []

    def forward(x, w, spec, *, bias, relu, pool=False, prepared=None):
        got.append({"relu": relu, "pool": pool, "prepared": prepared})
        y = plain(x, w, bias)
        y = np.maximum(y, 0) if relu else y
        return halved(y) if pool else y

    def grad_input(dy, w, spec, *, mask):
        got.append({"mask": mask})
        return naive.grad_input(dy, w, spec)

    clever = Algorithm(
        "clever", "", forward, grad_input, naive.grad_weight, fuses=True, pools=True, prepare=lambda w: w[::-1]
    )
    monkeypatch.setitem(ALGORITHMS, "clever", clever)
    return got


@pytest.mark.parametrize("size", SIZES + TOO_SMALL_TO_POOL)
@pytest.mark.parametrize("algorithm", [pytest.param("naive", id="plain"), "clever"])
def test_relu_and_pool_give_what_they_give_one_by_one(algorithm, size, handed):
    x, w, b = tensors(size)
    y = plain(x, w, b)
    options = {"padding": 1, "algorithm": algorithm}
    for relu in (False, True):
        expected = np.maximum(y, 0) if relu else y
        found, cache = conv2d_forward(x, w, b, relu=relu, **options)
        np.testing.assert_array_equal(found, expected)
        assert cache.x is x
        if min(size) < 2:  # nothing to take the largest of: the max-pool's own error
            with pytest.raises(ValueError, match=r"maxpool2d: a .* window does not fit"):
                conv2d_forward(x, w, b, relu=relu, pool=True, **options)
            assert not any(options["pool"] for options in handed)
            continue
        found, cache = conv2d_forward(x, w, b, relu=relu, pool=True, **options)
        np.testing.assert_array_equal(found, halved(expected))
        assert cache is None


def test_a_rung_that_fuses_is_left_to_it(handed):
    x, w, b = tensors()
    for relu, pool in ((False, False), (True, False), (False, True), (True, True)):
        conv2d_forward(x, w, b, padding=1, algorithm="clever", relu=relu, pool=pool)
        assert handed.pop() == {"relu": relu, "pool": pool, "prepared": None}


@pytest.mark.parametrize("size", SIZES)
def test_a_rung_that_pools_does_it_from_two_by_two_on(size, handed):
    x, w, b = tensors(size)
    conv2d_forward(x, w, b, padding=1, algorithm="clever", pool=True)
    assert handed == [{"relu": False, "pool": True, "prepared": None}]


def test_a_rung_that_only_fuses_need_not_pool(handed, monkeypatch):
    x, w, b = tensors()
    monkeypatch.setitem(ALGORITHMS, "clever", dataclasses.replace(ALGORITHMS["clever"], pools=False))
    found, cache = conv2d_forward(x, w, b, padding=1, algorithm="clever", relu=True, pool=True)
    np.testing.assert_array_equal(found, halved(np.maximum(plain(x, w, b), 0)))
    assert cache is None
    assert [options["pool"] for options in handed] == [False]


def test_filters_are_prepared_once_and_kept(handed):
    x, w, b = tensors()
    kept = {}
    for _ in range(2):
        conv2d_forward(x, w, b, padding=1, algorithm="clever", prepared=kept)
    (first, second), (mine,) = handed, kept.values()
    assert list(kept) == ["clever"]
    assert first["prepared"] is second["prepared"] is mine
    np.testing.assert_array_equal(mine, w[::-1])
    assert not np.shares_memory(mine, w)
    conv2d_forward(x, w, b, padding=1, algorithm="naive", prepared=kept)
    assert list(kept) == ["clever"]  # which prepares nothing


@pytest.mark.parametrize("kept", [None, {}])
def test_auto_is_told_whether_filters_are_prepared(kept, handed, monkeypatch):
    asked = []

    def plan(spec, direction, **options):
        asked.append((direction, options["prepared"]))
        return ALGORITHMS["clever"]

    monkeypatch.setattr(conv2d, "plan", plan)
    x, w, b = tensors()
    y, cache = conv2d_forward(x, w, b, padding=1, prepared=kept)
    conv2d_backward(y, cache)
    assert asked == [("forward", kept is not None), ("grad_input", False), ("grad_weight", False)]


def test_a_plan_is_for_filters_that_change_unless_told(monkeypatch):
    monkeypatch.setattr(planning, "measurements", lambda threads: {})
    # 512 filters for 4 tiles: transformed anew they cost more than they save, unless they have been prepared
    spec = ConvSpec.of((1, 512, 8, 8), (512, 512, 3, 3), padding=1)
    plans = {prepared: conv2d.plan(spec, prepared=prepared).name for prepared in (False, True)}
    assert len(set(plans.values())) == 2
    assert conv2d.plan(spec).name == plans[False]
    assert conv2d.explain(spec).startswith(f"{plans[False]}: ")
    assert "inf" not in conv2d.explain(spec)


@pytest.mark.parametrize("after_relu", [False, True])
def test_gradients_behind_a_relu(after_relu, handed):
    x, w, b = tensors()
    dy = integers(np.random.default_rng(1), (2, 4, 5, 6), "float64")
    dx = naive.grad_input(dy, w, ConvSpec.of(x.shape, w.shape, padding=1))
    found = {}
    for algorithm in ("naive", "clever"):
        cache = conv2d_forward(x, w, b, padding=1, algorithm=algorithm)[1]
        found[algorithm] = conv2d_backward(dy, cache, after_relu=after_relu)[0]
    np.testing.assert_array_equal(found["naive"], np.where(x > 0, dx, 0) if after_relu else dx)
    np.testing.assert_array_equal(found["clever"], dx)
    assert handed[-1]["mask"] is (x if after_relu else None)


@pytest.mark.parametrize("wrong", [np.zeros((2, 4, 5, 5)), np.zeros((2, 4, 5, 6), np.float32)])
def test_refuses_a_gradient_of_another_shape_or_dtype(wrong):
    x, w, b = tensors()
    with pytest.raises(ValueError, match=r"conv2d_backward: dy must have the output's shape \(2, 4, 5, 6\) and dtype"):
        conv2d_backward(wrong, conv2d_forward(x, w, b, padding=1, algorithm="naive")[1])
