"""`check_layer`: a layer is an op of its input and its parameters, and keeps a few promises more."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from minivgg.backends.array import device_of
from minivgg.gradcheck import check
from minivgg.layers import Layer
from minivgg.testing.cases import EVERYWHERE, LAYERS, Case, Op
from minivgg.testing.report import Broken, Report
from minivgg.testing.rules import RULES, slopes
from minivgg.testing.suite import hold
from minivgg.testing.trials import Trial, agree, copies, rule


def check_layer(
    layer: str | Layer | Callable[[], Layer],
    shape: tuple | None = None,
    *,
    without: Iterable[str] = (),
    devices: Iterable[str] | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Hold a layer to all rules for ops, and to those for layers, on inputs of `shape`.

        check_layer("Conv2d")                       # a row of LAYERS
        check_layer(MyLayer(3, 8), (2, 3, 6, 5))    # yours: any subclass of `Layer`, or a function that makes one

    Copies of it are checked, with random parameters. `without` leaves out rules by their titles; `devices` are those
    present for a row of LAYERS, and for yours the CPU, unless given. Cost: about 60 passes and two gradient checks on
    each. Raises AssertionError as `check_op` does; KeyError for an unknown name.
    """
    devices = ("cpu",) if devices is None and not isinstance(layer, str) else devices
    if isinstance(layer, str):
        layer, shape = LAYERS[layer]
    layer = layer if isinstance(layer, Layer) else layer()
    op = LayerOp.of(layer, shape)
    return hold(op, LAYER_RULES, without=without, devices=devices, raise_on_failure=raise_on_failure)


@dataclass(frozen=True)
class LayerOp(Op):
    """A layer as an op: each forward is that of a copy, which is its own cache."""

    layer: Layer | None = None

    @classmethod
    def of(cls, layer: Layer, shape: tuple) -> "LayerOp":
        params = layer.named_params()
        case = Case(shape, *(p.data.shape for p in params.values()))

        def forward(x, *arrays):
            mine = _copy(layer, x, arrays)
            return mine.forward(x, train=True), mine

        names = ("x", *params)
        name = type(layer).__name__
        return cls(name, forward, _backward, (case,), views=True, devices=EVERYWHERE, names=names, layer=layer)


def _copy(layer: Layer, x, arrays: tuple) -> Layer:
    """A copy of the layer in x's dtype and on its device, with these parameters."""
    mine = copy.deepcopy(layer).astype(x.dtype).to(device_of(x))
    for p, data in zip(mine.named_params().values(), arrays, strict=True):
        p.data = data
    return mine


def _backward(dy, cache: Layer) -> tuple:
    mine = copy.deepcopy(cache)  # a layer's backward lets go of its cache, and an op's may be called again
    mine.zero_grad()
    return mine.backward(dy), *(p.grad for p in mine.named_params().values())


def _ready(trial: Trial) -> tuple[Layer, object, object]:
    """(a layer, x, dy)"""
    x, *arrays = trial.arguments()
    return _copy(trial.op.layer, x, arrays), x, trial.upstream()


def _gradients(layer: Layer) -> dict[str, np.ndarray]:
    params = layer.named_params()
    if without := [name for name, p in params.items() if p.grad is None]:
        raise Broken("a gradient of every parameter", f"none of {', '.join(without)}")
    return copies({f"d{name}": p.grad for name, p in params.items()})


@rule(
    "the output's shape is foretold",
    "`output_shape(shape)` must give the shape of what `forward` returns, at test time as in training.",
)
def foretells_its_shape(trial):
    layer, x, _ = _ready(trial)
    foretold = tuple(layer.output_shape(tuple(x.shape)))
    for train in (True, False):
        y = layer.forward(x, train=train)
        if tuple(y.shape) != foretold:
            raise Broken(f"y {foretold}, as output_shape says", f"y {y.shape}", where=f"train={train}")


@rule(
    "gradients of parameters add up, until they are forgotten",
    "Hand each gradient over with `self.weight.accumulate(dw)`; assigning to `.grad` loses the pass before.",
)
def adds_up(trial):
    (first, x, dy), (second, *_) = _ready(trial), _ready(trial)  # two copies, so that dropout draws one mask
    first.forward(x, train=True)
    first.backward(dy)
    once = _gradients(first)
    for mine, before in zip(second.named_params().values(), first.named_params().values(), strict=True):
        mine.grad = before.grad
    second.forward(x, train=True)
    second.backward(dy)
    agree(_gradients(second), {name: 2 * g for name, g in once.items()}, "after two passes, twice that of one")
    second.zero_grad()
    left = [name for name, p in second.named_params().items() if p.grad is not None]
    if left:
        raise Broken("no gradient after zero_grad()", f"one of {', '.join(left)}")


@rule(
    "backward goes back through one forward",
    "Return (y, cache) from `_forward`, take the cache in `_backward`, and let `Layer.forward` and `Layer.backward` "
    "keep it: they know when it is needed, and say what to call first when it is not there.",
)
def needs_a_forward(trial):
    layer, x, dy = _ready(trial)
    layer.forward(x)
    _refused(layer, dy, "forward(x) kept nothing")
    layer.forward(x, keep=True)
    layer.backward(dy)
    _refused(layer, dy, "the cache was used already")


def _refused(layer: Layer, dy, why: str) -> None:
    try:
        layer.backward(dy)
    except RuntimeError:
        return
    raise Broken(f"a RuntimeError, since {why}", "an answer")


@rule(
    "need_dx=False changes no gradient of a parameter",
    "`_backward(dy, cache, need_dx)` may return None for dx, and must do everything else.",
)
def without_dx(trial):
    layer, x, dy = _ready(trial)
    expected = trial.run()
    layer.forward(x, train=True)
    layer.backward(dy, need_dx=False)
    found = _gradients(layer)
    agree(found, {name: expected[name] for name in found}, "what it is with dx")


@rule(
    "gradients are the slopes of forward, in training and at test time",
    slopes.advice,
    slopes.applies,
)
def slopes_both_ways(trial):
    x, *_ = trial.arguments()
    for train in (True, False):
        report = check(trial.op.layer, x, train=train, evaluations=100)
        if not report.ok:
            expected = "backward that agrees with differences of forward"
            raise Broken(expected, str(report), where=f"train={train}", gradient=report)


LAYER_RULES = [
    *(rule for rule in RULES if rule is not slopes),
    foretells_its_shape,
    adds_up,
    needs_a_forward,
    without_dx,
    slopes_both_ways,
]
