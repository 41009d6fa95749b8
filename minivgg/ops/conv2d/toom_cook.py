"""The matrices of Winograd's convolution, derived exactly.

Correlating a signal d of n = m + r − 1 numbers with a filter g of r gives m outputs, by m·r multiplications if done as
written. Toom and Cook do it with n: a product of polynomials is known from its values at n points, and there it is a
product of numbers. Transposed (Winograd), with ⊙ for the product element by element:

    y = Aᵀ [(G·g) ⊙ (Bᵀ·d)]                             Aᵀ (m, n), G (n, r), Bᵀ (n, n)

The points are 0, 1, −1, ½, −2, …, and "infinity", where a polynomial's value is its leading coefficient. ½ and −2
rather than ±2: products of the two stay near 1, and results are a third more accurate in float32. Everything here is a
`Fraction`, so the tests hold the identity exactly.

Source: Winograd, Arithmetic Complexity of Computations (1980); Lavin & Gray, Fast Algorithms for Convolutional Neural
Networks (2015), §4; for the points, Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution
(2020).
"""

from fractions import Fraction
from typing import NamedTuple

POINTS = [Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2), Fraction(-1, 2), Fraction(2)]


class Matrices(NamedTuple):
    """Aᵀ (m, n), G (n, r) and Bᵀ (n, n) as lists of rows of fractions."""

    outputs: list  # Aᵀ
    filters: list  # G
    inputs: list  # Bᵀ


def matrices(m: int, r: int) -> Matrices:
    """The matrices for m outputs of a filter of r numbers, from n = m + r − 1 numbers of input."""
    n = m + r - 1
    points = POINTS[: n - 1]
    # the row of a point p in Bᵀ: the coefficients of Π (x − q) over the other points q; at infinity, over all
    others = [[q for q in points if q != p] for p in points]
    inputs = [_polynomial(roots, n) for roots in (*others, points)]
    scales = [_value(row, p) for row, p in zip(inputs, points, strict=False)]
    filters = [[p**j / scale for j in range(r)] for p, scale in zip(points, scales, strict=True)]
    outputs = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    return Matrices(outputs, [*filters, [Fraction(int(j == r - 1)) for j in range(r)]], inputs)


def _polynomial(roots: list[Fraction], length: int) -> list[Fraction]:
    """The `length` coefficients of Π (x − root), from the constant one up."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients + [Fraction(0)] * (length - len(coefficients))


def _value(coefficients: list[Fraction], x: Fraction) -> Fraction:
    return sum(c * x**k for k, c in enumerate(coefficients))


def growth(m: int, r: int) -> float:
    """How much larger than the definition's products the numbers are that m × m outputs add up: rounding grows with it.

    For random signed data, the mean square of a term of Σ Aᵀ·(G·g)·(Bᵀ·d) is the product of the squared lengths of its
    rows; this over the definition's r, at the worst output, and once for each of the two dimensions: 1.7 for F(2×2),
    10.4 for F(4×4).
    """
    outputs, filters, inputs = matrices(m, r)

    def square(row):
        return float(sum(c * c for c in row))

    worst = max(
        sum(float(a * a) * square(g) * square(b) for a, g, b in zip(row, filters, inputs, strict=True))
        for row in outputs
    )
    return worst / r


def times(matrix: list, vector: list) -> list:
    """matrix · vector, where the vector's elements may be anything that can be added and multiplied by a number.

    So the same lines work on fractions, on NumPy arrays, on registers while a kernel is compiled (`backends.simd`), and
    on the text of another (`in_c`).
    """
    return [_combination(row, vector) for row in matrix]


def _combination(coefficients, vector):
    total = None
    for c, v in zip(coefficients, vector, strict=True):
        if c == 0:
            continue
        if total is None:
            total = v if c == 1 else v * c
        elif abs(c) == 1:
            total = total + v if c == 1 else total - v
        else:
            total = v * c + total
    return total


def sandwich(matrix: list, tile: list) -> list:
    """matrix · tile · matrixᵀ: the transform along the columns of a tile, and then along its rows."""
    columns = [times(matrix, list(column)) for column in zip(*tile, strict=True)]
    return [times(matrix, list(row)) for row in zip(*columns, strict=True)]


class _Symbol:
    """An expression of C, that grows as `times` computes with it."""

    def __init__(self, text: str):
        self.text = text

    def __mul__(self, number):
        return _Symbol(f"T({float(number)!r}) * {self.text}")

    def __add__(self, other):
        return _Symbol(f"({self.text} + {other.text})")

    def __sub__(self, other):
        return _Symbol(f"({self.text} - {other.text})")


def in_c(matrix: list) -> str:
    """y = matrix · d as statements of C, for kernels on a GPU: "y[0] = (T(0.5) * d[2] + d[1]); …"."""
    d = [_Symbol(f"d[{j}]") for j in range(len(matrix[0]))]
    return " ".join(f"y[{i}] = {y.text};" for i, y in enumerate(times(matrix, d)))
