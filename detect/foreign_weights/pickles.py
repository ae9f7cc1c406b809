"""Reading numpy arrays from a pickle without unpickling it: nothing in the file is imported or called.

A pickle is a program for a stack machine, with instructions that call any function that Python can import. Model zoos
distribute arrays in this format nevertheless. Here Python's disassembler (`pickletools`) reads the program.
Instructions that create plain values are executed, and calls of the few functions that create arrays are emulated. All
other calls are refused.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detect.errors import UserError

CALLABLE = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),  # pickle's protocol 5
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # non-empty bytes that Python 3 wrote for Python 2
    ("__builtin__", "bytes"),
    ("collections", "OrderedDict"),
}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = re.compile(r"[fiub][1248]")
"""Dtype names of numbers; objects, strings and records are refused."""


def read_pickle(path: Path) -> Any:
    """Read a pickle of numbers, strings, bytes, lists, tuples, dicts and, as values of dicts, numpy arrays.

    The arrays are read-only. Strings that Python 2 wrote are decoded as latin-1.

    Raises:
        UserError: the file would call another function, has arrays of objects, claims more data than it has, or is
            truncated.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Machine(path, len(content)).run(pickletools.genops(content))  # type: ignore[arg-type]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give another file") from None
    except Exception as error:  # hostile bytes can raise any error
        raise UserError(f"{path}: not a pickle, or damaged ({type(error).__name__}); download it again") from None


@dataclass(frozen=True, slots=True)
class _Function:
    """Function that the program may call."""

    name: str


@dataclass(slots=True)
class _Kind:
    """Dtype: a name such as `f4`, and the byte order."""

    name: str
    order: str = "="


@dataclass(slots=True)
class _Array:
    """Array; the program creates it before it sets the content."""

    value: np.ndarray | None = None


class _Machine:
    """Stack machine that executes the program on plain values.

    Args:
        path: file name for messages.
        size: size of the file in bytes, the maximum number of bytes that the program may encode from strings.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.bytes_left = path, size
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.dicts: list[dict] = []

    def run(self, program: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """Execute the program and return its value."""
        for instruction, argument, _ in program:
            self.step(instruction.name, argument)
        for content in self.dicts:
            for key, value in content.items():
                if isinstance(value, _Array):
                    if value.value is None:
                        raise self.refusal("an array without content")
                    content[key] = value.value
        return self.stack.pop()

    def step(self, instruction: str, argument: Any) -> None:
        """Execute one instruction, given by its name in `pickletools`."""
        match instruction:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(CONSTANTS[instruction])
            case _ if instruction in LITERALS:
                self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.below_marks.append(self.stack)
                self.stack = []
            case "GLOBAL":
                self.stack.append(self.function(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                self.stack.append(self.function(module, name))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self.call(function, arguments))
            case "BUILD":
                state = self.stack.pop()
                self.fill(self.stack[-1], state)
            case _:
                self.collect(instruction)

    def collect(self, instruction: str) -> None:
        """Execute an instruction that creates or fills a tuple, list or dict."""
        match instruction:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                parts = [self.stack.pop() for _ in range(int(instruction[-1]))]
                self.stack.append(tuple(reversed(parts)))
            case "TUPLE":
                parts = self.above_mark()
                self.stack.append(tuple(parts))
            case "EMPTY_LIST":
                self.stack.append([])
            case "LIST":
                parts = self.above_mark()
                self.stack.append(parts)
            case "APPEND":
                self.extend([self.stack.pop()])
            case "APPENDS":
                self.extend(self.above_mark())
            case "EMPTY_DICT":
                self.stack.append(self.new_dict())
            case "DICT":
                parts = self.above_mark()
                self.stack.append(self.new_dict())
                self.update(parts)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.above_mark())
            case _:  # objects of other classes, or external references
                raise self.refusal(f"the instruction {instruction}")

    def above_mark(self) -> list[Any]:
        """Return the values above the last mark, and remove the mark."""
        above, self.stack = self.stack, self.below_marks.pop()
        return above

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise self.refusal("list items for another type")
        self.stack[-1].extend(values)

    def new_dict(self) -> dict:
        """Return an empty dict, whose arrays are replaced by their content at the end."""
        self.dicts.append({})
        return self.dicts[-1]

    def update(self, entries: list[Any]) -> None:
        """Add alternating keys and values to the dict on top of the stack."""
        keys, values = entries[::2], entries[1::2]
        # Hashing nested tuples is recursive and could overflow Python's stack.
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | int) for key in keys):
            raise self.refusal("dict items for another type, or with keys other than strings and integers")
        self.stack[-1].update(zip(keys, values, strict=True))

    # ---- emulated calls ----------------------------------------------------------------------------------------------

    def function(self, module: Any, name: Any) -> _Function:
        """Return a placeholder for an allowed function or class."""
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in CALLABLE:
            raise self.refusal(f"a call of {reprlib.repr(module)} {reprlib.repr(name)}")
        return _Function(name)

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the result of an emulated call."""
        match function, arguments:
            case _Function("OrderedDict"), ():
                return self.new_dict()
            case _Function("encode"), (str(text), "latin1" | "latin-1"):
                return self.encode(text)
            case _Function("bytes"), ():
                return b""
            case _Function("dtype"), (str(name), *_):
                return _Kind(name)
            case _Function("_reconstruct"), (_Function("ndarray"), tuple(), bytes() | str()):
                return _Array()
            case _Function("_frombuffer"), (bytes(data), _Kind() as kind, tuple(shape), "C" | "F" as order):
                return _Array(self.array(data, kind, shape, order))
        raise self.refusal(f"a call of {function.name if isinstance(function, _Function) else 'no function'}")

    def fill(self, target: Any, state: Any) -> None:
        """Set the state of a dtype or array."""
        match target, state:
            case _Kind(), (int(), str(order), None, None, None, *_):
                target.order = order
            case _Array(), (int(), tuple(shape), _Kind() as kind, int(columns_first), bytes() | str() as data):
                data = self.encode(data) if isinstance(data, str) else data
                target.value = self.array(data, kind, shape, "F" if columns_first else "C")
            case dict(), _:
                pass  # attributes that torch sets on an OrderedDict
            case _Array(), (_, _, _Kind() as kind, *_):  # an array of objects has a list as its data
                raise self.refusal(f"an array of dtype {reprlib.repr(kind.name)}")
            case _:
                raise self.refusal("the state of an unknown object")

    def encode(self, text: str) -> bytes:
        """Encode a string as bytes."""
        self.bytes_left -= len(text)
        if self.bytes_left < 0:
            raise self.refusal("strings of more bytes than the file has")
        return text.encode("latin-1")

    def array(self, data: bytes, kind: _Kind, shape: tuple[Any, ...], order: Any) -> np.ndarray:
        """Return an array that shares the memory of the bytes."""
        if not NUMBERS.fullmatch(kind.name) or kind.order not in "<>=|":
            raise self.refusal(f"an array of dtype {reprlib.repr(kind.name)}")
        dtype = np.dtype(kind.order + kind.name)
        sides = [side for side in shape if type(side) is int and side >= 0]
        if len(sides) != len(shape) or math.prod(sides) * dtype.itemsize != len(data):
            raise self.refusal(f"an array of shape {reprlib.repr(shape)} in {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(sides, order=order)

    def refusal(self, content: str) -> UserError:
        """Return the error for content that is refused."""
        return UserError(
            f"{self.path}: contains {content}, which weights do not need; nothing was executed; give a file with "
            "{name: array of numbers}"
        )
