"""A pickle, followed by hand: it can build dicts, lists, tuples, numbers, text, and the outlines of PyTorch's tensors.

A pickle is a program for a small stack machine, and one of its instructions calls any function by its name: whoever
unpickles a file runs whatever its author liked. So nothing is unpickled here. `pickletools` (standard library) splits
the file into instructions, and `run` follows those few that state dicts are made of. What they may call is the table
`_CALLS`: descriptions, no functions of PyTorch's.
"""

import math
import pickletools
from typing import BinaryIO, NamedTuple

from minivgg.errors import BadInput

MAX_STEPS = 1 << 20  # instructions; a tensor takes about thirty

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
}
_STORAGES = {("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
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


class _Global(NamedTuple):
    module: str
    name: str


_MARK = object()


def run(stream: BinaryIO):
    """What the pickle at the stream's position builds, leaving the stream behind it.

    Raises BadInput, with the offset, for an instruction or a name that weights have no need of, and for a tensor that
    reaches outside its storage. Cost: memory in proportion to the pickle's instructions, at most `MAX_STEPS`.
    """
    start, offset, stack, memo = stream.tell(), stream.tell(), [], {}
    try:
        for step, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            offset = position if position is not None else start
            if step >= MAX_STEPS:
                raise BadInput(f"more than {MAX_STEPS:,} instructions")
            if opcode.name == "STOP":
                return stack.pop()
            _follow(opcode.name, argument, stack, memo)
    except BadInput as error:
        raise BadInput(f"offset {offset}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = " ".join(str(error).split())[:200]
        raise BadInput(f"offset {offset}: a damaged pickle: {type(error).__name__} {problem}") from None
    raise BadInput(f"offset {offset}: a pickle that does not end")


def _follow(name: str, argument, stack: list, memo: dict) -> None:
    """One instruction."""
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
    elif name in _TUPLES:
        stack.append(tuple(_pop(stack, _TUPLES[name])))
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name == "LIST":
        stack.append(_pop_to_mark(stack))
    elif name == "DICT":
        _set_items({}, _pop_to_mark(stack), stack)
    elif name in ("APPEND", "APPENDS"):
        items = _pop_to_mark(stack) if name == "APPENDS" else _pop(stack, 1)
        _top(stack, list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else _pop(stack, 2)
        _set_items(_top(stack, dict), items)
    elif name == "GLOBAL":
        stack.append(_permitted(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        stack.append(_permitted(*_pop(stack, 2)))
    elif name == "REDUCE":
        function, arguments = _pop(stack, 2)
        if not isinstance(function, _Global) or function not in _CALLS:
            raise BadInput("calls what is no function of the table of permitted ones")
        stack.append(_CALLS[function](*arguments))
    elif name == "BUILD":  # an OrderedDict's own attributes: PyTorch's note of each module's version
        stack.pop()
        _top(stack, dict)
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    else:
        raise BadInput(f"the instruction {name}, which no file of weights needs")


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


def _set_items(target: dict, items: list, stack: list | None = None) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes, int, float, type(None))):  # hashing deep tuples would overflow C's stack
            raise BadInput(f"a dict's key is a {type(key).__name__}, where text and numbers are expected")
        if key in target and stack is None and isinstance(value, Tensor):
            raise BadInput(f"names {str(key)[:100]!r} twice")
        target[key] = value
    if stack is not None:
        stack.append(target)


def _permitted(module, name) -> _Global:
    wanted = _Global(module, name)
    if not (isinstance(module, str) and isinstance(name, str)) or (wanted not in _CALLS and wanted not in _STORAGES):
        said = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something unnamed"
        raise BadInput(f"asks for {said[:100]!r}, which no array needs; nothing was run")
    return wanted


def _storage(identity) -> Storage:
    """A persistent id: ("storage", type, key, device, count), and in the legacy format what it is a part of."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise BadInput("a persistent id that names no storage")
    _, kind, key, _, count, *part = identity
    if kind not in _STORAGES or not isinstance(key, str) or not _is_count(count):
        raise BadInput("a storage of unknown type or size")
    if part not in ([], [None]):
        raise BadInput("a storage that is part of another, as PyTorch before 0.4 wrote; save it again with a newer")
    return Storage(key, _STORAGES[kind], count)


def _tensor(storage, offset, shape, strides, *_) -> Tensor:
    """`torch._utils._rebuild_tensor_v2(storage, storage_offset, size, stride, …)`."""
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
    target = {}
    _set_items(target, [part for key, value in items for part in (key, value)])
    return target


_CALLS = {
    _Global("collections", "OrderedDict"): _ordered_dict,
    _Global("torch", "Size"): tuple,
    _Global("torch._utils", "_rebuild_tensor"): _tensor,
    _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Global("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}
