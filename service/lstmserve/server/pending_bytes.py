"""Owns how many bytes of messages may wait in this server, over all calls. Knows no transport.

Every message takes a lease before anything is done with it. The lease counts the message, then the
input that was read from it and the reply that it will have, then the reply until it is sent. One
budget for the server, and in it a share for each tenant. On the event loop's thread.

A unary call is refused where its bytes do not fit. A stream waits: it is not read meanwhile. Those
that wait have their turns in the order of their arrival, tenants one after the other. A message
that needs more than its tenant's share has its turn when the tenant holds nothing else, so that
every message that the server accepts at all makes progress.
"""

from __future__ import annotations

import asyncio
from collections import deque

from lstmserve.engine.errors import PendingBytes as Refused
from lstmserve.engine.errors import Quota

RETRY_S = 0.2
LOOK_AGAIN_S = 0.02  # after streams were told to read, whose messages may not come


class Account:
    """What one tenant holds. `share_bytes_max` None: as much as there is."""

    __slots__ = ("held", "line", "share_bytes_max")

    def __init__(self, share_bytes_max: int | None = None) -> None:
        self.share_bytes_max = share_bytes_max
        self.held = 0
        self.line: deque[_Turn] = deque()  # who of the tenant waits

    def has_room(self, size: int) -> bool:
        """Whether so many more bytes are within its share."""
        share = self.share_bytes_max
        return share is None or not self.held or self.held + size <= share


class Lease:
    """The bytes of one message; they are given back when all who hold it have released it."""

    __slots__ = ("_account", "_budget", "_holders", "size")

    def __init__(self, budget: PendingBytes, account: Account, size: int) -> None:
        self._budget = budget
        self._account = account
        self._holders = 1
        self.size = size

    def hold(self) -> None:
        """One more holds it: a call and its step end at different times."""
        assert self._holders, "a lease that ended is held again"
        self._holders += 1

    def release(self) -> None:
        """One who held it is done; the last one gives the bytes back."""
        self._holders -= 1
        assert self._holders >= 0, "a lease is released twice"
        if not self._holders:
            self._budget.give_back(self, self._account)

    def resize(self, size: int) -> None:
        """The message is `size` bytes now: what it grows by is not asked for."""
        if self._holders and size != self.size:
            self._budget.resize(self, self._account, size)

    def grow(self, size: int) -> None:
        """The message will be `size` bytes. Raises PendingBytes, Quota where they do not fit."""
        if size > self.size:
            self._budget.check(self._account, size - self.size)
        self.resize(size)


class _Turn:
    """Who waits for so many bytes; with `takes` they are taken for him, else they may be."""

    __slots__ = ("done", "size", "takes")

    def __init__(self, size: int, *, takes: bool) -> None:
        self.size = size
        self.takes = takes
        self.done: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()


class PendingBytes:
    """The budget. `held` is what all leases have; only resize() may take it above `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0
        self._leases: set[Lease] = set()
        self._lines: dict[Account, None] = {}  # accounts with a line, whose turn is next first
        self._is_blocked = False  # who is next waits for the budget, not for a share
        self._again: asyncio.TimerHandle | None = None

    def has_room(self, account: Account, size: int) -> bool:
        """Whether take() would give a lease."""
        if self._lines and (self._is_blocked or account.line):
            return False
        return self._fits(size) and account.has_room(min(size, self.bytes_max))

    def take(self, account: Account, size: int) -> Lease | None:
        """A lease, if the bytes are free and nobody waits for them."""
        if not self.has_room(account, size):
            return None
        return self._take(account, size)

    def enter(self, account: Account, size: int) -> Lease:
        """take(); raises PendingBytes, Quota instead of None."""
        self.check(account, size)
        return self._take(account, size)

    def check(self, account: Account, size: int) -> None:
        """Whether so many more bytes are free for a call that cannot wait. Raises PendingBytes,
        Quota."""
        if self.has_room(account, size):
            return
        if self._is_blocked or not self._fits(size):
            raise Refused(
                f"{self.held} bytes of messages are waiting, the limit is {self.bytes_max}: "
                "send it again later, or less at once",
                metadata={"pending_bytes_max": str(self.bytes_max)},
                retry_s=RETRY_S,
            )
        raise Quota(
            f"{account.held} bytes of your messages are waiting, your limit is "
            f"{account.share_bytes_max}: send it again later, or less at once",
            retry_s=RETRY_S,
        )

    async def admit(self, account: Account, size: int) -> Lease:
        """A lease, when it is its turn and the bytes are free."""
        lease = self.take(account, size) or await self._wait(account, size, takes=True)
        assert lease is not None
        return lease

    async def vacancy(self, account: Account, size: int) -> None:
        """Until so many bytes are free: a stream is read then. Nothing is taken."""
        if not self.has_room(account, size):
            await self._wait(account, size, takes=False)

    def resize(self, lease: Lease, account: Account, size: int) -> None:
        """The lease has `size` bytes from now on."""
        change, lease.size = size - lease.size, size
        self.held += change
        account.held += change
        if change < 0 and self._lines:
            self._serve()

    def give_back(self, lease: Lease, account: Account) -> None:
        """The lease is over."""
        self._leases.remove(lease)
        self.held -= lease.size
        account.held -= lease.size
        if self._lines:
            self._serve()

    def _take(self, account: Account, size: int) -> Lease:
        lease = Lease(self, account, size if size < self.bytes_max else self.bytes_max)
        self._leases.add(lease)
        self.held += lease.size
        account.held += lease.size
        return lease

    def _fits(self, size: int) -> bool:
        """One that is alone fits, whatever its size."""
        return self.held + size <= self.bytes_max or not self.held

    async def _wait(self, account: Account, size: int, *, takes: bool) -> Lease | None:
        turn = _Turn(min(size, self.bytes_max), takes=takes)
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
                lease.release()  # it was given while the cancellation was on its way
            raise

    def _serve(self) -> None:
        """Gives turns, one for each tenant in a row, until the next one does not fit.

        Who may read takes nothing yet: what he may take is kept for him until the next look only,
        as he may have nothing to read.
        """
        self._is_blocked = False
        expected, shares = 0, dict.fromkeys(self._lines, 0)
        while shares and not self._is_blocked:
            for account in tuple(shares):
                if not account.line:
                    del shares[account], self._lines[account]
                    continue
                turn = account.line[0]
                if turn.done.cancelled():
                    account.line.popleft()
                elif not account.has_room(turn.size + shares[account]):
                    del shares[account]  # others need not wait for a share that is not theirs
                elif not self._fits(turn.size + expected):
                    self._is_blocked = True
                    break
                else:
                    account.line.popleft()
                    self._lines[account] = self._lines.pop(account)  # the others are next
                    if not turn.takes:
                        expected += turn.size
                        shares[account] += turn.size
                    turn.done.set_result(self._take(account, turn.size) if turn.takes else None)
        if expected and self._lines and self._again is None:
            loop = asyncio.get_running_loop()
            self._again = loop.call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._serve()

    def check_integrity(self) -> None:
        """What is held is the sum of the leases, of each account too."""
        held: dict[Account, int] = {}
        for lease in self._leases:
            account = lease._account
            assert lease._holders > 0, "a lease that nobody holds"
            assert lease.size >= 0, "a lease of less than nothing"
            held[account] = held.get(account, 0) + lease.size
        assert self.held == sum(held.values()), "bytes are held by no lease"
        for account, size in held.items():
            assert account.held == size, "an account's bytes are not those of its leases"
        for account in self._lines:
            assert account.line, "an empty line is kept"
            assert account in held or self.held, "somebody waits for bytes that are free"
