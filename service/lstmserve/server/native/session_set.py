"""The sessions that a StepMany message names, looked up once for all messages of a stream.

A stream names its sessions in its first message, and later messages step the same ones. So this
module keeps their rows and compares them with the session table's columns, without Python per
session. Only where that comparison fails it looks each session up. It must not know inputs or
replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Index
from lstmserve.engine.errors import (
    DuplicateSession,
    EmptyInput,
    Fenced,
    ServeError,
    StoreUnavailable,
    TooLong,
)
from lstmserve.engine.table import OPEN
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.native.steps import check_number

FETCHES_MAX = 3


class SessionSet:
    """Sessions of one tenant by id, in the order of the message that named them.

    A session's place is its index in `ids`. `numbers` and `incarnations` of a message are columns
    [N] over the places, None where the message has none; 0 is none of one session.

    Found rows are kept while the table has the same lives in them: a life has one incarnation, and
    its time to live only moves on. Raises TooLong for more than the engine may have pending: a
    message of 4 MiB may have two million ids.
    """

    def __init__(self, engine: Engine, tenant: Tenant, ids: Sequence[str] = ()) -> None:
        if len(ids) > engine.config.pending_steps_max:
            raise TooLong(
                f"{len(ids)} sessions, at most {engine.config.pending_steps_max}: "
                "send them as several messages",
                field="session_ids",
                metadata={"sessions_max": str(engine.config.pending_steps_max)},
            )
        self.ids = list(ids)
        self.places = np.arange(len(ids))  # [N]
        self.ones = np.ones(len(ids), np.int32)
        self._engine = engine
        self._table = engine.table
        self._tenant = tenant
        self._is_checked = False
        self._names: frozenset[str] | None = None  # the ids, once a set of them was needed
        self._rows = np.zeros(0, np.int64)
        self._lives = np.full(1, -1)  # of the sessions in those rows; at first it equals no column
        self._given: list[int] = []  # the incarnations of the newest message
        self._incarnations = np.zeros(0, np.int64)  # the same as an array
        self._true: Index | None = None  # an array of incarnations that the sessions have
        self._expiry_ns = 0  # no session expires before

    def __len__(self) -> int:
        return len(self.ids)

    def model(self) -> Model | None:
        """The model of the first session, if that is here; a good message has sessions of one."""
        row = self._table.find(self._tenant.prefix + self.ids[0]) if self.ids else None
        return None if row is None else self._engine.model_of(row)

    def check(self) -> None:
        """Checks the ids. Raises EmptyInput, DuplicateSession."""
        if not self.ids:
            raise EmptyInput("there are no sessions", field="session_ids")
        if not self._is_checked and len(set(self.ids)) != len(self.ids):
            raise DuplicateSession("a session is twice in the message", field="session_ids")
        self._is_checked = True

    def overlaps(self, other: SessionSet) -> bool:
        """Whether a session may be in both; an empty set stands for sessions that are unknown."""
        if self is other or not (self.ids and other.ids):
            return True
        if self._names is None:
            self._names = frozenset(self.ids)
        return not self._names.isdisjoint(other.ids)

    def incarnations(self, given: list[int]) -> Index:
        """The incarnations as an array [N], which is the same object while messages give the same
        ones."""
        if given != self._given:
            self._given = given
            self._incarnations = np.array(given, np.int64)
        return self._incarnations

    def must_fetch(self, numbers: Index | None, incarnations: Index | None) -> bool:
        """Whether a store must be asked before all sessions can be stepped or refused."""
        lifecycle, table = self._engine.lifecycle, self._table
        if not lifecycle.has_store:
            return False
        rows = self._find_all(numbers, incarnations)
        if rows is None or lifecycle.leaving:
            return True
        if numbers is None:
            return bool(table.suspects and table.is_suspect(rows).any())
        return not (numbers == table.accepted(rows) + 1).all()

    async def fetch(
        self, numbers: Index | None, incarnations: Index | None, errors: dict[int, ServeError]
    ) -> None:
        """Brings the sessions here from the store, all at once.

        Sessions that cannot come get their error, by place, and so do malformed ids. Where the pool
        is full, a session that comes may push another one out, which is then brought again.
        """
        keys: dict[int, str] = {}  # of the sessions that came

        async def bring(place: int) -> None:
            number, incarnation = _item(numbers, place), _item(incarnations, place)
            try:
                key = self._tenant.key(self.ids[place])
                if await self._engine.lifecycle.bring(key, incarnation, number):
                    keys[place] = key
            except ServeError as error:
                errors[place] = error.with_traceback(None)  # its frames hold the message

        await asyncio.gather(*map(bring, range(len(self.ids))))
        for _ in range(FETCHES_MAX):
            await asyncio.gather(*map(bring, self._absent(keys)))
        for place in self._absent(keys):  # too many for the pool
            errors[place] = Fenced("the session has just left: repeat its step", retry_s=0.0)

    def _absent(self, keys: dict[int, str]) -> list[int]:
        return [place for place, key in keys.items() if self._table.find(key) is None]

    def find(
        self, numbers: Index | None, incarnations: Index | None, errors: dict[int, ServeError]
    ) -> tuple[Index, Index]:
        """Finds places and table rows [n] of the sessions that may step, and the others' errors.

        It leaves out a session that has an error already.
        """
        rows = None if errors else self._find_all(numbers, incarnations)
        if rows is not None:
            return self.places, rows
        places, found, now = [], [], self._engine.clock()
        for place, session_id in enumerate(self.ids):
            if place in errors:
                continue
            incarnation = _item(incarnations, place)
            try:
                if numbers is not None:
                    check_number(_item(numbers, place), incarnation)
                key = self._tenant.key(session_id)
                row = self._engine.sessions.find(key, incarnation, now)
                self._engine.admit(row)
                found.append(row)
                places.append(place)
            except ServeError as error:
                errors[place] = error.with_traceback(None)
        return np.array(places, np.int64), np.array(found, np.int64)

    def _find_all(self, numbers: Index | None, incarnations: Index | None) -> Index | None:
        """Rows [N] if every session surely may step, else None: find() then asks one by one."""
        if not self._are_here() or not self._are_alive():
            return None
        if numbers is not None and (incarnations is None or numbers.min() < 1):
            return None
        if not self._are_meant(numbers, incarnations):
            return None
        try:
            self._engine.admit(self._rows)
        except StoreUnavailable:
            return None  # it makes some of them wait, and the others go on
        return self._rows

    def _are_here(self) -> bool:
        """Looks the rows up, unless they hold the same lives as before."""
        table = self._table
        if np.array_equal(table.life[self._rows], self._lives):
            return True
        found = [table.find(self._tenant.prefix + each) for each in self.ids]
        if None in found:
            return False
        self._rows = np.array(found, np.int64)
        self._lives = table.life[self._rows]
        self._true, self._expiry_ns = None, 0
        return True

    def _are_alive(self) -> bool:
        table, now_ns = self._table, self._engine.monotonic_ns()
        if table.leaving and (table.phase[self._rows] != OPEN).any():
            return False
        if now_ns >= self._expiry_ns:
            self._expiry_ns = int(table.expiry_ns[self._rows].min())
        return now_ns < self._expiry_ns

    def _are_meant(self, numbers: Index | None, incarnations: Index | None) -> bool:
        """Whether the sessions have these incarnations; 0 is any, but not with a number."""
        if incarnations is None or incarnations is self._true:
            return True
        is_true = incarnations == self._table.incarnation[self._rows]
        if is_true.all():
            self._true = incarnations
        elif numbers is None:
            is_true |= incarnations == 0
        return bool(is_true.all())


def _item(column: Index | None, place: int) -> int:
    return 0 if column is None else column.item(place)
