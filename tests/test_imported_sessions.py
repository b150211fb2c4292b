"""Imported files through the client library and from a shell: states of every dtype and rank move,
and every reply has the bits of plain onnxruntime on the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imported import FILES, Arrays, Served, imports
from lstmserve import Client
from lstmserve.client import Session, State
from serving import COMMAND, Serving

__all__ = ["imports"]  # a fixture


@pytest.fixture(scope="module")
def serving(imports: tuple[Path, dict[str, Served]]) -> Iterator[Serving]:
    """A server of all files, which runs a long step in slices."""
    serving = Serving(("--models", imports[0], "--slice-rows-max", "4"), COMMAND)
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def client(serving: Serving) -> Iterator[Client]:
    """A client of that server."""
    with Client(serving.target) as client:
        yield client


@pytest.fixture(params=FILES)
def served(request: pytest.FixtureRequest, imports: tuple[Path, dict[str, Served]]) -> Served:
    """Each file in turn."""
    return imports[1][request.param]


class Talk:
    """A session whose whole past is known."""

    def __init__(
        self, served: Served, session: Session, seed: int = 0, states: Arrays | None = None
    ) -> None:
        self.served = served
        self.session = session
        self.states = states
        self.rng = np.random.default_rng(seed)

    def next(self, length: int) -> tuple[Any, Any]:
        """The input of the next step as a client gives it, and the output that it gets, of `length`
        time steps, or of one without the axis of time if that is 0."""
        inputs = self.served.random(self.rng, max(1, length))
        outputs, self.states = self.served.run(inputs, self.states)
        return tuple(
            plain(each if length else {name: array[0] for name, array in each.items()})
            for each in (inputs, outputs)
        )

    def step(self, length: int) -> None:
        """One step, checked."""
        x, wanted = self.next(length)
        same(self.session.step(x), wanted)

    def check_state(self) -> State:
        """The state is that of the file."""
        state = self.session.state()
        wanted = self.served.initial() if self.states is None else self.states
        assert list(state.tensors) == [each.name for each in self.served.spec.states]
        same(state.tensors, wanted)
        return state


def plain(tensors: dict[str, Any]) -> Any:
    """As the client has it: an array where there is one tensor alone."""
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def same(found: Any, wanted: Any) -> None:
    """The same arrays: names, dtypes, shapes and bits."""
    if not isinstance(wanted, dict):
        found, wanted = {"": found}, {"": wanted}
    assert found.keys() == wanted.keys()
    for one, other in ((found[name], wanted[name]) for name in wanted):
        got, each = np.asarray(one), np.asarray(other)
        assert (got.dtype, got.shape, got.tobytes()) == (each.dtype, each.shape, each.tobytes())


def last_row(outputs: Any) -> Any:
    """The last time step of outputs, without its axis."""
    is_one = not isinstance(outputs, dict)
    return outputs[-1] if is_one else {name: each[-1] for name, each in outputs.items()}


def test_steps_and_streams(client: Client, served: Served) -> None:
    """Single steps, chunks, the last alone, and a stream that joins what it sends."""
    with client.session(served.name) as session:
        talk = Talk(served, session)
        for length in (0, 1, 17, 0):
            talk.step(length)
        x, wanted = talk.next(9)
        last = (
            {n: each[-1] for n, each in wanted.items()} if isinstance(wanted, dict) else wanted[-1]
        )
        same(session.step(x, return_sequences=False), last)
        steps = [talk.next(length) for length in (1, 5, 0, 0, 12, 0)]
        found = session.stream([x for x, _ in steps])
        for got, (_, wanted) in zip(found, steps, strict=True):
            same(got, wanted)
        talk.check_state()


def test_messages_of_many_sessions(client: Client, served: Served) -> None:
    """Ragged steps of many sessions at once."""
    talks = [Talk(served, client.session(served.name, id=f"g:{i}"), i) for i in range(40)]
    for turn in range(3):
        steps = {each.session: each.next((i + turn) % 5) for i, each in enumerate(talks)}
        found = client.step_many({session: x for session, (x, _) in steps.items()})
        for session, (_, wanted) in steps.items():
            same(found[session], wanted)
    for talk in talks:
        talk.check_state()
        talk.session.close()


def test_whole_sequences(client: Client, served: Served) -> None:
    """Predict of many sequences from the initial state and from others, with their final states,
    among them integers and bools."""
    rng = np.random.default_rng(1)
    lengths = (3, 17, 1, 8)
    before = [served.run(served.random(rng, 1 + i))[1] for i in range(len(lengths))]
    for starts in ([None] * len(lengths), before):
        xs = [served.random(rng, length) for length in lengths]
        results = [served.run(x, start) for x, start in zip(xs, starts, strict=True)]
        ys, finals = client.predict(
            served.name,
            [plain(x) for x in xs],
            initial=None if starts[0] is None else stacked(before),
            return_state=True,
        )
        for y, (wanted, _) in zip(ys, results, strict=True):
            same(y, plain(wanted))
        same(finals, stacked([after for _, after in results]))


def stacked(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The states of several sequences, [B, *shape] by name."""
    return {name: np.stack([each[name] for each in states]) for name in states[0]}


def test_a_state_moves(client: Client, served: Served) -> None:
    """Exported, imported, forked and set, each copy goes its own way."""
    with client.session(served.name) as session:
        talk = Talk(served, session)
        talk.check_state()
        talk.step(6)
        state = talk.check_state()
        kept = State.from_bytes(state.to_bytes(), client.model(served.name))
        assert kept == state
        with (
            client.session(served.name, state=kept) as opened,
            client.session(served.name, state=state.tensors) as named,
            session.fork() as fork,
        ):
            for seed, other in enumerate((opened, named, fork), 1):
                copy = Talk(served, other, seed, talk.states)
                copy.check_state()
                copy.step(7)
                copy.check_state()
        past = talk.states
        talk.step(3)
        session.set_state(state.tensors)
        talk.states = past
        talk.check_state()
        talk.step(4)
        talk.check_state()
