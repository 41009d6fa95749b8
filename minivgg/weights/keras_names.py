"""Keras's layers, put in the places of a network's.

Keras calls a layer's arrays kernel, bias, gamma, … (in .weights.h5 by number), and the layers block1_conv1, fc1, or
conv2d_3, or whatever their author liked. So what decides is the order of the layers, each kind (convolution, batch
norm, dense) by itself, which keras_h5.py finds. Where a file does not tell it, the shapes may; else it is refused.
"""

import math
import re
from collections import defaultdict
from itertools import pairwise

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import AdaptiveAvgPool2d, BatchNorm2d, Concat, Conv2d, Layer, Linear, MaxPool2d
from minivgg.weights.entries import Entry
from minivgg.weights.keras_h5 import Layers, Place, by_names, layer_of, told_apart

_ROLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BY_NUMBER = {4: ("gamma", "beta", "moving_mean", "moving_variance"), 2: ("kernel", "bias"), 1: ("kernel",)}
_NO_WEIGHTS = re.compile(r"/?optimizer|.*(^|/)((seed_)?generator|metrics|_?compile_metrics|loss_tracker)(_\d+)?/")
_OTHER_LAYERS = re.compile("transpose|depthwise|separable")  # whose kernels look like a convolution's


class UnknownOrder(BadInput):
    """A file that does not tell in which order its layers come."""


Roles = dict[str, tuple[str, Entry]]  # "kernel" → the dataset's path and entry


def translate(entries: dict[str, Entry], model: Layer, layers: Layers) -> list[tuple[str, str, Entry]]:
    """(the network's name, the file's, entry in the network's layout) of each dataset but the optimiser's and the like;
    where the network has no such layer, the file's name twice.

    Raises BadInput where the file does not tell in which order its layers come, and it matters.
    """
    entries = {p: entry for p, entry in entries.items() if not (_NO_WEIGHTS.match(p) and layers.places[p][0][0])}
    found: dict[str, dict[str, tuple[str, Entry]]] = defaultdict(dict)
    for path, entry in entries.items():
        found[layer_of(path)][path.rpartition("/")[2]] = path, entry
    pairs, by_layer = [], {}
    for layer, group in found.items():
        by_layer[layer] = roles = _roles(layer, group)
        used = {path for path, _ in roles.values()}
        pairs += [(path, path, entry) for path, entry in group.values() if path not in used]
    places = _places({layer: roles for layer, roles in by_layer.items() if roles}, model, layers)
    first = next((name for name, layer in model.walk() if isinstance(layer, Linear)), None)
    for layer, roles in by_layer.items():
        target = places.get(layer)
        for role, (path, entry) in roles.items():
            changed = _laid_out(entry, model, target == first) if role == "kernel" else entry
            pairs.append((f"{target}.{_ROLES[role]}" if target else path, path, changed))
    return pairs


def _roles(layer: str, group: dict[str, tuple[str, Entry]]) -> Roles:
    """What each dataset is to its layer; empty if no layer of ours has such arrays."""
    if all(name.isdecimal() for name in group):  # .weights.h5: layers/conv2d/vars/0
        names = _BY_NUMBER.get(len(group), ())
        roles = {role: group[str(i)] for i, role in enumerate(names) if str(i) in group}
    else:
        roles = {}
        for name, pair in group.items():
            old = re.search(r"_(W|b)(_\d+)?$", name := name.removesuffix(":0"))  # Keras 1: block1_conv1_W_1:0
            role = {"W": "kernel", "b": "bias"}[old[1]] if old else name
            roles |= {role: pair} if role in _ROLES else {}
    kernel = len(roles["kernel"][1].shape) if "kernel" in roles else 0
    flat = all(len(entry.shape) == 1 for role, (_, entry) in roles.items() if role != "kernel")
    ours = flat and kernel in (0, 2, 4) and not _OTHER_LAYERS.search(layer.rpartition("/")[2])
    return roles if ours else {}


def _places(found: dict[str, Roles], model: Layer, layers: Layers) -> dict[str, str]:
    """Each Keras layer's path → the dotted name of the network's layer that it is."""
    slots: dict[type, list[str]] = {Conv2d: [], Linear: [], BatchNorm2d: []}
    published, stage, number = {}, 1, 0
    for name, layer in model.walk():
        if isinstance(layer, MaxPool2d):
            stage, number = stage + 1, 0
        if isinstance(layer, Conv2d):
            number += 1
            published[f"block{stage}_conv{number}"] = name
        for kind, names in slots.items():
            names += [name] if isinstance(layer, kind) else []
    published |= {f"fc{i}": name for i, name in enumerate(slots[Linear][:-1], start=1)}
    published |= {"predictions": slots[Linear][-1]} if slots[Linear] else {}
    kinds: dict[type, list[str]] = defaultdict(list)
    for layer, roles in found.items():
        kernel = len(roles["kernel"][1].shape) if "kernel" in roles else 0
        linear = kernel == 2 or re.fullmatch(r"fc\d+|predictions", layer.rpartition("/")[2])
        kinds[Linear if linear else Conv2d if kernel else BatchNorm2d].append(layer)
    at = {layer: layers.places[next(iter(roles.values()))[0]] for layer, roles in found.items()}
    branches = any(isinstance(layer, Concat) for _, layer in model.walk())
    shapes = _shapes(found, slots, model)
    places = {}
    for kind, names in kinds.items():
        names.sort(key=at.get)
        in_order = dict(zip(names, slots[kind], strict=False))
        told = not branches and _told(names, at)
        nested = [layers.nested[layer] for layer in names if layer in layers.nested]
        if told and nested and (any(nested) or any(shapes[a] != shapes[b] for a, b in in_order.items())):
            told, at = False, at | {layer: by_names(layer) for layer in names}  # the list has those first that train
            names.sort(key=at.get)
        by_name = {layer: published.get(layer.rpartition("/")[2]) for layer in names}
        order = [slots[kind].index(name) for name in by_name.values() if name in slots[kind]]
        if len(order) == len(names) and (order == sorted(set(order)) or not told):
            places |= by_name
        else:
            places |= in_order if told else _by_shape(names, slots[kind], shapes, at, branches)
    return places


def _told(names: list[str], at: dict[str, Place]) -> bool:
    """Does the file tell the order of these layers?"""
    return all(told_apart(at[a], at[b]) for a, b in pairwise(names))


def _shapes(found: dict[str, Roles], slots: dict[type, list[str]], model: Layer) -> dict[str, tuple[int, ...]]:
    """The shape of the weights of each Keras layer and of each of the network's, in the network's layout."""
    ours = model.state_shapes()
    shapes = {name: ours.get(f"{name}.weight", ()) for names in slots.values() for name in names}
    for layer, roles in found.items():
        entry = next(iter(roles.values()))[1]
        shapes[layer] = _laid_out(roles["kernel"][1], model, False).shape if "kernel" in roles else entry.shape
    return shapes


def _by_shape(names: list[str], slots: list[str], shapes: dict, at: dict[str, Place], branches: bool) -> dict[str, str]:
    """The layers' places, if each shape is one layer's only, or the file tells those of one shape apart."""
    places = {}
    for shape in {shapes[name] for name in names}:
        alike, ours = ([name for name in group if shapes[name] == shape] for group in (names, slots))
        if len(alike) == len(ours) == 1 or (len(alike) == len(ours) and not branches and _told(alike, at)):
            places |= dict(zip(alike, ours, strict=True))
            continue
        several = ", ".join(layer.replace("layers/", "")[-40:] for layer in (alike if len(alike) > 1 else names)[:4])
        if branches:
            raise BadInput(f"the network has branches, and the file does not tell which layer is in which ({several})")
        raise UnknownOrder(
            f"the file does not tell in which order its layers come ({several}, …); a Functional or Sequential model "
            "saved whole, as .keras, does, and so do names that differ by a number"
        )
    return places


def _laid_out(entry: Entry, model: Layer, first: bool) -> Entry:
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
