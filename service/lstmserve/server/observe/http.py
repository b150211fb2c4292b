"""The HTTP port: /livez, /readyz, /metrics and the status page.

It runs in a thread of its own, so that probes answer when the event loop hangs. It never touches
the engine: it shows what its callables return.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any
from wsgiref import simple_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:  # a name for type checkers only, says its documentation
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_S_MAX = 10
REQUESTS_MAX = 128  # at once, each in a thread of its own
BACKLOG = 1024
POLL_S = 0.1
SCRIPTS = ("numbers.js", "draw.js", "page.js")

log = structlog.get_logger()


class _Request(simple_server.WSGIRequestHandler):
    timeout = REQUEST_S_MAX

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base's name
        """Logs nothing."""


class _Listener(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """A thread for each request; one request above REQUESTS_MAX ends the oldest one.

    A probe takes milliseconds, so the oldest request is a silent peer. It must not keep out the
    probe whose answer decides whether the server is killed.
    """

    daemon_threads = True
    request_queue_size = BACKLOG

    def process_request(self, request: Any, client_address: Any) -> None:
        """Runs on the accepting thread."""
        with self._guard:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > REQUESTS_MAX else None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its thread has just ended it
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Runs on the request's own thread."""
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs our own errors, and ignores a slow or lost peer; the base prints a traceback."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("http request failed", exc_info=error)

    def server_bind(self) -> None:
        """Binds without the base's look-up of our own name, which can hang without DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self._open: dict[socket.socket, None] = {}  # of requests under way, oldest first
        self._guard = threading.Lock()
        self.setup_environ()


class _Listener6(_Listener):
    address_family = socket.AF_INET6


class HttpServer:
    """Serves the probes, the metrics and the status page, once it is started.

    The constructor binds the address, and raises OSError if it is taken or not ours. `remarks` are
    lines that /readyz shows below its answer.
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
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops answering, and waits for the thread."""
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
    page, page_headers = _status_page()

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


def _page_parts(*names: str) -> str:
    folder = resources.files(__package__) / "status"
    return "".join((folder / name).read_text("utf-8") for name in names)


def _csp_hash(text: str) -> str:
    """The name of an inline style or script in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _status_page() -> tuple[bytes, list[tuple[str, str]]]:
    """The document and its headers, which allow its own style and script and nothing else.

    The document's parts lie in the folder status/. It shows what /metrics says.
    """
    style, script = _page_parts("page.css"), '"use strict";\n' + _page_parts(*SCRIPTS)
    page = (
        _page_parts("page.html").replace("/* page.css */", style).replace("/* page.js */", script)
    )
    content = page.encode()
    policy = (
        f"default-src 'none'; style-src {_csp_hash(style)}; script-src {_csp_hash(script)}; "
        "connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(content))),
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    ]
