"""Recorded steps of training: the bits of unrecorded ones, whatever comes in between. On a stand-in for CuPy's streams,
graphs and pools (fake_cupy.py), which is no proof of CUDA's own opinion, and on a GPU where there is one."""

import copy
import functools
import itertools
import sys
import types
import warnings

import fake_cupy
import numpy as np
import pytest
from test_cuda_training import batch, network
from test_cuda_training import step as one_step
from test_device_training import trainer

from minivgg import models
from minivgg.backends import array, cuda
from minivgg.backends.array import device_of, to, to_cpu, why_not
from minivgg.backends.graph import DeviceScalar, Recording, between, recording
from minivgg.bench import vgg_gpu
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.layers import Layer, Sequential
from minivgg.ops.conv2d import conv2d_backward, conv2d_forward, tiling, winograd_on_gpu
from minivgg.training import loop
from minivgg.training.config import Config
from minivgg.training.graph import WARM_UP, RecordedStep
from minivgg.training.loop import Diverged
from minivgg.training.optim import SGD, Adam


@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cuda.Kernel, "_compiled", fake_cupy.compiled)
    monkeypatch.setattr(fake_cupy.Graph, "replays", 0)
    monkeypatch.setattr(tiling, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(winograd_on_gpu, "_shared_memory_on_gpu", lambda device: 0)  # so that it goes by cuBLAS
    array._constant.cache_clear()
    yield module
    array._constant.cache_clear()
    assert fake_cupy.Stream.capturing == 0


def same(one, two):
    """Whether two trainers have come to the same place, to the last bit."""
    for (name, a), b in zip(one.arrays().items(), two.arrays().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    places = [trainer.place() for trainer in (one, two)]
    for place in places:
        place |= {"sums": timeless(place["sums"]), "history": list(map(timeless, place["history"]))}
    assert repr(places[0]) == repr(places[1])  # in which a NaN is like another


def timeless(row):
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def run(trainer, batches):
    for x, labels in batches:
        trainer._count(x, labels)


# ---- Training ----


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_recorded_training_has_the_bits_of_one_that_is_not(cupy, optimizer):
    options = {"optimizer": optimizer, "clip_norm": 1.0, "batches": 5}
    recorded, eager = trainer("gpu", graphs=True, **options), trainer("gpu", **options)
    recorded.fit(progress=False)
    parts = [part for part in recorded._step._recording._parts if hasattr(part, "__self__")]
    assert fake_cupy.Graph.replays == (2 * 5 - WARM_UP) * len(parts)
    eager.fit(progress=False)
    same(recorded, eager)
    simulated = trainer("sim", **options)
    simulated.fit(progress=False)
    same(recorded, simulated)


def test_the_host_has_little_to_do_in_a_replay(cupy):
    one = trainer("gpu", graphs=True, batches=5)
    parts = [part.__self__ for part in recorded_parts(one) if hasattr(part, "__self__")]
    launches = [len(graph.launches) for graph in parts]
    assert len(parts) < 10 < 60 < sum(launches)


def recorded_parts(one):
    run(one, itertools.islice(one.train.epoch(0), WARM_UP + 1))
    return one._step._recording._parts


def test_it_goes_on_as_if_it_had_never_stopped(cupy):
    whole = trainer("gpu", batches=5)
    whole.fit(progress=False)
    part = trainer("gpu", graphs=True, batches=5)
    run(part, itertools.islice(part.train.epoch(0), 4))
    assert part._step._recording
    stopped = copy.deepcopy((part.arrays(), part.place()))
    part.fit(progress=False)
    same(part, whole)
    resumed = trainer("gpu", graphs=True, batches=5)
    for each in (part, resumed):  # one that has a recording, and one that has to make its own
        each.restore(*stopped)
        each.fit(progress=False)
        same(each, whole)


def test_batches_of_another_shape_are_worked_on_as_before(cupy):
    def shorter(one):
        batches = list(one.train.epoch(0))
        for i in (1, 5, 7):
            batches[i] = tuple(a[:6] for a in batches[i])
        return batches

    recorded, eager = trainer("gpu", graphs=True, batches=10), trainer("gpu", batches=10)
    counts = []
    for x, labels in shorter(recorded):
        before = fake_cupy.Graph.replays
        recorded._count(x, labels)
        counts.append(fake_cupy.Graph.replays > before)
        gradient = to_cpu(recorded.model.named_params()["0.weight"].grad)
        eager._count(x, labels)
        np.testing.assert_array_equal(gradient, to_cpu(eager.model.named_params()["0.weight"].grad))
    # two warm up for each shape that follows another, and then comes the recording
    assert counts == [i in (4, 6, 8, 9) for i in range(10)]
    same(recorded, eager)


def test_what_a_step_returns_is_the_callers_to_keep(cupy):
    one, other = trainer("gpu", graphs=True, batches=6), trainer("gpu", batches=6)
    kept = [one.step(x, labels) for x, labels in one.train.epoch(0)]
    for (loss, correct), (x, labels) in zip(kept, other.train.epoch(0), strict=True):
        assert tuple(map(float, (loss, correct))) == tuple(map(float, other.step(x, labels)))


def test_the_loss_is_looked_at_before_the_update(cupy, monkeypatch):
    monkeypatch.setattr(loop, "LOOK", 5)
    recorded, eager = (trainer("gpu", graphs=graphs, batches=8) for graphs in (True, False))
    for one in (recorded, eager):
        batches = list(one.train.epoch(0))
        run(one, batches[:4])
        one.model.named_params()["6.bias"].data.fill(np.inf)
        run(one, batches[4:5])  # which does not look
        with pytest.raises(Diverged, match=r"the loss is nan at epoch 1, batch 6: .*weight .* not finite"):
            one.step(*batches[5])
        assert one.optimizer.steps == 5
    same(recorded, eager)


def test_every_layer_can_be_recorded(cupy):
    """All that networks have: normalisations, branches, a head on the way."""
    x, labels = (to(a, "gpu") for a in batch("cpu"))
    weights = []
    for graphs in (False, True):
        net = network().to("gpu")
        optimizer = SGD(net.named_params())
        run = step = functools.partial(one_step, net, optimizer, x, labels)
        for i in range(4):
            if graphs and i == 1:
                run = Recording(step).replay
            x[...] = x * 0.9
            run()
        weights.append(net.state_dict())
        x[...] = to(batch("cpu")[0], "gpu")
    for name, a in weights[0].items():
        np.testing.assert_array_equal(a, weights[1][name], err_msg=name)


# ---- What cannot be recorded ----


class Host(Layer):
    """Asks the device for a number on the way."""

    def __init__(self, ask):
        self.ask = ask

    def _forward(self, x, train):
        return x, self.ask(x) if train else None

    def _backward(self, dy, cache, need_dx):
        return dy


@pytest.mark.parametrize(
    ("ask", "why"),
    [(lambda x: x.sum().item(), "this one is capturing"), (lambda x: x.get(), "cudaErrorStreamCaptureUnsupported")],
    ids=["refused by CuPy", "given up by CUDA"],
)
def test_a_step_that_cannot_be_recorded_goes_on_and_says_so_once(cupy, ask, why):
    recorded, eager = trainer("gpu", graphs=True, batches=6), trainer("gpu", batches=6)
    recorded.model = Sequential(Host(ask), *recorded.model)
    eager.model = Sequential(Host(lambda x: None), *eager.model)
    with pytest.warns(RuntimeWarning, match=f"without CUDA graphs, because it could not be recorded: .*{why}") as said:
        recorded.fit(progress=False)
        for _ in range(WARM_UP + 1):
            recorded.step(np.zeros((3, 1, 6, 6), np.float32), np.zeros(3, int))
    assert len(said) == 1
    assert fake_cupy.Graph.replays == 0
    assert not recording()
    eager.fit(progress=False)
    for _ in range(WARM_UP + 1):
        eager.step(np.zeros((3, 1, 6, 6), np.float32), np.zeros(3, int))
    same(recorded, eager)


def test_what_is_wrong_with_the_step_itself_is_said_by_the_step(cupy):
    def work(x, labels):
        if len(calls) >= WARM_UP:
            raise ValueError("something else")
        calls.append(1)
        return x, labels

    calls = []
    step, x = RecordedStep(work, []), to(np.zeros(2), "gpu")
    with pytest.warns(RuntimeWarning, match="something else"), pytest.raises(ValueError, match="something else"):
        for _ in range(WARM_UP + 1):
            step(x, x)


@pytest.mark.parametrize(("device", "why"), [("cpu", "a CPU launches nothing"), ("sim", "the simulator runs a launch")])
def test_where_there_are_no_graphs_that_is_one_line(device, why, capsys):
    assert not Config().graphs and not trainer("cpu").graphs
    for made in (trainer, Config):
        with pytest.raises(BadInput, match=why):
            made(device=device, graphs=True)
    assert main(["train", "--graphs", "--device", device]) == 2
    assert capsys.readouterr().err.startswith(f"minivgg: CUDA graphs need device gpu, got {device}: {why}")


# ---- Recordings ----


def test_calls_in_between_come_in_their_order_and_anew_each_time(cupy):
    x, total, seen = to(np.ones(3), "gpu"), to(np.zeros(3), "gpu"), []

    def work():
        y = x * 2
        between(lambda y: seen.append(y.get().tolist()), y)
        y = y + 1
        between(lambda y, word: seen.append((word, y.get().tolist())), y, "then")
        total[...] = total + y
        return y

    recorded = Recording(work)
    assert seen == [] and not recording()
    for value in (1.0, 5.0):
        x.fill(value)
        recorded.replay()
        assert seen[-2:] == [[2 * value] * 3, ("then", [2 * value + 1] * 3)]
    np.testing.assert_array_equal(to_cpu(recorded.result), [11] * 3)
    np.testing.assert_array_equal(to_cpu(total), [14] * 3)


def test_arrays_of_calls_in_between_are_not_held(cupy):
    """So that as much memory is reserved as a step needs without graphs: here two arrays, and not ten."""

    def work():
        y = x + 0
        for _ in range(10):
            y = y + 1
            between(lambda y: None, y)
        return y

    x = to(np.zeros(100), "gpu")
    recorded = Recording(work)
    assert len(recorded._pool.all) == 2
    assert cupy.get_default_memory_pool().given_back > 0
    recorded.replay()
    np.testing.assert_array_equal(to_cpu(recorded.result), np.full(100, 10))


def test_what_is_worked_on_lives_with_the_recording(cupy):
    def record():
        x = to(np.full(5, 3.0), "gpu")
        return Recording(lambda: x + 1)

    recorded = record()
    others = [to(np.zeros(5), "gpu") for _ in range(3)]  # in what memory there is
    recorded.replay()
    np.testing.assert_array_equal(to_cpu(recorded.result), np.full(5, 4.0))
    assert len(others) == 3


@pytest.mark.parametrize("algorithm", ["naive", "im2col", "implicit_gemm", "winograd"])
def test_convolutions_can_be_recorded(cupy, algorithm):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 8, 8)).astype(np.float32), rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    x, w = to(x, "gpu"), to(w, "gpu")

    def work():
        y, cache = conv2d_forward(x, w, padding=1, algorithm=algorithm)
        return y, *conv2d_backward(y, cache)[:2]

    work()
    recorded = Recording(work)
    x[...] = x * 0.5 + 1
    recorded.replay()
    for found, expected in zip(recorded.result, work(), strict=True):
        np.testing.assert_array_equal(to_cpu(found), to_cpu(expected))


def test_a_number_of_the_hosts_is_an_argument_on_the_cpu_and_memory_on_a_gpu(cupy):
    number = DeviceScalar()
    number.set(0.1)
    on_cpu = number.of(np.zeros(1, np.float32))
    assert on_cpu == np.float32(0.1) and on_cpu.dtype == np.float32
    for device in ("sim", "gpu"):
        x = to(np.zeros(1, np.float32), device)
        cell, whole = number.of(x), number.of(x, np.uint64)
        assert (device_of(cell), cell.shape, cell.dtype, whole.dtype) == (device, (1,), np.float32, np.uint64)
        number.set(7)
        assert number.of(x) is cell
        assert to_cpu(cell)[0] == 7 and to_cpu(whole)[0] == 7


def test_a_number_of_the_hosts_that_is_met_first_in_a_recording(cupy):
    number, x = DeviceScalar(), to(np.ones(2), "gpu")
    number.set(3)
    recorded = Recording(lambda: x * number.of(x))
    for value in (3, 4):
        number.set(value)
        recorded.replay()
        np.testing.assert_array_equal(to_cpu(recorded.result), [value] * 2)


def test_the_race_has_a_recorded_step(cupy):
    weights = []
    for graphs in (False, True):
        one = trainer("cpu")
        task = types.SimpleNamespace(what="step", model=lambda: one.model, data=lambda: next(one.train.epoch(0)))  # noqa: B023
        step = vgg_gpu.ours(task, "fp32", graphs=graphs)
        for i in range(3 if graphs else WARM_UP + 3):
            step.run(i)
        weights.append(one.model.state_dict())
    assert fake_cupy.Graph.replays > 0
    for name, a in weights[0].items():
        np.testing.assert_array_equal(a, weights[1][name], err_msg=name)


# ---- On a GPU ----


@pytest.mark.skipif(why_not("gpu") is not None, reason=f"a graph of CUDA's needs a GPU: {why_not('gpu')}")
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_on_a_gpu_recorded_training_has_the_bits_of_one_that_is_not(optimizer):
    """CuPy itself. One thread, one stream, and the same calls of cuBLAS in both, so no bit may differ."""

    def trained(graphs):
        model = models.build("vgg11_bn", classes=2, channels=1, input_size=32, width=0.25, classifier_width=64)
        model.to("gpu")
        one = trainer("gpu", graphs=graphs, batches=8)
        one.model, one.optimizer = model, optimizer(model.named_params(), weight_decay=1e-3)
        one.__post_init__()
        rng = np.random.default_rng(0)
        for _ in range(8):
            one._count(rng.standard_normal((8, 1, 32, 32)).astype(np.float32), rng.integers(0, 2, 8))
        assert not graphs or one._step._recording
        return one

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a recording that fails
        same(trained(True), trained(False))
