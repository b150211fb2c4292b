"""Builds the responses to what was applied. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Floats, Output
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.asking import Ask
from lstmserve.server.kserve.tensors import Array
from lstmserve.server.steps import AppliedStep


def begin_response(ask: Ask, model: Model) -> pb.ModelInferResponse:
    """With what every response repeats."""
    return pb.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=ask.id)


def put_outputs(response: pb.ModelInferResponse, outputs: Iterable[tuple[str, Array]]) -> None:
    """Arrays of float32, in this order, raw whatever the request was."""
    for name, values in outputs:
        response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(values.tobytes())


def step_response(
    engine: Engine, ask: Ask, row: int, step: AppliedStep, axes: tuple[int, ...]
) -> pb.ModelInferResponse:
    """To a step that was just applied: called while the state is still that after it.

    `axes` are those that x came with before a row's.
    """
    model = engine.model_of(row)
    state = model.state_from(engine.sessions.state(row)) if ask.with_state else None
    response = begin_response(ask, model)
    response.parameters["step"].int64_param = step.number
    response.parameters["incarnation"].int64_param = engine.table.incarnation.item(row)
    if step.is_replayed:
        response.parameters["replayed"].bool_param = True
    put_outputs(response, _step_outputs(step.y, axes, ask.wanted, state))
    return response


def _step_outputs(
    y: Output, axes: tuple[int, ...], wanted: Sequence[str], state: tuple[Floats, Floats] | None
) -> list[tuple[str, Array]]:
    """Of y [T, O], or its last row [1, O] where y is not wanted, and h, c [L, 1, S] after it.

    States have a batch axis where x has one.
    """
    outputs: list[tuple[str, Array]] = []
    for name in wanted:
        if name == "y":
            outputs.append((name, y.reshape(*axes, y.shape[1])))
        elif name == "y_last":
            outputs.append((name, y[-1].reshape(*axes[:-1], y.shape[1])))
        else:
            assert state is not None
            values = state[0] if name == "hn" else state[1]
            outputs.append((name, values if len(axes) == 2 else values[:, 0]))
    return outputs
