"""The example of what forward() takes: read from a file, or guessed where that is safe."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from lstmserve_export.arrays import Array, Arrays, read_npy, read_npz
from lstmserve_export.lstm.network import Norm
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.scaling import Columns
from lstmserve_export.refusal import Refused, shorten
from lstmserve_export.sequences import SEED

Example = dict[str, Any]
HOW: Final = 'give rows as forward() takes them, --example x.npy: np.save("x.npy", x.numpy())'
HOW_MANY: Final = (
    "give --example x.npz with an array for each argument by its name, and NAME.0, NAME.1 for a "
    'tuple: np.savez("x.npz", **{"x": x, "state.0": h, "state.1": c})'
)
SIZE, LENGTH = 3, 8  # of a guessed example


def read_example(path: Path, module: nn.Module) -> Example:
    """The arguments of forward() in an .npz by name, or the first of them in an .npy.

    Raises Refused.
    """
    flag = "--example"
    arrays = read_npz(path, flag) if path.suffix == ".npz" else {"": read_npy(path, flag)}
    return arguments(arrays, module, flag)


def arguments(arrays: Arrays, module: nn.Module, flag: str) -> Example:
    """The arrays as arguments; a lone one is the first, whatever its name. Raises Refused."""
    parameters = parameters_of(module)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        argument, _, place = name.partition(".")
        if len(arrays) == 1 and argument not in parameters:
            argument, place = next(iter(parameters), ""), ""
        if argument not in parameters:
            raise Refused(
                f"{flag}: forward() has no argument {name}; it has {shorten(list(parameters))}"
            )
        found.setdefault(argument, {})[place] = _tensor(array, name, flag)
    if lacking := [name for name in _required(module) if name not in found]:
        raise Refused(f"{flag}: forward() also needs {shorten(lacking)}: {HOW_MANY}")
    return {name: _value(parts, name, flag) for name, parts in found.items()}


def _value(parts: dict[str, torch.Tensor], name: str, flag: str) -> Any:
    """One tensor, or a tuple of NAME.0, NAME.1, ... Raises Refused."""
    if set(parts) == {""}:
        return parts[""]
    places = [str(place) for place in range(len(parts))]
    if set(parts) != set(places):
        raise Refused(
            f"{flag}: {name} has the parts {shorten(list(parts))}, must be one array, or {name}.0, "
            f"{name}.1, ..."
        )
    return tuple(parts[place] for place in places)


def _tensor(array: Array, name: str, flag: str) -> torch.Tensor:
    if array.dtype.kind not in "fiub" or not array.size:
        raise Refused(
            f"{flag}: {name or 'the array'} is {array.dtype} {list(array.shape)}, must be numbers"
        )
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def parameters_of(module: nn.Module) -> dict[str, inspect.Parameter]:
    """What an example may name of forward's signature."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(module.forward).parameters
    return {name: each for name, each in parameters.items() if each.kind in named}


def _required(module: nn.Module) -> list[str]:
    parameters = parameters_of(module)
    return [name for name, each in parameters.items() if each.default is each.empty]


def guess_example(
    module: nn.Module, norms: Mapping[str, Norm], window: int = 0
) -> tuple[Example, str]:
    """Random rows that forward() takes, where its only argument and its layers leave no choice,
    and what they are, in words. With a norm they are raw. Raises Refused."""
    required = _required(module)
    name = next(iter(parameters_of(module)), "")
    if len(required) > 1:
        raise Refused(f"forward() needs {shorten(required)}: {HOW_MANY}")
    if not name:
        raise Refused(f"forward() names no argument: {HOW}")
    for lead in ((SIZE, window or LENGTH), (SIZE,)):
        widths = [n for n in _widths(module) if _takes(module, _floats_of(lead, n))]
        tables = [n for n in _tables(module) if _takes(module, _tokens_of(lead, n))]
        is_open = any(_takes(module, _floats_of(lead, n + 1)) for n in widths)
        if len(widths) == 1 and not tables and not is_open:
            tensor = _raw(_floats_of(lead, widths[0]), norms)
            return {name: tensor}, f"random {name} {list(tensor.shape)}"
        if tables and not widths:
            most = max(tables)
            return {name: _tokens_of(lead, most)}, f"random {name} {list(lead)} in [0, {most - 1}]"
        if widths or tables:
            break
    raise Refused(f"the layers do not say what forward({name}) takes: {HOW}")


def _widths(module: nn.Module) -> list[int]:
    """Each number of features that a layer reads, in the order of the layers."""
    sizes = ("in_features", "input_size", "num_features")
    found = [getattr(each, size, None) for each in module.modules() for size in sizes]
    found += [
        each.normalized_shape[-1] for each in module.modules() if isinstance(each, nn.LayerNorm)
    ]
    return list(dict.fromkeys(width for width in found if isinstance(width, int) and width > 0))


def _tables(module: nn.Module) -> list[int]:
    found = (each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding))
    return list(dict.fromkeys(found))


def _floats_of(lead: tuple[int, ...], width: int) -> torch.Tensor:
    return torch.randn((*lead, width), generator=torch.Generator().manual_seed(SEED))


def _tokens_of(lead: tuple[int, ...], count: int) -> torch.Tensor:
    """Random tokens, the last of the table among them."""
    tokens = torch.randint(count, lead, generator=torch.Generator().manual_seed(SEED))
    tokens[..., 0] = count - 1
    return tokens


def _raw(scaled: torch.Tensor, norms: Mapping[str, Norm]) -> torch.Tensor:
    """Rows before the only scaler, where it has as many columns."""
    for norm in norms.values():
        if len(norm.mean) == scaled.shape[-1]:
            return Columns(norm, (-1,)).raw(scaled)
    return scaled


def _takes(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether forward() gives tensors for it."""
    with contextlib.suppress(Exception):  # the user's code may raise anything
        forward = Forward(module, tensor)
        return bool(forward(forward.example))
    return False
