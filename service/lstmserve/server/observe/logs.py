"""The log's format: one line per event on stderr, without session ids and without payloads."""

from __future__ import annotations

import hashlib
import logging
import secrets
import sys

import structlog

BOOT_KEY = secrets.token_bytes(16)


def session_hash(session_id: str) -> str:
    """Names a session in the log. Another run of the server gives it another name."""
    return hashlib.blake2b(session_id.encode(), digest_size=8, key=BOOT_KEY).hexdigest()


def configure(form: str) -> None:
    """Sends the lines of structlog and of the standard library to stderr; `form`: json or text."""
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    text = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    last = structlog.processors.JSONRenderer() if form == "json" else text
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
