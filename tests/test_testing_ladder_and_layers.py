"""The conformance suite finds mistakes in convolution algorithms and in layers."""

from dataclasses import replace

import numpy as np
import pytest

from minivgg.backends import workspace
from minivgg.layers import BatchNorm2d, Layer, Linear, Param, ReLU
from minivgg.ops.conv2d import naive
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.windows import check_gradient
from minivgg.testing import GEOMETRIES, check_conv, check_layer
from minivgg.testing.layers import LAYER_RULES

# ---- Mistakes in convolutions ----


def algorithm(**passes):
    """The seven loops with other functions in their place."""
    return replace(naive.ALGORITHM, name="mine", reason="to see it fail", **passes)


def without_corner(x, w, spec):
    y = naive.forward(x, w, spec)
    y[-1, -1, -1, -1] -= x[-1, -1, -1, -1]
    return y


def unflipped(dy, w, spec):
    return naive.grad_input(dy, w[..., ::-1, ::-1], spec)


def last_chunk_lost(dy, x, spec):
    dw = naive.grad_weight(dy, x, spec)
    if workspace.limit() < 2**20:
        dw -= naive.grad_weight(dy[-1:], x[-1:], replace(spec, N=1))
    return dw


def in_scratch_memory(x, w, spec):
    y = workspace.buffer("mine", spec.y_shape, x.dtype)
    y[...] = naive.forward(x, w, spec)
    return y


BAD_ALGORITHMS = {
    "corner": ({"forward": without_corner}, "all three passes give what the seven loops give", "y by the seven loops"),
    "flip": ({"grad_input": unflipped}, "gradients are the slopes of forward", "WRONG"),
    "flip, by adjoint": ({"grad_input": unflipped}, "gradients are adjoint to forward", "= ⟨x, dx⟩"),
    "last chunk": ({"grad_weight": last_chunk_lost}, "little memory gives the same", "with a workspace of"),
    "scratch memory": ({"forward": in_scratch_memory}, "answers stay when others are computed", "y as it was"),
    "supports": ({"supports": lambda spec, device: device == "gpu"}, "supports() says None, or why not", "False"),
}


@pytest.mark.parametrize("name", BAD_ALGORITHMS)
def test_mistakes_in_algorithms(name):
    passes, title, words = BAD_ALGORITHMS[name]
    with pytest.raises(AssertionError) as caught:
        check_conv(algorithm(**passes), "VGG", "even window")
    told = next(part for part in str(caught.value).split("✗ ") if part.startswith(title))
    assert "x (2, 3, 8, 9), w (4, 3, 3, 3), stride=1, padding=1, float" in told
    assert words in told


def test_geometries_that_are_not_supported_are_left_out():
    only_3x3 = algorithm(supports=lambda spec, device: None if (spec.KH, spec.KW) == (3, 3) else "3×3 only")
    report = check_conv(only_3x3)
    assert report["dtype in is dtype out"].trials == 2 * sum(w[2:] == (3, 3) for _, w, _, _ in GEOMETRIES.values())
    with pytest.raises(ValueError, match="algorithm mine: nothing to try"):
        check_conv(only_3x3, "pointwise")


# ---- Mistakes in layers ----


class Forgetful(Linear):
    """Assigns its gradient instead of adding it."""

    def _backward(self, dy, cache, need_dx):
        self.weight.grad = None
        return super()._backward(dy, cache, need_dx)


class Lazy(Linear):
    """Takes need_dx=False for permission to do nothing."""

    def _backward(self, dy, cache, need_dx):
        return super()._backward(dy, cache, need_dx) if need_dx else None


class Boastful(Linear):
    def output_shape(self, shape):
        return shape[0], 100


class Elephant(ReLU):
    """Keeps its own cache, for ever."""

    def _forward(self, x, train):
        self.kept, _ = relu_forward(x)
        return self.kept, None

    def backward(self, dy, *, need_dx=True):
        return relu_backward(dy, self.kept)


class ForTrainingOnly(BatchNorm2d):
    """Goes back through the statistics of the batch also where they were given."""

    def _backward(self, dy, cache, need_dx):
        return super()._backward(dy, cache._replace(from_batch=True), need_dx)


class Sharing(Layer):
    """y = x + b, whose db is a view of dy."""

    def __init__(self, shape):
        self.bias = Param(np.zeros(shape, np.float32))

    def _forward(self, x, train):
        return x + self.bias.data, (x.shape, x.dtype)

    def _backward(self, dy, cache, need_dx):
        check_gradient("Sharing", dy, *cache)
        self.bias.accumulate(dy)
        return dy


X = 3, 6
BAD_LAYERS = {
    Forgetful: (
        lambda: Forgetful(6, 4),
        X,
        "gradients of parameters add up, until they are forgotten",
        "dweight after",
    ),
    Lazy: (lambda: Lazy(6, 4), X, "need_dx=False changes no gradient of a parameter", "none of weight, bias"),
    Boastful: (lambda: Boastful(6, 4), X, "the output's shape is foretold", "y (3, 100), as output_shape says"),
    Elephant: (Elephant, X, "backward goes back through one forward", "RuntimeError, since forward(x) kept nothing"),
    ForTrainingOnly: (lambda: ForTrainingOnly(6), X, "gradients are the slopes of forward", "train=False"),
    Sharing: (lambda: Sharing(X), X, "answers share no memory", "dbias shares memory with"),
}


@pytest.mark.parametrize("kind", BAD_LAYERS)
def test_mistakes_in_layers(kind):
    make, shape, title, words = BAD_LAYERS[kind]
    layer = make()
    before = {name: a.copy() for name, a in layer.state_dict().items()}
    report = check_layer(layer, shape, raise_on_failure=False)
    assert len(report.results) == len(LAYER_RULES)
    told = [str(result) for result in report.failures if result.rule.startswith(title)]
    assert len(told) == 1, report
    assert f"x {shape}" in told[0]
    assert words in told[0]
    for name, a in layer.state_dict().items():  # copies are checked
        np.testing.assert_array_equal(a, before[name], strict=True)
    with pytest.raises(AssertionError, match=f"{kind.__name__} breaks"):
        check_layer(make, shape)
