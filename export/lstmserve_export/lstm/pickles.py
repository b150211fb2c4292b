"""Reads a pickle as data: dicts, lists, numbers, text, and the names of everything else.

It imports nothing that a pickle names and calls nothing that a pickle holds, so no pickle can run
code here. It knows nothing of tensors and arrays: decode.py gives the names their meaning.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
OPCODES_MAX = 5_000_000  # some ten seconds, and a GB at most
# Opcodes that push their argument.
_PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


class Malformed(Exception):
    """The bytes are no pickle, or use an opcode that no file of weights needs."""


@dataclass(eq=False, slots=True)
class Object:
    """What a pickle would make by calling `name`, such as "numpy.dtype", with `args`.

    `state` is what the pickle would set on it. A class or function itself has no args: None. A
    persistent id, by which torch names a storage, has the name "".
    """

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


def read_pickle(file: IO[bytes]) -> Any:
    """The value of the first pickle in the file. Raises Malformed, and whatever bad bytes cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of text with escapes that Python does not know
        return _Reading().run(file)


class _Reading:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if count == OPCODES_MAX:
                raise Malformed(f"more than {OPCODES_MAX} opcodes")
            if name == "STOP":
                return self._stack.pop()
            if name in _PLAIN:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            else:
                self._do(name, argument)
        raise Malformed("no end")

    def _do(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise Malformed(f"the opcode {name}")

    def pop(self, count: int) -> list[Any]:
        """The last values, the lowest first."""
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise Malformed("the stack is too short")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def pop_marked(self) -> list[Any]:
        """The values above the last mark."""
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop_or_unmark(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self.pop(1)

    def put_items(self, flat: list[Any]) -> None:
        """Enters keys and values that follow each other into the dict below them."""
        target = self._stack[-1]
        items = target.items if isinstance(target, Object) else target
        items.update(_pairs(flat))

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)

    def build(self) -> None:
        (state,) = self.pop(1)
        target = self._stack[-1]
        if isinstance(target, Object):
            target.state = state


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys and values. Leaves out keys that are no scalars: Python hashes a tuple in a tuple in a
    tuple, ..., by recursion without a limit."""
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        if isinstance(key, (str, int, float, bytes, type(None))):
            yield key, value


def _call(function: Any, args: Any) -> Any:
    """A dict for a class of dicts, else the name with its arguments."""
    if not isinstance(function, Object) or not isinstance(args, tuple):
        raise Malformed("a call of what is no function")
    if function.name in DICTS:
        return {}
    return Object(function.name, args)


def _global(name: str, _: Any = None) -> Object:
    """A class or function; pickletools parts module and name by a space."""
    return Object(name.replace(" ", "."))


def _stack_global(reading: _Reading, _: Any) -> None:
    module, name = reading.pop(2)
    reading.push(_global(f"{module} {name}"))


def _obj(reading: _Reading, _: Any) -> None:
    function, *args = reading.pop_marked()
    reading.push(_call(function, tuple(args)))


def _newobj_ex(reading: _Reading, _: Any) -> None:
    function, args, _keywords = reading.pop(3)
    reading.push(_call(function, args))


def _dup(reading: _Reading, _: Any) -> None:
    (value,) = reading.pop(1)
    reading.push(value)
    reading.push(value)


_Step = Callable[[_Reading, Any], None]
_STEPS: dict[str, _Step] = {
    "POP": lambda r, _: r.pop_or_unmark(),
    "POP_MARK": lambda r, _: r.pop_marked().clear(),
    "DUP": _dup,
    "TUPLE": lambda r, _: r.push(tuple(r.pop_marked())),
    "TUPLE1": lambda r, _: r.push(tuple(r.pop(1))),
    "TUPLE2": lambda r, _: r.push(tuple(r.pop(2))),
    "TUPLE3": lambda r, _: r.push(tuple(r.pop(3))),
    "LIST": lambda r, _: r.push(r.pop_marked()),
    "FROZENSET": lambda r, _: r.push(r.pop_marked()),
    "DICT": lambda r, _: r.push(dict(_pairs(r.pop_marked()))),
    "SETITEM": lambda r, _: r.put_items(r.pop(2)),
    "SETITEMS": lambda r, _: r.put_items(r.pop_marked()),
    "APPEND": lambda r, _: r.extend(r.pop(1)),
    "APPENDS": lambda r, _: r.extend(r.pop_marked()),
    "ADDITEMS": lambda r, _: r.extend(r.pop_marked()),
    "GLOBAL": lambda r, name: r.push(_global(name)),
    "STACK_GLOBAL": _stack_global,
    "INST": lambda r, name: r.push(_call(_global(name), tuple(r.pop_marked()))),
    "OBJ": _obj,
    "REDUCE": lambda r, _: r.push(_call(*r.pop(2))),
    "NEWOBJ": lambda r, _: r.push(_call(*r.pop(2))),
    "NEWOBJ_EX": _newobj_ex,
    "BUILD": lambda r, _: r.build(),
    "BINPERSID": lambda r, _: r.push(Object("", tuple(r.pop(1)))),
    "PERSID": lambda r, text: r.push(Object("", (text,))),
    "READONLY_BUFFER": lambda r, _: None,
}
