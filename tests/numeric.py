"""What the tests of the operations share: random signed data, the slope test, and the rules that every op obeys."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import pytest

H = np.finfo(np.float64).eps ** (1 / 3)  # where truncation, h², and rounding, eps / h, of a central difference meet


def directional(forward, backward, arguments, rng):
    """Hold each argument's gradient to the slope of ⟨dy, forward⟩ along a random direction, in float64.

    The tolerance is the sum of the two errors of a central difference D(h) = (f(a + h·v) − f(a − h·v)) / 2h:
    truncation, c·h² + O(h⁴), of which D(2h) − D(h) = 3·c·h² is an overestimate; and rounding: values f with a relative
    error of up to 16 eps make an error of 16 eps·Σ|dy|·(|f(a + h·v)| + |f(a − h·v)|) / 2h.
    """
    y, cache = forward(*arguments)
    dy = rng.standard_normal(np.shape(y))
    for i, (a, gradient) in enumerate(zip(arguments, as_tuple(backward(dy, cache)), strict=True)):
        v = rng.standard_normal(a.shape)

        def slope_and_rounding(h, i=i, a=a, v=v):
            ahead, behind = (forward(*arguments[:i], a + s * v, *arguments[i + 1 :])[0] for s in (h, -h))
            rounding = 16 * np.finfo(np.float64).eps * np.sum(np.abs(dy) * (np.abs(ahead) + np.abs(behind)))
            return np.sum(dy * (ahead - behind)) / (2 * h), rounding / (2 * h)

        slope, rounding = slope_and_rounding(H)
        tolerance = abs(slope_and_rounding(2 * H)[0] - slope) + rounding
        assert tolerance < 1e-5 * np.linalg.norm(gradient) * np.linalg.norm(v), "too blunt to prove anything"
        assert abs(np.sum(gradient * v) - slope) <= tolerance, f"argument {i}: {np.sum(gradient * v)}, not {slope}"


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def signed(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def away_from_zero(rng, shape, dtype):
    """Signed, and never nearer to 0 than 0.1: for kinks at 0."""
    x = rng.standard_normal(shape)
    return (x + np.copysign(0.1, x)).astype(dtype)


def distinct(rng, shape, dtype):
    """A permutation of evenly spaced values from −2 to 2: for kinks where two values meet."""
    return rng.permutation(np.linspace(-2, 2, np.prod(shape))).reshape(shape).astype(dtype)


def integers(rng, shape, dtype):
    """From −4 to 4: sums of products of such numbers are exact, so that the order of adding cannot be seen."""
    return rng.integers(-4, 5, shape).astype(dtype)


@dataclass(frozen=True)
class Op:
    """One operation on random arguments. `bits`: whether another memory order must give the same to the last bit."""

    forward: Callable
    backward: Callable
    shapes: tuple
    draw: Callable = signed
    bits: bool = True

    def arguments(self, dtype):
        rng = np.random.default_rng(0)
        return tuple(self.draw(rng, shape, dtype) for shape in self.shapes)

    def upstream(self, dtype, seed=1):
        y, _ = self.forward(*self.arguments(dtype))
        return np.asarray(self.draw(np.random.default_rng(seed), np.shape(y), dtype))

    def run(self, arguments, dy):
        """(y, the gradients …)"""
        y, cache = self.forward(*arguments)
        return y, *as_tuple(self.backward(dy, cache))

    def check_slopes(self, laid_out):
        arguments = tuple(map(laid_out, self.arguments(np.dtype("float64"))))
        directional(self.forward, self.backward, arguments, np.random.default_rng(2))


def assert_same_bits(these, those):
    for this, that in zip(these, those, strict=True):
        np.testing.assert_array_equal(this, that, strict=True)


def assert_close(these, those, terms):
    """Equal but for the order in which up to `terms` numbers, about as large as the largest result, were added."""
    for this, that in zip(these, those, strict=True):
        np.testing.assert_allclose(this, that, rtol=0, atol=terms * np.finfo(that.dtype).eps * np.abs(that).max())


# ---- The rules. Each takes an op, a dtype, and a function that lays out memory. ----


def keeps_dtype(op, dtype, laid_out):
    results = op.run(op.arguments(dtype), op.upstream(dtype))
    assert [r.dtype for r in results] == [dtype] * len(results)


def keeps_shape(op, dtype, laid_out):
    arguments = op.arguments(dtype)
    _, *gradients = op.run(arguments, op.upstream(dtype))
    assert [g.shape for g in gradients] == [a.shape for a in arguments]


def leaves_arguments_alone(op, dtype, laid_out):
    arguments, dy = tuple(map(laid_out, op.arguments(dtype))), laid_out(op.upstream(dtype))
    op.run(arguments, dy)
    assert_same_bits((*arguments, dy), (*op.arguments(dtype), op.upstream(dtype)))


def repeats_itself(op, dtype, laid_out):
    arguments, dy = op.arguments(dtype), op.upstream(dtype)
    y, cache = op.forward(*arguments)
    first = y.copy(), *(g.copy() for g in as_tuple(op.backward(dy, cache)))
    assert_same_bits(op.run(arguments, dy), first)
    assert_same_bits(as_tuple(op.backward(dy, cache)), first[1:])


def does_not_depend_on_threads(op, dtype, laid_out):
    arguments, dy = op.arguments(dtype), op.upstream(dtype)
    before = numba.get_num_threads()
    results = []
    for threads in 1, numba.config.NUMBA_NUM_THREADS:  # two or more, unless somebody asked for one
        numba.set_num_threads(threads)
        try:
            results.append(op.run(arguments, dy))
        finally:
            numba.set_num_threads(before)
    assert_same_bits(*results)


def does_not_depend_on_memory_order(op, dtype, laid_out):
    arguments, dy = op.arguments(dtype), op.upstream(dtype)
    expected, results = op.run(arguments, dy), op.run(tuple(map(laid_out, arguments)), laid_out(dy))
    if op.bits:
        assert_same_bits(results, expected)
    else:
        assert_close(results, expected, terms=max(result.size for result in results))


def backward_is_linear(op, dtype, laid_out):
    _, cache = op.forward(*op.arguments(dtype))
    one, two = op.upstream(dtype, seed=1), op.upstream(dtype, seed=2)
    of_one, of_two, of_sum, of_scaled = (as_tuple(op.backward(dy, cache)) for dy in (one, two, one + two, -4 * one))
    assert_same_bits(of_scaled, [-4 * g for g in of_one])  # times a power of two rounds nothing
    for g1, g2, g in zip(of_one, of_two, of_sum, strict=True):
        # three sums of at most so many terms, about as large as the largest result, each term rounded a few times
        roundings = 3 * max(one.size, g.size, 4)
        size = max(np.abs(g1).max(), np.abs(g2).max())
        np.testing.assert_allclose(g, g1 + g2, rtol=0, atol=roundings * np.finfo(dtype).eps * size)


def zero_gives_zero(op, dtype, laid_out):
    _, cache = op.forward(*op.arguments(dtype))
    for gradient in as_tuple(op.backward(np.zeros_like(op.upstream(dtype)), cache)):
        assert not gradient.any()


def refuses_foreign_gradients(op, dtype, laid_out):
    dy = op.upstream(dtype)
    _, cache = op.forward(*op.arguments(dtype))
    with pytest.raises(ValueError, match=re.escape(f"{dy.shape} and dtype {dtype}, got {dy[..., :-1].shape}")):
        op.backward(dy[..., :-1], cache)
    with pytest.raises(ValueError, match=r"backward: dy must have .* float16"):
        op.backward(dy.astype(np.float16), cache)


RULES = [
    keeps_dtype,
    keeps_shape,
    leaves_arguments_alone,
    repeats_itself,
    does_not_depend_on_threads,
    does_not_depend_on_memory_order,
    backward_is_linear,
    zero_gives_zero,
    refuses_foreign_gradients,
]


def all_rules(ops, rules=RULES):
    """Parametrise a test by `rule` and `op`, the ops being a dictionary by name."""
    by_rule = pytest.mark.parametrize("rule", rules, ids=lambda rule: rule.__name__)
    by_op = pytest.mark.parametrize("op", ops.values(), ids=ops.keys())
    return lambda test: by_rule(by_op(test))


def all_ops(ops):
    return pytest.mark.parametrize("op", ops.values(), ids=ops.keys())
