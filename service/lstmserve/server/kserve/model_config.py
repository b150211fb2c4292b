"""Builds the ModelConfig that stands for a model: what config.pbtxt would say. Decides nothing."""

from __future__ import annotations

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.reading import OUTPUTS, STATES, input_name, shown_shapes

PLATFORM = "lstmserve"
INT32_MAX = (1 << 31) - 1


def model_config(model: Model, settings: Config) -> pb.ModelConfig:
    """max_batch_size is that of one request: clients skip its first axis, which is 1 in a sequence.

    `sequence_batching` is what makes clients send sequences; a bidirectional model has none.
    """
    spec = model.spec
    size_max = 1 if model.pool is not None else settings.pending_steps_max
    config = pb.ModelConfig(
        name=model.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=size_max
    )
    shapes = shown_shapes(spec)
    dtype = pb.TYPE_INT64 if spec.num_embeddings else pb.TYPE_FP32
    config.input.add(name=input_name(spec), data_type=dtype, dims=shapes[0])
    config.output.add(name="y", data_type=pb.TYPE_FP32, dims=shapes[1])
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
