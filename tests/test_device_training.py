"""Training where CUDA kernels run, here on the simulator: as on the CPU, the same twice, resumed, seldom waited for."""

import sys

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import SimulatedArray, device_of
from minivgg.cli.main import main
from minivgg.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import initialise
from minivgg.training import loop
from minivgg.training.datasets import Dataset
from minivgg.training.loader import Loader
from minivgg.training.loop import Diverged, Trainer
from minivgg.training.optim import SGD, Adam
from minivgg.training.preprocessing import fit
from minivgg.training.schedules import schedule


def halves(count, seed):
    """Images of 6×6 that are brighter above (class 0) or below (class 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 120, (count, 6, 6)) + 100 * (np.arange(6)[:, None] // 3 == labels[:, None, None])
    return Dataset(f"halves/{seed}", images.astype(np.uint8)[..., None], labels, ("above", "below"), 1)


def trainer(device, *, optimizer=SGD, epochs=2, lr=0.1, batches=3, dropout=0.3, **changes):
    # no bias before batch norm: its gradient is zero but for rounding, which Adam would make as large as any other
    convolution = Conv2d(1, 4, 3, padding=1, bias=False, algorithm="naive")
    layers = [convolution, BatchNorm2d(4), ReLU(), MaxPool2d(2), Flatten()]
    model = Sequential(*layers, Dropout(dropout, seed=3), Linear(36, 2))
    initialise(model, "he", seed=1)
    model.to(device)
    train = halves(8 * batches, 0)
    preprocessing = fit(train, 6)
    settings = {
        "model": model,
        "train": Loader(train, preprocessing, 8, shuffle=True, seed=4),
        "test": Loader(halves(8, 1), preprocessing, 8),
        "optimizer": optimizer(model.named_params(), weight_decay=1e-3),
        "schedule": schedule("cosine", epochs, warmup=0),
        "lr": lr,
        "epochs": epochs,
        "device": device,
    }
    return Trainer(**settings | changes)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_run_is_that_of_the_cpu_up_to_rounding_and_its_own_to_the_last_bit(optimizer):
    one, two, cpu = (trainer(device, optimizer=optimizer, clip_norm=1.0) for device in ("sim", "sim", "cpu"))
    for each in (one, two, cpu):
        each.fit(progress=False)
    assert {device_of(p.data) for p in one.model.named_params().values()} == {"sim"}
    assert {device_of(state) for state in one.optimizer.state.values()} == {"sim"}
    for (name, a), b, c in zip(one.arrays().items(), two.arrays().values(), cpu.arrays().values(), strict=True):
        assert type(a) is np.ndarray
        np.testing.assert_array_equal(a, b, err_msg=name)
        # 6 steps, each off by rounding of sums of at most 288 float32 terms; Adam divides by what may be small
        np.testing.assert_allclose(a, c, rtol=2e-3, atol=2e-4, err_msg=name)
    for key in ("train_loss", "test_loss"):
        assert one.history[-1][key] == pytest.approx(cpu.history[-1][key], rel=1e-3)
        assert one.history[-1][key] == two.history[-1][key]


def test_it_learns():
    one = trainer("sim", epochs=6, dropout=0.0)
    one.fit(progress=False)
    assert one.history[-1]["test_accuracy"] == 1


def test_it_goes_on_as_if_it_had_never_stopped_and_on_the_cpu_as_well():
    whole = trainer("sim")
    whole.fit(progress=False)
    part = trainer("sim")
    for x, labels in list(part.train.epoch(0))[:2]:
        part._count(x, labels)
    resumed, moved = trainer("sim"), trainer("cpu")
    for each in (resumed, moved):
        each.restore(part.arrays(), part.place())
        each.fit(progress=False)
    for (name, a), b, c in zip(whole.arrays().items(), resumed.arrays().values(), moved.arrays().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_allclose(a, c, rtol=2e-3, atol=2e-4, err_msg=name)


def test_the_host_waits_for_a_number_every_so_many_steps_only(monkeypatch):
    waits = []
    for name in ("__float__", "__int__", "__bool__", "item", "tolist", "__index__"):

        def wait(self, *arguments, name=name):
            waits.append(name)
            return getattr(np.ndarray, name)(self, *arguments)

        monkeypatch.setattr(SimulatedArray, name, wait, raising=False)
    monkeypatch.setattr(loop, "LOOK", 4)
    one = trainer("sim", epochs=1, batches=9)
    counts = []
    with cudasim.checking(orders=("forward",)):  # comparing orders means to look at the results
        for x, labels in one.train.epoch(0):
            one._count(x, labels)
            counts.append(len(waits))
            waits.clear()
    assert [number for number, count in enumerate(counts) if count] == [0, 4, 8]


def test_a_loss_that_is_no_number_is_told():
    one = trainer("sim", lr=1e30)
    with pytest.raises(Diverged, match="the loss is nan at epoch 1, batch 3: "):
        one.fit(progress=False)


def test_the_command_trains_and_predicts_on_a_device(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    data = halves(24, 0), halves(8, 1)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez("halves.npz", **dict(zip(names, (a for d in data for a in (d.images[..., 0], d.labels)), strict=True)))
    small = ["--width", "0.02", "--classifier-width", "4", "--epochs", "1", "--batch-size", "8", "--algorithm", "naive"]
    options = ["--data", "halves.npz", "--model", "vgg11", *small, "--device", "sim", "--run", "run", "--quiet"]
    assert main(["train", *options]) == 0
    Image.fromarray(data[1].images[0, ..., 0]).save("one.png")
    printed = []
    for device in ("sim", "cpu"):
        capsys.readouterr()
        assert main(["predict", "one.png", "--run", "run", "--device", device]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for command in (
        ["train", "--device", "gpu"],
        ["predict", "x.png", "--device", "gpu"],
        ["train", "--device", "abacus"],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith(f"minivgg: device {command[-1]}: ")


# ---- Whether a step can be recorded as CUDA graphs: on the simulator, for what they are made of is the same there ----


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_two_steps_launch_the_same_and_ask_for_no_number(monkeypatch, optimizer):
    """A graph repeats launches to the last argument, and knows nothing of a host that would decide on the way."""
    launches = []

    def noted(kernel, grid, block, arguments, launch=cudasim.RawKernel.__call__, **options):
        numbers = [a for a in arguments if not isinstance(a, np.ndarray)]
        launches.append((kernel.name, grid, block, numbers, options))
        launch(kernel, grid, block, arguments, **options)

    def refuse(*_):
        raise AssertionError("the host waits for the device")

    one = trainer("sim", optimizer=optimizer, clip_norm=0.1, batches=4)  # of a cosine: another rate each step
    batches = list(one.train.epoch(0))
    one._count(*batches[0])  # which looks at its loss
    monkeypatch.setattr(cudasim.RawKernel, "__call__", noted)
    for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
        monkeypatch.setattr(SimulatedArray, name, refuse, raising=False)
    steps = []
    with cudasim.checking(orders=("forward",)):  # comparing orders means to look at the results
        for x, labels in batches[1:3]:
            launches.clear()
            one._count(x, labels)
            steps.append(list(launches))
    assert steps[0] == steps[1]
    assert {"apply", "clip", optimizer.__name__.lower()} <= {name for name, *_ in steps[0]}
