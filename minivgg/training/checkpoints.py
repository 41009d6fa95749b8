"""Arrays and a description in one safetensors file: never executed, written atomically, and damage is noticed.

The file's own metadata holds the description, as JSON, and the CRC-32 of all of it: any one to 32 flipped bits in a row
change that for certain, others all but once in four billion times. It takes a quarter of a second a gigabyte, which is
a tenth of BLAKE2's time, and what is guarded against is a disk, not a forger.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from minivgg.backends.array import to_cpu
from minivgg.errors import BadInput
from minivgg.files import atomically

_KEY, _CHECKSUM = "minivgg", "checksum"  # entries of the file's metadata
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"} | {
    f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def save(path: Path, arrays: dict[str, np.ndarray], description: dict, *, keep: Path | None = None) -> None:
    """Write `arrays` (name → array, on any device) and a JSON-able `description` to `path`, replacing it only once
    complete; what it held before stays as `keep`, if that is given.

    Not by safetensors' own function: of a full disk it says what is no OSError, and what it leaves when it is killed
    has names of its own.
    """
    arrays = {name: np.ascontiguousarray(to_cpu(value)) for name, value in arrays.items()}
    text = json.dumps(description)
    header, end = {"__metadata__": {_KEY: text, _CHECKSUM: _checksum(arrays, text)}}, 0
    for name, value in arrays.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype.name], "shape": value.shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with atomically(path, keep=keep) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for value in arrays.values():
            file.write(_bytes(value))


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the description of a file that `save` wrote. Files of earlier versions have no checksum to check.

    Raises BadInput, naming the file, where it is missing, damaged or no checkpoint of minivgg's.
    """
    try:
        if not Path(path).exists():
            raise BadInput(f"{path}: no such file")
        if not Path(path).is_file():
            raise BadInput(f"{path}: not a file")  # a pipe would keep us waiting
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            description = json.loads(metadata[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except BadInput:
        raise
    except (KeyError, json.JSONDecodeError):
        raise BadInput(f"{path}: a safetensors file, but not a checkpoint of minivgg's") from None
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: damaged or not a checkpoint: {error}") from None
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(arrays, metadata[_KEY]):
        raise BadInput(f"{path}: damaged: its contents do not have the checksum {metadata[_CHECKSUM][:20]!r}")
    if not isinstance(description, dict):
        raise BadInput(f"{path}: damaged: its description is not a JSON object")
    return arrays, description


def select(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _checksum(arrays: dict[str, np.ndarray], text: str) -> str:
    crc = zlib.crc32(text.encode())
    for name, value in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {value.dtype.name} {value.shape}".encode(), crc)
        crc = zlib.crc32(_bytes(value), crc)
    return f"crc32 {crc:08x}"


def _bytes(value: np.ndarray) -> np.ndarray:
    """The array's bytes, little-endian, as a file has them: a view."""
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    return little.reshape(-1).view(np.uint8)
