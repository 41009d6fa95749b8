"""Files that are no picture, or not the picture that they say: one line each, status 2, and little memory."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minivgg as mv
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.training import checkpoints
from minivgg.training.formats import read_image
from minivgg.training.preprocessing import TORCHVISION

ROOT = Path(__file__).parents[1]
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}


def encoded(kind, mode="RGB", **options):
    """A picture of noise, 40 × 30, as bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data, length=None):
    """A chunk of a PNG; `length` is what it says of itself."""
    return (
        struct.pack(">I", len(data) if length is None else length)
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png(width, height, *chunks, depth=8, colour=2):
    head = chunk(b"IHDR", struct.pack(">II5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(count):
    """`count` zero bytes, compressed two hundredfold, without ever being there."""
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(count >> 20)), packer.flush()])


def jpeg_of(width, height):
    """A JPEG whose frame header says so."""
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bmp_of(width, height):
    data = encoded("BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def gif_of(width, height):
    data = encoded("GIF")
    at = data.index(b"\x2c\0\0\0\0") + 5
    return (
        data[:6] + struct.pack("<HH", width, height) + data[10:at] + struct.pack("<HH", width, height) + data[at + 4 :]
    )


def tiff(*entries, following=0):
    """A TIFF of one directory with these (tag, type, count, value)."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", following)


def tiff_of(width, height):
    short = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff((256, 4, 1, width), (257, 4, 1, height), (273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 64), *short)


HOSTILE = {
    **{f"cut at {share}.{kind}": encoded(name)[: len(encoded(name)) * share // 100]
       for kind, name in FORMATS.items() for share in (3, 40, 75)},
    **{f"zeros after the head.{kind}": encoded(name)[:12] + bytes(500) for kind, name in FORMATS.items()},
    "empty.jpg": b"",
    "one byte.jpg": b"\xff",
    "text.jpg": b"this is not a picture\n" * 9,
    "page.png": b"<!doctype html><html><body>404 Not Found</body></html>",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "script.jpg": b"#!/bin/sh\ntouch executed\n",
    "archive.png": b"PK\x03\x04" + bytes(60),
    "pickle.jpg": b"cos\nsystem\n(S'touch executed'\ntR.",
    "program.jpg": b"\x7fELF" + bytes(200),
    "document.png": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile\nshowpage\n",
    "eps.eps": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, 40, 0, 0, 0, 0) + b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n",
    "icon.png": encoded("ICO"),
    "pcx.jpg": encoded("PCX"),
    "targa.png": encoded("TGA"),
    "deep.png": encoded("PNG", "I;16"),
    "whole numbers.tif": encoded("TIFF", "I"),
    "floats.tif": encoded("TIFF", "F"),
    "huge.png": png(60_000, 60_000, chunk(b"IDAT", b"")),
    "huge beyond counting.png": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")),
    "bomb.png": png(65_000, 65_000, chunk(b"IDAT", zeros(1 << 26)), depth=1, colour=0),
    "just too large.png": png(8193, 8192, chunk(b"IDAT", zeros(1 << 26)), colour=0),
    "a text that explodes.png": png(4, 4, chunk(b"zTXt", b"x\0\0" + zeros(1 << 26)), chunk(b"IDAT", b"")),
    "a profile that explodes.png": png(4, 4, chunk(b"iCCP", b"x\0\0" + zeros(1 << 26)), chunk(b"IDAT", b"")),
    "endless chunk.png": png(4, 4, chunk(b"IDAT", b"x", length=2**31 - 1)),
    "bad sum.png": encoded("PNG")[:29] + b"\0\0\0\0" + encoded("PNG")[33:],
    "huge.jpg": jpeg_of(65_000, 65_000),
    "huge.bmp": bmp_of(2**31 - 1, 2**31 - 1),
    "huge.gif": gif_of(65_535, 65_535),
    "huge.tif": tiff_of(2**32 - 1, 2**32 - 1),
    "huge.ppm": b"P6 99999 99999 255\n" + bytes(90),
    "huge number.ppm": b"P6 " + b"9" * 4000 + b" 1 255\n" + bytes(90),
    "huge.webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\xff\xff" * 2,
    "nothing.png": png(0, 0, chunk(b"IDAT", zlib.compress(b""))),
    "no width.png": png(0, 9, chunk(b"IDAT", zlib.compress(bytes(9)))),
    "nothing.jpg": jpeg_of(0, 0),
    "nothing.bmp": bmp_of(0, 0),
    "nothing.gif": gif_of(0, 0),
    "nothing.tif": tiff_of(0, 0),
    "nothing.ppm": b"P6 0 0 255\n",
    "many values.tif": tiff((256, 4, 2**30, 8), (257, 4, 1, 9), (273, 4, 1, 8)),
    "no pixels.tif": tiff_of(30, 40)[:-1],
    "negative.ppm": b"P6 -4 -4 255\n" + bytes(90),
    "endless strip.ppm": b"P5 300000 1 255\n" + bytes(300_000),
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of all of them, and of things that are no files."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, data in HOSTILE.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link to itself.jpg").symlink_to(folder / "link to itself.jpg")
    (folder / "link to nothing.jpg").symlink_to(folder / "gone")
    (folder / "device.jpg").symlink_to("/dev/zero")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's weights: a network for photographs, small."""
    folder = tmp_path_factory.mktemp("run")
    options = {"classes": 3, "channels": 3, "input_size": 32, "width": 0.02, "classifier_width": 2}
    preprocessing = TORCHVISION.as_dict() | {"size": 32, "resize": 256}
    description = {"model": "vgg11", "options": options, "classes": list("abc"), "preprocessing": preprocessing}
    checkpoints.save(folder / "model.safetensors", mv.build("vgg11", **options).state_dict(), description)
    return folder


def test_each_is_one_line_and_status_2(hostile, run, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    paths = sorted(hostile.iterdir())
    assert len(paths) >= 60
    for path in paths:
        status = main(["predict", str(path), "--run", str(run)])
        out, error = capfd.readouterr()
        assert (status, out, error.count("\n")) == (2, "", 1), (path.name, status, out, error)
        assert error.startswith(f"minivgg: {path}: "), error
        assert len(error) < len(str(path)) + 300, error
    assert list(tmp_path.iterdir()) == []  # nothing was executed, and nothing drawn


def test_a_fresh_process_warns_of_nothing_and_keeps_its_memory(hostile):
    """All of them read one after another: what stays in memory at most is one picture of MAX_PIXELS, and it is not."""
    code = """
import json, resource, sys
from pathlib import Path
from minivgg.errors import BadInput
from minivgg.training.formats import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = []
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_image(path, 3)
        read.append(path.name)
    except BadInput:
        pass
print(json.dumps([read, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))
"""
    options = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 100, "check": True}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(hostile)], **options)
    read, grown = json.loads(done.stdout)
    assert read == ["endless strip.ppm"]  # a picture; too long to be resized
    assert done.stderr == ""
    assert grown < 300  # MB


PICTURES = {kind: encoded(name) for kind, name in FORMATS.items()}


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=30)
@given(data=st.data())
def test_flipped_bytes_give_a_picture_or_one_line(kind, data, tmp_path_factory):
    content = bytearray(PICTURES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.sampled_from([60, len(content)]))  # most of what can go wrong is in the header
        content[data.draw(st.integers(0, min(near, len(content)) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"flipped.{kind}"
    path.write_bytes(content)
    try:
        image = read_image(path, 3)
    except BadInput as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.size > 0
