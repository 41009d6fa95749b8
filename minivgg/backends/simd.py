"""Sixteen numbers in a register: explicit vectors for Numba kernels, whose autovectoriser stops at half the width.

A function under `@traced` is called from a Numba kernel like any other function. But its body runs while the kernel is
being *compiled*: the values that it handles stand for registers and addresses, and what it does with them is written
down as LLVM code (`_Code`). So Python's own loops, lists and functions are the macro language:

    @traced
    def triple_and_add(code, x, y, n):           # x, y: arrays; n: an integer
        for i in code.loop(n):                   # a loop of the machine: its body is written down once
            for j in range(2):                   # a loop of Python: unrolled
                at = i * 2 * LANES + j * LANES
                y.store(at, 3 * x.load(at) + y.load(at))      # one fused multiply-add

With Numba switched off (NUMBA_DISABLE_JIT=1) the same body runs on NumPy (`_Plain`), one step at a time, which is how
to debug one, and how the tests hold the two to each other.

A vector of 16 floats is one AVX-512 register; LLVM makes two of it for AVX2, four for NEON, and as many again for
float64: correct everywhere, and fast where it is meant to be.
"""

import inspect
from fractions import Fraction
from types import SimpleNamespace

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.lib.stride_tricks import as_strided

LANES = 16


def traced(function):
    """Make `function(code, *arguments)` callable from Numba kernels, written out in place.

    An array argument arrives as a pointer to its first element, which must be followed by the others in C order; an
    integer as an integer, a tuple of integers as a tuple. Indices count elements and are not checked. Nothing is
    returned. The body runs once for each combination of argument types, and must not depend on anything else.
    """
    if numba.config.DISABLE_JIT:
        return lambda *arguments: run_plain(function, *arguments)

    def define(typing_context, *argument_types):
        def generate(context, builder, signature, values):
            code = _Code(builder)
            function(code, *(_wrap(code, context, t, v) for t, v in zip(signature.args, values, strict=True)))
            return context.get_dummy_value()

        return types.void(*argument_types), generate

    names = ["typing_context", *list(inspect.signature(function).parameters)[1:]]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    define.__signature__ = inspect.Signature(parameters)
    define.__name__ = function.__name__
    define.__doc__ = function.__doc__
    return intrinsic(define)


def run_plain(function, *arguments) -> None:
    """Run the body of a traced function on NumPy arrays and integers, without compiling anything."""
    with np.errstate(all="ignore"):  # as in compiled code; padding that nobody reads again may hold anything
        function(_Plain(), *(_PlainPointer(a) if isinstance(a, np.ndarray) else a for a in arguments))


def _wrap(code, context, numba_type, value):
    if isinstance(numba_type, types.Array):
        data = context.make_array(numba_type)(context, code.builder, value).data
        return _Pointer(code, data, context.get_value_type(numba_type.dtype))
    if isinstance(numba_type, types.BaseTuple):
        parts = cgutils.unpack_tuple(code.builder, value)
        return tuple(_wrap(code, context, t, v) for t, v in zip(numba_type, parts, strict=True))
    return _Int(code, context.cast(code.builder, value, numba_type, types.int64))


class _Code:
    """The code being written: where a traced function finds its loops and variables."""

    def __init__(self, builder):
        self.builder = builder

    def loop(self, steps):
        """`for i in code.loop(steps)`: the body is written once, and runs for i = 0 … steps − 1."""
        with cgutils.for_range(self.builder, _value(steps)) as loop:
            yield _Int(self, loop.index)

    def when(self, number, equals):
        """`for _ in code.when(n, 3)`: the body is written once, and runs if n is 3."""
        with self.builder.if_then(self.builder.icmp_signed("==", _value(number), _value(equals))):
            yield

    def when_below(self, number, limit):
        """`for _ in code.when_below(n, 3)`: the body is written once, and runs if n < 3."""
        with self.builder.if_then(self.builder.icmp_signed("<", _value(number), _value(limit))):
            yield

    def variable(self, vector):
        """A vector that a loop may change, by its `.value`. It lives in a register if there are enough of them."""
        return _Variable(self, vector)


class _Variable:
    def __init__(self, code, vector):
        self.code = code
        self.place = cgutils.alloca_once(code.builder, vector.ir.type)  # which LLVM turns into a register
        self.value = vector

    @property
    def value(self):
        return _Vector(self.code, self.code.builder.load(self.place))

    @value.setter
    def value(self, vector):
        self.code.builder.store(vector.ir, self.place)


class _Int:
    """An integer of the compiled code: an index, or what one is made of."""

    def __init__(self, code, value):
        self.code, self.ir = code, value

    def __add__(self, other):
        return _Int(self.code, self.code.builder.add(self.ir, _value(other), flags=["nsw"]))

    def __mul__(self, other):
        return _Int(self.code, self.code.builder.mul(self.ir, _value(other), flags=["nsw"]))

    __radd__, __rmul__ = __add__, __mul__


class _Pointer:
    """The first element of an array; `at` counts elements from there."""

    def __init__(self, code, data, element):
        self.code, self.data, self.element = code, data, element
        self.vector = ir.VectorType(element, LANES)

    def _address(self, at):
        return self.code.builder.gep(self.data, [_value(at)])

    def integer(self, at):
        """The integer at `at`, from an array of int64."""
        return _Int(self.code, self.code.builder.load(self._address(at)))

    def load(self, at):
        """The 16 elements from `at` on."""
        address = self.code.builder.bitcast(self._address(at), self.vector.as_pointer())
        return _Vector(self.code, self.code.builder.load(address, align=4))

    def broadcast(self, at):
        """Sixteen times the element at `at`."""
        one = self.code.builder.insert_element(
            _undefined(self.vector), self.code.builder.load(self._address(at)), _I32(0)
        )
        all_zero = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return _Vector(self.code, self.code.builder.shuffle_vector(one, _undefined(self.vector), all_zero))

    def store(self, at, vector):
        """Write a vector to the 16 elements from `at` on."""
        address = self.code.builder.bitcast(self._address(at), self.vector.as_pointer())
        self.code.builder.store(vector.ir, address, align=4)

    def stream(self, at, vector):
        """`store` past the caches, which `at` must be aligned to 64 bytes for: for what nobody reads soon."""
        address = self.code.builder.bitcast(self._address(at), self.vector.as_pointer())
        store = self.code.builder.store(vector.ir, address, align=64)
        store.set_metadata("nontemporal", self.code.builder.module.add_metadata([_I32(1)]))

    def fetch(self, at):
        """Have the cache line of `at` brought near, and go on: for what is needed soon. Any address will do."""
        place = self.code.builder.bitcast(self._address(at), ir.IntType(8).as_pointer())
        name, (read, near, data) = "llvm.prefetch.p0", (_I32(0), _I32(3), _I32(1))
        signature = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(self.code.builder.module, signature, name)
        self.code.builder.call(fetch, [place, read, near, data])

    def store_or_stream(self, at, vector, streamed):
        """`stream` if the integer `streamed` is 1, `store` if it is 0."""
        for _ in self.code.when(streamed, 1):
            self.stream(at, vector)
        for _ in self.code.when(streamed, 0):
            self.store(at, vector)

    def zero(self):
        """Sixteen zeros, of this array's dtype."""
        return _Vector(self.code, ir.Constant(self.vector, [0.0] * LANES))


class _Vector:
    """Sixteen numbers. Numbers of Python may join in; a·b + c becomes one fused multiply-add."""

    def __init__(self, code, value):
        self.code, self.ir = code, value

    def _of(self, other):
        return other.ir if isinstance(other, _Vector) else ir.Constant(self.ir.type, [float(other)] * LANES)

    def _result(self, instruction, a, b):
        return _Vector(self.code, getattr(self.code.builder, instruction)(a, b, flags=["contract"]))

    def __add__(self, other):
        return self._result("fadd", self.ir, self._of(other))

    def __sub__(self, other):
        return self._result("fsub", self.ir, self._of(other))

    def __rsub__(self, other):
        return self._result("fsub", self._of(other), self.ir)

    def __mul__(self, other):
        return self._result("fmul", self.ir, self._of(other))

    def __neg__(self):
        return self * -1

    __radd__, __rmul__ = __add__, __mul__

    def at_least(self, floor):
        """max(self, floor), where a NaN passes: with a floor of 0, ReLU, of which −0.0 is 0."""
        below = self.code.builder.fcmp_ordered("<=", self.ir, self._of(floor))
        return _Vector(self.code, self.code.builder.select(below, self._of(floor), self.ir))

    def where_positive(self, mask):
        """This vector where `mask` > 0, and 0 elsewhere."""
        positive = self.code.builder.fcmp_ordered(">", mask.ir, self._of(0))
        return _Vector(self.code, self.code.builder.select(positive, self.ir, self._of(0)))

    def interleave(self, other):
        """(a₀ b₀ a₁ b₁ … a₇ b₇) and (a₈ b₈ … a₁₅ b₁₅), of this vector a and the other b."""
        orders = [[lane + source * LANES for lane in half for source in (0, 1)] for half in (range(8), range(8, 16))]
        return [self._shuffled(other, order) for order in orders]

    def _shuffled(self, other, order):
        lanes = ir.Constant(ir.VectorType(_I32, LANES), order)
        return _Vector(self.code, self.code.builder.shuffle_vector(self.ir, other.ir, lanes))


def transpose(vectors):
    """Sixteen vectors → sixteen vectors, the first of which holds everybody's first element, and so on.

    Number the 256 elements in eight bits, four for the vector and four for the lane. Interleaving vector i with
    vector i + 8 rotates these bits by one place; four times exchange the two halves.
    """
    for _ in range(4):
        vectors = [half for a, b in zip(vectors[:8], vectors[8:], strict=True) for half in a.interleave(b)]
    return vectors


class _Plain:
    """What `_Code` is, for NumPy: here things happen at once."""

    @staticmethod
    def loop(steps):
        yield from range(steps)

    @staticmethod
    def when(number, equals):
        if number == equals:
            yield

    @staticmethod
    def when_below(number, limit):
        if number < limit:
            yield

    @staticmethod
    def variable(vector):
        return SimpleNamespace(value=vector)


class _PlainPointer:
    """What `_Pointer` is, for NumPy."""

    def __init__(self, array):
        reach = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
        self.elements = as_strided(array, (1 + reach // array.itemsize,), (array.itemsize,))  # as they lie in memory

    def integer(self, at):
        return int(self.elements[at])

    def load(self, at):
        assert 0 <= at <= len(self.elements) - LANES
        return self.elements[at : at + LANES].copy().view(_PlainVector)

    def broadcast(self, at):
        return np.full(LANES, self.elements[at]).view(_PlainVector)

    def store(self, at, vector):
        assert 0 <= at <= len(self.elements) - LANES
        self.elements[at : at + LANES] = vector

    stream = store

    def store_or_stream(self, at, vector, streamed):
        self.store(at, vector)

    def fetch(self, at):
        pass

    def zero(self):
        return np.zeros(LANES, self.elements.dtype).view(_PlainVector)


class _PlainVector(np.ndarray):
    """What `_Vector` is, for NumPy."""

    def __mul__(self, other):
        return super().__mul__(float(other) if isinstance(other, Fraction) else other)

    __rmul__ = __mul__

    def at_least(self, floor):
        return np.where(self <= floor, self.dtype.type(0) + floor, self).view(_PlainVector)

    def where_positive(self, mask):
        return np.where(mask > 0, self, self.dtype.type(0)).view(_PlainVector)

    def interleave(self, other):
        both = np.stack([self, other], axis=1).reshape(2, LANES)
        return [half.view(_PlainVector) for half in both]


_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def _undefined(vector_type):
    return ir.Constant(vector_type, ir.Undefined)


def _value(number):
    return number.ir if isinstance(number, _Int) else _I64(int(number))
