"""The calls about models: what they take and give, their configuration, their statistics.

Statistics are built from the counts that the metrics are made of. This module must not count, nor
load or unload a model.
"""

from __future__ import annotations

from typing import Final

from lstmserve.config import Config
from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.request import find_model, read_version
from lstmserve.server.kserve.tensors import OUTPUTS, STATES, model_input
from lstmserve.server.observe.counters import ModelMetrics
from lstmserve.server.observe.metrics import Metrics
from lstmserve.spec import LstmSpec

PLATFORM: Final = "lstmserve"
READY: Final = "READY"
OK: Final = "OK"
INT32_MAX: Final = (1 << 31) - 1


class ModelQueries:
    """The functions that answer; one for all calls of a port."""

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
        """Inputs and outputs that every request has; -1 is any length."""
        model = find_model(self._engine, request.name, request.version)
        x, (x_shape, y_shape) = model_input(model.spec), shown_shapes(model.spec)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        versions = sorted(each.version for each in self._engine.models if each.name == model.name)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=map(str, versions),
            platform=PLATFORM,
            inputs=[tensor(name=x.name, datatype=x.datatype, shape=(-1, *x_shape))],
            outputs=[tensor(name="y", datatype="FP32", shape=(-1, *y_shape))],
        )

    async def config(
        self, request: pb.ModelConfigRequest, tenant: Tenant
    ) -> pb.ModelConfigResponse:
        """As Triton would have it in config.pbtxt, which does not exist here."""
        model = find_model(self._engine, request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(model, self._engine.config))

    async def statistics(
        self, request: pb.ModelStatisticsRequest, tenant: Tenant
    ) -> pb.ModelStatisticsResponse:
        """Of the versions asked for, over all dialects, since the start."""
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


def shown_shapes(spec: LstmSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of x and y in a request of one step, after an axis that clients call the batch's.

    That one is T, or 1. Tokens need one more, as clients send no input without a shape; so do whole
    sequences, where there is nothing else.
    """
    rows = (-1,) if spec.num_embeddings or spec.bidirectional else ()
    return (*rows, *model_input(spec).row), (*rows, spec.output_size)


def model_config(model: Model, settings: Config) -> pb.ModelConfig:
    """max_batch_size is that of one request: clients skip its first axis, which is 1 in a sequence.

    `sequence_batching` is what makes clients send sequences; a bidirectional model has none.
    """
    spec = model.spec
    size_max = 1 if model.pool is not None else settings.pending_steps_max
    config = pb.ModelConfig(
        name=model.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=size_max
    )
    x_shape, y_shape = shown_shapes(spec)
    dtype = pb.TYPE_INT64 if spec.num_embeddings else pb.TYPE_FP32
    config.input.add(name=model_input(spec).name, data_type=dtype, dims=x_shape)
    config.output.add(name="y", data_type=pb.TYPE_FP32, dims=y_shape)
    if model.pool is not None:
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = round(settings.session_ttl_s * 1e6)
        batching.oldest.max_candidate_sequences = min(model.sessions_max, INT32_MAX)
        widths = (spec.state_size, spec.hidden_size)
        for given, wanted, width in zip(STATES, ("hn", "cn"), widths, strict=True):
            dims = (spec.num_layers, width)
            state = batching.state.add(
                input_name=given, output_name=wanted, data_type=pb.TYPE_FP32, dims=dims
            )
            state.initial_state.add(name="zeros", data_type=pb.TYPE_FP32, dims=dims, zero_data=True)
    facts = {
        "optional_inputs": " ".join(("lengths", *STATES)),
        "optional_outputs": " ".join(OUTPUTS[1:]),
        "fingerprint": model.fingerprint,
    }
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
