"""Traces one time step of a module into an ONNX graph, by torch.onnx.export.

Each call of a recurrent layer becomes one node of the domain DOMAIN, which lower.py replaces by
nodes of ONNX. So torch's own conversion of recurrent layers, which ignores projections and freezes
sizes at a second export in one process, takes no part. window.py traces whole windows the same way.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, Final

import onnx
import torch
from torch import nn

from lstmserve.spec import NEXT
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.places import place
from lstmserve_export.module.recurrent import (
    CELLS,
    CallId,
    Layer,
    batch_first,
    call_original,
    find_layers,
    replaced,
    sequence_axis,
    state_shapes,
    torch_layout,
)
from lstmserve_export.module.signature.sampler import Sampler
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.module.sizes import symbolic_len
from lstmserve_export.refusal import Refused, described

DOMAIN: Final = "lstmserve.export"
RECURRENT: Final = "Recurrent"
SEQUENCE: Final = "RecurrentSequence"
SYMBOLS: Final = "torch.fx.experimental.symbolic_shapes"
BATCH: Final = 3  # torch would take a batch of 1 for a constant


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced step: inputs and states by name [B, *shape] -> outputs, and NAME.next. Or a window:
    inputs [B, W, *shape] -> outputs [B, *shape].

    A node RECURRENT reads x [N, I] and states [N, *shape], and gives y [N, width] and the states; a
    node SEQUENCE reads x [T, N, I], and no states where they are zeros, and gives y [T, N, width]
    and the states. Its attribute `call` is an index of `calls`, each with its layer.
    """

    model: onnx.ModelProto
    calls: tuple[tuple[CallId, Layer], ...]


Tensors = tuple[torch.Tensor, ...]


def trace(forward: Forward, signature: Signature) -> Trace:
    """The graph of one time step. Raises Refused where torch cannot trace the module."""
    spec = signature.spec
    axes = {each.name: each.axes for each in signature.inputs}
    rows = Sampler(forward.example, axes).rows(BATCH, 1)
    inputs = [rows[each.name][:, 0].contiguous() for each in signature.inputs]
    states = [torch.zeros(BATCH, *e.shape, dtype=getattr(torch, e.dtype)) for e in spec.states]
    run = _Run(forward, signature)
    return Trace(
        graph_of(
            forward,
            run,
            (*inputs, *states),
            [each.name for each in (*spec.inputs, *spec.states)],
            [
                *(each.name for each in spec.outputs),
                *(each.name + NEXT for each in spec.states),
            ],
        ),
        tuple(run.calls),
    )


def graph_of(
    forward: Forward,
    run: Callable[[Tensors], Tensors],
    arguments: Tensors,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """The graph of run(arguments), where any batch may take the place of that of the arguments.

    Raises Refused where torch cannot trace it.
    """
    batch = torch.export.Dim("B")
    try:
        with torch.no_grad(), _silent():
            program = torch.onnx.export(
                _Traced(forward.module, run),
                arguments,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in arguments),),
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
    except Refused:
        raise
    except Exception as error:  # of any kind: from the user's code, torch or onnxscript
        raise _refused(error, forward) from error
    assert program is not None
    sizes = [value.type.tensor_type.shape.dim[0] for value in program.model_proto.graph.input]
    if not all(size.dim_param for size in sizes):
        raise Refused(
            f"forward() works for a batch of {BATCH} and of no other size while torch traces it: "
            "use x.shape[0] as it is, without int(), .item() or a loop over the rows of a batch"
        )
    return program.model_proto


class _Traced(nn.Module):
    """What torch traces. It restores a module's attributes after that, so what a run leaves behind
    is in `run`."""

    def __init__(self, net: nn.Module, run: Callable[[Tensors], Tensors]) -> None:
        super().__init__()
        self.net = net
        self.run = run

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return self.run(tensors)


class _Run:
    """The computation of a step; `calls` are the placeholders of the last run."""

    def __init__(self, forward: Forward, signature: Signature) -> None:
        self._forward = forward
        self._signature = signature
        self._memories = {each.call: each for each in signature.memories}
        self._layers = find_layers(forward.module)
        self._is_unbatched = all(each.axes.batch is None for each in signature.inputs)
        self._given: dict[str, torch.Tensor] = {}
        self._next: dict[str, torch.Tensor] = {}
        self.calls: list[tuple[CallId, Layer]] = []

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        signature = self._signature
        spec = signature.spec
        names = [each.name for each in (*spec.inputs, *spec.states)]
        given = dict(zip(names, tensors, strict=True))
        rows = {}
        for each in signature.inputs:
            value = given[each.spec.name]
            # Without an axis of the batch, time steps take its place: a step has one of them.
            is_unbatched = each.axes.batch is None
            rows[each.spec.name] = value[None] if is_unbatched else value[:, None]
        self.calls, self._given, self._next = [], given, {}
        with replaced(self._layers, self._call), symbolic_len(self._forward.module):
            results = self._forward(signature.arguments(rows, given))
        outputs = []
        for output in signature.outputs:
            value = output.axes.to_rows(results[output.result].tensor)
            steps = value.shape[0 if output.axes.batch is None else 1]
            if output.axes.batch is not None and steps != 1:
                raise Refused(
                    f"{output.spec.name} has {steps} time steps for one of the input: return one "
                    "for each row, since a stream answers each row as it comes"
                )
            value = value.squeeze(0 if output.axes.batch is None else 1)
            if tuple(value.shape[1:]) != output.spec.shape:
                raise Refused(
                    f"{output.spec.name} has rows {list(output.spec.shape)} for several time steps "
                    f"and {list(value.shape[1:])} for one: return one row for each time step, or "
                    "that of the last"
                )
            outputs.append(value.to(getattr(torch, output.spec.dtype)))
        after = signature.after(results) | self._next
        for memory in signature.memories:
            if memory.specs[0].name not in after:
                raise Refused(
                    f"{memory.call.layer or 'the module'} makes more than one time step, or none, "
                    "for a row of the input, and a stream makes one for each"
                )
        return (*outputs, *(after[each.name] for each in spec.states))

    def _call(self, call: CallId, layer: Layer, x: torch.Tensor, state: Any) -> Any:
        axis = sequence_axis(layer, x)
        is_batched = x.dim() == (2 if axis is None else 3)
        if axis is not None and is_batched and self._is_unbatched and x.shape[1 - axis] == 1:
            axis = 1 - axis  # [T, 1, I], where the time steps are those of a batch
        length = x.shape[axis] if axis is not None and is_batched else 1
        if length != 1 or getattr(layer, "bidirectional", False):
            return call_original(layer, x, state)  # a sequence within one time step
        if x.dim() == 1:
            x = x[None]
        rows = x.squeeze(axis) if axis is not None and is_batched else x
        before = self._before(call, layer, rows, state)
        y, after = placeholder(RECURRENT, len(self.calls), layer, rows, before)
        self.calls.append((call, layer))
        if (memory := self._memories.get(call)) is not None:
            for spec, part in zip(memory.specs, after, strict=True):
                self._next[spec.name] = _reshaped(part, spec.shape)
        if isinstance(layer, CELLS):
            return after if len(after) > 1 else after[0]
        out = y.unsqueeze(axis) if is_batched and axis is not None else y
        return out, torch_layout(layer, after)

    def _before(
        self, call: CallId, layer: Layer, rows: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, ...]:
        """The states [N, *shape] that the call begins from."""
        shapes = state_shapes(layer)
        if (memory := self._memories.get(call)) is not None:
            return tuple(
                _reshaped(self._given[spec.name], shape)
                for spec, shape in zip(memory.specs, shapes, strict=True)
            )
        if state is None:
            return tuple(rows.new_zeros(rows.shape[0], *shape) for shape in shapes)
        found = batch_first(layer, state)
        assert found is not None
        return found


def placeholder(
    kind: str, number: int, layer: Layer, rows: torch.Tensor, before: Tensors
) -> tuple[torch.Tensor, Tensors]:
    """The node of call `number`, RECURRENT or SEQUENCE: y and the states after the call."""
    *lead, size, _ = rows.shape
    shapes = state_shapes(layer)
    directions = 1 + getattr(layer, "bidirectional", False)
    y, *after = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{kind}",
        (rows, *before),
        {"call": number},
        dtypes=(rows.dtype,) * (1 + len(shapes)),
        shapes=((*lead, size, directions * shapes[0][-1]), *((size, *shape) for shape in shapes)),
        version=1,
    )
    return y, tuple(after)


def _reshaped(state: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[N, *shape], without a node where it is that already."""
    return state if tuple(state.shape[1:]) == shape else state.reshape(-1, *shape)


def _refused(error: BaseException, forward: Forward) -> Refused:
    """Says why torch cannot trace. The first error of the chain is that of the user's code."""
    while error.__cause__ is not None and not isinstance(error, Refused):
        error = error.__cause__
    if isinstance(error, Refused):
        return error
    where = place(error, forward.module)
    if "DataDependent" in type(error).__name__:
        return Refused(
            f"forward() decides by the values of a tensor{where}, and what it decides for one row "
            "would hold for all: write torch.where(condition, a, b) for if, and no .item()"
        )
    if ".numpy()" in str(error):
        return Refused(f"forward() leaves torch for numpy{where}: write it with torch's functions")
    return Refused(
        f"torch cannot trace forward() for a batch of any size{where}: {described(error)}"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """torch logs what it could not register, warns of its own calls, and prints what failed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", SYMBOLS)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
