"""Everybody's names and layouts, translated into a network's own, which are torchvision's.

torchvision   features.0.weight (O, C, KH, KW), classifier.0.weight (O, C·H·W)
timm          the same features; pre_logits.fc1, pre_logits.fc2 and head.fc, the first two as convolutions
Keras         the layers in the file's order, whatever they are called; see keras_names.py
numbered      w0, b0, w1, b1, …: the convolutions in their order, as in the arrays of Oxford's that ship
"""

import math
import re

from minivgg.errors import BadInput
from minivgg.layers import Conv2d, Layer, Sequential
from minivgg.weights import keras_names
from minivgg.weights.entries import Entry
from minivgg.weights.keras_h5 import Layers

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # of data parallelism, torch.compile, and people
_TIMM = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}

Translated = dict[str, tuple[str, Entry]]  # the network's name → the file's name and the entry


def translate(entries: dict[str, Entry], model: Layer, keras: Layers | None = None) -> tuple[Translated, str]:
    """The entries by the names that `model` would have for them, in its layouts, and whose convention it was.

    `keras` is what a file of Keras's says of its layers. Names that no convention knows stay as they are. Values are
    not read. Raises BadInput where two entries would get the same name, or a file does not tell its layers' order.
    """
    entries = _unwrapped({n: e for n, e in entries.items() if not n.endswith("num_batches_tracked")})
    if keras:
        pairs, convention = keras_names.translate(entries, model, keras), "Keras"
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
