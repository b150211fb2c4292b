"""Fills a module with the tensors of a file: all of them, or it refuses. Runs no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lstmserve_export.lstm.checkpoint import Checkpoint, strip_wrappers
from lstmserve_export.lstm.takes import check_tensor, check_values, dtype_name, dtype_notes
from lstmserve_export.refusal import Refused, one_line, shorten

Tensors = Mapping[str, torch.Tensor]


def fill(module: nn.Module, checkpoint: Checkpoint, name: str, file: str) -> tuple[str, ...]:
    """Loads the checkpoint's tensors into the module, strictly, and returns notes.

    `name` and `file` are those of the class and the checkpoint, for errors. Raises Refused.
    """
    own = module.state_dict()
    names = dict(zip(strip_wrappers(list(own)), own, strict=True))
    wanted = {short: own[long] for short, long in names.items()}
    tensors, notes = _choose(wanted, checkpoint.tensors, name, file)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for each, tensor in tensors.items():
        check_tensor(each, tensor)
        if names.get(each) in parameters:  # a buffer may be a mask of infinities
            check_values(each, tensor)
        if each in wanted and _kind(wanted[each]) != _kind(tensor):
            raise Refused(
                f"{each} is {dtype_name(tensor)} in {file}, {dtype_name(wanted[each])} in {name}: "
                "save the model before it was quantised or converted"
            )
    try:
        module.load_state_dict({names.get(each, each): part for each, part in tensors.items()})
    except Exception as error:  # a module may have hooks of its own
        raise Refused(_difference(wanted, tensors, name, file, error)) from error
    dtypes = {part.dtype for part in tensors.values() if part.is_floating_point()}
    return (*checkpoint.notes, *notes, *dtype_notes(dtypes))


def _choose(
    wanted: Mapping[str, Any], tensors: Tensors, name: str, file: str
) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors with the module's names, perhaps all below one prefix, and notes.

    A file may hold the module as a part of another one (a LightningModule), or beside an average
    of its weights. Raises Refused where several parts could be the module.
    """
    prefixes = _prefixes(wanted, tensors)
    if len(prefixes) > 1:
        fitting = [p for p in prefixes if all(_fits(wanted[e], tensors[p + e]) for e in wanted)]
        prefixes = fitting or prefixes
    if len(prefixes) > 1:
        labels = [prefix.removesuffix(".") or "without a prefix" for prefix in prefixes]
        raise Refused(
            f"{file} holds the tensors of {name} {len(prefixes)} times: {shorten(labels)}; save "
            "one of them to a file of its own, with torch.save, and export that"
        )
    prefix = prefixes[0] if prefixes else ""
    if not prefix:
        return tensors, ()
    inside = {e.removeprefix(prefix): part for e, part in tensors.items() if e.startswith(prefix)}
    outside = [each for each in tensors if not each.startswith(prefix)]
    notes = [f"the weights lie below {prefix.removesuffix('.')!r} in the file"]
    notes += [f"{name} has no place for {shorten(outside)}: left out"] if outside else []
    return inside, tuple(notes)


def _prefixes(wanted: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """The prefixes, "" or ending in a dot, below which the file has every wanted name."""
    first = next(iter(wanted), "")
    found = (each.removesuffix(first) for each in tensors if first and each.endswith(first))
    return [
        prefix
        for prefix in found
        if prefix[-1:] in ("", ".") and all(prefix + each in tensors for each in wanted)
    ]


def _fits(own: Any, tensor: torch.Tensor) -> bool:
    """Whether the shapes agree; a lazy parameter takes any, and extra state has none."""
    return not isinstance(own, torch.Tensor) or is_lazy(own) or own.shape == tensor.shape


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or value.is_floating_point():
        return "float"
    return "complex" if value.is_complex() else "integer"


def _difference(
    wanted: Mapping[str, Any], tensors: Tensors, name: str, file: str, error: Exception
) -> str:
    """Why the module did not take the tensors."""
    missing = [each for each in wanted if each not in tensors]
    unknown = [each for each in tensors if each not in wanted]
    shapes = [
        f"{each} is {list(tensors[each].shape)} in the file and {list(own.shape)} in {name}"
        for each, own in wanted.items()
        if each in tensors and not _fits(own, tensors[each])
    ]
    parts = [
        f"the file has no {shorten(missing)}" if missing else "",
        f"{name} has no {shorten(unknown)}" if unknown else "",
        shorten(shapes, 3),
    ]
    text = "; ".join(filter(None, parts)) or one_line(error)
    return (
        f"{file} does not fit {name}: {text}: give --module-args as in training, or another class"
    )
