"""What is to be done with few multiplications: numbers that are exact, and count."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from minivgg.exercises.checks import result_of
from minivgg.testing import Report
from minivgg.testing.report import Broken


class Counted:
    """A number of the input, or one made of such. `count[0]` goes up where two of them are multiplied; a product with a
    constant is free. NumPy leaves it alone, so that it works in arrays, too."""

    __array_ufunc__ = None

    def __init__(self, value: Fraction, count: list[int]):
        self.value, self.count = value, count

    def _of(self, value) -> "Counted":
        return Counted(value, self.count)

    def __add__(self, other):
        return self._of(self.value + _value(other))

    def __sub__(self, other):
        return self._of(self.value - _value(other))

    def __rsub__(self, other):
        return self._of(_value(other) - self.value)

    def __mul__(self, other):
        self.count[0] += isinstance(other, Counted)
        return self._of(self.value * _value(other))

    def __truediv__(self, other):
        self.count[0] += isinstance(other, Counted)
        return self._of(self.value / _value(other))

    def __neg__(self):
        return self._of(-self.value)

    __radd__, __rmul__ = __add__, __mul__


def _value(number) -> Fraction:
    return number.value if isinstance(number, Counted) else Fraction(number)


def winograd(function: Callable) -> Report:
    """f23(d, g) → two outputs of a filter of three over a signal of four, by four multiplications."""
    rng = np.random.default_rng(0)

    def ask(d, g) -> tuple[list[Fraction], int]:
        count = [0]
        y = function(*(np.array([Counted(Fraction(int(v)), count) for v in values], object) for values in (d, g)))
        return [_value(v) for v in y], count[0]

    def right(d, g):
        expected = [Fraction(int(np.dot(d[i : i + 3], g))) for i in range(2)]
        found, _ = ask(d, g)
        if found != expected:
            raise Broken(_numbers(expected), _numbers(found))

    def few():
        count = ask(*ones)[1]
        if count > 4:
            why = ": that is the definition" if count == 6 else ""
            raise Broken("4 of d with g", f"{count}{why}")

    ones = np.ones(4, int), np.ones(3, int)
    units = [(d, g) for d in np.eye(4, dtype=int) for g in np.eye(3, dtype=int)]
    signals = [*units, *((rng.integers(-9, 10, 4), rng.integers(-9, 10, 3)) for _ in range(8))]
    return Report(
        "f23",
        [
            result_of(
                "both outputs are right",
                "The first trials have a single 1 in d and one in g: which product is it that is missing, or too many? "
                "Write y0 and y1 out in the four products, and see what is left.",
                [(f"d = {d.tolist()}, g = {g.tolist()}", lambda d=d, g=g: right(d, g)) for d, g in signals],
            ),
            result_of(
                "four multiplications",
                "Only products of something made of d and something made of g count. Halves, sums and signs are free. "
                "The two products in the middle serve both outputs: add them for one, subtract them for the other.",
                [("d and g of ones", few)],
            ),
        ],
    )


def _numbers(values: list[Fraction]) -> str:
    return ", ".join(map(str, values))
