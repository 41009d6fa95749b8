"""What every layer is: `Param`, a learnt array with its gradient, and `Layer`, the contract."""

import copy
from collections.abc import Iterator

import numpy as np

from minivgg.backends.array import device_of, ordered_like, to, to_cpu
from minivgg.ops.windows import check_dtype


class Param:
    """A learnt array (`data`) and its gradient (`grad`, None until a backward has run; gradients add up)."""

    def __init__(self, data):
        self.data = data
        self.grad = None

    def accumulate(self, grad) -> None:
        """Add `grad`, of data's shape, to what is there."""
        if self.grad is None:
            self.grad = ordered_like(grad, self.data)
        else:
            self.grad += grad


class Layer:
    """What all layers share. A subclass defines `_forward(x, train) -> (y, cache)` and
    `_backward(dy, cache, need_dx) -> dx`, and keeps each learnt array in an attribute as a `Param`.

    A layer stands at one place of a network: it has one cache, so that using it twice needs two layers.
    """

    buffers: tuple[str, ...] = ()  # names of attributes that are saved with the parameters but not learnt
    only_in_training = False  # whether it hands x on as it is at test time, so that freezing leaves it out
    _cache = None

    def forward(self, x, train=False, *, keep=None, **fused):
        """y for the input x. What backward needs is kept if `keep`, which unless given is `train`.

        `fused` are options under which some layers do a neighbouring ReLU's work: see `layers.fusion`.
        """
        y, cache = self._forward(x, train, **fused)
        self._cache = (cache,) if (train if keep is None else keep) else None
        return y

    def __call__(self, x, train=False, *, keep=None):
        """`forward`, as in PyTorch."""
        return self.forward(x, train, keep=keep)

    def backward(self, dy, *, need_dx=True):
        """dx for the upstream gradient dy; parameter gradients are added to each `Param.grad`.

        Lets go of the cache. `need_dx=False` allows a network's first layer to return None instead. Raises
        RuntimeError if no forward has left a cache.
        """
        if self._cache is None:
            raise nothing_kept(self)
        (cache,), self._cache = self._cache, None
        return self._backward(dy, cache, need_dx)

    def twin(self) -> "Layer":
        """This layer once more, for another place, with the same parameters and statistics, and a cache of its own."""
        twin = copy.copy(self)
        twin._cache = None
        return twin

    def freeze(self) -> "Layer":
        """A copy for inference alone, faster where that helps: it shares the parameters, which must not change then."""
        return self.twin()

    def output_shape(self, shape: tuple) -> tuple:
        """The shape of y for an x of `shape`."""
        return shape

    def children(self) -> dict[str, "Layer"]:
        """The layers inside this one, by name."""
        return {}

    def walk(self, prefix="") -> Iterator[tuple[str, "Layer"]]:
        """Yield (dotted name, layer) for this layer and all inside it, in the order of the forward."""
        yield prefix, self
        for name, child in self.children().items():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def named_params(self) -> dict[str, Param]:
        """All parameters by torchvision's names, such as `features.0.weight`."""
        return {
            f"{name}.{key}".lstrip("."): value
            for name, layer in self.walk()
            for key, value in vars(layer).items()
            if isinstance(value, Param)
        }

    def parameter_count(self) -> int:
        """The number of learnt values."""
        return sum(p.data.size for p in self.named_params().values())

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.named_params().values():
            p.grad = None

    def _arrays(self) -> dict[str, tuple[object, str]]:
        """Where each saved array lives: name → (its owner, the owner's attribute)."""
        places = {name: (p, "data") for name, p in self.named_params().items()}
        for name, layer in self.walk():
            places |= {f"{name}.{key}".lstrip("."): (layer, key) for key in layer.buffers}
        return places

    def state_dict(self) -> dict[str, np.ndarray]:
        """All parameters and buffers, by torchvision's names: NumPy arrays, C-contiguous, wherever the layer's own are.
        Not necessarily copies."""
        return {
            name: np.ascontiguousarray(to_cpu(getattr(owner, key))) for name, (owner, key) in self._arrays().items()
        }

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array of `state_dict`, which copies some; this copies none."""
        return {name: getattr(owner, key).shape for name, (owner, key) in self._arrays().items()}

    def load_state_dict(self, state: dict, strict: bool = True) -> None:
        """Copy `state` into the parameters and buffers, in their own dtype and on their own device.

        Raises ValueError, and changes nothing, where a name is missing or left over (`num_batches_tracked` of
        PyTorch's batch norm may be there) or a shape differs. Unless `strict`, what is missing stays as it is, and
        what is left over is ignored.
        """
        places = self._arrays()
        given = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        if not strict:
            given = {name: value for name, value in given.items() if name in places}
            places = {name: place for name, place in places.items() if name in given}
        if given.keys() != places.keys():
            missing, extra = sorted(places.keys() - given.keys()), sorted(given.keys() - places.keys())
            raise ValueError(f"load_state_dict: missing {_first(missing)}, left over {_first(extra)}")
        for name, (owner, key) in places.items():
            if given[name].shape != getattr(owner, key).shape:
                raise ValueError(
                    f"load_state_dict: {name} has shape {given[name].shape}, "
                    f"but the network needs {getattr(owner, key).shape}"
                )
        for name, (owner, key) in places.items():
            mine = getattr(owner, key)
            mine[...] = to(given[name], device_of(mine))

    def astype(self, dtype) -> "Layer":
        """This layer with all parameters and buffers turned to `dtype`, gradients forgotten. Raises BadInput for one
        that no op computes in."""
        dtype = check_dtype(type(self).__name__, dtype)
        self.zero_grad()
        for owner, key in self._arrays().values():
            setattr(owner, key, getattr(owner, key).astype(dtype))
        return self

    def to(self, device: str) -> "Layer":
        """This layer with all parameters, their gradients and buffers on `device`: "cpu", "gpu", or "sim".

        What a forward has kept is forgotten. Of what it shares with layers outside (its twins), the parameters move for
        them as well, the buffers do not. An optimiser keeps its state where the parameters were when it was made: move
        first. Cost: a copy of each array that is not there yet.
        """
        for owner, key in self._arrays().values():
            setattr(owner, key, to(getattr(owner, key), device))
        for p in self.named_params().values():
            p.grad = None if p.grad is None else to(p.grad, device)
        for _, layer in self.walk():
            layer._forget()
        return self

    def _forget(self) -> None:
        """Let go of all arrays that are neither parameters nor buffers."""
        self._cache = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def nothing_kept(layer: Layer) -> RuntimeError:
    """What to raise where a backward has no forward behind it."""
    return RuntimeError(
        f"{type(layer).__name__}.backward has nothing to go back through: "
        "first call forward(x, train=True), or forward(x, keep=True), once for each backward"
    )


def _first(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
