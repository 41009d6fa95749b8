"""Which network is this file of? Every model is tried, in the size that the file's own shapes ask for."""

import math

from minivgg.errors import BadInput
from minivgg.layers import Conv2d, Layer, Linear
from minivgg.models import MODELS, build
from minivgg.weights.entries import shown
from minivgg.weights.formats import Contents
from minivgg.weights.keras_names import UnknownOrder
from minivgg.weights.loading import plan
from minivgg.weights.names import translate

_MANY = 8  # times a network's arrays: more is not even that with what an optimiser keeps


def fitting(contents: Contents, part: bool = False) -> dict[str, dict]:
    """The models that the whole file fits, each with the options it takes: {"vgg16": {"classes": 10}}.

    With `part`, also those that have layers besides. Reads no values. Raises BadInput where the file fits none because
    it does not tell in which order its layers come.
    """
    found, unknown = {}, None
    for name in MODELS:
        if len(contents.entries) > _MANY * len(build(name, init="zeros").state_shapes()):
            continue
        try:
            model, options = build_for(name, contents)
            report = plan(model, contents)
        except UnknownOrder as error:
            unknown = error
            continue
        except BadInput:
            continue
        if report.loaded and not (report.left_over or report.mismatched or (report.missing and not part)):
            found[name] = options
    if unknown and not found:
        raise unknown
    return found


def build_for(name: str, contents: Contents) -> tuple[Layer, dict]:
    """The model `name`, zeros, with the options that give it the shapes of the file's layers; and those options.

    Cost: address space in proportion to what the file promises. Raises BadInput for an unknown model, and where the
    file's shapes make none.
    """
    try:
        options = _options(build(name, init="zeros"), contents)
        return build(name, init="zeros", **options), options
    except BadInput as error:
        raise type(error)(f"{contents.path}: {shown(error, 300)}") from None
    except (MemoryError, ValueError) as error:  # hardly: each number comes from an array that is there
        raise BadInput(f"{contents.path}: no {name} has such shapes: {error}") from error


def _options(model: Layer, contents: Contents) -> dict:
    """How the file differs from the model in channels, classes, width, classifier and image size."""
    named, _ = translate(contents.entries, model, contents.keras)
    theirs, ours = {name: entry.shape for name, (_, entry) in named.items()}, model.state_shapes()
    convolutions = [f"{name}.weight" for name, layer in model.walk() if isinstance(layer, Conv2d)]
    linears = [f"{name}.weight" for name, layer in model.walk() if isinstance(layer, Linear)]
    first, last, hidden, scores = convolutions[0], convolutions[-1], linears[0], linears[-1]
    if len(theirs.get(hidden, ())) == 4:  # timm's: a convolution over the whole map
        theirs[hidden] = theirs[hidden][0], math.prod(theirs[hidden][1:])
    there = {name for name in (first, last, hidden, scores) if len(theirs.get(name, ())) == len(ours[name])}
    options = {}
    if first in there and theirs[first][1] != ours[first][1]:
        options["channels"] = theirs[first][1]
    if scores in there and theirs[scores][0] != ours[scores][0]:
        options["classes"] = theirs[scores][0]
    if {first, last} <= there and (theirs[first][0], theirs[last][0]) != (ours[first][0], ours[last][0]):
        options["width"] = theirs[last][0] / ours[last][0]
    if {last, hidden} <= there and theirs[hidden] != ours[hidden]:
        area = theirs[hidden][1] // max(1, theirs[last][0])
        if area != ours[hidden][1] // ours[last][0]:
            options["input_size"] = 32 * math.isqrt(area)
        if len(linears) == 3 and theirs[hidden][0] != ours[hidden][0]:
            options["classifier_width"] = theirs[hidden][0]
    return options
