"""Bugs of batch normalisation and of local response normalisation, whose backwards have many terms to forget."""

import numpy as np

from minivgg.gradcheck.zoo import oracles
from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import AT_TEST_TIME, BATCHNORM, EVEN_LRN, GIVEN, LRN
from minivgg.ops.batchnorm import (
    _block_gradients,
    _moments,
    batchnorm_backward,
    batchnorm_forward,
    running_average,
)
from minivgg.ops.lrn import lrn_backward, lrn_forward

PIXELS = 0, 2, 3


def channels(v):
    """(C,) → (C, 1, 1), to meet (N, C, H, W)."""
    return v[:, None, None]


def normalised(cache, eps=None):
    """x̂ and 1 / √(var + eps) of a batch norm's cache."""
    istd = 1 / np.sqrt(cache.var + (cache.eps if eps is None else eps))
    return (cache.x - channels(cache.mean)) * channels(istd), istd


def input_gradient(dy, cache, mean=1, variance=1, over=PIXELS, eps=None):
    """dx with so much of the term that goes through the mean, and of that through the variance."""
    xhat, istd = normalised(cache, eps)
    through_mean = dy.mean(axis=over, keepdims=True)
    through_variance = xhat * (dy * xhat).mean(axis=over, keepdims=True)
    return channels(cache.weight * istd) * (dy - mean * through_mean - variance * through_variance)


# ---- Batch norm ----


@bug(batchnorm_backward, BATCHNORM, "x: what goes through the mean of each channel is missing, or wrong")
def batchnorm_mean_forgotten(dy, cache):
    """dx without ⟨dy⟩, as if the mean did not depend on x."""
    return input_gradient(dy, cache, mean=0), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "x: what goes through the variance of each channel is missing, or wrong")
def batchnorm_variance_forgotten(dy, cache):
    """dx without x̂·⟨dy·x̂⟩, as if the variance did not depend on x."""
    return input_gradient(dy, cache, variance=0), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "x: what goes through the mean and variance of each channel is missing, or wrong")
def batchnorm_statistics_as_constants(dy, cache):
    """dx = γ·dy / σ, which is right at test time, in training."""
    return input_gradient(dy, cache, mean=0, variance=0), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "x: what goes through the mean and variance of each channel is missing, or wrong")
def batchnorm_n_minus_one_in_backward(dy, cache):
    """Backward divides its sums by N − 1, as for the running variance; forward's statistics are over N."""
    N = cache.count
    return input_gradient(dy, cache, N / (N - 1), N / (N - 1)), *batchnorm_backward(dy, cache)[1:]


@bug(_moments, BATCHNORM, "x: what goes through the variance of each channel is missing, or wrong")
def batchnorm_n_minus_one_in_forward(rows):
    """Forward divides by N − 1; backward is that of a division by N."""
    mean, var = _moments(rows)
    return mean, var * len(rows) / (len(rows) - 1)


@bug(batchnorm_backward, BATCHNORM, "x: a missing factor weight")
def batchnorm_gamma_forgotten(dy, cache):
    """dx without γ, which shows only once γ is no longer one."""
    return input_gradient(dy, cache._replace(weight=np.ones_like(cache.weight))), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "x: a factor for each channel")
def batchnorm_sigma_squared(dy, cache):
    """dx divided by the variance for the standard deviation."""
    dx, dweight, dbias = batchnorm_backward(dy, cache)
    return dx * channels(normalised(cache)[1]), dweight, dbias


@bug(batchnorm_backward, BATCHNORM, "WRONG")
def batchnorm_eps_forgotten(dy, cache):
    """Backward divides by √var for √(var + 10⁻⁵): wrong by a few parts in a million."""
    return input_gradient(dy, cache, eps=0), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "x: none of the known patterns")
def batchnorm_statistics_by_sample(dy, cache):
    """Backward takes its means over each image, as instance norm does; forward over the batch."""
    return input_gradient(dy, cache, over=(2, 3)), *batchnorm_backward(dy, cache)[1:]


@bug(batchnorm_backward, BATCHNORM, "weight: none of the known patterns")
def batchnorm_dgamma_of_x(dy, cache):
    """γ's gradient is Σ dy·x for Σ dy·x̂."""
    dx, _, dbias = batchnorm_backward(dy, cache)
    return dx, (dy * cache.x).sum(axis=PIXELS), dbias


@bug(batchnorm_backward, BATCHNORM, "bias: not summed over dimension 0: the gradient is (2, 3), the argument (3,)")
def batchnorm_dbeta_by_sample(dy, cache):
    """β's gradient is summed over pixels and not over the batch."""
    return *batchnorm_backward(dy, cache)[:2], dy.sum(axis=(2, 3))


@bug(batchnorm_backward, BATCHNORM, "the last channel (2 of 0 to 2)")
def batchnorm_last_channel_lost(dy, cache):
    """Channels go in pairs, and the odd one is left out: it has no gradient at all."""
    gradients = batchnorm_backward(dy, cache)
    gradients[0][:, -1] = 0
    return gradients


@bug(_block_gradients, BATCHNORM, "x: what goes through the mean and variance of each channel is missing, or wrong")
def batchnorm_last_block_lost(dy, block, x, mean, istd, dy_sums, dy_xhat_sums):
    """Sums are taken in blocks of 16 pixels, and what is left over at the end is dropped."""
    whole = len(dy) // 16 * 16
    _block_gradients(dy[:whole], block, x[:whole], mean, istd, dy_sums, dy_xhat_sums)


@bug(batchnorm_backward, GIVEN, "x: a batch leak")
def batchnorm_given_statistics_as_the_batchs(dy, cache):
    """Backward subtracts ⟨dy⟩ and x̂·⟨dy·x̂⟩ also where the statistics were given and are constants."""
    return batchnorm_backward(dy, cache._replace(from_batch=True))


@bug(running_average, BATCHNORM, "running averages are", rule=oracles.running_averages_approach_the_batch)
def batchnorm_running_average_reversed(mean, var, cache, momentum=0.1):
    """momentum·old + (1 − momentum)·batch: ten times as forgetful as meant. No gradient sees it."""
    return running_average(mean, var, cache, 1 - momentum)


@bug(running_average, BATCHNORM, "running averages", rule=oracles.running_averages_approach_the_batch)
def batchnorm_running_variance_biased(mean, var, cache, momentum=0.1):
    """The running variance is that over N: too small for small batches. No gradient sees it."""
    return running_average(mean, var, cache._replace(var=cache.var * (cache.count - 1) / cache.count), momentum)


@bug(batchnorm_forward, AT_TEST_TIME, "company changes a sample", rule=oracles.samples_stand_alone_at_test_time)
def batchnorm_batch_statistics_at_test_time(x, weight, bias, *, mean=None, var=None, eps=1e-5):
    """The running averages are ignored at test time. Forward and backward agree, so that no gradient sees it."""
    return batchnorm_forward(x, weight, bias, eps=eps)


# ---- Local response normalisation ----


def band(C, size, shift=0):
    """B[c, i] = 1 where channel i is in the window of c."""
    distance = np.arange(C) - np.arange(C)[:, None] + size // 2 + shift
    return ((distance >= 0) & (distance < size)).astype(float)


def lrn_gradient(dy, cache, factor=2.0, exponent=-1, through=lambda B: B.T):
    """dy·s^−beta − factor·alpha·beta/size · x · Σ dy·x·s^(−beta − 1), the sum over windows that hold the channel."""
    x, size, alpha, beta, k = cache
    B = band(x.shape[1], size)
    s = k + alpha / size * np.einsum("ci,nihw->nchw", B, x * x)
    handed_on = np.einsum("ci,nihw->nchw", through(B), dy * x * s ** (exponent - beta))
    return dy * s**-beta - factor * alpha * beta / size * x * handed_on


@bug(lrn_backward, LRN, "x: none of the known patterns")
def lrn_cross_term_missing(dy, cache):
    """dy·s^−beta alone, as if the neighbours' energy were constant."""
    return lrn_gradient(dy, cache, factor=0)


@bug(lrn_backward, LRN, "x: none of the known patterns")
def lrn_factor_two_missing(dy, cache):
    """The derivative of x² without its 2."""
    return lrn_gradient(dy, cache, factor=1)


@bug(lrn_backward, LRN, "x: none of the known patterns")
def lrn_exponent_off_by_one(dy, cache):
    """s^−beta in the cross term, for s^(−beta − 1)."""
    return lrn_gradient(dy, cache, exponent=0)


@bug(lrn_backward, LRN, "x: none of the known patterns")
def lrn_alpha_not_divided(dy, cache):
    """alpha for alpha / size in the cross term, as in the paper's convention."""
    return lrn_gradient(dy, cache, factor=2 * cache.size)


@bug(lrn_backward, LRN, "x: wrong only in the first channels (0 to 4 of 0 to 6)")
def lrn_window_one_short(dy, cache):
    """The cross term's window ends one channel early."""
    return lrn_gradient(dy, cache, through=lambda B: B.T * (1 - np.eye(len(B), k=cache.size // 2)))


@bug(lrn_backward, EVEN_LRN, "x: none of the known patterns")
def lrn_window_not_mirrored(dy, cache):
    """The cross term takes a channel's window for the windows that hold it: the same if size is odd, but not here."""
    return lrn_gradient(dy, cache, through=lambda B: B)


@bug(lrn_backward, LRN, "x: none of the known patterns")
def lrn_own_channel_only(dy, cache):
    """The cross term leaves out the neighbours: the derivative of a normalisation by x itself."""
    return lrn_gradient(dy, cache, through=lambda B: np.eye(len(B)))


@bug(lrn_forward, LRN, "y is 0.5000, not 2^−0.5", rule=oracles.lrn_divides_alpha_by_size)
def lrn_alpha_not_divided_at_all(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    """The paper's alpha for PyTorch's, forward and backward: they agree, and differ from everybody else's."""
    return lrn_forward(x, size, alpha * size, beta, k)
