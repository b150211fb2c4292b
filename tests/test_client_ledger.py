"""The client's ledger against a small model of a server: no row is lost or doubled. No I/O."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.client import LstmServeError, ModelInfo, packing
from lstmserve.client.arrays import StepInput
from lstmserve.client.ledger import Ledger, Recovery
from lstmserve.client.packing import NumberedStep, StepResult
from lstmserve.errors import Unavailable
from lstmserve.reasons import REASONS
from lstmserve.spec import TensorSpec
from lstmserve.wire.v1 import lstm_pb2 as wire

X, Y = TensorSpec("x", (1,)), TensorSpec("y", (1,))
MODEL = ModelInfo("m", 1, "", "cpu", 1000, 1 << 20, "network", (X,), (Y,), (), True, True, 0, None)
WINDOW = 7
WAITING = replace(MODEL, window=WINDOW, window_fill="wait")
Floats = npt.NDArray[np.float32]
ROWS_MAX = 4  # of a step, in these tests
CALLS_MAX = 5000
LAST = StepInput(np.array([7], np.float32).tobytes(), [], 1, single=False)


def refusal(reason: str, **metadata: object) -> LstmServeError:
    """A refusal of the server."""
    texts = {key: str(value) for key, value in metadata.items()}
    delay_s = 0.0 if reason == "OVERLOADED" else None
    code = REASONS[reason].code
    return LstmServeError("why", code=code, reason=reason, metadata=texts, retry_delay_s=delay_s)


def lost() -> LstmServeError:
    """A lost reply, as gRPC reports it."""
    return Unavailable("gone", code=REASONS["DRAINING"].code)


def chain(rows: bytes) -> list[float]:
    """y of each row: a checksum over all rows up to it."""
    return [float(zlib.crc32(rows[: 4 * n + 4]) & 0xFFFFF) for n in range(len(rows) // 4)]


@dataclass
class Server:
    """A model of a server: the table of answers, a crash, a rollback to what is durable.

    `steps` are those applied, each with its rows; `durable` says how many survive. With
    `fails_over` the store may be an older copy, or empty, after a crash.
    """

    is_stored: bool
    fails_over: bool = False
    window: int = 1  # rows that a session has given before there is a y
    incarnation: int = 1
    durable: int = 0
    steps: list[tuple[StepInput, bool]] = field(default_factory=list)

    def session(self) -> wire.Session:
        """The session as OpenSession returns it."""
        return wire.Session(id="a", incarnation=self.incarnation, step=len(self.steps))

    def crash(self, copy: int) -> None:
        """Crashes: steps that are not durable, or after `copy`, are lost; without a store the
        session is."""
        if self.fails_over:
            self.durable = copy % (self.durable + 1)
        del self.steps[self.durable :]
        if not self.is_stored or (self.fails_over and not self.durable):
            self.incarnation += 1

    def step(self, incarnation: int, step: NumberedStep) -> StepResult:
        """Applies a step. Returns its result."""
        if incarnation != self.incarnation:
            raise refusal("SESSION_LOST")
        last, sent = len(self.steps), (step.rows, step.last_only)
        if step.number > last + 1:
            raise refusal("STEP_GAP", expected_step=last + 1)
        if step.number < last:
            raise refusal("STEP_SUPERSEDED", last_step=last)
        if step.number == last and self.steps[-1] != sent:
            raise refusal("STEP_PAYLOAD_MISMATCH")
        if step.number == last + 1:
            self.steps.append(sent)
        y = chain(self.rows())
        given, first = len(y), len(y) - (1 if step.last_only else step.rows.length)
        shown = np.array(y[max(first, self.window - 1) :], np.float32)
        return StepResult(shown[:, None], self.durable, max(0, self.window - given))

    def rows(self) -> bytes:
        """All rows that it has applied."""
        return b"".join(rows.x for rows, _ in self.steps)


class Caller:
    """Steps rows through a ledger; it gives up at times, and tries again in other chunks."""

    def __init__(self, seed: int, server: Server) -> None:
        self.rng = np.random.default_rng(seed)
        self.server = server
        self.ledger = Ledger(MODEL if server.window == 1 else WAITING, 10_000)
        self.ledger.begin_life(server.session(), wire.State())
        self.seen: Counter[str] = Counter()
        self.is_calm = False
        self.calls = 0

    def call(self, rows: StepInput, last_only: bool) -> Floats:
        """Delivers the rows like StepDelivery, without waiting."""
        self.calls += 1
        assert self.calls < CALLS_MAX, f"no progress: {self.seen}"
        try:
            output = self.ledger.begin(rows, last_only)
            while (step := self.ledger.next()) is not None:
                try:
                    self.ledger.applied(step, self.send(step))
                except LstmServeError as error:
                    self.recover(step, error)
            y = output.take(rows.length)
        except LstmServeError as error:
            raise self.ledger.explain(error) from None
        finally:
            self.ledger.end()
        return y

    def recover(self, step: NumberedStep, error: LstmServeError) -> None:
        """Recovers, unless the caller gives up."""
        recovery = self.ledger.failed(step, error)
        self.seen[f"{error.reason} {recovery.name}"] += 1
        if recovery is Recovery.NONE or (not self.is_calm and self.rng.random() < 0.2):
            raise error
        if recovery is Recovery.REOPEN:
            self.ledger.reopened(self.server.session())

    def send(self, step: NumberedStep) -> StepResult:
        """Sends the step; half of the time a fault happens."""
        server, incarnation = self.server, self.ledger.session.incarnation
        match 15 if self.is_calm else self.rng.integers(16):
            case 0 | 1:
                raise lost()
            case 2 | 3:
                server.step(incarnation, step)
                raise lost()
            case 4:
                server.crash(int(self.rng.integers(1 << 30)))
            case 5 if step.number == len(server.steps) + 1 and incarnation == server.incarnation:
                raise refusal("OVERLOADED")
            case 6 if step.number == len(server.steps) + 1 and incarnation == server.incarnation:
                raise refusal("MODEL_ERROR")
            case 7:
                server.step(incarnation, step)
                return server.step(incarnation, step)
            case 8 if server.is_stored:
                server.durable = int(self.rng.integers(server.durable, len(server.steps) + 1))
        return server.step(incarnation, step)


@pytest.mark.parametrize("window", [1, WINDOW])
@pytest.mark.parametrize("kind", ["memory", "store", "failover"])
@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_each_row_counts_once(
    seed: int, kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose y was not answered are sent again in other chunks, and the server has each once,
    in order; each caller gets the y of its own rows, of those that have one."""
    caller = Caller(seed, Server(kind != "memory", kind == "failover", window))
    monkeypatch.setattr(packing, "REPLY_BYTES", caller.ledger.model.output_bytes * ROWS_MAX)
    rng = caller.rng
    xs = rng.integers(0, 3, 80).astype(np.float32)
    done, ahead, last_only, some = 0, 0, False, xs[:0]
    while done < len(xs):
        if not last_only:
            some = xs[done : done + int(rng.integers(1, 9))]
        try:
            y = caller.call(StepInput(some.tobytes(), [], len(some), single=False), last_only)
        except LstmServeError as error:
            if error.applied is False:  # so the caller may drop it
                xs = np.delete(xs, slice(done, done + len(some)))
                ahead, last_only = done, False
            else:
                ahead = max(ahead, done + len(some))
            continue
        first = done + len(some) - 1 if last_only else done
        done += len(some)
        wanted = chain(xs[:done].tobytes())[max(first, window - 1) :]
        assert y[:, 0].tolist() == wanted
        some = xs[done : done + 3]
        # A last_only step is repeated unchanged, so it begins where no row was left without its y.
        last_only = len(some) > 0 and done >= ahead and bool(rng.random() < 0.2)
    caller.is_calm = True  # this also brings the server up to date if it crashed at the end
    caller.call(LAST, last_only=False)
    assert caller.server.rows() == xs.tobytes() + LAST.x
    assert caller.ledger.missing_rows == max(0, window - len(xs) - 1)
    print(caller.seen)
