"""Reads the pickles of a published data set without unpickling them.

A pickle is a program, and `pickle.load` runs it. Even an allow-list of numpy's own functions is not enough: a file may
set the state of ``numpy.dtype`` so that raw bytes are taken for object pointers. So nothing that a file names is ever
looked up or called here. `read_pickle` interprets the opcodes that data need; numbers, text and containers become
themselves, and a call becomes a `Call`, an inert note of what was asked for. `as_array` reads a note that describes an
array, by its shape, its plain number type and its bytes.

A file may still waste time and memory, both bounded by its size and `MOST_OPCODES`.
"""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigil.errors import VigilError

MOST_OPCODES = 5_000_000  # a roll-out of a thousand ticks has some hundred thousand
MOST_BYTES = 2**31

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{(module, "_reconstruct"): "array" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "buffer" for module in _NUMERIC},  # protocol 5
    ("_codecs", "encode"): "bytes",  # protocol 2, as the next one
    ("__builtin__", "bytes"): "no bytes",
    ("collections", "OrderedDict"): "dict",
}
"""Names that a file may mention, and what a call of each would have made. None of them is called."""


@dataclass(frozen=True)
class Name:
    """A global that the file mentions."""

    makes: str


@dataclass
class Call:
    """What the file wanted to have called, and the state it wanted to give to the result. Data, never done."""

    makes: str
    args: tuple
    state: Any = None


def read_pickle(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of one pickle file of plain containers, numbers, text and (as `Call`) numpy arrays.

    Raises:
        VigilError: the file is too large, truncated or no pickle, or needs anything but the above; names what.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise VigilError(
                f"{path} has {size} bytes, at most {most_bytes} are read: split it, or raise the limit"
            )
        data = path.read_bytes()
    except OSError as error:
        raise VigilError(f"cannot read {path}: {error}") from None
    try:
        return _Interpreter(path).run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise VigilError(
            f"cannot read {path}: damaged, cut short or no pickle ({error}); copy it again. Nothing was executed"
        ) from None


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "INT",
    "LONG",
    "BINFLOAT",
    "FLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Interpreter:
    """The stack machine of `pickle`, less every opcode that could act. Sets become lists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, arg, position) in enumerate(pickletools.genops(data)):
            if count >= MOST_OPCODES:
                raise self._refusal(f"it has more than {MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                if position + 1 != len(data):
                    raise ValueError(f"{len(data) - position - 1} bytes follow its end")
                return self.stack.pop()
            self._step(opcode.name, arg)
        raise ValueError("it has no end")

    def _step(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[arg])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(self._take(_TUPLES[name]))
        elif name in ("TUPLE", "FROZENSET"):
            stack.append(self._since_mark())
        elif name == "LIST":
            stack.append(list(self._since_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name in ("EMPTY_DICT", "DICT"):
            items = self._since_mark() if name == "DICT" else ()
            stack.append({})
            self._set_items(items)
        elif name == "APPEND":
            self._extend(self._take(1))
        elif name in ("APPENDS", "ADDITEMS"):
            self._extend(self._since_mark())
        elif name == "SETITEM":
            self._set_items(self._take(2))
        elif name == "SETITEMS":
            self._set_items(self._since_mark())
        elif name == "GLOBAL":
            stack.append(self._name(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self._name(*self._take(2)))
        elif name == "REDUCE":
            stack.append(self._call(*self._take(2)))
        elif name == "BUILD":
            self._build(*self._take(1))
        else:
            raise self._refusal(f"it uses the opcode {name}, which data do not need")

    def _take(self, count: int) -> tuple:
        """The top values of the stack, which must have been put there after the last mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack is empty")
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def _since_mark(self) -> tuple:
        start = self.marks.pop()
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def _extend(self, items: tuple) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    def _set_items(self, items: tuple) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple of tuples of tuples could take for ever, or overflow the stack.
            if not isinstance(key, str | int | float | None):
                raise ValueError(f"a dictionary has a {type(key).__name__} for a key")
            target[key] = value

    def _name(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it names a global by what is no text")
        if (module, name) in GLOBALS:
            return Name(GLOBALS[module, name])
        full = f"{module}.{name}"[:120]
        if module.split(".")[0] == "torch":
            raise self._refusal(
                f"it holds a PyTorch object ({full}). Convert tensors with tensor.detach().cpu().numpy() where the "
                "file was written, and pickle the arrays"
            )
        raise self._refusal(
            f"it calls for {full}; only numpy arrays, numbers, text, lists, tuples and dictionaries are read. If you "
            "trust where the file comes from, load it there and write these alone"
        )

    def _call(self, function: Any, args: Any) -> Any:
        if not (isinstance(function, Name) and isinstance(args, tuple)):
            raise self._refusal("it calls what is no function")
        if function.makes in ("dict", "no bytes"):
            if args:
                raise self._refusal("it fills a container or makes bytes by a call")
            return {} if function.makes == "dict" else b""
        return Call(function.makes, args)

    def _build(self, state: Any) -> None:
        if not isinstance(self.stack[-1], Call):
            raise self._refusal(f"it sets the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].state = state

    def _refusal(self, why: str) -> VigilError:
        return VigilError(f"{self.path} is refused: {why}. Nothing was executed")


def as_array(value: Any) -> np.ndarray | list:
    """The array that a value of `read_pickle` describes, or the items of an array of objects.

    Raises:
        ValueError: it describes none of numbers, text or objects; says why.
    """
    if isinstance(value, bool | int | float | str):
        return np.asarray(value)
    if not isinstance(value, Call):
        raise ValueError(f"a {type(value).__name__} is no array")
    if value.makes == "array":
        _, shape, dtype, fortran, data = value.state if isinstance(value.state, tuple) else ()
        order = "F" if fortran else "C"
        axes = None
    elif value.makes == "buffer":
        data, dtype, shape, order, *rest = value.args
        axes = rest[0] if order == "K" and rest else None
        order = "C" if order == "K" else order
    elif value.makes == "scalar":
        (dtype, data), shape, order, axes = value.args, (), "C", None
    else:
        raise ValueError(f"a {value.makes} is no array")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise ValueError("its shape is no tuple of lengths")
    if not (isinstance(dtype, Call) and dtype.makes == "dtype" and dtype.args):
        raise ValueError("its type is unknown")
    code = dtype.args[0]
    if code in ("O", "O8") and isinstance(data, list):
        if shape != (len(data),):
            raise ValueError(f"an array of objects has shape {list(shape)}, one dimension is read")
        return data
    if not (isinstance(code, str) and re.fullmatch(r"[biufU]\d{1,6}", code)):
        shown = code[:20] if isinstance(code, str) else type(code).__name__
        raise ValueError(f"it holds values of type {shown}, must hold numbers")
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    byte_order = ">" if len(state) > 1 and state[1] == ">" else "<"
    kind, data = np.dtype(byte_order + code), _as_bytes(data)
    if math.prod(shape) * kind.itemsize != len(data) or kind.itemsize == 0:
        raise ValueError(f"{len(data)} bytes do not make {list(shape)} values of {kind}")
    array = np.frombuffer(data, kind).reshape(shape, order=order)
    return array if axes is None else array.transpose(axes)


def _as_bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, Call) and data.makes == "bytes":
        text, encoding = data.args
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin1")
    if isinstance(data, bytes | bytearray):
        return data
    raise ValueError("its content is no bytes")
