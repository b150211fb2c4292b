"""Traces one window of a module into an ONNX graph: whole windows in, the last row's outputs out.

The time steps of the window are a constant of the graph. A recurrent layer begins from what
forward() gives it, and a state among forward's arguments from zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lstmserve_export.module.forward import Forward
from lstmserve_export.module.graph.trace import (
    BATCH,
    RECURRENT,
    SEQUENCE,
    Tensors,
    Trace,
    graph_of,
    placeholder,
)
from lstmserve_export.module.recurrent import (
    CELLS,
    CallId,
    Layer,
    batch_first,
    find_layers,
    replaced,
    sequence_axis,
    state_shapes,
    torch_layout,
)
from lstmserve_export.module.signature.sampler import Sampler
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.module.sizes import symbolic_len
from lstmserve_export.refusal import Refused


def trace_window(forward: Forward, signature: Signature) -> Trace:
    """The graph of one window. Raises Refused where torch cannot trace the module."""
    spec = signature.spec
    axes = {each.name: each.axes for each in signature.inputs}
    rows = Sampler(forward.example, axes).rows(BATCH, spec.window)
    run = _WindowRun(forward, signature)
    model = graph_of(
        forward,
        run,
        tuple(rows[each.name].contiguous() for each in signature.inputs),
        [each.name for each in spec.inputs],
        [each.name for each in spec.outputs],
    )
    return Trace(model, tuple(run.calls))


class _WindowRun:
    """The computation of a window; `calls` are the placeholders of the last run."""

    def __init__(self, forward: Forward, signature: Signature) -> None:
        self._forward = forward
        self._signature = signature
        self._layers = find_layers(forward.module)
        self.calls: list[tuple[CallId, Layer]] = []

    def __call__(self, tensors: Tensors) -> Tensors:
        spec = self._signature.spec
        rows = {each.name: value for each, value in zip(spec.inputs, tensors, strict=True)}
        self.calls = []
        with replaced(self._layers, self._call), symbolic_len(self._forward.module):
            answers = self._signature.answer_window(self._forward, rows)
        outputs = []
        for each in spec.outputs:
            value = answers[each.name]
            if tuple(value.shape[1:]) != each.shape:
                raise Refused(
                    f"{each.name} has rows {list(each.shape)} and, while torch traces it, "
                    f"{list(value.shape[1:])}: return the same shape for every batch"
                )
            outputs.append(value.to(getattr(torch, each.dtype)))
        return tuple(outputs)

    def _call(self, call: CallId, layer: Layer, x: torch.Tensor, state: Any) -> Any:
        if isinstance(layer, CELLS):
            return self._call_cell(call, layer, x, state)
        axis = sequence_axis(layer, x)
        is_batched = x.dim() == 3
        rows = x if is_batched else x[:, None]
        if is_batched and axis == 1:
            rows = rows.transpose(0, 1)
        y, after = self._placeholder(SEQUENCE, call, layer, rows, batch_first(layer, state) or ())
        if not is_batched:
            return y[:, 0], _unbatched(after)
        return y.transpose(0, 1) if axis == 1 else y, torch_layout(layer, after)

    def _call_cell(self, call: CallId, layer: Layer, x: torch.Tensor, state: Any) -> Any:
        rows = x if x.dim() == 2 else x[None]
        before = batch_first(layer, state)
        if before is None:
            before = tuple(rows.new_zeros(rows.shape[0], *each) for each in state_shapes(layer))
        _, after = self._placeholder(RECURRENT, call, layer, rows, before)
        if x.dim() == 1:
            return _unbatched(tuple(each[:, None] for each in after))
        return after if len(after) > 1 else after[0]

    def _placeholder(
        self, kind: str, call: CallId, layer: nn.Module, rows: torch.Tensor, before: Tensors
    ) -> tuple[torch.Tensor, Tensors]:
        found = placeholder(kind, len(self.calls), layer, rows, before)
        self.calls.append((call, layer))
        return found


def _unbatched(after: Tensors) -> Any:
    """States [1, *shape] as torch returns them for an input without a batch."""
    parts = tuple(each[0] for each in after)
    return parts if len(parts) > 1 else parts[0]
