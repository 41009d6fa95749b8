"""The layers themselves: each an op of `minivgg.ops`, its options, and the parameters that it learns."""

import math

import numpy as np

from minivgg.backends.array import constant_on, nchw
from minivgg.backends.graph import DeviceScalar, between
from minivgg.errors import BadInput, check_range
from minivgg.layers.base import Layer, Param
from minivgg.ops.avgpool import adaptive_avgpool2d_forward, avgpool2d_backward, avgpool2d_forward
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward, running_average
from minivgg.ops.conv2d import ConvSpec, check_algorithm, conv2d_backward, conv2d_forward
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.flatten import flatten_backward, flatten_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.lrn import check_lrn, lrn_backward, lrn_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.windows import check_array, check_dtype, check_gradient, check_window, output_size, pair


def _check_made(layer: Layer, dtype, **counts) -> None:
    """Raise BadInput, naming the layer, unless each of `counts` is 1 or more, and parameters can be of `dtype`."""
    check_dtype(type(layer).__name__, dtype)
    for name, count in counts.items():
        check_range(f"{type(layer).__name__}: {name}", count, 1, math.inf, integer=True)


def _short(size: tuple[int, int]) -> str:
    """(3, 3) → 3, (3, 5) → (3, 5), as people write it."""
    return str(size[0] if size[0] == size[1] else size)


def _window(layer, stride: tuple[int, int]) -> str:
    """The window of a convolution or pool as its constructor takes it, leaving out a stride that is the default."""
    parts = [_short(layer.kernel_size)]
    parts += [f"stride={_short(layer.stride)}"] if layer.stride != stride else []
    parts += [f"padding={_short(layer.padding)}"] if layer.padding != (0, 0) else []
    return ", ".join(parts)


class Conv2d(Layer):
    """Convolution; see `ops.conv2d.conv2d_forward`. Weights (O, C, KH, KW) and biases (O,) start at zero: initialise
    them with `minivgg.models.initialise`. `algorithm` is a rung of the ladder, or "auto"; on a CPU all of them put what
    is not finite where the definition does. Raises BadInput for an option out of range, as all layers do when made."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        bias=True,
        *,
        algorithm="auto",
        dtype=np.float32,
    ):
        _check_made(self, dtype, in_channels=in_channels, out_channels=out_channels)
        check_algorithm(algorithm)
        self.kernel_size, self.stride, self.padding = check_window("Conv2d", kernel_size, stride, padding)
        self.algorithm = algorithm
        self.weight = Param(nchw(np.zeros((out_channels, *self.kernel_size, in_channels), dtype)))  # channels last
        self.bias = Param(np.zeros(out_channels, dtype)) if bias else None
        self._prepared = None  # once frozen, the filters as the algorithms want them

    def _forward(self, x, train, relu=False, after_relu=False, pool=False):
        if train and self._prepared is not None:
            raise RuntimeError(
                "this convolution is frozen: train the network that it was frozen from, and freeze again"
            )
        b = self.bias.data if self.bias else None
        options = {"stride": self.stride, "padding": self.padding, "algorithm": self.algorithm}
        y, cache = conv2d_forward(x, self.weight.data, b, relu=relu, pool=pool, prepared=self._prepared, **options)
        return y, (cache, after_relu)

    def _backward(self, dy, cache, need_dx):
        cache, after_relu = cache
        dx, dw, db = conv2d_backward(dy, cache, need_dx=need_dx, after_relu=after_relu)
        self.weight.accumulate(dw)
        if self.bias:
            self.bias.accumulate(db)
        return dx

    def freeze(self):
        twin = super().freeze()
        twin._prepared = {}
        return twin

    def _forget(self):
        super()._forget()
        self._prepared = None if self._prepared is None else {}

    def fold(self, scale, shift) -> None:
        """Become this convolution and then scale·y + shift, for scale and shift (O,): what a frozen batch norm is."""
        bias = self.bias.data if self.bias else 0
        self.weight = Param(self.weight.data * scale[:, None, None, None])
        self.bias = Param(bias * scale + shift)

    def spec(self, shape: tuple) -> ConvSpec:
        """The geometry for an input of `shape` (N, C, H, W)."""
        return ConvSpec.of(shape, self.weight.data.shape, self.stride, self.padding)

    def output_shape(self, shape):
        return self.spec(shape).y_shape

    def __repr__(self):
        O, C = self.weight.data.shape[:2]
        extras = "" if self.bias else ", bias=False"
        return f"Conv2d({C}, {O}, {_window(self, (1, 1))}{extras})"


class Linear(Layer):
    """y = x·wᵀ + b, weights (O, F) and biases (O,), which start at zero: see `minivgg.models.initialise`."""

    def __init__(self, in_features, out_features, bias=True, *, dtype=np.float32):
        _check_made(self, dtype, in_features=in_features, out_features=out_features)
        self.weight = Param(np.zeros((out_features, in_features), dtype))
        self.bias = Param(np.zeros(out_features, dtype)) if bias else None

    def _forward(self, x, train):
        return linear_forward(x, self.weight.data, self.bias.data if self.bias else None)

    def _backward(self, dy, cache, need_dx):
        dx, dw, db = linear_backward(dy, cache, need_dx=need_dx)
        self.weight.accumulate(dw)
        if self.bias:
            self.bias.accumulate(db)
        return dx

    def output_shape(self, shape):
        O, F = self.weight.data.shape
        if shape[1:] != (F,):
            raise ValueError(f"Linear takes (N, {F}), got {shape}")
        return shape[0], O

    def __repr__(self):
        O, F = self.weight.data.shape
        return f"Linear({F}, {O})"


class BatchNorm2d(Layer):
    """Batch normalisation over (N, C, H, W) or (N, C); at test time with the running averages gathered in training."""

    buffers = ("running_mean", "running_var")

    def __init__(self, num_features, eps=1e-5, momentum=0.1, *, dtype=np.float32):
        _check_made(self, dtype, num_features=num_features)
        self.eps = check_range("BatchNorm2d: eps", eps, 0, math.inf)
        self.momentum = check_range("BatchNorm2d: momentum", momentum, 0, 1)
        self.weight, self.bias = Param(np.ones(num_features, dtype)), Param(np.zeros(num_features, dtype))
        self.running_mean, self.running_var = np.zeros(num_features, dtype), np.ones(num_features, dtype)

    def _forward(self, x, train):
        weight, bias = self.weight.data, self.bias.data
        if not train:
            return batchnorm_forward(x, weight, bias, mean=self.running_mean, var=self.running_var, eps=self.eps)
        y, cache = batchnorm_forward(x, weight, bias, eps=self.eps)
        mean, var = running_average(self.running_mean, self.running_var, cache, self.momentum)
        self.running_mean[...], self.running_var[...] = mean, var  # in place: a twin has the same arrays
        return y, cache

    def _backward(self, dy, cache, need_dx):
        dx, dweight, dbias = batchnorm_backward(dy, cache)
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """What it is at test time, with its running averages: y = scale·x + shift, both (C,)."""
        scale = self.weight.data / np.sqrt(self.running_var + self.eps)
        return scale, self.bias.data - self.running_mean * scale

    def __repr__(self):
        return f"BatchNorm2d({len(self.weight.data)})"


class _Pool(Layer):
    ceil_mode = False

    def __init__(self, kernel_size, stride=None, padding=0):
        window = check_window(type(self).__name__, kernel_size, stride, padding, pools=True)
        self.kernel_size, self.stride, self.padding = window

    def output_shape(self, shape):
        N, C, H, W = shape
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return N, C, *output_size(type(self).__name__, (H, W), *window)

    def __repr__(self):
        extras = ", ceil_mode=True" if self.ceil_mode else ""
        return f"{type(self).__name__}({_window(self, self.kernel_size)}{extras})"


class MaxPool2d(_Pool):
    """The largest value of each window; see `ops.maxpool`. With `ceil_mode` the output's size is rounded up."""

    def __init__(self, kernel_size, stride=None, padding=0, *, ceil_mode=False):
        super().__init__(kernel_size, stride, padding)
        self.ceil_mode = ceil_mode

    def _forward(self, x, train, relu=False):
        window = (self.kernel_size, self.stride, self.padding)
        return maxpool2d_forward(x, *window, ceil_mode=self.ceil_mode, relu=relu)

    def _backward(self, dy, cache, need_dx):
        return maxpool2d_backward(dy, cache)


class AvgPool2d(_Pool):
    """The mean of each window; see `ops.avgpool`."""

    def _forward(self, x, train):
        return avgpool2d_forward(x, self.kernel_size, self.stride, self.padding)

    def _backward(self, dy, cache, need_dx):
        return avgpool2d_backward(dy, cache)


class AdaptiveAvgPool2d(Layer):
    """Means over as many windows as the output has pixels: any image size in, one size out."""

    def __init__(self, output_size):
        self.output_size = pair(output_size, "AdaptiveAvgPool2d: output_size", 1)

    def _forward(self, x, train):
        return adaptive_avgpool2d_forward(x, self.output_size)

    def _backward(self, dy, cache, need_dx):
        return avgpool2d_backward(dy, cache)

    def output_shape(self, shape):
        return *shape[:2], *self.output_size

    def __repr__(self):
        return f"AdaptiveAvgPool2d({_short(self.output_size)})"


class ReLU(Layer):
    """max(x, 0)."""

    def _forward(self, x, train, done=False, undone=False):
        y, cache = (x, x) if done else relu_forward(x)
        return y, None if undone else cache

    def _backward(self, dy, cache, need_dx):
        return dy if cache is None else relu_backward(dy, cache)


class Sigmoid(Layer):
    """1 / (1 + e⁻ˣ)."""

    def _forward(self, x, train):
        return sigmoid_forward(x)

    def _backward(self, dy, cache, need_dx):
        return sigmoid_backward(dy, cache)


class Dropout(Layer):
    """Each element dropped with probability p when training. `seed` names the generator (`minivgg.models.initialise`
    gives every layer its own), `calls` counts the masks drawn so far."""

    only_in_training = True

    def __init__(self, p=0.5, *, seed=0):
        self.p, self.seed, self.calls = check_range("Dropout: p", p, 0, 1), seed, 0
        check_range("Dropout: seed", seed, 0, 2**64 - 1, integer=True)
        self._call = DeviceScalar()  # `calls`, for kernels to read

    def _forward(self, x, train):
        if not train:
            return x, None
        between(self._count)
        return dropout_forward(x, self.p, seed=self.seed, call=self._call.of(x, np.uint64))

    def _count(self):
        self.calls += 1
        self._call.set(self.calls)

    def _backward(self, dy, cache, need_dx):
        return dy if cache is None else dropout_backward(dy, cache)

    def twin(self):
        twin = super().twin()
        twin._call = DeviceScalar()
        return twin

    def __repr__(self):
        return f"Dropout({self.p})"


class ChannelAffine(Layer):
    """y = scale·x + shift, channel by channel, for x (N, C, H, W) and C fixed numbers each: nothing is learnt.

    It takes images from one preprocessing to another, in front of a network that was trained with the other.
    """

    def __init__(self, scale, shift):
        self.scale, self.shift = tuple(scale), tuple(shift)
        if len(self.scale) != len(self.shift) or not self.scale:
            counts = f"{len(self.scale)} and {len(self.shift)}"
            raise BadInput(f"ChannelAffine: scale and shift have {counts} numbers: should be one a channel each")
        for what, values in {"scale": self.scale, "shift": self.shift}.items():
            for value in values:
                check_range(f"ChannelAffine: {what}", value, -math.inf, math.inf)
        self.scale, self.shift = tuple(map(float, scale)), tuple(map(float, shift))

    def _forward(self, x, train):
        check_array("ChannelAffine", "x", x, halves=True)
        if x.ndim != 4 or x.shape[1] != len(self.scale):
            raise ValueError(f"ChannelAffine takes (N, {len(self.scale)}, H, W), got {x.shape}")
        return x * self._per_channel(self.scale, x) + self._per_channel(self.shift, x), (x.shape, x.dtype)

    def _backward(self, dy, cache, need_dx):
        check_gradient("ChannelAffine.backward", dy, *cache)
        return dy * self._per_channel(self.scale, dy)

    @staticmethod
    def _per_channel(values: tuple, x):
        return constant_on(x, np.asarray(values, x.dtype))[:, None, None]

    def __repr__(self):
        return f"ChannelAffine({self.scale}, {self.shift})"


class LocalResponseNorm(Layer):
    """Each value divided by a power of its neighbours' energy across channels; see `ops.lrn`."""

    def __init__(self, size=5, alpha=1e-4, beta=0.75, k=1.0):
        check_lrn("LocalResponseNorm", size, alpha, beta, k)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def _forward(self, x, train):
        return lrn_forward(x, self.size, self.alpha, self.beta, self.k)

    def _backward(self, dy, cache, need_dx):
        return lrn_backward(dy, cache)

    def __repr__(self):
        return f"LocalResponseNorm({self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k})"


class Flatten(Layer):
    """(N, C, H, W) → (N, C·H·W)."""

    def _forward(self, x, train):
        return flatten_forward(x)

    def _backward(self, dy, cache, need_dx):
        return flatten_backward(dy, cache)

    def output_shape(self, shape):
        return shape[0], math.prod(shape[1:])
