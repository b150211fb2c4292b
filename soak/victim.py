"""A client to be frozen or killed: two streams, each with many steps sent and one reply read.

It is a program, `python -m soak.victim TARGET ID KIND`, beside the functions with which its proof
looks at it. When its streams are open it prints the port of its connection, and waits to be stopped
or killed. A `deaf` one receives nothing more: its kernel drops what arrives, as if the network was
cut, and acknowledges none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import queue
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import numpy as np

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import environment
from soak.calls import PATH, Calls
from soak.fleet import MODEL, SPEC, Fleet

ROWS = 200
MESSAGES = 100  # more than the window; their replies are more than gRPC buffers
X = np.ones((ROWS, SPEC.input_size), np.float32)
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
RETURN_NOTHING = struct.pack("HBBI", 6, 0, 0, 0)  # one instruction of BPF: keep 0 bytes


class Peer(NamedTuple):
    """A victim whose streams are open."""

    kind: str
    name: str
    process: asyncio.subprocess.Process
    port: int


async def victim_of(fleet: Fleet, kind: str, name: str) -> Peer:
    """Starts a victim, and waits until its streams are open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "soak.victim", fleet.pods[0].serving.target, name, kind),
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return Peer(kind, name, process, int(await process.stdout.readline()))


async def damaged(fleet: Fleet, calls: Calls, peer: Peer) -> list[str]:
    """The victim's damaged sessions: inexact, with steps pending, or unable to go on."""
    bad = []
    serving = fleet.pods[0].serving

    async def ask(method: str, **fields: Any) -> Any:
        request = getattr(wire, f"{method}Request")(session_id=name, **fields)
        return await calls.call(serving, method, request, getattr(wire, f"{method}Response"))

    for name in names(peer.name):
        session = (await ask("GetSession")).session
        state = (await ask("GetState")).state
        reply = await ask("Step", x=X[:1].tobytes())
        rows = np.concatenate([*[X] * session.step, X[:1]])
        _, h, c = fleet.oracle.run(rows[:-1])
        y, _, _ = fleet.oracle.run(rows)
        is_whole = (
            session.step > 0
            and not session.pending_steps
            and [each.floats for each in state.tensors] == [h.tobytes(), c.tobytes()]
            and (reply.step, reply.y) == (session.step + 1, y[-1:].tobytes())
        )
        if not is_whole:
            bad.append(name)
        await ask("CloseSession")
    return bad


def names(name: str) -> tuple[str, str]:
    """The sessions of the victim with that ID."""
    return f"{name}-stream", f"{name}-many"


def main(target: str, name: str, kind: str) -> None:
    """Opens the streams, and waits until it is killed."""
    one, many = names(name)
    hold: queue.Queue[Any] = queue.Queue()
    with grpc.insecure_channel(target) as channel:
        opening = channel.unary_unary(PATH + "OpenSession")
        for each in (one, many):
            opening(wire.OpenSessionRequest(model=MODEL, session_id=each).SerializeToString())
        x = X.tobytes()
        single = wire.StepRequest(session_id=one, length=ROWS, x=x)
        block = wire.StepManyRequest(session_ids=[many], lengths=[ROWS], x=x)
        streams = [
            channel.stream_stream(PATH + method)(_messages(request.SerializeToString(), hold))
            for method, request in (("StepStream", single), ("StepMany", block))
        ]
        for stream in streams:
            next(stream)
        connection = _connection(int(target.rpartition(":")[2]))
        if kind == "deaf":
            _drop_what_arrives(connection)
        print(connection.getsockname()[1], flush=True)
        hold.get()


def _messages(content: bytes, hold: queue.Queue[Any]) -> Iterator[bytes]:
    for _ in range(MESSAGES):
        yield content
    hold.get()  # the stream stays open


def _connection(port: int) -> socket.socket:
    """gRPC's connection to the server."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # no socket, or one without a peer
            found = socket.socket(fileno=os.dup(fd))
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getpeername()[1] == port:
                return found
    raise AssertionError("no connection")


def _drop_what_arrives(connection: socket.socket) -> None:
    program = ctypes.create_string_buffer(RETURN_NOTHING)
    listed = struct.pack("HL", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, listed)


if __name__ == "__main__":
    main(*sys.argv[1:])
