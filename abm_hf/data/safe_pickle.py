"""Pickled dicts of NumPy arrays, as WAP and its successors hand their images round, read from files of strangers.

`pickle` calls whatever a file names. Here `find_class` admits the constructors of NumPy's arrays alone and gives
stand-ins for them, which check shape and type before NumPy sees them. Before that the instructions are looked through
(`pickletools`): lists, sets, instances and persistent ids are refused, and so is what costs more than it weighs.

Protocols 0 to 5 are read, as Python 2 and 3 and NumPy 1 and 2 write them. All arrays are in memory at once.
"""

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

#: Most bytes of the file, and of one array.
MAX_FILE_BYTES = 8 * 2**30
MAX_ARRAY_BYTES = 64 * 2**20
#: Things on the stack at once: an honest file has a few thousand.
_MAX_STACK = 100_000

_OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
_TYPES = frozenset(("b1", "u1", "u2", "u4", "i1", "i2", "i4", "i8", "f2", "f4", "f8"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = frozenset(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_INSTRUCTIONS = re.compile(
    "PROTO|FRAME|MARK|STOP|NONE|NEWTRUE|NEWFALSE|(BIN)?INT|BININT[12]|LONG1?|((SHORT_)?BIN)?STRING|(SHORT_)?BINBYTES|"
    "BINBYTES8|BYTEARRAY8|((SHORT_)?BIN)?UNICODE|BINUNICODE8|EMPTY_TUPLE|TUPLE[123]?|EMPTY_DICT|DICT|SETITEMS?|"
    "PUT|(LONG_)?BINPUT|MEMOIZE|GET|(LONG_)?BINGET|(STACK_)?GLOBAL|REDUCE|BUILD"
)


class PickleError(ValueError):
    """The file is no pickled dict of NumPy arrays; the message says what was found."""


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict, by their names.

    Raises:
        PickleError: The file is anything but a pickled dict from strings to NumPy arrays of numbers.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        if not 0 < size <= MAX_FILE_BYTES:
            raise PickleError(f"{path} has {size} bytes; up to {MAX_FILE_BYTES} are read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _check_instructions(content)
                content.seek(0)
                found = _ArrayUnpickler(content, size).load()
            except PickleError:
                raise
            except Exception as error:  # a crafted file may fail in any way
                raise PickleError(f"the pickle is damaged: {error}") from error
    if not isinstance(found, dict):
        raise PickleError(f"{path} holds something {_describe(found)}, not a dict of arrays")
    result = {}
    for key, value in found.items():
        if not isinstance(key, str | bytes):
            _refuse(f"has a key {_describe(key)}")
        if not isinstance(value, _Array) or value.array is None:
            raise PickleError(f"{path}: {key!r} is {_describe(value)}, not an array")
        result[key if isinstance(key, str) else key.decode("utf-8", "replace")] = value.array
    return result


def _refuse(what: str, position: int | None = None) -> NoReturn:
    where = "" if position is None else f" (byte {position})"
    raise PickleError(f"the pickle {what}{where}; only dicts of NumPy arrays are read")


def _describe(thing: Any) -> str:
    return f"of type {type(thing).__name__.lstrip('_')}"


def _check_instructions(file: Any) -> None:
    """Goes through the instructions without running them.

    Raises:
        PickleError: Some have nothing to do with arrays, or would be dear: an enormous memo; a tuple as a key, whose
            hash may take for ever; a state for anything but what a constructor made.
    """
    stack: list[str] = []  # of each thing the instruction that made it
    memo: dict[int, str] = {}
    count = 0
    name = ""
    while name != "STOP":
        position, count = file.tell(), count + 1
        code = file.read(1)
        operation = _OPERATIONS.get(code.decode("latin-1"))
        if operation is None or not _INSTRUCTIONS.fullmatch(operation.name):
            _refuse(f"has the instruction {code!r}, unknown to arrays" if code else "ends early", position)
        name = operation.name
        reader: Callable[[Any], Any] | None = operation.arg.reader if operation.arg else None
        if name == "STRING":  # bytes of Python 2, which pickletools takes for ASCII
            reader = mmap.mmap.readline
        argument: Any = reader(file) if reader else None  # reads what is there, however much is announced
        if isinstance(argument, bytes | bytearray | str) and len(argument) > MAX_ARRAY_BYTES:
            _refuse(f"has an array of {len(argument)} bytes; {MAX_ARRAY_BYTES} are allowed", position)
        if name in _PUT:
            index = len(memo) if name == "MEMOIZE" else int(argument)
            if index > count:
                _refuse("remembers more than it has", position)
            memo[index] = stack[-1]
            continue
        taken = _take(stack, operation)
        if (
            (name == "SETITEM" and taken[1] in _TUPLES)
            or (name in ("SETITEMS", "DICT") and _TUPLES.intersection(taken[name == "SETITEMS" :: 2]))
            or (name == "REDUCE" and taken[0] not in ("GLOBAL", "STACK_GLOBAL"))
            or (name == "BUILD" and taken[0] not in ("REDUCE", "BUILD"))
        ):
            _refuse(f"uses {name} for something else", position)
        stack += [memo[argument] if name in _GET else name] * len(operation.stack_after)
        if len(stack) > _MAX_STACK:
            _refuse("piles up too much", position)


def _take(stack: list[str], operation: pickletools.OpcodeInfo) -> list[str]:
    """Takes from the stack what an instruction takes; a mark itself is left out.

    Raises:
        IndexError: The stack is too short.
    """
    kinds, above = operation.stack_before, []
    if pickletools.stackslice in kinds:
        while (thing := stack.pop()) != "MARK":
            above.append(thing)
        kinds = kinds[: kinds.index(pickletools.markobject)]
    below = [stack.pop() for _ in kinds]
    return below[::-1] + above[::-1]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and nothing else; of a file of `size` bytes no more than as many."""

    def __init__(self, file: mmap.mmap, size: int) -> None:
        super().__init__(file, encoding="bytes")
        self.left = size

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a constructor.

        Raises:
            PickleError: It is none of those that arrays need.
        """
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): self.encode,
            **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
            **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
            **{(module, "bytes"): self.bytes for module in ("builtins", "__builtin__")},
            **{(module, "bytearray"): self.bytes for module in ("builtins", "__builtin__")},
        }
        if (module, name) not in known:
            _refuse(f"names {module}.{name}")
        return known[module, name]

    def encode(self, text: str, coding: str) -> bytes:
        """Bytes as protocols 0 to 2 have them: a text whose characters they are."""
        if _text(coding) not in ("latin1", "latin-1"):
            _refuse(f"encodes as {coding!r}")
        return self.bytes(text.encode("latin-1"))

    def bytes(self, data: bytes | bytearray = b"") -> bytes:
        """A copy, which crafted files could ask for again and again."""
        if not isinstance(data, bytes | bytearray):
            _refuse(f"makes bytes from something {_describe(data)}")
        self.left -= len(data)
        if self.left < 0:
            _refuse("repeats its data")
        return bytes(data)


class _Type:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if _text(code) not in _TYPES:
            _refuse(f"has an array of type {_text(code)!r}")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if (subtype, names, fields) != (None, None, None):
            _refuse("has an array of records")
        self.dtype = self.dtype.newbyteorder(_text(order))  # type: ignore[arg-type]


class _Array:
    """Stands in for `numpy.ndarray`."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.array = _frombuffer(data, kind, shape, "F" if fortran else "C").array


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    dtype = kind.dtype
    if (
        not isinstance(shape, tuple)
        or len(shape) > 4
        or not all(type(side) is int and 0 <= side < 2**31 for side in shape)
        or math.prod(shape) * dtype.itemsize != len(data)
    ):
        _refuse("has an array of a shape that does not fit its data")
    return _Array(np.frombuffer(data, dtype).reshape(shape, order="F" if _text(order) == "F" else "C"))


def _text(value: Any) -> str:
    """Text, which Python 2 has as bytes."""
    if not isinstance(value, str | bytes):
        _refuse(f"has something {_describe(value)} for a name")
    return value if isinstance(value, str) else value.decode("ascii")
