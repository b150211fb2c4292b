"""Owns what an id may be, and the key that the session table has for it."""

from __future__ import annotations

import re

from lstmserve.errors import BadSessionId

ID_LENGTH_MAX = 128
ID = re.compile(rf"[A-Za-z0-9._~:-]{{1,{ID_LENGTH_MAX}}}")


def session_key(tenant: str, session_id: str, field: str = "session_id") -> str:
    """The table's key; an id has no slash, so tenants cannot meet. Raises BadSessionId."""
    if not ID.fullmatch(session_id):
        raise BadSessionId(
            f"{field} must be 1 to {ID_LENGTH_MAX} of A-Z a-z 0-9 . _ ~ : -", field=field
        )
    return f"{tenant}/{session_id}"


def tenant_of(key: str) -> str:
    """The tenant that a key was made of."""
    return key.partition("/")[0]


def session_id(key: str) -> str:
    """The id that a key was made of."""
    return key.partition("/")[2]
