"""Drives the rounds: lets a batch gather, runs it, waits for more. Owns every wait. One loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lstmserve.config import Config
from lstmserve.engine.clock import Clock
from lstmserve.engine.company import Company
from lstmserve.engine.errors import ServeError
from lstmserve.engine.model import Model
from lstmserve.engine.persist import CommitStage
from lstmserve.engine.rounds import Rounds

# Passes of the event loop before a run, and how many in a row that bring nothing end the look:
# from the bytes on a socket to a submitted step it takes gRPC about five.
PASSES_MAX = 128
QUIET_PASSES = 6
LONELY_ROUNDS_MIN = 2


class Driver:
    """Runs until stop(); when it dies, everything pending has been failed."""

    def __init__(
        self, config: Config, models: Sequence[Model], stage: CommitStage, clock: Clock
    ) -> None:
        self._clock = clock
        self._models = models
        self._wake = asyncio.Event()
        self.rounds = Rounds(config, models, stage, clock, self._wake.set)
        self._sources: list[Callable[[], None]] = []
        self._is_running = False
        self._company = Company()
        self._lonely_rounds = 0  # in a row, after which nothing came
        self._accepted = 0  # ever; tells whether a loop pass brought anything
        self._taken = 0  # of those, how many had come when the last batch was put together
        self._overdue: ServeError | None = None  # what is left of a stop ends with this
        self._is_stopping = False
        self._stopped = asyncio.Event()

    @property
    def pending_steps(self) -> int:
        """Accepted and not settled, over all models."""
        return sum(model.scheduler.pending_steps for model in self._models if model.scheduler)

    def add_source(self, take_in: Callable[[], None]) -> None:
        """`take_in()` is called before every batch: it submits what waits outside."""
        self._sources.append(take_in)

    def notice(self) -> None:
        """Something was submitted, or waits in a source."""
        self._accepted += 1
        if not self._is_running:
            self.take_in()
        elif not self.rounds.is_on:
            self._wake.set()

    def take_in(self) -> None:
        """Whatever waits outside is submitted now."""
        for take_in in self._sources:
            take_in()
        self._taken = self._accepted  # with what the sources submitted: it brought nobody

    def run_now(self) -> bool:
        """Runs what waits, if that is short and no company is expected; whether it did.

        It saves the passes of the loop that it takes to wake run(), which has what is left, and
        which dies of a bug that is met here: the caller's step is one of many.
        """
        if not self._is_running or self.rounds.is_on or self._company.is_expected:
            return False
        self.rounds.is_on = True  # nobody need be woken for what is run here
        self._company.not_looked()
        try:
            self.take_in()
            self.rounds.run_here()
        except BaseException as error:
            self.rounds.failure = error
        finally:
            self.rounds.is_on = False
        if self.rounds.failure is not None or self.pending_steps:
            self._wake.set()
        return True

    async def run(self) -> None:
        """Until stop(). Raises what it died of."""
        error = ServeError("the server failed; whether the step was applied is unknown")
        self._is_running = True
        try:
            while True:
                self._wake.clear()  # before anything is looked at, so that no change is missed
                if self.rounds.failure is not None:
                    raise self.rounds.failure
                if self._overdue is not None:
                    self.fail_pending(self._overdue)
                if self._is_stopping:
                    self.take_in()
                    if self.pending_steps == 0:
                        return
                await self._gather()
                self.take_in()
                if await self.rounds.run():
                    await self._let_in()
                else:
                    await self._wake.wait()
        finally:
            self._is_running = False
            self.fail_pending(error)
            self.rounds.computing.stop()
            self._stopped.set()

    async def stop(self, timeout_s: float, error: ServeError) -> None:
        """Finishes what is pending within `timeout_s`, fails the rest with `error`."""
        self._is_stopping = True
        self._wake.set()
        expiry = asyncio.get_running_loop().call_later(timeout_s, self._expire, error)
        try:
            await self._stopped.wait()
        finally:
            expiry.cancel()

    def fail_pending(self, error: ServeError) -> None:
        """Ends every step that is not in flight."""
        for model in self._models:
            if model.scheduler:
                model.scheduler.fail_all(error, self._clock().monotonic_ns)

    def _expire(self, error: ServeError) -> None:
        self._overdue = error
        self._wake.set()

    async def _let_in(self) -> None:
        """Passes between two rounds, which follow one another while long input is computed.

        With one a step that comes meanwhile would wait for a round in each of gRPC's passes; but
        where nothing came between so many rounds, one shows soon enough that this has changed.
        """
        before = self._accepted
        for _ in range(QUIET_PASSES if self._lonely_rounds < LONELY_ROUNDS_MIN else 1):
            await asyncio.sleep(0)
        self._lonely_rounds = self._lonely_rounds + 1 if self._accepted == before else 0

    async def _gather(self) -> None:
        """Gives the batch the chance to form."""
        if self._accepted == self._taken:
            return
        if not self._company.is_expected:
            self._company.not_looked()
            return
        quiet = 0
        for _ in range(PASSES_MAX):
            before = self._accepted
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._accepted == before else 0
            if quiet == QUIET_PASSES:
                break
        self._company.looked(self._accepted - self._taken)
