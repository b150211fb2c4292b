"""Reads the tensors of an untrusted checkpoint, by name. Runs no code in it."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from lstmserve_export import arrays
from lstmserve_export.lstm.archive import DAMAGED, POLICY, Kind, examine, find_pickle
from lstmserve_export.lstm.decode import HARMLESS, NUMPY, Decoder, functions, named_globals
from lstmserve_export.lstm.foreign import SAVE
from lstmserve_export.lstm.pickles import Malformed, Object, read_pickle
from lstmserve_export.refusal import Refused, one_line, shorten

DEPTH_MAX = 6
# What a file whose bytes are wrong makes pickletools, torch and numpy raise.
FAULTS = (*arrays.FAULTS, Malformed, AttributeError)
# Modules of Python from which a pickle takes what harms; the user's own come next in a refusal.
HARMFUL = re.compile(
    r"(posix|nt|os|subprocess|sys|builtins|__builtin__|importlib|runpy|shutil|socket|pty|pickle|"
    r"ctypes|code|webbrowser|commands|timeit|marshal|types|urllib|http|asyncio|multiprocessing)\."
)
# How people call an optimizer, and not the best of several models: optimal_model.
OPTIMIZER = re.compile(r"optim(?!al|um|i[sz]ed)")
COMMON = re.compile(
    r"(torch|numpy|collections|argparse|pathlib|datetime|copyreg|_codecs|omegaconf)\b"
)
LEGACY_PREFACE = 3  # pickles before the one with the tensors: a mark, a version, sizes of integers
PROGRAM = ("__torch__.", "torch.")  # what a TorchScript program names
SCRIPT = "the file is a TorchScript program: its tensors were read, and its code was not run"
ONE_NAME = f"two tensors of the file have one name: {SAVE}"
Tensors = Mapping[str, torch.Tensor]
_Path = tuple[str, ...]
_Found = tuple[_Path, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a file by their names in the model, without the prefixes of wrappers.

    `functions` are modules without tensors of which the file tells, each as NAME (CLASS).
    """

    tensors: Tensors
    notes: tuple[str, ...]
    functions: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a file of named tensors: of torch.save (also legacy), TorchScript, safetensors, .npz, a
    pickled dict of numpy's arrays, or a policy of stable-baselines3. Raises Refused."""
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from error


def _read(file: IO[bytes], name: str) -> Checkpoint:
    kind = examine(file, name)
    file.seek(0)
    if kind == "policy":
        return _read_policy(file, name)
    if kind == "script":
        tensors, others = _load_script(file, name)
        return _checkpoint(tensors, name, (SCRIPT,), others)
    return _checkpoint(_load(file, name, kind), name)


def _read_policy(file: IO[bytes], name: str) -> Checkpoint:
    """The tensors of a policy of stable-baselines3."""
    with zipfile.ZipFile(file) as archive:
        policy, inside = io.BytesIO(archive.read(POLICY)), f"{name}: {POLICY}"
    if (kind := examine(policy, inside)) not in ("torch", "legacy"):
        raise Refused(f"{inside} is not a torch checkpoint: {SAVE}")
    policy.seek(0)
    notes = (f"the weights lie in {POLICY} of the file",)
    return _checkpoint(_load_torch(policy, inside, kind), inside, notes)


def _checkpoint(
    content: object, name: str, notes: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise Refused(f"{name} holds a {type(content).__name__}, not a state dict: {SAVE}")
    found = list(_walk(content, (), set()))
    if not found:
        raise Refused(f"{name} holds no named tensors: {SAVE}")
    tensors, wrapper = _unwrap(found)
    notes += (f"the weights lie in {'.'.join(wrapper)!r} of the file",) if wrapper else ()
    return Checkpoint(_strip(tensors), notes, others)


def _load(file: IO[bytes], name: str, kind: Kind) -> object:
    if kind == "safetensors":
        return _load_safetensors(file, name)
    if kind == "arrays":
        return _load_arrays(file, name)
    if kind == "pickle":
        return _load_pickle(file, name)
    return _load_torch(file, name, kind)


def _load_safetensors(file: IO[bytes], name: str) -> object:
    try:
        return safetensors.torch.load_file(file.name)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise Refused(f"{name}: not safetensors, or {DAMAGED} ({one_line(error)})") from error


def _load_arrays(file: IO[bytes], name: str) -> object:
    try:
        with np.load(file, allow_pickle=False) as found:
            return {each: _of_numpy(each, found[each]) for each in found.files}
    except FAULTS as error:
        raise Refused(
            f"{name} is no .npz of plain arrays, or {DAMAGED} ({one_line(error)})"
        ) from error


def _of_numpy(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Raises Refused for what is no array of numbers."""
    if array.dtype.kind not in "biufc":
        raise Refused(
            f"{name} is an array of {array.dtype}, and no tensor: leave it out of np.savez"
        )
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _load_pickle(file: IO[bytes], name: str) -> object:
    """A pickle that no torch wrote: a dict of numpy's arrays."""
    try:
        content = read_pickle(file)
        _check_globals(content, name)
        return Decoder(_no_storage).mapping(content) if isinstance(content, Mapping) else content
    except FAULTS as error:
        raise Refused(f"{name} is no pickle, or {DAMAGED} ({one_line(error)})") from error


def _no_storage(key: str) -> bytes:
    raise Malformed(f"the storage {key} is missing")


def _load_script(file: IO[bytes], name: str) -> tuple[Tensors, tuple[str, ...]]:
    """The parameters, buffers and constants of a TorchScript program, and its modules that have
    none. Runs none of its code."""
    try:
        with zipfile.ZipFile(file) as archive:
            module, root = _pickled(archive, "script")
            _check_globals(module, name, PROGRAM)
            tensors = _decoder(archive, f"{root}data/").attributes(module)
            constants = _constants(archive, root, has_others=bool(tensors))
            return tensors | constants, functions(module)
    except FAULTS as error:
        raise Refused(f"{name}: {DAMAGED} ({one_line(error)})") from error


def _pickled(archive: zipfile.ZipFile, kind: Kind) -> tuple[Any, str]:
    """What the pickle of an archive says, as data, and the folder that it lies in."""
    pickle = find_pickle(archive, kind) or ""
    root = pickle.removesuffix("data.pkl")
    _check_byte_order(archive, root)
    with archive.open(pickle) as entry:
        return read_pickle(entry), root


def _check_globals(content: object, name: str, allowed: tuple[str, ...] = ()) -> None:
    """Raises Refused for a pickle that names what could run, but for names that begin so."""
    names = [each for each in named_globals(content) if each not in HARMLESS]
    if unsafe := [each for each in names if not each.startswith(allowed)]:
        raise _holds_objects(name, unsafe)


def _decoder(archive: zipfile.ZipFile, folder: str) -> Decoder:
    return Decoder(lambda key: archive.read(folder + key))


def _check_byte_order(archive: zipfile.ZipFile, root: str) -> None:
    name = f"{root}byteorder"
    if name in archive.NameToInfo and archive.read(name) != b"little":
        raise Refused("the file is of a big-endian machine: save it again on another")


def _constants(archive: zipfile.ZipFile, root: str, *, has_others: bool) -> dict[str, torch.Tensor]:
    """The tensors that a traced program has in its code in place of parameters, as constants.N."""
    name = f"{root}constants.pkl"
    if name not in archive.NameToInfo:
        return {}
    with archive.open(name) as content:
        values = read_pickle(content)
    tensors = _decoder(archive, f"{root}constants/").attributes(Object("constants", (), values))
    found = {f"constants{each.removeprefix('state')}": part for each, part in tensors.items()}
    found = {each: part for each, part in found.items() if part.dim()}
    if found and not has_others:
        raise Refused(
            "the file is a frozen TorchScript program (torch.jit.freeze), whose weights have no "
            f"names: {SAVE}"
        )
    return found


def _load_torch(file: IO[bytes], name: str, kind: Kind) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refusal is one line, without torch's warnings
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make torch raise anything
        if unsafe := _unsafe_globals(file, kind):
            if kind == "torch" and not set(unsafe) - NUMPY:
                return _load_beside_numpy(file, name)
            raise _holds_objects(name, unsafe) from error
        # torch's message may advise to load the file without weights_only: never repeat it.
        detail = "" if "weights_only" in str(error) else f" ({_first_line(error)})"
        raise Refused(f"{name} is not a torch checkpoint, or {DAMAGED}{detail}") from error


def _load_beside_numpy(file: IO[bytes], name: str) -> object:
    """A checkpoint of torch that holds arrays or numbers of numpy, which torch does not load."""
    try:
        with zipfile.ZipFile(file) as archive:
            content, root = _pickled(archive, "torch")
            _check_globals(content, name)
            if not isinstance(content, Mapping):
                return content
            return _decoder(archive, f"{root}data/").mapping(content)
    except FAULTS as error:
        raise Refused(f"{name}: {DAMAGED} ({one_line(error)})") from error


def _holds_objects(name: str, unsafe: list[str]) -> Refused:
    """The refusal; what can harm comes first, then the user's own, then what all programs use."""
    ranked = sorted(
        unsafe, key=lambda each: (not HARMFUL.match(each), bool(COMMON.match(each)), each)
    )
    return Refused(
        f"{name} holds Python objects ({shorten(ranked)}), which run code when they are "
        f"loaded: {SAVE}"
    )


def _unsafe_globals(file: IO[bytes], kind: Kind) -> list[str]:
    """What torch refuses to load, as far as the file can be read."""
    file.seek(0)
    try:
        if kind == "torch":
            return torch.serialization.get_unsafe_globals_in_checkpoint(file)
        for _ in range(LEGACY_PREFACE):
            read_pickle(file)
        names = [each for each in named_globals(read_pickle(file)) if each not in HARMLESS - NUMPY]
    except Exception:  # the file may be hostile
        return []
    # Where there are others, torch's own are those that it loads, such as torch.Size.
    return [each for each in names if not each.startswith("torch.")] or names


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _walk(content: Mapping[Any, Any], path: _Path, seen: set[int]) -> Iterator[_Found]:
    """Every tensor with the keys that lead to it. Visits a mapping once, and no optimizer's."""
    seen.add(id(content))
    for key, value in content.items():
        if not isinstance(key, (str, int)):
            continue
        here = (*path, str(key))
        if isinstance(value, torch.Tensor):
            yield here, value
        elif OPTIMIZER.match(str(key)) or id(value) in seen:
            continue
        elif isinstance(value, Mapping) and "param_groups" not in value:
            if len(path) >= DEPTH_MAX:
                raise Refused(f"the file nests deeper than {DEPTH_MAX} dicts: {SAVE}")
            yield from _walk(value, here, seen)
        elif isinstance(value, (list, tuple)):
            seen.add(id(value))
            parts = {at: each for at, each in enumerate(value) if _may_hold_weights(each)}
            yield from _walk(parts, here, seen)


def _may_hold_weights(value: object) -> bool:
    """Whether a value in a list counts: a dict, or a tensor that is no loss of an epoch and no
    random state."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and value.dim() > 0
    return isinstance(value, Mapping)


def _unwrap(found: list[_Found]) -> tuple[dict[str, torch.Tensor], _Path]:
    """The tensors below the dict that holds the model, by name, and the path to that dict.

    Numbers beside the model (a best loss) do not count, and are dropped. A second dict of tensors
    (an average of the weights, a head saved on its own) counts, and its name stays in the names.
    Raises Refused.
    """
    paths = [path[:-1] for path, tensor in found if tensor.dim()]
    wrapper = paths[0] if paths else ()
    for path in paths:
        same = [a == b for a, b in zip(wrapper, path, strict=False)] + [False]
        wrapper = wrapper[: same.index(False)]
    inside = [each for each in found if each[0][: len(wrapper)] == wrapper]
    tensors = {".".join(path[len(wrapper) :]): tensor for path, tensor in inside}
    if len(tensors) < len(inside):
        raise Refused(ONE_NAME)
    return tensors, wrapper


def strip_wrappers(names: list[str]) -> list[str]:
    """The names without the prefixes that torch.compile and DataParallel add."""
    names = [name.replace("_orig_mod.", "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _strip(tensors: Tensors) -> Tensors:
    names = strip_wrappers(list(tensors))
    if len(set(names)) < len(names):
        raise Refused(ONE_NAME)
    return dict(zip(names, tensors.values(), strict=True))
