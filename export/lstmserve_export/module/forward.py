"""The user's module as a function from flat, named tensors to flat, named ones.

It runs a copy of the module, in eval mode on the CPU, and changes no code of it. It does not know
which of its tensors are states.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from lstmserve_export.module.recurrent import find_layers
from lstmserve_export.module.scaling import Scaling
from lstmserve_export.module.sizes import Squeezed, steady_squeeze
from lstmserve_export.refusal import Refused, one_line

Tensors = Mapping[str, torch.Tensor]
DTYPES: Final = {
    torch.float64: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.int32: torch.int64,
    torch.int16: torch.int64,
    torch.int8: torch.int64,
    torch.uint8: torch.int64,
}
TAKEN: Final = (torch.float32, torch.int64)
WRAPPERS: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclasses.dataclass(frozen=True, slots=True)
class Axes:
    """Where a tensor of forward's has its batch and its time steps; None: it has no such axis."""

    batch: int | None
    time: int | None

    @classmethod
    def of(cls, letters: str) -> Axes | None:
        """The axes of a name in LAYOUTS; None for "", which lets the export find out.

        Raises Refused.
        """
        if letters not in ("", *LAYOUTS):
            raise Refused(f"axes is {letters!r}, must be one of {', '.join(LAYOUTS)}")
        return LAYOUTS[letters] if letters else None

    def to_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of forward's -> [B, T, *shape], with 1 for an axis that it does not have."""
        places = [each for each in (self.batch, self.time) if each is not None]
        rows = tensor.movedim(places, list(range(len(places))))
        if self.batch is None:
            rows = rows[None]
        return rows[:, None] if self.time is None else rows

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, T, *shape] -> a tensor of forward's, with the first entry of an axis that it does
        not have."""
        if self.time is None:
            rows = rows[:, 0]
        if self.batch is None:
            rows = rows[0]
        places = [each for each in (self.batch, self.time) if each is not None]
        return rows.movedim(list(range(len(places))), places)


LAYOUTS: Final = {
    "BT": Axes(0, 1),
    "TB": Axes(1, 0),
    "BFT": Axes(0, 2),
    "BCFT": Axes(0, 3),
    "B": Axes(0, None),
    "T": Axes(None, 0),
}


class Result(NamedTuple):
    """A tensor that forward() returns. `path` leads to it, such as "y", "1" or "1.0"; "" is it."""

    path: str
    tensor: torch.Tensor


class Forward:
    """forward() of a module with the structure of an example's arguments.

    `example` has the tensors of the example by name: the name of forward's argument, and for a
    tensor inside it NAME.KEY. Anything in the example that is no tensor is passed on as it is.
    With a `scaling`, the example and what a call takes and returns are raw.
    """

    def __init__(self, module: nn.Module, example: Any) -> None:
        """Raises Refused if the module cannot be copied, or the example does not fit forward()."""
        self.module = _copied(module)
        self.squeezed: Squeezed = {}
        self.scaling = Scaling()
        bound = _bind(self.module, example)
        leaves, self._structure = pytree.tree_flatten((bound.args, bound.kwargs))
        self._leaves: list[Any] = [_as_tensor(leaf) for leaf in leaves]
        self._names = _leaf_names(bound)
        self.example: dict[str, torch.Tensor] = {}
        for name, leaf in zip(self._names, self._leaves, strict=True):
            if isinstance(leaf, torch.Tensor):
                _check_dtype(name, leaf)
                self.example[name] = leaf
        if not self.example:
            raise Refused("the example has no tensor: give what forward() takes, as x [B, T, F]")

    def __call__(self, tensors: Tensors) -> list[Result]:
        """The results of forward() where `tensors` take the places of the example's.

        Raises what the user's code raises.
        """
        leaves = [
            tensors.get(name, leaf) if isinstance(leaf, torch.Tensor) else leaf
            for name, leaf in zip(self._names, self._leaves, strict=True)
        ]
        with torch.no_grad(), steady_squeeze(self.squeezed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's code, and torch's on odd layers
            for name, columns in self.scaling.inputs.items():
                place = self._names.index(name)
                leaves[place] = columns.scaled(leaves[place])
            args, kwargs = pytree.tree_unflatten(leaves, self._structure)
            results = list(_results(self.module(*args, **kwargs), ""))
            for number, columns in self.scaling.results.items():
                path, tensor = results[number]
                results[number] = Result(path, columns.raw(tensor))
            return results

    def arguments(self) -> dict[str, list[str]]:
        """The names of the example's tensors by the argument of forward() that has them."""
        found: dict[str, list[str]] = {}
        for name in self.example:
            found.setdefault(name.partition(".")[0], []).append(name)
        return found

    def as_double(self) -> Double:
        """The same function, computed in float64."""
        return Double(self)


class Double:
    """A Forward in float64: its copy has float64 weights, and new tensors are float64."""

    def __init__(self, single: Forward) -> None:
        self._forward = copy.copy(single)
        self._forward.module = copy.deepcopy(single.module).double()
        self._forward._leaves = [
            leaf.double() if _is_float(leaf) else leaf for leaf in single._leaves
        ]

    def __call__(self, tensors: Tensors) -> list[Result]:
        """The results for float32 tensors, which it converts. Raises as Forward does."""
        doubled = {n: each.double() if _is_float(each) else each for n, each in tensors.items()}
        with _default_double():
            return self._forward(doubled)


@contextmanager
def _default_double() -> Iterator[None]:
    """torch.zeros(...) in the user's code makes float64 meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _copied(module: nn.Module) -> nn.Module:
    """A copy in eval mode and float32, without a wrapper of torch.compile or DataParallel."""
    while isinstance(module, WRAPPERS) or hasattr(module, "_orig_mod"):
        inner: Any = module.module if isinstance(module, WRAPPERS) else module._orig_mod
        module = inner
    if isinstance(module, (torch.jit.ScriptModule, torch.export.ExportedProgram)):
        raise Refused(
            f"a {type(module).__name__} is a compiled program, whose layers cannot be given their "
            "state: export the nn.Module that it was made from"
        )
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # a module may hold anything
        raise Refused(
            f"the module cannot be copied ({one_line(error)}): remove hooks, old weight_norm and "
            "tensors that are no parameters, or use torch.nn.utils.parametrizations"
        ) from error
    for layer in find_layers(copied).values():
        layer.register_forward_pre_hook(_with_states_like_input)
    return copied.cpu().float().eval().requires_grad_(False)


def _with_states_like_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A module that was trained in float64 may make its states in that dtype, whatever its own."""
    x, *states = args
    if not (isinstance(x, torch.Tensor) and states):
        return None
    return x, pytree.tree_map_only(torch.Tensor, lambda state: state.to(x.dtype), states[0])


def _bind(module: nn.Module, example: Any) -> inspect.BoundArguments:
    signature = inspect.signature(module.forward)
    try:
        if isinstance(example, Mapping):
            return signature.bind(**example)
        if isinstance(example, (tuple, list)):
            return signature.bind(*example)
        return signature.bind(example)
    except TypeError as error:
        raise Refused(
            f"the example does not fit forward{signature}: {one_line(error)}; give a tensor, a "
            "tuple of the arguments, or a dict of them by name"
        ) from error


def _as_tensor(leaf: Any) -> Any:
    """A tensor of its own on the CPU, of a dtype that is served; what is no tensor as it is."""
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if not isinstance(leaf, torch.Tensor):
        return leaf
    # forward() may write to it, and one tensor may be both h and c of the example.
    leaf = leaf.detach().cpu().clone()
    return leaf.to(DTYPES.get(leaf.dtype, leaf.dtype))


def _check_dtype(name: str, leaf: torch.Tensor) -> None:
    if leaf.dtype not in TAKEN:
        raise Refused(
            f"{name} is {leaf.dtype}: an input is float32 or int64; take one of these, and convert "
            "it inside forward()"
        )
    if not leaf.numel():
        raise Refused(f"{name} of the example is empty: its shape is {list(leaf.shape)}")
    if leaf.is_floating_point() and not leaf.isfinite().all():
        raise Refused(f"{name} of the example has NaN or infinite values")


def _leaf_names(bound: inspect.BoundArguments) -> list[str]:
    """The names in the order of tree_flatten((args, kwargs))."""
    by_position = list(bound.signature.parameters)
    last = len(by_position) - 1
    names = []
    for position, value in enumerate(bound.args):
        names += _names_in(value, by_position[min(position, last)])
    for name, value in bound.kwargs.items():
        names += _names_in(value, name)
    return names


def _names_in(value: Any, name: str) -> list[str]:
    paths, _ = pytree.tree_flatten_with_path(value)
    return [".".join([name, *map(_key, path)]) for path, _ in paths]


def _key(entry: Any) -> str:
    """One step of a path: a sequence's index, a mapping's key or a field."""
    for attribute in ("idx", "key", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _results(value: Any, path: str) -> Iterator[Result]:
    """The tensors in what forward() returned, with their paths; anything else is left out."""
    if isinstance(value, torch.Tensor):
        yield Result(path, value)
    for key, each in _members(value):
        yield from _results(each, f"{path}.{key}" if path else str(key))


def _members(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a mapping, a tuple, a list or a dataclass, by key, field or index."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []
