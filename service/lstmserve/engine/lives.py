"""Owns how sessions begin, come here and end, where a store has a say. Every wait on it is here.

Without a store all of it is at once. With one, calls about one key are in order, and what is told
of a session is what the store has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from lstmserve.engine.beginning import Beginning
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import NOT_SERVED, Draining, Fenced, StoreFull
from lstmserve.engine.persist import Residence
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.opening import OpenRequest, SessionOpener
from lstmserve.engine.table import SUSPECT, SessionTable
from lstmserve.store import Record


class Lives:
    """With a store every call may also raise StoreUnavailable, StoreTimeout, StateCorrupt,

    Fenced and one of NOT_SERVED. `on_ready()`: as Beginning's.
    """

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        opener: SessionOpener,
        residence: Residence | None,
        clock: Callable[[], Now],
        on_ready: Callable[[], None],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._opener = opener
        self._residence = residence
        self._clock = clock
        self._beginning: Beginning | None = None
        if residence is not None:
            self._beginning = Beginning(table, sessions, opener, residence, clock, on_ready)
        self.leaving: asyncio.Event | None = None  # since leave(); set: the store has everything
        self._closing: set[asyncio.Task[int]] = set()

    @property
    def has_store(self) -> bool:
        """Whether a session may be elsewhere than here."""
        return self._residence is not None

    def leave(self) -> asyncio.Event:
        """From now on no session comes here, and none is told to go before the event is set.

        Behind the store the next server would take it without its last steps; and a router that
        hears of one session's going may send all the others there too.
        """
        self.leaving = asyncio.Event()
        return self.leaving

    async def confirm(self, key: str) -> None:
        """Makes what is known of the key here what the store has."""
        if self._residence is not None:
            await self._residence.confirm(key)

    async def look(self, key: str) -> Record | None:
        """The same for a call that only looks; what the store has, where the session's model is
        not served here and so the session cannot come."""
        try:
            await self.confirm(key)
        except NOT_SERVED:
            assert self._residence is not None
            return await self._residence.look(key)
        return None

    def is_certain(self, key: str, incarnation: int, number: int) -> bool:
        """Whether the session is here for such a step, and bring() would not wait."""
        row = self._table.find(key)
        if row is None or self.leaving is not None:
            return False
        return self._residence is None or not self._may_mislead(row, incarnation, number)

    async def bring(self, key: str, incarnation: int, number: int) -> bool:
        """Brings a session here that a store has, for a step; whether it is here.

        Where an old copy would mislead the client, the store is asked though the session is here:
        what asks something of a client is said with certainty or not at all. Raises Draining after
        leave().
        """
        if self._residence is not None:
            if self.leaving is not None:
                await self.leaving.wait()
                raise Draining("this server is shutting down; go on at another one", retry_s=0.0)
            is_certain = self._table.find(key) is None and await self._residence.fetch(key)
            row = self._table.find(key)
            if row is not None and not is_certain and self._may_mislead(row, incarnation, number):
                await self._residence.confirm(key)
        return self._table.find(key) is not None

    def _may_mislead(self, row: int, incarnation: int, number: int) -> bool:
        """Whether a step is refused, or answered from the record, for what a store may not have."""
        table = self._table
        is_other = incarnation not in (0, int(table.incarnation[row]))
        is_gap = number > int(table.accepted(row)) + 1
        is_refused = number == 0 and int(table.trust[row]) == SUSPECT
        is_repeat = int(table.durable_step[row]) < number <= int(table.step[row])
        is_uncertain = is_other or is_gap or is_repeat or is_refused
        return is_uncertain or self._sessions.is_expired(row, self._clock())

    async def open(self, request: OpenRequest) -> tuple[int, bool]:
        """The session's row, and whether it is new. Raises what SessionOpener.open() raises."""
        if self._beginning is None:
            return self._opener.open(request, self._clock())
        return await self._beginning.open(request)

    async def close(self, key: str, incarnation: int) -> int:
        """Ends a session after its pending steps; its last step. Raises as LiveSessions.close().

        It goes on though its caller goes away: half a close would leave it in the store.
        """
        residence = self._residence
        if residence is None:
            return await self._end(key, incarnation)
        closing = asyncio.create_task(self._close(residence, key, incarnation), name="close")
        self._closing.add(closing)
        closing.add_done_callback(self._closed)
        return await asyncio.shield(closing)

    def _closed(self, closing: asyncio.Task[int]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            closing.exception()  # for its caller, if he is still there

    async def finish(self, timeout_s: float) -> None:
        """What was begun of closing sessions ends, if it does so in time."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=timeout_s)

    async def _close(self, residence: Residence, key: str, incarnation: int) -> int:
        async with residence.alone(key):
            stored = await residence.refresh(key, is_ending=True)
            if self._table.find(key) is not None:
                await self._save(residence, key, incarnation)
                if self._table.find(key) is None:
                    raise Fenced("another server has this session now: close it again")
                stored = residence.version(key)
            elif stored is not None and not residence.is_expired(key, stored):
                residence.bury(key, incarnation, stored)  # of a model that is not served any more
            step = await self._end(key, incarnation)
            if stored is not None:
                await residence.filing.forget(key, stored)
            return step

    async def _save(self, residence: Residence, key: str, incarnation: int) -> None:
        """Lets it come to rest, and brings the store up to date. If that fails it goes on."""
        is_quiet = asyncio.Event()
        self._sessions.quieten(key, incarnation, self._clock(), is_quiet.set)
        try:
            await is_quiet.wait()
            with contextlib.suppress(StoreFull):  # it is to be taken out, which makes room
                await residence.filing.save(key)
        except BaseException:
            self._sessions.reopen(key)
            raise

    async def _end(self, key: str, incarnation: int) -> int:
        """Here; the last step."""
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_closed(step: int) -> None:
            if not closed.done():
                closed.set_result(step)

        self._sessions.close(key, incarnation, self._clock(), on_closed)
        return await closed
