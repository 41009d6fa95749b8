"""Bugs of layers and of layers made of layers: caches, accumulation, order."""

import numpy as np

from minivgg.backends.array import nchw, nhwc
from minivgg.gradcheck.zoo import oracles
from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import BRANCHES, CONV_LAYER, DROPOUT_LAYER, LINEAR_LAYER, NETWORK, STACK
from minivgg.layers import Concat, Conv2d, Dropout, Layer, Linear, MaxPool2d, Param, Sequential
from minivgg.ops.dropout import dropout_forward


@bug(Param.accumulate, LINEAR_LAYER, "the gradient of weight is overwritten: it must accumulate")
def param_overwrites(self, grad):
    """= for +=: a parameter that is used twice, or a batch that comes in two halves, loses half of its gradient."""
    self.grad = grad


@bug(Param.accumulate, LINEAR_LAYER, "weight is (3, 4) float64, its gradient (3, 4) float32")
def param_gradient_in_float32(self, grad):
    """Gradients are kept in float32 whatever the parameters are."""
    self.grad = grad.astype(np.float32) + (0 if self.grad is None else self.grad)


_accumulate = Param.accumulate


@bug(Param.accumulate, CONV_LAYER, "weight: a constant factor, 2 times too large")
def param_added_twice(self, grad):
    """Every gradient is added twice: by the layer, and by what it calls."""
    _accumulate(self, grad)
    _accumulate(self, grad)


_forward = Layer.forward


@bug(Layer.forward, CONV_LAYER, "weight: a stale cache: this is the gradient for the arguments of an earlier call")
def layer_cache_stale(self, x, train=False, *, keep=None):
    """The cache is filled once, by the first forward, and never again."""
    y = _forward(self, x, train, keep=keep)
    self._cache = self.__dict__.setdefault("_first_cache", self._cache)
    return y


_conv2d_backward = Conv2d._backward


@bug(Conv2d._backward, CONV_LAYER, "bias: backward leaves no gradient")
def conv_layer_bias_forgotten(self, dy, cache, need_dx):
    """The layer accumulates the filters' gradient and not the bias's."""
    dx = _conv2d_backward(self, dy, cache, need_dx)
    self.bias.grad = None
    return dx


_linear_backward = Linear._backward


@bug(Linear._backward, LINEAR_LAYER, "backward of 2·dy − 3·dy′ is not 2 and −3 times")
def linear_layer_updates_before_dx(self, dy, cache, need_dx):
    """The layer takes a step down its gradient before it computes dx with the weights."""
    _linear_backward(self, dy, cache, need_dx)
    return dy @ (self.weight.data - 0.1 * self.weight.grad)


@bug(Dropout._forward, DROPOUT_LAYER, "values were dropped", rule=oracles.nothing_is_dropped_at_test_time)
def dropout_layer_drops_at_test_time(self, x, train):
    """The layer ignores `train`. Forward and backward agree, so that no gradient sees it."""
    return dropout_forward(x, self.p, seed=self.seed, call=self.calls)


@bug(MaxPool2d._backward, NETWORK, "the first wrong one on the way back is that of 1.bias")
def maxpool_layer_copies(self, dy, cache, need_dx):
    """In a network: the gradient is copied to all of the window. Everything before the pool is wrong because of it."""
    return dy.repeat(cache.kernel[0], axis=2).repeat(cache.kernel[1], axis=3)


# ---- Sequential ----


@bug(Sequential.backward, STACK, "gradients are wrong from the very end")
def sequential_not_reversed(self, dy, *, need_dx=True):
    """Backward runs from the first layer to the last."""
    for layer in self:
        dy = layer.backward(dy)
    return dy


@bug(Sequential.backward, STACK, "gradients are right from 2.weight on to the end")
def sequential_skips_the_activation(self, dy, *, need_dx=True):
    """Backward goes through the layers that have parameters, and past the others."""
    for layer in reversed(list(self)):
        dy = layer.backward(dy) if layer.named_params() else dy
    return dy


_sequential_backward = Sequential.backward


@bug(Sequential.backward, STACK, "x: backward hands on dy")
def sequential_forgets_its_dx(self, dy, *, need_dx=True):
    """All parameters are right, and what is handed on is dy as it came in."""
    _sequential_backward(self, dy)
    return dy


# ---- Concat ----


@bug(Concat.backward, BRANCHES, "gradients are wrong from the very end")
def concat_parts_swapped(self, dy, *, need_dx=True):
    """The upstream gradient's parts go to the branches in the wrong order: it fits where they are equally wide."""
    parts = np.split(dy, self._splits, axis=1)[::-1]
    return sum(branch.backward(part) for branch, part in zip(self, parts, strict=True))


@bug(Concat.backward, BRANCHES, "gradients are right from 0.weight on to the end")
def concat_dx_of_the_last_branch(self, dy, *, need_dx=True):
    """dx is that of the last branch, not the sum over all."""
    parts = np.split(dy, self._splits, axis=1)
    return [branch.backward(part) for branch, part in zip(self, parts, strict=True)][-1]


@bug(Concat.backward, BRANCHES, "a constant factor, 2 times too small")
def concat_dx_averaged(self, dy, *, need_dx=True):
    """dx is the mean over branches, not their sum."""
    parts = np.split(dy, self._splits, axis=1)
    return sum(branch.backward(part) for branch, part in zip(self, parts, strict=True)) / len(self)


@bug(Concat.forward, BRANCHES, "gradients are wrong from the very end")
def concat_joined_the_wrong_way_round(self, x, train=False, *, keep=None):
    """Forward joins the branches in another order than the one in which backward takes them apart."""
    ys = [branch.forward(x, train, keep=keep) for branch in self][::-1]
    self._splits = np.cumsum([y.shape[1] for y in ys])[:-1]
    return nchw(np.concatenate([nhwc(y) for y in ys], axis=3))
