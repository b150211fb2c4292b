"""Owns what an id may be, and the key that the session table has for it."""

from __future__ import annotations

import re

from lstmserve.errors import BadSessionId

ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def session_key(tenant: str, session_id: str) -> str:
    """The table's key; an id has no slash, so tenants cannot meet. Raises BadSessionId."""
    if not ID.fullmatch(session_id):
        raise BadSessionId(
            "session_id must be 1 to 128 of A-Z a-z 0-9 . _ ~ : -", field="session_id"
        )
    return f"{tenant}/{session_id}"


def tenant_of(key: str) -> str:
    """The tenant that a key was made of."""
    return key.partition("/")[0]


def session_id(key: str) -> str:
    """The id that a key was made of."""
    return key.partition("/")[2]
