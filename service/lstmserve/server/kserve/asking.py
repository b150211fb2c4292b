"""Owns what a ModelInferRequest asks for, once it is read. Touches no session."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import Malformed
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.parameters import Parameters, read_parameters
from lstmserve.server.kserve.reading import Inputs, input_name, wanted_outputs
from lstmserve.server.kserve.tensors import inputs
from lstmserve.server.message_sizes import output_bytes, state_bytes

VERSION_DIGITS_MAX = 9


@dataclass(slots=True)
class Ask:
    """Read once; `model` is the newest where no version is asked for (0). Nothing of it changes,
    but that `inputs` are let go once they were read.
    """

    model: Model
    version: int
    id: str
    parameters: Parameters
    inputs: Inputs
    wanted: tuple[str, ...]  # outputs, in order

    @property
    def last_only(self) -> bool:
        """Whether y is needed for the last row alone."""
        return "y" not in self.wanted

    @property
    def with_state(self) -> bool:
        """Whether the state is an output."""
        return "hn" in self.wanted or "cn" in self.wanted


def asked_model(engine: Engine, request: pb.ModelInferRequest) -> Model:
    """Raises Malformed, and as Engine.model()."""
    return engine.model(request.model_name, read_version(request.model_version))


def read_ask(model: Model, request: pb.ModelInferRequest) -> Ask:
    """Of the model that is asked for. Raises Malformed, BadSessionId, BadStep, BadTensor,
    NotImplementedYet."""
    return Ask(
        model,
        read_version(request.model_version),
        request.id,
        read_parameters(request.parameters),
        inputs(request),
        wanted_outputs(request, model),
    )


def told_of(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """What an error says of the request, without its tensors: an error needs nothing else."""
    told = pb.ModelInferRequest(id=request.id, model_name=request.model_name)
    if "sequence_id" in request.parameters:
        told.parameters["sequence_id"].CopyFrom(request.parameters["sequence_id"])
    return told


def answer_bytes(model: Model, request: pb.ModelInferRequest) -> int:
    """The most that the answer has: a row for each of the input, and the states where asked."""
    spec = model.spec
    rows = state_rows = 0
    for tensor in request.inputs:
        if tensor.name == input_name(spec):
            shape = tensor.shape[:]
            rows = math.prod(
                max(0, size) for size in (shape if spec.num_embeddings else shape[:-1])
            )
            state_rows = shape[0] if len(shape) > 1 else 1
    if not {"hn", "cn"} & {output.name for output in request.outputs}:
        state_rows = 0
    return max(1, rows) * output_bytes(spec) + max(0, state_rows) * state_bytes(spec)


def read_version(text: str) -> int:
    """Of a model; 0 for an empty one. Raises Malformed."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX and int(text)):
        raise Malformed("the model's version must be a number from 1 on, or empty for the newest")
    return int(text)
