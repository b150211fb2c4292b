"""Imported files through the client library and from a shell: states of every dtype and rank move,
and every reply has the bits of plain onnxruntime on the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imported import FILES, Imports, Served, Talk, imports, plain, same
from lstmserve import Client
from lstmserve.client import State
from serving import COMMAND, Serving
from test_cli import Shell

__all__ = ["imports"]  # a fixture


@pytest.fixture(scope="module")
def serving(imports: Imports) -> Iterator[Serving]:
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
def served(request: pytest.FixtureRequest, imports: Imports) -> Served:
    """Each file in turn."""
    return imports[1][request.param]


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


@pytest.fixture
def shell(serving: Serving, tmp_path: Path) -> Shell:
    """A shell whose lstmserve talks to the server."""
    return Shell(serving.target, tmp_path)


def test_a_shell_shows_and_moves_states(shell: Shell, imports: Imports, tmp_path: Path) -> None:
    """`models` has every tensor, `sessions state` shows integers and bools as numbers; export,
    import and fork keep them, and CSV has a bool input as 0 or 1."""
    served = imports[1]["many_dtypes"]
    rows = {line.split()[0]: line.split()[1:] for line in shell.out("models").splitlines()}
    tensors = ["serving_default_frame[3]", "t1st-keys[2]:int64", "gear:int64"]
    tensors += ["StatefulPartitionedCall[2]", "turns:int64", "keys[2]:int64"]
    tensors += ["lstm_cell[2,1,3]", "ring_buffer[4]:int64", "held[2]:bool"]
    assert rows["many_dtypes"][:4] == ["1", "cpu", "network", "yes"]
    assert rows["many_dtypes"][4:-2] == tensors
    assert rows["branched"][4:-2] == [
        "frame[4]",
        "score[3]",
        "memory[2,8]",
        "ticks:int64",
        "loud:bool",
    ]
    x = served.random(np.random.default_rng(0), 5)
    y, states = served.run(x)
    lines = zip(*(each.reshape(5, -1).tolist() for each in x.values()), strict=True)
    text = "".join(",".join(str(value) for part in line for value in part) + "\n" for line in lines)
    shown = shell.out("step", "many_dtypes", "--session", "a", text=text).splitlines()
    wanted = zip(*(each.reshape(5, -1) for each in y.values()), strict=True)
    assert shown == [",".join(str(value) for part in line for value in part) for line in wanted]
    state = shell.out("sessions", "state", "a")
    values = [(n, each.astype(np.int64) if n == "held" else each) for n, each in states.items()]
    assert state.splitlines() == [
        ",".join([name, str(i), *map(str, row)])
        for name, each in values
        for i, row in enumerate(each.reshape(-1, each.shape[-1]))
    ]
    shell.out("sessions", "export", "a", tmp_path / "state")
    assert (
        shell.out("sessions", "import", "many_dtypes", tmp_path / "state", "--session", "b")
        == "b\n"
    )
    assert shell.out("sessions", "fork", "a", "--to", "c") == "c\n"
    assert shell.out("sessions", "state", "b") == shell.out("sessions", "state", "c") == state
    assert "its states are memory" in shell.refusal(
        "sessions", "import", "looped", tmp_path / "state"
    )
    shell.out("step", "looped", "--session", "l", text="1,2,3,4\n")
    shell.out("sessions", "export", "l", tmp_path / "looped")
    refused = shell.refusal("sessions", "import", "branched", tmp_path / "looped")
    assert "MODEL_MISMATCH" in refused  # its states have the same names, and one another shape
