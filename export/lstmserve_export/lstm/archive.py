"""Judges a checkpoint file by its bytes before anything in it is decoded. Never unpickles."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Literal

from lstmserve_export.refusal import Refused

Kind = Literal["zip", "safetensors", "legacy"]
FILE_BYTES_MAX = 8 << 30
ENTRY_COUNT_MAX = 100_000
DAMAGED = "the file is damaged or was cut short: copy or save it again"
ADVICE = (
    "in the training code, torch.save(model.state_dict(), ...) and export that, with --module "
    "FILE.py:CLASS if it is more than an nn.LSTM and its head"
)
QUANTISED = (
    "the file is of a quantised network: it holds packed integers in place of the weights, and "
    "only the network from before quantisation (quantize_dynamic, convert, torchao) can be "
    "exported: save that one with torch.save(model.state_dict(), ...)"
)
# How torch and torchao name quantised weights, as keys or classes in the pickle.
QUANTISED_MARKS = (
    b"_packed_params",
    b"_all_weight_values",
    b"torch.ao.nn.quantized",
    b"torch.nn.quantized",
    b"torchao.quantization",
    b"torchao.dtypes",
)
PICKLE_BYTES_MAX = (
    1 << 26
)  # from the start of a pickle, which has the names; the weights are elsewhere


def examine(path: Path) -> Kind:
    """The kind of checkpoint at `path`. Raises Refused for a file that must not be loaded."""
    try:
        with path.open("rb") as file:
            size, first = path.stat().st_size, file.read(9)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise Refused(f"{path} is empty: save the checkpoint again")
    if size > FILE_BYTES_MAX:
        raise Refused(f"{path} has {size} bytes, more than {FILE_BYTES_MAX}: save weights only")
    if first.startswith(b"PK"):
        _examine_zip(path, size)
        return "zip"
    header_bytes = int.from_bytes(first[:8], "little")
    if path.suffix == ".safetensors" or (first[8:] == b"{" and header_bytes <= size):
        return "safetensors"
    with path.open("rb") as file:
        _check_marks(file)
    return "legacy"


def _examine_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, size)
            bad = archive.testzip()
            if bad is None:
                with archive.open(_pickle(archive)) as file:
                    _check_marks(file)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise Refused(f"{path}: {DAMAGED} ({error})") from error
    except RuntimeError as error:  # what zipfile raises for encrypted entries
        raise Refused(f"{path} is encrypted: {ADVICE}") from error
    if bad is not None:
        raise Refused(f"{path}: {DAMAGED} (checksum of {bad})")


def _pickle(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The entry that names the tensors; _check_entries() made sure that there is one."""
    is_it = (each for each in archive.infolist() if each.filename.partition("/")[2] == "data.pkl")
    return next(is_it)


def _check_marks(file: IO[bytes]) -> None:
    """Raises Refused if the pickle names quantised weights."""
    content = file.read(PICKLE_BYTES_MAX)
    if any(mark in content for mark in QUANTISED_MARKS):
        raise Refused(QUANTISED)


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    names = {entry.filename.partition("/")[2] for entry in entries}
    if len(entries) > ENTRY_COUNT_MAX:
        raise Refused(f"the file has {len(entries)} entries, more than {ENTRY_COUNT_MAX}")
    if any(name.startswith("code/") for name in names) or "constants.pkl" in names:
        raise Refused(f"the file is TorchScript, which is a program and not weights: {ADVICE}")
    if names & {"archive_format", "serialized_exported_program.json"}:
        raise Refused(f"the file is a .pt2 program, which runs code when it is loaded: {ADVICE}")
    if "data.pkl" not in names:
        raise Refused(f"the file is a zip archive but not a torch checkpoint: {ADVICE}")
    # torch does not compress: a small file that unpacks to a large one is an attack.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused(f"the file has compressed entries, which torch never writes: {ADVICE}")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused(f"the file's entries are larger than the file: {DAMAGED}")
