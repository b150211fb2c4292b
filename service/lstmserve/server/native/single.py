"""Owns what a StepRequest on its way to its reply is to others, and how a row's reply looks."""

from __future__ import annotations

from typing import Protocol

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

    def submit(self) -> None:
        """Hands it to the engine by itself; what is wrong with it is its answer."""

    def placed(self, block: Block, index: int) -> None:
        """It is row `index` of a block that the engine has accepted."""

    def answer(self, number: int, y: bytes, start_ns: int, compute_ns: int) -> None:
        """It was applied; y is one row."""

    def fail(self, error: ServeError, model: Model) -> None:
        """It was accepted, as a step of that model, and not applied."""


def row_response(
    single: Single, number: int, y: bytes, start_ns: int, compute_ns: int
) -> pb.StepResponse:
    """The reply of an applied step of one row, which was computed from `start_ns` on."""
    response = pb.StepResponse()
    response.step, response.length, response.y = number, 1, y
    response.queue_ns, response.compute_ns = start_ns - single.arrival_ns, compute_ns
    if tag := single.tag:
        response.tag = tag
    return response
