"""Owns the streams on which sessions step together, one a group. Never sends a step twice.

A stream is opened when it is needed, and anew after it broke.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt

from lstmserve.client._sync.session import Session
from lstmserve.client._threads import Exchange, Pending, Reply, Transport, guard
from lstmserve.client.arrays import Floats
from lstmserve.client.calls import STEP, STEP_MANY
from lstmserve.client.errors import LstmServeError, StepManyFailed
from lstmserve.client.packing import Parcel, parcels
from lstmserve.wire.v1 import lstm_pb2 as wire

Sent = Reply[wire.StepManyResponse] | Pending[wire.StepResponse]


class Groups:
    """The open StepMany streams of one client, by group."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._guard = guard()
        self._streams: dict[str, Exchange[wire.StepManyRequest, wire.StepManyResponse]] = {}

    def step(
        self,
        inputs: Mapping[Session, npt.ArrayLike],
        last_only: bool,
        timeout_s: float | None,
    ) -> dict[Session, Floats]:
        """y of each session's x. Raises ValueError before anything is sent, StepManyFailed after.

        Every message is on its way before the first reply is waited for.
        """
        results: dict[Session, Floats] = {}
        errors: dict[Session, LstmServeError] = {}
        sent: list[tuple[Parcel[Session], Sent]] = []
        try:
            for parcel in parcels(inputs):
                entry = parcel, self._send(parcel, last_only, timeout_s)
                sent.append(entry)
            for parcel, reply in sent:
                try:
                    parcel.unpack(reply.result(), last_only, results, errors)
                except LstmServeError as error:
                    errors.update(dict.fromkeys(parcel.sessions, error))
        finally:
            for _, reply in sent:
                reply.cancel()
        if errors:
            raise StepManyFailed(results, errors)
        return {session: results[session] for session in inputs}

    def _send(self, parcel: Parcel[Session], last_only: bool, timeout_s: float | None) -> Sent:
        if parcel.is_alone:
            request = parcel.request_alone(last_only)
            return self._transport.begin(STEP, request, parcel.group, timeout_s)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return self._stream(parcel.group).post(parcel.request(last_only, timeout_s), timeout_s)

    def _stream(self, group: str) -> Exchange[wire.StepManyRequest, wire.StepManyResponse]:
        with self._guard:
            stream = self._streams.get(group)
            if stream is None or stream.has_ended:
                stream = self._streams[group] = self._transport.exchange(STEP_MANY, group)
            return stream

    def close(self) -> None:
        """Ends the streams."""
        for stream in list(self._streams.values()):
            stream.close()
