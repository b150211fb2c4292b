"""Cuts connections that make the server answer a lot and have made no authenticated call.

gRPC counts a peer's pings and means to close its connection at the third that comes too soon, but
only once it has nothing to write. A peer that pings at full speed always gives it another answer to
write, so gRPC never closes. It shows no connection to Python either, so this module looks at the
sockets of the process. What a connection has sent us says little, because a first call may be a
large upload. What we sent it says enough: before the first call there is almost nothing to send.

It looks once a second, in a thread of its own, and only after a second in which the process was
busy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import structlog

from lstmserve.server.access.auth import Authenticator, IncomingCall
from lstmserve.server.access.tenants import Tenant

LOOK_S = 1.0
BUSY_S = 0.1  # of CPU time in LOOK_S: floods take more
SENT_BYTES_MAX = 32 << 10  # to one connection in LOOK_S, twice in a row: 1,900 answers to pings
SENT_OFFSET, INFO_BYTES = 120, 128  # tcpi_bytes_acked in Linux's struct tcp_info

Peer = tuple[str, int]

log = structlog.get_logger()


class FloodGuard:
    """Guards one port. The event loop calls its authenticator; all else runs in the thread."""

    def __init__(self, authenticator: Authenticator) -> None:
        self.authenticator = _PeerRecorder(authenticator)
        self._sent: dict[Peer, int] = {}  # to each connection at the last look
        self._loud: set[Peer] = set()  # over the limit at the last look
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        """Begins to watch the port's connections, where the kernel reports on them."""
        if hasattr(socket, "TCP_INFO") and os.path.isdir("/proc/self/fd"):
            self._thread = threading.Thread(
                target=self._run, args=(port,), name="flood-guard", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Waits for the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, port: int) -> None:
        used_s = time.process_time()
        while not self._stopped.wait(LOOK_S):
            before_s, used_s = used_s, time.process_time()
            if used_s - before_s < BUSY_S:
                self._sent.clear()  # or a later look would take many seconds' bytes for one's
                self._loud.clear()
            elif count := self.look(port):
                log.warning("connections cut: a flood without a valid call", connections=count)

    def look(self, port: int) -> int:
        """Cuts connections that are over the limit for the second time. Returns how many."""
        # From before the look, so that a connection which opens meanwhile is kept.
        known = set(self.authenticator.peers)
        before, self._sent = self._sent, {}
        loud, self._loud = self._loud, set()
        count = 0
        for peer, connection in _connections(port):
            with connection:
                sent = self._sent[peer] = _sent_bytes(connection)
                if sent - before.get(peer, sent) <= SENT_BYTES_MAX:
                    continue
                self._loud.add(peer)
                if peer in loud and peer[1] not in self.authenticator.peers:
                    with contextlib.suppress(OSError):  # it has just ended by itself
                        connection.shutdown(socket.SHUT_RDWR)
                        count += 1
        self.authenticator.peers -= known - {peer_port for _, peer_port in self._sent}
        return count


class _PeerRecorder:
    """Records the ports of authenticated peers in `peers`, around another Authenticator.

    Two machines may use the same port: then a flood may be missed, but no wrong connection is cut.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self.peers: set[int] = set()

    def knows(self, call: IncomingCall) -> bool:
        return self._authenticator.knows(call)

    def tenant(self, call: IncomingCall) -> Tenant:
        tenant = self._authenticator.tenant(call)
        port = call.peer().rpartition(":")[2]
        if port.isdigit():
            self.peers.add(int(port))
        return tenant


def _connections(port: int) -> Iterator[tuple[Peer, socket.socket]]:
    """Each connection to our port: the peer, and a copy of the descriptor that the caller closes.

    gRPC may close its descriptor meanwhile, and another file may get that number: the copy stays.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or the peer has gone
            if (copy := _socket(int(name))) is None:
                continue
            try:
                if copy.getsockname()[1] != port:
                    copy.close()
                    continue
                host, peer_port = copy.getpeername()[:2]
            except OSError:
                copy.close()  # the listening socket has no peer
                continue
            yield (host, peer_port), copy


def _socket(descriptor: int) -> socket.socket | None:
    """A copy of a TCP socket, None for anything else. Raises OSError if it is closed."""
    copy = os.dup(descriptor)
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
        return found
    found.close()
    return None


def _sent_bytes(connection: socket.socket) -> int:
    """Bytes that the peer has acknowledged since the connection began."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
    sent: int = struct.unpack_from("=Q", info, SENT_OFFSET)[0]
    return sent
