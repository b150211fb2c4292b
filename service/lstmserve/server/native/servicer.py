"""The table of calls: which function answers which method of lstmserve.v1.LstmService."""

from __future__ import annotations

import functools

import grpc

from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Crowd
from lstmserve.server.native.many_calls import ManyCalls
from lstmserve.server.native.model_calls import ModelCalls
from lstmserve.server.native.predict_calls import PredictCalls
from lstmserve.server.native.session_calls import SessionCalls
from lstmserve.server.native.step_calls import StepCalls
from lstmserve.server.native.steps import Steps
from lstmserve.server.native.stream_calls import StreamCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame
from lstmserve.wire.v1 import lstm_pb2 as pb

SERVICE = "lstmserve.v1.LstmService"


def handlers(
    engine: Engine, metrics: Metrics, config: Config, door: Authenticator, pending: PendingBytes
) -> grpc.GenericRpcHandler:
    """Handlers of raw bytes: parsing is theirs, so that a bad message gets our error."""
    models, sessions = ModelCalls(engine), SessionCalls(engine)
    steps = Steps(engine, metrics)
    inbox = Inbox(engine.driver, Crowd(engine, steps).read)
    many = ManyCalls(engine, metrics, pending)
    streamed = StreamCalls(
        steps, inbox, pending, window=config.stream_window, write_s_max=config.write_s_max
    )
    unaries = (
        ("ListModels", pb.ListModelsRequest, models.list_models),
        ("GetModel", pb.GetModelRequest, models.get_model),
        ("OpenSession", pb.OpenSessionRequest, sessions.open_session),
        ("GetSession", pb.GetSessionRequest, sessions.get_session),
        ("ListSessions", pb.ListSessionsRequest, sessions.list_sessions),
        ("CloseSession", pb.CloseSessionRequest, sessions.close_session),
        ("GetState", pb.GetStateRequest, sessions.get_state),
    )
    streams = (("StepStream", streamed.step_stream), ("StepMany", many.step_many))
    frame = Frame(
        door,
        metrics,
        pending,
        call_s_max=config.call_s_max,
        write_s_max=config.write_s_max,
        row_bytes=steps.sizes.reply_row_bytes,
    )
    methods = {name: frame.unary(name, kind, method) for name, kind, method in unaries}
    count_failed = functools.partial(steps.count_failed, "Step")
    methods["Step"] = frame.call("Step", StepCalls(steps, inbox, frame).step, count_failed)
    methods["Predict"] = frame.call("Predict", PredictCalls(engine, metrics, frame).answer)
    methods |= {name: frame.bidi(name, method) for name, method in streams}
    return grpc.method_handlers_generic_handler(SERVICE, methods)
