"""Checks that a module's forward() is a function of its arguments, before anything is traced.

It runs forward() on the example, and compares what the module holds before and after. It does not
know what the arguments and results mean.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch import nn

from lstmserve_export.module.forward import Forward, Result
from lstmserve_export.refusal import Refused, described, shorten

# An LSTM keeps lists of its own parameters.
TORCHS_OWN: Final = frozenset(vars(nn.Module())) | frozenset(
    name for name in vars(nn.LSTM(1, 1)) if name.startswith("_")
)
DEPTH_MAX: Final = 4  # of containers and objects in each other
NAN: Final = (
    "has NaN or infinite values: the training diverged, or the file is damaged; export an earlier "
    "checkpoint"
)


def check_weights(module: nn.Module) -> None:
    """Raises Refused for weights without a meaning, and for those that change while they run."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise Refused(f"{name} has no values yet: call the module once before the export")
        if not parameter.isfinite().all():
            raise Refused(f"{name} {NAN}")
    for name, buffer in module.named_buffers():
        if buffer.isnan().any():  # a mask may be infinite
            raise Refused(f"{name} {NAN}")
    for path, layer in module.named_modules():
        if getattr(layer, "max_norm", None) is not None and "Embedding" in type(layer).__name__:
            raise Refused(
                f"{path or 'the module'} ({type(layer).__name__}) has max_norm, so it changes its "
                "weights while it runs: scale its rows once, and set max_norm to None"
            )


def check_function(forward: Forward) -> None:
    """Runs the example. Raises Refused if forward() keeps state from call to call, draws
    random numbers, changes its arguments, fails, or returns no tensor."""
    module = forward.module
    given, before, drawn = _frozen(forward.example), _held(module), _generators()
    try:
        answers = _tensors(forward(forward.example))
    except Exception as error:  # the user's code may raise anything
        raise Refused(f"forward() fails on the example: {described(error)}") from error
    if not answers:
        raise Refused("forward() returns no tensor")
    now, after, redrawn = _frozen(forward.example), _held(module), _generators()
    if written := [name for name in given if given[name] != now[name]]:
        raise Refused(
            f"forward() changes its argument {shorten(written)} in place: write x = x * 2 for "
            "x.mul_(2), and so on"
        )
    changed = [name for name, value in after.items() if before.get(name) != value]
    for name in changed:
        path, _, attribute = name.rpartition(".")
        if attribute == "training":
            raise Refused(
                f"forward() puts {_named(module, path)} into training mode, in which answers are "
                "random or depend on other rows: leave train() and eval() to the caller"
            )
    if drawn != redrawn:
        raise _random(module)
    if kept := [name for name in changed if _is_read(forward, name, answers)]:
        raise Refused(
            f"forward() keeps state between calls, in {shorten(kept)}: take it as an argument and "
            "return it, as forward(x, state) -> (y, state); the server keeps it for each session"
        )
    if _tensors(forward(forward.example)) != answers:
        raise Refused(
            "forward() gives other results for the same input, by a clock, a random number or a "
            "state outside of the module: take what it needs as an argument, and return a state"
        )


def _random(module: nn.Module) -> Refused:
    layers = [
        path for path, each in module.named_modules() if path and "ropout" in type(each).__name__
    ]
    named = f", such as {_named(module, layers[0])}," if layers else ""
    return Refused(
        "forward() draws random numbers in eval mode, so no answer can be checked: if it is a "
        f"dropout{named} write F.dropout(x, p, self.training) or use nn.Dropout as it is; anything "
        "else that is random belongs in the client, which may send it as an input"
    )


def _named(module: nn.Module, path: str) -> str:
    return f"{path or 'the module'} ({type(module.get_submodule(path)).__name__})"


def _generators() -> Any:
    """The states of the generators that a forward() may draw from."""
    return _frozen((torch.get_rng_state(), random.getstate(), np.random.get_state()))


def _held(module: nn.Module) -> dict[str, Any]:
    """All that the module and its layers hold by name: parameters, buffers and attributes."""
    found: dict[str, Any] = {}
    for path, each in module.named_modules():
        lead = f"{path}." if path else ""
        own = {n: v for n, v in vars(each).items() if n not in TORCHS_OWN}
        held = {**own, **each._parameters, **each._buffers, "training": each.training}
        found |= {lead + name: _frozen(value) for name, value in held.items()}
    return found


def _frozen(value: Any, depth: int = 0) -> Any:
    """What is equal for equal contents, of tensors, arrays, containers and objects."""
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        data = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).digest()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (int, float, complex, str, bytes, type(None))):
        return type(value), repr(value)
    if depth == DEPTH_MAX or isinstance(value, nn.Module) or callable(value):
        return id(value)
    if isinstance(value, Mapping):
        return {key: _frozen(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (tuple, list, deque)):
        return [_frozen(each, depth + 1) for each in value]
    if isinstance(value, (set, frozenset)):
        return frozenset(value)
    return {name: _frozen(each, depth + 1) for name, each in getattr(value, "__dict__", {}).items()}


def _tensors(results: list[Result]) -> Any:
    return _frozen([each.tensor for each in results])


def _is_read(forward: Forward, name: str, answers: Any) -> bool:
    """Whether forward() reads what it left in the attribute. One that it only writes, such as the
    last attention for a plot, is no state."""
    path, _, attribute = name.rpartition(".")
    with _unreadable(forward.module.get_submodule(path), attribute):
        try:
            return bool(_tensors(forward(forward.example)) != answers)
        except Exception:  # of any kind: _Unread raises TypeError, which user code may translate
            return True


@contextmanager
def _unreadable(layer: nn.Module, attribute: str) -> Iterator[None]:
    places: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers, vars(layer))
    place = next(each for each in places if attribute in each)
    value, place[attribute] = place[attribute], _Unread()
    try:
        yield
    finally:
        place[attribute] = value


def _raise(self: Any, *_: Any) -> NoReturn:
    raise TypeError("forward() reads what an earlier call left")


class _Unread:
    """Stands for a value that forward() may replace, and must not read."""

    __getattr__ = __bool__ = __eq__ = __ne__ = __hash__ = _raise
