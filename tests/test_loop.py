"""The training loop: it learns, it resumes bit for bit from any place, and it says where numbers go bad."""

import os
import signal

import numpy as np
import pytest

from minivgg.errors import BadInput
from minivgg.layers import Conv2d, Flatten, Linear, ReLU, Sequential
from minivgg.models import build, initialise
from minivgg.training.augmentation import Augmentation
from minivgg.training.datasets import Dataset
from minivgg.training.loader import Loader
from minivgg.training.loop import Diverged, Stopped, Trainer, evaluate, first_bad
from minivgg.training.optim import SGD
from minivgg.training.preprocessing import fit
from minivgg.training.schedules import schedule


def stripes(count, seed):
    """Noisy images with horizontal (class 0) or vertical (class 1) stripes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    wave = 90 * (np.arange(32) // 4 % 2)
    pattern = np.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    images = (pattern + rng.integers(0, 160, (count, 32, 32))).astype(np.uint8)
    return Dataset(f"stripes/{seed}", images[..., None], labels, ("horizontal", "vertical"), 1)


def trainer(*, epochs=2, lr=0.02, **changes):
    train, test = stripes(60, 0), stripes(30, 1)
    preprocessing = fit(train, 32)
    model = build("vgg11_bn", channels=1, classes=2, input_size=32, width=0.1, classifier_width=16, seed=4)
    settings = {
        "model": model,
        "train": Loader(train, preprocessing, 12, augmentation=Augmentation(pad=2, flip=True), shuffle=True, seed=4),
        "test": Loader(test, preprocessing, 20),
        "optimizer": SGD(model.named_params(), weight_decay=1e-3),
        "schedule": schedule("plateau", epochs, warmup=1),
        "lr": lr,
        "epochs": epochs,
    }
    return Trainer(**settings | changes)


def same_weights(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one.arrays().values(), two.arrays().values(), strict=True))


def test_it_learns():
    one = trainer(epochs=8)
    one.fit(progress=False)
    assert evaluate(one.model, one.test).accuracy > 0.9
    assert [row["epoch"] for row in one.history] == list(range(1, 9))
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]
    assert one.history[-1]["test_accuracy"] == evaluate(one.model, one.test).accuracy


def test_same_seed_same_bits():
    one, two = trainer(), trainer()
    one.fit(progress=False)
    two.fit(progress=False)
    assert same_weights(one, two)


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 9])  # batches; an epoch has five
def test_resumes_bit_for_bit_from_any_batch(stop):
    whole = trainer()
    whole.fit(progress=False)

    first, saved = trainer(), {}

    def save():
        if not saved and first.epoch * 5 + first.batch >= stop:
            saved["arrays"] = {name: value.copy() for name, value in first.arrays().items()}
            saved["place"] = first.place() | {"sums": dict(first.place()["sums"]), "history": list(first.history)}

    first.fit(save, save_minutes=0, progress=False)
    second = trainer()
    second.restore(**saved)
    assert second.epoch * 5 + second.batch == stop
    second.fit(progress=False)
    assert same_weights(whole, second)
    for a, b in zip(whole.history, second.history, strict=True):
        assert {**a, "seconds": 0, "images_per_second": 0} == {**b, "seconds": 0, "images_per_second": 0}


def test_ctrl_c_finishes_the_step_saves_and_stops():
    one, saves = trainer(epochs=50), []
    step = one.step

    def interrupted_step(x, labels):
        if one.batch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(x, labels)

    one.step = interrupted_step
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        one.fit(lambda: saves.append((one.epoch, one.batch, one.optimizer.steps)), progress=False)
    assert saves == [(0, 3, 3)]
    assert signal.getsignal(signal.SIGINT) is before


def test_loss_that_is_no_number_names_the_layer():
    one = trainer(epochs=3, lr=1e30)
    with pytest.raises(Diverged, match=r"the loss is \w+ at epoch 1, batch \d+: .*(features|classifier)"):
        one.fit(progress=False)
    assert one.epoch == 0


def test_a_gradient_that_is_not_finite_is_named_before_the_weights_are_lost():
    one = trainer(clip_norm=1.0)
    backward, before = one.model.backward, one.model.features[0].weight.data.copy()

    def spoilt(*arguments, **options):
        backward(*arguments, **options)
        one.model.features[0].weight.grad[0, 0, 1, 1] = -np.inf

    one.model.backward = spoilt
    with pytest.raises(Diverged, match=r"gradient is not finite at epoch 1, batch 1: that of features\.0\.weight"):
        one.fit(progress=False)
    np.testing.assert_array_equal(one.model.features[0].weight.data, before)


def test_first_bad_finds_the_first():
    net = initialise(Sequential(Conv2d(1, 2, 3), ReLU(), Flatten(), Linear(8, 2)))
    x = np.ones((1, 1, 4, 4), np.float32)
    assert first_bad(net, np.full_like(x, np.nan)).startswith("the input already")
    net[3].bias.data[1] = np.inf
    assert first_bad(net, x) == "3.bias (Linear(8, 2)) holds values that are not finite"
    net[0].weight.data[...] = 3e38
    with np.errstate(all="ignore"):
        assert first_bad(net, x) == "the first output that is not finite is that of 0 (Conv2d(1, 2, 3))"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, place: arrays.pop("model.classifier.6.bias"), r"missing classifier\.6\.bias"),
        (lambda arrays, place: arrays.pop("optimizer.momentum.classifier.6.bias"), "SGD: the saved state"),
        (lambda arrays, place: place["dropout_calls"].clear(), "lacks 'classifier.2'"),
    ],
)
def test_foreign_checkpoint_is_refused(change, message):
    one = trainer()
    arrays, place = one.arrays(), one.place()
    change(arrays, place)
    with pytest.raises(BadInput, match=message):
        trainer().restore(arrays, place)


def test_clipping_and_smoothing_take_part():
    plain, clipped, smooth = trainer(), trainer(clip_norm=1e-3), trainer(label_smoothing=0.3)
    x, labels = next(plain.train.epoch(0))
    before = plain.model.features[0].weight.data.copy()
    moves = []
    for one in (plain, clipped, smooth):
        one.step(x, labels)
        moves.append(np.linalg.norm(one.model.features[0].weight.data - before))
    assert moves[1] < 0.1 * moves[0]
    assert moves[2] != moves[0]
