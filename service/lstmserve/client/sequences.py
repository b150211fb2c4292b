"""Owns how whole sequences become Predict messages that fit, and replies arrays. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.client.packing import room, spans, weight
from lstmserve.client.records import Floats, ModelInfo, Rows, floats, refusal, rows, state_parts
from lstmserve.wire.v1 import lstm_pb2 as wire


class Sequences(NamedTuple):
    """What one predict call is about: B sequences and the state each starts from, if any.

    h float32 [layers, B, proj_size or hidden_size], c float32 [layers, B, hidden_size].
    """

    model: ModelInfo
    rows: list[Rows]
    h: Floats | None
    c: Floats | None

    @classmethod
    def of(
        cls,
        model: ModelInfo,
        inputs: Iterable[npt.ArrayLike],
        h0: npt.ArrayLike | None,
        c0: npt.ArrayLike | None,
    ) -> Sequences:
        """From the caller's arrays. Raises ValueError for a shape, and for no sequence at all."""
        steps = [rows(model, x) for x in inputs]
        if not steps:
            raise ValueError("predict takes at least one sequence")
        if h0 is None and c0 is None:
            return cls(model, steps, None, None)
        return cls(model, steps, *state_parts(model, h0, c0, len(steps)))

    def requests(self, last_only: bool, with_state: bool) -> Iterator[wire.PredictRequest]:
        """Messages that fit, together all sequences in order. Raises InvalidInput where one

        sequence takes more than a message: in parts it would be another one.
        """
        model = self.model
        per_state = model.layers * (model.state_size + model.hidden_size) * 4
        sizes = [weight(model, r) + per_state + 10 for r in self.rows]
        largest = max(r.size for r in self.rows) + (0 if self.h is None else per_state)
        limit = model.message_bytes_max
        if largest > limit:
            takes = f"a sequence takes {largest} bytes, a message to this server {limit}"
            raise refusal("TOO_LONG", f"{takes}: step it in a session")
        for span in spans(sizes, room(model)):
            part = self.rows[span]
            yield wire.PredictRequest(
                model=model.name,
                version=model.version,
                lengths=[r.length for r in part],
                x=b"".join([r.x for r in part]),
                tokens=[token for r in part for token in r.tokens],
                last_only=last_only,
                h0=b"" if self.h is None else self.h[:, span].tobytes(),
                c0=b"" if self.c is None else self.c[:, span].tobytes(),
                with_state=with_state,
            )

    def outputs(self, replies: Iterable[wire.PredictResponse], last_only: bool) -> list[Floats]:
        """y of each sequence: [T, O], or [O] for a single time step or the last only."""
        width = self.model.output_size
        flat = np.concatenate([floats(reply.y, -1, width) for reply in replies])
        ends = np.cumsum([1 if last_only else r.length for r in self.rows])
        parts = np.split(flat, ends[:-1])
        return [
            part[0] if last_only or r.single else part
            for part, r in zip(parts, self.rows, strict=True)
        ]

    def states(self, replies: Sequence[wire.PredictResponse]) -> tuple[Floats, Floats]:
        """hn and cn, shaped as h and c."""
        layers = self.model.layers
        hn = [floats(reply.hn, layers, -1, self.model.state_size) for reply in replies]
        cn = [floats(reply.cn, layers, -1, self.model.hidden_size) for reply in replies]
        return np.concatenate(hn, axis=1), np.concatenate(cn, axis=1)
