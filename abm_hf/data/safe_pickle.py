"""Pickled NumPy arrays, read without unpickling: no class is looked up and nothing is called.

WAP and its successors hand their images round as one pickle, a dict from names to arrays. Python's `pickle` would run
whatever such a file says, and even an `Unpickler` that restricts classes can be made to fill the memory. This reads
the pickle's instructions itself, knows only those that such a dict needs, and keeps of each array its place in the
file. So a file of any size is indexed in little memory, and its arrays are read one at a time.

Protocols 0 to 5 are read, as Python 2 and 3 and NumPy 1 and 2 write them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: Arrays may have this many bytes, and lines of protocol 0 four times as many.
MAX_ARRAY_BYTES = 64 * 2**20
#: Things on the stack at once, and remembered: an honest file has a few thousand, and ten for each array.
MAX_STACK = 100_000
MAX_MEMO = 10_000_000
#: Byte strings from this length on are left in the file.
_SMALL = 256

#: What Python 2 writes into a string literal.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}

_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
_TYPES = frozenset(("b1", "u1", "u2", "u4", "i1", "i2", "i4", "i8", "f2", "f4", "f8"))


class PickleError(ValueError):
    """The file is no pickled dict of NumPy arrays; the message says what was found, and where in the file."""


@dataclass(frozen=True)
class Bytes:
    """Where a byte string stands.

    From `offset` on `length` bytes, written `raw`, as `repr`, or as text whose characters
    are the bytes: `latin1` in UTF-8, `escape` in Python's escapes."""

    offset: int
    length: int
    coding: str


@dataclass
class StoredArray:
    """Where an array stands in a pickle, and its shape and type."""

    data: Bytes | bytes = b""
    shape: tuple[int, ...] = (0,)
    dtype: str = "|u1"
    fortran: bool = False

    def load(self, file: BinaryIO) -> np.ndarray:
        """Reads it.

        Raises:
            PickleError: What the file holds there does not fit the shape.
        """
        data = self.data if isinstance(self.data, bytes) else _read_bytes(file, self.data)
        dtype = np.dtype(self.dtype)
        if len(data) != dtype.itemsize * _product(self.shape):
            raise PickleError(f"an array of shape {self.shape} and type {self.dtype} has {len(data)} bytes")
        try:
            return np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.fortran else "C")
        except ValueError as error:  # sizes beyond any memory, one of them 0
            raise PickleError(f"an array of shape {self.shape}: {error}") from error


@dataclass
class _Name:
    """A class or function that the pickle names. It is only ever compared."""

    module: str
    name: str


@dataclass
class _Type:
    code: str
    order: str = "|"


class _Mark:
    """The opcode MARK on the stack."""


_MARK = _Mark()


def index_arrays(path: str | Path) -> dict[str, StoredArray]:
    """The arrays of a pickled dict, by their names, without reading them.

    Raises:
        PickleError: The file is anything but a pickled dict from strings to NumPy arrays of numbers.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        found = _Machine(file, size).run()
    if not isinstance(found, dict):
        raise PickleError(f"{path} holds {_describe(found)}, not a dict of arrays")
    result: dict[str, StoredArray] = {}
    for key, value in found.items():
        if not isinstance(value, StoredArray):
            raise PickleError(f"{path}: {key!r} is {_describe(value)}, not an array")
        result[key] = value
    return result


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict, all in memory; see [`index_arrays`]."""
    with Path(path).open("rb") as file:
        return {name: array.load(file) for name, array in index_arrays(path).items()}


def _read_bytes(file: BinaryIO, place: Bytes) -> bytes:
    file.seek(place.offset)
    data = file.read(place.length)
    try:
        if place.coding in ("latin1", "escape"):
            return data.decode("utf-8" if place.coding == "latin1" else "raw-unicode-escape").encode("latin-1")
        return _unquote(data) if place.coding == "repr" else data
    except ValueError as error:
        raise PickleError(f"the byte string at byte {place.offset} is damaged: {error}") from error


def _unquote(data: bytes) -> bytes:
    """A string literal of Python 2, as protocol 0 has it."""
    data = data.strip()
    if len(data) < 2 or data[:1] not in (b"'", b'"') or data[:1] != data[-1:]:
        raise ValueError("no quotes around it")
    return _ESCAPE.sub(_unescape, data[1:-1])


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found.group(1)
    if len(code) == 3:
        return bytes([int(code[1:], 16)])
    if code not in _ESCAPED:
        raise ValueError(f"the escape {found.group()!r}")
    return _ESCAPED[code]


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:  # not NumPy's: it would wrap around
        product *= size
    return product


def _describe(thing: Any) -> str:
    if isinstance(thing, _Name):
        return f"{thing.module}.{thing.name}"
    return f"of type {type(thing).__name__.lstrip('_')}"


class _Machine:
    """Runs the instructions of the pickle at the start of `file`; none may claim more than its `size` in bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.position = 0

    def run(self) -> Any:
        """The object that the pickle holds."""
        while True:
            self.position = self.file.tell()
            code = self.file.read(1)
            if code == b".":
                return self.pop()
            handler = _HANDLERS.get(code)
            if handler is None:
                raise self.error(f"has the instruction {code!r}, unknown to arrays" if code else "ends early")
            try:
                handler(self)
            except PickleError:
                raise
            except (ValueError, OverflowError) as error:  # numbers and text that cannot be decoded
                raise self.error(f"is damaged: {error}") from None
            if len(self.stack) > MAX_STACK or len(self.memo) > MAX_MEMO:
                raise self.error("piles up more than a dict of arrays needs")

    def error(self, what: str) -> PickleError:
        """An error that tells where."""
        return PickleError(f"the pickle {what} (byte {self.position}); only dicts of NumPy arrays are read")

    # --- reading ---

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= self.size - self.file.tell():
            raise self.error("ends early")
        if count > MAX_ARRAY_BYTES:
            raise self.error(f"has a text of {count} bytes")
        return self.file.read(count)

    def number(self, width: int, signed: bool = False) -> int:
        """A little-endian number."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        """Up to the end of the line, which is taken but not returned."""
        limit = 4 * MAX_ARRAY_BYTES
        line = self.file.readline(limit)
        if not line.endswith(b"\n"):
            raise self.error("ends early" if len(line) < limit else "has a line that is too long")
        return line[:-1]

    def text(self, count: int) -> None:
        """Pushes a text; a long one, which stands for bytes, as its place."""
        if count < _SMALL:
            self.stack.append(self.take(count).decode("utf-8", "surrogatepass"))
        else:
            self.skip(count, "latin1", 2)

    def data(self, count: int) -> None:
        """Pushes bytes; long ones as their place."""
        if count < _SMALL:
            self.stack.append(self.take(count))
        else:
            self.skip(count, "raw", 1)

    def skip(self, count: int, coding: str, expansion: int) -> None:
        """Leaves bytes in the file and pushes their place."""
        start = self.file.tell()
        if count > self.size - start:
            raise self.error("ends early")
        if count > expansion * MAX_ARRAY_BYTES:
            raise self.error(f"has an array of {count} bytes; {MAX_ARRAY_BYTES} are allowed")
        self.file.seek(count, 1)
        self.stack.append(Bytes(start, count, coding))

    def quoted(self) -> None:
        """Pushes a string literal of protocol 0."""
        start = self.file.tell()
        line = self.line()
        self.stack.append(_unquote(line) if len(line) < _SMALL else Bytes(start, len(line), "repr"))

    def escaped(self) -> None:
        """Pushes a text of protocol 0; a long one, which stands for bytes, as its place."""
        start = self.file.tell()
        line = self.line()
        small = len(line) < _SMALL
        self.stack.append(line.decode("raw-unicode-escape") if small else Bytes(start, len(line), "escape"))

    def integer(self) -> None:
        """Pushes an integer of protocol 0, or a truth value."""
        line = self.line()
        self.stack.append(line == b"01" if line in (b"00", b"01") else _decimal(line))

    # --- the stack ---

    def pop(self) -> Any:
        """Takes the top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise self.error("takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Takes all that lies above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                taken = self.stack[index + 1 :]
                del self.stack[index:]
                return taken
        raise self.error("takes from a stack without a mark")

    def tuple_of(self, count: int) -> None:
        """Packs the top of the stack."""
        self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))

    def put(self, index: int) -> None:
        """Remembers the top of the stack."""
        self.memo[index] = self.peek()

    def peek(self) -> Any:
        """The top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise self.error("looks at an empty stack")
        return self.stack[-1]

    def get(self, index: int) -> None:
        """Pushes what was remembered."""
        if index not in self.memo:
            raise self.error("refers to something that it has not")
        self.stack.append(self.memo[index])

    def set_items(self, items: list[Any]) -> None:
        """Puts keys and values into the dict below them."""
        target = self.peek()
        if not isinstance(target, dict) or len(items) % 2:
            raise self.error("puts items into something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
            if not isinstance(key, str):
                raise self.error(f"has a key {_describe(key)}")
            target[key] = value

    def new_dict(self) -> None:
        """Makes a dict of what lies above the last mark."""
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    # --- arrays ---

    def name(self, module: Any, name: Any) -> None:
        """Pushes the name of a class or function, if arrays need it."""
        if not isinstance(module, str) or not isinstance(name, str):  # anything else may have no hash
            raise self.error("names something with what is no text")
        if (module, name) not in _ADMITTED:
            raise self.error(f"names {module}.{name}")
        self.stack.append(_Name(module, name))

    def reduce(self) -> None:
        """What a call of a named function would give, for the few that arrays are made with."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise self.error(f"calls something {_describe(function)}")
        match (function.name, *arguments):
            case ("_reconstruct", _Name(name="ndarray"), tuple(), bytes() | str()):
                self.stack.append(StoredArray())
            case ("dtype", str() | bytes() as code, *_):
                self.stack.append(self.dtype(code if isinstance(code, str) else code.decode("ascii")))
            case ("encode", str() as text, "latin1" | "latin-1"):
                self.stack.append(text.encode("latin-1"))
            case ("encode", Bytes(coding="latin1" | "escape") as place, "latin1" | "latin-1"):
                self.stack.append(place)
            case ("_frombuffer", (Bytes() | bytes()) as data, _Type() as kind, tuple() as shape, str() as order):
                self.stack.append(self.array(StoredArray(), shape, kind, order == "F", data))
            case ("bytearray" | "bytes", (Bytes() | bytes()) as data):
                self.stack.append(data)
            case ("bytearray" | "bytes",):
                self.stack.append(b"")
            case _:
                raise self.error(f"calls {function.name} with {[_describe(one) for one in arguments]}")

    def dtype(self, code: str) -> _Type:
        """The type of that name, if it is one of numbers."""
        order, code = (code[0], code[1:]) if code[:1] in "<>|=" and code else ("|", code)
        if code not in _TYPES:
            raise self.error(f"has an array of type {code!r}")
        return _Type(code, order)

    def build(self) -> None:
        """Fills in an array or a type from its state."""
        state, target = self.pop(), self.peek()
        match target, state:
            case _Type(), (int(), (str() | bytes()) as order, None, None, None, *_):
                target.order = order if isinstance(order, str) else order.decode("ascii")
                if target.order not in ("<", ">", "|", "="):
                    raise self.error(f"has a type of byte order {target.order!r}")
            case StoredArray(), (int(), tuple() as shape, _Type() as kind, bool() | int() as fortran, data):
                self.array(target, shape, kind, bool(fortran), data)
            case _:
                raise self.error(f"sets the state of something {_describe(target)}")

    def array(self, target: StoredArray, shape: tuple[Any, ...], kind: _Type, fortran: bool, data: Any) -> StoredArray:
        """Fills in an array that can be read later."""
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 4:
            raise self.error("has an array of a shape that is none")
        dtype = np.dtype(f"{'>' if kind.order == '>' else '<'}{kind.code}")
        needed = _product(shape) * dtype.itemsize
        stored = len(data) if isinstance(data, bytes) else data.length if isinstance(data, Bytes) else -1
        exact = isinstance(data, bytes) or (isinstance(data, Bytes) and data.coding == "raw")
        if needed > MAX_ARRAY_BYTES or needed > stored or (exact and needed != stored):
            raise self.error(f"has an array of shape {shape} that does not fit its data")
        target.shape, target.dtype, target.fortran, target.data = shape, dtype.str, fortran, data
        return target


def _decimal(line: bytes) -> int:
    if len(line) > 32:
        raise ValueError("a number of more than 32 digits")
    return int(line.rstrip(b"L"))


_ADMITTED = frozenset(
    [
        *((module, "_reconstruct") for module in _ARRAYS),
        *((module, "_frombuffer") for module in _BUFFERS),
        *(("numpy", name) for name in ("ndarray", "dtype")),
        ("_codecs", "encode"),
        *((module, name) for module in ("builtins", "__builtin__") for name in ("bytearray", "bytes")),
    ]
)
"""The only names that may occur. None of them is imported or called: they tell which array is meant."""

_HANDLERS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.stack.append(_MARK),
    b"0": lambda m: m.pop(),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": lambda m: m.integer(),
    b"L": lambda m: m.stack.append(_decimal(m.line())),
    b"J": lambda m: m.stack.append(m.number(4, signed=True)),
    b"K": lambda m: m.stack.append(m.number(1)),
    b"M": lambda m: m.stack.append(m.number(2)),
    b"\x8a": lambda m: m.stack.append(m.number(min(m.number(1), 16), signed=True)),
    b"S": lambda m: m.quoted(),
    b"T": lambda m: m.data(m.number(4)),
    b"U": lambda m: m.data(m.number(1)),
    b"B": lambda m: m.data(m.number(4)),
    b"C": lambda m: m.data(m.number(1)),
    b"\x8e": lambda m: m.data(m.number(8)),
    b"\x96": lambda m: m.data(m.number(8)),
    b"V": lambda m: m.escaped(),
    b"X": lambda m: m.text(m.number(4)),
    b"\x8c": lambda m: m.text(m.number(1)),
    b"\x8d": lambda m: m.text(m.number(8)),
    b")": lambda m: m.stack.append(()),
    b"t": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.stack.append({}),
    b"d": lambda m: m.new_dict(),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"p": lambda m: m.put(_decimal(m.line())),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(_decimal(m.line())),
    b"h": lambda m: m.get(m.number(1)),
    b"j": lambda m: m.get(m.number(4)),
    b"c": lambda m: m.name(m.line().decode("ascii"), m.line().decode("ascii")),
    b"\x93": lambda m: m.name(*[m.pop(), m.pop()][::-1]),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
}
"""Instructions by their code (see `pickletools`), as many as arrays in a dict need."""
