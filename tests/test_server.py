"""The life of a real server process: Ready, signals, draining under load, the engine's death."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lstmserve.v1 import lstm_pb2, lstm_pb2_grpc
from serving import COMMAND, Serve, Serving

SERVICE = "lstmserve.v1.LstmService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
X = [0.5, -1.0, 2.0]
DEADLINE_S = 60


@pytest.fixture
def channels() -> Iterator[list[grpc.Channel]]:
    """Channels that are closed at the end."""
    opened: list[grpc.Channel] = []
    yield opened
    for channel in opened:
        channel.close()


class Peer:
    """A client of one server: its stubs on one channel."""

    def __init__(self, serving: Serving, channels: list[grpc.Channel]) -> None:
        channel = grpc.insecure_channel(serving.target)
        channels.append(channel)
        self.lstm = lstm_pb2_grpc.LstmServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    def open(self) -> str:
        """The id of a new session of the tiny model."""
        request = lstm_pb2.OpenSessionRequest(model="tiny")
        return self.lstm.OpenSession(request, timeout=DEADLINE_S).session.id

    def step(self, session_id: str) -> lstm_pb2.StepResponse:
        """One row."""
        request = lstm_pb2.StepRequest(session_id=session_id, x=X)
        return self.lstm.Step(request, timeout=DEADLINE_S)

    def watch(self) -> Iterator[int]:
        """The server's health, each time it changes."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        return (reply.status for reply in self.health.Watch(request, timeout=DEADLINE_S))


def code_of(error: BaseException) -> grpc.StatusCode:
    """The code of a failed call."""
    assert isinstance(error, grpc.Call)
    return error.code()


def test_ready_means_ready(server: Serving, channels: list[grpc.Channel]) -> None:
    """After Ready the probes pass, health says SERVING, and the log says how many sessions fit."""
    assert server.get("/livez")[0] == server.get("/readyz")[0] == 200
    health = Peer(server, channels).health
    for name in ("", SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    fits = server.ready["sessions_max"]["tiny:1"]
    slots = {"model": "tiny", "version": "1"}
    used, free = (server.metric("lstm_slots", state=state, **slots) for state in ("used", "free"))
    assert used + free == fits > 0
    assert server.noise == []


def test_reflection_shows_the_public_proto(server: Serving, channels: list[grpc.Channel]) -> None:
    """On loopback, reflection lists the service and serves the file with plain float arrays."""
    stub = Peer(server, channels).reflection

    def ask(**question: str) -> reflection_pb2.ServerReflectionResponse:
        request = reflection_pb2.ServerReflectionRequest(**question)
        return next(stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S))

    services = ask(list_services="").list_services_response.service
    assert {each.name for each in services} >= {SERVICE, "grpc.health.v1.Health"}
    files = ask(file_containing_symbol=SERVICE).file_descriptor_response.file_descriptor_proto
    assert lstm_pb2.DESCRIPTOR.serialized_pb in files


@pytest.mark.parametrize("flags", [("--no-reflection",), ("--insecure", "--listen", "0.0.0.0:0")])
def test_reflection_can_be_off(
    serve: Serve, channels: list[grpc.Channel], flags: tuple[str, ...]
) -> None:
    """With --no-reflection, and if others can reach the server, reflection is not served."""
    stub = Peer(serve(*flags), channels).reflection
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as refusal:
        next(stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S))
    assert code_of(refusal.value) is grpc.StatusCode.UNIMPLEMENTED


def test_message_limit_holds(serve: Serve, channels: list[grpc.Channel]) -> None:
    """A message of the limit passes, one byte more is RESOURCE_EXHAUSTED."""
    health = Peer(serve("--message-bytes-max", "4096"), channels).health
    frame = 3  # tag and length of the one field
    for size, code in (
        (4096, grpc.StatusCode.NOT_FOUND),
        (4097, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        request = health_pb2.HealthCheckRequest(service="x" * (size - frame))
        assert request.ByteSize() == size
        with pytest.raises(grpc.RpcError) as refusal:
            health.Check(request, timeout=DEADLINE_S)
        assert code_of(refusal.value) is code


def test_calls_per_connection_are_limited(serve: Serve, channels: list[grpc.Channel]) -> None:
    """With --streams-max 2 a third call on a connection waits until one of the two has ended."""
    health = Peer(serve("--streams-max", "2"), channels).health
    request = health_pb2.HealthCheckRequest()
    watches = [health.Watch(request, timeout=DEADLINE_S) for _ in range(2)]
    assert [next(watch).status for watch in watches] == [SERVING, SERVING]
    third = health.Watch(request, timeout=DEADLINE_S)
    fourth = health.Check.future(request, timeout=0.5)
    assert code_of(fourth.exception()) is grpc.StatusCode.DEADLINE_EXCEEDED
    watches[0].cancel()
    assert next(third).status == SERVING
    for watch in (*watches, third):
        watch.cancel()


# A job in the background may ignore some of them, and so would its children.
HEEDS = (
    "import signal; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGHUP, signal.SIGQUIT)]; "
)
HEEDING = [*COMMAND[:2], HEEDS + COMMAND[2], *COMMAND[3:]]
HANGS = """
import signal, threading
from lstmserve.server import server
from lstmserve.server.observe import heartbeat
heartbeat.AGE_S_MAX = server.SCRAPE_S_MAX = 0.5
signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
from lstmserve.cli.serve import serve
serve()
"""


def test_a_hung_loop_fails_livez_and_the_scrape(serve: Serve) -> None:
    """When the event loop hangs, /livez turns 503 from its own thread, and /metrics does too."""
    serving = serve(command=[sys.executable, "-c", HANGS])
    assert serving.get("/livez")[0] == serving.get("/metrics")[0] == 200
    serving.signal(signal.SIGUSR1)
    while serving.get("/livez")[0] == 200:
        pass
    assert serving.get("/livez")[0] == 503
    assert serving.get("/metrics")[0] == 503


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"])
def test_signal_ends_it_with_0(serve: Serve, name: str) -> None:
    """Each of these signals stops an idle server with exit code 0, and the log names the signal."""
    serving = serve(command=HEEDING)
    serving.signal(signal.Signals[name])
    assert serving.wait() == 0
    assert serving.events("draining")[0]["signal"] == name
    assert [line["event"] for line in serving.log] == ["ready", "draining", "stopped"]


def test_a_second_hangup_ends_nothing(serve: Serve) -> None:
    """A terminal that closes may send SIGHUP twice, and the drain still goes on."""
    serving = serve("--drain-delay-s", "3600", command=HEEDING)
    serving.signal(signal.SIGHUP)
    while serving.get("/readyz")[0] == 200:
        pass
    serving.signal(signal.SIGHUP)
    assert serving.get("/livez")[0] == 200
    serving.signal()
    assert serving.wait() == 1


def test_an_ignored_hangup_stays_ignored(serve: Serve) -> None:
    """Under nohup a server survives its terminal."""
    serving = serve(command=["nohup", *COMMAND])
    serving.signal(signal.SIGHUP)
    assert serving.get("/readyz")[0] == 200
    assert serving.stop() == 0
    (draining,) = serving.events("draining")
    assert draining["signal"] == "SIGTERM"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_signal_without_a_meaning_is_told(serve: Serve, name: str) -> None:
    """The signals that log rotation sends to services do not end the server."""
    serving = serve()
    serving.signal(signal.Signals[name])
    while not (ignored := serving.events("signal ignored: this server ends by SIGTERM")):
        assert serving.get("/readyz")[0] == 200
    assert ignored[0]["signal"] == name
    assert serving.stop() == 0


def test_pinned_to_one_core(serve: Serve) -> None:
    """--cpu keeps the process and its threads on that core."""
    core = min(os.sched_getaffinity(0))
    serving = serve("--cpu", str(core))
    threads = [int(name) for name in os.listdir(f"/proc/{serving.process.pid}/task")]
    assert len(threads) > 1
    assert [os.sched_getaffinity(thread) for thread in threads] == [{core}] * len(threads)
    assert serving.stop() == 0


def test_draining_serves_open_sessions_only(serve: Serve, channels: list[grpc.Channel]) -> None:
    """While it waits for routers, a server is not ready, refuses new sessions, and steps open
    ones."""
    serving = serve("--drain-delay-s", "3600")
    peer = Peer(serving, channels)
    session_id = peer.open()
    states = peer.watch()
    assert next(states) == SERVING
    serving.signal()
    assert next(states) == NOT_SERVING
    assert serving.get("/readyz")[0] == 503
    assert serving.get("/livez")[0] == 200
    assert peer.step(session_id).step == 1
    with pytest.raises(grpc.RpcError) as refusal:
        peer.open()
    assert code_of(refusal.value) is grpc.StatusCode.UNAVAILABLE
    assert peer.step(session_id).step == 2
    serving.signal()
    assert serving.wait() == 1, "the second signal ends it at once"


def test_drain_under_load_drops_nothing(serve: Serve, channels: list[grpc.Channel]) -> None:
    """After SIGTERM under load replies come in order without a gap, and later calls are
    UNAVAILABLE."""
    serving = serve("--drain-delay-s", "0.2")
    peers = [Peer(serving, channels) for _ in range(4)]
    ends: Counter[grpc.StatusCode] = Counter()
    steps: list[list[int]] = []
    all_started = threading.Barrier(len(peers) + 1, timeout=DEADLINE_S)

    def work(peer: Peer) -> None:
        session_id, numbers = peer.open(), []
        steps.append(numbers)
        numbers.append(peer.step(session_id).step)
        all_started.wait()
        try:
            while True:
                numbers.append(peer.step(session_id).step)
        except grpc.RpcError as error:
            ends[code_of(error)] += 1

    threads = [threading.Thread(target=work, args=(peer,)) for peer in peers]
    for thread in threads:
        thread.start()
    all_started.wait()
    serving.signal()
    for thread in threads:
        thread.join(timeout=DEADLINE_S)
    assert serving.wait() == 0
    assert ends == {grpc.StatusCode.UNAVAILABLE: len(peers)}
    assert all(numbers == [*range(1, len(numbers) + 1)] for numbers in steps)
    print("steps", [len(numbers) for numbers in steps])
    assert [line for line in serving.log if line["level"] in ("error", "critical")] == []


def test_drain_ends_streams_without_a_gap(serve: Serve, channels: list[grpc.Channel]) -> None:
    """A stream under load gets its replies in order, then only DRAINING, and then its end."""
    serving = serve()
    peer = Peer(serving, channels)
    session_id, told = peer.open(), threading.Event()

    def requests() -> Iterator[lstm_pb2.StepRequest]:
        while not told.is_set():
            yield lstm_pb2.StepRequest(session_id=session_id, x=X)

    numbers, errors = [], Counter()
    replies = peer.lstm.StepStream(requests(), timeout=DEADLINE_S)
    try:
        for reply in replies:
            if reply.HasField("error"):
                errors[grpc_code(reply.error.code)] += 1
                told.set()
                continue
            numbers.append(reply.step)
            if len(numbers) == 100:
                serving.signal()  # once: a second signal would end the server at once
    except grpc.RpcError:  # on a busy machine the client may not end its side within the grace
        assert told.is_set()
        assert replies.code() == grpc.StatusCode.UNAVAILABLE
    assert serving.wait() == 0
    assert numbers == [*range(1, len(numbers) + 1)]
    assert set(errors) == {grpc.StatusCode.UNAVAILABLE}
    print("steps", len(numbers), "refused", errors.total())


def grpc_code(number: int) -> grpc.StatusCode:
    """The code of that number."""
    return next(code for code in grpc.StatusCode if code.value[0] == number)


LIVES = 8  # steps before the bug: by then a lone step runs in the call that brought it
DIES = f"""
import lstmserve.server.native.steps as steps_of
from lstmserve.engine.batch_loop import Executor
steps = []
def planted(real):
    def call(*arguments):
        steps.append(arguments)
        if len(steps) > {LIVES}:
            raise RuntimeError("planted")
        return real(*arguments)
    return call
PLACE = planted(PLACE)
from lstmserve.cli.serve import serve
serve()
"""


@pytest.mark.parametrize("place", ["Executor.run_here", "steps_of.UnaryStep.applied"])
@pytest.mark.parametrize("count", [1, 2])
def test_engine_death_ends_the_process(
    serve: Serve, channels: list[grpc.Channel], place: str, count: int
) -> None:
    """When the engine dies no step hangs, neither the one with the bug nor those beside it, health
    changes, and the exit code is 3."""
    serving = serve(command=[sys.executable, "-c", DIES.replace("PLACE", place)])
    peer = Peer(serving, channels)
    ids = [peer.open() for _ in range(count)]
    states = peer.watch()
    assert next(states) == SERVING
    for _ in range(LIVES):
        peer.step(ids[0])
    calls = [
        peer.lstm.Step.future(
            lstm_pb2.StepRequest(session_id=each, x=[0.0] * 3), timeout=DEADLINE_S
        )
        for each in ids
    ]
    errors = [call.exception() for call in calls]
    assert any(errors)
    for error in filter(None, errors):
        assert code_of(error) in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
        assert "planted" not in str(error)
    assert next(states) == NOT_SERVING
    assert serving.wait() == 3
    (died,) = serving.events("engine died")
    assert "planted" in died["exception"]


def test_metrics_tell_the_truth(serve: Serve, channels: list[grpc.Channel]) -> None:
    """Counters equal what the client did, and opened - closed is the number of live sessions."""
    serving = serve()
    peer = Peer(serving, channels)
    ids = [peer.open() for _ in range(5)]
    for session_id in ids[:3]:
        for _ in range(4):
            peer.step(session_id)
    peer.lstm.CloseSession(lstm_pb2.CloseSessionRequest(session_id=ids[0]), timeout=DEADLINE_S)
    with pytest.raises(grpc.RpcError):
        peer.step(ids[0])
    with pytest.raises(grpc.RpcError):
        peer.lstm.Step(lstm_pb2.StepRequest(session_id=ids[1], x=[float("nan")] * 3))
    assert serving.metric("lstm_steps_total", model="tiny", method="Step", code="OK") == 12
    assert serving.metric("lstm_steps_total", method="Step") == 14
    assert serving.metric("lstm_step_errors_total", reason="NON_FINITE") == 1
    assert serving.metric("lstm_step_errors_total", reason="SESSION_CLOSED") == 1
    assert serving.metric("lstm_step_seconds_count") == 12
    assert serving.metric("lstm_queue_seconds_count") == 12
    assert serving.metric("lstm_rows_total") == 12
    assert serving.metric("lstm_sessions_opened_total", source="new") == 5
    assert serving.metric("lstm_sessions_closed_total", reason="client") == 1
    assert serving.metric("lstm_sessions", state="clean") == 4
    assert serving.metric("lstm_slots", state="used") == 4
    assert serving.metric("lstm_pending_steps") == 0
    for method, count in (("Step", 14), ("OpenSession", 5), ("CloseSession", 1)):
        labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method}
        assert serving.metric("grpc_server_started_total", **labels) == count
        assert serving.metric("grpc_server_handled_total", **labels) == count
        assert serving.metric("grpc_server_handling_seconds_count", **labels) == count
    assert serving.metric("grpc_server_handled_total", grpc_code="InvalidArgument") == 1
    assert serving.stop() == 0
