"""Traces one time step of a module into an ONNX graph, by torch.onnx.export.

Each call of a recurrent layer becomes one node of the domain DOMAIN, which lower.py replaces by
nodes of ONNX. So torch's own conversion of recurrent layers, which ignores projections and freezes
sizes at a second export in one process, takes no part.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
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
SYMBOLS: Final = "torch.fx.experimental.symbolic_shapes"
BATCH: Final = 3  # torch would take a batch of 1 for a constant


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced step: inputs and states by name [B, *shape] -> outputs, and NAME.next.

    A node RECURRENT reads x [N, I] and states [N, *shape], and gives y [N, width] and the states;
    its attribute `call` is an index of `calls`, each with its layer.
    """

    model: onnx.ModelProto
    calls: tuple[tuple[CallId, Layer], ...]


def trace(forward: Forward, signature: Signature) -> Trace:
    """The graph of one time step. Raises Refused where torch cannot trace the module."""
    spec = signature.spec
    step = _Step(forward, signature)
    axes = {each.name: each.axes for each in signature.inputs}
    rows = Sampler(forward.example, axes).rows(BATCH, 1)
    inputs = [rows[each.name][:, 0].contiguous() for each in signature.inputs]
    states = [torch.zeros(BATCH, *e.shape, dtype=getattr(torch, e.dtype)) for e in spec.states]
    arguments = (*inputs, *states)
    batch = torch.export.Dim("B")
    try:
        with torch.no_grad(), _silent():
            program = torch.onnx.export(
                step,
                arguments,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in arguments),),
                input_names=[each.name for each in (*spec.inputs, *spec.states)],
                output_names=[
                    *(each.name for each in spec.outputs),
                    *(each.name + NEXT for each in spec.states),
                ],
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
    return Trace(program.model_proto, tuple(step.run.calls))


class _Step(nn.Module):
    """One time step: inputs [B, *shape], states [B, *shape] -> outputs, states.

    torch.export restores a module's attributes after it has traced it, so what a run leaves behind
    is in `run`.
    """

    def __init__(self, forward: Forward, signature: Signature) -> None:
        super().__init__()
        self.net = forward.module
        self.run = _Run(forward, signature)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
        y, after = self._placeholder(call, layer, rows, before)
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

    def _placeholder(
        self, call: CallId, layer: Layer, rows: torch.Tensor, before: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        size, shapes = rows.shape[0], state_shapes(layer)
        width = shapes[0][-1]
        y, *after = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{RECURRENT}",
            (rows, *before),
            {"call": len(self.calls)},
            dtypes=(rows.dtype,) * (1 + len(shapes)),
            shapes=((size, width), *((size, *shape) for shape in shapes)),
            version=1,
        )
        self.calls.append((call, layer))
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
