"""Networks on the simulated GPU: moving there and back, training steps, what is saved and loaded."""

import math

import numpy as np
import pytest

import minivgg as mv
from minivgg import cudasim
from minivgg.backends.array import SimulatedArray, device_of, to, to_cpu
from minivgg.layers import auxiliary_loss_backward, auxiliary_loss_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.training import checkpoints
from minivgg.training.optim import SGD, Adam, clip_gradients

OPTIMIZERS = {
    "SGD": lambda params: SGD(params, momentum=0.9, weight_decay=5e-4),
    # so large an eps that an update is as well known as its gradient, and not ±lr where that is all rounding
    "Adam": lambda params: Adam(params, eps=0.1, weight_decay=5e-4),
}


def conv(inputs, outputs, size, padding=0, **options):
    return mv.Conv2d(inputs, outputs, size, padding=padding, algorithm="naive", **options)


def network(dtype=np.float32):
    """A VGG that has something of everything, with random parameters."""
    net = mv.Sequential(
        conv(2, 4, 3, 1),
        mv.ReLU(),
        mv.LocalResponseNorm(3, alpha=0.5),
        mv.Auxiliary(conv(4, 2, 1), mv.ReLU(), mv.AdaptiveAvgPool2d(1), mv.Flatten(), mv.Linear(2, 3)),
        conv(4, 5, 3, 1, bias=False),
        mv.BatchNorm2d(5),
        mv.ReLU(),
        mv.MaxPool2d(2),
        mv.Concat(conv(5, 3, 1), mv.Sequential(mv.MaxPool2d(3, 1, 1), conv(5, 3, 1), mv.ReLU())),
        conv(6, 4, 3, 1),
        mv.ReLU(),
        mv.MaxPool2d(2),
        mv.Flatten(),
        mv.Dropout(0.4, seed=5),
        mv.Linear(16, 6),
        mv.ReLU(),
        mv.Linear(6, 3),
    ).astype(dtype)
    rng = np.random.default_rng(3)
    for p in net.named_params().values():
        p.data[...] = rng.standard_normal(p.data.shape) / math.sqrt(max(1, p.data[0].size))
    return net


def batch(device, dtype=np.float32):
    images = np.random.default_rng(4).standard_normal((4, 2, 8, 8)).astype(dtype)
    return to(images, device), to(np.array([2, 0, 1, 2]), device)


def step(net, optimizer, x, labels):
    """One step of training: (loss, norm of the gradients)."""
    scores = net.forward(x, train=True)
    loss, cache = softmax_cross_entropy_forward(scores, labels, 0.1)
    heads_loss, heads_cache = auxiliary_loss_forward(net, labels, 0.1)
    net.zero_grad()
    auxiliary_loss_backward(1, heads_cache)
    net.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
    norm = clip_gradients(optimizer.params, 0.5)
    optimizer.step(0.1)
    return loss + heads_loss, norm


def trained(device, dtype, optimizer):
    """All numbers that three steps leave behind."""
    net = network(dtype).to(device)
    optimizer = OPTIMIZERS[optimizer](net.named_params())
    x, labels = batch(device, dtype)
    seen = {}
    for i in range(3):
        loss, norm = step(net, optimizer, x, labels)
        seen |= {f"loss {i}": np.array(to_cpu(loss)), f"norm {i}": np.ravel(to_cpu(norm))}
    gradients = {f"gradient of {name}": np.array(to_cpu(p.grad)) for name, p in net.named_params().items()}
    state = {f"state {name}": np.array(to_cpu(value)) for name, value in optimizer.state.items()}
    return seen | gradients | state | net.state_dict() | {"scores": to_cpu(net.forward(x))}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_steps_agree_with_the_cpu(dtype, optimizer):
    cpu, sim = trained("cpu", dtype, optimizer), trained("sim", dtype, optimizer)
    assert cpu.keys() == sim.keys()
    assert cpu["norm 0"] > 0.5  # so that clipping is part of it
    # Each pass is a dozen layers deep, with sums of at most 256 terms, and rounding grows as the root of their number:
    # 3 steps · 2 passes · 12 layers · √256 · eps/2, for the largest number of each array
    allowed = 3 * 2 * 12 * 16 / 2 * np.finfo(dtype).eps
    for name, expected in cpu.items():
        assert np.abs(sim[name] - expected).max() <= allowed * np.abs(expected).max(), name


def test_two_runs_give_the_same_bits():
    one, two = trained("sim", np.float32, "SGD"), trained("sim", np.float32, "SGD")
    for name, expected in one.items():
        np.testing.assert_array_equal(two[name], expected, err_msg=name)


def test_a_step_is_the_same_in_any_order_of_threads_and_without_races():
    def once(**checks):
        net = network().to("sim")
        with cudasim.checking(**checks):
            loss, norm = step(net, SGD(net.named_params()), *batch("sim"))
        return {"loss": np.array(loss), "norm": np.array(norm)} | net.state_dict()

    expected = once(orders=("forward", "reverse", 1, 2))
    for name, found in once(racecheck=True, memcheck=True).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


def test_a_step_asks_the_device_for_no_number(monkeypatch):
    net = network().to("sim")
    optimizer, data = SGD(net.named_params()), batch("sim")

    def refuse(*_):
        raise AssertionError("the host waits for the device")

    for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
        monkeypatch.setattr(SimulatedArray, name, refuse, raising=False)
    with cudasim.checking(orders=("forward",)):  # comparing the orders would ask
        loss, norm = step(net, optimizer, *data)
    assert device_of(loss) == device_of(norm) == "sim"
    with pytest.raises(AssertionError, match="waits"):
        float(loss)


def test_everything_stays_on_the_device():
    net = network().to("sim")
    optimizer = Adam(net.named_params())
    x, _ = batch("sim")
    y = net.forward(x, train=True)
    assert device_of(net.backward(y)) == "sim"
    arrays = [p.data for p in net.named_params().values()] + [p.grad for p in net.named_params().values()]
    arrays += [*optimizer.state.values(), y, net.forward(x), net.freeze().forward(x)]
    arrays += [net[5].running_mean, net[5].running_var]
    assert {device_of(a) for a in arrays} == {"sim"}


# ---- Inference ----


def test_running_one_by_one_fused_and_frozen_agree():
    net = network()
    net.forward(batch("cpu")[0], train=True)  # gives the batch norm something to remember
    expected = net.forward(batch("cpu")[0])
    net.to("sim")
    x, _ = batch("sim")
    answers = {"fused": net.forward(x), "frozen": net.freeze().forward(x), "part": net.features_at("16").forward(x)}
    net.fused = False
    answers["one by one"] = net.forward(x)
    for name, y in answers.items():
        np.testing.assert_allclose(to_cpu(y), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_a_frozen_network_moves_as_well():
    frozen = network().freeze()
    x, _ = batch("cpu")
    expected = frozen.forward(x)
    prepared = frozen[0]._prepared
    prepared["made on the CPU"] = x
    np.testing.assert_allclose(to_cpu(frozen.to("sim").forward(to(x, "sim"))), expected, atol=1e-5)
    assert "made on the CPU" not in frozen[0]._prepared


# ---- Moving ----


def test_moving_keeps_every_number_and_its_memory_order():
    net, same = network(), network()
    x, _ = batch("cpu")
    for n in (net, same):
        n.backward(n.forward(x, train=True))
    assert net.to("sim") is net
    assert {device_of(a) for p in net.named_params().values() for a in (p.data, p.grad)} == {"sim"}
    assert net.to("cpu") is net
    for name, p in net.named_params().items():
        other = same.named_params()[name]
        for mine, its in ((p.data, other.data), (p.grad, other.grad)):
            assert device_of(mine) == "cpu"
            np.testing.assert_array_equal(mine, its)
            assert mine.strides == its.strides
    np.testing.assert_array_equal(net[5].running_mean, same[5].running_mean)


def test_moving_forgets_what_a_forward_has_kept():
    net = network()
    y = net.forward(batch("cpu")[0], train=True)
    assert net[3].scores is not None
    net.to("sim")
    assert net[3].scores is None
    with pytest.raises(RuntimeError, match="nothing to go back through"):
        net.backward(to(y, "sim"))


def test_moving_to_where_it_is_copies_nothing():
    net = network()
    before = {name: p.data for name, p in net.named_params().items()}
    net.to("cpu")
    assert all(p.data is before[name] for name, p in net.named_params().items())


# ---- Saving and loading ----


def test_a_state_is_in_main_memory_and_loads_on_either_device():
    here, there = network(), network().to("sim")
    step(there, SGD(there.named_params()), *batch("sim"))
    state = there.state_dict()
    assert {type(value) for value in state.values()} == {np.ndarray}
    here.load_state_dict(state)
    for name, value in here.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    fresh = network().to("sim")
    fresh.load_state_dict(state)
    assert device_of(fresh[0].weight.data) == device_of(fresh[5].running_mean) == "sim"
    for name, value in fresh.state_dict().items():
        np.testing.assert_array_equal(value, state[name])


def test_a_checkpoint_of_a_gpu_goes_on_on_the_cpu(tmp_path):
    net = network().to("sim")
    optimizer = Adam(net.named_params())
    step(net, optimizer, *batch("sim"))
    checkpoints.save(tmp_path / "run", net.state_dict() | optimizer.state, {"steps": 1})
    arrays, _ = checkpoints.load(tmp_path / "run")
    for device in ("cpu", "sim"):
        again = network().to(device)
        adam = Adam(again.named_params())
        again.load_state_dict({name: arrays[name] for name in net.state_dict()})
        adam.load_state({name: arrays[name] for name in optimizer.state}, 1)
        assert {device_of(value) for value in adam.state.values()} == {device}
        for name, value in adam.state.items():
            np.testing.assert_array_equal(to_cpu(value), to_cpu(optimizer.state[name]))


# ---- Clipping ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_by_the_joint_norm(dtype):
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape).astype(dtype) for shape in [(140, 1000), (3,), (2, 3, 4, 5)]]
    norm = math.sqrt(sum(float(np.vdot(g.astype(np.float64), g)) for g in gradients))
    for largest in (norm / 3, norm * 2):
        params = {str(i): mv.Param(to(g, "sim")) for i, g in enumerate(gradients)} | {"none": mv.Param(gradients[0])}
        for p in params.values():
            p.grad = p.data.copy() if device_of(p.data) == "sim" else None
        found = clip_gradients(params, largest)
        np.testing.assert_allclose(to_cpu(found), [norm], rtol=1e-14)  # squares, of one sign, in float64
        for i, g in enumerate(gradients):
            expected = g * dtype(min(1, largest / norm))
            np.testing.assert_allclose(to_cpu(params[str(i)].grad), expected, rtol=2 * np.finfo(dtype).eps)
