"""Optimisers against their formulas in plain float64, schedules against worked numbers."""

import numba
import numpy as np
import pytest

from minivgg.backends.array import channels_last, to, to_cpu, why_not
from minivgg.errors import BadInput
from minivgg.layers import Param
from minivgg.training.optim import SGD, Adam, clip_gradients
from minivgg.training.schedules import Plateau, schedule

ORDERS = {"C order": np.ascontiguousarray, "channels last": channels_last}


def parameters(order, dtype):
    """A weight and a bias with gradients, and the same as float64 pairs for the oracle."""
    rng = np.random.default_rng(0)
    w, b = order(rng.standard_normal((4, 3, 2, 2))).astype(dtype), rng.standard_normal(5).astype(dtype)
    return {"weight": Param(w), "bias": Param(b)}


def gradients(step):
    rng = np.random.default_rng([1, step])
    return rng.standard_normal((4, 3, 2, 2)), rng.standard_normal(5)


def follow(optimizer, rule, dtype, steps=6):
    """Run `optimizer`, and `rule(w, g, decay, state, t)` in float64, side by side; the largest relative distance."""
    params = optimizer.params
    expected = {name: p.data.astype(float) for name, p in params.items()}
    states = {name: [np.zeros(p.data.shape), np.zeros(p.data.shape)] for name, p in params.items()}
    for t in range(1, steps + 1):
        for p, g in zip(params.values(), gradients(t), strict=True):
            p.grad = None
            p.accumulate(g.astype(dtype))
        optimizer.step(0.1 / t)
        for (name, w), g, decay in zip(expected.items(), gradients(t), (0.02, 0.0), strict=True):
            rule(w, g.astype(dtype).astype(float), 0.1 / t, decay, states[name], t)
    return max(np.abs(p.data - expected[name]).max() for name, p in params.items())


def sgd_rule(w, g, lr, decay, state, t):
    state[0][...] = 0.9 * state[0] + g + decay * w
    w -= lr * state[0]


def adam_rule(w, g, lr, decay, state, t):
    g = g + decay * w
    state[0][...] = 0.9 * state[0] + 0.1 * g
    state[1][...] = 0.999 * state[1] + 0.001 * g**2
    w -= lr * (state[0] / (1 - 0.9**t)) / (np.sqrt(state[1] / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "rule"), [(SGD, sgd_rule), (Adam, adam_rule)])
def test_steps_follow_the_formula(kind, rule, order, dtype):
    optimizer = kind(parameters(order, dtype), weight_decay=0.02)
    # six steps of about ten roundings each, on values below 4; Adam's 1 − 0.999 is known to eps / 0.001 in float32
    blur = 1000 if kind is Adam else 1
    assert follow(optimizer, rule, dtype) < 60 * 4 * blur * np.finfo(dtype).eps


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_state_goes_on_bit_for_bit(kind):
    one, two = (kind(parameters(channels_last, np.float32)) for _ in range(2))
    follow(one, lambda *_: None, np.float32)
    for p, q in zip(one.params.values(), two.params.values(), strict=True):
        q.data[...] = p.data
    two.load_state({name: np.ascontiguousarray(value) for name, value in one.state.items()}, one.steps)
    for optimizer in (one, two):
        follow(optimizer, lambda *_: None, np.float32)
    for p, q in zip(one.params.values(), two.params.values(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_foreign_state_is_refused():
    optimizer = SGD(parameters(np.ascontiguousarray, np.float32))
    with pytest.raises(ValueError, match="SGD: the saved state belongs to another"):
        optimizer.load_state({"m.weight": np.zeros(3)}, 1)


def test_parameter_without_gradient_stays():
    params = parameters(np.ascontiguousarray, np.float32)
    before = params["weight"].data.copy()
    SGD(params, weight_decay=1.0).step(1.0)
    np.testing.assert_array_equal(params["weight"].data, before)


def test_clipping_scales_all_gradients_together():
    params = {"a": Param(np.zeros((2, 2))), "b": Param(np.zeros(1))}
    params["a"].grad, params["b"].grad = np.array([[1.0, -2.0], [2.0, 0.0]]), np.array([-4.0])
    assert clip_gradients(params, 10) == 5
    np.testing.assert_array_equal(params["b"].grad, [-4])
    assert clip_gradients(params, 1) == 5
    np.testing.assert_allclose(params["a"].grad, np.array([[1, -2], [2, 0]]) / 5)
    np.testing.assert_allclose(params["b"].grad, [-0.8])


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("constant", 0, {0: 1, 7: 1}),
        ("constant", 2, {0: 0, 0.5: 0.25, 2: 1, 7: 1}),
        ("step", 0, {0: 1, 3.9: 1, 4: 0.1, 6: 0.01, 8: 0.01}),
        ("cosine", 0, {0: 1, 2: (1 + 0.5**0.5) / 2, 4: 0.5, 8: 0}),
        ("cosine", 4, {2: 0.5, 4: 1, 6: 0.5, 8: 0}),
    ],
)
def test_schedules(name, warmup, expected):
    rate = schedule(name, 8, warmup)
    assert {epoch: pytest.approx(rate(epoch), abs=1e-12) for epoch in expected} == expected


def test_plateau_waits_three_epochs_and_resumes():
    rate = schedule("plateau", 100)
    for error in (0.5, 0.4, 0.45, 0.41):
        rate.observe(error)
    assert rate(4) == 1
    resumed = schedule("plateau", 100)
    resumed.restore(rate.state())
    resumed.observe(0.4)
    assert resumed(5) == pytest.approx(0.1)
    for error in (0.3, 0.31, 0.31):
        resumed.observe(error)
    assert resumed(8) == pytest.approx(0.1)


def test_unknown_schedule():
    with pytest.raises(BadInput, match='no schedule "linear"; there are constant, step, cosine, plateau'):
        schedule("linear", 3)


def clipped(gradients, largest, device="cpu"):
    """The norm that `clip_gradients` finds, and the gradients that it leaves."""
    params = {str(i): Param(np.zeros_like(g)) for i, g in enumerate(gradients)}
    for p, g in zip(params.values(), gradients, strict=True):
        p.grad = to(g.copy(), device)
    norm = clip_gradients(params, largest)
    return float(to_cpu(norm).item()) if device != "cpu" else norm, [to_cpu(p.grad) for p in params.values()]


DEVICES = ["cpu", pytest.param("sim", marks=pytest.mark.skipif(why_not("sim") is not None, reason="no simulator"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("value", "dtype", "largest"),
    [
        (1e19, np.float32, 2.0),
        (1e-25, np.float32, 1e-30),
        (3e38, np.float32, 1e-3),  # a factor that float32 does not hold
        (1e-44, np.float32, 1e-44),
        (1e300, np.float64, 2.0),
        (1e-300, np.float64, 1e-305),
        (5e153, np.float64, 1e154),
    ],
)
def test_large_and_small_gradients_are_clipped_right(value, dtype, largest, device):
    value = float(dtype(value))
    norm, (found, more) = clipped([np.full((8, 15), value, dtype), np.full(8, -value, dtype)], largest, device)
    assert norm == pytest.approx(128**0.5 * value, rel=1e-12)  # 11.31 times one of them
    # a few roundings of the gradients' own type, or of its smallest number
    slack = {"rtol": 4 * np.finfo(dtype).eps, "atol": 2 * float(np.finfo(dtype).smallest_subnormal)}
    np.testing.assert_allclose(found, largest / 128**0.5, **slack)
    np.testing.assert_allclose(more, -largest / 128**0.5, **slack)


def test_a_hundred_thousand_gradients_add_up_as_in_float64():
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(size).astype(np.float32) for size in (100_001, 32_768, 3, 1, 65_535)]
    expected = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients))
    norms = set()
    before = numba.get_num_threads()
    for threads in (1, before):
        numba.set_num_threads(threads)
        norms.add(clipped(gradients, 1.0)[0])
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("bad", "expected"), [([np.inf], np.inf), ([-np.inf], np.inf), ([np.nan, np.inf], np.nan)])
def test_gradients_that_are_not_finite_stay_as_they_are(bad, expected, dtype, device):
    gradients = [np.array([1, *bad, 3], dtype), np.array([5.0, 6.0], dtype)]
    norm, found = clipped(gradients, 1.0, device)
    assert norm == expected or (np.isnan(norm) and np.isnan(expected))
    for before, after in zip(gradients, found, strict=True):
        np.testing.assert_array_equal(after, before)


PARAMS = parameters(np.ascontiguousarray, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda norm=norm: clip_gradients(PARAMS, norm), "max_norm") for norm in (-1, 0, np.nan, np.inf, "1", True)),
        *((lambda m=m: SGD(PARAMS, momentum=m), "SGD: momentum") for m in (-0.5, 1, 5, np.nan, None)),
        *((lambda d=d: SGD(PARAMS, weight_decay=d), "SGD: weight_decay") for d in (-1, np.nan, np.inf)),
        *((lambda d=d: Adam(PARAMS, weight_decay=d), "Adam: weight_decay") for d in (-1, np.nan)),
        *((lambda b=b: Adam(PARAMS, betas=b), "Adam: a beta") for b in ((1.0, 0), (0.9, 1), (-0.1, 0), (0, np.nan))),
        *((lambda e=e: Adam(PARAMS, eps=e), "Adam: eps") for e in (0, -1e-8, np.nan, 1e-50)),
        *((lambda lr=lr: SGD(PARAMS).step(lr), "SGD: lr") for lr in (-0.1, np.nan, np.inf, 1e300)),
        *((lambda e=e: schedule("cosine", e), "Cosine: epochs") for e in (-1, np.nan, "3")),
        *((lambda w=w: schedule("step", 3, w), "Step: warmup") for w in (-1, np.nan)),
        (lambda: Plateau(3, patience=0), "Plateau: patience"),
        (lambda: Plateau(3, patience=1.5), "Plateau: patience"),
        (lambda: schedule("plateau", 3).restore({"best": np.nan, "waited": 0, "drops": 0}), "best"),
        (lambda: schedule("plateau", 3).restore({"best": 0.5, "waited": -1, "drops": 0}), "waited"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(BadInput, match=rf"{message} = .*: should be a (whole )?number, "):
        call()


def test_a_state_with_other_names_is_refused():
    for state in ({"best": 0.5}, {"best": 0.5, "waited": 0, "drops": 0, "factor": 1}):
        with pytest.raises(BadInput, match="the state of a Plateau holds best, waited, drops"):
            schedule("plateau", 3).restore(state)
    with pytest.raises(BadInput, match="two numbers"):
        Adam(PARAMS, betas=(0.9,))
