"""File formats: what is well formed comes back exactly, what is not is refused in one line that names it."""

import gzip
import hashlib
import io
import struct
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minivgg.errors import BadInput
from minivgg.training import formats
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


# ---- idx ----


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(read_idx(idx(array), "x"), array)


@settings(deadline=None)
@given(st.data())
def test_idx_refuses_every_truncation(data):
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with refuses("cut.idx", "offset"):
        read_idx(whole[:cut], "cut.idx")


@settings(deadline=None)
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
    with refuses("offset 4", "empty"):  # NumPy cannot even express this one
        read_idx(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 0), "x")
    with refuses("offset 0", "00 00 08 c8"):
        read_idx(struct.pack(">HBB200I", 0, 8, 200, *[1] * 200) + b"1", "x")
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
    Image.new("L", (4, 4)).save(path, format="PCX")  # Pillow could, but then it could start Ghostscript too
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
