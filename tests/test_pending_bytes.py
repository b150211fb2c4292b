"""The budget of bytes that wait: its sums, its limits, and whose turn it is, over all calls."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc import StatusCode

from lstmserve.engine.errors import Malformed, Quota
from lstmserve.engine.errors import PendingBytesFull as Refused
from lstmserve.engine.keys import sequence_key
from lstmserve.engine.session.live_sessions import SessionStart
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.server import codec
from lstmserve.server.pending_bytes import SHORT_BYTES, Account, Lease, PendingBytes
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as public
from lstmserve.wire.v1 import lstm_pb2 as pb
from refusals import in_band, refusal
from wire import Good, Wire, serving

LONG = 10 * SHORT_BYTES
MAX = 16 * LONG  # of which a sixteenth is kept for short messages
MESSAGE = 1 << 20
ROWS = 5000
X = np.random.default_rng(0).standard_normal((ROWS, 3), np.float32)
KSERVE = "/inference.GRPCInferenceService/"


@pytest.fixture
def budget() -> Iterator[PendingBytes]:
    """A budget that is empty and consistent at the end."""
    budget = PendingBytes(MAX)
    yield budget
    budget.check_integrity()
    assert budget.held == 0


async def turns() -> None:
    """Lets those whose turn has come go on."""
    for _ in range(3):
        await asyncio.sleep(0)


def release(leases: list[Lease]) -> None:
    """Releases all of them."""
    for lease in leases:
        lease.release()


async def test_long_messages_fill_it_to_the_byte_but_for_the_part_of_short_ones(
    budget: PendingBytes,
) -> None:
    """At the limit long messages are refused with a delay, and short ones still pass."""
    account = Account()
    leases = [budget.enter(account, LONG) for _ in range(15)]
    assert budget.held == 15 * LONG
    for size in (SHORT_BYTES + 1, LONG):
        with pytest.raises(Refused) as refused:
            budget.enter(account, size)
        assert refused.value.retry_s
    leases += [budget.enter(account, SHORT_BYTES) for _ in range(10)]
    assert budget.held == MAX
    with pytest.raises(Refused):
        budget.enter(account, 1)
    release(leases)


async def test_a_share_is_full_to_the_byte(budget: PendingBytes) -> None:
    """A tenant at its share is refused one byte more, another tenant is not, and the share may
    change."""
    mine, other = Account(1000), Account(1000)
    leases = [budget.enter(mine, 999), budget.enter(mine, 1), budget.enter(other, 1000)]
    with pytest.raises(Quota) as refused:
        budget.enter(mine, 1)
    assert refused.value.retry_s
    mine.limit(1001)
    leases.append(budget.enter(mine, 1))
    release(leases)


@pytest.mark.parametrize("share", [1, LONG // 2, None])
async def test_a_message_larger_than_what_there_is_has_its_turn_alone(
    budget: PendingBytes, share: int | None
) -> None:
    """It waits until no long message is held, and is then admitted: no message waits for ever."""
    account = Account(share)
    first = await budget.admit(account, 20 * MAX)
    second = asyncio.create_task(budget.admit(account, 20 * MAX))
    await turns()
    assert not second.done()
    assert budget.held <= MAX
    first.release()
    (await second).release()


async def test_whoever_waits_has_his_turn_in_order_and_tenants_in_turn(
    budget: PendingBytes,
) -> None:
    """A tenant's first message is first, and a tenant with many waiting messages does not hold up
    others."""
    a, b = Account(), Account()
    all_of_it = await budget.admit(a, MAX)
    order: list[str] = []

    async def wait(account: Account, name: str) -> None:
        lease = await budget.admit(account, 15 * LONG)
        order.append(name)
        await turns()
        lease.release()

    names = [(a, "a1"), (a, "a2"), (a, "a3"), (b, "b1"), (b, "b2")]
    tasks = [asyncio.create_task(wait(account, name)) for account, name in names]
    await turns()
    all_of_it.release()
    await asyncio.gather(*tasks)
    assert order == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_full_share_keeps_nobody_else_waiting(budget: PendingBytes) -> None:
    """A message that waits for its own tenant's bytes does not hold up other tenants."""
    mine, other = Account(2 * LONG), Account()
    leases = [budget.enter(mine, 2 * LONG)]
    waiting = asyncio.create_task(budget.admit(mine, LONG))
    await turns()
    leases.append(budget.enter(other, LONG))
    assert not waiting.done()
    release(leases)
    (await waiting).release()


async def test_who_may_read_and_has_nothing_to_read_keeps_nobody_waiting(
    budget: PendingBytes,
) -> None:
    """Streams that may read on and have nothing to read take nothing, so all get their turn."""
    account = Account()
    lease = await budget.admit(account, MAX)
    tasks = [asyncio.create_task(budget.vacancy(account, 9 * LONG)) for _ in range(5)]
    await turns()
    assert not any(task.done() for task in tasks)
    lease.release()
    await turns()
    assert sum(task.done() for task in tasks) == 1
    await asyncio.gather(*tasks)


class Lives:
    """Random leases of several tenants, some of which wait."""

    def __init__(self, budget: PendingBytes, rng: random.Random) -> None:
        self.budget, self.rng = budget, rng
        self.accounts = [Account(rng.choice([None, LONG, MAX // 4])) for _ in range(4)]
        self.leases: list[Lease] = []
        self.waiting: set[asyncio.Task[Lease]] = set()

    def act(self) -> None:
        """Does one of the things that may happen."""
        rng, leases = self.rng, self.leases
        account, size = rng.choice(self.accounts), rng.choice([9, SHORT_BYTES, LONG, 3 * LONG])
        match rng.randrange(5):
            case 0:
                self.waiting.add(asyncio.create_task(self.budget.admit(account, size)))
            case 1 if self.waiting:
                rng.choice(sorted(self.waiting, key=id)).cancel()
            case 2 if lease := self.budget.take(account, size):
                leases.append(lease)
            case 3 if leases:
                leases.pop(rng.randrange(len(leases))).release()
            case 4 if leases:
                self.use(rng.choice(leases), size)

    def use(self, lease: Lease, size: int) -> None:
        """Holds the lease for a while, as a step does; it may grow, and it shrinks."""
        lease.hold()
        with contextlib.suppress(Refused, Quota):
            lease.grow(size)
        lease.resize(min(lease.size, size))
        lease.release()

    def collect(self) -> None:
        """Collects the leases that have waited."""
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.discard(task)
            self.leases += [] if task.cancelled() else [task.result()]


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_ends_gives_its_bytes_back(budget: PendingBytes, seed: int) -> None:
    """Random leases that grow, shrink, are shared or cancelled while they wait never go below zero
    or above the limit, and leave nothing."""
    lives = Lives(budget, random.Random(seed))
    for _ in range(400):
        lives.act()
        for _ in range(lives.rng.randrange(3)):
            await asyncio.sleep(0)
        lives.collect()
        budget.check_integrity()
        assert 0 <= budget.held <= MAX
    for task in lives.waiting:
        task.cancel()
    await asyncio.gather(*lives.waiting, return_exceptions=True)
    lives.collect()
    release(lives.leases)


def long_step(session_id: str, **fields: Any) -> bytes:
    """A step of 60 KB; with its reply it is a long message."""
    request = pb.StepRequest(session_id=session_id, length=ROWS, x=X.tobytes(), **fields)
    return request.SerializeToString()


async def step(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a Step."""
    call = wire.channel.unary_unary("/lstmserve.v1.LstmService/Step")
    return call(long_step(good.id), timeout=30)


async def step_stream(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a StepStream."""
    return await streamed(wire, "/lstmserve.v1.LstmService/StepStream", long_step(good.id))


async def step_many(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a StepMany."""
    request = pb.StepManyRequest(session_ids=[good.id], lengths=[ROWS], x=X.tobytes())
    path = "/lstmserve.v1.LstmService/StepMany"
    return await streamed(wire, path, request.SerializeToString())


async def predict(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a Predict."""
    request = pb.PredictRequest(model="m", x=X.tobytes())
    call = wire.channel.unary_unary("/lstmserve.v1.LstmService/Predict")
    return call(request.SerializeToString(), timeout=30)


def inference(sequence: str = "", **numbers: int) -> bytes:
    """A ModelInferRequest; without a sequence it is a whole one."""
    request = kserve.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, ROWS, 3])
    if sequence:
        request.parameters["sequence_id"].string_param = sequence
    for name, value in numbers.items():
        request.parameters[name].int64_param = value
    return request.SerializeToString()


async def infer(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a ModelInfer."""
    return wire.channel.unary_unary(f"{KSERVE}ModelInfer")(inference(), timeout=30)


async def infer_stream(wire: Wire, good: Good) -> grpc.aio.Call:
    """Sends a ModelStreamInfer."""
    return await streamed(wire, f"{KSERVE}ModelStreamInfer", inference())


async def streamed(wire: Wire, path: str, content: bytes) -> grpc.aio.Call:
    """Sends a stream of one message."""
    stream = wire.channel.stream_stream(path)(timeout=30)
    await stream.write(content)
    return stream


Send = Callable[[Wire, Good], Awaitable[Any]]
UNARY: list[Send] = [step, predict, infer]
STREAMS: list[Send] = [step_stream, step_many, infer_stream]


@pytest.mark.parametrize("send", UNARY + STREAMS)
async def test_a_call_that_is_cancelled_gives_its_bytes_back(tmp_path: Path, send: Send) -> None:
    """The bytes are held while its step waits, and are free once a cancelled call's turn has
    come."""
    async with serving(tmp_path, is_running=False) as wire:
        calls = [await send(wire, await wire.good()) for _ in range(3)]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 3)
        each = X.nbytes + ROWS * 2 * 4
        assert 3 * each <= wire.pending.held <= 3 * (each + 100)
        for call in calls:
            call.cancel()
        wire.run()
        await wire.until(lambda: wire.pending.held == 0)


@pytest.mark.parametrize("send", UNARY)
async def test_a_unary_call_whose_bytes_do_not_fit_is_refused(tmp_path: Path, send: Send) -> None:
    """As many calls as fit are accepted, the next is refused with a delay, and a short step
    passes."""
    settings = {"message_bytes_max": MESSAGE, "pending_bytes_max": 2 * MESSAGE}
    fitting = (2 * MESSAGE - 2 * MESSAGE // 16) // (X.nbytes + ROWS * 2 * 4)
    async with serving(tmp_path, is_running=False, **settings) as wire:
        calls = [await send(wire, await wire.good()) for _ in range(fitting)]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == fitting)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await (await send(wire, await wire.good()))
        said = refusal(failure.value)
        assert (said.code, said.reason) == (StatusCode.RESOURCE_EXHAUSTED, "PENDING_BYTES")
        assert said.pushback == str(round(1000 * (said.retry_s or 0)))
        wire.run()
        await asyncio.gather(*calls)
        await (await wire.good()).step()


@pytest.mark.parametrize("send", STREAMS)
async def test_a_stream_is_not_read_while_its_bytes_do_not_fit(tmp_path: Path, send: Send) -> None:
    """If more streams come than fit, the others wait, none is refused, and all are answered."""
    settings = {"message_bytes_max": MESSAGE, "pending_bytes_max": 2 * MESSAGE}
    fitting = (2 * MESSAGE - 2 * MESSAGE // 16) // (X.nbytes + ROWS * 2 * 4)
    async with serving(tmp_path, is_running=False, **settings) as wire:
        short = await wire.good()
        streams = [await send(wire, await wire.good()) for _ in range(fitting + 5)]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps >= fitting - 1)
        for _ in range(200):
            await asyncio.sleep(0)
            assert wire.pending.held <= 2 * MESSAGE
        assert wire.engine.batch_loop.pending_steps <= fitting
        wire.run()
        await short.step()
        for stream in streams:
            assert len(await stream.read()) > ROWS * 2 * 4
            await stream.done_writing()


async def test_a_tenants_share_is_its_own(tmp_path: Path) -> None:
    """At its share a tenant's call is refused as QUOTA with a delay, although the budget has
    room."""
    limits = Limits(pending_bytes_max=2 * (X.nbytes + ROWS * 2 * 4))
    async with serving(tmp_path, is_running=False, limits=limits) as wire:
        calls = [await predict(wire, None)]  # type: ignore[arg-type]  # without a session
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await (await predict(wire, None))  # type: ignore[arg-type]  # without a session
        said = refusal(failure.value)
        assert (said.code, said.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUOTA")
        assert said.retry_s
        wire.run()
        await asyncio.gather(*calls)


async def test_a_reply_that_nobody_reads_ends_its_unary_call(tmp_path: Path) -> None:
    """If its client reads nothing, the call is cut after write_s_max, and its bytes are free."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 5)]
    async with serving(tmp_path, write_s_max=0.2) as wire:
        good = await wire.good()
        async with grpc.aio.insecure_channel(wire.target, options) as channel:
            call = channel.stream_stream("/lstmserve.v1.LstmService/Step")()
            await call.write(long_step(good.id))
            await call.done_writing()
            await wire.until(lambda: wire.pending.held > 0)
            await wire.until(lambda: wire.pending.held == 0)
            call.cancel()


def unsent(wire: Wire, method: str, **options: Any) -> grpc.aio.StreamUnaryCall[Any, Any]:
    """A unary call whose message is never sent."""
    call = wire.channel.stream_unary(f"/lstmserve.v1.LstmService/{method}")
    return call(timeout=30, **options)


@pytest.mark.parametrize("full", ["PENDING_BYTES", "QUOTA"])
async def test_a_unary_call_is_refused_before_its_message_is_read(
    tmp_path: Path, full: str
) -> None:
    """While the budget or its tenant's share is full, a client that sends no message gets the
    error."""
    share = 100 if full == "QUOTA" else None
    async with serving(tmp_path, limits=Limits(pending_bytes_max=share)) as wire:
        good = await wire.good()
        account = wire.door.tenant(None).account  # type: ignore[arg-type]  # anyone
        size = share or wire.pending.bytes_max
        lease = wire.pending.take(account, SHORT_BYTES if share is None else size)
        assert lease is not None
        lease.resize(size)
        if share is not None:  # the first refusal of a tenant comes after its message was read
            assert (await wire.refused("Step", b"")).reason == "QUOTA"
        for method in ("Step", "GetSession"):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await unsent(wire, method)
            assert refusal(failure.value).reason == full
        lease.release()
        call = unsent(wire, "Step")
        await call.write(good.request().SerializeToString())
        await call.done_writing()
        good.check(public.StepResponse.FromString(await call).y)


async def test_a_stream_whose_client_reads_nothing_and_sends_no_more(tmp_path: Path) -> None:
    """Its replies are dropped after write_s_max although it has half-closed, and hold no bytes."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 5)]
    async with serving(tmp_path, write_s_max=0.1) as wire:
        good = await wire.good()
        async with grpc.aio.insecure_channel(wire.target, options) as channel:
            stream = channel.stream_stream("/lstmserve.v1.LstmService/StepStream")()
            for _ in range(3):
                await stream.write(long_step(good.id))
            await stream.done_writing()
            await wire.until(lambda: wire.pending.held > 0)
            await wire.until(lambda: wire.pending.held == 0)
            await wire.until(lambda: wire.metrics.rpcs_started == wire.metrics.rpcs_handled)
            stream.cancel()


class Failing:
    """A message type that cannot be parsed, for want of memory or not."""

    DESCRIPTOR = pb.StepRequest.DESCRIPTOR

    @staticmethod
    def FromString(content: bytes) -> Any:  # noqa: N802 -- protobuf's name
        """Raises what protobuf raises in both cases."""
        raise DecodeError("Error parsing message")


def test_want_of_memory_is_not_told_as_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory the message is refused for now, and with memory it is malformed."""
    with pytest.raises(Malformed):
        codec.parse(Failing, b"x")  # type: ignore[type-var]  # a part of one

    def fail(_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(codec, "_try_memory", fail)
    with pytest.raises(Refused):
        codec.parse(Failing, b"x")  # type: ignore[type-var]  # a part of one


LIMIT = 5


def repeat(good: Good, number: int = 1) -> pb.StepRequest:
    """A numbered step."""
    incarnation = good.session.incarnation
    return pb.StepRequest(
        session_id=good.id, step=number, incarnation=incarnation, length=ROWS, x=X.tobytes()
    )


async def repeats_by_step(wire: Wire, good: Good) -> list[str]:
    """The reason of each refusal, by unary Steps."""
    content = repeat(good).SerializeToString()
    call = wire.channel.unary_unary("/lstmserve.v1.LstmService/Step")
    return await refusals(wire, [call(content, timeout=30) for _ in range(LIMIT + 1)])


async def refusals(wire: Wire, calls: list[Any]) -> list[str]:
    """The refusals' reasons, once as many calls as may are waiting."""
    await wire.until(lambda: any(call.done() for call in calls))
    assert wire.engine.batch_loop.pending_steps == LIMIT
    await wire.until(lambda: wire.pending.held <= X.nbytes + LIMIT * (ROWS * 2 * 4 + 100))
    wire.run()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    return [refusal(end).reason for end in ends if isinstance(end, grpc.aio.AioRpcError)]


async def repeats_by_stream(wire: Wire, good: Good) -> list[str]:
    """The refusals' reasons, by a StepStream."""
    stream = wire.stream("StepStream")
    for _ in range(LIMIT + 1):
        await stream.write(repeat(good).SerializeToString())
    return await told(wire, stream, public.StepResponse)


async def told(wire: Wire, stream: Any, kind: type[Any]) -> list[str]:
    """The reasons in all replies; the refusal waits, too, as a session's replies keep their
    order."""
    counts = wire.metrics.models.values()
    await wire.until(lambda: sum(each.errors.total() for each in counts) == 1)
    assert wire.engine.batch_loop.pending_steps == LIMIT
    assert wire.pending.held <= X.nbytes + (LIMIT + 1) * (ROWS * 2 * 4 + 100)
    wire.run()
    replies = [kind.FromString(await stream.read()) for _ in range(LIMIT + 1)]
    await stream.done_writing()
    found = [reasons(reply) for reply in replies]
    assert not any(found[:-1])
    return found[-1]


def reasons(reply: Any) -> list[str]:
    """The reasons of a reply's errors."""
    if isinstance(reply, public.StepManyResponse):
        found = [each.status for each in reply.errors]
        found += [reply.error] if reply.HasField("error") else []
    else:
        found = [reply.error] if reply.HasField("error") else []
    return [in_band_reason(status) for status in found]


def in_band_reason(status: Any) -> str:
    """The reason of a Status."""
    return str(in_band(status).reason)


async def repeats_by_many(wire: Wire, good: Good) -> list[str]:
    """The refusals' reasons, by a StepMany."""
    stream = wire.stream("StepMany")
    request = pb.StepManyRequest(
        session_ids=[good.id],
        steps=[1],
        incarnations=[good.session.incarnation],
        lengths=[ROWS],
        x=X.tobytes(),
    )
    for _ in range(LIMIT + 1):
        await stream.write(request.SerializeToString())
    return await told(wire, stream, public.StepManyResponse)


async def repeats_by_infer(wire: Wire, good: Good) -> list[str]:
    """The refusals' reasons, by ModelInfer of a sequence that a native call began."""
    request = kserve.ModelInferRequest.FromString(inference("s"))
    request.parameters["step"].int64_param = 1
    request.parameters["incarnation"].int64_param = good.session.incarnation
    call = wire.channel.unary_unary(f"{KSERVE}ModelInfer")
    content = request.SerializeToString()
    return await refusals(wire, [call(content, timeout=30) for _ in range(LIMIT + 1)])


BY: list[Callable[[Wire, Good], Awaitable[list[str]]]] = [
    repeats_by_step,
    repeats_by_stream,
    repeats_by_many,
    repeats_by_infer,
]


@pytest.mark.parametrize("limited", ["session", "all", "tenant"])
@pytest.mark.parametrize("send", BY)
async def test_repeats_of_a_pending_step_are_counted(
    tmp_path: Path, limited: str, send: Callable[[Wire, Good], Awaitable[list[str]]]
) -> None:
    """At the limit repeats join the step and hold no input, one more is refused, and all get its
    reply."""
    settings: dict[str, Any] = {
        "session": {"session_pending_max": LIMIT},
        "all": {"pending_steps_max": LIMIT},
        "tenant": {"limits": Limits(pending_steps_max=LIMIT)},
    }[limited]
    async with serving(tmp_path, is_running=False, **settings) as wire:
        is_sequence = send is repeats_by_infer
        good = Good(wire, "m", sequence(wire) if is_sequence else await wire.open())
        found = await send(wire, good)
        assert found == ["QUOTA" if limited == "tenant" else "OVERLOADED"]
        wire.engine.check_integrity()


def sequence(wire: Wire) -> public.Session:
    """The session of sequence "s", which has no step yet."""
    engine = wire.engine
    (model,) = [each for each in engine.models if each.name == "m"]
    tenant_key = sequence_key("", "m", "s")
    engine.capacity.make_room(model, engine.clock())
    row = engine.sessions.open(tenant_key, model, SessionStart(), 3600 * 10**9, engine.clock())
    return public.Session(id="s", incarnation=engine.table.incarnation.item(row))
