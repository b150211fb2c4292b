"""Judges a file of tensors by its bytes before anything in it is decoded. Never unpickles."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from typing import IO, Literal

from lstmserve_export.lstm.foreign import SAVE, Sample, foreign_format, foreign_zip
from lstmserve_export.refusal import Refused, one_line

# torch: torch.save; legacy: before torch 1.6; script: TorchScript; policy: stable-baselines3;
# arrays: .npz; pickle: a pickle of another program than torch.
Kind = Literal["torch", "legacy", "script", "policy", "safetensors", "arrays", "pickle"]
FILE_BYTES_MAX = 8 << 30
ENTRY_COUNT_MAX = 100_000
UNPACKED_BYTES_MAX = 1 << 28  # of compressed entries together
HEAD_BYTES = 1 << 16
POLICY = "policy.pth"
DAMAGED = "the file is damaged or was cut short: copy or save it again"
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
# The number with which torch begins a legacy file, inside of the pickle's first bytes.
LEGACY_MARK = b"l\xfc\x9cF\xf9 j\xa8P\x19"
# How a pickle begins: protocols 2 to 5, and a dict or a call of a class in protocols 0 and 1.
PICKLE_START = re.compile(rb"\x80[\x02-\x05]|\(d|}q|c(collections|builtins|__builtin__)\n")
JOBLIB_MARK = b"joblib.numpy_pickle"


def examine(file: IO[bytes], name: str) -> Kind:
    """What kind of file it is. `name` is the file's, for errors.

    Raises Refused for a file that must not be loaded, or is in no format that is read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if size == 0:
        raise Refused(f"{name} is empty: save the checkpoint again")
    if size > FILE_BYTES_MAX:
        raise Refused(f"{name} has {size} bytes, more than {FILE_BYTES_MAX}: save weights only")
    if head.startswith(b"PK"):
        return _examine_zip(file, name, size)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    file.seek(max(size - 8, 0))
    if (said := foreign_format(Sample(name, head, file.read(8)))) is not None:
        raise Refused(f"{name}: {said}")
    if name.endswith(".safetensors"):
        return "safetensors"
    return _examine_pickle(file, name, head)


def _examine_pickle(file: IO[bytes], name: str, head: bytes) -> Kind:
    if not PICKLE_START.match(head):
        raise Refused(f"{name} is not a torch checkpoint, and in no other format that is read")
    if LEGACY_MARK not in head[:32] and JOBLIB_MARK in head:
        raise Refused(
            f"{name}: the file is of joblib: load it where you trained, and save the arrays by "
            "name with np.savez"
        )
    file.seek(0)
    _check_marks(file)
    return "legacy" if LEGACY_MARK in head[:32] else "pickle"


def _examine_zip(file: IO[bytes], name: str, size: int) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            kind = _zip_kind(archive.infolist())
            _check_entries(archive.infolist(), kind, size)
            bad = archive.testzip()
            if bad is None and (pickle := find_pickle(archive, kind)) is not None:
                with archive.open(pickle) as content:
                    _check_marks(content)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise Refused(f"{name}: {DAMAGED} ({one_line(error)})") from error
    except NotImplementedError as error:
        raise Refused(f"{name} is packed in a way that torch never writes: {SAVE}") from error
    except RuntimeError as error:  # what zipfile raises for encrypted entries
        raise Refused(f"{name} is encrypted: {SAVE}") from error
    if bad is not None:
        raise Refused(f"{name}: {DAMAGED} (checksum of {bad})")
    return kind


def _zip_kind(entries: list[zipfile.ZipInfo]) -> Kind:
    names = {entry.filename for entry in entries}
    inside = {name.partition("/")[2] for name in names}
    if (said := foreign_zip(names)) is not None:
        raise Refused(said)
    if POLICY in names:
        return "policy"
    if "data.pkl" in inside:
        is_script = "constants.pkl" in inside or any(name.startswith("code/") for name in inside)
        return "script" if is_script else "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "arrays"
    raise Refused(f"the file is a zip archive but not a torch checkpoint: {SAVE}")


def _check_entries(entries: list[zipfile.ZipInfo], kind: Kind, size: int) -> None:
    if len(entries) > ENTRY_COUNT_MAX:
        raise Refused(f"the file has {len(entries)} entries, more than {ENTRY_COUNT_MAX}")
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    # torch compresses the code of a program and nothing else, numpy what savez_compressed wrote:
    # another small file that unpacks to a large one is an attack.
    if any(not _may_be_packed(entry, kind) for entry in packed):
        raise Refused(f"the file has compressed entries, which torch never writes: {SAVE}")
    if sum(entry.file_size for entry in packed) > UNPACKED_BYTES_MAX:
        raise Refused(
            f"the file unpacks to more than {UNPACKED_BYTES_MAX} bytes: save it uncompressed "
            "(np.savez)"
        )
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if sum(entry.file_size for entry in stored) > size:
        raise Refused(f"the file's entries are larger than the file: {DAMAGED}")
    (name, count), *_ = Counter(entry.filename for entry in entries).most_common(1)
    if count > 1:
        raise Refused(f"the file has {count} entries of the name {name}: {DAMAGED}")


def _may_be_packed(entry: zipfile.ZipInfo, kind: Kind) -> bool:
    is_code = entry.filename.partition("/")[2].startswith("code/")
    is_deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return is_deflated and (kind == "arrays" or (kind == "script" and is_code))


def find_pickle(archive: zipfile.ZipFile, kind: Kind) -> str | None:
    """The entry that names the tensors; None for a kind that has none."""
    if kind not in ("torch", "script"):
        return None
    names = (each.filename for each in archive.infolist())
    return next(name for name in names if name.partition("/")[2] == "data.pkl")


def _check_marks(file: IO[bytes]) -> None:
    """Raises Refused if the pickle names quantised weights."""
    content = file.read(PICKLE_BYTES_MAX)
    if any(mark in content for mark in QUANTISED_MARKS):
        raise Refused(QUANTISED)
