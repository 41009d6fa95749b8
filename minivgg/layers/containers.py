"""Layers made of layers: one after another (`Sequential`), or side by side (`Concat`)."""

from collections.abc import Iterator

import numpy as np

from minivgg.backends.array import nchw, nhwc, xp_of
from minivgg.layers import dense, fusion
from minivgg.layers.base import Layer


class _Container(Layer):
    """Named children, from positions (`_Container(a, b)`: names "0", "1") or from a dict of name → layer.

    A child is `net["features"]`, `net.features`, or, by position, `net[0]`.
    """

    def __init__(self, *layers):
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], dict) else dict(enumerate(layers))
        self._children = {str(name): layer for name, layer in named.items()}

    def children(self):
        return self._children

    def __getitem__(self, key: str | int) -> Layer:
        return list(self._children.values())[key] if isinstance(key, int) else self._children[key]

    def __getattr__(self, name: str) -> Layer:
        children = self.__dict__.get("_children", {})
        if name not in children:
            raise AttributeError(f"{type(self).__name__} has no attribute or layer {name!r}")
        return children[name]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._children.values())

    def __len__(self) -> int:
        return len(self._children)

    def __repr__(self) -> str:
        """A table: name, layer, parameters."""
        rows = [(name, repr(layer), layer.parameter_count()) for name, layer in self.walk() if not layer.children()]
        rows.append((type(self).__name__, "", self.parameter_count()))
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(
            f"{name:{widths[0]}}  {layer:{widths[1]}}  {f'{count:,}' if count else '':>13}".rstrip()
            for name, layer, count in rows
        )


class Sequential(_Container):
    """Layers one after another, as in PyTorch: `Sequential(a, b, …)` or `Sequential({"features": a, …})`.

    While `fused` is True, a ReLU's work is done by its neighbours where they can: see `layers.fusion`.
    """

    fused = True
    _ran: list | None = None  # the layers that the last forward ran

    def steps(self) -> list[tuple[Layer, dict]]:
        """The layers that a forward runs, each with the options that make it do a neighbour's work."""
        return fusion.steps(list(self)) if self.fused else [(layer, {}) for layer in self]

    def forward(self, x, train=False, *, keep=None):
        steps = self.steps()
        for layer, options in steps:
            x = layer.forward(x, train, keep=keep, **options)
        self._ran = [layer for layer, _ in steps]
        return x

    def backward(self, dy, *, need_dx=True):
        for i, layer in reversed(list(enumerate(self._ran or self))):
            dy = layer.backward(dy, need_dx=need_dx or i > 0)
        return dy

    def freeze(self):
        """A copy for inference alone: dropout gone, batch norms folded into convolutions, filters transformed once.

        It shares all parameters that are not folded, which must not change any more; training it is an error.
        """
        return Sequential(fusion.frozen(self.children()))

    def fully_convolutional(self) -> "Sequential":
        """This network with its linear layers as convolutions, for images of any size: see `layers.dense`."""
        return dense.fully_convolutional(self)

    def output_shape(self, shape):
        for layer in self:
            shape = layer.output_shape(shape)
        return shape


class Concat(_Container):
    """Branches side by side: each sees the same x, and their outputs (N, C_i, H, W) are joined along the channels."""

    def forward(self, x, train=False, *, keep=None):
        ys = [branch.forward(x, train, keep=keep) for branch in self]
        self.output_shape_of([y.shape for y in ys])
        self._splits = np.cumsum([y.shape[1] for y in ys])[:-1]
        return nchw(xp_of(x).concatenate([nhwc(y) for y in ys], axis=3))

    def backward(self, dy, *, need_dx=True):
        parts = np.split(dy, getattr(self, "_splits", [1] * (len(self) - 1)), axis=1)
        dxs = [branch.backward(part, need_dx=need_dx) for branch, part in zip(self, parts, strict=True)]
        return sum(dxs[1:], start=dxs[0]) if need_dx else None

    def output_shape(self, shape):
        return self.output_shape_of([branch.output_shape(shape) for branch in self])

    def freeze(self):
        """A copy for inference alone, of frozen branches."""
        return Concat({name: branch.freeze() for name, branch in self.children().items()})

    def output_shape_of(self, shapes: list[tuple]) -> tuple:
        """The joined shape. Raises ValueError where the branches differ in more than their channels."""
        N, _, H, W = shapes[0]
        if any((n, h, w) != (N, H, W) for n, _, h, w in shapes):
            raise ValueError(f"Concat: branches must agree in all but their channels, got {shapes}")
        return N, sum(shape[1] for shape in shapes), H, W


def walk_forward(layer: Layer, x, train=False, name=""):
    """Run a forward leaf by leaf: a generator that yields (name, leaf, its input) *before* each leaf runs.

    So the caller may look at the input, or change the leaf. The generator's return value is y. Caches are not kept.
    """
    if isinstance(layer, Sequential):
        for key, child in layer.children().items():
            x = yield from walk_forward(child, x, train, f"{name}.{key}".lstrip("."))
        return x
    if isinstance(layer, Concat):
        ys = []
        for key, child in layer.children().items():
            ys.append((yield from walk_forward(child, x, train, f"{name}.{key}".lstrip("."))))
        return nchw(xp_of(x).concatenate([nhwc(y) for y in ys], axis=3))
    yield name, layer, x
    return layer.forward(x, train, keep=False)
