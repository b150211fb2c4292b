"""Random traffic for an engine, and the oracle that checks it: one plain onnxruntime session.

The oracle is model.onnx in an InferenceSession, with one whole sequence per session from zero
states: no pool, no slices, no batch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.errors import ServeError
from lstmserve.engine.keys import session_key
from lstmserve.engine.scheduling.work import Applied, Request
from lstmserve.engine.session.live_sessions import SessionStart
from lstmserve.graph.weights import Window
from lstmserve.spec import LstmSpec
from lstmserve.store import Store
from modelmaking import make_model

TTL_NS = 3600 * 10**9


class NoMetrics:
    """Counts nothing, for every model."""

    def model(self, name: str, version: int) -> NoMetrics:
        """Itself."""
        return self

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """Does nothing."""

    def opened(self, source: str) -> None:
        """Does nothing."""

    def closed(self, reason: str, count: int = 1) -> None:
        """Does nothing."""


@dataclass
class Done:
    """The outcome of a step."""

    number: int
    y: npt.NDArray[Any]
    durable_step: int
    start_ns: int
    compute_ns: int
    is_replayed: bool

    def output(self) -> npt.NDArray[Any]:
        """[T, ...]"""
        return self.y


class Reply:
    """The responder of one step; `await reply` gives it or raises its error."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def applied(self, request: Request, rows: Applied) -> None:
        """Sets the future's output."""
        assert not self.future.done(), "a step was answered twice"
        ((number,), (durable,)) = rows.numbers, rows.durable_steps
        y = request.output(0).copy()
        times = rows.start_ns, rows.compute_ns
        self.future.set_result(Done(number, y, durable, *times, rows.is_replayed))

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        """Sets the future's error."""
        assert not self.future.done(), "a step was answered twice"
        self.future.set_exception(error)

    def __await__(self) -> Any:
        return self.future.__await__()


class ManyReply:
    """The responder of many steps; `await reply` returns itself when all are over."""

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.numbers = np.zeros(count, np.int64)
        self.errors: dict[int, ServeError] = {}
        self.replayed: list[int] = []
        self.left = count
        self.y: npt.NDArray[Any] | None = None

    def applied(self, request: Request, rows: Applied) -> None:
        """Notes their numbers and outputs."""
        self.numbers[rows.places] = rows.numbers
        if rows.is_replayed:
            self.replayed += rows.places
        self._over(request, len(rows.places))

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        """Notes the error."""
        self.errors[place] = error
        self._over(request, 1)

    def _over(self, request: Request, count: int) -> None:
        self.left -= count
        assert self.left >= 0, "a step was answered twice"
        if not self.left:
            self.request, self.y = request, request.y
            self.future.set_result(self)

    def output(self, i: int) -> npt.NDArray[Any]:
        """y [T, ...] of step i."""
        found: npt.NDArray[Any] = self.request.output(i)
        return found

    def __await__(self) -> Any:
        return self.future.__await__()


State = npt.NDArray[np.float32]


class Oracle:
    """Whole sequences on the portable model.onnx of a folder."""

    def __init__(self, folder: Path, spec: LstmSpec) -> None:
        self._spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options)
        self._first = [np.zeros(each.shape, np.float32) for each in spec.states]
        if spec.initial_state:
            model = onnx.load(folder / "model.onnx")
            found = {
                each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer
            }
            self._first = [found["initial.h"], found["initial.c"]]

    def run(
        self, x: npt.NDArray[Any], h0: State | None = None, c0: State | None = None
    ) -> tuple[State, State, State]:
        """x [T, I] or tokens [T] from h0 [L, state] and c0 [L, H], or from those of a new session
        -> y [T, O], hn [L, state], cn [L, H]."""
        spec = self._spec
        h0 = self._first[0] if h0 is None else h0
        c0 = self._first[1] if c0 is None else c0
        feed = {
            "tokens" if spec.num_embeddings else "x": x[np.newaxis],
            "lengths": np.array([len(x)], np.int32),
            "h0": np.ascontiguousarray(h0)[:, np.newaxis],
            "c0": np.ascontiguousarray(c0)[:, np.newaxis],
        }
        y, hn, cn = self._session.run(["y", "hn", "cn"], feed)
        return y[0], hn[:, 0], cn[:, 0]


def start_engine(
    folder: Path,
    spec: LstmSpec,
    seed: int = 0,
    metrics: Any = None,
    window: Window = (0, None),
    **settings: Any,
) -> Engine:
    """An engine with one model "m", made in `folder`; it does not run yet."""
    make_model(folder, spec, seed, name="m", window=window)
    return load_engine(folder, metrics, **settings)


def load_engine(
    folder: Path, metrics: Any = None, store: Store | None = None, **settings: Any
) -> Engine:
    """An engine with the models of a folder; not running yet."""
    config = Config(models=folder, **{"pool_bytes": 4 << 20, **settings})
    return Engine(config, load_models(config), metrics or NoMetrics(), store=store)


def open_session(engine: Engine, name: str, model: Model | None = None) -> int:
    """Opens a session. Returns its row."""
    chosen = model or engine.models[0]
    key = session_key("", name)
    engine.capacity.make_room(chosen, engine.clock())
    return engine.sessions.open(key, chosen, SessionStart(), TTL_NS, engine.clock())


def as_rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of the engine's: tokens [T] as [T, 1], anything else as it is."""
    return x[:, np.newaxis] if x.dtype == np.int64 and x.ndim == 1 else x


def submit(
    engine: Engine,
    row: int,
    x: npt.NDArray[Any],
    *,
    number: int = 0,
    last_only: bool = False,
    deadline_ns: int = 0,
) -> tuple[Request, Reply]:
    """Submits one step of the session in `row`. Raises the error that refuses it at once."""
    reply = Reply()
    request = Request(
        as_rows(x),
        [row],
        reply,
        arrival_ns=engine.clock().monotonic_ns,
        height=1 if last_only else len(x),
        numbers=[number] if number else None,
        lengths=None if len(x) == 1 else [len(x)],
        last_only=last_only,
        deadlines_ns=[deadline_ns] if deadline_ns else None,
    )
    engine.accept(engine.model_of(row), request)
    if reply.future.done() and (error := reply.future.exception()) is not None:
        raise error
    return request, reply


def number_of(number: int, x: npt.NDArray[Any], last_only: bool = False) -> dict[str, Any]:
    """The options of submit() for a numbered step."""
    return {"number": number, "last_only": last_only}


def submit_block(
    engine: Engine,
    rows: list[int],
    xs: list[npt.NDArray[Any]],
    *,
    last_only: bool = False,
    numbers: list[int] | None = None,
    deadline_ns: int = 0,
) -> ManyReply:
    """Submits one step for each row, as one StepMany message."""
    model = engine.model_of(rows[0])
    lengths = np.array([len(x) for x in xs], np.int64)
    starts = np.cumsum(lengths) - lengths
    reply = ManyReply(len(rows))
    request = Request(
        as_rows(np.concatenate(xs)),
        np.array(rows),
        reply,
        arrival_ns=engine.clock().monotonic_ns,
        height=len(rows) if last_only else int(lengths.sum()),
        numbers=None if numbers is None else np.array(numbers, np.int64),
        lengths=None if (lengths == 1).all() else lengths,
        firsts=starts,
        outs=None if last_only else starts,
        last_only=last_only,
        deadlines_ns=[deadline_ns] * len(rows) if deadline_ns else None,
        is_distinct=True,
        is_whole=True,
    )
    engine.accept(model, request)
    return reply
