"""A file of weights, of any format: `read(path)` tells formats apart by their first bytes, never by the file's name.

Nothing here trusts a header: sizes are checked against the bytes that are there before anything is allocated, and no
values are read before somebody asks for them.
"""

import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import safe_open

from minivgg.errors import BadInput
from minivgg.weights import keras_h5, torch_files
from minivgg.weights.entries import DEFLATE_LIMIT, MAX_ARRAYS, MAX_HEADER, Entry, read_values, shown
from minivgg.weights.keras_h5 import Layers

_KERAS_WEIGHTS = ("model.weights.h5", "variables.h5")  # the second in Keras 2.11
_KERAS_MODEL = "config.json"
_SAFETENSORS = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds: its arrays by the file's own names, none of them read yet; what lies beside them,
    by name and in a word; and of a file of Keras's, what it says of its layers."""

    path: Path
    format: str
    entries: dict[str, Entry]
    beside: dict[str, str] = field(default_factory=dict)
    keras: Layers | None = None


def read(path: Path, part: str | None = None) -> Contents:
    """The contents of a safetensors, npz, PyTorch (.pth, .pt) or Keras (.h5, .keras) file.

    Where a checkpoint of PyTorch's holds several state dicts, `part` is the dotted name of the one to take, such as
    "state_dict_ema"; without it, it is that which is called as weights are. Costs the header alone.

    Raises BadInput, one line that names the file and, where there is one, the offset.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
        contents = _read(path, start, part)
        if part is not None and not contents.format.startswith("PyTorch"):
            raise BadInput(f"no part {part!r}: only checkpoints of PyTorch's hold several state dicts")
        return contents
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except BadInput as error:
        raise BadInput(f"{path}: {shown(error, 300)}") from None
    except Exception as error:  # damage shows as OSError, BadZipFile, struct.error, RuntimeError, and more
        reason = shown(error, 300) or type(error).__name__
        raise BadInput(f"{path}: cannot be read as weights: {reason}") from error


def _read(path: Path, start: bytes, part: str | None) -> Contents:
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path.stat().st_size)
            if members.keys() & {_KERAS_MODEL, *_KERAS_WEIGHTS}:
                return Contents(path, "Keras archive", *_read_keras(path, archive, members))
        if any(name.endswith("data.pkl") for name in members):
            return Contents(path, "PyTorch, zip", *torch_files.read_zip(path, members, part))
        return Contents(path, "npz", _read_npz(path, members))
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        entries, layers = keras_h5.read(path)
        return Contents(path, "HDF5", entries, keras=layers)
    if start[8:9] == b"{":  # before pickles: its first byte, a length's, may be anything
        return _read_safetensors(path)
    if start[:1] == b"\x80":
        return Contents(path, "PyTorch, legacy", *torch_files.read_legacy(path, part))
    raise BadInput(f"offset 0: '{start[:8].hex(' ')}' begins no safetensors, npz, PyTorch or HDF5 file")


def _read_safetensors(path: Path) -> Contents:
    """The library checks the header against the file; it is read again here for what the library does not do: find
    names that come twice, and bfloat16, which NumPy lacks."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise BadInput(f"offset 0: a header of {length:,} bytes; more than {MAX_HEADER:,} are refused")
        text = file.read(length)
    with safe_open(path, framework="np"):
        pass
    header = json.loads(text, object_pairs_hook=_unique)
    header.pop("__metadata__", None)
    _check_count(header)
    entries = {}
    for name, about in header.items():
        if about["dtype"] not in _SAFETENSORS:
            raise BadInput(f"{name}: values of type {about['dtype']}; there should be {', '.join(_SAFETENSORS)}")
        dtype, shape, start = _SAFETENSORS[about["dtype"]], tuple(about["shape"]), 8 + length + about["data_offsets"][0]
        entries[name] = Entry(shape, dtype, lambda d=dtype, o=start, s=shape: _values(path, d, o, s))
    return Contents(path, "safetensors", entries)


def _check_count(arrays: Sized) -> None:
    if len(arrays) > MAX_ARRAYS:
        raise BadInput(f"{len(arrays):,} arrays; more than {MAX_ARRAYS:,} are refused")


def _values(path: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return read_values(path, dtype, offset, math.prod(shape)).reshape(shape)


def _unique(pairs: list[tuple]) -> dict:
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise BadInput(f"the header names {twice[0]!r} twice")
    return dict(pairs)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name, after a look at what they promise. None of them is ever put on disk."""
    members = {}
    for info in archive.infolist():
        name = info.filename
        if name in members:
            raise BadInput(f"the archive holds {name!r} twice")
        if name.startswith(("/", "\\")) or ".." in Path(name.replace("\\", "/")).parts or ":" in name[:2]:
            raise BadInput(f"the archive's member {name!r} would lie outside of it")
        if info.flag_bits & 1:
            raise BadInput(f"the archive's member {name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadInput(f"the archive's member {name!r} is compressed by method {info.compress_type}, not deflated")
        limit = info.compress_size * (DEFLATE_LIMIT if info.compress_type == zipfile.ZIP_DEFLATED else 1)
        if info.compress_size > size or info.file_size > limit:
            raise BadInput(
                f"the archive's member {name!r} promises {info.file_size:,} bytes from {info.compress_size:,} "
                f"in a file of {size:,}"
            )
        members[name] = info
    return members


def _read_keras(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]):
    """Keras 3's archive: a .weights.h5, and the model's description."""
    name = next((name for name in _KERAS_WEIGHTS if name in members), None)
    if name is None:
        raise BadInput(f"a Keras archive without {_KERAS_WEIGHTS[0]}, where its weights would be; save the model again")
    if members[name].compress_type != zipfile.ZIP_STORED:
        raise BadInput(f"its {name} is compressed, which Keras never does; unzip it, and give that file")
    config = None
    if _KERAS_MODEL in members:
        with archive.open(_KERAS_MODEL) as member:
            config = keras_h5.description(member.read(MAX_HEADER + 1))
    entries, layers = keras_h5.read(path, partial(_stored, path, members[name]), config)
    return entries, {}, layers


@contextmanager
def _stored(path: Path, info: zipfile.ZipInfo) -> Iterator[BinaryIO]:
    """A member that is not compressed, where it lies in the archive: HDF5 jumps to and fro, and zipfile's own stream
    would read all that is between."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
        if head[:4] != b"PK\x03\x04":
            raise BadInput(f"offset {info.header_offset}: no member of the archive begins there")
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")  # name, extra field
        yield _Part(file, info.header_offset + 30 + lengths, info.file_size)


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count


def _read_npz(path: Path, members: dict[str, zipfile.ZipInfo]) -> dict[str, Entry]:
    entries = {}
    _check_count(members)
    with zipfile.ZipFile(path) as archive:
        for name, info in members.items():
            if not name.endswith(".npy"):
                raise BadInput(f"the archive's member {name!r} is no .npy array; an npz file holds nothing else")
            with archive.open(name) as member:
                head = io.BytesIO(member.read(1 << 16))  # a header may claim four gigabytes; it gets 64 KB
            shape, dtype = _npy_header(head, name)
            if dtype.hasobject or dtype.fields:
                raise BadInput(f"{name}: holds Python objects ({dtype}); those are never unpickled")
            promised = head.tell() + math.prod(shape) * dtype.itemsize
            if promised != info.file_size or min(shape, default=0) < 0:
                raise BadInput(f"{name}: {dtype} {shape} takes {promised:,} bytes, there are {info.file_size:,}")
            entries[name.removesuffix(".npy")] = Entry(shape, dtype.name, lambda n=name: _read_npy(path, n))
    return entries


def _npy_header(head: io.BytesIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise BadInput(f"{name}: npy version {version[0]}.{version[1]}; there are 1.0 and 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(head)
    return shape, dtype


def _read_npy(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
