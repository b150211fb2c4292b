"""Prepares messages as bytes: endless numbered steps of sessions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import grpc
import numpy as np

from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.spec import LstmSpec
from lstmserve.v1 import lstm_pb2 as public
from lstmserve.v1 import lstm_pb2_grpc
from lstmserve.wire.v1 import lstm_pb2 as pb

PATH = "/lstmserve.v1.LstmService/"
INPUTS = 64  # different x, in turn


def open_sessions(target: str, model: str, count: int) -> list[public.Session]:
    """Opens sessions, with 32 hexadecimal digits for ids."""
    rng = np.random.default_rng()
    with grpc.insecure_channel(target) as channel:
        service = lstm_pb2_grpc.LstmServiceStub(channel)
        return [
            service.OpenSession(
                public.OpenSessionRequest(model=model, session_id=rng.bytes(16).hex())
            ).session
            for _ in range(count)
        ]


def steps(
    session: public.Session, spec: LstmSpec, *, numbered: bool = True, timeout_ms: int = 0
) -> Iterator[bytes]:
    """StepRequests of one row."""
    rows = _rows(spec, 1)
    request = pb.StepRequest(session_id=session.id, incarnation=session.incarnation)
    if timeout_ms:
        request.timeout_ms = timeout_ms
    number = session.step
    while True:
        number += 1
        if numbered:
            request.step = number
        request.x = rows[number % INPUTS]
        yield request.SerializeToString()


def uploads(session: public.Session, spec: LstmSpec, length: int) -> Iterator[bytes]:
    """StepRequests of `length` rows that ask for the last one's output."""
    request = pb.StepRequest(session_id=session.id, incarnation=session.incarnation)
    request.length, request.last_only = length, True
    request.x = (
        np.random.default_rng(0).standard_normal((length, spec.input_size)).astype("<f4").tobytes()
    )
    for number in itertools.count(session.step + 1):
        request.step = number
        yield request.SerializeToString()


def blocks(sessions: Sequence[public.Session], spec: LstmSpec) -> Iterator[bytes]:
    """StepManyRequests of one row each; the ids are in the first only."""
    rows = _rows(spec, len(sessions))
    request = pb.StepManyRequest(
        session_ids=[session.id for session in sessions],
        incarnations=[session.incarnation for session in sessions],
    )
    number = 0
    while True:
        number += 1
        del request.steps[:]
        request.steps.extend([number] * len(sessions))
        request.x = rows[number % INPUTS]
        yield request.SerializeToString()
        del request.session_ids[:]


def predictions(model: str, spec: LstmSpec, lengths: Sequence[int]) -> Iterator[bytes]:
    """PredictRequests of these sequences."""
    rows = _rows(spec, sum(lengths))
    request = pb.PredictRequest(model=model, lengths=lengths)
    number = 0
    while True:
        number += 1
        request.x = rows[number % INPUTS]
        yield request.SerializeToString()


def inferences(model: str, spec: LstmSpec, sequence: int) -> Iterator[bytes]:
    """ModelInferRequests of one row of a sequence; the first starts it."""
    rows = _rows(spec, 1)
    request = kserve.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, spec.input_size])
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = True
    for number in itertools.count():
        del request.raw_input_contents[:]
        request.raw_input_contents.append(rows[number % INPUTS])
        yield request.SerializeToString()
        request.parameters["sequence_start"].bool_param = False


def _rows(spec: LstmSpec, count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    shape = (INPUTS, count, spec.input_size)
    return [x.tobytes() for x in rng.standard_normal(shape).astype(np.float32)]
