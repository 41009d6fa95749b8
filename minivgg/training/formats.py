"""File formats of image sets: bytes in, arrays out. Every reader refuses a malformed file with one line that names it.

Nothing here trusts a header: sizes are checked against the bytes that are there before anything is allocated.
"""

import gzip
import hashlib
import io
import itertools
import math
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from minivgg.errors import BadInput

MAX_PIXELS = 1 << 26  # 200 MB when decompressed as RGB
_MAX_WEBP = 3 << 24  # its decoder holds a picture four times
_MAX_TEXT = 1 << 20  # bytes of a text in a PNG: what Pillow unpacks at most
_UNPACKED = 1 << 28  # bytes that may always be unpacked from an archive; more, if it is not much more than the archive
_RATIO = 20  # how much more: pictures hardly shrink to a tenth

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Naming the decoders keeps a file called cat.jpg from reaching Ghostscript, which Pillow would start for an EPS.
IMAGE_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

CIFAR_SHAPE = (3, 32, 32)
CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = ("cifar-10-batches-bin/test_batch.bin",)


def read_image(path: Path, channels: int) -> np.ndarray:
    """Decode one picture, the right way up (its EXIF orientation applied): uint8 (H, W, C), C = 1 (grey) or 3 (RGB).

    What is transparent shows white, as on paper: the colours that lie under it are whatever a program left there.
    Raises `BadInput` for a missing or corrupt file, for grey of more than 8 bits (which Pillow would clip, not
    scale), and for a picture of more than `MAX_PIXELS` (67 million; 50 of a WEBP), before it is decompressed. Cost: the
    picture as Pillow holds it, 4 bytes a pixel (progressive JPEG 12, WEBP 16), and the array.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("not a file")  # a pipe would keep us waiting
        with Path(path).open("rb") as file, Image.open(_checked(file), formats=IMAGE_DECODERS) as picture:
            _check_size(picture.width, picture.height, MAX_PIXELS if picture.format != "WEBP" else _MAX_WEBP)
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel; save it with 8")
            picture.load()  # of a TIFF, this also turns it
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            pixels = _pixels(picture, channels)
        return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda pixels: pixels)(pixels))
    except UnidentifiedImageError:
        raise BadInput(f"{path}: cannot be read as an image: none of {', '.join(IMAGE_DECODERS)}") from None
    except Exception as error:  # on corrupt bytes Pillow raises OSError, SyntaxError, struct.error, and more
        raise BadInput(f"{path}: cannot be read as an image: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error in one line, not too long, and without the path that the message has anyway."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__


def _check_size(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise ValueError(f"{width}x{height} is more than {limit} pixels; make it smaller")


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """On white paper, grey or RGB: uint8 (H, W, C). In bands, since what Pillow converts it holds once more."""
    mode, (W, H) = "L" if channels == 1 else "RGB", picture.size
    pixels = np.empty((H, W, channels), np.uint8)
    rows = max(1, (1 << 20) // max(1, W))
    for top in range(0, H, rows):
        band = picture.crop((0, top, W, min(top + rows, H)))
        if band.has_transparency_data:
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA"))
        pixels[top : top + rows] = np.asarray(band.convert(mode)).reshape(band.height, W, channels)
    if not pixels.size:
        raise ValueError(f"{W}x{H} pixels")
    return pixels


_UPRIGHT = {  # EXIF's orientations (H, W, C)
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}


def _checked(file: BinaryIO) -> BinaryIO:
    """The file, or one without what Pillow would stumble over while it opens it: a PNG's long texts and profiles. Of a
    WEBP, for which Pillow takes all its memory then, the size is looked at."""
    start = file.read(30)
    file.seek(0)
    if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X":
        _check_size(*(1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27)), _MAX_WEBP)
    return _without_long_texts(file) if start.startswith(b"\x89PNG\r\n\x1a\n") else file


def _without_long_texts(file: BinaryIO) -> BinaryIO:
    """A PNG without the texts and colour profiles that take more than `_MAX_TEXT` bytes when unpacked, or after others
    of 48 times that; the file itself if there are none. Pillow refuses a picture for them, and we need none."""
    size, start, at, spans, spare = file.seek(0, io.SEEK_END), 0, 8, [], 48 * _MAX_TEXT
    while at + 8 <= size:
        file.seek(at)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        end = at + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            needs = _MAX_TEXT + 1 if length > _MAX_TEXT or spare < 0 else _unpacked(kind, file.read(length))
            spare -= needs
            if needs > _MAX_TEXT:
                spans.append((start, at))
                start = end
        at = end
    file.seek(0)
    if not spans:
        return file
    kept = io.BytesIO()
    for first, last in (*spans, (start, size)):
        file.seek(first)
        kept.write(file.read(max(0, last - first)))
    kept.seek(0)
    return kept


def _unpacked(kind: bytes, data: bytes) -> int:
    """How many bytes a text or profile takes, counted up to a little more than `_MAX_TEXT`."""
    _, _, rest = data.partition(b"\0")
    if kind == b"iTXt":  # flag, method, language, translated keyword, text
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        packed, rest = kind != b"tEXt", rest[kind != b"tEXt" :]
    if not packed:
        return len(data)
    try:
        return len(zlib.decompressobj().decompress(rest, _MAX_TEXT + 1))
    except zlib.error:
        return len(data)


def read_idx(data: bytes, name: str) -> np.ndarray:
    """Parse an idx file of unsigned bytes, the format of MNIST: uint8, of the shape that its header gives.

    Layout: 0, 0, type (8 = unsigned byte), number of dimensions, then each dimension as a big-endian uint32, then
    the values, last dimension fastest (LeCun, http://yann.lecun.com/exdb/mnist). The array is a read-only view of
    `data`. `name` is for messages. Raises `BadInput` with the offset of what is wrong.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise BadInput(f"{name}: offset 0: '{data[:4].hex(' ')}'; an idx file of bytes begins '00 00 08' and 01 to 04")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise BadInput(f"{name}: offset 4: {data[3]} dimensions take a header of {start} bytes, there are {len(data)}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if 0 in shape:
        raise BadInput(f"{name}: offset 4: shape {shape} is empty; every dimension should be 1 or more")
    promised = math.prod(shape)  # in Python's integers: uint32s could wrap around and agree with the file's length
    if promised != len(data) - start:
        raise BadInput(f"{name}: offset {start}: shape {shape} takes {promised} bytes, there are {len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_idx_gz(path: Path, sha256: str) -> np.ndarray:
    """Read a gzipped idx file of at most 64 MiB, whose *uncompressed* bytes have this sha256."""
    try:
        with gzip.open(path) as file:
            data = file.read(1 << 26)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read as gzip: {_reason(error)}; delete it and fetch it again") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BadInput(f"{path}: sha256 of its contents is {found}, not {sha256}; delete it and fetch it again")
    return read_idx(data, str(path))


def read_cifar(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse a CIFAR-10 binary batch: images uint8 (N, 32, 32, 3) and labels uint8 (N,).

    A record is 3,073 bytes: the label, then a red, a green and a blue plane of 32 x 32, rows first
    (https://www.cs.toronto.edu/~kriz/cifar.html). Raises `BadInput` with the offset of what is wrong.
    """
    whole, rest = divmod(len(data), CIFAR_RECORD)
    if rest or not whole:
        raise BadInput(f"{name}: offset {whole * CIFAR_RECORD}: {rest} bytes where a record takes {CIFAR_RECORD}")
    records = np.frombuffer(data, np.uint8).reshape(whole, CIFAR_RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        worst = int(np.argmax(labels > 9))
        raise BadInput(f"{name}: offset {worst * CIFAR_RECORD}: label {labels[worst]}, where CIFAR-10 has 0 to 9")
    images = records[:, 1:].reshape(whole, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def read_cifar_tar(path: Path, members: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read and join batches of a CIFAR-10 binary tarball, as `read_cifar` does, in memory.

    Members are looked up by their full names and nothing is ever written to disk, so what else the archive holds,
    and where it would like to be put, does not matter.
    """
    batches = []
    try:
        with gzip.open(path) as stream:
            data = stream.read(_UNPACKED + 1)
        if len(data) > _UNPACKED:
            raise BadInput(f"{path}: unpacks to more than {_UNPACKED:,} bytes; CIFAR-10 takes 184 million")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            found = {info.name: info for info in itertools.islice(archive, 1000)}
            for member in members:
                file = archive.extractfile(found[member])
                if file is None:
                    raise BadInput(f"{path}: {member} is not a file")
                batches.append(read_cifar(file.read(10_000 * CIFAR_RECORD), f"{path}: {member}"))
    except KeyError as error:
        raise BadInput(f"{path}: {member} is missing; a CIFAR-10 binary tarball holds {', '.join(members)}") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read as a tarball: {_reason(error)}") from error
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file with these names, as far as they are there, or all; never unpickling.

    Raises `BadInput` when that is not possible, and, before anything is unpacked, for arrays that take more than 256 MB
    and more than twenty times the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [i for i in archive.infolist() if names is None or i.filename.removesuffix(".npy") in names]
            size, limit = sum(map(partial(_npy_bytes, archive), wanted)), _RATIO * Path(path).stat().st_size
            if size > max(_UNPACKED, limit):
                raise ValueError(
                    f"its arrays take {size:,} bytes, more than {_RATIO} times the file; save it with savez"
                )
            arrays = {}
            for info in wanted:
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except Exception as error:  # a corrupt archive raises OSError, ValueError, BadZipFile, zlib.error, and more
        raise BadInput(f"{path}: cannot be read as an npz file: {_reason(error)}") from error


def _npy_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The bytes of an array, as its header promises and the archive agrees."""
    with archive.open(info) as member:
        head = io.BytesIO(member.read(1 << 16))
    version = np.lib.format.read_magic(head)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"{info.filename}: npy version {version}; there are 1.0 and 2.0")
    shape, _, dtype = header(head)
    if dtype.hasobject:
        raise ValueError(f"{info.filename}: holds Python objects, which are never unpickled")
    promised = math.prod(shape) * dtype.itemsize
    if promised + head.tell() != info.file_size or min(shape, default=0) < 0:
        raise ValueError(f"{info.filename}: {dtype} {shape} takes {promised:,} bytes; there are {info.file_size:,}")
    return promised
