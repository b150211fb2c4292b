"""Networks from a shell: what `models` says of them, and CSV in and out of five states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import stepgraph
from lstmserve import Client
from modelmaking import make_model
from serving import COMMAND, Serving
from stepgraph import INPUTS, OUTPUTS, SPEC, Loop
from test_cli import Shell

ROWS = "1,2,3,0.5,7\n-1,0.25,0,2,-8\n0,0,1,1,9223372036854775807\n"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of the network "n", of "rounded", which is not exact, and of the nn.LSTM "tiny"."""
    folder = tmp_path_factory.mktemp("networks")
    stepgraph.make_model(folder)
    stepgraph.make_model(folder, name="rounded", is_exact=False)
    make_model(folder)
    serving = Serving(("--models", folder), COMMAND)
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def shell(serving: Serving, tmp_path: Path) -> Shell:
    """A shell whose lstmserve talks to the server; it remembers no session yet."""
    return Shell(serving.target, tmp_path)


def expected(text: str = ROWS) -> tuple[list[str], dict[str, np.ndarray]]:
    """What the plain loop makes of CSV rows: lines of CSV, and the states after them."""
    cells = [line.split(",") for line in text.splitlines()]
    given = {
        "x": np.array([row[:3] for row in cells], np.float32),
        "gain": np.array([row[3] for row in cells], np.float32),
        "kind": np.array([row[4] for row in cells], np.int64),
    }
    y, states = Loop().run(INPUTS.pack(given))
    outputs = OUTPUTS.split(y)
    lines = zip(outputs["score"], outputs["label"], strict=True)
    return [",".join(map(str, [*score, label])) for score, label in lines], states


def test_models_says_what_a_network_takes_and_whether_it_is_exact(
    shell: Shell, serving: Serving
) -> None:
    """Kind, inputs, outputs and states with shapes and dtypes; a network that is not exact shows
    the largest difference, which the client and the metric also have."""
    lines = [line.split() for line in shell.out("models").splitlines()]
    header, rows = lines[0], {line[0]: line for line in lines[1:]}
    tensors = ["x[3]", "gain", "kind:int64", "score[2]", "label:int64"]
    tensors += ["h[2,4]", "mean[3]", "count:int64", "window[3,2]", "odd[4]:bool"]
    assert header[3:8] == ["KIND", "EXACT", "INPUTS", "OUTPUTS", "STATES"]
    assert rows["n"][1:-2] == ["1", "cpu", "network", "yes", *tensors]
    assert rows["tiny"][3:5] == ["lstm", "yes"]
    with Client(serving.target) as client:
        found = {each.name: each for each in client.models()}
    assert [found[name].is_exact for name in ("n", "rounded", "tiny")] == [True, False, True]
    assert found["n"].difference == found["tiny"].difference == 0
    difference = found["rounded"].difference
    assert 0 < difference < 1e-5
    assert rows["rounded"][3:-2] == ["network", "to", f"{difference:.1g}", *tensors]
    metric = "lstm_model_difference"
    assert serving.metric(metric, model="rounded") == difference
    assert serving.metric(metric, model="n") == 0


def test_steps_and_sequences_are_csv(shell: Shell) -> None:
    """The columns of a row are the inputs in the spec's order, and likewise the outputs; a session
    goes on from command to command, bit for bit."""
    wanted, _ = expected()
    first, second = ROWS.splitlines(True)[0], "".join(ROWS.splitlines(True)[1:])
    assert shell.out("step", "n", text=ROWS).splitlines() == wanted
    named = ("step", "n", "--session", "s")
    whole = shell.out(*named, text=first) + shell.out(*named, text=second)
    assert whole.splitlines() == wanted
    assert shell.out("predict", "n", "-", text=ROWS).splitlines() == wanted
    last = shell.out("predict", "n", "--last-only", "-", text=ROWS)
    assert last.splitlines() == wanted[-1:]
    refused = shell.refusal("step", "n", text=ROWS + "1,2,3,0.5,1.5\n")
    assert "line 4: column 5: '1.5' is not a whole number" in refused
    assert "3 columns, n takes 5" in shell.refusal("step", "n", text="1,2,3\n")


def test_a_state_is_shown_moved_and_forked(shell: Shell, tmp_path: Path) -> None:
    """`sessions state` has a row for each of the last axis of each state, where a bool is 0 or 1;
    export, import and fork keep every state, and another model refuses it."""
    _, states = expected()
    shell.out("step", "n", "--session", "a", text=ROWS)
    shown = shell.out("sessions", "state", "a")
    wanted = []
    for spec in SPEC.states:
        values = states[spec.name].astype(np.int64 if spec.dtype == "bool" else spec.dtype)
        for i, row in enumerate(values.reshape(-1, spec.shape[-1] if spec.shape else 1)):
            wanted.append(",".join([spec.name, str(i), *map(str, row)]))
    assert shown.splitlines() == wanted
    assert wanted[-1].startswith("odd,0,")
    assert "True" not in shown
    file = tmp_path / "state"
    shell.out("sessions", "export", "a", file)
    assert shell.out("sessions", "import", "n", file, "--session", "b") == "b\n"
    assert shell.out("sessions", "fork", "a", "--to", "c") == "c\n"
    assert shell.out("sessions", "state", "b") == shell.out("sessions", "state", "c") == shown
    listed = [line.split()[:3] for line in shell.out("sessions", "list").splitlines()[1:]]
    assert [each for each in listed if each[0] in "bc"] == [["b", "n:1", "1"], ["c", "n:1", "1"]]
    assert "its states are h, c" in shell.refusal("sessions", "import", "tiny", file)
    assert "MODEL_MISMATCH" in shell.refusal("sessions", "import", "rounded", file)
