"""Owns what a StepRequest on its way to its reply is to others, and how a row's reply looks."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lstmserve.engine import Model
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.block import Block
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.pending_bytes import Lease
from lstmserve.wire.v1 import lstm_pb2 as pb

NOTHING = pb.StepRequest()  # in place of a request that is not needed any more


class Single(Protocol):
    """A Step, or a message of a StepStream, that was read; `tenant` is whose it is.

    Its `lease` covers the message and a row of the reply, or all of both. Once it is submitted or
    placed its `request` is empty: its input is the engine's.
    """

    method: str
    tenant: Tenant
    request: pb.StepRequest
    tag: int
    session_id: str
    arrival_ns: int
    lease: Lease
    call_deadline_ns: int  # of the call, beside the message's timeout; 0: none

    def submit(self) -> None:
        """Hands it to the engine by itself; what is wrong with it is its answer."""

    def placed(self, block: Block, index: int) -> None:
        """It is row `index` of a block that the engine has accepted."""

    def answer(self, applied: Applied) -> None:
        """It was applied."""

    def fail(self, error: ServeError, model: Model) -> None:
        """It was accepted, as a step of that model, and not applied."""


class Applied(NamedTuple):
    """What became of a step of one row: its number and y, the last step that a store has."""

    number: int
    y: bytes
    durable_step: int
    start_ns: int  # of its computing
    compute_ns: int


def row_response(single: Single, applied: Applied) -> pb.StepResponse:
    """The reply of an applied step of one row."""
    response = pb.StepResponse()
    response.step, response.length, response.y = applied.number, 1, applied.y
    response.queue_ns = applied.start_ns - single.arrival_ns
    response.compute_ns = applied.compute_ns
    if applied.durable_step:
        response.durable_step = applied.durable_step
    if tag := single.tag:
        response.tag = tag
    return response
