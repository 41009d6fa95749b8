"""Networks as data, by name: `build("vgg11_bn", classes=10)`, and how their weights start."""

import difflib
from collections.abc import Callable
from functools import partial

from minivgg.errors import BadInput
from minivgg.layers import Sequential
from minivgg.models import alexnet, googlenet, vgg
from minivgg.models.initializers import initialise

__all__ = ["MODELS", "build", "initialise", "smallest_input"]

MODELS: dict[str, Callable[..., Sequential]] = {
    **{letter: partial(vgg.vgg, letter) for letter in vgg.CONFIGURATIONS},
    "vgg11": vgg.vgg11,
    "vgg13": vgg.vgg13,
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
    "block_vgg": vgg.block_vgg,
    "keras_vgg11": vgg.keras_vgg11,
    "alexnet": alexnet.alexnet,
    "alexnet_lrn": alexnet.alexnet_lrn,
    "googlenet": googlenet.googlenet,
    "googlenet_lrn": googlenet.googlenet_lrn,
    "small_googlenet": googlenet.small_googlenet,
}


def smallest_input(name: str) -> int:
    """How many pixels each way an image must have at least for the network called `name`; 32 for those of no name."""
    return alexnet.SMALLEST if name.startswith("alexnet") else 32


def build(name: str, **options) -> Sequential:
    """The network called `name`, with the options of its function. Raises BadInput for an unknown name, or options
    that are unknown, out of their range, or ask for more memory than there is."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise BadInput(f'no model "{name}"; there are {", ".join(MODELS)}{hint}')
    try:
        return MODELS[name](**options)
    except BadInput:
        raise
    except (TypeError, ValueError, MemoryError) as error:
        raise BadInput(f"{name}: {error}") from error
