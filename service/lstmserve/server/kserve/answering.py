"""Owns what a job is given to answer with. No code."""

from __future__ import annotations

from typing import Protocol

from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.pending_bytes import Lease


class Answering(Protocol):
    """One request; answer() or refuse() is called once."""

    @property
    def method(self) -> str:
        """The label of its counts."""

    @property
    def lease(self) -> Lease:
        """Of its bytes, until its answer is sent."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for an answer any more."""

    def answer(self, response: pb.ModelInferResponse) -> None:
        """It was done."""

    def refuse(self, error: Exception) -> None:
        """It was not."""
