"""How sessions open, come here, move and close, with or without a store.

Without a store every change happens at once. With a store, calls about one key run in order, and
clients get to know of a session what the store has. Until the store answers, this server does not
know which incarnation survives an OpenSession, so the steps of both are paused: no step is
acknowledged and then rolled back. Every wait for the store at a session's beginning or end is here;
this module must not know how steps are batched or how a record looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import (
    NOT_SERVED,
    Draining,
    Fenced,
    ServeError,
    SessionExists,
    SessionLimit,
    StoreFull,
)
from lstmserve.engine.persist import Ownership
from lstmserve.engine.scheduling.scheduler import Pause, Scheduler
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.opening import IfExists, OpenRequest, SessionOpener
from lstmserve.engine.table import SUSPECT, TRUSTED, SessionTable
from lstmserve.store import Record, Version


class SessionLifecycle:
    """The lifecycle of sessions without a store: every change happens at once."""

    has_store = False  # whether a session may be elsewhere than here

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        opener: SessionOpener,
        clock: Callable[[], Now],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._opener = opener
        self._clock = clock
        self.leaving: asyncio.Event | None = None  # since leave(); set: the store has everything

    def leave(self) -> asyncio.Event:
        """Brings no session here from now on, and refuses no step for that before the event.

        In write-behind mode the next server would take a session without its last steps; and a
        router that hears that one session has gone may send all the others to that server too.
        """
        self.leaving = asyncio.Event()
        return self.leaving

    async def confirm(self, key: str) -> None:
        """Makes what this server knows of the key what the store has."""

    async def look(self, key: str) -> Record | None:
        """Confirms the key for a call that only looks at the session.

        Returns the store's record where the session cannot come: its model is not served here.
        """
        return None

    def is_certain(self, key: str, incarnation: int, number: int) -> bool:
        """Whether such a step may be accepted at once, because bring() would ask no store."""
        return True

    async def bring(self, key: str, incarnation: int, number: int) -> bool:
        """Brings a session here that the store has, for a step; returns whether it is here.

        Where an old copy could mislead the client, the store is asked though the session is here: a
        refusal that demands something of the client must be certain. Raises Draining after leave().
        """
        return self._table.find(key) is not None

    async def open(self, request: OpenRequest) -> tuple[int, bool]:
        """The session's row, and whether it is new. Raises what SessionOpener.open() raises."""
        return self._opener.open(request, self._clock())

    async def close(self, key: str, incarnation: int) -> int:
        """Ends a session after its pending steps; returns its last step.

        Raises what LiveSessions.close() raises.
        """
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_closed(step: int) -> None:
            if not closed.done():
                closed.set_result(step)

        self._sessions.close(key, incarnation, self._clock(), on_closed)
        return await closed

    async def finish(self, timeout_s: float) -> None:
        """Waits for the sessions that are being closed, at most `timeout_s`."""


class StoredLifecycle(SessionLifecycle):
    """The lifecycle of sessions that a store has.

    Every call may also raise StoreUnavailable, StoreTimeout, StateCorrupt, Fenced and one of
    NOT_SERVED. `on_ready()` is called when paused steps may run again.
    """

    has_store = True

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        opener: SessionOpener,
        clock: Callable[[], Now],
        ownership: Ownership,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(table, sessions, opener, clock)
        self._ownership = ownership
        self._on_ready = on_ready
        self._closing: set[asyncio.Task[int]] = set()

    async def confirm(self, key: str) -> None:
        await self._ownership.confirm(key)

    async def look(self, key: str) -> Record | None:
        try:
            await self.confirm(key)
        except NOT_SERVED:
            return await self._ownership.look(key)
        return None

    def is_certain(self, key: str, incarnation: int, number: int) -> bool:
        row = self._table.find(key)
        if row is None or self.leaving is not None:
            return False
        return not self._may_mislead(row, incarnation, number)

    async def bring(self, key: str, incarnation: int, number: int) -> bool:
        """Raises Draining after leave()."""
        if self.leaving is not None:
            await self.leaving.wait()
            raise Draining("this server is shutting down; go on at another one", retry_s=0.0)
        is_certain = self._table.find(key) is None and await self._ownership.fetch(key)
        row = self._table.find(key)
        if row is not None and not is_certain and self._may_mislead(row, incarnation, number):
            await self._ownership.confirm(key)
        return self._table.find(key) is not None

    def _may_mislead(self, row: int, incarnation: int, number: int) -> bool:
        """Whether the copy here would refuse the step, or answer it, by what may be out of date."""
        table = self._table
        is_other = incarnation not in (0, int(table.incarnation[row]))
        is_gap = number > int(table.accepted(row)) + 1
        is_refused = number == 0 and int(table.trust[row]) == SUSPECT
        is_repeat = int(table.durable_step[row]) < number <= int(table.step[row])
        is_uncertain = is_other or is_gap or is_repeat or is_refused
        return is_uncertain or self._sessions.is_expired(row, self._clock())

    async def open(self, request: OpenRequest) -> tuple[int, bool]:
        """Raises what SessionOpener.open() raises."""
        if request.fork_of:
            if (row := await self._find_own(request)) is not None:  # its source may be gone
                return row, True
            request = await self._with_source(request)
        async with self._ownership.lock(request.key):
            is_restart = request.if_exists is IfExists.RESTART
            before = await self._ownership.refresh(request.key, is_restart)
            if (row := self._opener.find_repeat(request, self._clock())) is not None:
                return row, True
            request = replace(request, is_renewal=self._is_renewal(request))
            try:
                return await self._open_paused(request, before)
            except SessionExists:
                if self._table.find(request.key) is not None:
                    raise
                # The store has a session that this server had not seen: perhaps from an earlier
                # try of this request, on another server or late.
                await self._ownership.refresh(request.key)
                if (row := self._opener.find_repeat(request, self._clock())) is None:
                    raise
                return row, True

    async def _find_own(self, request: OpenRequest) -> int | None:
        """Does what SessionOpener.find_repeat() does, for a session that may be elsewhere."""
        if not request.request_id:
            return None
        async with self._ownership.lock(request.key):
            await self._ownership.refresh(request.key, request.if_exists is IfExists.RESTART)
            return self._opener.find_repeat(request, self._clock())

    async def _with_source(self, request: OpenRequest) -> OpenRequest:
        """Adds the source's state, as the pool may have no room for both sessions.

        An error of the source is raised later, when the session is opened.
        """
        await self._ownership.confirm(request.fork_of)
        with contextlib.suppress(ServeError):
            return replace(request, forked=self._opener.fork(request, self._clock()))
        return request

    def _is_renewal(self, request: OpenRequest) -> bool:
        """Whether a session is resumed of which acknowledged steps may have been taken back.

        From here on its client reuses step numbers that named other steps. Another client may still
        hold those: a new incarnation tells the two apart.
        """
        row = self._table.find(request.key)
        if row is None or request.if_exists is not IfExists.RESUME:
            return False
        return bool(self._table.trust[row] != TRUSTED)

    async def _open_paused(self, request: OpenRequest, before: Version | None) -> tuple[int, bool]:
        """Opens while steps of the old and the new session are paused; the key is locked.

        `before` is what the store has under the key.
        """
        pause = _Pause(self._table, self._sessions)
        try:
            if request.if_exists is IfExists.RESTART or request.is_renewal:
                await pause.rest(request.key)
            return await self._open_stored(request, before, pause)
        finally:
            pause.end()
            self._on_ready()

    async def _open_stored(
        self, request: OpenRequest, before: Version | None, pause: _Pause
    ) -> tuple[int, bool]:
        """Opens the session in the table, and stores it if it is new."""
        try:
            row, is_created, before = await self._open_here(request, before)
        except SessionLimit:  # the pool may be full of sessions that the store does not have yet
            await self._ownership.flush()
            row, is_created, before = await self._open_here(request, before)
        if before is None or before.incarnation != self._table.incarnation[row]:
            pause.hold(row)
            try:
                await self._ownership.create(request.key, row, before)
            except BaseException:
                self._opener.mark_uncertain(request, self._clock())
                raise
        here = self._table.find(request.key)
        if here is None:
            raise Fenced("another server has just taken this session: repeat the call")
        pause.is_decided = True
        return here, is_created

    async def _open_here(
        self, request: OpenRequest, before: Version | None
    ) -> tuple[int, bool, Version | None]:
        """The row, whether it was created, and what the store has under the key.

        A session that is to be replaced is stored first: should the rest fail, it continues from
        what the store has of it.
        """
        is_replaced = request.if_exists is IfExists.RESTART or request.is_renewal
        if is_replaced and self._table.find(request.key) is not None:
            await self._ownership.save(request.key)
            before = self._ownership.version(request.key)
            if before is None:
                raise Fenced("the session has just gone elsewhere: repeat the call", retry_s=0.0)
        return *self._opener.open(request, self._clock()), before

    async def close(self, key: str, incarnation: int) -> int:
        """Completes though its caller goes away: half a close would leave the session stored."""
        closing = asyncio.create_task(self._close(key, incarnation), name="close")
        self._closing.add(closing)
        closing.add_done_callback(self._closed)
        return await asyncio.shield(closing)

    async def finish(self, timeout_s: float) -> None:
        if self._closing:
            await asyncio.wait(self._closing, timeout=timeout_s)

    def _closed(self, closing: asyncio.Task[int]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            closing.exception()  # its caller gets it, unless the caller went away

    async def _close(self, key: str, incarnation: int) -> int:
        ownership = self._ownership
        async with ownership.lock(key):
            stored = await ownership.refresh(key, is_ending=True)
            if self._table.find(key) is not None:
                await self._rest_and_save(key, incarnation)
                if self._table.find(key) is None:
                    raise Fenced("another server has this session now: close it again")
                stored = ownership.version(key)
            elif stored is not None and not ownership.is_expired(key, stored):
                ownership.bury(key, incarnation, stored)  # its model is not served any more
            step = await super().close(key, incarnation)
            if stored is not None:
                await ownership.delete(key, stored)
            return step

    async def _rest_and_save(self, key: str, incarnation: int) -> None:
        """Waits for the pending steps and stores the last one; on failure the session reopens."""
        is_quiet = asyncio.Event()
        self._sessions.quieten(key, incarnation, self._clock(), is_quiet.set)
        try:
            await is_quiet.wait()
            with contextlib.suppress(StoreFull):  # the deletion that follows makes room
                await self._ownership.save(key)
        except BaseException:
            self._sessions.reopen(key)
            raise


class _Pause:
    """The sessions whose steps wait for the end of one OpenSession."""

    def __init__(self, table: SessionTable, sessions: LiveSessions) -> None:
        self._table = table
        self._sessions = sessions
        self._holds: list[tuple[Scheduler, Pause]] = []
        self.is_decided = False  # whether the store has said which session the key has

    async def rest(self, key: str) -> None:
        """Pauses the session under the key, and waits until none of its steps is in flight."""
        row = self._table.find(key)
        if row is not None:
            is_resting = asyncio.Event()
            self._hold(row, is_resting.set)
            await is_resting.wait()

    def hold(self, row: int) -> None:
        """Pauses a session that was just opened."""
        self._hold(row, lambda: None)

    def _hold(self, row: int, on_rest: Callable[[], None]) -> None:
        scheduler = self._sessions.model_of(row).scheduler
        assert scheduler is not None
        self._holds.append((scheduler, scheduler.hold(row, on_rest)))

    def end(self) -> None:
        """Lets the steps run, or fail because their session was replaced, or may have been."""
        for scheduler, hold in self._holds:
            if not self.is_decided and self._table.life[hold.row] == 0:
                self._sessions.mark_moved(hold.row)
            scheduler.release(hold)
