"""Rules for what no gradient can show: forward and backward that agree with one another, and not with the definition.

Each is run with a bug planted and says what it sees, or "" if all is well. They look functions up where minivgg holds
them: what the zoo holds are the originals.
"""

import numpy as np

from minivgg.layers import BatchNorm2d, Dropout
from minivgg.ops import avgpool, batchnorm, dropout, lrn, maxpool


def the_first_of_equals_wins(rng) -> str:
    """Of a window of equal values, the first gets the gradient."""
    dy = rng.standard_normal((1, 1, 1, 1))
    _, cache = maxpool.maxpool2d_forward(np.ones((1, 1, 2, 2)), 2)
    dx = maxpool.maxpool2d_backward(dy, cache)
    return "" if dx[0, 0, 0, 0] == dy else f"the gradient of a tie went to place {np.flatnonzero(dx)[0]}"


def running_averages_approach_the_batch(rng) -> str:
    """After one batch with momentum 0.1, a tenth of the way from what was there to mean and unbiased variance."""
    x, mean, var = 5 + rng.standard_normal((4, 2)), np.zeros(2), np.ones(2)
    _, cache = batchnorm.batchnorm_forward(x, np.ones(2), np.zeros(2))
    new = batchnorm.running_average(mean, var, cache)
    expected = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * var + 0.1 * x.var(axis=0, ddof=1)
    return "" if np.allclose(new, expected) else f"running averages are {np.round(new, 4).tolist()}"


def dropout_keeps_the_mean(rng) -> str:
    """The mean over many ones is one, to five standard deviations."""
    y, _ = dropout.dropout_forward(np.ones(10_000), 0.4, seed=int(rng.integers(2**32)))
    return "" if abs(y.mean() - 1) < 5 * np.sqrt(0.4 / 0.6 / y.size) else f"the mean has become {y.mean():.3f}"


def nothing_is_dropped_at_test_time(rng) -> str:
    """Dropout with train=False hands on what it gets."""
    y = Dropout(0.4).forward(np.ones(100))
    return "" if y.all() else f"{np.sum(y == 0)} of {y.size} values were dropped"


def samples_stand_alone_at_test_time(rng) -> str:
    """Batch norm with train=False gives a sample the same answer in whatever company it comes."""
    x, norm = rng.standard_normal((4, 3)), BatchNorm2d(3, dtype=np.float64)
    return "" if np.allclose(norm.forward(x)[:1], norm.forward(x[:1].repeat(4, 0))[:1]) else "company changes a sample"


def adaptive_windows_cover_all(rng) -> str:
    """Means of ⌊i·H/OH⌋ to ⌈(i + 1)·H/OH⌉."""
    x = rng.standard_normal((1, 1, 5, 1))
    y, _ = avgpool.adaptive_avgpool2d_forward(x, (2, 1))
    expected = [x[0, 0, :3].mean(), x[0, 0, 2:].mean()]
    return "" if np.allclose(y.ravel(), expected) else f"means are {y.ravel().round(4)}, not {np.round(expected, 4)}"


def lrn_divides_alpha_by_size(rng) -> str:
    """Where all x are one and k = 1: y = (1 + alpha)^−beta in the middle channel."""
    y, _ = lrn.lrn_forward(np.ones((1, 3, 1, 1)), 3, 1.0, 0.5)
    return "" if np.isclose(y[0, 1, 0, 0], 2**-0.5) else f"y is {y[0, 1, 0, 0]:.4f}, not 2^−0.5"
