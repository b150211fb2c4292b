"""Names the formats of files that hold no named tensors, and says what to do instead.

It looks at names and first bytes, and decodes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from lstmserve_export.refusal import MODULE_WAY

SAVE = (
    "in the training code, torch.save(model.state_dict(), ...) and export that, with --module "
    "FILE.py:CLASS if it is more than an nn.LSTM and its head"
)
BY_ARRAYS = (
    "save its weights as arrays with the names and shapes of nn.LSTM (weight_ih_l0, ...) by "
    "np.savez, or load them into a torch module of yours and save its state_dict()"
)
LEVELDB_MARK = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # at the end of TensorFlow's .index and .ckpt
# The fields of ModelProto, each with its wire type.
ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


class Sample(NamedTuple):
    """The name of a file, and its first and last bytes."""

    name: str
    head: bytes
    tail: bytes


_Test = Callable[[Sample], bool]


def _starts(*marks: bytes) -> _Test:
    return lambda file: file.head.startswith(marks)


def _at(offset: int, mark: bytes) -> _Test:
    return lambda file: file.head[offset : offset + len(mark)] == mark


def _named(pattern: str) -> _Test:
    return lambda file: re.search(pattern, file.name) is not None


def _is_onnx(file: Sample) -> bool:
    """Whether the bytes begin like ModelProto of ONNX, which has no mark of its own."""
    if file.name.endswith(".onnx"):
        return True
    fields: list[int] = []
    head, at = file.head, 0
    while at + 1 < len(head) and len(fields) < 4:
        field, wire = head[at] >> 3, head[at] & 7
        if ONNX_FIELDS.get(field) != wire:
            return False
        fields.append(field)
        value, at = _varint(head, at + 1)
        at += value if wire == 2 else 0
    # ir_version comes first; the producer or the graph follows.
    return fields[:1] == [1] and len(fields) > 1 and head[1] < 64


def _varint(head: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(head):
        byte = head[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128 or shift > 63:
            break
    return value, at


def _is_web_page(file: Sample) -> bool:
    return file.head[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _is_json(file: Sample) -> bool:
    text = file.head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return re.match(rb'[{\[]\s*(["\d{\[\]}-]|true|false|null)', text) is not None


_is_part = _named(r"\.data-\d{5}-of-\d{5}$|\.ckpt\.meta$")
# What a file is, and what to do; the first test that holds decides.
FORMATS: tuple[tuple[_Test, str, str], ...] = (
    (
        _starts(b"version https://git-lfs"),
        "a pointer of Git LFS, which stands for the file",
        "run git lfs pull",
    ),
    (
        _is_web_page,
        "a web page, and not the file that the link promised",
        "download the file itself",
    ),
    (_starts(b"\x89HDF\r\n\x1a\n"), "HDF5, as Keras writes it", BY_ARRAYS),
    (_starts(b"GGUF", b"ggml", b"lmgg", b"tjgg"), "GGUF, as llama.cpp reads it", SAVE),
    (_at(4, b"TFL3"), "TensorFlow Lite, a graph and not named weights", BY_ARRAYS),
    (_at(4, b"ORTM"), "onnxruntime's own format, a graph and not named weights", SAVE),
    (
        lambda file: file.tail == LEVELDB_MARK or _is_part(file),
        "a checkpoint of TensorFlow, or a part of one",
        BY_ARRAYS,
    ),
    (_named(r"\.pb$"), "a graph of TensorFlow", BY_ARRAYS),
    (_starts(b"\x93NUMPY"), "one array without a name", "save the arrays by name with np.savez"),
    (_starts(b"MATLAB 5.0"), "a file of MATLAB", BY_ARRAYS),
    (_starts(b"\x1f\x8b"), "compressed by gzip", "unpack it first"),
    (
        _starts(b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"),
        "compressed",
        "unpack it first",
    ),
    (
        _at(257, b"ustar"),
        "a tar archive, as .nemo files are",
        "unpack it, and export what is in it",
    ),
    (
        _named(r"\.index\.json$"),
        "an index, which only says in which file each tensor lies",
        "load the model, and torch.save(model.state_dict(), ...) into one file",
    ),
    (
        lambda file: _is_json(file) and b'"architecture"' in file.head,
        "JSON of a Neural Amp Modeler, with all weights in one list without names",
        "save them by torch's names (lstm.weight_ih_l0, ..., h0, c0) in a dict, with torch.save, "
        f"or write a module that reads the file, and {MODULE_WAY}",
    ),
    (_is_json, "JSON, which is no format of tensors", SAVE),
    (
        _is_onnx,
        "ONNX, a graph and not named weights of torch",
        "run lstmserve import, which serves such a graph (docs/IMPORT.md)",
    ),
)


def foreign_format(file: Sample) -> str | None:
    """What the file is, and what to do; None if it may be a file of tensors."""
    for test, what, advice in FORMATS:
        if test(file):
            return f"the file is {what}: {advice}"
    return None


def foreign_zip(names: Collection[str]) -> str | None:
    """As foreign_format, of a zip archive by the names of its entries."""
    inside = {name.partition("/")[2] for name in names}
    if inside & {"archive_format", "serialized_exported_program.json"}:
        return f"the file is a .pt2 program, which runs code when it is loaded: {SAVE}"
    if "model.weights.h5" in names:
        return f"the file is Keras's .keras, which holds HDF5: {BY_ARRAYS}"
    if any(name.endswith(".mlmodel") for name in names):
        return f"the file is a model of Core ML, a graph and not named weights: {SAVE}"
    return None
