"""Builds one LSTM layer: ONNX's LSTM, or a Scan where there is a projection.

Shapes: x [T, B, I], lengths int32 [B], h0 [D, B, state], c0 [D, B, H]; y [T, B, D*state], time
major because onnxruntime refuses the LSTM's batch-major layout. Gates and cell as torch.nn.LSTM
documents them, formulas in docs/lstm.md.
"""

from __future__ import annotations

from lstmserve.graph.builder import DTYPES, GraphBuilder
from lstmserve.graph.layer_output import LayerOutput
from lstmserve.graph.scan import scan_direction
from lstmserve.graph.weights import Weights, suffixes
from lstmserve.spec import ModelSpec


def lstm_layer(
    g: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int, x: str, h0: str, c0: str
) -> LayerOutput:
    """Adds layer `layer`; reads the graph's `lengths`."""
    if spec.proj_size:
        return _projected(g, spec, weights, layer, x, h0, c0)
    return _plain(g, spec, weights, layer, x, h0, c0)


def _plain(
    g: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int, x: str, h0: str, c0: str
) -> LayerOutput:
    prefix = f"lstm.{layer}."
    names = [g.constant(prefix + kind, weights[prefix + kind]) for kind in ("W", "R")]
    bias = g.constant(prefix + "B", weights[prefix + "B"]) if spec.bias else ""
    raw, hn, cn = (prefix + kind for kind in ("raw", "hn", "cn"))
    # Only hidden_size and direction: any other attribute moves the node off CUDA.
    g.add_many(
        "LSTM",
        [x, *names, bias, "lengths", h0, c0],
        [raw, hn, cn],
        hidden_size=spec.hidden_size,
        direction="bidirectional" if spec.bidirectional else "forward",
    )
    if not spec.bidirectional:
        return LayerOutput(g.add("Squeeze", [raw, g.integers(1)], prefix + "y"), hn, cn)
    swapped = g.add("Transpose", [raw], prefix + "swapped", perm=[0, 2, 1, 3])
    shape = g.integers(0, 0, spec.lstm_output_size)
    return LayerOutput(g.add("Reshape", [swapped, shape], prefix + "y"), hn, cn)


def _projected(
    g: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int, x: str, h0: str, c0: str
) -> LayerOutput:
    """One Scan per direction; the reverse one reads each row backwards from its own last step."""
    prefix = f"lstm.{layer}."
    ends = suffixes(spec)
    starts = zip(
        _split(g, h0, ends, prefix + "h0"), _split(g, c0, ends, prefix + "c0"), strict=True
    )
    parts: list[LayerOutput] = []
    for suffix, (h, c) in zip(ends, starts, strict=True):
        source = _reverse(g, x, f"{prefix}x{suffix}") if suffix else x
        part = scan_direction(g, spec, weights, prefix, suffix, source, h, c)
        y = _reverse(g, part.y, f"{prefix}y{suffix}.forward") if suffix else part.y
        parts.append(LayerOutput(y, part.hn, part.cn))
    if len(parts) == 1:
        return parts[0]
    return LayerOutput(
        g.add("Concat", [part.y for part in parts], prefix + "y.both", axis=2),
        g.add("Concat", [part.hn for part in parts], prefix + "hn.both", axis=0),
        g.add("Concat", [part.cn for part in parts], prefix + "cn.both", axis=0),
    )


def _split(g: GraphBuilder, state: str, ends: tuple[str, ...], name: str) -> list[str]:
    if len(ends) == 1:
        return [state]
    return list(
        g.add_many("Split", [state], [name + end for end in ends], axis=0, num_outputs=len(ends))
    )


def _reverse(g: GraphBuilder, x: str, name: str) -> str:
    """Each row of x [T, B, *] backwards within its own length; padding stays where it is."""
    lengths = g.add("Cast", ["lengths"], f"{name}.lengths", to=DTYPES["int64"])
    return g.add("ReverseSequence", [x, lengths], f"{name}.reversed", time_axis=0, batch_axis=1)
