"""Everybody's names and layouts, translated into a network's own, which are torchvision's.

torchvision   features.0.weight (O, C, KH, KW), classifier.0.weight (O, C·H·W)
timm          the same features; pre_logits.fc1, pre_logits.fc2 and head.fc, the first two as convolutions
Keras         the layers in the file's order, whatever they are called; see keras_names.py
numbered      w0, b0, w1, b1, …: the convolutions in their order, as in the arrays of Oxford's that ship
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from minivgg.errors import BadInput
from minivgg.layers import Conv2d, Layer, Sequential
from minivgg.weights import keras_names
from minivgg.weights.entries import Entry
from minivgg.weights.keras_h5 import Layers

_WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NO_WEIGHTS = ("num_batches_tracked", "n_averaged")  # PyTorch's counters, of batch norm and of averaged models
_TIMM = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}

Translated = dict[str, tuple[str, Entry]]  # the network's name → the file's name and the entry


def translate(entries: dict[str, Entry], model: Layer, keras: Layers | None = None) -> tuple[Translated, str]:
    """The entries by the names that `model` would have for them, in its layouts, and whose convention it was.

    `keras` is what a file of Keras's says of its layers. Names that no convention knows stay as they are. Values are
    not read. Raises BadInput where two entries would get the same name, or a file does not tell its layers' order.
    """
    own, shapes = {theirs: ours for ours, theirs in torchvision_names(model).items()}, model.state_shapes()
    short = {} if keras else _unwrapped((n for n in entries if not n.endswith(_NO_WEIGHTS)), {*own, *shapes}, len(own))
    if keras:
        pairs, convention = keras_names.translate(entries, model, keras), "Keras"
    elif short and all(re.fullmatch(r"[wb]\d{1,9}", name) for name in short.values()):
        pairs, convention = (
            [(_numbered(name, model), source, entries[source]) for source, name in short.items()],
            "numbered",
        )
    else:
        timm = any(name.startswith(tuple(_TIMM)) for name in short.values())
        pairs = [(_timm(name), source, entries[source]) for source, name in short.items()]
        convention = "timm" if timm else "torchvision"
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


def _unwrapped(names: Iterable[str], own: set[str], arrays: int) -> dict[str, str]:
    """Each name without what wrappers put before it, and between: "module.features.module.0.weight".

    Data parallelism's and torch.compile's parts come off wherever they are; then, if that gives names of the network's
    `own`, one beginning, such as "model.net.". Raises BadInput where two beginnings do, each of all its `arrays`.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    found: Counter[str] = Counter()
    for name in plain.values():
        ends = [0, *(match.end() for match in islice(re.finditer(r"\.", name), 8))]
        found.update(name[:end] for end in ends if name[end:] in own)
    whole = [prefix for prefix, count in found.items() if count == arrays]
    if len(whole) > 1:
        several = " and ".join(repr(prefix[:80]) for prefix in whole[:4])
        raise BadInput(f"several sets of weights fit, whose names begin with {several}; give a file with one of them")
    prefix = whole[0] if whole else next(iter(found)) if len(found) == 1 else ""
    return {name: short.removeprefix(prefix) for name, short in plain.items()}


def _laid_out(entry: Entry, shape: tuple[int, ...] | None) -> Entry:
    """A convolution over all of its input is a fully connected layer, (O, C, KH, KW) is (O, C·KH·KW): either serves."""
    both = {len(entry.shape), len(shape or ())}
    if both == {2, 4} and entry.shape[0] == shape[0] and entry.size == math.prod(shape):
        return entry.changed(shape, lambda values: values.reshape(shape))
    return entry


def _timm(name: str) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in _TIMM.items() if name.startswith(theirs)), name)


def _numbered(name: str, model: Layer) -> str:
    convolutions = [name for name, layer in model.walk() if isinstance(layer, Conv2d)]
    index, role = int(name[1:]), {"w": "weight", "b": "bias"}[name[0]]
    return f"{convolutions[index]}.{role}" if index < len(convolutions) else name
