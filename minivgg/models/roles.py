"""Layers by the part they play: `conv3_2` is the second convolution of the third stage, `fc7` the second of the linear
layers that follow five stages. These are the literature's names, and the same in every VGG, whatever its configuration.
"""

from dataclasses import dataclass

from minivgg.errors import BadInput
from minivgg.layers import BatchNorm2d, Conv2d, Layer, Linear, MaxPool2d

PAPER_CONVOLUTIONS = 4  # of net A, with which the paper starts the deeper ones


def roles(model: Layer) -> dict[str, Layer]:
    """Role → layer, in the order of the forward, for all layers that have parameters.

    A stage ends with a max-pool. The batch norm that follows `conv3_2` is `bn3_2`. Linear layers count on from the
    stages: after five, fc6, fc7, fc8.
    """
    found, stage, index, fully_connected = {}, 1, 0, 0
    for _, layer in model.walk():
        if isinstance(layer, MaxPool2d):
            stage, index = stage + (index > 0), 0
        elif isinstance(layer, Conv2d):
            index += 1
            found[f"conv{stage}_{index}"] = layer
        elif isinstance(layer, BatchNorm2d):
            found[f"bn{stage}_{index}"] = layer
        elif isinstance(layer, Linear):
            fully_connected += 1
            found[f"fc{stage - (index == 0) + fully_connected}"] = layer
    return found


@dataclass(frozen=True)
class Transfer:
    """What `copy_roles` did: the roles whose values were copied, how many values, and the roles left as they were."""

    copied: tuple[str, ...]
    values: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"; as initialised: {', '.join(self.left)}" if self.left else ""
        return f"{', '.join(self.copied)} ({self.values:,} values){rest}"


def copy_roles(target: Layer, source: Layer, convolutions: int = PAPER_CONVOLUTIONS) -> Transfer:
    """Start `target`, a deep net, from `source`, a trained shallower one, as Simonyan & Zisserman 2015, §3.1, do.

    Copies source's first `convolutions` convolutions, with their batch norms if there are any, and all its linear
    layers, each to the layer of the same role: net A's first four are conv1_1, conv2_1, conv3_1 and conv3_2 of net D.
    Raises BadInput, and changes nothing, where target lacks such a layer or its shape differs, or where one net has
    batch norms and the other has none.
    """
    mine, theirs = roles(target), roles(source)
    normed = [any(isinstance(layer, BatchNorm2d) for layer in net.values()) for net in (mine, theirs)]
    if normed[0] != normed[1]:
        has = ("only the new one has", "only the old one has")[normed[1]]
        raise BadInput(f"{has} batch norms, and filters learnt with them do not suit a net without; use one kind")
    convs = [role for role, layer in theirs.items() if isinstance(layer, Conv2d)][:convolutions]
    norms = [role.replace("conv", "bn") for role in convs] if normed[1] else []
    chosen = [role for role in theirs if role in {*convs, *norms} or isinstance(theirs[role], Linear)]
    for role in chosen:
        if role not in mine:
            raise BadInput(f"the new net has no {role}; start a deeper net from a shallower one, such as D from A")
        for name, param in theirs[role].named_params().items():
            old, new = param.data.shape, mine[role].named_params()[name].data.shape
            if old != new:
                raise BadInput(
                    f"the {name} of {role} is {old}, the new net's {new}; "
                    "give both nets the same width, classifier width, classes, channels and size"
                )
    for role in chosen:
        mine[role].load_state_dict(theirs[role].state_dict())
    values = sum(theirs[role].parameter_count() for role in chosen)
    return Transfer(tuple(chosen), values, tuple(role for role in mine if role not in chosen))
