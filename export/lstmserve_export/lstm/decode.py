"""Makes tensors of what pickles.py read: those of torch, whose values lie beside the pickle, and
numpy's arrays, whose values lie in it. It runs nothing that a file names, and opens no file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lstmserve_export.lstm.pickles import DICTS, Malformed, Object

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
# The names that numpy 1 and 2 write for an array, a number and a dtype.
ARRAYS = tuple(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
BUFFERS = tuple(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))
SCALARS = tuple(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
DTYPE, BYTES = "numpy.dtype", "_codecs.encode"
NUMPY = {*ARRAYS, *BUFFERS, *SCALARS, DTYPE, BYTES, "numpy.ndarray"}
TORCH = {TENSOR, PARAMETER, *(f"torch.{each}" for each in STORAGES)}
HARMLESS = {*NUMPY, *TORCH, *DICTS, ""}
# Calls that TorchScript puts around a value, to say which type it has.
TYPED = re.compile(r"torch\.jit\._pickle\.\w+")
# A module of torch that has no tensors and changes what goes through it.
FUNCTION = re.compile(
    r"__torch__\.torch\.nn\.modules\.(?:activation|pooling|normalization|padding)\."
    r"(?:___torch_mangle_\d+\.)?(\w+)"
)
_DTYPE = re.compile(r"[fiu][1248]|b1")
DIMS_MAX = 32
NAME_LEN_MAX = 10_000
Storages = Callable[[str], bytes]


class Decoder:
    """Turns the Objects of one file into tensors. `storages` gives the bytes of a storage by key.

    Raises Malformed, and whatever bad sizes cause in torch and numpy.
    """

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._made: dict[str, torch.Tensor] = {}
        self._lists: dict[int, list[Any]] = {}

    def tensor(self, value: Any) -> torch.Tensor | None:
        """The tensor that an Object is, or None for anything else."""
        if not isinstance(value, Object) or value.args is None:
            return None
        if value.name == PARAMETER:
            return self.tensor(value.args[0])
        if value.name == TENSOR:
            return self._torch(*value.args[:4])
        if value.name in (*ARRAYS, *BUFFERS):
            return torch.from_numpy(_array(value))
        return None

    def mapping(self, content: Mapping[Any, Any]) -> dict[Any, Any]:
        """The dict with tensors for Objects, in the dicts below it too."""
        made: dict[int, dict[Any, Any]] = {id(content): {}}
        open_ = [content]
        while open_:
            source = open_.pop()
            for key, value in source.items():
                if isinstance(value, Mapping) and id(value) not in made:
                    made[id(value)] = {}
                    open_.append(value)
                is_dict = isinstance(value, Mapping)
                made[id(source)][key] = made[id(value)] if is_dict else self._decoded(value)
        return made[id(content)]

    def _decoded(self, value: Any) -> Any:
        """The value, with tensors for Objects in a list or tuple."""
        if isinstance(value, (list, tuple)):
            if id(value) not in self._lists:  # a file may name one list a million times
                parts = [each if (made := self.tensor(each)) is None else made for each in value]
                self._lists[id(value)] = parts
            return self._lists[id(value)]
        return value if (made := self.tensor(value)) is None else made

    def attributes(self, module: Object) -> dict[str, torch.Tensor]:
        """The tensors of a TorchScript module and the modules in it, by their dotted names.

        A tensor that a list holds beside a name of its own counts once.
        """
        named: dict[str, torch.Tensor] = {}
        listed: list[tuple[str, Object]] = []
        for name, value, is_listed in _parts(module):
            if is_listed:
                listed.append((name, value))
            elif (tensor := self.tensor(value)) is not None:
                named[name] = tensor
        places = {_place(tensor) for tensor in named.values()}
        for name, value in listed:
            tensor = self.tensor(value)
            if tensor is not None and _place(tensor) not in places:
                named[name] = tensor
        return named

    def _torch(self, storage: Object, offset: int, size: Any, stride: Any) -> torch.Tensor:
        _, kind, key, _, count = storage.args[0]  # type: ignore[index]  # Malformed below
        dtype = STORAGES.get(kind.name.removeprefix("torch."))
        if dtype is None or not isinstance(key, str) or type(count) is not int:
            raise Malformed(f"a storage of {kind.name}")
        if key not in self._made:
            content = self._storages(key)
            if len(content) != count * dtype.itemsize:
                raise Malformed(f"storage {key} has {len(content)} bytes, not {count} values")
            # A copy, because torch wants memory that it may write to.
            whole = torch.frombuffer(bytearray(content), dtype=dtype) if content else None
            self._made[key] = torch.empty(0, dtype=dtype) if whole is None else whole
        whole = self._made[key]
        if whole.dtype != dtype:
            raise Malformed(f"storage {key} has two dtypes")
        return whole.as_strided(_shape(size), _shape(stride), offset)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _shape(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > DIMS_MAX:
        raise Malformed("a shape that is no tuple")
    if any(type(each) is not int or not 0 <= each < 1 << 62 for each in values):
        raise Malformed("a shape of other than sizes")
    return values


def functions(module: Object) -> tuple[str, ...]:
    """The activations and other modules without tensors in a TorchScript module, each as NAME
    (CLASS)."""
    return tuple(
        f"{name} ({found[1]})"
        for name, value, _ in _parts(module)
        if (found := FUNCTION.fullmatch(value.name))
    )


def _parts(module: Object) -> Iterator[tuple[str, Object, bool]]:
    """Name, Object and whether a list holds it, of everything below a module, in order.

    Visits a module once, and a tensor by each of its names.
    """
    seen: set[int] = set()
    open_: list[tuple[str, Any, bool]] = [("", module, False)]
    while open_:
        name, value, is_listed = open_.pop()
        if isinstance(value, Object) and value.args and TYPED.fullmatch(value.name):
            value = value.args[0]
        if id(value) in seen:
            continue
        prefix = f"{name}." if name else ""
        if len(name) > NAME_LEN_MAX:
            raise Malformed(f"a name of more than {NAME_LEN_MAX} characters")
        inside: list[tuple[str, Any, bool]] = []
        if isinstance(value, Object):
            yield name, value, is_listed
        if isinstance(value, Object) and value.name not in TORCH:
            seen.add(id(value))
            held = value.state if isinstance(value.state, dict) else {"state": value.state}
            inside = [(f"{prefix}{key}", each, is_listed) for key, each in held.items()]
        elif isinstance(value, dict):
            seen.add(id(value))
            inside = [(f"{prefix}{key}", each, True) for key, each in value.items()]
        elif isinstance(value, (list, tuple)) and value:
            seen.add(id(value))
            inside = [(f"{prefix}{at}", each, True) for at, each in enumerate(value)]
        open_ += reversed(inside)


def _array(made: Object) -> np.ndarray[Any, Any]:
    """The array [shape] of an Object; native byte order, and of its own memory."""
    if made.name in BUFFERS:
        content, kind, shape, order = made.args or ()
    else:
        _, shape, kind, is_fortran, content = made.state
        order = "F" if is_fortran else "C"
    dtype, raw, shape = _dtype(kind), _bytes(content), _shape(shape)
    if math.prod(shape) * dtype.itemsize != len(raw) or order not in ("C", "F"):
        raise Malformed(f"an array {list(shape)} of {len(raw)} bytes")
    array = np.frombuffer(raw, dtype).reshape(shape, order=order)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("=")))


def _dtype(made: Object) -> np.dtype[Any]:
    code, order = (made.args or ("",))[0], (made.state or (3, "="))[1]
    if made.name != DTYPE or not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise Malformed("an array of no numbers")
    return np.dtype(code if order == "|" else f"{order}{code}" if order in ("<", ">") else code)


def _bytes(content: Any) -> bytes:
    """Bytes, which protocols before 3 write as text."""
    if isinstance(content, Object) and content.name == BYTES and content.args:
        (text, *_) = content.args
        content = text.encode("latin1") if isinstance(text, str) else None
    if not isinstance(content, (bytes, bytearray)):
        raise Malformed(f"an array of {type(content).__name__}")
    return bytes(content)


def named_globals(content: Any) -> list[str]:
    """The classes and functions that a value names, each once."""
    names: dict[str, None] = {}
    seen: set[int] = set()
    open_ = [content]
    while open_:
        value = open_.pop()
        if isinstance(value, (Object, dict, list, tuple)):
            if id(value) in seen:
                continue
            seen.add(id(value))
        if isinstance(value, Object):
            names.setdefault(value.name)
            open_ += [value.args, value.state, value.items]
        elif isinstance(value, dict):
            open_ += value.values()
        elif isinstance(value, (list, tuple)):
            open_ += value
    return list(names)
