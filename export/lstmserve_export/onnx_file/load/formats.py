"""Tells what a file is that has no ONNX model in it, and what to do with it.

It looks at the first bytes alone. It must not know how any format goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HEAD_LEN: Final = 1 << 12  # bytes that it looks at
OUR_WAY: Final = "give it to `lstmserve export`"
DOWNLOAD: Final = "download the model itself"


@dataclass(frozen=True, slots=True)
class _Format:
    """`start` lies at byte `at` of such a file."""

    start: bytes
    says: str
    at: int = 0


# In this order: the first that fits.
FORMATS: Final = (
    _Format(
        b"version https://git-lfs",
        "is a pointer of git-LFS, not the model: run `git lfs pull` where it comes from, or "
        "download the file that the pointer stands for",
    ),
    _Format(b"ORTM", "is in onnxruntime's own format (.ort): import the ONNX file it is from", 4),
    _Format(b"TFL3", "is a TFLite model: convert it with tf2onnx --tflite", 4),
    _Format(b"\x89HDF", "is an HDF5 file, as Keras writes them: convert it with tf2onnx"),
    _Format(b"GGUF", "is a GGUF file: import takes ONNX alone"),
    _Format(b"\x93NUMPY", "is a numpy array: import takes ONNX alone"),
    _Format(b"\x80", f"is a Python pickle, as torch.save wrote them: {OUR_WAY}"),
    _Format(b"\x1f\x8b", "is compressed by gzip: unpack it"),
    _Format(b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
    _Format(b"\xfd7zXZ", "is compressed by xz: unpack it"),
    _Format(b"BZh", "is compressed by bzip2: unpack it"),
    _Format(b"ustar", "is a tar archive: unpack it", 257),
    _Format(b"\x7fELF", "is a program or a library: import takes ONNX alone"),
)
ZIP: Final = b"PK\x03\x04"
PAGES: Final = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")


def describe(head: bytes) -> str:
    """What a file with these first bytes is, and what to do, or "" if it may be ONNX."""
    for each in FORMATS:
        if head.startswith(each.start, each.at):
            return each.says
    if head.startswith(ZIP):
        return _describe_zip(head)
    if head.lstrip()[:16].lower().startswith(PAGES):
        return f"is a web page or XML, perhaps the page about the model or a log-in: {DOWNLOAD}"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return f"is a safetensors file: {OUR_WAY}"
    if _is_text(head):
        line = head.decode(errors="replace").strip().partition("\n")[0]
        return f"is text ({line[:40]!r} ...), not an ONNX model: {DOWNLOAD}"
    return ""


def _describe_zip(head: bytes) -> str:
    """By the name of the first entry and what stands near it."""
    if b"constants.pkl" in head or b"/code/" in head or b"data.pkl" in head:
        return (
            f"is a zip of torch, TorchScript or a checkpoint: {OUR_WAY}, or export it to ONNX "
            "with torch.onnx.export"
        )
    if b".npy" in head[:256]:
        return "is an .npz of numpy: import takes ONNX alone"
    if b"metadata.json" in head or b"config.json" in head:
        return "is a zip as Keras writes them: convert it with tf2onnx"
    return "is a zip archive: unpack it, and import the .onnx file in it"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise a character is cut at the end
            return False
        text = head[: error.start].decode()
    return all(each.isprintable() or each in "\n\r\t\ufeff" for each in text)


def find_cut(content: bytes) -> str:
    """Where a message of protobuf is cut: what its last field needs and what is there. "" where
    the outermost fields are whole."""
    for at, end in _fields(content):
        if end > len(content):
            return f"a part of it that begins at byte {at} needs {end - len(content)} bytes more"
    return ""


def _fields(content: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the outermost fields; the last may end beyond the content, or be senseless,
    where nothing follows."""
    at = 0
    while at < len(content):
        start = at
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(content, at)
            at += size
        else:
            return
        yield start, at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            return value, at + 1
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            break
    return value, at
