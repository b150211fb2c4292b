"""Owns one ModelInferRequest on its way: from its bytes to its answer. Decides nothing.

A carrier, which knows whether it is a call or a stream's message, takes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lstmserve.engine import Model
from lstmserve.engine.errors import ServeError
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.kserve.asking import answer_bytes, asked_model, read_ask, told_of
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.prediction import WholeSequences
from lstmserve.server.kserve.stepping import SequenceStep
from lstmserve.server.pending_bytes import SHORT_BYTES, Lease
from lstmserve.server.status import code, reason


class Carrier(Protocol):
    """Where an answer goes."""

    @property
    def method(self) -> str:
        """The label of its counts."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for an answer any more."""

    def answer(self, response: pb.ModelInferResponse) -> None:
        """The request's; this or refuse() is called once at most."""

    def refuse(self, error: Exception, request: pb.ModelInferRequest | None) -> None:
        """The request failed; None: it could not be read."""


class Inference:
    """A message of the inbox."""

    def __init__(self, dialect: Dialect, carrier: Carrier, content: bytes, tenant: Tenant) -> None:
        self._dialect = dialect
        self._carrier = carrier
        self._content = content
        self._tenant = tenant
        self.lease: Lease  # of its bytes, once it was admitted
        self._now = dialect.engine.clock()
        self._request: pb.ModelInferRequest | None = None
        self._model: Model | None = None
        self._job: SequenceStep | WholeSequences | None = None

    def size(self) -> int:
        """The most bytes that it takes with its answer; a long message is read for that."""
        sizes, length = self._dialect.sizes, len(self._content)
        if (bound := sizes.bound(length)) <= SHORT_BYTES:
            return bound
        try:
            self._parse()
            assert self._request is not None
            model = asked_model(self._dialect.engine, self._request)
        except ServeError:
            return length  # it is refused when its turn comes
        return length + answer_bytes(model, self._request)

    def _parse(self) -> pb.ModelInferRequest:
        """Once; the message is not kept."""
        if self._request is None:
            content, self._content = self._content, b""
            self._request = parse(pb.ModelInferRequest, content)
        return self._request

    def read(self) -> SequenceStep | None:
        """Begins it; returns its step, where the engine may have that now. Does not raise."""
        if self.is_over:
            return None
        try:
            request = self._parse()
            self._model = asked_model(self._dialect.engine, request)
            ask = read_ask(self._model, request)
            self._request = told_of(request)
            job = WholeSequences if ask.parameters.sequence is None else SequenceStep
            self._job = job(self._dialect, self, self._tenant, ask, self._now)
            return self._job.begin()
        except Exception as error:
            self.refuse(error)
            return None

    @property
    def method(self) -> str:
        """As Answering.method."""
        return self._carrier.method

    @property
    def is_over(self) -> bool:
        """As Answering.is_over."""
        return self._carrier.is_over

    def answer(self, response: pb.ModelInferResponse) -> None:
        """It was done."""
        self._let_go()
        if not self.is_over:
            self._carrier.answer(response)

    def refuse(self, error: Exception) -> None:
        """It was not."""
        request, self._request = self._request, None
        self._let_go()
        if not self.is_over:
            counters = self._dialect.counters(self._model)
            counters.failed(self.method, code(error), reason(error))
            if isinstance(error, ServeError):  # its frames hold the message
                error = error.with_traceback(None)
            self._carrier.refuse(error, request)

    def _let_go(self) -> None:
        """Whoever still holds this holds no message: the job does, and so its end would wait for
        the garbage collector."""
        self._job = self._request = None
        self._content = b""

    def cancel(self) -> None:
        """Nobody waits any more."""
        job = self._job
        self._let_go()
        if job is not None:
            job.cancel()


def read_all(dialect: Dialect, messages: Sequence[Inference]) -> None:
    """What has arrived together: steps of sequences go to the engine together."""
    steps = [step for message in messages if (step := message.read()) is not None]
    if steps:
        dialect.steps.accept(steps)
