"""Measures what each way takes: CPU time, memory, and how late the answers are."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.serving import Server
from examples.voice.speech import FRAME_S, Floats
from examples.voice.ways import ByHand, Frames, Gateway, Heard, InTurns, hear, hear_each
from lstmserve import Client

MIB = 1 << 20
CPU_CLOCK = 2  # of a process, in nanoseconds: CPUCLOCK_SCHED of clock_getcpuclockid(3)
Drive = Callable[[bool], Heard]  # whether in real time -> what was heard


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way takes.

    `streams` is for how many one core has the CPU time. The rest is of the calls in real time:
    `cores` that they keep busy, of the server if there is one, and then `client_cores` of the
    program that sends; `late_ms` within which 99 of 100 answers follow their frames. `mib` is the
    whole server, or what onnxruntime adds to the program. `is_equal`: the answers have the expected
    bits.
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

    def one_message(is_live: bool) -> Heard:
        with Client(server.target) as client:
            return hear(Gateway(client, count).step, frames, is_live=is_live)

    def a_stream_each(is_live: bool) -> Heard:
        return asyncio.run(hear_each(server.target, frames, is_live=is_live))

    for way, make in (
        ("a session each", lambda: InTurns(count, is_shared=False)),
        ("in turns", lambda: InTurns(count, is_shared=True)),
        ("one batch", lambda: ByHand(count)),
    ):
        yield _in_program(f"onnxruntime, {way}", make, frames, expected)
    for way, drive in (("one message", one_message), ("a stream each", a_stream_each)):
        yield _cost(f"lstmserve, {way}", drive, expected, server.process_id, 0)


def _in_program(
    way: str, make: Callable[[], ByHand | InTurns], frames: Frames, expected: Floats
) -> Cost:
    own = os.getpid()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives back what the ways before have freed
    bytes_before = _rss_bytes(own)
    step = make().step
    return _cost(way, lambda live: hear(step, frames, is_live=live), expected, own, bytes_before)


def _cost(way: str, drive: Drive, expected: Floats, process_id: int, bytes_before: int) -> Cost:
    begin_s, own_begin_s = _cpu_s(process_id), time.process_time()
    heard = drive(True)
    live_s, own_s = _cpu_s(process_id) - begin_s, time.process_time() - own_begin_s
    drive(False)
    at_once_s = _cpu_s(process_id) - begin_s - live_s
    seconds = heard.y.shape[1] * FRAME_S
    is_served = process_id != os.getpid()
    return Cost(
        way=way,
        is_served=is_served,
        streams=len(heard.y) * seconds / at_once_s,
        cores=live_s / seconds,
        client_cores=own_s / seconds if is_served else 0.0,
        late_ms=1e3 * float(np.percentile(heard.late_s, 99)),
        mib=(_rss_bytes(process_id) - bytes_before) / MIB,
        is_equal=np.array_equal(heard.y, expected),
    )


def _cpu_s(process_id: int) -> float:
    """CPU time of the process so far."""
    return time.clock_gettime(~process_id << 3 | CPU_CLOCK)


def _rss_bytes(process_id: int) -> int:
    """Its resident memory."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
