"""Owns how sessions begin, come here and end, where a store has a say. Every wait on it is here.

Without a store all of it is at once. With one, calls about one key are in order, and what is told
of a session is what the store has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lstmserve.engine.clock import Now
from lstmserve.engine.opening import Opening, OpenRequest
from lstmserve.engine.persist import Residence
from lstmserve.engine.sessions import Sessions
from lstmserve.engine.table import SessionTable
from lstmserve.errors import (
    Draining,
    Fenced,
    ServeError,
    SessionReplaced,
    StepGap,
    StepPayloadMismatch,
    StepSuperseded,
)
from lstmserve.store import Version

UNCERTAIN = (StepGap, SessionReplaced, StepSuperseded, StepPayloadMismatch)


class Lives:
    """With a store every call may also raise StoreUnavailable, StoreTimeout, StateCorrupt,

    ModelRetired, ModelMismatch and Fenced.
    """

    def __init__(
        self,
        table: SessionTable,
        sessions: Sessions,
        opening: Opening,
        residence: Residence | None,
        clock: Callable[[], Now],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._opening = opening
        self._residence = residence
        self._clock = clock
        self._flushed: asyncio.Event | None = None  # set: this server leaves

    @property
    def has_store(self) -> bool:
        """Whether a session may be elsewhere than here."""
        return self._residence is not None

    async def fetch(self, keys: Sequence[str]) -> None:
        """Brings sessions here that a store has. Raises Draining after leave()."""
        if self._residence is None:
            return
        if self._flushed is None:
            await self._residence.fetch(keys)
            return
        if any(self._is_ahead(key) for key in keys):
            await self._flushed.wait()
        raise Draining("this server is shutting down; go on at another one", retry_s=0.0)

    def leave(self) -> asyncio.Event:
        """From now on no session comes here, and one that is ahead of the store is told to go only
        when the event is set: the next server would take it without its last steps.
        """
        self._flushed = asyncio.Event()
        return self._flushed

    def _is_ahead(self, key: str) -> bool:
        row = self._table.find(key)
        return row is not None and bool(self._table.step[row] > self._table.durable_step[row])

    async def confirm(self, key: str) -> None:
        """Makes what is known of the key here what the store has."""
        if self._residence is not None:
            await self._residence.confirm(key)

    async def be_certain(self, key: str, incarnation: int, number: int) -> None:
        """Asks the store first where a step would be refused for its incarnation or its number."""
        row = self._table.find(key)
        if self._residence is None or row is None:
            return
        last = int(self._table.step[row]) + int(self._table.pending[row])
        is_other = incarnation not in (0, int(self._table.incarnation[row]))
        if is_other or number > last + 1 or 0 < number < self._table.step[row]:
            await self._residence.confirm(key)

    async def was_stale(self, key: str, error: ServeError) -> bool:
        """Whether a refusal was of an old copy, so that the call is to be tried once more.

        What asks something of the client is said with certainty or not at all. A copy that was
        written behind may be ahead of the store, so that it takes a new step for an old one.
        """
        if self._residence is None or not isinstance(error, UNCERTAIN):
            return False
        return await self._residence.confirm(key)

    async def open(self, request: OpenRequest) -> tuple[int, bool]:
        """The session's row, and whether it was created. Raises what Opening.open() raises."""
        residence = self._residence
        if residence is None:
            return self._opening.open(request, self._clock())
        if request.fork_of:
            await residence.fetch([request.fork_of])
        async with residence.alone(request.key):
            await residence.load(request.key)
            before = residence.version(request.key)
            row, is_created = self._opening.open(request, self._clock())
            is_new = before is None or before.incarnation != self._table.incarnation[row]
            if is_created and is_new:
                await residence.create(request.key, row, before)
            here = self._table.find(request.key)
            if here is None:
                raise Fenced("another server has just taken this session: repeat the call")
            return here, is_created

    async def close(self, key: str, incarnation: int) -> int:
        """Ends a session after its pending steps; its last step. Raises as Sessions.close()."""
        residence = self._residence
        if residence is None:
            return (await self._close_here(key, incarnation))[0]
        async with residence.alone(key):
            await residence.load(key)
            step, version = await self._close_here(key, incarnation)
            if version is not None:
                await residence.forget(key, version)
            return step

    async def _close_here(self, key: str, incarnation: int) -> tuple[int, Version | None]:
        """The last step, and what the store has of the session, if it was here."""
        closed: asyncio.Future[tuple[int, Version | None]]
        closed = asyncio.get_running_loop().create_future()
        residence = self._residence

        def on_closed(step: int) -> None:
            if not closed.done():
                closed.set_result((step, residence.version(key) if residence else None))

        self._sessions.close(key, incarnation, self._clock(), on_closed)
        return await closed
