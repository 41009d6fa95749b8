"""More than two hundred files that are damaged or meant to do harm: `CASES` is name → a function that gives the bytes.

All come from files that load well into `model()`, so that what is refused is the damage. Whatever some would run if
they could leaves the file that MARKER names.
"""

import io
import json
import pickle
import struct
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from weight_files import (
    call,
    integer,
    legacy_bytes,
    name_of,
    pickled,
    state_code,
    tensor,
    text,
    tuple_of,
    write_archive,
    write_npz,
    write_safetensors,
    zip_members,
)

from minivgg import build

MARKER = Path(tempfile.gettempdir()) / "minivgg-hostile-was-here"
OPTIONS = {"width": 1 / 64, "classes": 2, "classifier_width": 4, "input_size": 32, "init": "zeros"}


def model():
    return build("vgg11", **OPTIONS)


def good_state():
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in model().state_shapes().items()}


STATE = good_state()
FIRST, *_ = STATE


def written(write):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


GOOD = {
    "safetensors": written(partial(write_safetensors, STATE)),
    "npz": written(partial(write_npz, STATE)),
    "compressed npz": written(partial(write_npz, STATE, save=np.savez_compressed)),
    "zip": written(lambda path: write_archive(path, zip_members(STATE))),
    "legacy": legacy_bytes(STATE),
}


def cut(data, share):
    return data[: int(len(data) * share)]


def flipped(data, place, bits=0xFF):
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def header(change=None, raw=None, length=None):
    """A safetensors file whose header went through `change`, or is `raw`; `length` is what it claims to be long."""
    good = GOOD["safetensors"]
    size = int.from_bytes(good[:8], "little")
    about = json.loads(good[8 : 8 + size])
    if change:
        about = change(about) or about
    raw = json.dumps(about).encode() if raw is None else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + good[8 + size :]


def about_first(**entries):
    return header(lambda about: about[FIRST].update(entries))


def archive(members, compression=zipfile.ZIP_STORED):
    return written(lambda path: write_archive(path, members, compression))


def npy(description, data=b"", version=(1, 0), length=None):
    """An .npy file with this header, whether or not it makes sense."""
    raw = description if isinstance(description, bytes) else description.encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(raw) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + raw + data


def npz(name="features.0.weight.npy", compression=zipfile.ZIP_DEFLATED, **how):
    """The good npz with one member more, or another in place of the first."""
    with zipfile.ZipFile(io.BytesIO(GOOD["npz"])) as file:
        members = {n: file.read(n) for n in file.namelist()}
    return archive(members | {name: npy(**how)}, compression)


def described(shape, kind="<f4"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


def npz_with(change):
    """The good npz after `change(archive)`, which may add members."""

    def write(path):
        path.write_bytes(GOOD["npz"])
        with zipfile.ZipFile(path, "a") as file:
            change(file)

    return written(write)


def doubled(file):
    import warnings

    with warnings.catch_warnings(action="ignore"):
        file.writestr(f"{FIRST}.npy", b"again")


def patched_directory(data, field, value, form="<I"):
    """The archive with a field of its first central directory record overwritten."""
    place = data.index(b"PK\x01\x02") + field
    return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


COMMAND = f"touch {MARKER}"
GLOBALS = {
    "os.system": ("os", "system", COMMAND),
    "posix.system": ("posix", "system", COMMAND),
    "subprocess.call": ("subprocess", "call", COMMAND),
    "eval": ("builtins", "eval", f"open({str(MARKER)!r}, 'w')"),
    "exec of Python 2": ("__builtin__", "eval", f"open({str(MARKER)!r}, 'w')"),
    "open": ("io", "open", str(MARKER)),
    "getattr": ("builtins", "getattr", "x"),
    "import": ("importlib", "import_module", "antigravity"),
    "runpy": ("runpy", "run_path", str(MARKER)),
    "torch.hub": ("torch.hub", "load", "a/b"),
    "torch.load": ("torch", "load", str(MARKER)),
    "numpy's reconstruct": ("numpy.core.multiarray", "_reconstruct", "x"),
    "numpy's memmap": ("numpy", "memmap", str(MARKER)),
    "a dotted name": ("collections", "OrderedDict.fromkeys", "x"),
    "nested module": ("torch._utils", "os.system", COMMAND),
    "our own code": ("minivgg.files", "atomically", str(MARKER)),
    "deeper torch": ("torch.serialization", "os.system", COMMAND),
    "pty": ("pty", "spawn", "/bin/true"),
    "shutil": ("shutil", "rmtree", "/tmp/none"),
    "webbrowser": ("webbrowser", "open", "http://localhost"),
}


def in_zip(code):
    return archive(zip_members(STATE, code))


def in_state(code):
    """A well-formed state dict whose first tensor is `code` instead."""
    codes = {name: tensor(str(i), a) for i, (name, a) in enumerate(STATE.items())}
    return in_zip(state_code(codes | {FIRST: code}))


W = STATE[FIRST]
COUNT = W.size
TORCH_SIZE = name_of("torch", "Size")
# code that stands where the object should, or before it
PICKLES = {
    "by STACK_GLOBAL": text("os") + text("system") + b"\x93" + tuple_of(text(COMMAND)) + b"R",
    "by INST": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "by OBJ": b"(" + name_of("os", "system") + text(COMMAND) + b"o",
    "by NEWOBJ": name_of("subprocess", "Popen") + tuple_of(text(COMMAND)) + b"\x81",
    "NEWOBJ of a dict": name_of("collections", "OrderedDict") + b")\x81",
    "by EXT1": b"\x82\x01",
    "by EXT4": b"\x84\x01\x00\x00\x00",
    "a text persistent id": b"Pos.system\n",
    "call of a text": text("system") + tuple_of() + b"R",
    "call of a storage type": name_of("torch", "FloatStorage") + tuple_of(integer(1 << 40)) + b"R",
    "state for a function": name_of("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__code__") + b"Nsb",
    "a huge memo": b"}" + b"r\xff\xff\xff\xfe",
    "a memo that is empty": b"h\x07",
    "bytes without end": b"\x8e" + struct.pack("<Q", 1 << 60),
    "text without end": b"\x8d" + struct.pack("<Q", 1 << 60),
    "a frame without end": b"\x95" + struct.pack("<Q", 1 << 60),
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a negative length": b"\x8b" + struct.pack("<i", -5),
    "pop of nothing": b"0",
    "tuple of nothing": b"\x87",
    "a mark as a value": b"}(" + text("a") + b"(u",
    "items for a number": b"K\x01(" + text("a") + b"K\x01u",
    "items for a tuple": b")K\x01a",
    "an odd number of items": b"}(" + text("a") + b"u",
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
    "a list as a key": b"}]K\x01s",
    "a list copied without end": b"](" + b"K\x01" * 30_000 + b"eq\x000" + (TORCH_SIZE + b"h\x00\x85R") * 80 + b"}",
    "too many instructions": b"N0" * 700_000 + b"}",
    "a million dicts": b"}" * 1_100_000,
    "no state dict": b"}" + text("epoch") + b"K\x03s",
    "a number": b"K\x07",
    "nothing": b"N",
    "an unknown instruction": b"\xfe",
    "a tensor by itself": tensor("0", W),
    "a bytearray": b"\x96" + struct.pack("<Q", 1 << 40),
    "a set": b"\x8f",
    "a buffer from outside": b"\x97",
}


def persistent(*parts):
    return call("torch._utils", "_rebuild_tensor_v2", tuple_of(*parts) + b"Q", integer(0), tuple_of(), tuple_of())


FLOAT = name_of("torch", "FloatStorage")
TENSORS = {
    "an offset outside": tensor("0", W, offset=1),
    "an offset far outside": tensor("0", W, offset=(1 << 62)),
    "a negative offset": tensor("0", W, offset=-1),
    "a shape outside": tensor("0", W, shape=(COUNT + 1,), strides=(1,)),
    "a huge shape": tensor("0", W, shape=(1 << 31, 1 << 31), strides=(0, 0)),
    "an expanded shape": tensor("0", W, shape=(1 << 34,), strides=(0,)),
    "a negative size": tensor("0", W, shape=(-1, 3, 3, 3)),
    "two negative sizes": tensor("0", W, shape=(-1, -3, 3, 3)),
    "a negative stride": tensor("0", W, strides=(27, 9, 3, -1)),
    "a stride outside": tensor("0", W, strides=(27, 9, 3, 1000)),
    "too few strides": tensor("0", W, strides=(27, 9, 3)),
    "a missing storage": tensor("99", W),
    "a path as a storage": tensor("../../../../etc/passwd", W),
    "an absolute path as a storage": tensor("/etc/passwd", W),
    "more than the storage has": tensor("0", W, count=COUNT + 5),
    "less than the storage has": tensor("0", W, count=COUNT - 1, shape=(1, 3, 3, 1), strides=(1, 1, 1, 1)),
    "a negative storage": tensor("0", W, count=-1),
    "another type": tensor("0", W.astype(np.float64)),
    "a storage of no type": persistent(text("storage"), text("Float"), text("0"), text("cpu"), integer(1)),
    "a storage of an unknown type": persistent(
        text("storage"), name_of("torch", "QInt8Storage"), text("0"), text("cpu"), integer(1)
    ),
    "a persistent id of another kind": persistent(text("module"), FLOAT, text("0"), text("cpu"), integer(1)),
    "a short persistent id": persistent(text("storage"), FLOAT, text("0")),
    "a number as a key": persistent(text("storage"), FLOAT, integer(0), text("cpu"), integer(1)),
    "a text as a count": persistent(text("storage"), FLOAT, text("0"), text("cpu"), text("1")),
    "a tensor without arguments": call("torch._utils", "_rebuild_tensor_v2"),
    "a tensor of no storage": call("torch._utils", "_rebuild_tensor_v2", b"N", integer(0), tuple_of(), tuple_of()),
}


def zip_with(**members):
    return archive({n: data for n, data in (zip_members(STATE) | members).items() if data is not None})


def named_twice():
    codes = b"".join(text(FIRST) + tensor("0", W) for _ in range(2))
    return in_zip(call("collections", "OrderedDict") + b"(" + codes + b"u")


def legacy(**how):
    return legacy_bytes(STATE, **how)


def legacy_storage(value):
    """The legacy file with another count before its first storage."""
    data = GOOD["legacy"]
    place = data.index(struct.pack("<q", COUNT) + W.tobytes())
    return data[:place] + struct.pack("<q", value) + data[place + 8 :]


SHARES = np.linspace(0.003, 0.997, 16)
SIZES = {"length of 2**63": 1 << 63, "length of 2**40": 1 << 40, "length of 100 MB": 10**8, "length 0": 0}
BIG_ENDIAN = struct.pack(">Q", int.from_bytes(GOOD["safetensors"][:8], "little")) + GOOD["safetensors"][8:]
NEST = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
BOMB = zlib.compress(bytes(1 << 20), 9)

CASES = {
    **{f"{kind} cut at {s:.1%}": partial(cut, data, s) for kind, data in GOOD.items() for s in SHARES},
    **{f"safetensors, {name}": partial(header, length=n) for name, n in SIZES.items()},
    "safetensors, length big-endian": lambda: BIG_ENDIAN,
    **{f"safetensors flipped at {8 + 3 * i}": partial(flipped, GOOD["safetensors"], 8 + 3 * i, 0x80) for i in range(8)},
    "safetensors, shape of 2**62": partial(about_first, shape=[1 << 62, 4]),
    "safetensors, shape that wraps around": partial(about_first, shape=[1 << 32, 1 << 32]),
    "safetensors, negative shape": partial(about_first, shape=[-1, 3, 3, 3]),
    "safetensors, fractions in a shape": partial(about_first, shape=[1.5, 3, 3, 3]),
    "safetensors, shape is a text": partial(about_first, shape="1333"),
    "safetensors, offsets beyond the end": partial(about_first, data_offsets=[0, 1 << 40]),
    "safetensors, negative offsets": partial(about_first, data_offsets=[-108, 0]),
    "safetensors, offsets reversed": partial(about_first, data_offsets=[108, 0]),
    "safetensors, overlap": partial(about_first, data_offsets=[4, 112]),
    "safetensors, unknown type": partial(about_first, dtype="F7"),
    "safetensors, eight-bit floats": lambda: header(
        lambda about: {**about, "x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}
    ),
    "safetensors, no type": lambda: header(lambda about: about[FIRST].pop("dtype") and None),
    "safetensors, a name twice": lambda: header(
        raw=json.dumps({**json.loads(header()[8 : 8 + int.from_bytes(header()[:8], "little")])})[:-1].encode()
        + f', "{FIRST}": {{"dtype": "F32", "shape": [1, 3, 3, 3], "data_offsets": [0, 108]}}}}'.encode()
    ),
    "safetensors, more bytes than told of": lambda: GOOD["safetensors"] + b"more",
    "safetensors, nested without end": partial(header, raw=NEST),
    "safetensors, a list": partial(header, raw=b"[1, 2]"),
    "safetensors, metadata of numbers": lambda: header(lambda about: {**about, "__metadata__": {"a": 1}}),
    "safetensors, entry is a number": lambda: header(lambda about: {**about, "a": 7}),
    **{f"npz flipped at {s:.0%}": partial(flipped, GOOD["npz"], int(len(GOOD["npz"]) * s)) for s in (0.011, 0.99)},
    **{f"compressed npz flipped at {s:.0%}": lambda s=s: flipped(GOOD["compressed npz"], 120 + s) for s in range(4)},
    "npz of objects": lambda: archive({f"{FIRST}.npy": npy(described("(1,)", "|O"), pickle.dumps(GLOBALS))}),
    "npz, a member above": partial(npz, "../../above.npy", description=described("(0,)")),
    "npz, a member at the root": partial(npz, "/etc/above.npy", description=described("(0,)")),
    "npz, a member on a drive": partial(npz, "C:\\above.npy", description=described("(0,)")),
    "npz, a member above by backslashes": partial(npz, "..\\above.npy", description=described("(0,)")),
    "npz, a member twice": lambda: npz_with(doubled),
    "npz, a member that is no array": lambda: npz_with(lambda file: file.writestr("readme.txt", b"hello")),
    "npz by bzip2": lambda: archive({"a.npy": npy(described("(0,)"))}, zipfile.ZIP_BZIP2),
    "npz, encrypted": lambda: patched_directory(GOOD["npz"], 8, 1, "<H"),
    "npz, a size that lies": lambda: patched_directory(GOOD["npz"], 24, 0xFFFFFF00),
    "npz, both sizes lie": lambda: patched_directory(patched_directory(GOOD["npz"], 24, 1 << 31), 20, 1 << 31),
    "npz, a place that lies": lambda: patched_directory(GOOD["npz"], 42, 0x7FFFFFFF),
    "npz, a huge shape": partial(npz, description=described("(1099511627776,)"), data=b"x"),
    "npz, a negative shape": partial(npz, description=described("(-1, -27)"), data=bytes(108)),
    "npz, gigabytes of zeros": partial(npz, description=described("(8192, 1024)"), data=bytes((8 << 20) + 5)),
    "npz, a header of gigabytes": partial(
        npz, description=b" " * (1 << 24), version=(2, 0), length=0xFFFFFFFF, data=b"x"
    ),
    "npz, a header that calls": partial(
        npz, description=f"{{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').system({COMMAND!r})}}\n"
    ),
    "npz, a header nested without end": partial(npz, description="(" * 9000),
    "npz, an unknown version": partial(npz, description=described("(0,)"), version=(9, 9)),
    "npz, fields": partial(npz, description="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (27,)}\n"),
    **{f"zip that calls {name}": partial(in_zip, call(m, n, text(a))) for name, (m, n, a) in GLOBALS.items()},
    **{f"zip with {name}": partial(in_zip, code) for name, code in PICKLES.items()},
    **{f"zip, tensor of {name}": partial(in_state, code) for name, code in TENSORS.items()},
    "zip, a call among the values": partial(in_state, call("os", "system", text(COMMAND))),
    "zip, a name twice": named_twice,
    "zip without storages": lambda: archive({"archive/data.pkl": zip_members(STATE)["archive/data.pkl"]}),
    "zip with a short storage": lambda: zip_with(**{"archive/data/0": b"xx"}),
    "zip with a storage changed": lambda: flipped(GOOD["zip"], GOOD["zip"].index(W.tobytes()) + 5),
    "zip with a compressed bomb": lambda: archive(
        zip_members(STATE) | {"archive/data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED
    ),
    "zip of two pickles": lambda: zip_with(**{"other/data.pkl": pickled(b"}")}),
    "zip of TorchScript": lambda: zip_with(**{"archive/code/model.py": b"import os"}),
    "zip in no byte order": lambda: zip_with(**{"archive/byteorder": b"middle"}),
    "zip with a path above": lambda: zip_with(**{"../../above": b"x"}),
    "zip, empty pickle": lambda: zip_with(**{"archive/data.pkl": b""}),
    "zip, pickle that is text": lambda: zip_with(**{"archive/data.pkl": b"import os\nos.system('true')\n"}),
    "zip, pickle of megabytes": lambda: zip_with(**{"archive/data.pkl": bytes(5 << 20)}),
    "legacy that calls": partial(legacy, code=call("os", "system", text(COMMAND))),
    "a plain pickle that calls": lambda: pickled(call("os", "system", text(COMMAND))),
    "a plain pickle": lambda: pickle.dumps({name: a.tolist() for name, a in STATE.items()}),
    "a pickle of arrays": lambda: pickle.dumps(STATE),
    "legacy, keys that are no list": partial(legacy, keys={"0": 1}),
    "legacy, a key twice": partial(legacy, keys=["0", "0"]),
    "legacy, an unknown key": partial(legacy, keys=["99"]),
    "legacy, no keys": partial(legacy, keys=[]),
    "legacy, numbers as keys": partial(legacy, keys=[0, 1]),
    "legacy, big-endian that is little": partial(legacy, machine={"little_endian": False}),
    **{f"legacy, storage of {n}": partial(legacy_storage, n) for n in (0, -1, COUNT + 1, 1 << 62)},
    "legacy, part of another storage": lambda: legacy(
        code=state_code(
            {
                n: tensor(str(i), a, tuple_of(text("9"), integer(0), integer(1)))
                for i, (n, a) in enumerate(STATE.items())
            }
        )
    ),
    "nothing": lambda: b"",
    "one byte": lambda: b"P",
    "zeros": lambda: bytes(1000),
    "text": lambda: b"these are not weights\n" * 9,
    "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
    "the start of an archive": lambda: b"PK\x03\x04",
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a tarball": lambda: b"archive/data.pkl".ljust(512, b"\0") * 3,
    "gzip": lambda: b"\x1f\x8b\x08\x00" + BOMB,
    "a program": lambda: b"\x7fELF" + bytes(100),
}
