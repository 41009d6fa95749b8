"""Optimisers against their formulas in plain float64, schedules against worked numbers."""

import numpy as np
import pytest

from minivgg.backends.array import channels_last
from minivgg.errors import BadInput
from minivgg.layers import Param
from minivgg.training.optim import SGD, Adam, clip_gradients
from minivgg.training.schedules import schedule

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
