"""Reads the tensors of an untrusted checkpoint, by name. Runs no code in it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from lstmserve_export.lstm.archive import ADVICE, DAMAGED, Kind, examine
from lstmserve_export.refusal import Refused, shorten

DEPTH_MAX = 6
Tensors = Mapping[str, torch.Tensor]
_Path = tuple[str, ...]
_Found = tuple[_Path, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a file by their names in the model, without the prefixes of wrappers."""

    tensors: Tensors
    notes: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads .pt, .pth, .ckpt, .bin (torch.save, also legacy) or .safetensors. Raises Refused."""
    kind = examine(path)
    content = _load_safetensors(path) if kind == "safetensors" else _load_torch(path, kind)
    if not isinstance(content, Mapping):
        raise Refused(f"{path} holds a {type(content).__name__}, not a state dict: {ADVICE}")
    found = list(_walk(content, (), set()))
    if not found:
        raise Refused(f"{path} holds no named tensors: {ADVICE}")
    tensors, wrapper = _unwrap(found)
    notes = (f"the weights lie in {'.'.join(wrapper)!r} of the file",) if wrapper else ()
    return Checkpoint(_strip(tensors), notes)


def _load_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise Refused(f"{path}: not safetensors, or {DAMAGED} ({_first_line(error)})") from error


def _load_torch(path: Path, kind: Kind) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refusal is one line, without torch's warnings
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make torch raise anything
        if globals_ := _unsafe_globals(path, kind, str(error)):
            raise Refused(
                f"{path} holds Python objects ({shorten(globals_)}), which run code when they are "
                f"loaded: {ADVICE}"
            ) from error
        # torch's message may advise to load the file without weights_only: never repeat it.
        detail = "" if "weights_only" in str(error) else f" ({_first_line(error)})"
        raise Refused(f"{path} is not a torch checkpoint, or {DAMAGED}{detail}") from error


def _unsafe_globals(path: Path, kind: Kind, message: str) -> list[str]:
    if kind == "zip":
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except Exception:  # as above: the file may be hostile
            return []
    return re.findall(r"(?:GLOBAL|class|Unsupported global:) ([A-Za-z_][\w.]*\.\w+)", message)[:1]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _walk(content: Mapping[Any, Any], path: _Path, seen: set[int]) -> Iterator[_Found]:
    """Every tensor with the keys that lead to it. Visits a mapping once, and no optimizer's."""
    seen.add(id(content))
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, torch.Tensor):
            yield (*path, key), value
        elif isinstance(value, Mapping) and not _is_optimizer(key, value) and id(value) not in seen:
            if len(path) == DEPTH_MAX:
                raise Refused(f"the file nests deeper than {DEPTH_MAX} dicts: {ADVICE}")
            yield from _walk(value, (*path, key), seen)


def _is_optimizer(key: str, value: Mapping[Any, Any]) -> bool:
    return key.startswith("optim") or "param_groups" in value


def _unwrap(found: list[_Found]) -> tuple[dict[str, torch.Tensor], _Path]:
    """The tensors below the dict that holds the model, by name, and the path to that dict.

    Numbers beside the model (a best loss) do not count, and are dropped. A second dict of tensors
    (an average of the weights, a head saved on its own) counts, and its name stays in the names.
    """
    paths = [path[:-1] for path, tensor in found if tensor.dim()]
    wrapper = paths[0] if paths else ()
    for path in paths:
        same = [a == b for a, b in zip(wrapper, path, strict=False)] + [False]
        wrapper = wrapper[: same.index(False)]
    inside = {
        ".".join(path[len(wrapper) :]): tensor
        for path, tensor in found
        if path[: len(wrapper)] == wrapper
    }
    return inside, wrapper


def strip_wrappers(names: list[str]) -> list[str]:
    """The names without the prefixes that torch.compile and DataParallel add."""
    names = [name.replace("_orig_mod.", "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _strip(tensors: Tensors) -> Tensors:
    names = strip_wrappers(list(tensors))
    if len(set(names)) < len(names):
        raise Refused(f"two tensors of the file have one name: {ADVICE}")
    return dict(zip(names, tensors.values(), strict=True))
