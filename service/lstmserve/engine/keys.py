"""Which ids a session may have, and the key of each in the session table.

A key begins with its tenant. It says nothing about whether the session exists.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from lstmserve.engine.errors import BadSessionId

ID_LENGTH_MAX = 128
ID = re.compile(rf"[A-Za-z0-9._~:-]{{1,{ID_LENGTH_MAX}}}")
SEQUENCE = re.compile(
    r"kserve/[A-Za-z0-9._-]{1,128}/(int/[1-9][0-9]{0,19}|str/[A-Za-z0-9%._~-]{1,1536})"
)


def session_key(tenant: str, session_id: str, field: str = "session_id") -> str:
    """The key of a session. An id has no slash, so tenants share no key. Raises BadSessionId."""
    if not ID.fullmatch(session_id):
        raise BadSessionId(
            f"{field} must be 1 to {ID_LENGTH_MAX} of A-Z a-z 0-9 . _ ~ : -", field=field
        )
    return f"{tenant}/{session_id}"


def sequence_key(tenant: str, model: str, sequence: int | str) -> str:
    """The key of a KServe sequence of a model. No session's key has a "!"."""
    if isinstance(sequence, int):
        return f"{tenant}!kserve/{model}/int/{sequence}"
    return f"{tenant}!kserve/{model}/str/{quote(sequence, safe='')}"


def named_key(tenant: str, name: str, field: str = "session_id") -> str:
    """The key of a name that session_id() returned, session or sequence. Raises BadSessionId."""
    return f"{tenant}!{name}" if SEQUENCE.fullmatch(name) else session_key(tenant, name, field)


def tenant_of(key: str) -> str:
    return key.partition("/")[0].partition("!")[0]


def session_id(key: str) -> str:
    """The id in a key; for a sequence its kind, model and id, with slashes."""
    return key[len(tenant_of(key)) + 1 :]
