"""Models with a window through the client library and the command line.

Every reply has the bits of a plain onnxruntime session on the rows of one window
(tests/windowed.py).
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import State
from lstmserve.client.arrays import StepInput
from lstmserve.client.packing import REPLY_BYTES, split
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import KNOWN
from modelmaking import make_model
from serving import COMMAND, Serving
from test_cli import Shell
from windowed import SPECS, W, WindowOracle, make_models, random_rows

LENGTHS = [1, 2, 1, 9, 1, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the windowed models, and "tiny", which has no window."""
    folder = tmp_path_factory.mktemp("windows")
    make_models(folder)
    make_model(folder)
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    """A server of them."""
    serving = Serving(("--models", folder, "--slice-rows-max", "20"), COMMAND)
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    """A client of that server."""
    with Client(serving.target) as client:
        yield client


@pytest.fixture
def shell(serving: Serving, tmp_path: Path) -> Shell:
    """A shell whose lstmserve talks to that server."""
    return Shell(serving.target, tmp_path)


def given(name: str, rows: Rows, *, is_one: bool = False) -> Any:
    """Rows as a caller gives them: an array, or a dict of them; without T for one row."""
    found = RowFormat(SPECS[name].inputs).split(rows)
    found = {key: each[0] if is_one else each for key, each in found.items()}
    return found if len(found) > 1 else next(iter(found.values()))


def check(y: Any, name: str, wanted: Rows, *, is_one: bool = False) -> None:
    """y has these rows and no others; None where one row was stepped and there is none."""
    if is_one and not len(wanted):
        assert y is None
        return
    named = RowFormat(SPECS[name].outputs).split(wanted)
    found = y if isinstance(y, dict) else {next(iter(named)): y}
    assert list(found) == list(named)
    for key, each in named.items():
        values = each[0] if is_one else each
        assert found[key].dtype == values.dtype
        assert found[key].shape == values.shape
        assert found[key].tobytes() == values.tobytes()


class Past:
    """The rows of one session, and what the oracle says of the next ones."""

    def __init__(self, folder: Path, name: str, seed: int = 0) -> None:
        self.oracle, self.name = WindowOracle(folder, name), name
        self._rng = np.random.default_rng(seed)
        self.rows = random_rows(name, self._rng, 0)
        self.missing_rows = W

    def next(self, length: int, *, last_only: bool = False) -> tuple[Rows, Rows]:
        """The next rows, and the y that they give."""
        rows = random_rows(self.name, self._rng, length)
        self.rows = np.concatenate([self.rows, rows])
        first = len(self.rows) - (1 if last_only else length)
        y, self.missing_rows = self.oracle.run(self.rows, first)
        return rows, y


def test_the_model_says_its_window(client: Client) -> None:
    """The client knows the window, and a model without one has 0 rows and no fill."""
    for name, spec in SPECS.items():
        info = client.model(name)
        assert (info.window, info.window_fill) == (W, spec.window_fill)
        assert info.waits == spec.waits
        assert info.is_streaming
    plain = client.model("tiny")
    assert (plain.window, plain.window_fill, plain.waits) == (0, "", False)
    with client.session("tiny") as session:
        assert session.missing_rows == 0
        session.step(np.zeros(3, np.float32))
        assert session.missing_rows == 0


@pytest.mark.parametrize("name", SPECS)
def test_steps(client: Client, folder: Path, name: str) -> None:
    """A row gives y [O] or None, T rows give the y of those that have a whole window; the session
    says how many rows the window lacks."""
    past = Past(folder, name)
    with client.session(name) as session:
        assert session.missing_rows == (W if SPECS[name].waits else 0)
        for length in LENGTHS:
            is_one = length == 1
            rows, y = past.next(length)
            check(session.step(given(name, rows, is_one=is_one)), name, y, is_one=is_one)
            assert session.missing_rows == past.missing_rows
        rows, y = past.next(3, last_only=True)
        check(session.step(given(name, rows), return_sequences=False), name, y, is_one=True)


@pytest.mark.parametrize("name", ["wait", "net"])
def test_the_last_row_of_a_step_without_y_is_none(client: Client, folder: Path, name: str) -> None:
    """With return_sequences False there is one y or None, never a value of nothing."""
    past = Past(folder, name)
    with client.session(name) as session:
        for length in (2, 1, 1, 2):
            rows, y = past.next(length, last_only=True)
            found = session.step(given(name, rows), return_sequences=False)
            check(found, name, y, is_one=True)


@pytest.mark.parametrize("name", ["wait", "net", "grow"])
def test_a_stream_has_a_y_or_none_for_each_x(client: Client, folder: Path, name: str) -> None:
    """However many of the xs travel as one step, each gets the y of its own rows."""
    past, wanted, xs = Past(folder, name), [], []
    for i in range(60):
        length = 1 + i % 3 if i % 2 else 1
        rows, y = past.next(length)
        xs.append(given(name, rows, is_one=i % 2 == 0))
        wanted.append((y, i % 2 == 0))
    with client.session(name) as session:
        found = list(session.stream(iter(xs), window=25))
    assert len(found) == len(wanted)
    for y, (expected, is_one) in zip(found, wanted, strict=True):
        check(y, name, expected, is_one=is_one)


@pytest.mark.parametrize("name", ["wait", "net"])
def test_many_sessions(client: Client, folder: Path, name: str) -> None:
    """step_many has for each session what step() has, also where some give nothing."""
    pasts = [Past(folder, name, i) for i in range(5)]
    sessions = [client.session(name) for _ in pasts]
    for session, past, length in zip(sessions[1:], pasts[1:], range(1, 5), strict=True):
        session.step(given(name, past.next(length)[0]))
    for turn in range(W + 1):
        is_one = turn % 2 == 0
        parts = [past.next(1 if is_one else 1 + i % 3) for i, past in enumerate(pasts)]
        xs = [given(name, rows, is_one=is_one) for rows, _ in parts]
        found = client.step_many(dict(zip(sessions, xs, strict=True)))
        for session, past, (_, y) in zip(sessions, pasts, parts, strict=True):
            check(found[session], name, y, is_one=is_one)
            assert session.missing_rows == past.missing_rows


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_predict(client: Client, folder: Path, name: str, last_only: bool) -> None:
    """Sequences of all lengths, each as T steps of a new session; the final states open one."""
    oracle, rng = WindowOracle(folder, name), np.random.default_rng(5)
    rows = [random_rows(name, rng, length) for length in (1, W, 2, 40, W - 1)]
    xs = [given(name, each, is_one=len(each) == 1) for each in rows]
    ys, finals = client.predict(name, xs, return_sequences=not last_only, return_state=True)
    for y, each in zip(ys, rows, strict=True):
        wanted = oracle.run(each, len(each) - 1 if last_only else 0).y
        check(y, name, wanted, is_one=last_only or len(each) == 1)
    states = {key: each[2] for key, each in finals.items()}
    more = random_rows(name, rng, 4)
    with client.session(name, state=states) as session:
        wanted = oracle.run(np.concatenate([rows[2], more]), 2)
        check(session.step(given(name, more)), name, wanted.y)
        assert session.missing_rows == wanted.missing_rows


def test_a_state_is_a_window_and_not_h_and_c(client: Client, folder: Path) -> None:
    """`h, c = session.state()` fails with the reason; the state has its rows by name, travels as
    bytes, and goes on in another session."""
    past = Past(folder, "wait")
    with client.session("wait") as session:
        session.step(past.next(3)[0])
        state = session.state()
        with pytest.raises(TypeError, match=r"a window is the last rows of its input, not h and c"):
            _, _ = state
        assert state.is_window
        assert list(state.tensors) == ["x.window", KNOWN]
        for key, each in past.oracle.states(past.rows).items():
            assert np.array_equal(state.tensors[key], each)
        again = State.from_bytes(state.to_bytes(), session.model_info)
        assert again == state
        assert again != State({**state.tensors, KNOWN: np.array(2)}, step=state.step)
        fork = session.fork()
        assert fork.missing_rows is None, "not known before its first answer"
        rows, y = past.next(2)
        for other in (fork, client.session("wait", state=state), session):
            check(other.step(given("wait", rows)), "wait", y)
            assert other.missing_rows == 0
        session.set_state(state)
        check(session.step(given("wait", rows)), "wait", y)
    h, c = client.session("tiny").state()
    assert h.shape == c.shape


def test_a_part_of_a_long_step_is_one_whose_reply_a_server_keeps(client: Client) -> None:
    """The server keeps what is missing beside y, so each part has fewer rows than y alone would
    allow."""
    model = client.model("wait")
    x = np.zeros((8192, 3), np.float32)
    whole = StepInput(x.tobytes(), [], len(x), single=False)
    parts = split(model, whole, last_only=False)
    assert sum(part.length for part in parts) == len(x)
    kept_bytes = RowFormat(SPECS["wait"].results).bytes
    assert max(part.length for part in parts) * kept_bytes <= REPLY_BYTES
    assert len(x) * RowFormat(SPECS["wait"].outputs).bytes <= REPLY_BYTES


async def test_asyncio(serving: Serving, folder: Path) -> None:
    """The client for asyncio has the same answers."""
    past = Past(folder, "net")
    async with AsyncClient(serving.target) as client, client.session("net") as session:
        for _ in range(W + 1):
            rows, y = past.next(1)
            check(await session.step(given("net", rows, is_one=True)), "net", y, is_one=True)
            assert session.missing_rows == past.missing_rows
        rows, y = past.next(2)
        found = await client.step_many({session: given("net", rows)})
        check(found[session], "net", y)
        with pytest.raises(TypeError, match="not h and c"):
            list(await session.state())


def test_a_lost_server_s_steps_are_sent_again(serving: Serving, folder: Path) -> None:
    """With a replay log a session goes on at a server that has lost it, with the same windows."""
    past = Past(folder, "wait")
    with Client(serving.target) as client, Client(serving.target) as other:
        session = client.session("wait", id="replayed", replay_steps_max=100)
        for length in (1, 2):
            rows, y = past.next(length)
            check(session.step(given("wait", rows)), "wait", y)
        before = session.incarnation
        other.session("wait", id="replayed", if_exists="restart").close()
        for length in (1, 2, 3):
            rows, y = past.next(length)
            check(session.step(given("wait", rows)), "wait", y)
            assert session.missing_rows == past.missing_rows
        assert session.incarnation != before


# The command line ---------------------------------------------------------------------------------


def lines(rows: Rows) -> str:
    """Rows of one float input as CSV."""
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def test_step_prints_a_line_for_each_row(shell: Shell, folder: Path) -> None:
    """Empty fields where there is no y yet, so that row i is line i; a later command goes on."""
    past = Past(folder, "wait")
    rows, y = past.next(W + 2)
    printed = shell.out("step", "wait", "--session", "cli", text=lines(rows))
    assert printed == ",\n" * (W - 1) + lines(y)
    parsed = list(csv.reader(io.StringIO(printed)))
    assert parsed[: W - 1] == [["", ""]] * (W - 1)
    rows, y = past.next(2)
    assert shell.out("step", "wait", "--session", "cli", text=lines(rows)) == lines(y)
    few = lines(random_rows("wait", np.random.default_rng(0), 2))
    assert shell.out("step", "wait", "--last-only", text=few) == ",\n"
    assert shell.out("step", "wait", "--last-only", text="") == ""


def test_one_column_without_y_is_quoted(shell: Shell, tmp_path: Path, serve: Any) -> None:
    """A lone empty field is written as "", which no reader of CSV skips, nor takes for the empty
    line between two files."""
    folder = tmp_path / "one"
    spec = SPECS["wait"].lstm
    assert spec is not None
    make_model(folder, type(spec)(3, 5, head=spec.head[:0]), name="five", window=(3, "wait"))
    make_model(folder, type(spec)(3, 1), name="one", window=(3, "wait"))
    own = Shell(serve(models=folder).target, tmp_path)
    rows = lines(random_rows("wait", np.random.default_rng(0), 4))
    assert own.out("step", "one", text=rows).splitlines()[:2] == ['""', '""']
    assert own.out("step", "five", text=rows).splitlines()[:2] == [",,,,"] * 2
    (tmp_path / "a.csv").write_text(rows)
    printed = own.out("predict", "one", tmp_path / "a.csv", tmp_path / "a.csv")
    first, second = printed.split("\n\n")
    assert first.splitlines() == second.splitlines()
    assert [row[0] == "" for row in csv.reader(first.splitlines())] == [True, True, False, False]


def test_predict_prints_a_line_for_each_row(shell: Shell, folder: Path, tmp_path: Path) -> None:
    """As step does, for files that are longer and shorter than the window."""
    oracle = WindowOracle(folder, "wait")
    files, wanted, lasts = [], [], []
    for i, length in enumerate((W + 2, 2)):
        rows = random_rows("wait", np.random.default_rng(i), length)
        files.append(tmp_path / f"{i}.csv")
        files[-1].write_text(lines(rows))
        y = lines(oracle.run(rows).y)
        wanted.append(",\n" * (length - y.count("\n")) + y)
        lasts.append(y.splitlines()[-1] if y else ",")
    assert shell.out("predict", "wait", *files) == "\n".join(wanted)
    assert shell.out("predict", "wait", *files, "--last-only").splitlines() == lasts


def test_models_and_state_show_the_window(shell: Shell, client: Client, serving: Serving) -> None:
    """KIND has the window; `sessions state` prints its rows and how many are given; the metric and
    so the status page have it too."""
    printed = shell.out("models")
    assert "lstm, window 5 (wait)" in printed
    assert "lstm (bidirectional), window 5 (wait)" in printed
    assert "network, window 5 (wait)" in printed
    assert "lstm, window 5 (grow)" in printed
    with client.session("wait", id="shown") as session:
        session.step(np.array([[1, 2, 3], [4, 5, 6]], np.float32))
        shown = shell.out("sessions", "state", "shown").splitlines()
    assert shown[2:] == ["x.window,2,1.0,2.0,3.0", "x.window,3,4.0,5.0,6.0", "window.length,0,2"]
    assert shown[0] == "x.window,0,0.0,0.0,0.0"
    _, metrics = serving.get("/metrics")
    infos = [line for line in metrics.splitlines() if line.startswith("lstm_model_info{")]
    by_model = {line.split('model="')[1].split('"')[0]: line for line in infos}
    assert 'window="5 (wait)"' in by_model["wait"]
    assert 'window=""' in by_model["tiny"]


def test_a_stored_state_moves_by_file(shell: Shell, client: Client, folder: Path) -> None:
    """`sessions export` and `import` carry a window that is not full."""
    past = Past(folder, "wait")
    with client.session("wait", id="moved") as session:
        session.step(past.next(3)[0])
        file = Path(shell.environment["XDG_STATE_HOME"]) / "window.state"
        shell.out("sessions", "export", "moved", file)
    opened = shell.out("sessions", "import", "wait", file).strip()
    rows, y = past.next(4)
    assert shell.out("step", "wait", "--session", opened, text=lines(rows)) == ",\n" + lines(y)


def test_many_callers_at_once(serving: Serving, folder: Path) -> None:
    """Sessions whose steps run in one batch, at all fills of their windows, have their own y."""

    async def run() -> None:
        async with AsyncClient(serving.target) as client:

            async def one(seed: int) -> None:
                past = Past(folder, "wait", seed)
                async with client.session("wait") as session:
                    for length in (1 + seed % 4, 1, 2, 1, 5):
                        rows, y = past.next(length)
                        check(await session.step(given("wait", rows)), "wait", y)

            await asyncio.gather(*map(one, range(16)))

    asyncio.run(run())
