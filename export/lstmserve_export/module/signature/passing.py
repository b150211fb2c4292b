"""Finds the states among forward's arguments, and the result that each comes back as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch

from lstmserve_export.module.forward import Forward, Result
from lstmserve_export.module.recurrent import Call
from lstmserve_export.refusal import Refused, shorten

STATE_NAME: Final = re.compile(
    r"(.*_)?(h|c|h[0tx]|c[0tx]|hc|hidden|cell|state|memory|carry|cache)s?(_.*)?|[hc]_?n"
)
LENGTHS_NAME: Final = re.compile(r"(.*_)?(len|lens|length|lengths|seq_?lens?)(_.*)?")
AMBIGUOUS: Final = (
    "return a dict whose keys are the names of the arguments, such as {'y': y, 'h': h}"
)


def find_passed(
    forward: Forward, results: list[Result], calls: list[Call], given: Sequence[str]
) -> dict[str, int]:
    """The tensors of the example that are states -> the number of the result of each.

    `given` are the arguments that the user calls states, or parts of them such as "inputs.1".
    Otherwise those count that go into a recurrent layer and come back as what it returned, and
    those whose name says so, except the first argument. `results` and `calls` are those of the
    example. Raises Refused.
    """
    arguments = forward.arguments()
    parts = {name: [n for n in forward.example if f"{n}.".startswith(f"{name}.")] for name in given}
    if unknown := [name for name, leaves in parts.items() if not leaves]:
        raise Refused(
            f"states: forward() has no argument {shorten(unknown)} in the example; it has "
            f"{shorten(list(forward.example))}"
        )
    if given:
        leaves = [leaf for name in given for leaf in parts[name]]
        found = _by_layers(forward, leaves, results, calls)
    else:
        found = _by_layers(forward, list(forward.example), results, calls)
        first = next(iter(arguments))
        named = [
            name
            for name in arguments
            if name != first
            and STATE_NAME.fullmatch(name)
            and not all(_is_row(forward, leaf, results) for leaf in arguments[name])
        ]
        leaves = [*found, *(leaf for name in named for leaf in arguments[name])]
        leaves = [leaf for leaf in forward.example if leaf in leaves]
    for finder in (_by_names, _by_shapes):
        left = [leaf for leaf in leaves if leaf not in found]
        found |= finder(forward, left, results, set(found.values()))
    return {leaf: found[leaf] for leaf in leaves}


def _by_layers(
    forward: Forward, leaves: list[str], results: list[Result], calls: list[Call]
) -> dict[str, int]:
    """States that a recurrent layer was handed, where a result is what that call returned."""
    found = {}
    for leaf in leaves:
        tensor = forward.example[leaf]
        for call in calls:
            for given, after in zip(call.given, call.after, strict=False):
                if not is_view(given, tensor):
                    continue
                for number, result in enumerate(results):
                    if is_view(result.tensor, after):
                        found[leaf] = number  # the last one: outputs come before states
    return found


def _is_row(forward: Forward, leaf: str, results: list[Result]) -> bool:
    """Whether a tensor has the batch and the time of the first one, and no result has its shape:
    "cell_voltage" [B, T] is an input."""
    first, tensor = next(iter(forward.example.values())), forward.example[leaf]
    is_beside = first.dim() > 1 and tensor.shape[:2] == first.shape[:2]
    return is_beside and all(result.tensor.shape != tensor.shape for result in results)


def is_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are views of all the same values."""
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return same and one.numel() == other.numel()


def _by_names(
    forward: Forward, leaves: list[str], results: list[Result], taken: set[int]
) -> dict[str, int]:
    """States whose name is the key of a result."""
    keys = {r.path: n for n, r in enumerate(results) if n not in taken and r.path}
    found = {}
    for leaf in leaves:
        number = keys.get(leaf)
        if number is not None and results[number].tensor.shape == forward.example[leaf].shape:
            found[leaf] = number
    return found


def _by_shapes(
    forward: Forward, leaves: list[str], results: list[Result], taken: set[int]
) -> dict[str, int]:
    """States whose shape no other result has: several of one shape keep their order."""
    found: dict[str, int] = {}
    for shape in dict.fromkeys(forward.example[leaf].shape for leaf in leaves):
        mine = [leaf for leaf in leaves if forward.example[leaf].shape == shape]
        fits = [n for n, r in enumerate(results) if n not in taken and r.tensor.shape == shape]
        if len(fits) < len(mine):
            raise Refused(
                f"{shorten(mine)} looks like a state, and forward() returns nothing of its shape "
                f"{list(shape)}: return the state after the step, or name the states with states="
            )
        if len(fits) > len(mine):
            where = ", ".join(results[n].path or str(n) for n in fits)
            raise Refused(
                f"the results {where} of forward() all have the shape of the state "
                f"{shorten(mine)}: {AMBIGUOUS}"
            )
        found |= dict(zip(mine, fits, strict=True))
    return found


def check_lengths(forward: Forward) -> None:
    """Raises Refused if an argument has the lengths of padded sequences."""
    names = [
        name
        for name, tensor in forward.example.items()
        if LENGTHS_NAME.fullmatch(name) and not tensor.is_floating_point() and tensor.dim() == 1
    ]
    if names:
        raise Refused(
            f"forward() takes lengths ({shorten(names)}): a stream has no padding, so export a "
            "module that neither takes them nor packs its sequences, such as one whose forward(x) "
            "calls the layers of this one"
        )
