"""Measures what each way takes: CPU time, memory, and how late the answers are."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from examples.serving import Server
from examples.voice.speech import FRAME_S, Floats
from examples.voice.ways import ByHand, Frames, Gateway, Heard, InTurns, hear, hear_each
from lstmserve import Client

MIB = 1 << 20
Drive = Callable[[bool], Heard]  # whether in real time -> what was heard


@dataclass(frozen=True, slots=True)
class Used:
    """CPU time of a process so far, and its resident memory."""

    cpu_s: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way takes.

    `streams` is how many one core keeps up with. The rest is of the calls in real time: `cores`
    that they keep busy, of the server if there is one, and then `client_cores` of the program that
    sends; `late_ms` within which 99 of 100 answers follow their frames. `mib` is the whole server,
    or what onnxruntime adds to the program. `is_equal`: the answers have the expected bits.
    """

    way: str
    is_served: bool
    streams: float
    cores: float
    client_cores: float
    late_ms: float
    mib: float
    is_equal: bool


def compare(server: Server, frames: Frames, expected: Floats) -> Iterator[Cost]:
    """Hears the calls in each way, in real time and as fast as it can. `expected` [S, T]."""
    count = len(frames)

    def one_client(is_live: bool) -> Heard:
        with Client(server.target) as client:
            return hear(Gateway(client, count).step, frames, is_live=is_live)

    def a_client_each(is_live: bool) -> Heard:
        return asyncio.run(hear_each(server.target, frames, is_live=is_live))

    for way, drive in (("one client", one_client), ("a client each", a_client_each)):
        yield _cost(f"lstmserve, {way}", drive, expected, lambda: there(server), 0)
    for way, make in (
        ("one batch by hand", lambda: ByHand(count)),
        ("one session, in turns", lambda: InTurns(count, is_shared=True)),
        ("a session each", lambda: InTurns(count, is_shared=False)),
    ):
        yield _in_program(f"onnxruntime, {way}", make, frames, expected)


def _in_program(
    way: str, make: Callable[[], ByHand | InTurns], frames: Frames, expected: Floats
) -> Cost:
    bytes_before = here().bytes
    step = make().step
    return _cost(way, lambda live: hear(step, frames, is_live=live), expected, here, bytes_before)


def _cost(
    way: str, drive: Drive, expected: Floats, used: Callable[[], Used], bytes_before: int
) -> Cost:
    is_served = used is not here
    before, own = used(), here()
    heard = drive(True)
    seconds = heard.y.shape[1] * FRAME_S
    between, own_s = used(), here().cpu_s - own.cpu_s
    drive(False)
    after = used()
    return Cost(
        way=way,
        is_served=is_served,
        streams=heard.y.size * FRAME_S / (after.cpu_s - between.cpu_s),
        cores=(between.cpu_s - before.cpu_s) / seconds,
        client_cores=own_s / seconds if is_served else 0.0,
        late_ms=1e3 * float(np.percentile(heard.late_s, 99)),
        mib=(after.bytes - bytes_before) / MIB,
        is_equal=np.array_equal(heard.y, expected),
    )


def here() -> Used:
    """This process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Used(time.process_time(), pages * os.sysconf("SC_PAGE_SIZE"))


def there(server: Server) -> Used:
    """The server, as Prometheus would read it."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy: it is local
    with direct.open(server.metrics_url, timeout=5) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    return Used(found["process_cpu_seconds_total"], int(found["process_resident_memory_bytes"]))
