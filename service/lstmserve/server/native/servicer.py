"""The table of calls: which function answers which method of lstmserve.v1.LstmService."""

from __future__ import annotations

import functools

from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.native.many_calls import ManyCalls
from lstmserve.server.native.model_calls import ModelCalls
from lstmserve.server.native.predict_calls import PredictCalls
from lstmserve.server.native.session_calls import SessionCalls
from lstmserve.server.native.steps import StepCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame, Methods
from lstmserve.server.steps import Steps
from lstmserve.wire.v1 import lstm_pb2 as pb

SERVICE = "lstmserve.v1.LstmService"


def methods(
    engine: Engine, metrics: Metrics, config: Config, door: Authenticator, pending: PendingBytes
) -> Methods:
    """By name. Parsing is theirs, so that a bad message gets our error."""
    models, sessions = ModelCalls(engine), SessionCalls(engine)
    steps = Steps(engine, metrics)
    calls = StepCalls(engine, steps, pending)
    unaries = (
        ("ListModels", pb.ListModelsRequest, models.list_models),
        ("GetModel", pb.GetModelRequest, models.get_model),
        ("OpenSession", pb.OpenSessionRequest, sessions.open_session),
        ("GetSession", pb.GetSessionRequest, sessions.get_session),
        ("ListSessions", pb.ListSessionsRequest, sessions.list_sessions),
        ("CloseSession", pb.CloseSessionRequest, sessions.close_session),
        ("GetState", pb.GetStateRequest, sessions.get_state),
    )
    streams = (
        ("StepStream", calls.begin),
        ("StepMany", ManyCalls(engine, metrics, pending).begin),
    )
    frame = Frame(
        door,
        metrics,
        pending,
        call_s_max=config.call_s_max,
        write_s_max=config.write_s_max,
        row_bytes=calls.sizes.reply_row_bytes,
    )
    count_failed = functools.partial(steps.count_failed, "Step")
    return Methods(
        SERVICE,
        {
            "Step": frame.calls("Step", functools.partial(calls.receive, frame), count_failed),
            "Predict": frame.served("Predict", PredictCalls(engine, metrics).answer),
            **{name: frame.unary(name, kind, method) for name, kind, method in unaries},
        },
        {name: frame.bidi(name, begin, config.stream_window) for name, begin in streams},
    )
