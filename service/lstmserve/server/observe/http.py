"""Owns the HTTP side, in a thread of its own, so that probes answer when the loop hangs.

Never touches the engine: what it shows comes through the callables it is given.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref import simple_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from lstmserve.server.observe.page import make_page

if TYPE_CHECKING:  # a name for type checkers only, says its documentation
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_S_MAX = 10
REQUESTS_MAX = 128  # at once, each in a thread of its own
BACKLOG = 1024
POLL_S = 0.1

log = structlog.get_logger()


class _Request(simple_server.WSGIRequestHandler):
    timeout = REQUEST_S_MAX

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base's name
        """A scrape is no event."""


class _Listener(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """A thread for each request; one more than REQUESTS_MAX ends the oldest of them.

    A probe takes milliseconds, so the oldest is a peer that says nothing: it must not keep out the
    probe whose answer decides whether the server is killed.
    """

    daemon_threads = True
    request_queue_size = BACKLOG

    def process_request(self, request: Any, client_address: Any) -> None:
        """As the base's; on the accepting thread."""
        with self._guard:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > REQUESTS_MAX else None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its thread has just ended it
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """As the base's; on the request's own thread."""
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that is slow or gone is no event either; the base would print a traceback."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("http request failed", exc_info=error)

    def server_bind(self) -> None:
        """Without the base's look-up of our own name, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self._open: dict[socket.socket, None] = {}  # those of requests under way, oldest first
        self._guard = threading.Lock()
        self.setup_environ()


class _Listener6(_Listener):
    address_family = socket.AF_INET6


class HttpServer:
    """Bound when constructed; raises OSError when the address is taken or not ours.

    `remarks` are lines that /readyz shows below its answer.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        is_live: Callable[[], bool],
        is_ready: Callable[[], bool],
        remarks: Sequence[str] = (),
    ) -> None:
        kind = _Listener6 if ":" in host else _Listener
        self._listener = kind((host, port), _Request)
        self._listener.set_app(_router(registry, is_live, is_ready, remarks))
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(POLL_S,), name="http", daemon=True
        )
        self.port: int = self._listener.server_port

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answers no more; waits for the thread."""
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self._listener.server_close()


def _router(
    registry: CollectorRegistry,
    is_live: Callable[[], bool],
    is_ready: Callable[[], bool],
    remarks: Sequence[str],
) -> WSGIApplication:
    metrics = make_wsgi_app(registry)
    probes = {"/livez": is_live, "/readyz": is_ready}
    page, page_headers = make_page()

    def route(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return _text(start_response, HTTPStatus.METHOD_NOT_ALLOWED)
        if path == "/":
            start_response("200 OK", page_headers)
            return [page]
        if path == "/metrics":
            return _scrape(metrics, environ, start_response)
        if path in probes:
            passed = probes[path]()
            status = HTTPStatus.OK if passed else HTTPStatus.SERVICE_UNAVAILABLE
            return _text(start_response, status, remarks if path == "/readyz" else ())
        return _text(start_response, HTTPStatus.NOT_FOUND)

    return route


def _scrape(
    metrics: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    try:
        return metrics(environ, start_response)
    except TimeoutError:  # the loop hangs: no counts, and Prometheus shows the target down
        return _text(start_response, HTTPStatus.SERVICE_UNAVAILABLE)


def _text(
    start_response: StartResponse, status: HTTPStatus, remarks: Sequence[str] = ()
) -> Iterable[bytes]:
    body = "".join(f"{line}\n" for line in (status.phrase, *remarks)).encode(errors="replace")
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
