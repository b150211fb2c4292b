"""The names of what one LSTM layer computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """y [T, B, D*state], hn [D, B, state] and cn [D, B, H] of a layer or of one direction."""

    y: str
    hn: str
    cn: str
