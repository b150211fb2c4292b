"""Models without states through the client library, the command line and metrics.

The server has no other model. Every reply has the bits of a plain onnxruntime session on the
model's file, one sequence at a time (tests/sequencegraphs.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.errors import InvalidInput, LstmServeError, ModelNotSteppable
from lstmserve.rows import RowFormat, Rows
from sequencegraphs import LEAST, NETS, SequenceOracle, make_models, random_rows, rows_of
from serving import COMMAND, Serving
from test_cli import Shell

LENGTHS = [9, 4, 30, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder."""
    folder = tmp_path_factory.mktemp("sequences")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    """A server of it, whose messages are short."""
    flags = ("--models", folder, "--length-max", "500", "--message-bytes-max", "4096")
    serving = Serving(flags, COMMAND)
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


def given(name: str, rows: Rows) -> Any:
    """Rows as a caller gives them: an array, or a dict of them."""
    found = RowFormat(NETS[name].spec.inputs).split(rows)
    return found if len(found) > 1 else next(iter(found.values()))


def sequences(name: str, lengths: list[int]) -> list[Rows]:
    """Random sequences of these lengths."""
    return [random_rows(name, np.random.default_rng(i), n) for i, n in enumerate(lengths)]


def check(y: Any, wanted: dict[str, Any]) -> None:
    """y has these outputs, bit for bit."""
    found = y if isinstance(y, dict) else {next(iter(wanted)): y}
    assert list(found) == list(wanted)
    for key, each in wanted.items():
        assert (found[key].dtype, found[key].shape) == (each.dtype, each.shape)
        assert found[key].tobytes() == each.tobytes()


@pytest.mark.parametrize("name", NETS)
def test_the_model_says_that_it_only_predicts(client: Client, name: str) -> None:
    """ModelInfo has no states, and is_streaming is False."""
    info = client.model(name)
    assert (info.kind, info.is_streaming, info.states) == ("network", False, ())
    assert info.outputs == NETS[name].spec.outputs


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_predict(client: Client, folder: Path, name: str, last_only: bool) -> None:
    """Ragged sequences, in one message or in several: the rows that each graph gives, or the last
    of them; the final states are none."""
    oracle = SequenceOracle(folder, name)
    xs = sequences(name, LENGTHS * 8)
    inputs = [given(name, x) for x in xs]
    kind = {"return_sequences": not last_only}
    ys, finals = client.predict(name, inputs, return_state=True, initial={}, **kind)
    assert finals == {}
    for x, y in zip(xs, ys, strict=True):
        wanted = oracle.run(x)
        assert {len(each) for each in wanted.values()} == {rows_of(name, len(x))}
        check(y, {key: each[-1] if last_only else each for key, each in wanted.items()})


async def _predict(target: str, name: str, inputs: list[Any]) -> Any:
    async with AsyncClient(target) as client:
        return await client.predict(name, inputs)


@pytest.mark.parametrize("name", NETS)
def test_the_client_for_asyncio(serving: Serving, folder: Path, name: str) -> None:
    """It has the same answers."""
    oracle, xs = SequenceOracle(folder, name), sequences(name, LENGTHS)
    ys = asyncio.run(_predict(serving.target, name, [given(name, x) for x in xs]))
    for x, y in zip(xs, ys, strict=True):
        check(y, oracle.run(x))


def test_one_row_without_an_axis_of_time(client: Client, folder: Path) -> None:
    """x [I] is a sequence of one row, whose y has no axis of time either."""
    (x,) = sequences("attention", [1])
    (y,) = client.predict("attention", [x[0]])
    check(y, {"y": SequenceOracle(folder, "attention").run(x)["y"][0]})


def test_sessions_are_refused(client: Client) -> None:
    """The error says how to call the model, and how streams are served."""
    with pytest.raises(ModelNotSteppable, match="--window W") as caught:
        client.session("answer")
    assert "use Predict" in str(caught.value)
    assert "predict()" in str(caught.value)


def test_bad_calls(client: Client) -> None:
    """A state, NaN, a sequence longer than a message, and one that the network does not take: each
    has an error of its own, and the next call is answered."""
    (x,) = sequences("convolution", [9])
    with pytest.raises(ValueError, match="convolution has no states: give none"):
        client.predict("convolution", [x], initial={"h": np.zeros((1, 4))})
    with pytest.raises(ValueError, match="convolution has no states: give none"):
        client.session("convolution", state={"h": np.zeros(4)})
    with pytest.raises(InvalidInput, match="NaN"):
        client.predict("convolution", [x * np.nan])
    with pytest.raises(InvalidInput, match="raise --message-bytes-max"):
        client.predict("convolution", [np.zeros((500, 3))])
    short = LEAST["convolution"] - 1
    with pytest.raises(LstmServeError, match=f"sequence 1, which has {short} rows") as caught:
        client.predict("convolution", [x, x[:short], x])
    assert caught.value.reason == "MODEL_ERROR"
    assert len(client.predict("convolution", [x])) == 1


# The command line ---------------------------------------------------------------------------------


def lines(values: Any) -> str:
    """Rows of one tensor as CSV."""
    return "".join(",".join(map(str, row)) + "\n" for row in values.reshape(len(values), -1))


def test_predict_prints_the_rows_that_there_are(shell: Shell, folder: Path, tmp_path: Path) -> None:
    """One for each row, fewer, or one for a file; with --last-only one for each file."""
    for name, output in (("attention", "y"), ("convolution", "y"), ("labels", "label")):
        oracle, files, wanted = SequenceOracle(folder, name), [], []
        for i, x in enumerate(sequences(name, [9, 4])):
            files.append(tmp_path / f"{name}{i}.csv")
            files[-1].write_text(lines(x))
            wanted.append(lines(oracle.run(x)[output]))
        assert shell.out("predict", name, *files) == "\n".join(wanted)
        lasts = [each.splitlines()[-1] for each in wanted]
        assert shell.out("predict", name, *files, "--last-only").splitlines() == lasts


def test_several_tensors_in_a_line(shell: Shell, folder: Path, tmp_path: Path) -> None:
    """Inputs and outputs in the spec's order."""
    (x,) = sequences("answer", [5])
    rows, y = (
        RowFormat(NETS["answer"].spec.inputs).split(x),
        SequenceOracle(folder, "answer").run(x),
    )
    cells = [[*map(str, a), str(b)] for a, b in zip(rows["x"], rows["kind"], strict=True)]
    (tmp_path / "x.csv").write_text("".join(",".join(each) + "\n" for each in cells))
    line = [*map(str, y["score"].ravel()), str(y["best"][0]), str(y["top"][0])]
    assert shell.out("predict", "answer", tmp_path / "x.csv") == ",".join(line) + "\n"


def test_models_and_refusals(shell: Shell, tmp_path: Path) -> None:
    """KIND says that the model takes whole sequences; `step` and a file that is too short end with
    one line."""
    table = shell.out("models").splitlines()
    assert all("network (whole sequences)" in line for line in table[1:])
    assert len(table) == 1 + len(NETS)
    said = shell.refusal("step", "attention", text="1,2,3\n")
    assert "attention has no states: it reads whole sequences" in said
    assert "lstmserve predict" in said
    (tmp_path / "short.csv").write_text("1,2,3\n")
    assert "may need more rows" in shell.refusal("predict", "labels", tmp_path / "short.csv")


def test_metrics(serving: Serving, client: Client) -> None:
    """The rows of each sequence are counted, and the model has no slots."""
    (x,) = sequences("attention", [4])
    before = serving.metric("lstm_rows_total", model="attention")
    client.predict("attention", [x, x])
    assert serving.metric("lstm_rows_total", model="attention") == before + 8
    assert serving.metric("lstm_slots", model="attention", state="used") == 0
    assert serving.metric("lstm_model_difference", model="attention") == 0
