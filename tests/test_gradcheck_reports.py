"""The gradient check's options, steps and tolerances, and what its reports look like."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_gradcheck import CONV, X, tanh, tanh_backward

from minivgg.gradcheck import check
from minivgg.gradcheck.numeric import Point, central, choose_step, directions
from minivgg.gradcheck.targets import as_target
from minivgg.layers import (
    BatchNorm2d,
    ReLU,
)
from minivgg.ops.conv2d import conv2d_backward, conv2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.sigmoid import sigmoid_backward, sigmoid_forward
from minivgg.ops.softmax_cross_entropy import (
    softmax_backward,
    softmax_forward,
)

# ---- Options ----


def test_a_constant_dy_is_refused():
    softmax = softmax_forward, lambda dy, y: 7 * softmax_backward(dy, y)
    x = np.random.default_rng(0).standard_normal((3, 4))
    with pytest.raises(ValueError, match="blind"):
        check(softmax, x, dy=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3\)"):
        check(softmax, x, dy=x.T)
    assert not check(softmax, x, dy=x).ok
    assert check((softmax_forward, softmax_backward), x, dy=x.astype(np.float32)).ok


def test_whole_jacobians():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 3, 3))
    assert check(CONV, x, w, full=True).ok
    assert check(BatchNorm2d(3), x, full=True).ok
    assert check((relu_forward, relu_backward), np.round(x), full=True).ok
    with pytest.raises(ValueError, match="small cases"):
        check((relu_forward, relu_backward), np.ones((2, 3, 30, 30)), full=True)


def test_whole_jacobians_find_what_one_dy_cannot():
    """A backward that is right for one dy only: that of the check."""
    x = np.random.default_rng(0).standard_normal((2, 3))
    dy = np.random.default_rng(1).standard_normal((2, 3))

    def backward(upstream, x):
        return upstream * np.cos(x) + (0 if np.allclose(upstream, dy, rtol=1e-6) else 1e-4)

    report = check((np.sin, backward), x, dy=dy, full=True)
    assert "∂y" in str(report.rows[0].where)
    assert not report.rows[0].ok
    assert check((np.sin, backward), x, dy=dy).rows[0].ok


def softplus(x):
    return np.log(1 + np.exp(x))


def softplus_backward(dy, x):
    return dy / (1 + np.exp(-x))


def test_complex_steps():
    x = np.random.default_rng(0).standard_normal((3, 4))
    report = check((softplus, softplus_backward), x, complex_step=True)
    assert report.ok
    assert report.rows[0].tolerance < 1e-13
    by_differences = check((softplus, softplus_backward), x).rows[0].tolerance
    assert report.rows[0].tolerance < by_differences / 1000
    slightly_wrong = softplus, lambda dy, x: softplus_backward(dy, x) * (1 + 1e-12)
    assert check(slightly_wrong, x).ok
    assert not check(slightly_wrong, x, complex_step=True).ok
    with pytest.raises(ValueError, match="turned complex numbers into float64"):
        check((np.abs, lambda dy, x: dy * np.sign(x)), x, complex_step=True)
    with pytest.raises(ValueError, match="another slope on complex numbers"):
        check((lambda x: x * np.conj(x), lambda dy, x: 2 * dy * x), x, complex_step=True)
    with pytest.raises(ValueError, match="failed on complex numbers"):
        check((np.cbrt, lambda dy, x: dy / 3 / np.cbrt(x) ** 2), x, complex_step=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((relu_forward, np.ones(3)), TypeError, "a pair"),
        (((relu_forward, relu_backward),), TypeError, "arrays that forward"),
        (((relu_forward, relu_backward), np.arange(3)), TypeError, "none of the inputs"),
        (((relu_forward, relu_backward), np.array([1, np.nan])), ValueError, "x must be finite"),
        (((relu_forward, relu_backward), np.zeros((0, 3))), ValueError, "not empty"),
        ((ReLU(),), TypeError, "a layer takes one input"),
        (((np.sin, lambda dy, x: (dy, dy, dy)), np.ones(2)), ValueError, "returned 3 gradients for the arguments"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        check(*arguments)


def test_the_same_seed_gives_the_same_report():
    x = np.random.default_rng(0).standard_normal((3, 4))
    one, two, other = (check((tanh, tanh_backward), x, seed=seed) for seed in (1, 1, 2))
    assert one.rows == two.rows
    assert one.rows != other.rows


@pytest.mark.parametrize("seed", range(20))
def test_measured_slopes_are_within_their_tolerance(seed):
    """Against a slope known in closed form, and close enough to see one part in 10⁴ of one element of 200."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 10))
    target = as_target((tanh, tanh_backward), (x,), options={}, labels=None, shape=None, train=True, rng=rng)
    point = Point(target, {"x": x}, rng.standard_normal(x.shape), rng)
    for _, v in directions(x, rng):
        slope = central(point, "x", v, choose_step(point, "x", v))
        assert abs(slope.value - slope.claim) <= slope.tolerance < 1e-7
        long = central(point, "x", v, 2.0**-7)
        assert abs(long.value - long.claim) < long.truncation / 10  # what extrapolation gains


def test_steps_grow_where_rounding_is_all_the_error():
    """A sigmoid of 10⁻⁸: by a step of 10⁻¹⁴ its slope could be told to 10⁻³ only."""
    x = 1e-8 * np.random.default_rng(0).standard_normal((3, 4))
    assert check((sigmoid_forward, sigmoid_backward), x).rows[0].tolerance < 1e-5


def test_steps_are_numbers_that_exist():
    """Far from zero a step h·v goes to the nearest number, and the slope is that on the way there."""
    x, rng = 2.0**30 + np.arange(6.0).reshape(2, 3), np.random.default_rng(0)
    pair = lambda x: x - 2.0**30, lambda dy, x: dy
    target = as_target(pair, (x,), options={}, labels=None, shape=None, train=True, rng=rng)
    point = Point(target, {"x": x}, np.array([[1.0, -2, 1], [2, 1, -1]]), rng)
    slope = central(point, "x", rng.standard_normal(x.shape), 2.0**-20)
    assert abs(slope.value - slope.claim) < 1e-12


def test_cost_is_bounded():
    x = np.random.default_rng(0).standard_normal(X)
    assert check((sigmoid_forward, sigmoid_backward), x).evaluations < 150
    assert check((sigmoid_forward, sigmoid_backward), x, evaluations=0).evaluations < 100


# ---- Reports ----


@pytest.fixture(scope="module")
def wrong():
    def backward(dy, cache):
        dx, dw, db = conv2d_backward(dy, cache)
        return dx, dw[..., ::-1, ::-1], db

    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal(X), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    return check((conv2d_forward, backward), x, w, b, options={"padding": 1})


@pytest.fixture(scope="module")
def right():
    x = np.random.default_rng(0).standard_normal((2, 3))
    return check((relu_forward, relu_backward), np.where(x > 0, x, 0))


def test_a_table(wrong):
    lines = str(wrong).splitlines()
    assert lines[0].startswith("conv2d: the gradient is WRONG")
    table = lines[2:7]
    assert [line.split()[0] for line in table[2:]] == ["x", "w", "b"]
    assert [line.split()[-1] for line in table[2:]] == ["ok", "WRONG", "ok"]
    verdicts = table[0].index("verdict")
    assert all(line[verdicts - 1] == " " and line[verdicts] in "vo─W" for line in table)
    assert "• w: the gradient is rotated by 180°" in lines[-1]
    row = wrong.rows[1]
    assert row.order == pytest.approx(1, abs=0.01)
    assert row.ratio == pytest.approx(row.analytic / row.numeric)
    index = tuple(row.where)
    assert wrong.points["w"].gradients["w"][index] == row.analytic


def test_taylor_says_two_when_right():
    report = check((tanh, tanh_backward), np.random.default_rng(0).standard_normal((3, 4)))
    assert report.rows[0].order == pytest.approx(2, abs=0.05)


def test_html(wrong):
    page = wrong._repr_html_()
    assert page.count("<tr") == 4
    assert "rotated by 180°" in page


def test_raise_if_failed(wrong, right):
    assert right.raise_if_failed() is right
    with pytest.raises(AssertionError, match="rotated by 180°"):
        wrong.raise_if_failed()


def test_plot(wrong, right, tmp_path):
    figure = wrong.plot(tmp_path / "wrong.png")
    assert isinstance(figure, Figure)
    assert "w 4×3×3×3" in figure.get_suptitle()
    assert (tmp_path / "wrong.png").stat().st_size > 10_000
    heat, steps, remainder, _ = figure.axes
    image = heat.images[0].get_array()
    assert image.shape == (4 * 3, 3 * 3)
    assert image[1, 1] < 1e-8 < 1e-2 < image.max()  # the middle of a filter is where rotating it changes nothing
    assert min(steps.lines[1].get_ydata()) > 1e-2
    assert remainder.get_title() == "Taylor remainder: slope 1.00"
    assert "b 4" in wrong.plot(argument="b").get_suptitle()
    assert "x 2×3" in right.plot().get_suptitle()
    assert "3 kinks" in check((relu_forward, relu_backward), np.zeros((1, 3))).plot().get_suptitle()
    scale = check((lambda x, k: x * k, lambda dy, x, k: (dy * k, (dy * x).sum())), np.ones((1, 2)), np.array(3.0))
    assert "k scalar" in scale.raise_if_failed().plot(argument="k").get_suptitle()
    assert len(check(ReLU(), shape=(1, 40, 2, 2)).plot().axes[0].get_xticks()) <= 16
    with pytest.raises(ValueError, match="nothing was measured for y"):
        wrong.plot(argument="y")
