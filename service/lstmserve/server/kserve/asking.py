"""Owns what a ModelInferRequest asks for, once it is read. Touches no session."""

from __future__ import annotations

from dataclasses import dataclass

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import Malformed
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.parameters import Parameters, read_parameters
from lstmserve.server.kserve.reading import Inputs, wanted_outputs
from lstmserve.server.kserve.tensors import inputs

VERSION_DIGITS_MAX = 9


@dataclass(slots=True)
class Ask:
    """Read once, never changed. `model` is the newest where no version is asked for (0)."""

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


def read_version(text: str) -> int:
    """Of a model; 0 for an empty one. Raises Malformed."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX and int(text)):
        raise Malformed("the model's version must be a number from 1 on, or empty for the newest")
    return int(text)
