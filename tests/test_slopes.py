"""Every gradient against slopes, by a short test of its own: `minivgg.gradcheck` is not the only judge of itself."""

import numpy as np
import pytest

from minivgg.testing import CASES

H = np.finfo(np.float64).eps ** (1 / 3)  # where truncation, h², and rounding, eps / h, of a central difference meet


def check_slopes(op, case):
    """Hold each argument's gradient to the slope of ⟨dy, forward⟩ along a random direction, in float64.

    The tolerance is the sum of the two errors of a central difference D(h) = (f(a + h·v) − f(a − h·v)) / 2h:
    truncation, c·h² + O(h⁴), of which D(2h) − D(h) = 3·c·h² is an overestimate; and rounding: values f with a relative
    error of up to 16 eps make an error of 16 eps·Σ|dy|·(|f(a + h·v)| + |f(a − h·v)|) / 2h.
    """
    rng = np.random.default_rng(2)
    arguments = [case.draw(rng, shape, np.float64) for shape in case.shapes]
    y, backward = op.call(tuple(arguments), case.options)
    dy = rng.standard_normal(np.shape(y))
    for i, (a, gradient) in enumerate(zip(arguments, backward(dy), strict=True)):
        v = rng.standard_normal(a.shape)

        def slope_and_rounding(h, i=i, a=a, v=v):
            ahead, behind = (
                op.call((*arguments[:i], a + s * v, *arguments[i + 1 :]), case.options)[0] for s in (h, -h)
            )
            rounding = 16 * np.finfo(np.float64).eps * np.sum(np.abs(dy) * (np.abs(ahead) + np.abs(behind)))
            return np.sum(dy * (ahead - behind)) / (2 * h), rounding / (2 * h)

        slope, rounding = slope_and_rounding(H)
        tolerance = abs(slope_and_rounding(2 * H)[0] - slope) + rounding
        blunt = 1e-5 * np.linalg.norm(gradient) * np.linalg.norm(v)
        assert tolerance < blunt or not np.any(gradient), "too blunt to prove anything"
        assert abs(np.sum(gradient * v) - slope) <= tolerance, f"argument {i}: {np.sum(gradient * v)}, not {slope}"


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, op in CASES.items() for case in op.cases], ids=repr)
def test_gradient_is_the_slope(name, case):
    check_slopes(CASES[name], case)


@pytest.mark.parametrize("name", ["conv2d", "linear", "batchnorm", "lrn", "sigmoid", "avgpool2d", "softmax"])
def test_one_part_in_a_hundred_thousand_is_seen(name):
    op = CASES[name]
    for i in range(len(op.cases[0].shapes)):

        class Wrong:
            @staticmethod
            def call(arrays, options, i=i):
                y, backward = op.call(arrays, options)
                return y, lambda dy: tuple(g * (1.00001 if k == i else 1) for k, g in enumerate(backward(dy)))

        with pytest.raises(AssertionError, match=f"argument {i}"):
            check_slopes(Wrong, op.cases[0])
