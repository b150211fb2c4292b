"""Owns random traffic for an engine, and the oracle it is held to: one plain onnxruntime session.

The oracle is model.onnx in an InferenceSession, one whole sequence per session from zero states:
no pool, no slices, no batch.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.errors import ServeError
from lstmserve.engine.keys import session_key
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.session.live_sessions import SessionStart
from lstmserve.spec import ModelSpec
from modelmaking import make_model

TTL_NS = 3600 * 10**9


class NoMetrics:
    """Counts nothing; hands itself out for every model."""

    def model(self, name: str, version: int) -> NoMetrics:
        """Itself."""
        return self

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """Nothing."""

    def opened(self, source: str) -> None:
        """Nothing."""

    def closed(self, reason: str, count: int = 1) -> None:
        """Nothing."""


class Reply:
    """A sink that keeps what it was told; `await reply` gives the step or raises its error."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def applied(self, step: Step) -> None:
        """The step's future has its output."""
        assert not self.future.done(), "a sink was told twice"
        self.future.set_result(step)

    def failed(self, step: Step, error: ServeError) -> None:
        """The step's future has its error."""
        assert not self.future.done(), "a sink was told twice"
        self.future.set_exception(error)

    def settled(self, block: Block) -> None:
        """The block's future has the block."""
        assert not self.future.done(), "a sink was told twice"
        self.future.set_result(block)

    def __await__(self) -> Any:
        return self.future.__await__()


State = npt.NDArray[np.float32]


class Oracle:
    """Whole sequences on the portable model.onnx of a folder."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options)

    def run(
        self, x: npt.NDArray[Any], h0: State | None = None, c0: State | None = None
    ) -> tuple[State, State, State]:
        """x [T, I] or tokens [T] from h0 [L, state] and c0 [L, H], or from zeros -> y [T, O], hn
        [L, state], cn [L, H]."""
        spec = self._spec
        h0 = np.zeros((spec.num_layers, spec.state_size), np.float32) if h0 is None else h0
        c0 = np.zeros((spec.num_layers, spec.hidden_size), np.float32) if c0 is None else c0
        feed = {
            "tokens" if spec.num_embeddings else "x": x[np.newaxis],
            "lengths": np.array([len(x)], np.int32),
            "h0": np.ascontiguousarray(h0)[:, np.newaxis],
            "c0": np.ascontiguousarray(c0)[:, np.newaxis],
        }
        y, hn, cn = self._session.run(["y", "hn", "cn"], feed)
        return y[0], hn[:, 0], cn[:, 0]


def start_engine(
    folder: Path, spec: ModelSpec, seed: int = 0, metrics: Any = None, **settings: Any
) -> Engine:
    """An engine with one model "m", made in `folder`; not running yet."""
    make_model(folder, spec, seed, name="m")
    config = Config(models=folder, **{"pool_bytes": 4 << 20, **settings})
    return Engine(config, load_models(config), metrics or NoMetrics())


def open_session(engine: Engine, name: str, model: Model | None = None) -> int:
    """A new session's row."""
    chosen = model or engine.models[0]
    key = session_key("", name)
    engine.capacity.make_room(chosen, engine.clock())
    return engine.sessions.open(key, chosen, SessionStart(), TTL_NS, engine.clock())


def submit(engine: Engine, row: int, x: npt.NDArray[Any], **options: Any) -> tuple[Step, Reply]:
    """One step of the session in `row`."""
    reply = Reply()
    step = Step(row, x, reply, arrival_ns=engine.clock().monotonic_ns, **options)
    engine.submit(engine.model_of(row), step)
    return step, reply


def number_of(number: int, x: npt.NDArray[Any], last_only: bool = False) -> dict[str, Any]:
    """Options of submit() for a numbered step."""
    return {"number": number, "is_numbered": True, "last_only": last_only}


def submit_block(
    engine: Engine,
    rows: list[int],
    xs: list[npt.NDArray[Any]],
    *,
    last_only: bool = False,
    numbers: list[int] | None = None,
    deadline_ns: int = 0,
) -> Reply:
    """One step for each row, as one StepMany message."""
    model = engine.model_of(rows[0])
    lengths = np.array([len(x) for x in xs], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    reply = Reply()
    block = Block(
        np.array(rows),
        np.concatenate(xs),
        offsets,
        lengths,
        reply,
        places=np.arange(len(rows)) if last_only else offsets,
        shape=(len(rows) if last_only else int(lengths.sum()), model.spec.output_size),
        arrival_ns=engine.clock().monotonic_ns,
        last_only=last_only,
        deadline_ns=deadline_ns,
        numbers=None if numbers is None else np.array(numbers, np.int64),
    )
    engine.submit_block(model, block)
    return reply
