"""Trainings of a tenth of a second, of a network of 220 parameters on pictures of 8×8 pixels."""

import numba
import numpy as np
import pytest
from PIL import Image

import minivgg.cli.train
from minivgg.cli.main import main

NETWORK = ["--model", "small_googlenet", "--width", "0.02", "--size", "8"]
SETTINGS = [*NETWORK, "--epochs", "2", "--batch-size", "8", "--lr", "0.01", "--quiet"]


def npz(path, seed=0, classes=("a", "b"), count=24, **changed):
    """An .npz of noise; `changed` arrays in place of its own. Returns the path, as text."""
    rng = np.random.default_rng(seed)
    arrays = {f"{part}_images": rng.integers(0, 256, (count, 8, 8), np.uint8) for part in ("train", "test")}
    arrays |= {f"{part}_labels": np.arange(count) % len(classes) for part in ("train", "test")}
    np.savez(path, **arrays | {"classes": np.array(classes)} | changed)
    return str(path)


def photos(folder, classes=("apple", "pear", "plum"), count=10, seed=0):
    """A folder of noise, `count` pictures a class. Returns the folder."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{i}.bmp")  # of one size
    return folder


def train(*arguments):
    """The exit status of a short training."""
    resumes = "--resume" in arguments
    return main(["train", *map(str, arguments), *(["--quiet"] if resumes else SETTINGS)])


@pytest.fixture
def undrawn(monkeypatch):
    """Runs draw no pictures, which would take most of the time, and wait for no threads that have no core."""
    monkeypatch.setattr(minivgg.cli.train, "_draw", lambda session: None)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


class Stop(Exception):
    """What ends a training in the middle, in these tests."""


def stopped(monkeypatch, steps, *arguments):
    """A training that ends after so many steps, saved after each of them."""
    from minivgg.training.loop import Trainer

    step, done = Trainer.step, []

    def counted(self, x, labels):
        if len(done) == steps:
            raise Stop
        done.append(None)
        return step(self, x, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", counted)
        with pytest.raises(Stop):
            train(*arguments, "--save-minutes", "0")
