"""File formats of image sets: bytes in, arrays out. Every reader refuses a malformed file with one line that names it.

Nothing here trusts a header: sizes are checked against the bytes that are there before anything is allocated.
"""

import gzip
import hashlib
import math
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minivgg.errors import BadInput

MAX_PIXELS = 1 << 26  # 200 MB when decompressed as RGB

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
    scale), and for a picture of more than `MAX_PIXELS` (67 million), before it is decompressed.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("not a file")  # a pipe would keep us waiting
        with Image.open(path, formats=IMAGE_DECODERS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} is more than {MAX_PIXELS} pixels; make it smaller")
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel; save it with 8")
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright.convert("RGBA"))
            pixels = upright.convert("L" if channels == 1 else "RGB")
            return np.asarray(pixels).reshape(pixels.height, pixels.width, channels)
    except UnidentifiedImageError:
        raise BadInput(f"{path}: cannot be read as an image: none of {', '.join(IMAGE_DECODERS)}") from None
    except Exception as error:  # on corrupt bytes Pillow raises OSError, SyntaxError, struct.error, and more
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise BadInput(f"{path}: cannot be read as an image: {reason}") from error


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
        raise BadInput(f"{path}: cannot be read as gzip: {error}; delete it and fetch it again") from error
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
        with tarfile.open(path, "r:gz") as archive:
            for member in members:
                file = archive.extractfile(member)
                if file is None:
                    raise BadInput(f"{path}: {member} is not a file")
                batches.append(read_cifar(file.read(10_000 * CIFAR_RECORD), f"{path}: {member}"))
    except KeyError as error:
        raise BadInput(f"{path}: {member} is missing; a CIFAR-10 binary tarball holds {', '.join(members)}") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read as a tarball: {error}") from error
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file, never unpickling. Raises `BadInput` when that is not possible."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a corrupt archive raises OSError, ValueError, BadZipFile, zlib.error, and more
        raise BadInput(f"{path}: cannot be read as an npz file: {error}") from error
