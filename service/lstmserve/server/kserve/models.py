"""Answers the calls about models: their inputs and outputs, their configuration, their statistics.

The statistics come from the counts behind the metrics. This module must not count, nor load or
unload a model.
"""

from __future__ import annotations

from typing import Final

from lstmserve.config import Config
from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.request import find_model, read_version
from lstmserve.server.kserve.signature import DATATYPES, Part, signature_of
from lstmserve.server.observe.counters import ModelMetrics
from lstmserve.server.observe.metrics import Metrics
from lstmserve.spec import INITIAL, LENGTHS, ModelSpec, TensorSpec

PLATFORM: Final = "lstmserve"
READY: Final = "READY"
OK: Final = "OK"
DATA_TYPES: Final = {"float32": pb.TYPE_FP32, "int64": pb.TYPE_INT64, "bool": pb.TYPE_BOOL}
INT32_MAX: Final = (1 << 31) - 1


class ModelQueries:
    """The functions that answer these calls; one object serves all calls of a port."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def ready(self, request: pb.ModelReadyRequest, tenant: Tenant) -> pb.ModelReadyResponse:
        """Every model is ready from the start; one that is not served is not."""
        try:
            find_model(self._engine, request.name, request.version)
        except (ModelNotFound, ModelRetired, ModelNotHereYet):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._engine.is_draining)

    async def metadata(
        self, request: pb.ModelMetadataRequest, tenant: Tenant
    ) -> pb.ModelMetadataResponse:
        """The inputs and outputs that every request has; a length of -1 stands for any."""
        model = find_model(self._engine, request.name, request.version)
        spec, time = model.spec, shown_time(model.spec)
        tensor = pb.ModelMetadataResponse.TensorMetadata

        def shown(each: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
            shape = (-1, *time, *each.shape)
            return tensor(name=each.name, datatype=DATATYPES[each.dtype], shape=shape)

        versions = sorted(each.version for each in self._engine.models if each.name == model.name)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=map(str, versions),
            platform=PLATFORM,
            inputs=map(shown, spec.inputs),
            outputs=map(shown, spec.outputs),
        )

    async def config(
        self, request: pb.ModelConfigRequest, tenant: Tenant
    ) -> pb.ModelConfigResponse:
        """What Triton would have in config.pbtxt, a file that does not exist here."""
        model = find_model(self._engine, request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(model, self._engine.config))

    async def statistics(
        self, request: pb.ModelStatisticsRequest, tenant: Tenant
    ) -> pb.ModelStatisticsResponse:
        """Statistics of the versions asked for, over all dialects, since the server started."""
        if request.name:
            find_model(self._engine, request.name, request.version)
        version = read_version(request.version)
        found = [
            model
            for model in self._engine.models
            if request.name in ("", model.name) and version in (0, model.version)
        ]
        counts = [self._metrics.model(model.name, model.version) for model in found]
        return pb.ModelStatisticsResponse(model_stats=map(model_statistics, found, counts))

    async def index(
        self, request: pb.RepositoryIndexRequest, tenant: Tenant
    ) -> pb.RepositoryIndexResponse:
        """Every version that is served; all of them are ready."""
        kind = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                kind(name=model.name, version=str(model.version), state=READY)
                for model in self._engine.models
            ]
        )


def shown_time(spec: ModelSpec) -> tuple[int, ...]:
    """The axis of time in the shapes that clients are shown, after one that they call the batch's.

    That one is T, or 1. A model with a tensor of one number a time step needs one more, as clients
    send no input without a shape; so do whole sequences, where there is nothing else.
    """
    has_scalar = any(not each.shape for each in (*spec.inputs, *spec.outputs))
    return (-1,) if has_scalar or not spec.is_streaming else ()


def model_config(model: Model, settings: Config) -> pb.ModelConfig:
    """max_batch_size is that of one request: clients skip its first axis, which is 1 in a sequence.

    `sequence_batching` is what makes clients send sequences; a bidirectional model has none.
    """
    spec, signature, time = model.spec, signature_of(model), shown_time(model.spec)
    size_max = 1 if spec.is_streaming else settings.pending_steps_max
    config = pb.ModelConfig(
        name=model.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=size_max
    )
    for tensors, listed in ((spec.inputs, config.input), (spec.outputs, config.output)):
        for tensor in tensors:
            dims = (*time, *tensor.shape)
            listed.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims)
    if model.pool is not None:
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = round(settings.session_ttl_s * 1e6)
        batching.oldest.max_candidate_sequences = min(model.sessions_max, INT32_MAX)
        initial = model.pool.layout.initial()
        for each in signature.states.values():
            kind = {"data_type": DATA_TYPES[each.tensor.dtype], "dims": each.tensor.shape}
            state = batching.state.add(input_name=each.given, output_name=each.wanted, **kind)
            first = state.initial_state.add(name="initial", **kind)
            if initial[each.tensor.name].any():
                first.data_file = each.tensor.name + INITIAL
            else:
                first.zero_data = True
    others = (each.name for each in signature.outputs.values() if each.part is not Part.ROWS)
    facts = {
        "optional_inputs": " ".join((LENGTHS, *signature.states)),
        "optional_outputs": " ".join(others),
        "fingerprint": model.fingerprint,
    }
    if spec.window:
        facts |= {"window": str(spec.window), "window_fill": str(spec.window_fill)}
    for name, value in facts.items():
        config.parameters[name].string_value = value
    return config


def model_statistics(model: Model, counts: ModelMetrics) -> pb.ModelStatistics:
    """inference_count / execution_count is the mean batch: both are of runs, none is of requests.

    As in Triton each row of a batch counts the batch's whole time.
    """
    sizes = sorted(counts.runs.items())
    rows = sum(size * runs for size, (runs, _) in sizes)
    charged_ns = sum(size * run_ns for size, (_, run_ns) in sizes)
    success = sum(n for (_, code), n in counts.answered.items() if code == OK)
    fail = sum(n for (_, code), n in counts.answered.items() if code != OK)
    (total_s, queue_s) = (each.read()[1] for each in (counts.total, counts.queue))
    moved = pb.StatisticDuration(count=rows)
    return pb.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=counts.last_run_ms,
        inference_count=rows,
        execution_count=sum(runs for _, (runs, _) in sizes),
        inference_stats=pb.InferStatistics(
            success=_duration(success, total_s),
            fail=pb.StatisticDuration(count=fail),
            queue=_duration(success, queue_s),
            compute_input=moved,
            compute_infer=pb.StatisticDuration(count=rows, ns=charged_ns),
            compute_output=moved,
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=pb.StatisticDuration(count=runs),
                compute_infer=pb.StatisticDuration(count=runs, ns=run_ns),
                compute_output=pb.StatisticDuration(count=runs),
            )
            for size, (runs, run_ns) in sizes
        ],
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))
