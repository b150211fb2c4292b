"""Models of a server peak in turn: memory follows --pool-bytes, and not the sum of their peaks."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from lstmserve.v1 import lstm_pb2 as pb
from lstmserve.v1 import lstm_pb2_grpc
from modelmaking import make_model
from serving import Serve, Serving

SPEC = LstmSpec(3, 64, 64, head=(Linear(2),))  # much state for few weights
STATE_BYTES = 2 * 64 * 64 * 4
POOL_BYTES = 96 << 20
NAMES = ("a", "b", "c")
FLAGS = ("--pool-bytes", str(POOL_BYTES), "--batch-sessions-max", "16", "--long-steps-max", "16")
BESIDE_SLOTS = 50  # of each model, for batches
# The formula of docs/SCALING.md: beside the pool, what each session takes in the table, and pages
# that slots do not fill. The last is for what this load itself leaves behind.
SESSION_BYTES, PAGES_BYTES, LOAD_BYTES = 350, 4 << 20, 12 << 20
IDLE_BYTES = 3 << 20  # a pool keeps a MiB or so, and what its batches need
GIVEN_BACK_S_MAX = 60.0
AHEAD = 32  # calls at once


def resident(serving: Serving) -> int:
    """Bytes of the process's memory."""
    pages = Path(f"/proc/{serving.process.pid}/statm").read_text().split()[1]
    return int(pages) * mmap.PAGESIZE


def replies(calls: Iterator[grpc.Future]) -> Iterator[object]:
    """Of calls of which so many are made before the first one's reply is read."""
    waiting: list[grpc.Future] = []
    for call in calls:
        waiting.append(call)
        if len(waiting) == AHEAD:
            yield waiting.pop(0).result()
    for call in waiting:
        yield call.result()


@pytest.mark.timeout(300)
def test_three_models_peak_in_turn(serve: Serve, tmp_path: Path) -> None:
    """Each has the whole pool at its peak, and resident memory stays within the formula."""
    for seed, name in enumerate(NAMES):
        make_model(tmp_path, SPEC, seed, name=name)
    serving = serve(*FLAGS, models=tmp_path)
    fits = serving.ready["sessions_max"]["a:1"]
    assert fits == POOL_BYTES // STATE_BYTES - 2 * (BESIDE_SLOTS + 1) - BESIDE_SLOTS
    with grpc.insecure_channel(serving.target) as channel:
        stub = lstm_pb2_grpc.LstmServiceStub(channel)
        one = stub.OpenSession(pb.OpenSessionRequest(model="a")).session
        stub.Step(pb.StepRequest(session_id=one.id, x=[1, 2, 3]))
        stub.CloseSession(pb.CloseSessionRequest(session_id=one.id))
        peaks = []
        for name in NAMES:
            ids = [f"{name}{i}" for i in range(fits)]
            opened = pb.OpenSessionRequest
            for _ in replies(
                stub.OpenSession.future(opened(model=name, session_id=i)) for i in ids
            ):
                pass
            with pytest.raises(grpc.RpcError, match=f"sessions of {name}:1 are in use"):
                stub.OpenSession(pb.OpenSessionRequest(model=name))
            step = pb.StepRequest
            for reply in replies(stub.Step.future(step(session_id=i, x=[1, 2, 3])) for i in ids):
                assert reply.step == 1
            charged, touched = (
                serving.metric("lstm_pool_bytes", model=name, state=state)
                for state in ("charged", "touched")
            )
            assert charged >= 0.9 * POOL_BYTES
            assert touched >= 0.9 * POOL_BYTES
            assert serving.metric("lstm_pool_bytes", state="charged") <= POOL_BYTES
            peaks.append(resident(serving))
            close = pb.CloseSessionRequest
            for _ in replies(stub.CloseSession.future(close(session_id=i)) for i in ids):
                pass
    give_up_s = time.monotonic() + GIVEN_BACK_S_MAX
    while serving.metric("lstm_pool_bytes", state="touched") > len(NAMES) * IDLE_BYTES:
        assert time.monotonic() < give_up_s, "the memory of closed sessions is not given back"
    idle = resident(serving)
    most = max(peaks) - idle
    limit = POOL_BYTES + fits * SESSION_BYTES + len(NAMES) * PAGES_BYTES + LOAD_BYTES
    at = " ".join(str(each >> 20) for each in peaks)
    print(f"peaks {at} MiB, then idle {idle >> 20}; {most >> 20} more, the formula {limit >> 20}")
    assert 0.7 * POOL_BYTES <= most <= limit
    assert serving.metric("lstm_pool_bytes_limit") == POOL_BYTES
    assert serving.stop() == 0
