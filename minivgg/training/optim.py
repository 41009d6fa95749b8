"""Optimisers: one fused pass over each parameter, its gradient and its state.

Weight decay is added to the gradient (L2, as in the paper) of weights alone: biases and batch norm's vectors go free.
"""

import math
from collections.abc import Callable

import numpy as np

from minivgg.backends import cuda
from minivgg.backends.array import device_of, memory_run, on_gpu, to, xp_of
from minivgg.backends.graph import DeviceScalar, between
from minivgg.backends.jit import kernel, prange
from minivgg.errors import BadInput, check_range
from minivgg.layers import Param
from minivgg.training.config import check_setting


@cuda.twin("training/optim.cu", "sgd")
@kernel
def _sgd(w, g, v, lr, momentum, decay):
    for i in prange(w.size):
        v[i] = momentum * v[i] + (g[i] + decay * w[i])
        w[i] -= lr * v[i]


@cuda.twin("training/optim.cu", "adam")
@kernel
def _adam(w, g, m, v, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, decay):
    for i in prange(w.size):
        gradient = g[i] + decay * w[i]
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        w[i] -= lr * (m[i] / correction1) / (np.sqrt(v[i] / correction2) + eps)


@kernel
def _square_sums(g, unit, sums):
    for part in prange(sums.size):
        a = b = c = d = 0.0  # four sums, which need not wait for one another
        begin, end = part * _PART, min((part + 1) * _PART, g.size)
        for i in range(begin, end - 3, 4):
            a += (g[i] / unit) ** 2
            b += (g[i + 1] / unit) ** 2
            c += (g[i + 2] / unit) ** 2
            d += (g[i + 3] / unit) ** 2
        for i in range(end - (end - begin) % 4, end):
            a += (g[i] / unit) ** 2
        sums[part] = (a + b) + (c + d)


@kernel
def _scale(g, factor):
    for i in prange(g.size):
        g[i] *= factor


class Optimizer:
    """Steps parameters (name → `Param`) down their gradients. State arrays are named `<slot>.<parameter>`, and live
    where the parameters do when it is made: move a network first (`Layer.to`)."""

    slots: tuple[str, ...] = ()

    def __init__(self, params: dict[str, Param], weight_decay: float = 0.0):
        check_setting("weight_decay", weight_decay, f"{type(self).__name__}: ")
        self.params, self.weight_decay, self.steps = params, weight_decay, 0
        self._lr = DeviceScalar()
        self.state = {
            f"{slot}.{name}": xp_of(p.data).zeros_like(p.data) for slot in self.slots for name, p in params.items()
        }

    def step(self, lr: float | Callable[[], float]) -> None:
        """One update with learning rate `lr`, in place. Parameters without a gradient stay as they are.

        Where steps are recorded (`backends.graph`), `lr` may be a function, which is asked in each replay. Raises
        BadInput for a rate that is negative or no number.
        """
        between(lambda: self._begin(lr() if callable(lr) else lr))
        for name, p in self.params.items():
            if p.grad is not None:
                state = [memory_run(self.state[f"{slot}.{name}"]) for slot in self.slots]
                decay = self.weight_decay if p.data.ndim > 1 else 0.0
                self._update(memory_run(p.data), memory_run(p.grad), state, self._lr.of(p.data), decay)

    def _begin(self, lr: float) -> None:
        check_setting("lr", lr, f"{type(self).__name__}: ")
        self.steps += 1
        self._lr.set(lr)

    def load_state(self, state: dict[str, np.ndarray], steps: int) -> None:
        """Go on from a saved `state` and count of steps. Raises ValueError where names or shapes differ."""
        if state.keys() != self.state.keys() or any(state[k].shape != v.shape for k, v in self.state.items()):
            raise ValueError(f"{type(self).__name__}: the saved state belongs to another network or optimiser")
        for name, value in self.state.items():
            value[...] = to(state[name], device_of(value))
        self.steps = steps


class SGD(Optimizer):
    """v ← momentum·v + (g + decay·w);  w ← w − lr·v. Simonyan & Zisserman 2015, §3.1: momentum 0.9, decay 5e-4."""

    slots = ("momentum",)

    def __init__(self, params, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, weight_decay)
        check_setting("momentum", momentum, "SGD: ")
        self.momentum = momentum

    def _update(self, w, g, state, lr, decay):
        _sgd(w, g, *state, lr, *map(w.dtype.type, (self.momentum, decay)))


class Adam(Optimizer):
    """Adam with bias correction. Kingma & Ba 2015, algorithm 1."""

    slots = ("m", "v")

    def __init__(self, params, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, weight_decay)
        if len(betas) != 2:
            raise BadInput(f"Adam: betas = {betas}: should be two numbers")
        for beta in betas:
            check_range("Adam: a beta", beta, 0, 1, high_open=True)
        check_range("Adam: eps", eps, 1e-37, 1e38)  # float32 has no smaller ones: they would be 0
        self.betas, self.eps = betas, eps
        self._corrections = [DeviceScalar() for _ in betas]

    def _begin(self, lr):
        super()._begin(lr)
        for correction, beta in zip(self._corrections, self.betas, strict=True):
            correction.set(1 - beta**self.steps)

    def _update(self, w, g, state, lr, decay):
        corrections, rests = [c.of(w) for c in self._corrections], [1 - beta for beta in self.betas]
        _adam(w, g, *state, lr, *corrections, *map(w.dtype.type, (*self.betas, *rests, self.eps, decay)))


def clip_gradients(params: dict[str, Param], max_norm: float):
    """Scale all gradients together so that their joint L2 norm is at most `max_norm`; returns the norm before that.

    The norm is a float; of gradients on a GPU, an array of one float64 that stays there, so that nobody waits for it.
    It is computed in float64, float64 gradients in units of the largest: neither large nor small ones are lost. Where a
    gradient is infinite or NaN, so is the norm, and all gradients stay as they are (no factor makes them right; a
    `Trainer` then says which it was). Raises BadInput unless `max_norm` is above 0. Pascanu, Mikolov, Bengio 2013,
    algorithm 1.
    """
    check_setting("max_norm", max_norm, "clip_gradients: ")
    gradients = [memory_run(p.grad) for p in params.values() if p.grad is not None]
    if any(map(on_gpu, gradients)):
        return _clip_on_gpu(gradients, max_norm)
    unit, squares = float(_unit(np, gradients)), 0.0
    for g in gradients:
        sums = np.empty(-(-g.size // _PART))
        _square_sums(g, unit, sums)
        squares += float(sums.sum())
    norm = unit * math.sqrt(squares)
    if max_norm < norm < math.inf:
        for g in gradients:
            _scale(g, max_norm / norm)
    return norm


_PART = 1 << 15  # gradients that are added up one after another: the same sums, whatever number of threads there is


def _unit(xp, gradients: list):
    """1, or the largest where some are float64, whose squares float64 may not hold."""
    if all(g.dtype == np.float32 for g in gradients):
        return 1.0
    unit = xp.stack([xp.abs(g).max() for g in gradients if g.size]).max()
    return xp.where((unit > 0) & xp.isfinite(unit), unit, 1.0)


_PARTS = 512  # at most, of a sum of squares: a few for every multiprocessor, and added up in no time


def _clip_on_gpu(gradients: list, max_norm: float):
    xp = xp_of(gradients[0])
    sums = xp.zeros((len(gradients), _PARTS), np.float64)
    unit = xp.zeros(1, np.float64) + _unit(xp, gradients)
    for g, parts in zip(gradients, sums, strict=True):
        blocks = min(_PARTS, -(-g.size // cuda.THREADS))
        arguments = (g, parts, unit, np.int64(g.size))
        cuda.kernel("training/optim.cu", "square_sums", T=g.dtype)(blocks, cuda.THREADS, *arguments)
    norm = unit * np.sqrt(sums.sum(keepdims=True)).reshape(1)
    for g in gradients:
        cuda.kernel("training/optim.cu", "clip", T=g.dtype).over(g.size, g, norm, np.float64(max_norm))
    return norm
