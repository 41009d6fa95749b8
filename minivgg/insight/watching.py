"""Watching a network at work: what each layer gives on the way forward, and which gradient reaches it going back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import Layer, Sequential


@contextmanager
def watched(
    model: Layer,
    output: Callable[[str, Layer, np.ndarray], None] | None = None,
    gradient: Callable[[str, Layer, np.ndarray], np.ndarray | None] | None = None,
) -> Iterator[None]:
    """Within the block, every layer of `model` reports to the caller, by its dotted name, as it runs.

    `output(name, layer, y)` is called after a layer's forward; `gradient(name, layer, dy)` before its backward, with
    the gradient of its output, and what it returns, unless None, goes on in place of dy. Layers run one by one
    (`Sequential.fused` is off), so that each output is there to be seen. Everything is as it was after the block,
    the gradients in the parameters included. One thread at a time.
    """
    layers = list(model.walk())
    chains = [(layer, layer.fused) for _, layer in layers if isinstance(layer, Sequential)]
    grads = [(p, p.grad) for p in model.named_params().values()]

    def wrap(name: str, layer: Layer) -> None:
        forward, backward = layer.forward, layer.backward

        def reporting_forward(*args, **options):
            y = forward(*args, **options)
            if output:
                output(name, layer, y)
            return y

        def reporting_backward(dy, **options):
            changed = gradient(name, layer, dy) if gradient else None
            return backward(dy if changed is None else changed, **options)

        layer.forward, layer.backward = reporting_forward, reporting_backward

    try:
        for layer, _ in chains:
            layer.fused = False
        for p, _ in grads:
            p.grad = None
        for name, layer in layers:
            wrap(name, layer)
        yield
    finally:
        for _, layer in layers:
            vars(layer).pop("forward", None)
            vars(layer).pop("backward", None)
            layer._cache = None
        for layer, fused in chains:
            layer.fused = fused
            layer._ran = None
        for p, grad in grads:
            p.grad = grad


def layer_called(model: Layer, name: str) -> Layer:
    """The layer of this dotted name, such as `features.28`. Raises BadInput, with what there is, for another name."""
    layers = {key: layer for key, layer in model.walk() if key}
    if name not in layers:
        some = ", ".join(list(layers)[:4])
        raise BadInput(f'no layer "{name}"; names are those of print(model), {some} … {list(layers)[-1]}')
    return layers[name]
