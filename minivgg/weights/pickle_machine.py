"""A pickle, followed by hand: it builds dicts, lists, tuples, numbers, text, and the outlines of PyTorch's tensors.

A pickle is a program for a small stack machine, and one of its instructions calls any function by its name: whoever
unpickles a file runs whatever its author liked. So nothing is unpickled here. `pickletools` (standard library) splits
the file into instructions, and `run` follows them. What a call of PyTorch's tensor functions would give is described by
the table `_CALLS`; of every other call only the name is kept, as an `Opaque`. Nothing is imported, and nothing called.
"""

import math
import pickletools
from typing import BinaryIO, NamedTuple

from minivgg.errors import BadInput

MAX_PICKLE = 1 << 26  # bytes; what training scripts add to the weights has its size, too
MAX_STEPS = 1 << 21  # instructions; a tensor takes about thirty

_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
STORAGES = {("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()}
_UNTYPED = {(module, "UntypedStorage"): "uint8" for module in ("torch", "torch.storage")}  # counted in bytes
_KNOWN = STORAGES | _UNTYPED
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: Opaque("set")}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Storage(NamedTuple):
    """A run of `count` values that lies elsewhere in the file, under `key`."""

    key: str
    dtype: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage, counted in values; its reach has been checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def reach(self) -> int:
        """How many values of the storage, from `offset` on, hold all of this tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


class Global(NamedTuple):
    """A function, class or value that a file names."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"[:100]


class Opaque:
    """What a call that was not made would have given: an object of which only this is known.

    `what` is the name of the function or class, `items` what would be put into it by keys, `state` its attributes.
    """

    __slots__ = ("items", "state", "what")

    def __init__(self, what):
        self.what, self.items, self.state = str(what)[:100], {}, {}

    def __str__(self):
        return self.what


_MARK = object()


class Result(NamedTuple):
    """What a pickle builds, and the storages it names, by their keys."""

    value: object
    storages: dict[str, Storage]


def run(stream: BinaryIO) -> Result:
    """What the pickle at the stream's position builds, leaving the stream behind it.

    Raises BadInput, with the offset, for a damaged pickle, for an instruction that no file of weights has, and for a
    tensor that reaches outside its storage. Cost: memory in proportion to the pickle's instructions, at most
    `MAX_STEPS`.
    """
    machine, start = _Machine(), stream.tell()
    offset = start
    try:
        for opcode, argument, position in pickletools.genops(stream):
            offset = position if position is not None else start
            machine.spend(1)
            if opcode.name == "STOP":
                return Result(machine.stack.pop(), machine.storages)
            machine.follow(opcode.name, argument)
    except BadInput as error:
        raise BadInput(f"offset {offset}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = " ".join(str(error).split())[:200]
        raise BadInput(f"offset {offset}: a damaged pickle: {type(error).__name__} {problem}") from None
    raise BadInput(f"offset {offset}: a pickle that does not end")


class _Machine:
    """The stack machine in the middle of a pickle."""

    def __init__(self):
        self.stack, self.memo, self.storages, self.spent = [], {}, {}, 0

    def spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > MAX_STEPS:
            raise BadInput(f"more than {MAX_STEPS:,} instructions")

    def follow(self, name: str, argument) -> None:
        """One instruction."""
        stack, memo = self.stack, self.memo
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            _pop_to_mark(stack)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _TUPLES:
            stack.append(tuple(_pop(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name == "LIST":
            stack.append(_pop_to_mark(stack))
        elif name == "DICT":
            stack.append(_set_items({}, _pop_to_mark(stack), literally=True))
        elif name == "FROZENSET":
            _pop_to_mark(stack)
            stack.append(Opaque("frozenset"))
        elif name in ("APPEND", "APPENDS"):
            items = _pop_to_mark(stack) if name == "APPENDS" else _pop(stack, 1)
            if not isinstance(stack[-1], Opaque):
                _top(stack, list).extend(items)
        elif name == "ADDITEMS":
            _pop_to_mark(stack)
            _top(stack, Opaque)
        elif name in ("SETITEM", "SETITEMS"):
            items = _pop_to_mark(stack) if name == "SETITEMS" else _pop(stack, 2)
            _set_items(stack[-1].items if isinstance(stack[-1], Opaque) else _top(stack, dict), items)
        elif name == "BUILD":  # an object's attributes
            _build(_pop(stack, 2), stack)
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        else:
            self.call(name, argument)

    def call(self, name: str, argument) -> None:
        """An instruction that names something, or would call it."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_named(*_pop(stack, 2)))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            function, arguments, *_ = _pop(stack, 3 if name == "NEWOBJ_EX" else 2)
            if not isinstance(function, (Global, Opaque)) or not isinstance(arguments, tuple):
                raise BadInput(f"calls a {type(function).__name__}, which is no function")
            self.spend(sum(len(a) for a in arguments if isinstance(a, (list, tuple, dict))))
            known = _CALLS.get(function) if name == "REDUCE" else None
            stack.append(known(*arguments) if known else Opaque(function))
        elif name == "INST":
            _pop_to_mark(stack)
            stack.append(Opaque(_named(*argument.split(" ", 1))))
        elif name == "OBJ":
            stack.append(Opaque(_pop_to_mark(stack)[0]))
        else:
            raise BadInput(f"the instruction {name}, which no file of weights needs")

    def storage(self, identity):
        """A persistent id: ("storage", type, key, device, count), and in the legacy format what it is a part of."""
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # the legacy format's class of a module, with its source, which nobody reads
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise BadInput("a persistent id that names no storage")
        _, kind, key, _, count, *part = identity
        if not isinstance(kind, Global) or not isinstance(key, str) or not _is_count(count):
            raise BadInput("a storage of unknown type or size")
        if kind not in _KNOWN:
            return Opaque(kind)
        if part not in ([], [None]):
            raise BadInput("a storage that is part of another, as PyTorch before 0.4 wrote; save it again with a newer")
        found = Storage(key, _KNOWN[kind], count)
        if self.storages.setdefault(key, found) != found:
            raise BadInput(f"the storage {key[:100]!r} is of two types or sizes")
        return found


def _pop(stack: list, count: int) -> list:
    items = stack[-count:]
    if len(items) < count or any(item is _MARK for item in items):
        raise BadInput("takes more from the stack than there is")
    del stack[-count:]
    return items


def _pop_to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _top(stack: list, kind: type):
    if not isinstance(stack[-1], kind):
        raise BadInput(f"expects a {kind.__name__}, finds a {type(stack[-1]).__name__}")
    return stack[-1]


def _build(pair: list, stack: list) -> None:
    thing, state = pair
    if not isinstance(thing, (dict, Opaque, Tensor)):
        raise BadInput(f"attributes for a {type(thing).__name__}")
    if isinstance(thing, Opaque):
        states = state if isinstance(state, tuple) else (state,)  # with slots it is two
        thing.state = next((part for part in states if isinstance(part, dict)), {})
    stack.append(thing)


def _set_items(target: dict, items: list, literally: bool = False) -> dict:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes, int, float, type(None))):  # hashing deep tuples would overflow C's stack
            key = Opaque(f"a {type(key).__name__} as a key")
        if key in target and not literally and isinstance(value, Tensor):
            raise BadInput(f"names {str(key)[:100]!r} twice")
        target[key] = value
    return target


def _named(module, name) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise BadInput("asks for something unnamed")
    return Global(module, name)


def _tensor(storage, offset, shape, strides, *_) -> Tensor | Opaque:
    """`torch._utils._rebuild_tensor_v2(storage, storage_offset, size, stride, …)`."""
    if isinstance(storage, Opaque):
        return storage
    sizes = (*shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
    if not isinstance(storage, Storage) or not all(map(_is_count, (offset, *sizes))) or len(shape) != len(strides):
        raise BadInput("a tensor whose offset, shape or strides are not whole numbers from 0 up, or not as many")
    tensor = Tensor(storage, offset, shape, strides)
    if offset + tensor.reach > storage.count or math.prod(shape) > storage.count:  # the second: stride 0, repeated
        raise BadInput(
            f"a tensor of shape {_short(shape)} reaches value {_short(offset + tensor.reach)} "
            f"of a storage of {_short(storage.count)}"
        )
    return tensor


def _is_count(value) -> bool:
    return isinstance(value, int) and value >= 0


def _short(value) -> str:
    """Numbers as people write them, and no more than a line of them."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value[:8]))}{', …' if len(value) > 8 else ''})"
    return f"{value}" if value < 1 << 62 else "2**62 or more"


def _ordered_dict(items=()) -> dict:
    return _set_items({}, [part for key, value in items for part in (key, value)])


def _from_type(function, kind, arguments, *_):
    """`torch._tensor._rebuild_from_type_v2(function, type, arguments, state)`: a tensor of a class of its own."""
    known = _CALLS.get(function) if isinstance(function, Global) else None
    return known(*arguments) if known and known is not _from_type else Opaque(kind)


_CALLS = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): lambda *_: {},
    Global("torch", "Size"): tuple,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    Global("torch._tensor", "_rebuild_from_type_v2"): _from_type,
}


def described(value) -> str:
    """What a pickle built, in a word."""
    if isinstance(value, Tensor):
        return f"tensor {_short(value.shape)} {value.storage.dtype}"
    if isinstance(value, (Opaque, Global)):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _short(value)
    if isinstance(value, (str, float, bool, type(None))):
        return repr(value[:60] if isinstance(value, str) else value)
    return f"{type(value).__name__} of {len(value)}"
