"""Files of weights, written for the tests in everybody's format without anybody's library but h5py.

`WRITERS[format](state, path)` writes a state dict (name → array) by the names it has; `keras_state` and `timm_state`
translate a VGG's torchvision state dict into Keras's and timm's names and layouts, independently of minivgg.weights.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "bfloat16": "BFloat16"}
SAFETENSORS = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "bfloat16": "BF16"}


class BFloat16(np.ndarray):
    """uint16 whose bits are bfloat16's: the upper half of float32's, rounded to nearest."""


def bfloat16(values):
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(BFloat16)


def dtype_of(array):
    return "bfloat16" if isinstance(array, BFloat16) else array.dtype.name


def write_safetensors(state, path):
    header, data = {}, b""
    for name, array in state.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": SAFETENSORS[dtype_of(array)], "shape": array.shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def integer(value):
    return b"\x8a" + bytes([8]) + struct.pack("<q", value)  # LONG1


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()  # BINUNICODE


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def name_of(module, name):
    return f"c{module}\n{name}\n".encode()  # GLOBAL


def call(module, name, *arguments):
    return name_of(module, name) + tuple_of(*arguments) + b"R"


def storage(key, dtype, count, *legacy):
    return tuple_of(
        text("storage"), name_of("torch", f"{STORAGES[dtype]}Storage"), text(key), text("cpu"), count, *legacy
    )


def tensor(key, array, *legacy, count=None, offset=0, shape=None, strides=None):
    """A tensor's pickle code: of the array's own shape, or of what the options say."""
    shape = array.shape if shape is None else shape
    strides = [s // array.itemsize for s in np.array(array, order="C").strides] if strides is None else strides
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(key, dtype_of(array), integer(array.size if count is None else count), *legacy) + b"Q",
        integer(offset),
        tuple_of(*map(integer, shape)),
        tuple_of(*map(integer, strides)),
        b"\x89",
        call("collections", "OrderedDict"),
    )


def pickled(code):
    return b"\x80\x02" + code + b"."


def state_code(items):
    """An OrderedDict of name → code, with the `_metadata` that PyTorch gives it."""
    pairs = b"".join(text(name) + code for name, code in items.items())
    metadata = b"}" + text("_metadata") + call("collections", "OrderedDict") + b"s"
    return call("collections", "OrderedDict") + b"(" + pairs + b"u" + metadata + b"b"


def write_archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)


def zip_members(state, code=None, order="little"):
    """The members of a .pth archive, by name."""
    code = state_code({name: tensor(str(i), a) for i, (name, a) in enumerate(state.items())}) if code is None else code
    members = {"archive/data.pkl": pickled(code), "archive/byteorder": order.encode()}
    for i, array in enumerate(state.values()):
        ordered = array.astype(array.dtype.newbyteorder("<" if order == "little" else ">"))
        members[f"archive/data/{i}"] = ordered.tobytes()
    return members | {"archive/version": b"3\n"}


def write_zip(state, path):
    write_archive(path, zip_members(state))


def legacy_bytes(state, code=None, machine=None, keys=None):
    """The five pickles of the legacy format, and the storages."""
    code = code or state_code({name: tensor(str(i), a, b"N") for i, (name, a) in enumerate(state.items())})
    head = [0x1950A86A20F9469CFC6C, 1001, machine or {"protocol_version": 1001, "little_endian": True}]
    out = b"".join(pickle.dumps(thing, protocol=2) for thing in head) + pickled(code)
    out += pickle.dumps([str(i) for i in range(len(state))] if keys is None else keys, protocol=2)
    return out + b"".join(struct.pack("<q", a.size) + np.ascontiguousarray(a).tobytes() for a in state.values())


def write_legacy(state, path):
    path.write_bytes(legacy_bytes(state))


def write_npz(state, path, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **state)
    path.write_bytes(buffer.getvalue())


def write_h5(state, path):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in state.items():
            file.create_dataset(name, data=np.asarray(array))


WRITERS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "npz, compressed": lambda state, path: write_npz(state, path, np.savez_compressed),
    "PyTorch, zip": write_zip,
    "PyTorch, legacy": write_legacy,
}


def keras_state(state, model_layers, pattern="{layer}/{layer}/{role}:0", by_number=False):
    """A VGG's torchvision state dict in Keras's names and layouts.

    `model_layers` is [(torchvision's prefix, kind)] in order, kind being "conv", "norm", "pool" or "dense"; the first
    dense layer follows the last pool, whose map is `pixels` × `pixels`, as its size tells.
    """
    out, block, number, counts, channels, first_dense = {}, 1, 0, {"conv": 0, "norm": 0, "dense": 0}, None, True
    last = [prefix for prefix, kind in model_layers if kind == "dense"][-1]
    for prefix, kind in model_layers:
        if kind == "pool":
            block, number = block + 1, 0
            continue
        counts[kind] += 1
        number += kind == "conv"
        old = {
            "conv": f"block{block}_conv{number}",
            "dense": "predictions" if prefix == last else f"fc{counts['dense']}",
        }
        auto = {"conv": "conv2d", "norm": "batch_normalization", "dense": "dense"}[kind]
        auto += f"_{counts[kind] - 1}" if counts[kind] > 1 else ""
        layer = auto if by_number else old.get(kind, f"block{block}_norm{number}")
        weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
        if kind == "norm":
            roles = {"gamma": weight, "beta": bias}
            roles |= {"moving_mean": state[f"{prefix}.running_mean"], "moving_variance": state[f"{prefix}.running_var"]}
        elif kind == "conv":
            channels, roles = len(weight), {"kernel": np.moveaxis(weight, [2, 3, 1, 0], [0, 1, 2, 3]), "bias": bias}
        else:
            if first_dense:
                pixels = int((weight.shape[1] // channels) ** 0.5)
                maps = weight.reshape(len(weight), channels, pixels, pixels)
                weight, first_dense = maps.transpose(0, 2, 3, 1).reshape(len(weight), -1), False
            roles = {"kernel": weight.T, "bias": bias}
        for i, (role, array) in enumerate(roles.items()):
            old_role = {"kernel": f"{layer}_W_1", "bias": f"{layer}_b_1"}.get(role, role)
            out[pattern.format(layer=layer, role=role, old_role=old_role, number=i)] = array
    return out


KERAS = {
    "Keras 1": {"pattern": "{layer}/{old_role}:0"},
    "Keras 2": {"pattern": "{layer}/{layer}/{role}:0"},
    "Keras 2, whole model": {"pattern": "model_weights/{layer}/{layer}/{role}:0", "by_number": True},
    "Keras 3": {"pattern": "layers/{layer}/vars/{number}", "by_number": True},
}


def timm_state(state, channels):
    """A VGG's torchvision state dict in timm's names and layouts; `channels` are those of the last feature map."""
    out = {name: array for name, array in state.items() if name.startswith("features.")}
    first = state["classifier.0.weight"]
    pixels = int((first.shape[1] // channels) ** 0.5)
    out["pre_logits.fc1.weight"] = first.reshape(len(first), channels, pixels, pixels)
    out["pre_logits.fc2.weight"] = state["classifier.3.weight"][:, :, None, None]
    out |= {"pre_logits.fc1.bias": state["classifier.0.bias"], "pre_logits.fc2.bias": state["classifier.3.bias"]}
    return out | {f"head.fc.{role}": state[f"classifier.6.{role}"] for role in ("weight", "bias")}


def layers_of(model):
    """[(name, kind)] of a network of minivgg's, as `keras_state` wants it."""
    kinds = {"Conv2d": "conv", "BatchNorm2d": "norm", "MaxPool2d": "pool", "Linear": "dense"}
    found = [(name, kinds.get(type(layer).__name__)) for name, layer in model.walk()]
    return [(name, kind) for name, kind in found if kind]
