"""PyTorch's .pth and .pt: the zip archive of `torch.save` (since 1.6), and the legacy stream of pickles before it.

Formats as `torch/serialization.py` writes them. Both hold a pickle that describes tensors (see `pickle_machine`), and
the values beside it as plain bytes, one run a storage; several tensors may share one.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.files import little_endian
from minivgg.weights import checkpoints, pickle_machine
from minivgg.weights.entries import Entry, decode, itemsize, read_values
from minivgg.weights.pickle_machine import MAX_PICKLE, STORAGES, Storage, Tensor

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

Found = tuple[dict[str, Entry], dict[str, str]]  # the weights, and in a word what lies beside them


def read_zip(path: Path, members: dict[str, zipfile.ZipInfo], part: str | None) -> Found:
    """The tensors of a zip archive whose `members` have been looked at; `part` as in `checkpoints.choose`."""
    pickles = [name for name in members if name.endswith("data.pkl")]
    root = pickles[0].removesuffix("data.pkl")
    if len(pickles) > 1 or any(name.startswith(f"{root}code/") for name in members):
        raise BadInput("a TorchScript program; save the network's state_dict() instead")
    compressed = next((name for name, info in members.items() if info.compress_type != zipfile.ZIP_STORED), None)
    if compressed:
        raise BadInput(f"the archive's member {compressed!r} is compressed, which PyTorch never does")
    if members[pickles[0]].file_size > MAX_PICKLE:
        raise BadInput(f"a pickle of {members[pickles[0]].file_size:,} bytes; more than {MAX_PICKLE:,} are refused")
    with zipfile.ZipFile(path) as archive:
        built = pickle_machine.run(io.BytesIO(archive.read(pickles[0]))).value
        order = archive.read(f"{root}byteorder")[:16] if f"{root}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise BadInput(f"byte order {order!r}; there are little and big")

    def check(storage: Storage) -> None:
        name, promised = f"{root}data/{storage.key}", storage.count * itemsize(storage.dtype)
        if name not in members:
            raise BadInput(f"the archive's member {name[:200]!r} is missing")
        if members[name].file_size != promised:
            raise BadInput(
                f"the archive's member {name!r} has {members[name].file_size:,} bytes; "
                f"its {storage.count:,} values of {storage.dtype} take {promised:,}"
            )

    return _entries(built, part, check, partial(_from_zip, path, root, "<" if order == b"little" else ">"))


def _from_zip(path: Path, root: str, order: str, tensor: Tensor) -> np.ndarray:
    size, dtype = itemsize(tensor.storage.dtype), tensor.storage.dtype
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder(order)
    with zipfile.ZipFile(path) as archive, archive.open(f"{root}data/{tensor.storage.key}") as member:
        member.seek(tensor.offset * size)
        data = member.read(tensor.reach * size)
        while member.read(1 << 20):  # to the end, where the checksum is compared
            pass
    return decode(np.frombuffer(data, stored), dtype)


def read_legacy(path: Path, part: str | None) -> Found:
    """The tensors of a stream of five pickles: a number, a version, facts on the machine, the object, storage keys;
    then for each key how many values, as 8 bytes, and the values. `part` as in `checkpoints.choose`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE))
    if pickle_machine.run(head).value != _MAGIC or pickle_machine.run(head).value != _PROTOCOL:
        raise BadInput("a pickle, but not one of PyTorch's; save the network's state_dict() with torch.save")
    machine, (built, used), keys = (
        pickle_machine.run(head).value,
        pickle_machine.run(head),
        pickle_machine.run(head).value,
    )
    order = "<" if not isinstance(machine, dict) or machine.get("little_endian", True) else ">"
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadInput(f"offset {head.tell()}: no list of storages")
    offsets, at = {}, head.tell()
    for key in keys:
        if key not in used or key in offsets:
            raise BadInput(f"offset {at}: the storage {key[:100]!r} is of unknown type, or there twice")
        with path.open("rb") as file:
            file.seek(at)
            count = int.from_bytes(file.read(8), "little" if order == "<" else "big")
        end = at + 8 + count * itemsize(used[key].dtype)
        if count != used[key].count or end > size:
            raise BadInput(
                f"offset {at}: the storage {key[:100]!r} has {count:,} values; "
                f"it should have {used[key].count:,}, and the file ends at {size:,}"
            )
        offsets[key], at = at + 8, end

    def check(storage: Storage) -> None:
        if storage.key not in offsets or storage != used[storage.key]:
            raise BadInput(f"the storage {storage.key[:100]!r} is missing, or of two types")

    def values(tensor: Tensor) -> np.ndarray:
        start = offsets[tensor.storage.key] + tensor.offset * itemsize(tensor.storage.dtype)
        return read_values(path, tensor.storage.dtype, start, tensor.reach, order)

    return _entries(built, part, check, values)


def write_zip(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a state dict as `torch.save` does: `torch.load` reads it, with `weights_only=True` too."""
    kinds = {dtype: _named(*name) for name, dtype in STORAGES.items()}
    empty_dict, rebuild = _named("collections", "OrderedDict") + b")R", _named("torch._utils", "_rebuild_tensor_v2")
    code, files = [b"\x80\x02", empty_dict, b"("], {}
    for i, (name, array) in enumerate(arrays.items()):
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        storage = b"(" + _plain("storage") + kinds[array.dtype.name] + _plain(str(i), "cpu", array.size) + b"tQ"
        view = _plain(0, array.shape, strides) + b"\x89" + empty_dict  # which requires no gradient, and has no hooks
        code += [_plain(name), rebuild, b"(", storage, view, b"tR"]
        files[f"data/{i}"] = little_endian(array)
    members = {"data.pkl": b"".join([*code, b"u."]), "byteorder": b"little", **files, "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            with archive.open(zipfile.ZipInfo(f"archive/{name}"), "w", force_zip64=True) as member:
                member.write(data)


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _plain(*values) -> bytes:
    """The instructions that build texts, numbers and tuples."""
    return b"".join(pickle.dumps(value, protocol=2)[2:-1] for value in values)


def _entries(
    built, part: str | None, check: Callable[[Storage], None], values: Callable[[Tensor], np.ndarray]
) -> Found:
    tensors, beside = checkpoints.choose(built, part)
    for tensor in tensors.values():
        check(tensor.storage)
    entries = {
        name: Entry(tensor.shape, tensor.storage.dtype, lambda t=tensor: _strided(values(t), t))
        for name, tensor in tensors.items()
    }
    return entries, beside


def _strided(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The tensor's view of values (reach,)."""
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
