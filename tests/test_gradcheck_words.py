"""What a gradient check says: "right" only where all is right, and of a product, which factor is wrong."""

import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm

from minivgg.gradcheck import check

X = np.random.default_rng(2).standard_normal((3, 4))
B = np.random.default_rng(3).standard_normal((3, 4))


def title(report):
    return str(report).splitlines()[0]


# ---- The first line ----


def swish(a):
    s = 1 / (1 + np.exp(-a))
    return a * s, (a, s)


def swish_backward(dy, cache):
    a, s = cache
    return dy * (s + a * s * (1 - s))


def test_right_is_said_where_all_is_right():
    report = check((swish, swish_backward), X)
    assert title(report).startswith("swish: the gradient is right (")
    assert report and not check((swish, lambda dy, cache: dy), X)


def test_wrong_slopes_and_broken_invariants():
    def backward(dy, cache):
        gradient = 2 * swish_backward(dy, cache)
        cache[0][...] = 7
        return gradient

    report = check((swish, backward), X)
    assert title(report).startswith("swish: the gradient is WRONG, and 2 invariants do not hold (")
    assert "but" not in title(report)


def test_right_slopes_and_a_broken_invariant():
    def backward(dy, cache):
        gradient = swish_backward(dy, cache)
        dy += 1
        return gradient

    report = check((swish, backward), X)
    assert all(row.ok for row in report.rows)
    assert title(report).startswith("swish: NOT right: the slopes agree, but 1 invariant does not hold (")


def dropped(a):
    mask = np.random.random(a.shape) < 0.9  # noqa: NPY002  (nobody can seed this)
    return a * mask, mask


def noisy(a):
    return a + np.random.random(a.shape), None  # noqa: NPY002


class Unseeded:
    def forward(self, a):
        self.mask = np.random.default_rng().random(a.shape) < 0.5
        return a * self.mask

    def backward(self, dy):
        return dy * self.mask


@pytest.mark.parametrize(
    "target",
    [
        (dropped, lambda dy, mask: dy * mask),
        (noisy, lambda dy, _: dy),
        (np.sin, lambda dy, x: dy * np.cos(x) * (1 + 1e-9 * np.random.random())),  # noqa: NPY002
        Unseeded,
    ],
    ids=["an unseeded mask", "unseeded noise", "noise in backward", "an object"],
)
def test_nothing_is_said_of_what_differs_from_run_to_run(target):
    for seed in range(4):
        report = check(target, X, seed=seed)
        assert "the gradient cannot be judged, since two runs on the same arguments differ" in title(report)
        assert "seed their generator" in report.diagnosis[0]
        assert report.rows == [] and not report.ok


# ---- Products and curves ----


def gelu(a):
    return a * norm.cdf(a), a


def elu(a):
    return np.where(a > 0, a, np.expm1(a)), a


TERM = "a: a term with a factor a is wrong, the rest is right"
CURVES = [
    (swish, lambda dy, c: dy * (c[1] + c[0] * c[1]), TERM),  # the second factor is s, and not s·(1 − s)
    (swish, lambda dy, c: dy * (c[1] + c[0] * c[1] * (1 + c[1])), TERM),
    (swish, lambda dy, c: dy * c[1], TERM),  # only the first term of the product rule
    (gelu, lambda dy, a: dy * (norm.cdf(a) + a * norm.cdf(a)), TERM),
    (gelu, lambda dy, a: dy * (norm.cdf(a) + a * norm.pdf(a) ** 2), TERM),
    (gelu, lambda dy, a: dy * (erf(a) + a * norm.pdf(a)), "a: the error in dy/da, a function of each a alone, is -1.0"),
    (elu, lambda dy, a: dy * np.where(a > 0, 1, np.exp(2 * a)), "a: right for a > 0, wrong on the other side"),
    (elu, lambda dy, a: dy * np.where(a > 0, 1 + a, np.exp(a)), "a: right for a < 0, wrong on the other side"),
]


@pytest.mark.parametrize(("forward", "backward", "says"), CURVES, ids=range(len(CURVES)))
def test_how_the_error_goes_with_the_argument(forward, backward, says):
    report = check((forward, backward), X)
    assert not report.ok
    assert report.diagnosis[0].startswith(says), report


def test_the_error_is_told_in_numbers():
    """s·(1 − s) taken for s: at a the error is a·s², which is 0 at 0."""
    (sentence,) = check((swish, lambda dy, c: dy * (c[1] + c[0] * c[1])), X).diagnosis
    told = [part.split(" at ") for part in sentence.rpartition(" is ")[2].split(", ")]
    assert len(told) == 5
    for error, a in ((float(error), float(a)) for error, a in told):
        assert error == pytest.approx(a / (1 + np.exp(-a)) ** 2, rel=2e-2)


PRODUCTS = [
    (lambda dy, c: (dy * c[1], dy * c[1]), "b: a factor b where a should be"),
    (lambda dy, c: (dy * c[0], dy * c[0]), "a: a factor a where b should be"),
    (lambda dy, c: (dy * c[1], dy * c[0] * c[1]), "b: a factor b too many"),
    (lambda dy, c: (dy, dy * c[0]), "a: backward hands on dy as it is"),
]


@pytest.mark.parametrize(("backward", "says"), PRODUCTS, ids=range(len(PRODUCTS)))
def test_a_product_of_two_arguments(backward, says):
    report = check((lambda a, b: (a * b, (a, b)), backward), X, B)
    assert report.diagnosis == [says], report


def test_a_place_stays_a_place():
    """An error in one corner of a curve's gradient is no error of the curve."""

    def backward(dy, cache):
        gradient = swish_backward(dy, cache)
        gradient[-1] = 0
        return gradient

    assert check((swish, backward), X).diagnosis[0].startswith("a: wrong only in the last sample")
