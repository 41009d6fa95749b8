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
from minivgg.files import atomically, little_endian, write_safetensors

_KEY, _CHECKSUM = "minivgg", "checksum"  # entries of the file's metadata


def save(path: Path, arrays: dict[str, np.ndarray], description: dict, keep: Path | None = None) -> None:
    """Write `arrays` (name → array, on any device) and a JSON-able `description` to `path`, replacing it only once
    complete; what it held before stays as `keep`, if that is given."""
    arrays = {name: np.ascontiguousarray(to_cpu(value)) for name, value in arrays.items()}
    text = json.dumps(description)
    with atomically(path, keep=keep) as temporary:
        write_safetensors(temporary, arrays, {_KEY: text, _CHECKSUM: _checksum(arrays, text)})


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
        crc = zlib.crc32(little_endian(value), crc)
    return f"crc32 {crc:08x}"
