"""Keras's files, damaged or meant to do harm: `CASES` is name → a function that gives the bytes."""

import zlib
from functools import partial

import numpy as np
from hostile_files import SHARES, STATE, cut, flipped, written
from weight_files import write_h5


def keras():
    """The network's weights by Keras's names; layouts are right as its maps end at 1×1."""
    out, convolutions = {}, [1, 1, 2, 2, 2]
    places = [f"block{b}_conv{i}" for b, n in enumerate(convolutions, 1) for i in range(1, n + 1)]
    names = list(dict.fromkeys(n.rsplit(".", 1)[0] for n in STATE))
    for name, layer in zip(names, [*places, "fc1", "fc2", "predictions"], strict=True):
        w = STATE[f"{name}.weight"]
        out[f"{layer}/kernel"] = w.T if w.ndim == 2 else np.moveaxis(w, [2, 3, 1, 0], [0, 1, 2, 3])
        out[f"{layer}/bias"] = STATE[f"{name}.bias"]
    return out


def h5(change=None):
    """Keras's file, after `change(h5py, file)`; built when asked for, since h5py may not be there."""
    import h5py

    def write(path):
        write_h5(keras(), path)
        if change:
            with h5py.File(path, "r+") as file:
                change(h5py, file)

    return written(write)


def replace_kernel(h5py, file, **how):
    del file["fc1/kernel"]
    file["fc1"].create_dataset("kernel", **how)


def external_link(h5py, file):
    file["fc1/more"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(h5py, file):
    file["fc1/more"] = h5py.SoftLink("/fc1")


def cycle(h5py, file):
    file["fc1/more"] = file["/"]


def external_values(h5py, file):
    replace_kernel(h5py, file, shape=(8, 4), dtype="f4", external=[("/etc/passwd", 0, 128)])


def virtual_values(h5py, file):
    layout = h5py.VirtualLayout(shape=(8, 4), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(8, 4))
    del file["fc1/kernel"]
    file["fc1"].create_virtual_dataset("kernel", layout)


def swelling_chunk(h5py, file):
    """HDF5 would take memory for all that a chunk unpacks to."""
    replace_kernel(h5py, file, shape=(8, 4), chunks=(8, 4), dtype="f4", compression="gzip")
    file["fc1/kernel"].id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 28), 9))


def doubly_packed(h5py, file):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((8, 4))
    plan.set_deflate(9)
    plan.set_deflate(9)
    del file["fc1/kernel"]
    kind, space = h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((8, 4))
    h5py.h5d.create(file["fc1"].id, b"kernel", kind, space, plan).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.ones((8, 4), "f4")
    )


H5 = {
    "an external link": external_link,
    "a soft link": soft_link,
    "a group in itself": cycle,
    "values in another file": external_values,
    "virtual values": virtual_values,
    "a promise without values": partial(replace_kernel, shape=(1 << 20, 1 << 20), dtype="f4"),
    "a compressed promise": partial(
        replace_kernel, shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64), compression="gzip"
    ),
    "a chunk that swells": swelling_chunk,
    "a chunk larger than all": partial(
        replace_kernel, data=np.ones((8, 4), "f4"), maxshape=(None, None), chunks=(1 << 14, 1 << 13), compression="gzip"
    ),
    "filters twice": doubly_packed,
    "more arrays than a network has": lambda h5py, file: [
        file.create_dataset(f"x{i}", (0,), "f4") for i in range(9000)
    ],
    "another compression": partial(replace_kernel, data=np.ones((8, 4), "f4"), compression="lzf"),
}
H5_GOOD = []


def h5_good():
    if not H5_GOOD:
        H5_GOOD.append(h5())
    return H5_GOOD[0]


CASES = {
    **{f"h5, no {word}": lambda w=word: h5_good().replace(w, b"XXXX") for word in (b"TREE", b"HEAP", b"SNOD")},
    **{f"h5 cut at {s:.1%}": lambda s=s: cut(h5_good(), s) for s in SHARES},
    **{f"h5 with {name}": partial(h5, change) for name, change in H5.items()},
    **{f"h5 flipped at {place}": lambda p=place: flipped(h5_good(), p) for place in (8, 9, 10, 13, 14, 24, 40)},
    "h5 of nothing": lambda: b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8,
}
