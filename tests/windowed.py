"""Models with a window of five rows, and their oracle: a plain onnxruntime session on each window.

The oracle has no pool, no batch, no chunks and no state: it runs model.onnx on the rows of one
window from the initial state, and keeps the last time step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from lstmserve.golden import Golden
from lstmserve.head_layers import Linear
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import KNOWN, MISSING, WINDOW, LstmSpec, ModelSpec
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import TINY, make_model
from stepgraph import write
from test_window import attention
from wire import arrays

Array = npt.NDArray[Any]

W: Final = 5  # rows of each window
TOKENS: Final = 9
NET: Final = attention(W, "wait")
NETS: Final = {
    "net": NET,
    # Without a float output.
    "place": replace(NET, spec=replace(NET.spec, outputs=NET.spec.outputs[1:])),
}
LSTMS: Final = {
    "wait": (TINY, "wait"),
    "zeros": (TINY, "zeros"),
    "grow": (TINY, "grow"),
    "bidirectional": (replace(TINY, bidirectional=True), "wait"),
    "tokens": (LstmSpec(4, 6, num_embeddings=TOKENS, head=(Linear(3), "softmax")), "wait"),
}
SPECS: Final[dict[str, ModelSpec]] = {
    **{name: ModelSpec.of_lstm(lstm, W, fill) for name, (lstm, fill) in LSTMS.items()},
    **{name: net.spec for name, net in NETS.items()},
}


class Expected(NamedTuple):
    """The rows y [n, ...] that T time steps give, and how many rows the window lacks after them."""

    y: Rows
    missing_rows: int


class WindowOracle:
    """Answers for each window alone."""

    def __init__(self, folder: Path, name: str) -> None:
        self.spec = SPECS[name]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        file = folder / name / "1" / "model.onnx"
        self._session = ort.InferenceSession(str(file), options)

    def run(self, x: Rows, first: int = 0) -> Expected:
        """What the time steps from `first` on give, of a session with the rows x [T, ...]."""
        spec, rows = self.spec, RowFormat(self.spec.inputs).split(x)
        lacks = np.maximum(W - 1 - np.arange(len(x)), 0)
        given = [t for t in range(first, len(x)) if not (spec.waits and lacks[t])]
        form = RowFormat(spec.outputs)
        y = form.unknown(len(given))
        for place, t in enumerate(given):
            window = {name: self._window(each, t) for name, each in rows.items()}
            y[place] = form.pack({name: each[None] for name, each in self._last(window).items()})[0]
        return Expected(y, int(lacks[-1]) if spec.waits else 0)

    def _window(self, rows: Array, t: int) -> Array:
        """The rows of the window that ends at t, with zeros for what is missing unless it grows."""
        found = rows[max(0, t + 1 - W) : t + 1]
        if self.spec.window_fill == "grow":
            return found
        return np.concatenate([np.zeros((W - len(found), *rows.shape[1:]), rows.dtype), found])

    def _last(self, window: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs [*shape] of a window's last time step."""
        lstm = self.spec.lstm
        feed = {name: each[np.newaxis] for name, each in window.items()}
        names = [each.name for each in self.spec.outputs]
        if lstm is None:
            found = self._session.run(names, feed)
            return {name: each[0] for name, each in zip(names, found, strict=True)}
        count = len(next(iter(window.values())))
        layers = lstm.num_layers * lstm.num_directions
        feed["lengths"] = np.array([count], np.int32)
        feed["h0"] = np.zeros((layers, 1, lstm.state_size), np.float32)
        feed["c0"] = np.zeros((layers, 1, lstm.hidden_size), np.float32)
        (y,) = self._session.run(["y"], feed)
        return {"y": y[0, -1]}

    def states(self, x: Rows) -> dict[str, Array]:
        """The states [*shape] by name of a session with the rows x [T, ...]."""
        found = {}
        for name, each in RowFormat(self.spec.inputs).split(x).items():
            older = np.zeros((W - 1, *each.shape[1:]), each.dtype)
            found[name + WINDOW] = np.concatenate([older, each])[-(W - 1) :]
        known = {KNOWN: np.array(min(len(x), W - 1))}
        return {each.name: (found | known)[each.name] for each in self.spec.states}


def make_models(folder: Path, *names: str) -> None:
    """Writes folder/NAME/1 of these models; of all where none is named."""
    for name in names or SPECS:
        if name in LSTMS:
            lstm, fill = LSTMS[name]
            make_model(folder, lstm, name=name, window=(W, fill))
        else:
            rows = random_rows(name, np.random.default_rng(7), 2 * W)
            net = NETS[name]
            write(folder, net.spec, net.model(), {"one": _golden(net.spec, rows)}, name)


def _golden(spec: ModelSpec, rows: Rows) -> Golden:
    """The rows before the first whole window, whose outputs are 0."""
    inputs = RowFormat(spec.inputs).split(rows[: W - 1])
    outputs = {e.name: np.zeros((W - 1, *e.shape), e.dtype) for e in spec.results}
    outputs[MISSING] = np.arange(W - 1, 0, -1)
    return Golden(
        {name: each[np.newaxis] for name, each in inputs.items()},
        np.array([W - 1], np.int32),
        None,
        {
            name: each[np.newaxis].astype(np.float64 if each.dtype.kind == "f" else np.int64)
            for name, each in outputs.items()
        },
        {},
        torch_error=0.0,
    )


def random_rows(name: str, rng: np.random.Generator, length: int) -> Rows:
    """Rows [length, ...] of the model's inputs."""
    limit = 4 if name in NETS else TOKENS
    found = {}
    for each in SPECS[name].inputs:
        shape = (length, *each.shape)
        if each.dtype == "int64":
            found[each.name] = rng.integers(0, limit, shape)
        else:
            found[each.name] = rng.standard_normal(shape).astype(np.float32)
    return RowFormat(SPECS[name].inputs).pack(found)


def fields(name: str, rows: Rows) -> dict[str, Any]:
    """The fields of a message that carry these rows."""
    form = RowFormat(SPECS[name].inputs)
    sides = {"x": form.floats_of(rows), "tokens": form.ints_of(rows)}
    return {field: each.ravel() for field, each in sides.items() if each is not None}


def outputs(name: str, reply: Any) -> Rows:
    """The rows of a reply's outputs."""
    form = RowFormat(SPECS[name].outputs)
    y = np.array(reply.y, np.float32).reshape(-1, form.floats) if form.floats else None
    ints = np.array(reply.y_ints, np.int64).reshape(-1, form.ints) if form.ints else None
    return form.join(y, ints)


def tensors(states: Mapping[str, Array]) -> list[pb.Tensor]:
    """The messages of states by name."""
    found = []
    for name, each in states.items():
        message = pb.Tensor(name=name, shape=each.shape)
        side = message.floats if each.dtype.kind == "f" else message.ints
        side.extend(each.ravel().tolist())
        found.append(message)
    return found


def check_tensors(found: Any, wanted: Mapping[str, Array]) -> None:
    """Messages of tensors have these values, in this order."""
    named = arrays(found)
    assert list(named) == list(wanted)
    for name, each in wanted.items():
        assert named[name].shape == each.shape
        assert np.array_equal(named[name], each)


class Talk:
    """A session over the wire, whose whole past the oracle knows."""

    def __init__(self, oracle: WindowOracle, name: str, session: pb.Session, seed: int = 0) -> None:
        self.oracle, self.name = oracle, name
        self.id, self.incarnation = session.id, session.incarnation
        self.step = session.step
        self.past = random_rows(name, np.random.default_rng(0), 0)
        self.ends = [0]
        self._rng = np.random.default_rng(seed)
        self._last: pb.StepRequest | None = None

    def rows(self, length: int) -> Rows:
        """The next input, which must be applied."""
        rows = random_rows(self.name, self._rng, length)
        self.past = np.concatenate([self.past, rows])
        self.ends.append(len(self.past))
        self.step += 1
        return rows

    def request(self, length: int = 1, *, is_numbered: bool = True, **others: Any) -> Any:
        """The next step."""
        request = pb.StepRequest(
            session_id=self.id, length=length, **fields(self.name, self.rows(length)), **others
        )
        if is_numbered:
            request.step, request.incarnation = self.step, self.incarnation
        self._last = request
        return request

    def again(self) -> Any:
        """The last step, as it was sent."""
        return self._last

    def wanted(self, *, last_only: bool = False) -> Expected:
        """Of the last step."""
        first = self.ends[-1] - 1 if last_only else self.ends[-2]
        return self.oracle.run(self.past, first)

    def check(self, reply: Any, *, last_only: bool = False) -> None:
        """A reply has the rows of the last step that have a whole window, bit for bit."""
        wanted = self.wanted(last_only=last_only)
        assert reply.step == self.step
        assert reply.length == len(wanted.y)
        assert reply.missing_rows == wanted.missing_rows
        assert outputs(self.name, reply).tobytes() == wanted.y.tobytes()

    def check_state(self, state: pb.State) -> None:
        """A State has the last rows."""
        assert state.step == self.step
        check_tensors(state.tensors, self.oracle.states(self.past))
