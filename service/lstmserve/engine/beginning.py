"""Owns how a session begins where a store has a say: in its place, and in the place of another.

Until the store has answered nobody knows which of two lives goes on, so both stand still: what
their steps are told is what has become true, and what they are acked is not taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Fenced, ServeError, SessionExists, SessionLimit
from lstmserve.engine.persist import Residence
from lstmserve.engine.scheduling.scheduler import Pause, Scheduler
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.opening import IfExists, OpenRequest, SessionOpener
from lstmserve.engine.table import TRUSTED, SessionTable
from lstmserve.store import Version


class Beginning:
    """`on_ready()` is called when steps that waited have their turns again."""

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        opener: SessionOpener,
        residence: Residence,
        clock: Callable[[], Now],
        on_ready: Callable[[], None],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._opener = opener
        self._residence = residence
        self._clock = clock
        self._on_ready = on_ready

    async def open(self, request: OpenRequest) -> tuple[int, bool]:
        """As Lives.open."""
        if request.fork_of:
            if (row := await self._find_own(request)) is not None:  # its source may be gone
                return row, True
            request = await self._with_source(request)
        async with self._residence.alone(request.key):
            is_restart = request.if_exists is IfExists.RESTART
            before = await self._residence.refresh(request.key, is_restart)
            if (row := self._opener.find_repeat(request, self._clock())) is not None:
                return row, True
            request = replace(request, is_renewal=self._is_renewal(request))
            try:
                return await self._open(request, before)
            except SessionExists:
                if self._table.find(request.key) is not None:
                    raise
                # The store has one that this server had not seen: perhaps an earlier try of this
                # request, on another server or late.
                await self._residence.refresh(request.key)
                if (row := self._opener.find_repeat(request, self._clock())) is None:
                    raise
                return row, True

    async def _find_own(self, request: OpenRequest) -> int | None:
        """As SessionOpener.find_repeat, of a session that may be elsewhere."""
        if not request.request_id:
            return None
        async with self._residence.alone(request.key):
            await self._residence.refresh(request.key, request.if_exists is IfExists.RESTART)
            return self._opener.find_repeat(request, self._clock())

    async def _open(self, request: OpenRequest, before: Version | None) -> tuple[int, bool]:
        """The key's lock is held; `before` is what the store has under it."""
        standstill = Standstill(self._table, self._sessions)
        try:
            if request.if_exists is IfExists.RESTART or request.is_renewal:
                await standstill.rest(request.key)
            return await self._begin(request, before, standstill)
        finally:
            standstill.end()
            self._on_ready()

    def _is_renewal(self, request: OpenRequest) -> bool:
        """Whether a session is resumed of which acked steps may have been taken back.

        From here on its client goes on under numbers that others had. Whoever had the session
        before may still be there, and have those: another incarnation tells the two apart.
        """
        row = self._table.find(request.key)
        if row is None or request.if_exists is not IfExists.RESUME:
            return False
        return bool(self._table.trust[row] != TRUSTED)

    async def _begin(
        self, request: OpenRequest, before: Version | None, standstill: Standstill
    ) -> tuple[int, bool]:
        """The same, while the steps of who has the key, and of who gets it, wait."""
        residence = self._residence
        try:
            row, is_created, before = await self._make(request, before)
        except SessionLimit:  # full of what the store has not: it gets that first
            await residence.flush()
            row, is_created, before = await self._make(request, before)
        is_new = before is None or before.incarnation != self._table.incarnation[row]
        if is_new:
            standstill.hold(row)
            try:
                await residence.filing.create(request.key, row, before)
            except BaseException:
                self._opener.mark_uncertain(request, self._clock())
                raise
        here = self._table.find(request.key)
        if here is None:
            raise Fenced("another server has just taken this session: repeat the call")
        standstill.is_told = True
        return here, is_created

    async def _with_source(self, request: OpenRequest) -> OpenRequest:
        """With the source's state: the pool may have no room for both. Errors are told later."""
        await self._residence.confirm(request.fork_of)
        with contextlib.suppress(ServeError):
            return replace(request, forked=self._opener.fork(request, self._clock()))
        return request

    async def _make(
        self, request: OpenRequest, before: Version | None
    ) -> tuple[int, bool, Version | None]:
        """In the table; the last is what the store has under the key.

        Should the rest fail, the life that is replaced goes on with what the store has of it.
        """
        residence = self._residence
        is_replaced = request.if_exists is IfExists.RESTART or request.is_renewal
        if is_replaced and self._table.find(request.key) is not None:
            await residence.filing.save(request.key)
            before = residence.version(request.key)
            if before is None:
                raise Fenced("the session has just gone elsewhere: repeat the call", retry_s=0.0)
        return *self._opener.open(request, self._clock()), before


class Standstill:
    """Of one call: the sessions whose steps wait for its end."""

    def __init__(self, table: SessionTable, sessions: LiveSessions) -> None:
        self._table = table
        self._sessions = sessions
        self._holds: list[tuple[Scheduler, Pause]] = []
        self.is_told = False  # by the store: who had to go has been replaced

    async def rest(self, key: str) -> None:
        """Whoever has the key takes no step any more, and none is in flight."""
        row = self._table.find(key)
        if row is not None:
            is_resting = asyncio.Event()
            self._hold(row, is_resting.set)
            await is_resting.wait()

    def hold(self, row: int) -> None:
        """A session that was just opened."""
        self._hold(row, lambda: None)

    def _hold(self, row: int, on_rest: Callable[[], None]) -> None:
        scheduler = self._sessions.model_of(row).scheduler
        assert scheduler is not None
        self._holds.append((scheduler, scheduler.hold(row, on_rest)))

    def end(self) -> None:
        """Their steps go on, or are told that their session was replaced, or may have been."""
        for scheduler, hold in self._holds:
            if not self.is_told and self._table.life[hold.row] == 0:
                self._sessions.mark_moved(hold.row)
            scheduler.release(hold)
