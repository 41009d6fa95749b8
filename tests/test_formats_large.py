"""What is large for no reason, or for a good one: pictures with long texts, archives that unpack to gigabytes. What is
well formed is read; what would take a gigabyte of memory is refused first."""

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_hostile_images import chunk, zeros

from minivgg.errors import BadInput
from minivgg.training import datasets, formats
from minivgg.training.formats import read_image, read_npz

ROOT = Path(__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(**options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", **options)
    return file.getvalue()


def with_chunks(*chunks, at=33, **options):
    """The picture's PNG with more chunks; at 33 ends its header, at −12 begins its end."""
    data = encoded(**options)
    return data[:at] + b"".join(chunks) + data[at:]


LONG = zlib.compress(b"A caption that goes on. " * 220_000)  # 5 MB
XMP = b"XML:com.adobe.xmp\0"
TEXTS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "iTXt, packed": chunk(b"iTXt", b"Comment\0\1\0en\0\0" + LONG),
    "iTXt, plain": chunk(b"iTXt", b"Comment\0\0\0en\0\0" + b"long " * 1_000_000),
    "iTXt, XMP": chunk(b"iTXt", XMP + b"\1\0\0\0" + LONG),
    "tEXt": chunk(b"tEXt", b"Comment\0" + b"long " * 1_000_000),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "a quarter of a gigabyte": chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 28)),
    "many": b"".join(chunk(b"zTXt", b"Comment %d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(80)),
    "many plain": b"".join(chunk(b"tEXt", b"Comment %d\0" % i + b"x" * 1_000_000) for i in range(80)),
    "broken": chunk(b"zTXt", b"Comment\0\0" + LONG[:2000]),
    "nothing in it": chunk(b"zTXt", b"Comment\0\0"),
}


@pytest.mark.parametrize("at", [33, -12], ids=["before", "after"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_picture_with_long_texts_is_a_picture(text, at, tmp_path):
    (tmp_path / "a.png").write_bytes(with_chunks(text, at=at))
    before = (Image.MAX_IMAGE_PIXELS, __import__("PIL.PngImagePlugin").PngImagePlugin.MAX_TEXT_CHUNK)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), PIXELS)
    assert before == (Image.MAX_IMAGE_PIXELS, __import__("PIL.PngImagePlugin").PngImagePlugin.MAX_TEXT_CHUNK)


def test_what_turns_the_picture_stays_when_texts_go(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.png").write_bytes(with_chunks(TEXTS["zTXt"], exif=exif))
    (tmp_path / "b.png").write_bytes(with_chunks(chunk(b"iTXt", XMP + b"\0\0\0\0" + xmp), TEXTS["zTXt"]))
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_pillows(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    found = read_image(tmp_path / f"a.{suffix}", 3)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bands_give_what_the_whole_gives(mode, channels, tmp_path):
    """A picture of two bands and a row, against Pillow's conversion of the whole."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (2049, 1024, 3), dtype=np.uint8))
    picture = picture.convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    if "A" in mode:
        picture.putalpha(Image.fromarray(rng.integers(0, 256, (2049, 1024), dtype=np.uint8)))
    if mode == "HSV":
        pixels = formats._pixels(picture, channels)
    else:
        suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
        picture.save(tmp_path / f"a.{suffix}", compress_level=1)
        pixels = read_image(tmp_path / f"a.{suffix}", channels)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(pixels.shape)
    np.testing.assert_array_equal(pixels, expected)


# ---- archives ----


def npz_of(path, compression=zipfile.ZIP_DEFLATED, **members):
    """An npz of these arrays, or of (shape, count): that many zero bytes said to be of that shape."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, tuple):
                    shape, count = array
                    np.lib.format.write_array_header_1_0(
                        member, {"descr": "|u1", "fortran_order": False, "shape": shape}
                    )
                    for start in range(0, count, 1 << 22):
                        member.write(bytes(min(1 << 22, count - start)))
                else:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=True)


SMALL = {
    "train_images": np.zeros((6, 4, 4), np.uint8),
    "train_labels": np.arange(6) % 2,
    "test_images": np.ones((4, 4, 4), np.uint8),
    "test_labels": np.arange(4) % 2,
}


def test_what_nobody_asks_for_is_not_unpacked(tmp_path, monkeypatch):
    """Nor looked at: an array of objects among them, and one that is damaged, do not matter."""
    size = 300 << 20
    npz_of(tmp_path / "a.npz", **SMALL, extra=((size,), size), objects=np.array([None], object))
    train, test = datasets.load(tmp_path / "a.npz")
    assert (len(train), len(test)) == (6, 4)
    with pytest.raises(BadInput, match="objects, which are never unpickled"):
        read_npz(tmp_path / "a.npz")
    assert set(read_npz(tmp_path / "a.npz", ["train_labels", "none"])) == {"train_labels"}


BOMB = 257 << 20
BOMBS = {
    "images": {"train_images": ((BOMB >> 10, 32, 32), BOMB)},
    "labels": {"train_labels": ((BOMB,), BOMB)},
    "classes": {"classes": ((BOMB,), BOMB)},
    "two halves": dict.fromkeys(("train_labels", "test_labels"), ((BOMB // 2,), BOMB // 2)),
    "a shape that lies": {"train_labels": ((1 << 40,), 100)},
    "a negative shape": {"train_labels": ((-1, -100), 100)},
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_an_archive_that_explodes_is_refused_before_it_is_unpacked(bomb, tmp_path):
    import tracemalloc

    npz_of(tmp_path / "a.npz", **SMALL | bomb)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"a\.npz: cannot be read as an npz file: .*(more than 20 times|takes)"):
            datasets.load(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_large_sets_that_are_not_packed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_UNPACKED", 100)
    npz_of(tmp_path / "a.npz", zipfile.ZIP_STORED, **SMALL)
    assert len(datasets.load(tmp_path / "a.npz")[0]) == 6


def test_a_tarball_that_explodes_is_refused(tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, 300 << 20  # which tarfile would read at once
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(BadInput, match="unpacks to more than 268,435,456 bytes"):
        formats.read_cifar_tar(tmp_path / "a.tar.gz", formats.CIFAR_TEST)


def test_what_takes_long_without_being_large_is_cut_short(tmp_path):
    """Twenty thousand texts that unpack to a megabyte each, and as many members of a tarball."""
    text = chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 20))
    (tmp_path / "a.png").write_bytes(with_chunks(text * 20_000))
    start = time.process_time()
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), PIXELS)
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        file.write(tarfile.TarInfo("x").tobuf() * 200_000)
    with pytest.raises(BadInput, match="is missing"):
        formats.read_cifar_tar(tmp_path / "a.tar.gz", formats.CIFAR_TEST)
    assert time.process_time() - start < 10  # 60 without


MEASURE = """
import json, re, sys, time
from pathlib import Path
from minivgg.errors import BadInput
from minivgg.training.formats import read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    start, said = time.process_time(), ""
    try:
        shape = read_image(path, 3).shape
    except BadInput as error:
        shape, said = None, str(error)
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
    print(json.dumps([path.name, shape, said, peak, time.process_time() - start]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by Linux's /proc")
def test_the_largest_pictures_take_less_than_a_gigabyte(tmp_path):
    """64 megapixels of each kind, and more, in a process of their own: MB at most, and seconds."""
    side = 8192

    def picture(colour, bytes_a_pixel, interlaced=0):
        data = zeros((side * bytes_a_pixel + 1) * side + (1 << 20))  # a byte before each row; some too many
        head = struct.pack(">II5B", side, side, 8, colour, 0, 0, interlaced)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    for name, data in {"rgba": picture(6, 4), "grey and alpha": picture(4, 2), "interlaced": picture(6, 4, 1)}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    lossless = io.BytesIO()
    Image.fromarray(PIXELS).save(lossless, "WEBP", lossless=True)
    sized = (side - 1) | (side - 1) << 14
    (tmp_path / "vp8l.webp").write_bytes(lossless.getvalue()[:21] + struct.pack("<I", sized) + lossless.getvalue()[25:])
    frame = b"VP8X\x0a\0\0\0\x02\0\0\0" + (16_382).to_bytes(3, "little") * 2
    (tmp_path / "vp8x.webp").write_bytes(b"RIFF\xff\0\0\0WEBP" + frame + lossless.getvalue()[12:])
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 5
    for name, shape, said, peak, seconds in rows:
        assert (shape == [side, side, 3]) != ("more than 50331648 pixels" in said), (name, shape, said)
        assert (shape is None) == name.endswith("webp")
        assert peak < 1000
        assert seconds < 20
