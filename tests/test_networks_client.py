"""A network of five states through the client library: inputs, outputs and states by name.

Every reply and every state has the bits of a plain loop over its step graph (tests/stepgraph.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import stepgraph
from lstmserve import Client
from lstmserve.client import Session, State
from serving import COMMAND, Serving
from stepgraph import INPUTS, OUTPUTS, SPEC, Arrays, Loop, random_rows


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server of the network "n"."""
    folder = tmp_path_factory.mktemp("networks")
    stepgraph.make_model(folder)
    serving = Serving(("--models", folder, "--slice-rows-max", "4"), COMMAND)
    with Client(serving.target) as client:
        yield client
    assert serving.stop() == 0


class Net:
    """A session, whose whole past is known by the plain loop."""

    loop = Loop()

    def __init__(self, session: Session, seed: int = 0, states: Arrays | None = None) -> None:
        self.session = session
        self.states = states
        self._rng = np.random.default_rng(seed)

    def next(self, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of the next step, [T, *shape] by name, and its outputs."""
        rows = random_rows(self._rng, length)
        y, self.states = self.loop.run(rows, self.states)
        return INPUTS.split(rows), OUTPUTS.split(y)

    def step(self, length: int) -> None:
        """One step, checked."""
        x, wanted = self.next(length)
        check(self.session.step(x), wanted)

    def check_state(self) -> State:
        """The state is the loop's, by name and in the spec's order."""
        state = self.session.state()
        wanted = stepgraph.initial() if self.states is None else self.states
        assert list(state.tensors) == [each.name for each in SPEC.states]
        check(state.tensors, wanted)
        return state


def check(found: Any, wanted: Any) -> None:
    """The same arrays by name: dtype, shape and bits."""
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        got, each = np.asarray(found[name]), np.asarray(each)
        assert (got.dtype, got.shape, got.tobytes()) == (each.dtype, each.shape, each.tobytes())


def one(tensors: dict[str, Any], at: int) -> dict[str, Any]:
    """One time step of tensors, [*shape]."""
    return {name: each[at] for name, each in tensors.items()}


def test_steps(client: Client) -> None:
    """One time step without its axis, some with it, and the last alone."""
    with client.session("n") as session:
        net = Net(session)
        x, wanted = net.next(1)
        check(session.step(one(x, 0)), one(wanted, 0))
        net.step(1)
        net.step(30)
        x, wanted = net.next(9)
        check(session.step(x, return_sequences=False), one(wanted, -1))
        net.check_state()


def test_a_stream_joins_steps(client: Client) -> None:
    """Each x of a stream has its own outputs, whatever was sent together."""
    with client.session("n") as session:
        net = Net(session)
        steps = [net.next(length) for length in (1, 5, 1, 1, 12, 2)]
        singles = [(one(x, 0), one(y, 0)) for x, y in (net.next(1) for _ in range(20))]
        asked = steps + singles
        for found, (_, wanted) in zip(session.stream([x for x, _ in asked]), asked, strict=True):
            check(found, wanted)
        net.check_state()


def test_many_sessions(client: Client) -> None:
    """Ragged steps of many sessions in one message."""
    nets = [Net(client.session("n", id=f"g:{i}"), i) for i in range(8)]
    for turn in range(3):
        steps = {net.session: net.next(1 + (i + turn) % 5) for i, net in enumerate(nets)}
        found = client.step_many({session: x for session, (x, _) in steps.items()})
        for session, (_, wanted) in steps.items():
            check(found[session], wanted)
    for net in nets:
        net.check_state()
        net.session.close()


@pytest.mark.parametrize("has_initial", [True, False])
def test_predict(client: Client, has_initial: bool) -> None:
    """Whole sequences, from the model's initial state or from others, and their final states."""
    rng, loop = np.random.default_rng(4), Loop()
    rows = [random_rows(rng, length) for length in (3, 17, 1)]
    starts = [loop.run(random_rows(rng, 2))[1] if has_initial else None for _ in rows]
    results = [loop.run(each, start) for each, start in zip(rows, starts, strict=True)]
    ys, finals = client.predict(
        "n",
        [INPUTS.split(each) for each in rows],
        initial=stacked(starts) if has_initial else None,
        return_state=True,
    )
    for found, (wanted, _) in zip(ys, results, strict=True):
        check(found, OUTPUTS.split(wanted))
    check(finals, stacked([end for _, end in results]))


def stacked(states: list[Any]) -> dict[str, Any]:
    """The states of several sequences, [B, *shape] by name."""
    return {each.name: np.stack([state[each.name] for state in states]) for each in SPEC.states}


def test_a_state_moves(client: Client) -> None:
    """Kept as bytes, opened again, forked and set: each goes its own way."""
    with client.session("n") as session:
        net = Net(session)
        net.step(6)
        state = net.check_state()
        kept = State.from_bytes(state.to_bytes(), client.model("n"))
        assert kept == state
        with (
            client.session("n", state=kept) as opened,
            client.session("n", state=state.tensors) as named,
            session.fork() as fork,
        ):
            for seed, other in enumerate((opened, named, fork)):
                copy = Net(other, seed, net.states)
                copy.check_state()
                copy.step(7)
                copy.check_state()
        past = net.states
        net.step(3)
        session.set_state(state.tensors)
        net.states = past
        net.check_state()
        net.step(4)
        net.check_state()
