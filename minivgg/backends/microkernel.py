"""The innermost loop of everything fast: a small matrix product whose result never leaves the registers.

A core with AVX-512 does two fused multiply-adds on 16 floats in every cycle, but fetches no more than two vectors from
its first-level cache in that time. So whatever is fetched must be used several times. Here 14 × 32 sums stay in 28 of
the 32 registers. A step along the long dimension fetches two vectors of b and 14 numbers of a, and does 28
multiply-adds with them:

    c (rows, 32) = Σ over taps of  a (rows, steps) · b (steps, 32)        c[i, j] = Σ_t Σ_k a[t, i, k] · b[t, k, j]

A matrix product needs one tap. A convolution is the sum of one product for each row of its window, and a gradient of
filters for each row of the image: a "batch-reduce" product, which is all that any algorithm here needs. On one core it
reaches nine tenths of what the multiply-add units can do at all.

Memory is slow to answer, but it answers while the units multiply, if it is asked in time. A step has room for a few
more instructions, and one of them may ask for a cache line that some later product is going to need: `fetch`. Asked for
line by line, evenly, it arrives for nothing; asked for all at once, it would have the units wait in another place.

Source: Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008); Georganas et al., Harnessing
Deep Learning via a Single Building Block (2020), §3.
"""

from minivgg.backends.jit import njit
from minivgg.backends.simd import LANES, traced

ROWS = 14  # the largest even number for which the sums, two vectors of b and one of a fit into 32 registers
COLUMNS = 2 * LANES


def sums_of_products(code, size, a, a_at, a_strides, b, b_at, b_strides, lengths, meanwhile):
    """For a traced function: (size, 2) variables with the sums; each step also does `meanwhile(steps before it)`."""
    (a_tap, a_row, a_step), (b_tap, b_step), (taps, steps) = a_strides, b_strides, lengths
    sums = [[code.variable(b.zero()) for _ in range(2)] for _ in range(size)]
    for t in code.loop(taps):
        for k in code.loop(steps):
            first, second = (b.load(b_at + t * b_tap + k * b_step + j) for j in (0, LANES))
            meanwhile(t * steps + k)
            for i in range(size):
                number = a.broadcast(a_at + t * a_tap + k * a_step + a_row * i)
                sums[i][0].value = number * first + sums[i][0].value
                sums[i][1].value = number * second + sums[i][1].value
    return sums


@traced
def _block(code, rows, a, a_at, a_strides, b, b_at, b_strides, c, c_at, c_row, lengths, add, before, fetch):
    """`product` for 2, 4, … or 14 rows, before which there were `before` steps for others."""

    def fetch_lines(step):
        for at, apart in fetch:
            b.fetch(at + (before + step) * apart)

    for size in range(2, ROWS + 1, 2):
        for _ in code.when(rows, size):
            sums = sums_of_products(code, size, a, a_at, a_strides, b, b_at, b_strides, lengths, fetch_lines)
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
def to_fetch(number, products, at, length, rows, steps):
    """What product `number` of `products` equal ones should fetch, so that together, and evenly, they have fetched
    `length` numbers from `at` on: a pair for `fetch`. Each has `rows` rows and `steps` steps, all taps counted."""
    all_steps = (rows + ROWS - 1) // ROWS * steps
    apart = (length + products * all_steps - 1) // (products * all_steps)
    return at + number * all_steps * apart, apart


@njit(cache=True)
def distance(a, b):
    """From the first element of a to the first of b, both C-contiguous and of one dtype, in elements: for `fetch`."""
    return (b.ctypes.data - a.ctypes.data) // a.itemsize


@njit(cache=True)
def product(rows, a, a_at, a_strides, b, b_at, b_strides, c, c_at, c_row, lengths, add, fetch=()):
    """c (rows, 32) = Σ_t a[t] (rows, steps) · b[t] (steps, 32), or with `add` = 1, c += it; for any number of rows.

    a, b, c: C-contiguous arrays of any shape and one dtype; `…_at` is where in them the matrix begins. The strides are
    (tap, row, step) of a, (tap, step) of b, the row of c; the lengths are (taps, steps). All count elements. **With an
    odd number of rows, one row more is read and written.** Cost: 2·rows·32·taps·steps FLOP.

    For each pair (at, apart) in `fetch`, step number i, counted through all blocks of rows, asks for the cache line of
    b[at + i · apart], which may be anywhere, in b or not.
    """
    size = even_rows(rows)
    before = 0
    for i in range(0, rows, size):
        left = min(size, rows - i)
        left += left % 2
        a_from, c_from = a_at + i * a_strides[1], c_at + i * c_row
        _block(
            left, a, a_from, a_strides, b, b_at, b_strides, c, c_from, c_row, lengths, add, before, fetch
        )  # fmt: skip
        before += lengths[0] * lengths[1]
