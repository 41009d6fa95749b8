"""One face for everything that can be checked: named float64 arguments in, an output and a way back out.

Whatever it wraps (a pair of functions, an object, a layer, a network and its loss), a `Target` answers one question:

    y, branches, backward = target.forward(arguments)      # arguments: name → float64 array
    gradients = backward(dy)                               # name → array

All of it is NumPy: a target whose arrays live on a GPU sends them there and fetches the answers. `branches` says which
way every kinked function went (ReLU's mask, max-pool's winners), so that kinks need not be guessed.
"""

import copy
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minivgg.backends.array import device_of, to, to_cpu
from minivgg.layers import Dropout, Layer, ReLU, Sequential, auxiliary_loss_backward, auxiliary_loss_forward
from minivgg.ops.maxpool import MaxPoolCache
from minivgg.ops.relu import relu_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward


class Evaluation(NamedTuple):
    y: np.ndarray
    branches: tuple[np.ndarray, ...]
    backward: Callable[[np.ndarray], dict[str, np.ndarray | None]]


class Target:
    """`explicit`: backward gets all it needs from its own forward, so that others may run in between, and it may be
    called twice. `accumulates`: gradients of parameters add up over passes. `is_network`: it has several layers."""

    name: str
    arguments: dict[str, np.ndarray]
    explicit = False
    accumulates = False
    is_network = False

    def forward(self, arguments: dict[str, np.ndarray], *, as_given=False) -> Evaluation:
        """One forward. What is checked gets copies, so that one that writes to its arguments spoils nothing here,
        unless `as_given`: the very arrays, in the memory order in which they are. What it answers is copied as well,
        since it may answer in the same memory next time."""
        put = self._put if as_given else lambda a: self._put(a.copy(order="K"))
        y, branches, backward = self._forward({name: put(a) for name, a in arguments.items()})
        y = np.array(to_cpu(y))
        return Evaluation(y, tuple(map(to_cpu, branches)), lambda dy: self._fetch(backward, put(np.asarray(dy))))

    def run(self, arguments, dy, *, as_given=False) -> dict[str, np.ndarray | None]:
        """The gradients for the upstream gradient dy."""
        return self.forward(arguments, as_given=as_given).backward(dy)

    def _put(self, a):
        return to(a, self._device)

    @staticmethod
    def _fetch(backward, dy):
        # [()] turns an array without dimensions, such as a loss, into the scalar that a backward expects
        return {name: None if g is None else np.array(to_cpu(g)) for name, g in backward(dy[()]).items()}


def _device_of(inputs) -> str:
    """Where the inputs are; numbers and labels that stayed behind do not count."""
    return next((device for device in map(device_of, inputs) if device != "cpu"), "cpu")


class PairTarget(Target):
    """`forward(*arrays, **options) -> (y, cache)` with `backward(dy, cache)`; or `-> y` with `backward(dy, *arrays)`.

    Arrays of floats are arguments; everything else (labels, sizes, None) is handed on as it is.
    """

    explicit = True

    def __init__(self, forward: Callable, backward: Callable, inputs: tuple, options: dict):
        self.name = _name_of(forward).removesuffix("_forward")
        self._pair, self._options, self._device = (forward, backward), options, _device_of(inputs)
        self._slots = dict(zip(_names(forward, len(inputs)), inputs, strict=True))
        self.arguments = _float64(self._slots)

    def _forward(self, arguments):
        forward, backward = self._pair
        arrays = [arguments.get(name, value) for name, value in self._slots.items()]
        result = forward(*arrays, **self._options)
        if not isinstance(result, tuple):
            return result, (), lambda dy: self._named(backward(dy, *arrays))
        y, cache = result
        return y, branches_of(forward, cache), lambda dy: self._named(backward(dy, cache))

    def _named(self, gradients):
        return _named(gradients, list(self.arguments), list(self._slots))


class ObjectTarget(Target):
    """An object (or a class without constructor arguments) with `forward(*inputs) -> y` and `backward(dy)`.

    Its parameters are the float arrays `W` among its attributes for which a backward leaves a `dW` (or `W_grad`, or
    `grad_W`). They, and generators, are put back before each forward; everything else is the object's own business.
    """

    def __init__(self, thing, inputs: tuple, options: dict):
        self._object = copy.deepcopy(thing() if isinstance(thing, type) else thing)
        self.name, self._options, self._device = type(self._object).__name__, options, _device_of(inputs)
        self._slots = dict(zip(_names(self._object.forward, len(inputs)), inputs, strict=True))
        self._inputs = _float64(self._slots)
        self._arrays = _float64(vars(self._object))
        self._generators = {k: v for k, v in vars(self._object).items() if isinstance(v, np.random.Generator)}
        self._parameters, self.arguments = (), self._inputs
        self._discover()

    def _discover(self) -> None:
        """Run once each way, to see which attributes get a gradient."""
        y, _, backward = self.forward({name: 1.5 * a for name, a in self._inputs.items()})  # not where we check:
        backward(np.ones_like(y))  # a cache that is only ever filled once must not happen to be right
        self._parameters = tuple(name for name in self._arrays if self._gradient_of(name) is not None)
        self.arguments = self._inputs | {name: self._arrays[name] for name in self._parameters}

    def _gradient_of(self, name: str):
        found = (getattr(self._object, pattern.format(name), None) for pattern in ("d{}", "{}_grad", "grad_{}"))
        return next((g for g in found if hasattr(g, "shape")), None)

    def _forward(self, arguments):
        state = {name: self._put(a.copy()) for name, a in self._arrays.items()} | copy.deepcopy(self._generators)
        vars(self._object).update(state | {name: arguments[name] for name in self._parameters})
        inputs = [arguments.get(name, value) for name, value in self._slots.items()]
        y = self._object.forward(*inputs, **self._options)
        return y, (), self._backward

    def _backward(self, dy):
        gradients = _named(self._object.backward(dy), list(self._inputs), list(self._slots))
        return gradients | {name: self._gradient_of(name) for name in self._parameters}


class LayerTarget(Target):
    """A layer, a `Sequential` or a whole network, with its softmax cross-entropy loss where there are labels.

    A copy in float64: the caller's layer is not touched. Every forward starts from the same running statistics and
    draws the same dropout masks. Parameters and statistics that are constant (a new convolution's zeros, a batch norm's
    ones) are replaced by random ones: a factor of one, or a term of zero, hides what is done with it.
    """

    accumulates = True

    def __init__(self, layer: Layer, x, labels, train: bool, rng: np.random.Generator):
        self.name = type(layer).__name__ + (" and its loss" if labels is not None else "")
        self._labels, self._train, self._device = labels, train, device_of(x)
        self._layer = copy.deepcopy(layer).astype(np.float64)
        for _, inner in self._layer.walk():
            if isinstance(inner, Sequential):
                inner.fused = (
                    False  # one by one, so that each ReLU shows its mask; that fusing changes nothing is a test
                )
        self._leaves = [leaf for _, leaf in self._layer.walk() if not leaf.children()]
        self._params = self._layer.named_params()
        self.is_network = len(self._leaves) > 1
        for owner, key in self._state("data"):
            setattr(owner, key, self._put(_varied(to_cpu(getattr(owner, key)), rng)))
        self._buffers = [(leaf, key, getattr(leaf, key)) for leaf, key in self._state()]
        self._calls = [(leaf, leaf.calls) for leaf in self._leaves if isinstance(leaf, Dropout)]
        self.arguments = _float64({"x": x} | {name: p.data for name, p in self._params.items()})

    def _state(self, *params: str):
        """(owner, attribute) of all buffers, and of all parameters where `params` is "data"."""
        owners = [(leaf, leaf.buffers) for leaf in self._leaves] + [(p, params) for p in self._params.values()]
        return [(owner, key) for owner, keys in owners for key in keys]

    def _forward(self, arguments):
        self._layer.zero_grad()
        return self._forward_onto(arguments)

    def _forward_onto(self, arguments):
        """A forward that leaves the gradients of the last pass where they are."""
        for name, p in self._params.items():
            p.data = arguments[name]
        for leaf, key, value in self._buffers:
            setattr(leaf, key, value.copy())
        for leaf, calls in self._calls:
            leaf.calls = calls
        y = self._layer.forward(arguments["x"], train=self._train, keep=True)
        branches = [b for leaf in self._leaves if leaf._cache for b in branches_of(type(leaf), leaf._cache[0])]
        if self._labels is None:
            return y, branches, self._backward
        loss, cache = softmax_cross_entropy_forward(y, self._labels)
        heads_loss, heads_cache = auxiliary_loss_forward(self._layer, self._labels)

        def backward(dloss):
            auxiliary_loss_backward(dloss, heads_cache)
            return self._backward(softmax_cross_entropy_backward(dloss, cache))

        return loss + heads_loss, branches, backward

    def _backward(self, dy):
        return {"x": self._layer.backward(dy)} | {name: p.grad for name, p in self._params.items()}

    def run_twice(self, arguments, dy) -> dict[str, np.ndarray | None]:
        """The gradients after two passes with nothing reset in between."""
        self.run(arguments, dy)
        _, _, backward = self._forward_onto({name: self._put(a) for name, a in arguments.items()})
        return self._fetch(backward, self._put(dy))


def as_target(target, inputs: tuple, *, options: dict, labels, shape, train: bool, rng) -> Target:
    """The `Target` for whatever `check` was given. Raises TypeError, saying what can be checked, for anything else."""
    if isinstance(target, Layer):
        if len(inputs) + (shape is not None) != 1:
            raise TypeError(f"a layer takes one input: give x, or its shape=; got {len(inputs)} and shape={shape}")
        return LayerTarget(target, inputs[0] if inputs else signed(rng, shape), labels, train, rng)
    if not inputs:
        raise TypeError("give the arrays that forward is to be called with")
    if isinstance(target, tuple) and len(target) == 2 and all(map(callable, target)):
        return PairTarget(*target, inputs, options)
    if hasattr(target, "forward") and hasattr(target, "backward"):
        return ObjectTarget(target, inputs, options)
    raise TypeError(
        "what can be checked is a pair (forward, backward), a Layer, or an object or class with methods forward and "
        f"backward; got {target!r}"
    )


def branches_of(op, cache) -> tuple:
    """Which way each kink went in this forward of `op` (a function or a class of layer); () where nothing is known."""
    if isinstance(cache, MaxPoolCache):
        return (cache.argmax,)
    return (cache > 0,) if op in (relu_forward, ReLU) else ()


def signed(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """Random numbers of both signs, between 0.5 and 1.5 in size: none so near to zero that it would not be noticed."""
    u = rng.uniform(-1, 1, shape)
    return np.asarray(u + np.copysign(0.5, u))


def _varied(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`a`, or where all of it is one number c, numbers spread by up to c/2 around it (1/2 around 0, over √fan-in)."""
    if a.size == 0 or np.ptp(a) > 0:
        return a
    spread = abs(a.flat[0]) / 2 or 0.5 / math.sqrt(math.prod(a.shape[1:]))
    return a + spread * rng.uniform(-1, 1, a.shape)


def _float64(values: dict) -> dict[str, np.ndarray]:
    """The arrays of floats among `values`, as float64 copies in main memory, in their own memory order."""
    floats = {k: to_cpu(v) for k, v in values.items() if hasattr(v, "dtype") and v.dtype.kind == "f"}
    return {name: np.array(a, np.float64, order="K") for name, a in floats.items()}


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", None) or _name_of(getattr(function, "func", type(function)))


def _names(forward: Callable, count: int) -> list[str]:
    """What forward calls its first `count` arguments; those without a name are numbered."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    try:
        names = [name for name, p in inspect.signature(forward).parameters.items() if p.kind in kinds]
    except ValueError:
        names = []
    return [*names, *(f"argument {i}" for i in range(len(names), count))][:count]


def _named(gradients, floats: list[str], slots: list[str]) -> dict:
    """Gradients by argument: of all float arguments in order, or of all arguments, those of the others being None."""
    if isinstance(gradients, dict):
        return {name: gradients.get(name) for name in floats}
    gradients = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
    while len(gradients) > len(slots) and gradients[-1] is None:  # that of an optional argument which is not there
        gradients.pop()
    for names in floats, slots:
        if len(gradients) == len(names):
            return {name: g for name, g in zip(names, gradients, strict=True) if name in floats}
    raise ValueError(f"backward returned {len(gradients)} gradients for the arguments {', '.join(floats)}")
