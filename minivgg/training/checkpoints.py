"""Arrays and a description in one safetensors file: nothing in it is ever executed, and it is written atomically."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minivgg.backends.array import to_cpu
from minivgg.errors import BadInput
from minivgg.files import atomically

_KEY = "minivgg"  # the entry of the file's own metadata that holds the description, as JSON


def save(path: Path, arrays: dict[str, np.ndarray], description: dict) -> None:
    """Write `arrays` (name → array, on any device) and a JSON-able `description` to `path`, replacing it only once
    complete."""
    arrays = {name: np.ascontiguousarray(to_cpu(value)) for name, value in arrays.items()}
    with atomically(path) as temporary:
        save_file(arrays, temporary, metadata={_KEY: json.dumps(description)})


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the description of a file that `save` wrote.

    Raises BadInput, naming the file, where it is missing, damaged or no checkpoint of minivgg's.
    """
    try:
        with safe_open(path, framework="np") as file:
            description = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (KeyError, json.JSONDecodeError):
        raise BadInput(f"{path}: a safetensors file, but not a checkpoint of minivgg's") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path}: damaged or not a checkpoint: {error}") from None


def select(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
