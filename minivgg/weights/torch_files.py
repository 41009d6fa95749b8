"""PyTorch's .pth and .pt: the zip archive of `torch.save` (since 1.6), and the legacy stream of pickles before it.

Formats as `torch/serialization.py` writes them. Both hold a pickle that describes tensors (see `pickle_machine`), and
the values beside it as plain bytes, one run a storage; several tensors may share one.
"""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.weights import pickle_machine
from minivgg.weights.entries import MAX_HEADER, Entry, decode, itemsize, read_values
from minivgg.weights.pickle_machine import Storage, Tensor

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")


def read_zip(path: Path, members: dict[str, zipfile.ZipInfo]) -> dict[str, Entry]:
    """The tensors of a zip archive whose `members` have been looked at."""
    pickles = [name for name in members if name.endswith("data.pkl")]
    root = pickles[0].removesuffix("data.pkl")
    if len(pickles) > 1 or any(name.startswith(f"{root}code/") for name in members):
        raise BadInput("a TorchScript program; save the network's state_dict() instead")
    compressed = next((name for name, info in members.items() if info.compress_type != zipfile.ZIP_STORED), None)
    if compressed:
        raise BadInput(f"the archive's member {compressed!r} is compressed, which PyTorch never does")
    if members[pickles[0]].file_size > MAX_HEADER:
        raise BadInput(f"a pickle of {members[pickles[0]].file_size:,} bytes; more than {MAX_HEADER:,} are refused")
    with zipfile.ZipFile(path) as archive:
        built = pickle_machine.run(io.BytesIO(archive.read(pickles[0])))
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

    return _entries(built, check, partial(_from_zip, path, root, "<" if order == b"little" else ">"))


def _from_zip(path: Path, root: str, order: str, tensor: Tensor) -> np.ndarray:
    size, dtype = itemsize(tensor.storage.dtype), tensor.storage.dtype
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder(order)
    with zipfile.ZipFile(path) as archive, archive.open(f"{root}data/{tensor.storage.key}") as member:
        member.seek(tensor.offset * size)
        data = member.read(tensor.reach * size)
        while member.read(1 << 20):  # to the end, where the checksum is compared
            pass
    return decode(np.frombuffer(data, stored), dtype)


def read_legacy(path: Path) -> dict[str, Entry]:
    """The tensors of a stream of five pickles: a number, a version, facts on the machine, the object, storage keys;
    then for each key how many values, as 8 bytes, and the values."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_HEADER))
    if pickle_machine.run(head) != _MAGIC or pickle_machine.run(head) != _PROTOCOL:
        raise BadInput("a pickle, but not one of PyTorch's; save the network's state_dict() with torch.save")
    machine, built, keys = (pickle_machine.run(head) for _ in range(3))
    order = "<" if not isinstance(machine, dict) or machine.get("little_endian", True) else ">"
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadInput(f"offset {head.tell()}: no list of storages")
    used = {t.storage.key: t.storage for t in _tensors(built).values()}
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

    return _entries(built, check, values)


def _tensors(built) -> dict[str, Tensor]:
    """The state dict of what a file holds: itself, or under one of the names that training scripts give it."""
    wrapped = [built.get(name) for name in _WRAPPERS] if isinstance(built, dict) else []
    for candidate in (built, *wrapped):
        if isinstance(candidate, dict):
            found = {name: value for name, value in candidate.items() if isinstance(value, Tensor)}
            if found and all(isinstance(name, str) for name in found):
                return found
    holds = ", ".join(str(key)[:50] for key in list(built)[:5]) if isinstance(built, dict) else type(built).__name__
    raise BadInput(f"no state dict of named tensors in it, but {holds or 'nothing'}")


def _entries(built, check: Callable[[Storage], None], values: Callable[[Tensor], np.ndarray]) -> dict[str, Entry]:
    entries = {}
    for name, tensor in _tensors(built).items():
        check(tensor.storage)
        entries[name] = Entry(tensor.shape, tensor.storage.dtype, lambda t=tensor: _strided(values(t), t))
    return entries


def _strided(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The tensor's view of values (reach,)."""
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
