"""Reads what a ModelInferRequest asks for: model, sequence, parameters, inputs and outputs.

It must not know any session; the tensors' values are read later, by whoever needs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import BadSessionId, BadStep, Malformed
from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.signature import SHOWN_MAX, Part, signature_of
from lstmserve.server.kserve.tensors import Inputs, input_tensors, output_names

VERSION_DIGITS_MAX: Final = 9
INTEGERS: Final = ("int64_param", "uint64_param")
BOOL: Final = ("bool_param",)
KINDS: Final = {
    "sequence_id": (*INTEGERS, "string_param"),
    "sequence_start": BOOL,
    "sequence_end": BOOL,
    "priority": INTEGERS,
    "timeout": INTEGERS,
    "step": INTEGERS,
    "incarnation": INTEGERS,
    "restart": BOOL,
    "triton_enable_empty_final_response": BOOL,
}
TRITON: Final = "triton_"  # no parameter of the user's own begins so
MICROSECOND_NS: Final = 1000
STEP_MAX: Final = (1 << 63) - 1  # a parameter may be a uint64


@dataclass(slots=True)
class Parameters:
    """The parameters of a request that have a meaning here.

    `sequence` is None for a request of whole sequences, of which nothing is kept. `timeout_us` and
    `incarnation` are 0 where the request has none.
    """

    sequence: int | str | None = None
    is_start: bool = False
    is_end: bool = False
    may_restart: bool = True  # a START of a live sequence ends that one
    timeout_us: int = 0
    step: int | None = None
    incarnation: int = 0

    def deadline_ns(self, arrival_ns: int) -> int:
        """The time by which the compute must start; 0 without a timeout."""
        return arrival_ns + self.timeout_us * MICROSECOND_NS if self.timeout_us else 0


@dataclass(slots=True)
class InferRequest:
    """What one message asks for. `model` is the newest version where the message names none (0).

    Its fields do not change, except that whoever has read the `inputs` empties them.
    """

    model: Model
    version: int
    id: str
    parameters: Parameters
    inputs: Inputs
    outputs: tuple[str, ...]  # in the order of the response; none: every output of the model


def find_model(engine: Engine, name: str, version: str) -> Model:
    """Raises Malformed, and what Engine.model() raises."""
    return engine.model(name, read_version(version))


def read_version(text: str) -> int:
    """Reads a model's version; returns 0 for an empty one. Raises Malformed."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX and int(text)):
        raise Malformed("the model's version must be a number from 1 on, or empty for the newest")
    return int(text)


def read_request(model: Model, message: pb.ModelInferRequest) -> InferRequest:
    """Reads what the message asks of `model`, which is the one that it names.

    Raises Malformed, BadSessionId, BadStep, BadTensor, NotImplementedYet.
    """
    return InferRequest(
        model,
        read_version(message.model_version),
        message.id,
        read_parameters(message.parameters),
        input_tensors(message),
        output_names(message),
    )


def reply_bytes(model: Model, message: pb.ModelInferRequest) -> int:
    """The most bytes of outputs that a reply can have: a row for each of the input, and for each
    sequence the last rows and the states that the message asks for."""
    signature = signature_of(model)
    rows = sequences = 1
    for tensor in message.inputs:
        if (wanted := signature.inputs.get(tensor.name)) is not None:
            count = max(0, len(tensor.shape) - len(wanted.shape))
            # The product of a message full of axes would take minutes; more than two are refused.
            axes = [max(0, size) for size in tensor.shape[: min(count, 2)]]
            rows = max(rows, math.prod(axes))
            sequences = max(sequences, axes[0] if len(axes) > 1 else 1)
    once_bytes = sum(
        output.tensor.bytes
        for asked in message.outputs
        if (output := signature.outputs.get(asked.name)) and output.part is not Part.ROWS
    )
    return rows * model.outputs.bytes + sequences * once_bytes


def read_parameters(sent: Mapping[str, pb.InferParameter]) -> Parameters:
    """Reads the parameters, and ignores those of a user's own. Raises Malformed, BadSessionId,
    BadStep."""
    values = _values(sent)
    parameters = Parameters(
        sequence=_sequence(values.get("sequence_id", 0)),
        is_start=values.get("sequence_start", False),
        is_end=values.get("sequence_end", False),
        may_restart=values.get("restart", True),
        timeout_us=values.get("timeout", 0),
        step=values.get("step"),
        incarnation=values.get("incarnation", 0),
    )
    _check(parameters)
    return parameters


def _values(sent: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values = {}
    for name in sent:
        kinds = KINDS.get(name)
        if kinds is None:
            if name.startswith(TRITON):
                raise Malformed(f"parameter '{name[:SHOWN_MAX]}' is unknown")
            continue
        parameter = sent[name]
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise Malformed(
                f"invalid value type for '{name}' parameter, expected {' or '.join(kinds)}",
                field=name,
            )
        values[name] = getattr(parameter, kind)
    return values


def _sequence(value: int | str) -> int | str | None:
    """Triton's ids are unsigned: a negative int64 is the uint64 of its bits."""
    if isinstance(value, int):
        return value % (1 << 64) or None
    if len(value) > ID_LENGTH_MAX:
        raise BadSessionId(
            f"sequence_id has {len(value)} characters, at most {ID_LENGTH_MAX}", field="sequence_id"
        )
    return value or None


def _check(parameters: Parameters) -> None:
    """Checks that the parameters make sense together. Raises Malformed, BadStep."""
    step = parameters.step
    if parameters.timeout_us < 0 or parameters.incarnation < 0:
        name = "timeout" if parameters.timeout_us < 0 else "incarnation"
        raise Malformed(f"parameter '{name}' is negative", field=name)
    if parameters.sequence is None:
        if parameters.is_start or parameters.is_end or step is not None:
            raise Malformed(
                "sequence_start, sequence_end and step must specify a non-zero or non-empty "
                "correlation ID (sequence_id)",
                field="sequence_id",
            )
        return
    if step is not None and not 1 <= step <= STEP_MAX:
        raise BadStep(f"step is {step}, must be in [1, {STEP_MAX}], or unset", field="step")
    if parameters.is_start:
        if step not in (None, 1):
            raise BadStep(f"step is {step}, and a sequence starts with step 1", field="step")
        if parameters.incarnation:
            raise Malformed("a START begins an incarnation: send none", field="incarnation")
