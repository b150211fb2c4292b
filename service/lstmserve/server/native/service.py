"""The service lstmserve.v1.LstmService: which function answers which method.

It answers the calls about models itself. It must not know how any other method is answered.
"""

from __future__ import annotations

import functools

from lstmserve.config import Config
from lstmserve.engine import Engine, Model
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.native.predict import PredictCalls
from lstmserve.server.native.sessions import SessionCalls
from lstmserve.server.native.step_many import StepManyCalls
from lstmserve.server.native.steps import StepCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame, Methods
from lstmserve.server.steps import Steps
from lstmserve.spec import LstmSpec, TensorSpec
from lstmserve.wire.v1 import lstm_pb2 as pb

SERVICE = "lstmserve.v1.LstmService"


def methods(
    engine: Engine, metrics: Metrics, config: Config, door: Authenticator, pending: PendingBytes
) -> Methods:
    """The service's methods by name. They parse their messages, so that a bad one gets our
    error."""
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
        ("StepMany", StepManyCalls(engine, metrics, pending).begin),
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


class ModelCalls:
    """The calls about models; one object serves all calls of a port."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def list_models(
        self, request: pb.ListModelsRequest, tenant: Tenant
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(model) for model in self._engine.models])

    async def get_model(self, request: pb.GetModelRequest, tenant: Tenant) -> pb.GetModelResponse:
        """One version of a model: the newest, unless the request names another."""
        model = self._engine.model(request.model, request.version)
        return pb.GetModelResponse(model=self._model(model))

    def _model(self, model: Model) -> pb.Model:
        config = self._engine.config
        return pb.Model(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=config.length_max,
            message_bytes_max=config.message_bytes_max or 0,
            spec=_spec(model),
        )


def _spec(model: Model) -> pb.ModelSpec:
    spec = model.spec
    return pb.ModelSpec(
        kind=spec.kind,
        inputs=map(_tensor, spec.inputs),
        outputs=map(_tensor, spec.outputs),
        states=map(_tensor, spec.states),
        window=spec.window,
        window_fill=spec.window_fill or "",
        is_streaming=spec.is_streaming,
        is_exact=model.is_exact,
        difference=model.difference,
        lstm=None if spec.lstm is None else _lstm(spec.lstm),
    )


def _tensor(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _lstm(spec: LstmSpec) -> pb.LstmSpec:
    return pb.LstmSpec(
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        proj_size=spec.proj_size,
        bidirectional=spec.bidirectional,
        output_size=spec.output_size,
        num_embeddings=spec.num_embeddings,
    )
