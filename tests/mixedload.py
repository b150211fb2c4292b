"""A mixed load for tests of what an operator sees: all kinds of calls, good and bad, endlessly.

Two servers share one store, so that sessions move between them. Their pools hold fewer sessions
than there are, so that sessions are evicted and loaded. It asserts nothing of the replies.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc

from lstmserve import Client
from lstmserve.v1 import lstm_pb2 as pb
from lstmserve.v1 import lstm_pb2_grpc
from modelmaking import TINY, random_input
from serving import COMMAND, WAIT_S_MAX, Serving
from storing import Valkey

SESSIONS: Final = 20
SMALL: Final = (
    "--pool-bytes",
    "22400",
    "--batch-sessions-max",
    "8",
    "--batches-in-flight-max",
    "1",
)
MANY: Final = 5


class MixedLoad:
    """Runs in a thread of its own until stopped. It ignores the errors that a server may answer."""

    def __init__(self, *servings: Serving) -> None:
        self._targets = [serving.target for serving in servings]
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Lets it run for a while. Raises the error that it met."""
        self._is_over.wait(seconds)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends it. Raises the error that it met."""
        self._is_over.set()
        self._thread.join(WAIT_S_MAX)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        first, last = self._targets[0], self._targets[-1]
        try:
            with (
                Client(first) as client,
                grpc.insecure_channel(first) as one,
                grpc.insecure_channel(last) as other,
            ):
                stubs = [lstm_pb2_grpc.LstmServiceStub(channel) for channel in (one, other)]
                turn = 0
                while not self._is_over.is_set():
                    turn += 1
                    good(client, turn)
                    _faulty(stubs[0])
                    _again(stubs[0], turn)
                    _moving(*stubs, turn)
        except BaseException as error:
            self._error = error
            self._is_over.set()


def _x(length: int) -> Any:
    return random_input(TINY, (length,), 0)


def good(client: Client, turn: int = 0) -> None:
    """Steps by every method, with different lengths; closes the sessions, one of them a fork."""
    with client.session("tiny") as session:
        session.step(_x(1)[0])
        session.fork().close()
        for _ in session.stream(_x(3 + turn % 5)):
            pass
    sessions = [client.session("tiny") for _ in range(MANY)]
    client.step_many({session: _x(1 + n * turn % 7) for n, session in enumerate(sessions)})
    for session in sessions:
        session.close()
    client.predict("tiny", [_x(2 + turn % 9), _x(4)])


def _faulty(stub: lstm_pb2_grpc.LstmServiceStub) -> None:
    """Calls that are refused: an unknown session, a NaN, an unknown model."""
    opened = stub.OpenSession(pb.OpenSessionRequest(model="tiny"))
    name = opened.session.id
    with suppress(grpc.RpcError):
        stub.Step(pb.StepRequest(session_id="nobody", length=1, x=[1, 2, 3]))
    with suppress(grpc.RpcError):
        stub.Step(pb.StepRequest(session_id=name, length=1, x=[1, math.nan, 3]))
    with suppress(grpc.RpcError):
        stub.OpenSession(pb.OpenSessionRequest(model="nothing"))
    stub.CloseSession(pb.CloseSessionRequest(session_id=name))


def _again(stub: lstm_pb2_grpc.LstmServiceStub, turn: int) -> None:
    """Repeats a numbered step often, so that it is answered from the saved reply."""
    session = stub.OpenSession(pb.OpenSessionRequest(model="tiny")).session
    request = pb.StepRequest(
        session_id=session.id, incarnation=session.incarnation, step=1, length=1, x=[1, 2, 3]
    )
    for _ in range(2 + turn % 3):
        stub.Step(request)
    stub.CloseSession(pb.CloseSessionRequest(session_id=session.id))


def _moving(
    one: lstm_pb2_grpc.LstmServiceStub, other: lstm_pb2_grpc.LstmServiceStub, turn: int
) -> None:
    """Uses sessions now here and now there, so that the former owner is fenced."""
    name = f"moving-{turn % SESSIONS}"
    with suppress(grpc.RpcError):
        one.OpenSession(
            pb.OpenSessionRequest(model="tiny", session_id=name, if_exists=pb.IF_EXISTS_RESUME)
        )
    for stub in (one, other, one):
        with suppress(grpc.RpcError):
            stub.Step(pb.StepRequest(session_id=name, length=1, x=[1, 2, 3]))


@contextmanager
def loaded_servers(models: Path, folder: Path) -> Iterator[tuple[list[Serving], MixedLoad]]:
    """Two servers of tiny:1 on a Valkey, write-through and write-behind, and the load on them."""
    modes = (("--store-mode", "through"), ("--store-mode", "behind", "--behind-s-max", "0.2"))
    servings: list[Serving] = []
    with Valkey(folder) as valkey:
        try:
            for mode in modes:
                flags = ("--models", models, "--store", valkey.url, *mode, *SMALL)
                servings.append(Serving(flags, COMMAND))
            load = MixedLoad(*servings)
            try:
                yield servings, load
            finally:
                load.stop()
        finally:
            for serving in servings:
                serving.kill()
