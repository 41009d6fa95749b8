"""Everybody's names and layouts, translated into a network's own, which are torchvision's.

torchvision   features.0.weight (O, C, KH, KW), classifier.0.weight (O, C·H·W)
timm          the same features; pre_logits.fc1, pre_logits.fc2 and head.fc, the first two as convolutions
Keras         block1_conv1, fc1, predictions, or conv2d_3, dense_1, batch_normalization by number; kernels are
              (KH, KW, C, O) and (F, O), where the first F after the convolutions runs H, W, C
numbered      w0, b0, w1, b1, …: the convolutions in their order, as in the arrays of Oxford's that ship
"""

import math
import re
from collections import defaultdict

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Layer, Linear, MaxPool2d, Sequential
from minivgg.weights.entries import Entry

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # of data parallelism, torch.compile, and people
_TIMM = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
_KERAS_ROLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KERAS_3_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")  # of batch norm; other layers: kernel, bias

Translated = dict[str, tuple[str, Entry]]  # the network's name → the file's name and the entry


def translate(entries: dict[str, Entry], model: Layer, *, keras: bool = False) -> tuple[Translated, str]:
    """The entries by the names that `model` would have for them, in its layouts, and whose convention it was.

    Names that no convention knows stay as they are. Values are not read. Raises BadInput where two entries would get
    the same name.
    """
    entries = _unwrapped({n: e for n, e in entries.items() if not n.endswith("num_batches_tracked")})
    if keras:
        pairs, convention = _keras(entries, model), "Keras"
    elif entries and all(re.fullmatch(r"[wb]\d+", name) for name in entries):
        pairs, convention = _numbered(entries, model), "numbered"
    elif any(name.startswith(tuple(_TIMM)) for name in entries):
        pairs, convention = [(_timm(name), name, entry) for name, entry in entries.items()], "timm"
    else:
        pairs, convention = [(name, name, entry) for name, entry in entries.items()], "torchvision"
    own, shapes = {theirs: ours for ours, theirs in torchvision_names(model).items()}, model.state_shapes()
    named: Translated = {}
    for name, source, entry in pairs:
        target = own.get(name, name)
        if target in named:
            raise BadInput(f"{named[target][0]} and {source} are both {target}")
        named[target] = source, _laid_out(entry, shapes.get(target))
    return named, convention


def torchvision_names(model: Layer) -> dict[str, str]:
    """The network's own names → torchvision's. They differ only where the features are named blocks (`block_vgg`)."""
    names, offset, blocks = {}, 0, {}
    for name, child in model.children().items():
        if re.fullmatch(r"block\d+", name) and isinstance(child, Sequential):
            blocks[name], offset = offset, offset + len(child)
    for name in model.state_shapes():
        block, _, rest = name.partition(".")
        number, _, role = rest.partition(".")
        names[name] = f"features.{blocks[block] + int(number)}.{role}" if block in blocks else name
    return names


def _unwrapped(entries: dict[str, Entry]) -> dict[str, Entry]:
    for prefix in _WRAPPERS:
        if entries and all(name.startswith(prefix) for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return entries


def _laid_out(entry: Entry, shape: tuple[int, ...] | None) -> Entry:
    """A convolution over all of its input is a fully connected layer, (O, C, KH, KW) is (O, C·KH·KW): either serves."""
    both = {len(entry.shape), len(shape or ())}
    if both == {2, 4} and entry.shape[0] == shape[0] and entry.size == math.prod(shape):
        return entry.changed(shape, lambda values: values.reshape(shape))
    return entry


def _timm(name: str) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in _TIMM.items() if name.startswith(theirs)), name)


def _numbered(entries: dict[str, Entry], model: Layer) -> list[tuple[str, str, Entry]]:
    convolutions, pairs = [name for name, layer in model.walk() if isinstance(layer, Conv2d)], []
    for name, entry in entries.items():
        index, role = int(name[1:]), {"w": "weight", "b": "bias"}[name[0]]
        pairs.append((f"{convolutions[index]}.{role}" if index < len(convolutions) else name, name, entry))
    return pairs


def _keras(entries: dict[str, Entry], model: Layer) -> list[tuple[str, str, Entry]]:
    layers: dict[str, dict[str, tuple[str, Entry]]] = defaultdict(dict)
    pairs = []
    for path, entry in entries.items():
        layer, role = _keras_role(path, entries)
        if role is None:
            pairs.append((path, path, entry))
        else:
            layers[layer][role] = path, entry
    places = _keras_places(layers, model)
    first = next((name for name, layer in model.walk() if isinstance(layer, Linear)), None)
    for layer, roles in layers.items():
        for role, (path, entry) in roles.items():
            target = places.get(layer)
            changed = _keras_layout(entry, model, target == first) if role == "kernel" else entry
            pairs.append((f"{target}.{_KERAS_ROLES[role]}" if target else path, path, changed))
    return pairs


def _keras_role(path: str, entries: dict[str, Entry]) -> tuple[str, str | None]:
    """The layer's name and what the dataset is to it: "kernel", "bias", "gamma", …, or None."""
    *groups, last = path.split("/")
    if not groups or path.startswith(("optimizer", "/optimizer")):
        return path, None
    if groups[-1] == "vars" and len(groups) > 1 and last.isdigit():  # Keras 3: layers/conv2d/vars/0
        normalises = f"{path[: -len(last)]}2" in entries
        roles = _KERAS_3_ROLES if normalises else ("kernel", "bias")
        return groups[-2], roles[int(last)] if int(last) < len(roles) else None
    last = last.removesuffix(":0")
    old = re.search(r"_(W|b)(_\d+)?$", last)  # Keras 1: block1_conv1/block1_conv1_W_1:0
    role = {"W": "kernel", "b": "bias"}[old[1]] if old else last
    return groups[-1], role if role in _KERAS_ROLES else None


def _keras_places(layers: dict[str, dict], model: Layer) -> dict[str, str]:
    """Each Keras layer's name → the dotted name of the network's layer that it is."""
    kinds: dict[type, list[str]] = {Conv2d: [], Linear: [], BatchNorm2d: []}
    places, stage, number = {}, 1, 0
    for name, layer in model.walk():
        if isinstance(layer, MaxPool2d):
            stage, number = stage + 1, 0
        if isinstance(layer, Conv2d):
            number += 1
            places[f"block{stage}_conv{number}"] = name
        for kind, found in kinds.items():
            found += [name] if isinstance(layer, kind) else []
    places |= {f"fc{i}": name for i, name in enumerate(kinds[Linear][:-1], start=1)}
    places |= {"predictions": kinds[Linear][-1]} if kinds[Linear] else {}
    rest: dict[type, list[str]] = defaultdict(list)
    for layer in sorted(layers, key=_natural):
        if not re.fullmatch(r"block\d+_conv\d+|fc\d+|predictions", layer):
            roles = layers[layer]
            flat = "kernel" in roles and len(roles["kernel"][1].shape) == 2
            rest[BatchNorm2d if "gamma" in roles else Linear if flat else Conv2d].append(layer)
    for kind, found in rest.items():
        places |= dict(zip(found, kinds[kind], strict=False))
    return {layer: name for layer, name in places.items() if layer in layers}


def _keras_layout(entry: Entry, model: Layer, first: bool) -> Entry:
    """A kernel in our layout. The first fully connected layer's rows are a feature map's values, and there H, W, C."""
    if len(entry.shape) == 4:
        KH, KW, C, O = entry.shape
        return entry.changed((O, C, KH, KW), lambda w: w.transpose(3, 2, 0, 1))
    if len(entry.shape) != 2:
        return entry
    F, O = entry.shape
    C = next((layer.weight.data.shape[0] for _, layer in _reversed(model) if isinstance(layer, Conv2d)), 1)
    pools = [layer.output_size for _, layer in model.walk() if isinstance(layer, AdaptiveAvgPool2d)]
    H, W = pools[-1] if pools else (math.isqrt(F // C),) * 2
    if not first or C * H * W != F:
        return entry.changed((O, F), np.transpose)
    return entry.changed((O, F), lambda w: w.reshape(H, W, C, O).transpose(3, 2, 0, 1).reshape(O, F))


def _reversed(model: Layer) -> list[tuple[str, Layer]]:
    return list(model.walk())[::-1]


def _natural(name: str) -> list:
    """Sorts conv2d, conv2d_2, conv2d_10 as people count."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
