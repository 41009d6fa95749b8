"""Layers made of layers: one after another (`Sequential`), side by side (`Concat`), or beside the way (`Auxiliary`)."""

import itertools
import math
from collections.abc import Iterator

from minivgg.backends.array import nchw, nhwc, on_gpu, xp_of
from minivgg.errors import BadInput, check_range
from minivgg.layers import dense, fusion
from minivgg.layers.base import Layer, nothing_kept
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.ops.windows import check_gradient


class _Container(Layer):
    """Named children, from positions (`_Container(a, b)`: names "0", "1") or from a dict of name → layer.

    A child is `net["features"]`, `net.features`, or, by position, `net[0]`.
    """

    def __init__(self, *layers):
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], dict) else dict(enumerate(layers))
        self._children = {str(name): self._checked(str(name), layer) for name, layer in named.items()}
        if len({id(layer) for layer in self._children.values()}) < len(named):
            raise BadInput(f"{type(self).__name__}: one layer stands twice, but has one cache: write layer.twin()")

    def _checked(self, name: str, layer) -> Layer:
        if not isinstance(layer, Layer):
            raise BadInput(f"{type(self).__name__}: {name} is {layer!r}, not a layer, such as ReLU()")
        return layer

    def _ask(self, method, *arguments, **options):
        """What a method of a layer inside this one gives; its errors say which layer: `features.3 (Conv2d): …`."""
        try:
            return method(*arguments, **options)
        except (ValueError, MemoryError) as error:
            layer = getattr(method, "__self__", None)
            path, kind, said = getattr(error, "place", ("", type(layer).__name__, str(error)))
            names = [name for name, child in self._children.items() if child is layer]
            place = ".".join([*names, path]).rstrip("."), kind, said
            text = f"{place[0]} ({kind}): {said}"
            if isinstance(error, MemoryError):  # NumPy's makes its text anew
                error = MemoryError(text)
                error.place = place
                raise error from None
            error.place, error.args = place, (text,)
            raise

    def children(self):
        return self._children

    def __getitem__(self, key: str | int) -> Layer:
        return list(self._children.values())[key] if isinstance(key, int) else self._children[key]

    def __setitem__(self, key: str | int, layer: Layer) -> None:
        """Put `layer` in the place of the child `key`. Raises KeyError or IndexError where there is none."""
        name = list(self._children)[key] if isinstance(key, int) else key
        if name not in self._children:
            raise KeyError(f"{type(self).__name__} has no layer {name!r} to replace")
        self._children[name] = self._checked(name, layer)

    def twin(self):
        twin = super().twin()
        twin._children = {name: child.twin() for name, child in self._children.items()}
        return twin

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
        leaves = [(name, layer) for name, layer in self.walk() if name and not layer.children()]
        rows = [(name, repr(layer), layer.parameter_count()) for name, layer in leaves]
        rows.append((type(self).__name__, "", self.parameter_count()))
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(
            f"{name:{widths[0]}}  {layer:{widths[1]}}  {f'{count:,}' if count else '':>13}".rstrip()
            for name, layer, count in rows
        )


class Sequential(_Container):
    """Layers one after another, as in PyTorch: `Sequential(a, b, …)` or `Sequential({"features": a, …})`.

    While `fused` is True, a ReLU's work is done by its neighbours where they can: see `layers.fusion`. `landmarks` says
    what the literature calls some of the layers: `relu4_3` → `features.22`.
    """

    fused = True
    landmarks: dict[str, str] = {}  # noqa: RUF012 (a network is given its own)
    _ran: list | None = None  # the layers that the last forward ran

    def steps(self, keep=True) -> list[tuple[Layer, dict]]:
        """The layers that a forward runs, each with the options that make it do a neighbour's work. Where nothing is
        kept for a backward, there are fewer."""
        return fusion.steps(list(self), keep) if self.fused else [(layer, {}) for layer in self]

    def forward(self, x, train=False, *, keep=None):
        steps = self.steps(train if keep is None else keep)
        for layer, options in steps:
            x = self._ask(layer.forward, x, train, keep=keep, **options)
        self._ran = [layer for layer, _ in steps]
        return x

    def backward(self, dy, *, need_dx=True):
        for i, layer in reversed(list(enumerate(self._ran or self))):
            dy = self._ask(layer.backward, dy, need_dx=need_dx or i > 0)
        return dy

    def freeze(self):
        """A copy for inference alone: dropout gone, batch norms folded into convolutions, filters transformed once.

        It shares all parameters that are not folded, which must not change any more; training it is an error.
        """
        frozen = Sequential(fusion.frozen(self.children()))
        frozen.landmarks = self.landmarks
        return frozen

    def twin(self):
        twin = super().twin()
        twin._ran = None
        return twin

    def features_at(self, name: str) -> "Sequential":
        """The network that ends with the layer `name`, whose output it gives: x → features.

        `name` is one of `landmarks` (`model.features_at("relu4_3")`), or a layer's own (`features.22`). Parameters and
        running statistics are shared with this network, caches are not: both may go forward and back as they like.
        Auxiliary heads on the way are left out. Raises BadInput, with the names there are, for another.
        """
        path, places = self.landmarks.get(name, name), list(self._places())
        if path not in places:
            known = [landmark for landmark, place in self.landmarks.items() if place in places]
            raise BadInput(f'no layer "{name}"; there are {", ".join(known or places)}')
        return self._up_to(path.split("."))

    def _places(self) -> Iterator[str]:
        """The dotted names of all layers that one path leads through."""
        for name, child in self.children().items():
            if isinstance(child, Auxiliary):
                continue
            yield name
            if isinstance(child, Sequential):
                yield from (f"{name}.{place}" for place in child._places())

    def _up_to(self, keys: list[str]) -> "Sequential":
        kept = {}
        for name, child in self.children().items():
            if name == keys[0]:
                kept[name] = child._up_to(keys[1:]) if keys[1:] else child.twin()
                break
            if not isinstance(child, Auxiliary):
                kept[name] = child.twin()
        part = Sequential(kept)
        part.fused, part.landmarks = self.fused, self.landmarks
        return part

    def fully_convolutional(self) -> "Sequential":
        """This network with its linear layers as convolutions, for images of any size: see `layers.dense`."""
        return dense.fully_convolutional(self)

    def output_shape(self, shape):
        for layer in self:
            shape = self._ask(layer.output_shape, shape)
        return shape


class Concat(_Container):
    """Branches side by side: each sees the same x, and their outputs (N, C_i, H, W) are joined along the channels."""

    def __init__(self, *layers):
        super().__init__(*layers)
        if not len(self):
            raise BadInput("Concat: no branches: should be one or more")

    def forward(self, x, train=False, *, keep=None):
        ys = [self._ask(branch.forward, x, train, keep=keep) for branch in self]
        self.output_shape_of([y.shape for y in ys])
        self._splits = list(itertools.accumulate(y.shape[1] for y in ys[:-1]))
        return nchw(xp_of(x).concatenate([nhwc(y) for y in ys], axis=3))

    def backward(self, dy, *, need_dx=True):
        parts = xp_of(dy).split(dy, getattr(self, "_splits", [1] * (len(self) - 1)), axis=1)
        dxs = [self._ask(branch.backward, part, need_dx=need_dx) for branch, part in zip(self, parts, strict=True)]
        return sum(dxs[1:], start=dxs[0]) if need_dx else None

    def output_shape(self, shape):
        return self.output_shape_of([self._ask(branch.output_shape, shape) for branch in self])

    def freeze(self):
        """A copy for inference alone, of frozen branches."""
        return Concat({name: branch.freeze() for name, branch in self.children().items()})

    def output_shape_of(self, shapes: list[tuple]) -> tuple:
        """The joined shape. Raises ValueError where the branches differ in more than their channels."""
        N, _, H, W = shapes[0]
        if any((n, h, w) != (N, H, W) for n, _, h, w in shapes):
            raise ValueError(f"Concat: branches must agree in all but their channels, got {shapes}")
        return N, sum(shape[1] for shape in shapes), H, W


class Auxiliary(Sequential):
    """A classifier beside the way, whose loss brings gradients to layers far below the last: Szegedy et al. 2014, §5.

    x passes unchanged, y = x. Where a backward will follow, x also goes through the layers of this head, and their
    result (N, classes) waits in `scores` for a loss: see `auxiliary_loss_forward`, which counts it `share` times. What
    that asks of the scores is `dscores`, zero until set, and so dx = dy + the gradient through the head. At test time
    nothing happens, and `freeze` leaves the head out.
    """

    only_in_training = True
    scores = dscores = None

    def __init__(self, *layers, share: float = 0.3):
        super().__init__(*layers)
        self.share = check_range("Auxiliary: share", share, 0, math.inf)

    def forward(self, x, train=False, *, keep=None):
        keep = train if keep is None else keep
        self.scores = super().forward(x, train, keep=keep) if keep else None
        self.dscores, self._x = None, (x.shape, x.dtype)
        return x

    def backward(self, dy, *, need_dx=True):
        if self.scores is None:
            raise nothing_kept(self)
        check_gradient("Auxiliary.backward", dy, *self._x)
        dscores = xp_of(dy).zeros_like(self.scores) if self.dscores is None else self.dscores
        self.scores = self.dscores = None
        dx = super().backward(dscores, need_dx=need_dx)
        return dy + dx if need_dx else None

    def twin(self):
        twin = super().twin()
        twin._forget()
        return twin

    def _forget(self):
        super()._forget()
        self.scores = self.dscores = None

    def output_shape(self, shape):
        return shape

    def freeze(self):
        """A head for inference alone, which does nothing."""
        return self.twin()


def auxiliary_loss_forward(model: Layer, labels, label_smoothing: float = 0.0) -> tuple[float, list]:
    """Σ share · softmax cross-entropy over the auxiliary heads of `model`, after a forward that left their scores.

    It is to be added to the loss of the network's own scores. 0 where there are no heads. labels (N,); the cache is for
    `auxiliary_loss_backward`.
    """
    loss, cache = 0.0, []
    for _, head in model.walk():
        if isinstance(head, Auxiliary) and head.scores is not None:
            own, own_cache = softmax_cross_entropy_forward(head.scores, labels, label_smoothing)
            loss += head.share * (own if on_gpu(own) else float(own))  # a GPU's stays there, and nobody waits for it
            cache.append((head, own_cache))
    return loss, cache


def auxiliary_loss_backward(dloss: float, cache: list) -> None:
    """Give each head the gradient of its part of the loss, for `model.backward` to take along."""
    for head, own_cache in cache:
        head.dscores = softmax_cross_entropy_backward(head.share * dloss, own_cache)


def walk_forward(layer: Layer, x, train=False, name=""):
    """Run a forward leaf by leaf: a generator that yields (name, leaf, its input) *before* each leaf runs.

    So the caller may look at the input, or change the leaf. The generator's return value is y. Caches are not kept.
    Auxiliary heads are run as well.
    """
    if isinstance(layer, Sequential):
        y = x
        for key, child in layer.children().items():
            y = yield from walk_forward(child, y, train, f"{name}.{key}".lstrip("."))
        return x if isinstance(layer, Auxiliary) else y
    if isinstance(layer, Concat):
        ys = []
        for key, child in layer.children().items():
            ys.append((yield from walk_forward(child, x, train, f"{name}.{key}".lstrip("."))))
        return nchw(xp_of(x).concatenate([nhwc(y) for y in ys], axis=3))
    yield name, layer, x
    return layer.forward(x, train, keep=False)
