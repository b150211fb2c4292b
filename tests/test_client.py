"""Client and Session against a real server: shapes, states, sessions, step_many and predict."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve import Client
from lstmserve.client import (
    InvalidInput,
    ModelMismatch,
    ModelNotFound,
    ModelNotSteppable,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    SessionReplaced,
    State,
    StepManyFailed,
)
from lstmserve.client.records import LstmInfo
from modelmaking import random_input
from serving import Serve
from zoo import SPECS, TOLERANCE, Zoo

SEED = 20130101


@pytest.fixture
def client(zoo: Zoo) -> Iterator[Client]:
    """A client of the zoo's server."""
    with Client(zoo.target, groups=3) as client:
        yield client


def inputs(model: str, *shape: int, seed: int = SEED) -> npt.NDArray[Any]:
    """x [*shape, I], or tokens [*shape]."""
    return random_input(SPECS[model], shape, seed)


def assert_close(actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Asserts equal shapes, and differences that float32 explains."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("model", ["tiny", "letters", "projected", "learned"])
def test_steps_keep_the_state(client: Client, zoo: Zoo, model: str) -> None:
    """Single time steps, several at once, and only the last one make one sequence for the
    server."""
    x = inputs(model, 9)
    y, hn, cn = zoo.expected(model, x)
    with client.session(model) as session:
        assert_close(session.step(x[0]), y[0])
        assert_close(session.step(x[1:2]), y[1:2])
        assert_close(session.step(x[2:6]), y[2:6])
        assert_close(session.step(x[6:8], return_sequences=False), y[7])
        assert_close(session.step(x[8].tolist(), return_sequences=False), y[8])
        assert session.step_count == session.info().step == 5
        h, c = session.state()
    assert_close(h, hn)
    assert_close(c, cn)


def test_outputs_belong_to_the_caller(client: Client) -> None:
    """y is float32 and writable, so that torch takes it without a copy or a warning."""
    with client.session("tiny") as session:
        y = session.step([1, 2, 3])
    assert y.dtype == np.float32
    assert y.flags.writeable


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        ("tiny", 1.0, r"\[3\] or \[T, 3\], T >= 1, not \[\]"),
        ("tiny", [1.0, 2.0], r"not \[2\]"),
        ("tiny", np.zeros((1, 2, 3)), r"not \[1, 2, 3\]"),
        ("tiny", np.zeros((0, 3)), r"not \[0, 3\]"),
        ("tiny", [], r"not \[0\]"),
        ("tiny", ["a", "b", "c"], "not <U1"),
        ("tiny", [1j, 0, 0], "not complex128"),
        ("tiny", [[1, 2, 3], [4]], "ragged"),
        ("tiny", None, "not object"),
        ("tiny", [1, 2, np.nan], r"NaN or infinite.*NON_FINITE"),
        ("tiny", [1e39, 0, 0], r"NaN or infinite.*NON_FINITE"),
        ("tiny", np.zeros((10_001, 3)), "10001 rows, tiny takes 10000.*TOO_LONG"),
        ("letters", 1.0, "tokens: one integer, or .* not float64"),
        ("letters", [[1, 2]], r"not \[1, 2\]"),
        ("letters", [], r"not \[0\]"),
        ("letters", True, "not bool"),
        ("letters", [1, 10], r"not in \[0, 10\).*BAD_TENSOR"),
        ("letters", -1, r"not in \[0, 10\).*BAD_TENSOR"),
    ],
)
def test_nothing_is_guessed(client: Client, model: str, x: Any, message: str) -> None:
    """A wrong shape, type or value is a ValueError that says what is expected, and makes no
    step."""
    with client.session(model) as session:
        with pytest.raises(ValueError, match=message):
            session.step(x)
        assert session.info().step == 0


def test_sessions_start_where_they_are_told(client: Client, zoo: Zoo) -> None:
    """A state by name, set_state and an imported State are the state of the next step."""
    x, h0, c0 = inputs("projected", 3), np.full((2, 4), 0.25), np.full((2, 6), -0.5)
    given = {"c": c0, "h": h0}  # in any order
    expected = zoo.expected("projected", x, h0, c0)[0]
    with client.session("projected", state=given) as session:
        assert_close(session.step(x), expected)
    with client.session("projected") as session:
        session.step(x)
        before = session.incarnation
        session.set_state(given)
        assert session.incarnation != before
        assert_close(session.step(x), expected)
        assert session.step_count == session.info().step == 2
    with client.session(
        "projected", state=State({"h": np.float32(h0), "c": np.float32(c0)})
    ) as session:
        assert_close(session.step(x), expected)


@pytest.mark.parametrize("name", ["h", "c"])
def test_states_of_another_shape_are_refused(client: Client, name: str) -> None:
    """A state with a batch axis, or too narrow, is a ValueError with the shape it must have."""
    good = {"h": np.zeros((2, 4)), "c": np.zeros((2, 6))}
    for shape in ((2, 1, 6), (2, 3), (2,)):
        with pytest.raises(ValueError, match=rf"{name} is float32 of the shape \[2, [46]\], not"):
            client.session("projected", state={**good, name: np.zeros(shape)})
    for bad in ({}, {name: good[name]}, {**good, "d": np.zeros(2)}):
        with pytest.raises(ValueError, match="projected has the states h, c: give them by name"):
            client.session("projected", state=bad)


def test_an_exported_state_goes_on_elsewhere(client: Client) -> None:
    """A State survives serialization, and opens a session with the same bits as the first."""
    x = inputs("tiny", 6)
    with client.session("tiny") as first:
        first.step(x[:3])
        model = client.model("tiny")
        state = State.from_bytes(first.state().to_bytes(), model)
        assert state == first.state()
        with client.session("tiny", state=state) as second:
            assert second.step_count == 1
            np.testing.assert_array_equal(first.step(x[3:]), second.step(x[3:]))
        with pytest.raises(ModelMismatch):
            client.session("tiny", version=1, state=state)
    for broken in (b"", b"\xff", first_half(state)):
        with pytest.raises(ValueError, match=r"lstmserve.v1.State|not a state of tiny"):
            State.from_bytes(broken, model)


def first_half(state: State) -> bytes:
    """A State of fewer layers."""
    return State({name: each[:1] for name, each in state.tensors.items()}).to_bytes()


def test_forks_part(client: Client) -> None:
    """A fork continues from the same step, and then the two sessions are independent."""
    x = inputs("tiny", 4)
    with client.session("tiny") as origin:
        origin.step(x[:2])
        with origin.fork() as fork, origin.fork("named") as named:
            assert fork.id.partition(":")[0] == origin.id.partition(":")[0]
            assert named.id == "named"
            y = origin.step(x[2])
            origin.step(x[3])
            assert fork.step_count == 1
            np.testing.assert_array_equal(fork.step(x[2]), y)
            np.testing.assert_array_equal(named.step(x[2]), y)


def test_ids_are_taken_resumed_and_restarted(client: Client, zoo: Zoo) -> None:
    """A taken id is refused, resumed or replaced, and the old handle gets an error after that."""
    x = inputs("tiny", 2)
    y = zoo.expected("tiny", x)[0]
    with client.session("tiny", id="mine", keep=True) as first:
        first.step(x[0])
    with pytest.raises(SessionExists):
        client.session("tiny", id="mine")
    with pytest.raises(ModelMismatch):
        client.session("letters", id="mine", if_exists="resume")
    resumed = client.session("tiny", id="mine", if_exists="resume")
    assert (resumed.step_count, resumed.incarnation) == (1, first.incarnation)
    assert_close(resumed.step(x[1]), y[1])
    with client.session("tiny", id="mine", if_exists="restart") as fresh:
        assert_close(fresh.step(x[0]), y[0])
        with pytest.raises(SessionReplaced) as replaced:
            first.step(x[0])
        assert replaced.value.applied is False
    with pytest.raises(SessionClosed):
        fresh.step(x[0])
    fresh.close()


def test_every_session_begins_from_the_learned_state(client: Client, zoo: Zoo) -> None:
    """A new session, its fork and a restarted one have the state of the weights, and an imported
    one has its own."""
    x = inputs("learned", 4)
    y, hn, cn = zoo.expected("learned", x)
    with client.session("learned", id="first") as session:
        start = session.state()
        fork = session.fork()
        assert_close(session.step(x), y)
        with client.session("learned", id="first", if_exists="restart") as restarted:
            for each in (fork, restarted, client.session("learned", state=start)):
                with each:
                    assert_close(each.step(x), y)
                    assert_close(each.state().tensors["h"], hn)
                    assert_close(each.state().tensors["c"], cn)
    for part in start.tensors.values():
        assert part.any()
    zeros = {name: np.zeros_like(each) for name, each in start.tensors.items()}
    with client.session("learned", state=zeros) as session:
        assert_close(session.step(x), zoo.expected("learned", x, zeros["h"], zeros["c"])[0])


def test_attach_takes_what_is_there(client: Client) -> None:
    """attach() finds a session of any model and keeps it open; an unknown id is not found."""
    with client.session("letters", version=1) as session:
        session.step(3)
        with client.attach(session.id) as attached:
            assert (attached.model, attached.version, attached.step_count) == ("letters", 1, 1)
        assert session.info().pending_steps == 0
    with pytest.raises(SessionNotFound) as unknown:
        client.attach("nobody")
    assert unknown.value.applied is False


def test_refusals_at_opening(client: Client) -> None:
    """An unknown model, and a bidirectional one, open no session."""
    with pytest.raises(ModelNotFound):
        client.session("none")
    with pytest.raises(ModelNotSteppable):
        client.session("both")
    with pytest.raises(InvalidInput) as refusal:
        client.session("tiny", id="with space")
    assert refusal.value.reason == "BAD_SESSION_ID"
    with pytest.raises(ValueError, match="groups is 0"):
        Client(groups=0)


def test_models_tell_their_sizes(client: Client) -> None:
    """models() lists every version; a model without one is the newest."""
    models = {(m.name, m.version): m for m in client.models()}
    assert set(models) == {*((name, 1) for name in SPECS), ("tiny", 2)}
    for name, spec in SPECS.items():
        model = models[name, 1]
        assert (model.inputs, model.outputs, model.states) == (
            spec.inputs,
            spec.outputs,
            spec.states,
        )
        assert (model.kind, model.is_streaming) == ("lstm", not spec.bidirectional)
        assert model.lstm is not None
        names = [each.name for each in dataclasses.fields(LstmInfo)]
        assert {n: getattr(model.lstm, n) for n in names} == {n: getattr(spec, n) for n in names}
    assert client.model("tiny") == models["tiny", 2]
    with client.session("tiny", version=1) as old, client.session("tiny") as new:
        assert (old.version, new.version) == (1, 2)
        assert not np.allclose(old.step([1, 2, 3]), new.step([1, 2, 3]))


def test_sessions_are_listed_over_pages(client: Client) -> None:
    """sessions() follows page tokens to the end, and knows the ttl each was opened with."""
    opened = [client.session("tiny", ttl_s=3600.5) for _ in range(1001)]
    other = client.session("letters")
    listed = {info.id: info for info in client.sessions()}
    assert set(listed) == {session.id for session in [*opened, other]}
    assert {listed[session.id].ttl_s for session in opened} == {3600.5}
    assert {info.id for info in client.sessions("letters")} == {other.id}
    for session in [*opened, other]:
        session.close()


def test_step_many_is_step_by_step(client: Client) -> None:
    """Sessions of several models and groups, named or not, get the bits they get alone."""
    rng = np.random.default_rng(SEED)
    print("seed", SEED)
    models = [str(name) for name in rng.choice(["tiny", "letters", "projected"], 40)]
    many = {client.session(model): model for model in models}
    many |= {client.session("tiny", id=f"plain-{i}"): "tiny" for i in range(3)}
    alone = [client.session(model) for model in many.values()]
    for turn in range(4):
        shapes = [() if rng.random() < 0.5 else (int(rng.integers(1, 5)),) for _ in many]
        xs = [
            inputs(model, *shape, seed=turn)
            for model, shape in zip(many.values(), shapes, strict=True)
        ]
        whole = bool(turn % 2)
        ys = client.step_many(dict(zip(many, xs, strict=True)), return_sequences=whole)
        assert list(ys) == list(many)
        for y, session, x in zip(ys.values(), alone, xs, strict=True):
            np.testing.assert_array_equal(y, session.step(x, return_sequences=whole), strict=True)
    assert {session.step_count for session in many} == {4}
    for session in [*many, *alone]:
        session.close()


def test_step_many_tells_who_failed(client: Client) -> None:
    """A closed session fails by its name and alone; a bad shape is refused before anything is
    sent."""
    good, gone, plain = (client.session("tiny", id=name) for name in ("g:1", "g:2", "plain"))
    client.attach(gone.id).close()
    x = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"not \[1\]"):
        client.step_many({good: x, plain: [1.0]})
    with pytest.raises(StepManyFailed, match="1 of 3 sessions failed") as failed:
        client.step_many({good: x, gone: x, plain: x})
    error = failed.value
    assert set(error.results) == {good, plain}
    assert isinstance(error.errors[gone], SessionClosed)
    assert (error.reason, error.applied) == ("SESSION_CLOSED", False)
    assert (good.step_count, plain.step_count, gone.step_count) == (1, 1, 0)
    client.attach(plain.id).close()
    with pytest.raises(StepManyFailed):
        client.step_many({plain: x})
    assert client.step_many({}) == {}
    good.close()


@pytest.mark.parametrize("model", SPECS)
def test_predict_is_the_whole_sequence(client: Client, zoo: Zoo, model: str) -> None:
    """Ragged sequences give what the reference gives, with and without states and histories."""
    spec = SPECS[model]
    xs = [inputs(model, length, seed=length) for length in (5, 1, 8)]
    layers = spec.num_layers * spec.num_directions
    h0 = np.linspace(-1, 1, layers * 3 * spec.state_size).reshape(layers, 3, -1)
    c0 = np.linspace(1, -1, layers * 3 * spec.hidden_size).reshape(layers, 3, -1)
    expected = [zoo.expected(model, x, h0[:, n], c0[:, n]) for n, x in enumerate(xs)]
    initial = {"h": h0.swapaxes(0, 1), "c": c0.swapaxes(0, 1)}
    ys, final = client.predict(model, xs, initial=initial, return_state=True)
    for n, (y, h, c) in enumerate(expected):
        assert_close(ys[n], y)
        assert_close(final["h"][n], h)
        assert_close(final["c"][n], c)
    last = client.predict(model, xs, initial=initial, return_sequences=False)
    for actual, (y, _, _) in zip(last, expected, strict=True):
        assert_close(actual, y[-1])
    (y,) = client.predict(model, [xs[0][0]])
    assert_close(y, zoo.expected(model, xs[0][:1])[0][0])
    with pytest.raises(ValueError, match="at least one sequence"):
        client.predict(model, [])


def test_messages_are_cut_to_the_servers_limit(serve: Serve) -> None:
    """predict and step_many of more than a message's bytes are sent in several messages."""
    serving = serve("--message-bytes-max", str(4 << 20))
    with Client(serving.target) as client:
        limit = client.model("tiny").message_bytes_max
        length = 10_000
        xs = [inputs("tiny", length, seed=n) for n in range(2 * limit // (length * 12) + 2)]
        assert sum(x.nbytes for x in xs) > 2 * limit
        initial = dict.fromkeys("hc", np.zeros((len(xs), 2, 5)))
        ys, final = client.predict("tiny", xs, initial=initial, return_state=True)
        sessions = [client.session("tiny") for _ in xs]
        stepped = client.step_many(dict(zip(sessions, xs, strict=True)), timeout_s=60)
        assert len(ys) == len(xs)
        for n, session in enumerate(sessions):
            np.testing.assert_array_equal(ys[n], stepped[session])
            np.testing.assert_array_equal(final["h"][n], session.state().tensors["h"])


def test_threads_share_a_client(client: Client) -> None:
    """Eight threads step, stream and step_many on one client; each sees its own sequence."""
    x = inputs("tiny", 30)
    with client.session("tiny") as session:
        expected = session.step(x)
    wrong: list[object] = []
    together = threading.Barrier(8, timeout=60)

    def work() -> None:
        together.wait()
        with client.session("tiny") as session:
            ys = [session.step(row) for row in x[:10]]
            ys += list(session.stream(x[10:20]))
            ys += [client.step_many({session: row})[session] for row in x[20:]]
            if not np.array_equal(np.stack(ys), expected):
                wrong.append(ys)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_same_x_from_two_threads_is_two_steps(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is interrupted between its step and taking y gets that y, and no other one."""
    with client.session("tiny") as session, client.session("tiny") as alone:
        ys: list[Any] = []
        thread = threading.Thread(target=lambda: ys.append(session.step([1, 2, 3])))
        release = session._delivery.lock.release

        def interrupted() -> None:
            release()
            if not thread.ident:
                thread.start()
                thread.join()

        monkeypatch.setattr(session._delivery.lock, "release", interrupted)
        first = session.step([1, 2, 3])
        np.testing.assert_array_equal([first, *ys], alone.step([[1, 2, 3]] * 2))
        assert session.info().step == 2
