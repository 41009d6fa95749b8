"""What the exercises on using a network can be held to; see `checks` and `checks_of_networks`."""

from collections.abc import Callable

import numpy as np

from minivgg.exercises.checks import result_of
from minivgg.exercises.checks_of_networks import _agree
from minivgg.testing import Report
from minivgg.testing.report import Broken

# Worked by hand: the gradients' means are 1 and −2, the weighted sum is [[−3, 5], [−2, 1]]
TWO_MAPS = np.array([[[1.0, 5.0], [0.0, 3.0]], [[2.0, 0.0], [1.0, 1.0]]])
THEIR_GRADIENTS = np.array([[[3.0, 2.0], [-1.0, 0.0]], [[-2.0, -4.0], [0.0, -2.0]]])


def grad_cam(function: Callable) -> Report:
    """grad_cam(maps, gradients) → (H, W): max(0, Σ α_k A_k), α_k the mean of map k's gradient."""

    def trial(maps: np.ndarray, gradients: np.ndarray):
        before = maps.copy(), gradients.copy()
        found = np.asarray(function(maps, gradients))
        if not (np.array_equal(maps, before[0]) and np.array_equal(gradients, before[1])):
            raise Broken("maps and gradients as they were", "they have been written to")
        _same_shape(found, maps.shape[1:], "one number for each place, (H, W)")
        _agree(found, _cam(maps, gradients.mean(axis=(1, 2))), _wrong_cams(maps, gradients), rtol=1e-9)

    rng = np.random.default_rng(0)
    trials = [("the two maps of 2×2 of the notebook", lambda: trial(TWO_MAPS.copy(), THEIR_GRADIENTS.copy()))]
    for shape in (3, 3, 3), (5, 2, 4), (1, 3, 1):
        maps, gradients = np.maximum(rng.standard_normal(shape), 0), rng.standard_normal(shape)
        trials.append((f"maps and gradients {shape}", lambda m=maps, g=gradients: trial(m, g)))
    trials.append(("maps that all speak against the class", lambda: trial(TWO_MAPS.copy(), -np.ones((2, 2, 2)))))
    advice = (
        "One weight for each map: the mean of its gradient over all its places. The maps times their weights, added "
        "up over the maps; and of that sum what is positive."
    )
    return Report("grad_cam", [result_of("what speaks for the class, and where", advice, trials)])


def _cam(maps: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.maximum(np.tensordot(alpha, maps, axes=1), 0)


def _wrong_cams(maps: np.ndarray, gradients: np.ndarray) -> dict[str, np.ndarray]:
    """What it would be by each well-known mistake."""
    K, H, W = maps.shape
    alpha = gradients.mean(axis=(1, 2))
    signed = np.tensordot(alpha, maps, axes=1)
    right = np.maximum(signed, 0)
    before_the_sum = np.maximum(alpha[:, None, None] * maps, 0).sum(axis=0)
    wrong = {
        "the ReLU is missing: what is below zero speaks against the class": signed,
        "the gradients are added up, not averaged: a weight would grow with the map": H * W * right,
        "the ReLU stands before the sum: what speaks against the class must be subtracted first": before_the_sum,
        "the ReLU is on the gradients; their mean needs both signs": _cam(
            maps, np.maximum(gradients, 0).mean(axis=(1, 2))
        ),
        "the size of each weight without its sign": _cam(maps, np.abs(alpha)),
        "the size of the sum without its sign; a ReLU gives 0 where it is negative": np.abs(signed),
        "every map weighs the same: the gradients are left out": _cam(maps, np.ones(K)),
        "gradient times map place by place; a map has one weight, the mean of its gradient": np.maximum(
            (gradients * maps).sum(axis=0), 0
        ),
        "the gradients are averaged over the maps; the mean is over the places of each map": np.maximum(
            gradients.mean(axis=0) * maps.sum(axis=0), 0
        ),
        "scaled so that its largest value is 1; that is for the picture, later": right / (right.max() or 1),
        "averaged over the maps, not added up": right / K,
        "that is the weighted sum of the gradients; the maps are to be added up": _cam(gradients, alpha),
    }
    for axes, length in (((0, 1), W), ((0, 2), H)):
        if length == K:
            why = "one weight for each row or column of places; there should be one for each map, over axes (1, 2)"
            wrong.setdefault(why, _cam(maps, gradients.mean(axis=axes)))
    return wrong


def slides(function: Callable) -> Report:
    """slide(x, w, b, height, width) → (N, O, h, w): the linear layer's answer at every place of a larger map."""

    def trial(x_shape: tuple, O: int, height: int, width: int):
        rng = np.random.default_rng(0)
        x = rng.integers(-4, 5, x_shape).astype(np.float64)
        w = rng.integers(-4, 5, (O, x_shape[1] * height * width)).astype(np.float64)
        b = np.arange(1.0, O + 1)
        before = x.copy(), w.copy(), b.copy()
        found = np.asarray(function(x, w, b, height, width))
        if not all(map(np.array_equal, (x, w, b), before)):
            raise Broken("x, w and b as they were", "they have been written to")
        expected = _linear_at_each_place(x, w, b, height, width)
        _same_shape(found, expected.shape, "a score for each output and each place, (N, O, H − height + 1, …)")
        _agree(found, expected, _wrong_slides(x, w, b, height, width), rtol=1e-9)

    cases = [
        ((1, 2, 2, 2), 1, 2, 2),  # no room to slide: one answer, the linear layer's
        ((1, 2, 2, 3), 2, 2, 3),
        ((1, 2, 3, 4), 1, 2, 3),
        ((2, 3, 5, 4), 4, 2, 2),
        ((2, 5, 3, 2), 3, 1, 1),
    ]
    on = "x {}, w for {} outputs from maps of {}×{}"
    advice = (
        "Flatten puts channel after channel, in each row after row: a row of w, in the shape (C, height, width), is a "
        "filter, and as such it meets every window of x, unturned."
    )
    trials = [(on.format(*case), lambda case=case: trial(*case)) for case in cases]
    return Report("slide", [result_of("at each place, what the linear layer says", advice, trials)])


def _linear_at_each_place(x, w, b, height: int, width: int) -> np.ndarray:
    """The definition: cut a window, flatten it, ask the linear layer; for each window."""
    N, _, H, W = x.shape
    y = np.empty((N, len(w), H - height + 1, W - width + 1))
    for i, j in np.ndindex(y.shape[2:]):
        y[:, :, i, j] = x[:, :, i : i + height, j : j + width].reshape(N, -1) @ w.T + b
    return y


def _wrong_slides(x, w, b, height: int, width: int) -> dict[str, np.ndarray]:
    O, C = len(w), x.shape[1]

    def by(filters: np.ndarray) -> np.ndarray:
        return _linear_at_each_place(x, filters.reshape(O, -1), b, height, width)

    filters = w.reshape(O, C, height, width)
    return {
        "the bias is missing": by(filters) - b[:, None, None],
        "w is read with its channels last (Keras's order); Flatten of (C, H, W) puts channel after channel": by(
            w.reshape(O, height, width, C).transpose(0, 3, 1, 2)
        ),
        "rows and columns of each filter are exchanged": by(w.reshape(O, C, width, height).swapaxes(2, 3)),
        "the filters are turned by 180°: scipy.signal.convolve does so, a network's convolution does not": by(
            filters[:, :, ::-1, ::-1]
        ),
        "w is read as (inputs, outputs); its rows are outputs": by(w.reshape(-1, O).T.copy()),
        "the mean over each window is due nowhere: the products are added up": (by(filters) - b[:, None, None])
        / (height * width)
        + b[:, None, None],
    }


def _same_shape(found: np.ndarray, shape: tuple, what: str) -> None:
    if found.shape != shape:
        raise Broken(f"{what}: {shape}", f"shape {found.shape}")
