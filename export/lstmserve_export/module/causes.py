"""Says why a module's stream is not its forward(): what looks back, or ahead, by other means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import nn

from lstmserve_export.module.forward import Forward
from lstmserve_export.module.layout import ABSOLUTE, RELATIVE
from lstmserve_export.module.proof import Mismatch
from lstmserve_export.module.recurrent import find_layers
from lstmserve_export.module.sampler import SIZE, Sampler
from lstmserve_export.module.signature import Signature
from lstmserve_export.refusal import shorten

LENGTH: Final = 6
WAY_OUT: Final = (
    "take what it keeps as an argument of forward() and return it (the server keeps it), or keep "
    "the last rows in the client and run the module there"
)


def explain(error: Mismatch, forward: Forward, signature: Signature) -> str:
    """One line: what differs, what is the likely cause, and what to do."""
    ahead = _looks_ahead(forward, signature)
    suspects = shorten(list(_suspects(forward.module)))
    if ahead:
        what = "an answer depends on later rows, which a stream does not have yet"
    elif error.step == 0:
        what = "already the first step differs, so the trace lost something"
    else:
        what = "an answer depends on earlier rows by other means than a recurrent layer's state"
    cause = f" (likely {suspects})" if suspects else ""
    return f"{error}: {what}{cause}; {WAY_OUT}"


def _looks_ahead(forward: Forward, signature: Signature) -> bool:
    """Whether the answer for a prefix differs from the prefix of the answer."""
    if not signature.has_time or any(o.axes.time is None for o in signature.outputs):
        return False
    axes = {each.name: each.axes for each in signature.inputs}
    rows = Sampler(forward.example, axes).rows(SIZE, LENGTH)
    given = {each.spec.name: rows[each.name] for each in signature.inputs}
    states = {
        each.spec.name: torch.zeros(SIZE, *each.spec.shape, dtype=getattr(torch, each.spec.dtype))
        for each in signature.passed
    }
    whole = forward(signature.arguments(given, states))
    short = {name: each[:, : LENGTH // 2] for name, each in given.items()}
    part = signature.last(forward(signature.arguments(short, states)))
    for output in signature.outputs:
        wide = output.axes.to_rows(whole[output.result].tensor)[:, LENGTH // 2 - 1]
        if not np.allclose(wide.float(), part[output.spec.name].float(), RELATIVE, ABSOLUTE):
            return True
    return False


def _suspects(module: nn.Module) -> Iterator[str]:
    """Layers that may look along time, by path and class."""
    recurrent = find_layers(module)
    for path, each in module.named_modules():
        kind = type(each).__name__
        is_wide = isinstance(each, (nn.Conv1d, nn.Conv2d)) and max(each.kernel_size) > 1
        is_over_rows = isinstance(
            each,
            (
                nn.MultiheadAttention,
                nn.TransformerEncoderLayer,
                nn.TransformerDecoderLayer,
                nn.InstanceNorm1d,
                nn.GroupNorm,
                nn.AvgPool1d,
                nn.MaxPool1d,
                nn.AdaptiveAvgPool1d,
                nn.AdaptiveMaxPool1d,
            ),
        )
        is_both = path in recurrent and getattr(each, "bidirectional", False)
        if is_wide or is_over_rows or is_both or "ttention" in kind:
            yield f"{path or 'the module'} ({kind})"
