"""Owns the status page: one self-contained document, and the headers that let it do no more.

Its parts lie in status/. It shows what /metrics says, and knows nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

SCRIPTS = ("numbers.js", "draw.js", "page.js")


def _read(*names: str) -> str:
    folder = resources.files(__package__) / "status"
    return "".join((folder / name).read_text("utf-8") for name in names)


def _allowed(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def make_page() -> tuple[bytes, list[tuple[str, str]]]:
    """The document and its headers. The policy: its own style and script, its own server's data."""
    style, script = _read("page.css"), '"use strict";\n' + _read(*SCRIPTS)
    page = _read("page.html").replace("/* page.css */", style).replace("/* page.js */", script)
    content = page.encode()
    policy = (
        f"default-src 'none'; style-src {_allowed(style)}; script-src {_allowed(script)}; "
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
