"""Keras's .h5 and .weights.h5: the datasets of an HDF5 file, by their paths. Needs h5py.

An HDF5 file may point to other files (external links, external and virtual data); those are refused, and compression
other than gzip's.
"""

from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.weights.entries import DEFLATE_LIMIT, Entry

_MAX_OBJECTS = 100_000


def read(path: Path) -> dict[str, Entry]:
    """Every dataset of numbers by its path, such as "block1_conv1/block1_conv1_W_1:0". Raises BadInput without h5py."""
    h5py = _h5py()
    entries, waiting, seen = {}, [""], 0
    with h5py.File(path, "r") as file:
        while waiting:
            prefix = waiting.pop()
            group = file[prefix or "/"]
            for name in group:
                seen += 1
                full = f"{prefix}/{name}".lstrip("/")
                if seen > _MAX_OBJECTS:
                    raise BadInput(f"more than {_MAX_OBJECTS:,} objects, or groups that hold themselves")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise BadInput(f"{full}: a link to elsewhere, which weights do not need")
                thing = group[name]
                if isinstance(thing, h5py.Dataset):
                    entries[full] = _entry(path, full, thing)
                elif full.count("/") > 20:
                    raise BadInput(f"{full[:100]}…: groups within groups without end")
                else:
                    waiting.append(full)
    return entries


def _entry(path: Path, name: str, dataset) -> Entry:
    if dataset.is_virtual or dataset.external:
        raise BadInput(f"{name}: its values are said to be in another file")
    if dataset.compression not in (None, "gzip"):
        raise BadInput(f"{name}: compressed by {dataset.compression}; only gzip is read")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored * (1 if dataset.compression is None else DEFLATE_LIMIT):
        raise BadInput(f"{name}: {dataset.dtype} {dataset.shape} takes {dataset.nbytes:,} bytes, there are {stored:,}")
    return Entry(dataset.shape, dataset.dtype.name, lambda: _values(path, name))


def _values(path: Path, name: str) -> np.ndarray:
    with _h5py().File(path, "r") as file:
        array = file[name][()]
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _h5py():
    try:
        import h5py
    except ImportError:
        raise BadInput("reading HDF5 needs h5py: pip install 'minivgg[weights]'") from None
    return h5py
