"""The table of calls: which function answers which method of lstmserve.v1.LstmService."""

from __future__ import annotations

import grpc

from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.server.access.doors import Door
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
from lstmserve.server.rpc import Frame
from lstmserve.wire.v1 import lstm_pb2 as pb

SERVICE = "lstmserve.v1.LstmService"


def handlers(
    engine: Engine, metrics: Metrics, config: Config, door: Door
) -> grpc.GenericRpcHandler:
    """Handlers of raw bytes: parsing is theirs, so that a bad message gets our error."""
    models, sessions = ModelCalls(engine), SessionCalls(engine)
    steps = Steps(engine, metrics)
    inbox = Inbox(engine.driver, Crowd(engine, steps).read)
    many = ManyCalls(engine, metrics)
    streamed = StreamCalls(steps, inbox, config.stream_window, config.write_s_max)
    predict = PredictCalls(engine, metrics)
    unaries = (
        ("ListModels", pb.ListModelsRequest, models.list_models),
        ("GetModel", pb.GetModelRequest, models.get_model),
        ("OpenSession", pb.OpenSessionRequest, sessions.open_session),
        ("GetSession", pb.GetSessionRequest, sessions.get_session),
        ("ListSessions", pb.ListSessionsRequest, sessions.list_sessions),
        ("CloseSession", pb.CloseSessionRequest, sessions.close_session),
        ("GetState", pb.GetStateRequest, sessions.get_state),
        ("Predict", pb.PredictRequest, predict.predict),
    )
    streams = (("StepStream", streamed.step_stream), ("StepMany", many.step_many))
    frame = Frame(door, metrics, config.call_s_max)
    methods = {name: frame.unary(name, kind, method) for name, kind, method in unaries}
    methods["Step"] = frame.call("Step", StepCalls(steps, inbox, frame).step)
    methods |= {name: frame.bidi(name, method) for name, method in streams}
    return grpc.method_handlers_generic_handler(SERVICE, methods)
