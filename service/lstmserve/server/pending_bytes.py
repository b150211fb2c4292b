"""Limits the bytes of messages that wait in this server, over all calls. Knows no transport.

Every message takes a lease before anything is done with it. The lease counts the message, then the
input that was read from it and the reply that it will have, then the reply until it is sent. The
server has one budget, and each tenant has a share of it. Everything but PendingBytes.is_vacant
belongs to the event loop's thread.

A unary call is refused if its bytes do not fit. A stream waits, and is not read meanwhile. Waiting
streams have turns: tenants one after the other, and a tenant's streams in the order of their
arrival. When no long message is held, the next one is admitted whatever its size, so every message
makes progress.
"""

from __future__ import annotations

import asyncio
from collections import deque

from lstmserve.engine.errors import PendingBytesFull as Refused
from lstmserve.engine.errors import Quota

RETRY_S = 0.2
LOOK_AGAIN_S = 0.02  # after streams may read on: they may have nothing to read
SMALL_BYTES = 4 << 10  # a lease of this size or less is not made smaller
SHORT_BYTES = 64 << 10  # the longest short message, its reply included
KEPT_PART = 16  # 1/16 of the bytes is kept for short messages
NO_LIMIT = 1 << 62


class Room:
    """A limit, and how many bytes are held: of the whole budget, or of one tenant's share.

    A part is kept for short messages: long messages cannot fill it, and short ones do not wait
    behind them for it.
    """

    __slots__ = ("bytes_max", "held", "held_short")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0
        self.held_short = 0

    @property
    def kept(self) -> int:
        """The bytes that are kept for short messages."""
        return self.bytes_max // KEPT_PART

    def fits(self, more: int, *, is_short: bool, is_blocked: bool) -> bool:
        """Whether `more` bytes fit; `is_blocked` says that others wait for this room.

        A message that would be alone fits, whatever its size.
        """
        if is_short:
            if is_blocked:
                return self.held_short + more <= self.kept
            return self.held + more <= self.bytes_max or not self.held
        return not is_blocked and (self.has(more) or self.held == self.held_short <= self.kept)

    def has(self, more: int) -> bool:
        """Whether `more` bytes are free for long messages."""
        kept = max(0, self.kept - self.held_short)
        return self.held + more + kept <= self.bytes_max


class Account:
    """What one tenant holds, and its streams that wait. Its share is unlimited by default."""

    __slots__ = ("line", "share")

    def __init__(self, share_bytes_max: int | None = None) -> None:
        self.share = Room(NO_LIMIT)
        self.line: deque[_Turn] = deque()
        self.limit(share_bytes_max)

    def limit(self, share_bytes_max: int | None) -> None:
        """Sets the limit of the share; None removes it."""
        self.share.bytes_max = NO_LIMIT if share_bytes_max is None else share_bytes_max


class Lease:
    """The bytes of one message; they are free again when every holder has released it."""

    __slots__ = ("_account", "_budget", "_holders", "size")

    def __init__(self, budget: PendingBytes, account: Account, size: int) -> None:
        self._budget = budget
        self._account = account
        self._holders = 1
        self.size = size

    def hold(self) -> None:
        """Adds a holder: a call and its step end at different times."""
        assert self._holders, "a lease that ended is held again"
        self._holders += 1

    def release(self) -> None:
        """Removes a holder; with the last one the bytes are given back."""
        self._holders -= 1
        assert self._holders >= 0, "a lease is released twice"
        if not self._holders:
            self._budget.give_back(self, self._account)

    def resize(self, size: int) -> None:
        """Counts `size` bytes from now on, even if more than before do not fit."""
        if size <= self.size <= SMALL_BYTES:
            return  # a new count would cost more than the few bytes that it gives back
        if self._holders and size != self.size:
            self._budget.resize(self, self._account, size)

    def grow(self, size: int) -> None:
        """Counts `size` bytes if they fit. Raises PendingBytesFull, Quota if not."""
        if size > self.size:
            self._budget.grow(self, self._account, size)
        else:
            self.resize(size)


class _Turn:
    """A stream that waits for bytes: with `takes` to hold them, else only to read on."""

    __slots__ = ("done", "size", "takes")

    def __init__(self, size: int, *, takes: bool) -> None:
        self.size = size
        self.takes = takes
        self.done: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()


class PendingBytes:
    """The budget. `held` is what all leases have; only resize() may take it above `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._room = Room(bytes_max)
        self._leases: set[Lease] = set()
        self._lines: dict[Account, None] = {}  # accounts with a line, whose turn is next first
        self._full: set[Account] = set()  # accounts whose share refused a message, and still would
        self._is_blocked = False  # whether the next turn waits for the budget, not for a share
        self._again: asyncio.TimerHandle | None = None

    @property
    def bytes_max(self) -> int:
        """The limit of the whole server."""
        return self._room.bytes_max

    @property
    def held(self) -> int:
        """The bytes of all leases."""
        return self._room.held

    @property
    def is_vacant(self) -> bool:
        """Whether a short message of any tenant fits now. Any thread may ask."""
        room = self._room
        return not (self._lines or self._full) and room.held < room.bytes_max

    def clipped(self, size: int) -> int:
        """The bytes to count for a message: no more than all long ones together may hold."""
        return min(size, self._room.bytes_max - self._room.kept)

    def has_room(self, account: Account, size: int) -> bool:
        """Whether take() would give a lease."""
        is_short = size <= SHORT_BYTES
        if is_short and not self._lines and self._is_free(account, size):
            return True
        return self._has_room(account, size if is_short else self.clipped(size), is_short)

    def take(self, account: Account, size: int) -> Lease | None:
        """A lease if the bytes are free and no stream waits for them, else None."""
        return self._take(account, size) if self.has_room(account, size) else None

    def enter(self, account: Account, size: int) -> Lease:
        """A lease, as take() gives it. Raises PendingBytesFull, Quota if there is none."""
        if not self.has_room(account, size):
            self.check(account, self.clipped(size), is_short=size <= SHORT_BYTES)
        return self._take(account, size)

    def check(self, account: Account, more: int, *, is_short: bool = True) -> None:
        """Raises PendingBytesFull, Quota unless `more` bytes are free for a call that cannot wait.

        `is_short` says whether the message is a short one.
        """
        if is_short and not self._lines and self._is_free(account, more):
            return
        if self._has_room(account, more, is_short):
            return
        room, share = self._room, account.share
        if not room.fits(more, is_short=is_short, is_blocked=self._is_blocked):
            raise Refused(
                f"{room.held} bytes of messages are waiting, the limit is {room.bytes_max}: "
                "send it again later, or less at once",
                metadata={"pending_bytes_max": str(room.bytes_max)},
                retry_s=RETRY_S,
            )
        if share.held:
            self._full.add(account)
        raise Quota(
            f"{share.held} bytes of your messages are waiting, your limit is {share.bytes_max}: "
            "send it again later, or less at once",
            retry_s=RETRY_S,
        )

    async def admit(self, account: Account, size: int) -> Lease:
        """Waits for its turn and for the bytes. Returns a lease of them."""
        lease = self.take(account, size) or await self._wait(account, size, takes=True)
        assert lease is not None
        return lease

    async def vacancy(self, account: Account, size: int) -> None:
        """Waits until `size` bytes are free, so that a stream may read on. It takes none."""
        if not self.has_room(account, size):
            await self._wait(account, size, takes=False)

    def resize(self, lease: Lease, account: Account, size: int) -> None:
        """Counts `size` bytes for the lease from now on."""
        before, lease.size = lease.size, size
        self._change(account, before, size)
        if size < before and self._lines:
            self._serve()

    def grow(self, lease: Lease, account: Account, size: int) -> None:
        """Counts `size` bytes for the lease if a new one of that size would fit.

        Raises PendingBytesFull, Quota if not, and changes nothing then.
        """
        before, size = lease.size, self.clipped(size)
        self._change(account, before, 0)
        try:
            self.check(account, size, is_short=size <= SHORT_BYTES)
        except (Refused, Quota):
            self._change(account, 0, before)
            raise
        self._change(account, 0, size)
        lease.size = size

    def give_back(self, lease: Lease, account: Account) -> None:
        """Ends the lease."""
        self._leases.remove(lease)
        self._change(account, lease.size, 0)
        if self._lines:
            self._serve()

    def _has_room(self, account: Account, more: int, is_short: bool) -> bool:
        return self._room.fits(
            more, is_short=is_short, is_blocked=self._is_blocked
        ) and account.share.fits(more, is_short=is_short, is_blocked=bool(account.line))

    def _is_free(self, account: Account, size: int) -> bool:
        """Whether a short message fits both rooms when no stream waits: the usual case, fast."""
        room, share = self._room, account.share
        return room.held + size <= room.bytes_max and share.held + size <= share.bytes_max

    def _take(self, account: Account, size: int) -> Lease:
        if size > SHORT_BYTES:
            size = self.clipped(size)
        lease = Lease(self, account, size)
        self._leases.add(lease)
        self._change(account, 0, size)
        return lease

    def _change(self, account: Account, before: int, after: int) -> None:
        """Counts a lease that changes from `before` bytes to `after`; 0 is no lease."""
        room, share, change = self._room, account.share, after - before
        room.held += change
        share.held += change
        short = (after if after <= SHORT_BYTES else 0) - (before if before <= SHORT_BYTES else 0)
        room.held_short += short
        share.held_short += short
        if change < 0 and self._full and (share.held < share.bytes_max or not share.held):
            self._full.discard(account)

    async def _wait(self, account: Account, size: int, *, takes: bool) -> Lease | None:
        turn = _Turn(self.clipped(size), takes=takes)
        account.line.append(turn)
        self._lines.setdefault(account)
        self._serve()
        try:
            return await turn.done
        except asyncio.CancelledError:
            if turn in account.line:
                account.line.remove(turn)
                self._serve()
            elif not turn.done.cancelled() and (lease := turn.done.result()) is not None:
                lease.release()  # the turn gave it while the cancellation was on its way
            raise

    def _serve(self) -> None:
        """Gives turns, to one tenant after the other, until the next one does not fit.

        A stream that may read on takes nothing yet. The bytes that it may need are kept for it only
        until the next look, because it may have nothing to read.
        """
        self._is_blocked = False
        expected, shares = 0, dict.fromkeys(self._lines, 0)
        while shares and not self._is_blocked:
            for account in tuple(shares):
                if not account.line:
                    del shares[account]
                    continue
                turn = account.line[0]
                if turn.done.cancelled():
                    account.line.popleft()
                elif not _fits(account.share, turn.size, shares[account]):
                    del shares[account]  # other tenants need not wait for this one's share
                elif not _fits(self._room, turn.size, expected):
                    self._is_blocked = True
                    break
                else:
                    account.line.popleft()
                    self._lines[account] = self._lines.pop(account)  # the others are next
                    if not turn.takes:
                        expected += turn.size
                        shares[account] += turn.size
                    turn.done.set_result(self._take(account, turn.size) if turn.takes else None)
        for account in [each for each in self._lines if not each.line]:
            del self._lines[account]
        if expected and self._lines and self._again is None:
            loop = asyncio.get_running_loop()
            self._again = loop.call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._serve()

    def check_integrity(self) -> None:
        """Asserts that each room holds the sum of its leases."""
        sums: dict[Room, list[int]] = {self._room: [0, 0]}
        for lease in self._leases:
            assert lease._holders > 0, "a lease without a holder"
            assert lease.size >= 0, "a lease of less than nothing"
            for room in (self._room, lease._account.share):
                total = sums.setdefault(room, [0, 0])
                total[0] += lease.size
                total[1] += lease.size if lease.size <= SHORT_BYTES else 0
        for room, total in sums.items():
            assert [room.held, room.held_short] == total, "bytes are held by no lease"
        for account in self._lines:
            assert account.line, "an empty line is kept"
        assert self._room.held or not self._is_blocked, "streams wait for bytes that are free"
        assert all(each.share.held for each in self._full), "a share that holds nothing is full"


def _fits(room: Room, size: int, expected: int) -> bool:
    """Whether a turn's bytes fit beside those that are expected."""
    if expected:
        return room.has(size + expected)
    return room.fits(size, is_short=size <= SHORT_BYTES, is_blocked=False)
