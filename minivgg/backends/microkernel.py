"""The innermost loop of everything fast: a small matrix product whose result never leaves the registers.

A core with AVX-512 does two fused multiply-adds on 16 floats in every cycle, but fetches no more than two vectors from
its first-level cache in that time. So whatever is fetched must be used several times. Here 14 × 32 sums stay in 28 of
the 32 registers. A step along the long dimension fetches two vectors of b and 14 numbers of a, and does 28
multiply-adds with them:

    c (rows, 32) = Σ over taps of  a (rows, steps) · b (steps, 32)        c[i, j] = Σ_t Σ_k a[t, i, k] · b[t, k, j]

A matrix product needs one tap. A convolution is the sum of one product for each row of its window, and a gradient of
filters for each row of the image: a "batch-reduce" product, which is all that any algorithm here needs. On one core it
reaches nine tenths of what the multiply-add units can do at all.

Source: Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008); Georganas et al., Harnessing
Deep Learning via a Single Building Block (2020), §3.
"""

from minivgg.backends.jit import njit
from minivgg.backends.simd import LANES, traced

ROWS = 14  # the largest even number for which the sums, two vectors of b and one of a fit into 32 registers
COLUMNS = 2 * LANES


@traced
def _block(code, rows, a, a_at, a_strides, b, b_at, b_strides, c, c_at, c_row, lengths, add):
    """`product` for 2, 4, … or 14 rows."""
    (a_tap, a_row, a_step), (b_tap, b_step), (taps, steps) = a_strides, b_strides, lengths
    for size in range(2, ROWS + 1, 2):
        for _ in code.when(rows, size):
            sums = [[code.variable(c.zero()) for _ in range(2)] for _ in range(size)]
            for t in code.loop(taps):
                for k in code.loop(steps):
                    first, second = (b.load(b_at + t * b_tap + k * b_step + j) for j in (0, LANES))
                    for i in range(size):
                        number = a.broadcast(a_at + t * a_tap + k * a_step + a_row * i)
                        sums[i][0].value = number * first + sums[i][0].value
                        sums[i][1].value = number * second + sums[i][1].value
            places = [(c_at + c_row * i + LANES * j, sums[i][j]) for i in range(size) for j in range(2)]
            for _ in code.when(add, 0):
                for at, total in places:
                    c.store(at, total.value)
            for _ in code.when(add, 1):
                for at, total in places:
                    c.store(at, c.load(at) + total.value)


@njit(cache=True)
def even_rows(rows):
    """How many rows to take at a time, so that `rows` rows make blocks of nearly the same even size, 14 at most."""
    blocks = (rows + ROWS - 1) // ROWS
    return 2 * ((rows + 2 * blocks - 1) // (2 * blocks))


@njit(cache=True)
def product(rows, a, a_at, a_strides, b, b_at, b_strides, c, c_at, c_row, lengths, add):
    """c (rows, 32) = Σ_t a[t] (rows, steps) · b[t] (steps, 32), or with `add` = 1, c += it; for any number of rows.

    a, b, c: C-contiguous arrays of any shape and one dtype; `…_at` is where in them the matrix begins. The strides are
    (tap, row, step) of a, (tap, step) of b, the row of c; the lengths are (taps, steps). All count elements. **With an
    odd number of rows, one row more is read and written.** Cost: 2·rows·32·taps·steps FLOP.
    """
    size = even_rows(rows)
    for i in range(0, rows, size):
        left = min(size, rows - i)
        left += left % 2
        _block(
            left, a, a_at + i * a_strides[1], a_strides, b, b_at, b_strides, c, c_at + i * c_row, c_row, lengths, add
        )
