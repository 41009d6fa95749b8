"""Data sets: what ships, what is read, and what is refused, always in one line that names the culprit."""

import gzip
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_formats import cifar_batch, idx, photo, refuses, write_tar

from minivgg.training import datasets, formats
from minivgg.training.datasets import FASHION_MNIST_DEBIAN, Dataset, load


@pytest.fixture
def album(tmp_path):
    """Two classes of ten one-colour pictures; the red value of picture i is 10 i."""
    for name in ("cats", "dogs"):
        for i in range(10):
            photo(tmp_path / name / f"{i:02}.png", colour=(10 * i, 0, 0))
    return tmp_path


# ---- the bundled set ----


def test_bundled_set_is_balanced_and_stable():
    train, test = load()
    assert train.images.shape == (10_000, 28, 28, 1) and test.images.shape == (2_000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [1000] * 10 and np.bincount(test.labels).tolist() == [200] * 10
    assert train.labels.dtype == np.int64 and train.classes[9] == test.classes[9] == "Ankle boot"
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(part.images.tobytes() + part.labels.astype(np.uint8).tobytes())
    assert digest.hexdigest() == "d5b91c929ef64cdf3fac6a13820932f698037ef77030a9584f3d6499a1ccee00"


@pytest.mark.skipif(not FASHION_MNIST_DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_bundled_set_is_the_first_of_each_class_of_the_whole():
    for mini, whole, count in zip(load(), load("fashion-mnist"), (1000, 200), strict=True):
        seen, expected = dict.fromkeys(range(10), 0), []
        for index, label in enumerate(whole.labels.tolist()):
            if seen[label] < count:
                expected.append(index)
                seen[label] += 1
        np.testing.assert_array_equal(mini.images, whole.images[expected])
        np.testing.assert_array_equal(mini.labels, whole.labels[expected])


def test_loading_the_bundled_set_imports_no_downloader():
    code = "import sys; from minivgg.training.datasets import load; load(); sys.exit('pooch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ---- Dataset ----


def small(labels=(0, 1, 1), images=None, classes=("a", "b"), channels=1):
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5, 1) if images is None else images
    return Dataset("small", images, np.array(labels), classes, channels)


def test_subset_takes_integers_masks_and_slices():
    whole = small()
    for chosen, expected in (([2, 0], [2, 0]), (np.array([True, False, True]), [0, 2]), (slice(1, None), [1, 2])):
        part = whole.subset(chosen)
        assert [image.tolist() for image in part.images] == [whole.images[i].tolist() for i in expected]
        assert part.labels.tolist() == whole.labels[expected].tolist()


def test_dataset_prints_on_one_line():
    assert repr(small()) == "Dataset(name='small', classes=('a', 'b'), channels=1)"


def test_dataset_refuses_what_does_not_fit():
    with refuses("small", "label 2", "image 1", "0 to 1"):
        small(labels=(0, 2, 7))
    with refuses("label -1", "image 2"):
        small(labels=(0, 1, -1))
    with refuses("3 images", "2 labels"):
        small(labels=(0, 1))
    with refuses("float64"):
        small(labels=(0.0, 1.0, 1.0))
    with refuses("2 channels"):
        small(channels=2)
    for images in (np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5, 1)), np.zeros((3, 4, 5, 3), np.uint8)):
        with refuses(images.shape, "uint8 (N, H, W, 1)"):
            small(images=images)


# ---- the cache and the downloader ----


def test_cifar10_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path))
    with refuses("cifar10", "download=True", tmp_path):
        load("cifar10")
    batches = {name: cifar_batch(2, seed) for seed, name in enumerate(formats.CIFAR_TRAIN + formats.CIFAR_TEST)}
    path = write_tar(tmp_path / "cifar-10-binary.tar.gz", {name: data for name, (data, *_) in batches.items()})
    with refuses(path, "sha256", "delete it"):
        load("cifar10")
    monkeypatch.setattr(datasets, "CIFAR10_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    train, test = load("cifar10")
    assert len(train) == 10 and len(test) == 2 and train.channels == 3 and train.classes[0] == "airplane"
    np.testing.assert_array_equal(train.image(9), batches[formats.CIFAR_TRAIN[4]][1][1])


def test_fashion_mnist_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "FASHION_MNIST_DEBIAN", tmp_path / "no")
    with refuses("fashion-mnist", "download=True", "dataset-fashion-mnist"):
        load("fashion-mnist")
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    hashes = {}
    for name in datasets.FASHION_MNIST_SHA256:
        data = idx(np.full((3, 28, 28), 7, np.uint8) if "images" in name else np.array([0, 9, 4], np.uint8))
        (folder / name).write_bytes(gzip.compress(data))
        hashes[name] = hashlib.sha256(data).hexdigest()
    with refuses("train-images-idx3-ubyte.gz", "sha256"):
        load("fashion-mnist")
    monkeypatch.setattr(datasets, "FASHION_MNIST_SHA256", hashes)
    train, test = load("fashion-mnist")
    assert train.labels.tolist() == test.labels.tolist() == [0, 9, 4] and train.image(2).shape == (28, 28, 1)


def test_download_without_pooch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    with refuses("pip install 'minivgg[weights]'"):
        load("cifar10", download=True)


def test_download_puts_the_file_into_the_cache(tmp_path, monkeypatch):
    """With a stand-in for pooch: what is asked of it, and that its failure is one line."""
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path / "new"))
    import pooch

    def retrieve(url, known_hash, fname, path, progressbar):
        path.mkdir(parents=True)
        (path / fname).write_bytes(b"a portal's login page")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with refuses(tmp_path / "new" / "cifar-10-binary.tar.gz", "sha256"):
        load("cifar10", download=True)

    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", fail)
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path / "other"))
    with refuses("cs.toronto.edu", "no route to host"):
        load("cifar10", download=True)


# ---- npz ----


def test_npz_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 1]),
        "test_images": rng.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.array([2, 0]),
    }
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    train, test = load(path)
    assert train.classes == ("0", "1", "2") and train.channels == 3 and test.name == "mine/test"
    np.testing.assert_array_equal(test.image(1), arrays["test_images"][1])

    np.savez(path, **{**arrays, "test_labels": np.array([2, 3])})
    with refuses("mine/test", "label 3", "image 1"):
        load(str(path))
    del arrays["test_labels"]
    np.savez(path, **arrays)
    with refuses(path, "test_labels"):
        load(path)


def test_npz_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    path = tmp_path / "bomb.npz"
    np.savez(path, train_images=np.array([Bomb()], dtype=object))
    with refuses(path):
        load(path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with refuses(path):
        load(path)
    assert not (tmp_path / "boom").exists()


def test_unknown_source_lists_what_there_is(tmp_path):
    with refuses("cifar100", "fashion-mnist-mini", "fashion-mnist", "cifar10"):
        load("cifar100")
    with refuses("gone.npz"):
        load(tmp_path / "gone.npz")


# ---- folders ----


def test_folder_holds_out_every_fifth(album):
    train, test = load(album)
    assert train.classes == test.classes == ("cats", "dogs") and train.channels == 3
    assert [p.relative_to(album).as_posix() for p in test.images] == [
        *("cats/04.png", "cats/09.png", "dogs/04.png", "dogs/09.png")
    ]
    assert len(train) == 16 and not set(train.images) & set(test.images)
    assert train.labels.tolist() == [0] * 8 + [1] * 8 and test.labels.tolist() == [0, 0, 1, 1]
    assert test.image(1).shape == (7, 9, 3) and test.image(1)[0, 0].tolist() == [90, 0, 0]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_with_a_split_of_its_own(tmp_path, held_out):
    for name in ("train/b/1.png", "train/a/1.JPG", "train/a/2.png", f"{held_out}/b/3.png"):
        photo(tmp_path / name)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"")
    (tmp_path / "train" / "a" / ".DS_Store").write_bytes(b"")
    train, test = load(tmp_path)
    assert [p.name for p in train.images] == ["1.JPG", "2.png", "1.png"] and train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [1] and test.classes == ("a", "b")
    photo(tmp_path / held_out / "c" / "1.png")
    with refuses(tmp_path / held_out / "c", "a, b"):
        load(tmp_path)


def test_folder_refusals(album):
    (album / "dogs" / "notes.txt").write_text("x")
    with refuses(album / "dogs" / "notes.txt", ".jpg"):
        load(album)
    (album / "dogs" / "notes.txt").unlink()

    (album / "dogs" / "puppies.png").mkdir()
    with refuses(album / "dogs" / "puppies.png"):
        load(album)
    (album / "dogs" / "puppies.png").rmdir()

    (album / "birds").mkdir()
    with refuses(album / "birds", "no images"):
        load(album)
    photo(album / "birds" / "1.png")
    with refuses(album / "birds", "1 images", "at least 5"):
        load(album)


def test_folder_refuses_one_class_or_none(tmp_path):
    with refuses(tmp_path, "no folders"):
        load(tmp_path)
    for i in range(5):
        photo(tmp_path / "cats" / f"{i}.png")
    with refuses(tmp_path, "one class, cats"):
        load(tmp_path)
    (tmp_path / "cats").rename(tmp_path / "train")
    with refuses(tmp_path, "test/"):
        load(tmp_path)


def test_folder_may_be_read_as_grey(album):
    train, _ = load(album)
    assert train.image(3)[0, 0].tolist() == [30, 0, 0]
    assert replace(train, channels=1).image(3)[0, 0].tolist() == [9]  # 0.299 of 30
