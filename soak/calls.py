"""Calls by bare gRPC, with a ledger of how they ended. It shares no code with the client library.

The proofs compare the server's counters, and the client library, with these ledgers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import Serving

PATH = "/lstmserve.v1.LstmService/"
TIMEOUT_S = 30.0


class Refused(Exception):
    """A call ended with an error; `reason` is empty if the error is not one of our server's."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.text = error.code(), error.details() or ""
        super().__init__(f"{self.code.name}: {self.text}")
        self.trailers = tuple(error.trailing_metadata() or ())
        found: Mapping[str, Any] = dict(self.trailers)
        self.pushback_ms: str | None = found.get("grpc-retry-pushback-ms")
        status = Status.FromString(found.get("grpc-status-details-bin", b""))
        self.reason, self.metadata, self.retry_s = details(status)


@dataclass
class Ledger:
    """Counts the answers of one server process: its own counters must say the same."""

    applied: int = 0
    replayed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut: int = 0  # calls without an answer: the server may have counted them or not

    def differences(self, serving: Serving) -> dict[str, tuple[float, float]]:
        """Counter -> (the server's count, ours), where the two differ."""
        pairs = {
            "steps": (serving.metric("lstm_steps_total", code="OK"), self.applied),
            "replayed": (serving.metric("lstm_steps_replayed_total"), self.replayed),
            "errors": (serving.metric("lstm_step_errors_total"), self.errors.total()),
            "live": (
                serving.metric("lstm_sessions_opened_total")
                - serving.metric("lstm_sessions_closed_total"),
                serving.metric("lstm_sessions"),
            ),
        }
        for reason, count in self.errors.items():
            pairs[reason] = (serving.metric("lstm_step_errors_total", reason=reason), count)
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class Calls:
    """One channel to each server process, made at the first call, with the caller's token."""

    def __init__(self, token: str = "") -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channels: dict[Serving, grpc.aio.Channel] = {}
        self.ledgers: dict[Serving, Ledger] = {}
        self.refusals: Counter[str] = Counter()  # gRPC codes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self,
        serving: Serving,
        method: str,
        request: Message,
        kind: type[Any],
        timeout_s: float | None = TIMEOUT_S,
        path: str = PATH,
    ) -> Any:
        """Makes one unary call, and never repeats it. Raises Refused."""
        stub: Any = self._channel(serving).unary_unary(
            path + method, type(request).SerializeToString, kind.FromString
        )
        try:
            return await stub(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self.refusals[error.code().name] += 1
            raise Refused(error) from None

    async def step(
        self, serving: Serving, request: wire.StepRequest, timeout_s: float | None = TIMEOUT_S
    ) -> wire.StepResponse:
        """Makes one Step, and enters it in the server's ledger. Raises Refused."""
        ledger = self.ledgers.setdefault(serving, Ledger())
        try:
            reply = await self.call(serving, "Step", request, wire.StepResponse, timeout_s)
        except Refused as error:
            if error.reason:
                ledger.errors[error.reason] += 1
            else:
                ledger.cut += 1
            raise
        ledger.applied += 1
        ledger.replayed += reply.replayed
        assert isinstance(reply, wire.StepResponse)
        return reply

    async def stream(
        self,
        serving: Serving,
        method: str,
        requests: Sequence[Message],
        kind: type[Any],
        timeout_s: float = TIMEOUT_S,
        path: str = PATH,
    ) -> list[Any]:
        """Sends the messages of a stream, each after the reply to the last one. Raises Refused.

        Returns the replies.
        """
        call = self._channel(serving).stream_stream(
            path + method, type(requests[0]).SerializeToString, kind.FromString
        )(timeout=timeout_s, metadata=self._metadata)
        replies = []
        try:
            for request in requests:
                await call.write(request)
                replies.append(await call.read())
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            self.refusals[error.code().name] += 1
            raise Refused(error) from None
        finally:
            call.cancel()
        return replies

    def open_stream(self, serving: Serving, path: str) -> Any:
        """Opens a stream of bytes in both directions, without a deadline."""
        return self._channel(serving).stream_stream(path)(metadata=self._metadata)

    def _channel(self, serving: Serving) -> grpc.aio.Channel:
        if serving not in self._channels:
            options = (("grpc.use_local_subchannel_pool", 1),)
            self._channels[serving] = grpc.aio.insecure_channel(serving.target, options)
        return self._channels[serving]


def details(status: Status) -> tuple[str, dict[str, str], float | None]:
    """The reason of an error, what it says beside it, and after how long to repeat the call."""
    info, retry, retry_s = ErrorInfo(), RetryInfo(), None
    for detail in status.details:
        if not detail.Unpack(info) and detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return info.reason, dict(info.metadata), retry_s
