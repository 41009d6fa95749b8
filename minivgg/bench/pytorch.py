"""PyTorch's side of the races, at its best: its own memory orders, huge pages, compiled graphs, fused optimisers.

Each function prepares a task in a contestant's process and returns it, ready to run. PyTorch is imported there only.
"""

import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from minivgg.layers import (
    AdaptiveAvgPool2d,
    Auxiliary,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minivgg.ops.conv2d.spec import ConvSpec

MODULES = ("torch", "torch.nn", "torch._dynamo")  # what a contestant imports before its memory is counted


def installed() -> bool:
    """Whether there is a PyTorch to race against; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def why_not(device: str) -> str | None:
    """Why there is no PyTorch to race against on "cpu" or "cuda"; None if there is."""
    if not installed():
        return "PyTorch is not installed"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no GPU"
    return None


def set_precision(precision: str) -> None:
    """On a GPU: have convolutions and products of float32 done strictly ("fp32") or with TF32's factors ("tf32"), and
    cuDNN's algorithms chosen by trial."""
    import torch

    kind = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cudnn.conv.fp32_precision = kind
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.benchmark = True


def _torch():
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return torch


def _format(channels_last: bool):
    torch = _torch()
    return torch.channels_last if channels_last else torch.contiguous_format


def convolution(x, w, dy, spec: ConvSpec, direction: str, *, channels_last: bool) -> Callable[[], np.ndarray]:
    """One pass of a convolution: "forward", "grad_input" or "grad_weight" → y, dx or dw."""
    torch = _torch()
    tensors = [torch.from_numpy(a).clone(memory_format=_format(channels_last)) for a in (x, w, dy)]
    run = convolution_of(spec, direction)
    return lambda: run(*tensors).numpy()


def convolution_of(spec: ConvSpec, direction: str) -> Callable:
    """A function of tensors x, w and dy → y, dx or dw, on whatever device they are."""
    import torch

    @torch.inference_mode()
    def forward(x, w, dy):
        return torch.nn.functional.conv2d(x, w, None, spec.stride, spec.padding)

    wanted = [direction == "grad_input", direction == "grad_weight", False]  # dx, dw, db
    geometry = list(spec.stride), list(spec.padding), [1, 1], False, [0, 0], 1

    @torch.inference_mode()
    def backward(x, w, dy):
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry, wanted)[wanted.index(True)]

    return forward if direction == "forward" else backward


def network(model: Layer, *, channels_last: bool, compiled: bool):
    """The same network, with the same weights, as a `torch.nn.Module`."""
    torch = _torch()
    with torch.device("meta"):  # no memory, and no initialisation, for weights that are loaded next
        net = _module(model)
    net.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()}, assign=True)
    net = net.to(memory_format=_format(channels_last))
    return torch.compile(net) if compiled else net


def _module(layer: Layer):
    """A `torch.nn` module for a layer of ours."""
    from torch import nn

    match layer:
        case Auxiliary():
            pass
        case Sequential():
            return nn.Sequential(OrderedDict((name, _module(child)) for name, child in layer.children().items()))
        case Conv2d():
            O, C = layer.weight.data.shape[:2]
            return nn.Conv2d(C, O, layer.kernel_size, layer.stride, layer.padding, bias=layer.bias is not None)
        case Linear():
            O, F = layer.weight.data.shape
            return nn.Linear(F, O, bias=layer.bias is not None)
        case MaxPool2d():
            return nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
        case AdaptiveAvgPool2d():
            return nn.AdaptiveAvgPool2d(layer.output_size)
        case Dropout():
            return nn.Dropout(layer.p)
        case ReLU():
            return nn.ReLU(inplace=True)
        case Flatten():
            return nn.Flatten()
    raise ValueError(f"no PyTorch module for {layer}")


def inference(model: Layer, x, *, channels_last: bool = False, compiled: bool = False) -> Callable[[], np.ndarray]:
    """A forward at test time: x (N, C, H, W) → scores (N, classes)."""
    torch = _torch()
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # weights are constants, laid out for oneDNN once
    net = network(model, channels_last=channels_last, compiled=compiled).eval()
    x = torch.from_numpy(x).clone(memory_format=_format(channels_last))

    @torch.inference_mode()
    def run():
        return net(x).numpy()

    return run


def training(
    model: Layer, x, labels, rate: float, *, channels_last: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """A step of training (forward, backward, SGD with momentum 0.9) → the loss before it."""
    torch = _torch()
    net = network(model, channels_last=channels_last, compiled=compiled).train()
    x, labels = torch.from_numpy(x).clone(memory_format=_format(channels_last)), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, fused=True)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
