"""One connection without a token floods frames: how long do the others wait meanwhile?

Each kind of flood runs for a while at full speed, over plain text and over TLS, from a process of
its own. The others step, and a health check asks, on connections of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certificates import Authority
from flooding import Flood
from lstmserve import Client
from lstmserve.client import LstmServeError
from modelmaking import make_model
from serving import COMMAND, Serving
from tenancy import write_tokens

GATED = ("settings", "ping", "window-update")
OTHERS = ("reset", "priority", "unknown", "calls", "long-headers", "empty-data", "continuation")
CONNECTIONS = ("silent", "short")
WAIT_S_MAX = 5.0
RATE = 10**9  # frames a second: as fast as the server takes them
SESSIONS = 4
PACE_S = 0.005
X = [0.5, -1.0, 2.0]


@dataclass
class Phase:
    """What the others saw beside one flood; times in seconds."""

    kind: str
    is_tls: bool
    sent_per_s: float = 0.0
    cut: str = ""
    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    checks_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    grown: float = 0.0  # bytes that the server's memory grew by

    def figures(self) -> str:
        """The figures in a few words."""
        return (
            f"{_short(self.sent_per_s)}/s{' until it was cut' if self.cut else ''}, p99 "
            f"{_ms(self.beside_s):.0f} ms beside {_ms(self.alone_s):.0f} without, longest "
            f"{1e3 * max(self.beside_s):.0f}, memory +{self.grown / 1e6:.0f} MB"
        )


@dataclass
class Found:
    """What one run found."""

    phases: list[Phase] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        for phase in self.phases:
            assert phase.failed == [], (phase.kind, phase.failed[:3])
            assert phase.beside_s, phase.kind
            assert phase.checks_s, phase.kind
            assert max(phase.beside_s + phase.checks_s) < WAIT_S_MAX, (phase.kind, phase.figures())

    def figures(self) -> str:
        """The figures in one line, for people."""
        steps = sum(len(phase.beside_s) for phase in self.phases)
        checks = sum(len(phase.checks_s) for phase in self.phases)
        kinds: dict[str, list[str]] = {phase.kind: [] for phase in self.phases}
        for phase in self.phases:
            kinds[phase.kind].append(f"{'TLS' if phase.is_tls else 'plain'} {phase.figures()}")
        return (
            f"{steps} steps and {checks} health calls beside floods of one connection without a "
            f"token, none failed or waited for {WAIT_S_MAX:.0f} s; "
            + "; ".join(f"**{kind}**: {' / '.join(each)}" for kind, each in kinds.items())
        )


def run(folder: Path, *, seconds: float, kinds: Sequence[str] = GATED) -> Found:
    """Runs each kind of flood for `seconds`, by plain text and TLS, each on a server of its own."""
    make_model(folder / "models")
    tokens = write_tokens(folder / "tokens", acme="")
    authority = Authority(folder)
    cert, key = authority.sign("server")
    found = Found()
    for is_tls in (False, True):
        tls = ("--tls-cert", cert, "--tls-key", key) if is_tls else ()
        credentials = authority.credentials() if is_tls else None
        for kind in kinds:
            flags = ("--models", folder / "models", "--tokens", folder / "tokens", *tls)
            serving = Serving(flags, COMMAND)
            try:
                phase = Phase(kind, is_tls)
                _measure(serving, phase, tokens["acme"], credentials, seconds)
                found.phases.append(phase)
                assert serving.stop() == 0
            finally:
                serving.kill()
    return found


def _measure(
    serving: Serving,
    phase: Phase,
    token: str,
    credentials: grpc.ChannelCredentials | None,
    seconds: float,
) -> None:
    client = Client(
        serving.target, token=token, tls=credentials or False, timeout_s=WAIT_S_MAX, retry_s_max=0
    )
    with client, _channel(serving, credentials) as channel:
        sessions = [client.session("tiny", keep=True) for _ in range(SESSIONS)]
        health = health_pb2_grpc.HealthStub(channel)

        def check() -> None:
            health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S_MAX)

        def phase_of(times_s: list[float], checks_s: list[float], is_over: Callable[[], bool]):
            work = [(lambda s=s: s.step(X), times_s) for s in sessions] + [(check, checks_s)]
            threads = [
                threading.Thread(target=_repeat, args=(*each, phase.failed, is_over))
                for each in work
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        end_s = time.monotonic() + seconds / 2
        phase_of(phase.alone_s, [], lambda: time.monotonic() > end_s)
        before = _memory(serving)
        end_s = time.monotonic() + seconds
        with Flood(
            phase.kind,
            serving.target,
            seconds,
            rate=RATE,
            count=RATE,
            tls=phase.is_tls and phase.kind not in CONNECTIONS,
        ) as flood:
            # A flood that is cut is over at once; the others are still measured for as long.
            phase_of(phase.beside_s, phase.checks_s, lambda: time.monotonic() > end_s)
            phase.grown = _memory(serving) - before
            sent = flood.ended()
        phase.sent_per_s, phase.cut = sent.per_s, sent.cut


def _repeat(
    call: Callable[[], object],
    times_s: list[float],
    failed: list[str],
    is_over: Callable[[], bool],
) -> None:
    pause = threading.Event()
    while not is_over():
        start_s = time.monotonic()
        try:
            call()
        except (LstmServeError, grpc.RpcError) as error:
            failed.append(f"{type(error).__name__}: {error}")
        times_s.append(time.monotonic() - start_s)
        pause.wait(PACE_S)


@contextmanager
def _channel(
    serving: Serving, credentials: grpc.ChannelCredentials | None
) -> Iterator[grpc.Channel]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    if credentials is None:
        channel = grpc.insecure_channel(serving.target, options)
    else:
        channel = grpc.secure_channel(serving.target, credentials, options)
    with channel:
        yield channel


def _memory(serving: Serving) -> float:
    pages = Path(f"/proc/{serving.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096.0


def _ms(times_s: Sequence[float]) -> float:
    return 1e3 * float(np.percentile(times_s, 99))


def _short(number: float) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number / 1e3:.0f}k"
