"""Data sets: what ships, what is read, and what is refused, always in one line that names the culprit."""

import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minivgg.errors import BadInput
from minivgg.training import datasets, formats
from minivgg.training.datasets import FASHION_MNIST_DEBIAN, Dataset, load
from minivgg.training.formats import read_cifar, read_cifar_tar, read_idx, read_idx_gz, read_image

FIRST_BATCH = formats.CIFAR_TRAIN[0]


@contextmanager
def refuses(*words):
    """`BadInput` is raised, with a message of one line that holds all `words`."""
    with pytest.raises(BadInput) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


def idx(array):
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def photo(path, size=(9, 7), colour=(200, 40, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


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


# ---- idx ----


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(read_idx(idx(array), "x"), array)


@given(st.data())
def test_idx_refuses_every_truncation(data):
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with refuses("cut.idx", "offset"):
        read_idx(whole[:cut], "cut.idx")


@given(st.binary(max_size=64))
def test_idx_never_fails_otherwise(data):
    try:
        array = read_idx(data, "x")
    except BadInput:
        return
    assert array.nbytes < len(data)


def test_idx_refuses_a_header_that_promises_more_than_there_is():
    with refuses("x", "offset 16", str(2**96 - 3 * 2**64 + 3 * 2**32 - 1), "there are 5"):
        read_idx(struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3) + b"12345", "x")
    with refuses("offset 12"):  # 65536 * 65536 wraps to 0 in 32 bits
        read_idx(struct.pack(">HBB2I", 0, 8, 2, 65536, 65536), "x")
    with refuses("offset 0", "00 00 0d 01"):  # floats
        read_idx(struct.pack(">HBBI", 0, 13, 1, 0), "x")


def test_idx_gz_checks_what_it_unpacks(tmp_path):
    data = idx(np.arange(6, dtype=np.uint8))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(data))
    sha256 = hashlib.sha256(data).hexdigest()
    assert read_idx_gz(path, sha256).tolist() == [0, 1, 2, 3, 4, 5]
    with refuses(path, sha256, "0" * 64):
        read_idx_gz(path, "0" * 64)
    path.write_bytes(gzip.compress(data)[:-9])
    with refuses(path, "gzip"):
        read_idx_gz(path, sha256)
    path.write_bytes(b"not gzip")
    with refuses(path, "gzip"):
        read_idx_gz(path, sha256)


# ---- CIFAR-10 ----


def cifar_batch(count, seed=0):
    """Bytes, images and labels of a batch, built record by record."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, count).tolist()
    data = b"".join(
        bytes([label]) + b"".join(bytes(image[:, :, plane].ravel().tolist()) for plane in range(3))
        for image, label in zip(images, labels, strict=True)
    )
    return data, images, labels


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_cifar_records():
    data, images, labels = cifar_batch(3)
    found, found_labels = read_cifar(data, "x")
    np.testing.assert_array_equal(found, images)
    assert found_labels.tolist() == labels


def test_cifar_refuses_truncation_and_unknown_labels():
    data, _, _ = cifar_batch(3)
    with refuses("b.bin", "offset 6146", "3072 bytes"):
        read_cifar(data[:-1], "b.bin")
    with refuses("offset 0"):
        read_cifar(b"", "b.bin")
    with refuses("b.bin", "offset 3073", "label 10"):
        read_cifar(data[:3073] + b"\x0a" + data[3074:], "b.bin")


def test_cifar_tar_reads_members_and_writes_nothing(tmp_path):
    (first, images, labels), (second, more, more_labels) = cifar_batch(2), cifar_batch(4, seed=1)
    names = formats.CIFAR_TRAIN[:2]
    members = {"../escaped": b"x", "/tmp/minivgg-escaped": b"x", names[0]: first, names[1]: second}
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in" / "c.tar.gz", members)
    found, found_labels = read_cifar_tar(path, names)
    np.testing.assert_array_equal(found, np.concatenate([images, more]))
    assert found_labels.tolist() == labels + more_labels
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c.tar.gz", "in"]
    assert not Path("/tmp/minivgg-escaped").exists()


def test_cifar_tar_refuses_what_is_not_one(tmp_path):
    data, _, _ = cifar_batch(2)
    path = write_tar(tmp_path / "c.tar.gz", {FIRST_BATCH: data[:-5]})
    with refuses(path, FIRST_BATCH, "offset 3073"):
        read_cifar_tar(path, (FIRST_BATCH,))
    with refuses(path, "test_batch.bin", "missing"):
        read_cifar_tar(path, formats.CIFAR_TEST)
    path.write_bytes(path.read_bytes()[:-600])
    with refuses(path, "tarball"):
        read_cifar_tar(path, (FIRST_BATCH,))
    path.write_bytes(b"")
    with refuses(path, "tarball"):
        read_cifar_tar(path, (FIRST_BATCH,))


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


# ---- pictures ----


def test_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), np.rot90(pixels, -1))


def test_picture_becomes_grey_or_rgb(tmp_path):
    red = photo(tmp_path / "red.png", colour=(255, 0, 0))
    assert np.unique(read_image(red, 1)).tolist() == [76]  # 0.299 of 255
    Image.new("L", (3, 2), 9).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", 3).shape == (2, 3, 3)
    whole = Dataset("red", (red,), np.array([0]), ("red",), 3)
    assert whole.image(0).shape == (7, 9, 3) and replace(whole, channels=1).image(0).shape == (7, 9, 1)


def test_picture_refusals(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "a.jpg"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with refuses(path, "truncated"):
        read_image(path, 3)
    for junk in (b"", b"hello", b"\xff\xd8\xff\xe0" + b"\0" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        path.write_bytes(junk)
        with refuses(path):
            read_image(path, 3)
    with refuses("gone.png"):
        read_image(tmp_path / "gone.png", 3)
    Image.new("I;16", (3, 3), 40_000).save(tmp_path / "deep.png")
    with refuses("deep.png", "8 bits"):
        read_image(tmp_path / "deep.png", 1)
    monkeypatch.setattr(formats, "MAX_PIXELS", 62)
    with refuses("b.png", "9x7", "62"):
        read_image(photo(tmp_path / "b.png"), 3)


def test_picture_bomb_is_refused_before_it_is_decompressed(tmp_path):
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4)
    with refuses("bomb.png"):
        read_image(tmp_path / "bomb.png", 3)
