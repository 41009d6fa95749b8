"""The loader: resumable to the bit, bounded, and gone when it is no longer wanted."""

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivgg.errors import BadInput
from minivgg.training.augmentation import Augmentation
from minivgg.training.datasets import Dataset
from minivgg.training.loader import Loader
from minivgg.training.preprocessing import Preprocessing

IDENTITY = Preprocessing(channels=1, size=6, mean=(0.0,), std=(1 / 255,))
ALL_OF_IT = Augmentation(scale=(6, 9), pad=1, flip=True, colour=0.1, basis=((0.2,),))


class Numbered(Dataset):
    """Image i is grey value i, everywhere."""

    def __init__(self, count, hook=lambda index: None):
        images = np.repeat(np.arange(count, dtype=np.uint8), 36).reshape(count, 6, 6, 1)
        super().__init__("numbered", images, np.arange(count) % 3, ("a", "b", "c"), 1)
        object.__setattr__(self, "hook", hook)

    def image(self, index):
        self.hook(index)
        return super().image(index)


def noisy(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 7, 8, 1), dtype=np.uint8)
    return Dataset("noisy", images, np.arange(count) % 3, ("a", "b", "c"), 1)


def numbers(batches):
    """Which images of `Numbered` the batches hold."""
    return [x[:, 0, 0, 0].round().astype(int).tolist() for x, _ in batches]


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("minivgg-loader")]


def same(some, others):
    """Whether two runs of batches hold the same bits."""
    return [(x.tobytes(), y.tobytes()) for x, y in some] == [(x.tobytes(), y.tobytes()) for x, y in others]


# ---- what is in the batches ----


def test_evaluation_sees_every_image_in_order():
    loader = Loader(Numbered(10), IDENTITY, 4)
    batches = list(loader.epoch(0))
    assert len(loader) == 3 and numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for x, labels in batches:
        assert x.dtype == np.float32 and x.shape == (len(labels), 1, 6, 6) and labels.dtype == np.int64
        assert labels.tolist() == [int(number) % 3 for number in x[:, 0, 0, 0].round()]
    assert numbers(loader.epoch(1)) == numbers(batches)


def test_training_shuffles_and_leaves_out_the_incomplete_batch():
    loader = Loader(Numbered(10), IDENTITY, 4, shuffle=True, seed=3)
    epochs = [numbers(loader.epoch(epoch)) for epoch in range(40)]
    assert len(loader) == 2
    assert all([len(batch) for batch in epoch] == [4, 4] for epoch in epochs)
    assert all(len({*epoch[0], *epoch[1]}) == 8 for epoch in epochs)
    assert set(np.ravel(epochs)) == set(range(10))  # another epoch leaves out others
    assert len({str(epoch) for epoch in epochs}) == 40
    for _, labels in loader.epoch(0):
        assert len(labels) == 4
    x, labels = next(loader.epoch(0))
    assert labels.tolist() == [int(number) % 3 for number in x[:, 0, 0, 0].round()]


def test_exact_division_leaves_nothing_out():
    assert len(Loader(Numbered(8), IDENTITY, 4, shuffle=True)) == len(Loader(Numbered(8), IDENTITY, 4)) == 2


def test_batches_are_the_callers_to_keep():
    loader = Loader(Numbered(40), IDENTITY, 4)
    kept = [x for x, _ in loader.epoch(0)]
    assert [int(x[0, 0, 0, 0].round()) for x in kept] == list(range(0, 40, 4))


def test_augmentation_differs_between_images_batches_epochs_and_seeds():
    dataset = noisy(1).subset([0] * 8)  # eight times the same image
    drawn = [
        image.tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for x, _ in Loader(dataset, IDENTITY, 4, augmentation=ALL_OF_IT, seed=seed).epoch(epoch)
        for image in x
    ]
    assert len(set(drawn)) == len(drawn) == 32


# ---- the heart: the same bits, wherever it starts ----


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 2**64),
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from([None, ALL_OF_IT]),
)
def test_resumed_at_any_batch_sees_the_same_bits(batch_size, shuffle, seed, epoch, prefetch, augmentation):
    def loader(prefetch):
        options = {"augmentation": augmentation, "shuffle": shuffle, "seed": seed, "prefetch": prefetch}
        return Loader(noisy(17), IDENTITY, batch_size, **options)

    uninterrupted = list(loader(4).epoch(epoch))
    assert len(uninterrupted) == len(loader(4))
    for start in range(len(uninterrupted) + 1):
        assert same(loader(prefetch).epoch(epoch, start), uninterrupted[start:])


def test_two_epochs_at_once_do_not_disturb_each_other():
    loader = Loader(noisy(12), IDENTITY, 3, augmentation=ALL_OF_IT, shuffle=True)
    alone = list(loader.epoch(0)), list(loader.epoch(1))
    first, second = zip(*zip(loader.epoch(0), loader.epoch(1), strict=True), strict=True)
    assert same(first, alone[0]) and same(second, alone[1])


# ---- the thread ----


def test_works_ahead_in_one_other_thread_but_not_far():
    opened, threads = [], set()

    def hook(index):
        opened.append(index)
        threads.add(threading.current_thread())

    batches = Loader(Numbered(100, hook), IDENTITY, 2, prefetch=3).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(opened) < 8 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert opened == list(range(8))  # the batch in hand and three more
    assert len(threads) == 1 and threading.main_thread() not in threads


def test_error_in_the_thread_surfaces_at_its_batch():
    def hook(index):
        if index == 5:
            raise BadInput("five.png: cannot be read as an image")

    batches = Loader(Numbered(12, hook), IDENTITY, 2).epoch(0)
    assert numbers([next(batches), next(batches)]) == [[0, 1], [2, 3]]
    with pytest.raises(BadInput, match=r"five\.png"):
        next(batches)
    assert not loader_threads()


def abandon_by_break(batches):
    for _ in batches:
        break


def abandon_by_interrupt(batches):
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            raise KeyboardInterrupt


def abandon_by_close(batches):
    next(batches)
    batches.close()


def abandon_before_it_begins(batches):
    assert not loader_threads()


def exhaust(batches):
    assert len(list(batches)) == 50


@pytest.mark.parametrize(
    "abandon", [abandon_by_break, abandon_by_interrupt, abandon_by_close, abandon_before_it_begins, exhaust]
)
def test_thread_ends_with_the_iterator(abandon):
    loader = Loader(Numbered(100), IDENTITY, 2)
    abandon(loader.epoch(0))
    gc.collect()
    assert not loader_threads()


def test_thread_lives_while_it_is_wanted():
    """So that the test above can fail."""
    batches = Loader(Numbered(100), IDENTITY, 2).epoch(0)
    next(batches)
    assert len(loader_threads()) == 1
    del batches
    assert not loader_threads()


# ---- refusals ----


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 0}, "Loader: batch_size = 0: should be a whole number, at least 1"),
        ({"prefetch": 0}, "prefetch = 0: should be"),
        ({"seed": -1}, "seed = -1: should be a whole number, at least 0"),
        ({"batch_size": 11, "shuffle": True}, "10 images do not fill a batch of 11"),
        ({"dataset": noisy(4).subset([])}, "noisy: 0 images"),
        ({"augmentation": Augmentation(scale=(5, 8))}, "below the crop's size 6"),
        ({"preprocessing": Preprocessing(3, 6, (0,) * 3, (1,) * 3)}, "1 channels, and preprocessing is for 3"),
    ],
)
def test_loader_refuses(options, words):
    with pytest.raises(BadInput, match=words):
        Loader(**{"dataset": Numbered(10), "preprocessing": IDENTITY, "batch_size": 2} | options)


def test_start_is_checked_at_once():
    loader = Loader(Numbered(10), IDENTITY, 4)
    assert list(loader.epoch(0, start=3)) == []
    for start in (-1, 4):
        with pytest.raises(BadInput, match=f"start {start}: numbered has batches 0 to 2"):
            loader.epoch(0, start)
