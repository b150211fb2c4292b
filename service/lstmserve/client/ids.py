"""Owns the names of sessions: how they are made, and the group in them that a router hashes."""

from __future__ import annotations

import itertools
from typing import Final
from uuid import uuid4

from lstmserve.client import checks

GROUPS_MAX: Final = 1 << 16


def group(session_id: str) -> str:
    """What a router hashes: GROUP of an id GROUP:REST, the whole of any other id."""
    return session_id.partition(":")[0] or session_id


def is_grouped(session_id: str) -> bool:
    """Whether other sessions can share its group, and so its server and its stream."""
    return group(session_id) != session_id


def beside(session_id: str) -> str:
    """A new id that a router leads to the same server."""
    return f"{group(session_id)}:{uuid4().hex}"


class Ids:
    """Makes ids, in turn in each of `groups` groups that no other client has."""

    def __init__(self, groups: int) -> None:
        count = checks.count("groups", groups, 1, GROUPS_MAX)
        self._groups = itertools.cycle([uuid4().hex[:16] for _ in range(count)])

    def new(self) -> str:
        """An id that no session has had."""
        return f"{next(self._groups)}:{uuid4().hex}"
