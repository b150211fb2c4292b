"""Windows of the module way: each module is exported with a window, and streamed as a server does.

The oracle is the module's own forward() on every window alone, in float64.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import nn

from exporting import models_of, run_export, save
from lstmserve import Client
from lstmserve.golden import excess
from lstmserve.manifest import ModelFiles, read_model
from lstmserve.spec import MISSING, WindowFill
from lstmserve_export import Refused, export
from lstmserve_export.module.graph import nodes, sequences, window
from lstmserve_export.module.signature.signature import Signature
from modules import (
    COUNT,
    FEATURES,
    HIDDEN,
    LENGTH,
    OUTPUTS,
    Array,
    normal,
    random_rows,
    refusal,
    stream,
    tokens,
)
from serving import COMMAND, Serving
from windowmodules import (
    Attention,
    Bidirectional,
    BothEnds,
    Convolution,
    Mixed,
    Normalised,
    Stepwise,
    Transformer,
    W,
)

Answer = Callable[[nn.Module, dict[str, torch.Tensor]], Any]
assert LENGTH > W > COUNT


def whole(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The answer of a forward(x) that returns one row for a window."""
    return module(*rows.values())


def last(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The last row of a forward(x) that returns all."""
    return module(*rows.values())[:, -1]


def time_first(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The answer to rows with time first."""
    return module(rows["x"].transpose(0, 1))


def features_first(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The answer to rows with features first."""
    return module(rows["x"].transpose(1, 2))


def step_by_step(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The last answer of a forward(x, state), from zeros."""
    x = rows["x"]
    state, y = (x.new_zeros(1, HIDDEN),) * 2, None
    for t in range(x.shape[1]):
        y, state = module(x[:, t], state)
    return y


def with_site(module: nn.Module, rows: dict[str, torch.Tensor]) -> Any:
    """The answers of Mixed, for the site of the last row."""
    return tuple(module(rows["x"], rows["word"], rows["site"][:, -1]).values())


@dataclass(frozen=True)
class Case:
    """A module, an example, and what it answers to one window [1, W, *shape] of each input."""

    make: Callable[[], nn.Module]
    example: Any = field(default_factory=lambda: normal(5, W, FEATURES))
    answer: Answer = whole
    fill: str = "wait"


STATE: Final = (torch.zeros(5, HIDDEN),) * 2
MIXED: Final = (normal(5, W, FEATURES), tokens(5, W), tokens(5))
CASES: Final = {
    "bidirectional": Case(Bidirectional, answer=last),
    "bidirectional, zeros": Case(Bidirectional, answer=last, fill="zeros"),
    "RNN both ways": Case(lambda: Bidirectional(nn.RNN), answer=last),
    "projected both ways": Case(lambda: Bidirectional(proj_size=3), answer=last, fill="zeros"),
    "both ends": Case(BothEnds, normal(W, 5, FEATURES), time_first),
    "attention": Case(Attention, answer=last),
    "attention, a longer example": Case(
        Attention, normal(3, 4 * W, FEATURES), answer=last, fill="zeros"
    ),
    "transformer": Case(Transformer, normal(5, W - 2, FEATURES)),
    "convolution": Case(Convolution, normal(5, FEATURES, W), features_first, "zeros"),
    "normalised": Case(Normalised, fill="zeros"),
    "one step at a time": Case(Stepwise, (normal(5, FEATURES), STATE), step_by_step),
    "several inputs": Case(Mixed, MIXED, with_site, "zeros"),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads cost these small networks more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Made:
    """An exported case."""

    module: nn.Module
    files: ModelFiles
    models: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Exports a case once, with a window of W rows."""
    models = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(name: str) -> Made:
        case = CASES[name]
        torch.manual_seed(3)
        module = case.make().eval()
        model = name.replace(" ", "_").replace(",", "")
        fill: Any = case.fill
        export(module, example=case.example, name=model, models=models, window=W, window_fill=fill)
        return Made(module, read_model(models, model, 1), models)

    return make


def wanted(case: Case, module: nn.Module, rows: Mapping[str, Array]) -> tuple[list[Array], Array]:
    """The answers [N, T, *shape] in float64 to each window alone, in forward's order, and how many
    rows each window lacks; 0 where a step waits."""
    double = copy.deepcopy(module).double()
    steps = next(iter(rows.values())).shape[1]
    lacks = np.maximum(W - 1 - np.arange(steps), 0)
    sequences_of: list[list[Any]] = []
    for n in range(COUNT):
        answers = []
        for t in range(steps):
            window_of = {}
            for name, each in rows.items():
                given = each[n, max(0, t + 1 - W) : t + 1]
                gone = np.zeros((W - len(given), *given.shape[1:]), given.dtype)
                tensor = torch.from_numpy(np.concatenate([gone, given]))[None]
                window_of[name] = tensor.double() if tensor.is_floating_point() else tensor
            with torch.no_grad():
                found = case.answer(double, window_of)
            found = found if isinstance(found, tuple) else (found,)
            is_given = case.fill == "zeros" or not lacks[t]
            answers.append([each[0].numpy() * is_given for each in found])
        sequences_of.append(answers)
    count = len(sequences_of[0][0])
    values = [
        np.array([[step[i] for step in answers] for answers in sequences_of]) for i in range(count)
    ]
    return values, np.broadcast_to(lacks, (COUNT, steps))


@pytest.mark.parametrize("name", CASES)
def test_every_answer_is_that_of_its_window(made: Callable[[str], Made], name: str) -> None:
    """In single steps, in chunks and at once, the answers are forward()'s to each window alone."""
    case, found = CASES[name], made(name)
    spec = found.files.manifest.spec
    assert (spec.kind, spec.window, spec.window_fill) == ("network", W, case.fill)
    assert found.files.manifest.taps == ()
    rows = random_rows(spec)
    answers, lacks = wanted(case, found.module, rows)
    streamed = [
        stream(found.files, rows, list(cuts))
        for cuts in (range(LENGTH + 1), (0, 2, LENGTH), (0, LENGTH))
    ]
    for y in streamed:
        for each, value in zip(spec.outputs, answers, strict=True):
            assert excess(y[each.name], value, 0.0) <= 1, each.name
        assert (MISSING in y) == (case.fill == "wait")
        if MISSING in y:
            assert np.array_equal(y[MISSING], lacks)


# A mean over the window is rounded otherwise in another batch, by as much as the export says.
# A mean over a window is rounded otherwise in another batch, by as much as the export says.
@pytest.mark.parametrize("name", [name for name in CASES if name != "normalised"])
def test_no_bit_depends_on_the_batch_or_the_cut(made: Callable[[str], Made], name: str) -> None:
    """The export measured it, and a stream in pieces has the bits of one at once."""
    found = made(name)
    assert found.files.manifest.parity["is_exact"] is True
    rows = random_rows(found.files.manifest.spec)
    one, other = (stream(found.files, rows, list(c)) for c in (range(LENGTH + 1), (0, LENGTH)))
    for each, value in one.items():
        assert np.array_equal(value, other[each]), each


def test_the_proof_sees_every_fill(made: Callable[[str], Made]) -> None:
    """Sessions that know all rows before, some and none are among the golden vectors, and new
    sessions among what the export alone checks."""
    found = made("attention")
    golden = found.files.golden["random"]
    assert golden.initial is not None
    assert set(golden.initial["window.length"].tolist()) >= {0, 1, (W - 1) // 2, W - 2, W - 1}
    names = found.files.manifest.parity["excess"]
    assert {"random in chunks", "new in single steps", "unusual in a ragged batch"} <= set(names)


def test_served_windows(made: Callable[[str], Made]) -> None:
    """A bidirectional and an attention network stream over gRPC: no row of y until the window is
    whole, or zeros in place of what is missing."""
    bidirectional, attention = made("bidirectional, zeros"), made("attention")
    rows = normal(LENGTH + W, FEATURES)
    serving = Serving(("--models", attention.models), COMMAND)
    with Client(serving.target) as client, torch.no_grad():
        with client.session("bidirectional_zeros") as session:
            y = np.stack([session.step(row) for row in rows.numpy()])
        padded = torch.cat([torch.zeros(W - 1, FEATURES), rows])
        expected = [bidirectional.module(padded[None, t : t + W])[0, -1] for t in range(len(rows))]
        np.testing.assert_allclose(y, np.stack(expected), 1e-4, 2e-5)
        with client.session("attention") as session:
            parts = [session.step(rows[:2].numpy()), session.step(rows[2:].numpy())]
        assert [len(part) for part in parts] == [0, len(rows) - W + 1]
        whole_ones = [rows[t : t + W] for t in range(len(rows) - W + 1)]
        expected = [attention.module(each[None])[0, -1] for each in whole_ones]
        np.testing.assert_allclose(parts[1], np.stack(expected), 1e-4, 2e-5)
    assert serving.stop() == 0


Forward = Callable[[Any, torch.Tensor], Any]


class Free(nn.Module):
    """A module whose forward() is `run`."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.run = run
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.wide = nn.Linear(W * FEATURES, OUTPUTS)
        self.over_time = nn.Linear(W, W)
        self.square = nn.Linear(W * W, OUTPUTS)
        self.row = nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


# Head(lstm(x)) ------------------------------------------------------------------------------------


class Plain(nn.Module):
    """head(lstm(x)) for the last row; `run` is the LSTM's part of forward()."""

    def __init__(self, run: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.run = run
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.run(self.lstm, x))


@pytest.mark.parametrize("fill", ["wait", "grow"])
def test_head_of_lstm_is_recognised(tmp_path: Path, fill: WindowFill) -> None:
    """It becomes kind "lstm", with the fingerprint that its layers give without the module, and its
    answers are forward()'s to each window."""
    torch.manual_seed(3)
    module = Plain(lambda lstm, x: lstm(x)[1][0][-1]).eval()
    options: dict[str, Any] = {"window": W, "window_fill": fill, "models": tmp_path}
    found = export(module, example=normal(5, W, FEATURES), name="m", **options).manifest
    assert (
        found.fingerprint
        == export(module.lstm, module.head, name="l", **options).manifest.fingerprint
    )
    assert (found.spec.kind, found.spec.window, found.spec.window_fill) == ("lstm", W, fill)
    files = read_model(tmp_path, "m", 1)
    rows = random_rows(found.spec)
    y = stream(files, rows, [0, 2, LENGTH])
    x = torch.from_numpy(rows["x"])
    for t in range(W - 1 if fill == "wait" else 0, LENGTH):
        with torch.no_grad():
            expected = module(x[:, max(0, t + 1 - W) : t + 1])
        np.testing.assert_allclose(y["y"][:, t], expected, 1e-4, 2e-5)


def test_nearly_head_of_lstm_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only looks like it keeps its traced graph, with a note; grow has none, and says why."""
    module = Plain(lambda lstm, x: lstm(x if x.shape[1] < W else x + 1)[0][:, -1])
    options: dict[str, Any] = {"example": normal(5, W, FEATURES), "name": "m", "window": W}
    found = export(module, models=tmp_path / "one", **options).manifest
    assert found.spec.kind == "network"
    assert "it looks like head(lstm(x)) and keeps the traced graph" in found.notes[-1]
    with pytest.raises(Refused, match="is not recognised as that: output y differs"):
        export(module, models=tmp_path / "two", window_fill="grow", **options)
    assert not (tmp_path / "two").exists()


# The choice ---------------------------------------------------------------------------------------


def last_of_one(lstm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The LSTM's last row."""
    return lstm(x)[0][:, -1]


def choice_of(module: nn.Module, example: Any, models: Path) -> str:
    """The note that asks for the choice; "" without one."""
    notes = export(module, example=example, name="m", models=models, dry_run=True).manifest.notes
    return next((note for note in notes if note.startswith("choose: ")), "")


def test_the_choice_has_its_figure(tmp_path: Path) -> None:
    """It is the RMS difference of a state that runs on over the example's rows, which follow each
    other, beside the spread of forward()'s own answers."""
    torch.manual_seed(3)
    module = Plain(last_of_one).eval()
    with torch.no_grad():
        for parameter in module.lstm.parameters():
            parameter.mul_(4)  # so that the rows before a window matter
    rows = normal(30, FEATURES)
    example = rows.unfold(0, W, 1).transpose(1, 2).contiguous()
    note = choice_of(module, example, tmp_path)
    with torch.no_grad():
        windows = module(example).double()[1:]
        running = module.head(module.lstm(rows[None])[0][0, W:]).double()
    rms, spread = (running - windows).square().mean().sqrt(), windows - windows.mean(0)
    percent = 100 * float(rms / spread.square().mean().sqrt())
    assert percent > 10
    assert f"the answers then differ from yours by {percent:.0f} % of" in note
    assert f"for the last of {W} rows" in note
    assert "which follow each other" in note
    assert f"--window {W} (window={W} in Python)" in note


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (Stepwise(), (normal(5, FEATURES), STATE)),
        (Free(lambda self, x: self.lstm(x)[0]), normal(5, W, FEATURES)),
    ],
)
def test_without_a_choice_no_note_asks(tmp_path: Path, module: nn.Module, example: Any) -> None:
    """A forward() that answers each row, or whose state is an argument, runs on."""
    assert not choice_of(module, example, tmp_path)


# The command --------------------------------------------------------------------------------------

FLAT: Final = """
from torch import nn

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Linear(4, 3)
        self.head = nn.Linear(3 * 11, 2)

    def forward(self, x):
        return self.head(self.front(x).tanh().flatten(1))
"""


def test_the_command_exports_windows(tmp_path: Path) -> None:
    """--window also says how many rows the example has that the export makes up."""
    (tmp_path / "flat.py").write_text(FLAT)
    space: dict[str, Any] = {}
    exec(compile(FLAT, "flat.py", "exec"), space)
    checkpoint = save(space["Flat"]().state_dict(), tmp_path / "flat.pt")
    flags = ["--module", str(tmp_path / "flat.py") + ":Flat", "--window", "11"]
    result = run_export(checkpoint, *flags, "--window-fill", "zeros")
    assert result.exit_code == 0, result.output
    assert "11 rows" in result.stdout
    spec = read_model(models_of(checkpoint), "flat", 1).manifest.spec
    assert (spec.window, spec.window_fill, spec.inputs[0].shape) == (11, "zeros", (4,))


# What is refused ----------------------------------------------------------------------------------

REFUSED: Final[dict[str, tuple[Forward, dict[str, Any], str]]] = {
    "a mean over the batch": (
        lambda self, x: self.lstm(x - x.mean(0))[0],
        {},
        "rows of a batch influence each other",
    ),
    "attention over the batch": (
        lambda self, x: self.row(torch.softmax(x, 0) * x.sum(1, keepdim=True)),
        {},
        "rows of a batch influence each other",
    ),
    "a scale by the batch, where values are large": (
        lambda self, x: self.lstm(x * (1 + torch.relu(x.abs().mean() - 50)))[0],
        {},
        "mixes the rows of a batch",
    ),
    "one row": (lambda self, x: self.lstm(x)[0], {"window": 1}, "must be an integer in [2, 65536]"),
    "no number": (lambda self, x: self.lstm(x)[0], {"window": "6"}, "window is '6', must be"),
    "another fill": (
        lambda self, x: self.lstm(x)[0],
        {"window_fill": "ones"},
        "window_fill is 'ones', must be one of wait, zeros, grow",
    ),
    "grow": (
        lambda self, x: self.lstm(x)[0][..., :2] + x[..., :2].cumsum(1),
        {"window_fill": "grow"},
        "grow is for head(lstm(x)) alone",
    ),
    "another number of rows": (
        lambda self, x: self.wide(x.flatten(1)),
        {"window": W + 1},
        f"as --window {W}",
    ),
    "all rows of a fixed window": (
        lambda self, x: self.over_time(x.transpose(1, 2)).transpose(1, 2),
        {},
        "return y[:, -1] for the last one, or y[:, None] for all as one",
    ),
    "weights beside an answer": (
        lambda self, x: (self.lstm(x)[0][:, -1], x.sum(-1).softmax(-1)),
        {},
        "the result 1 of forward() has 6 rows for a window of 6, and others",
    ),
    "the last row alone": (lambda self, x: self.row(x), {}, "the module needs no window"),
    "a square window": (
        lambda self, x: self.square(x.flatten(1)),
        {"example": normal(5, W, W)},
        "BT and BFT fit windows of 6 rows; say which with axes=",
    ),
    "no batch": (
        lambda self, x: self.lstm(x)[0],
        {"example": normal(W, FEATURES)},
        "forward() takes one sequence without a batch",
    ),
    "a packed sequence": (
        lambda self, x: (
            self.lstm(
                nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
            )[0].data
        ),
        {},
        "reads a packed sequence",
    ),
    "no answer for zeros": (
        lambda self, x: self.lstm(x / x[:, :1])[0],
        {"window_fill": "zeros"},
        "which --window-fill wait does without",
    ),
    "ids among which 0 is none": (
        lambda self, ids: self.lstm(nn.functional.embedding(ids - 100, self.row.weight))[0],
        {"example": torch.arange(5 * W).reshape(5, W) % 2 + 100},
        "(rows of zeros stand for those that a window lacks)",
    ),
    "a branch on values": (
        lambda self, x: self.lstm(x)[0] if x.sum() > -1e9 else x,
        {},
        "decides by the values of a tensor",
    ),
}


@pytest.mark.parametrize(("run", "options", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, run: Forward, options: dict[str, Any], says: str) -> None:
    """The export writes nothing, and says what to do in one line."""
    torch.manual_seed(0)
    given = {"window": W, "example": normal(5, W, FEATURES)} | options
    example = given.pop("example")
    assert says in refusal(Free(run), example, tmp_path / "models", **given)


def test_all_of_a_window_is_one_answer(tmp_path: Path) -> None:
    """As the refusals say, a[:, None] is one answer with a value for each row of the window."""

    def run(self: Any, x: torch.Tensor) -> Any:
        return {"y": self.lstm(x)[0][:, -1], "weights": x.sum(-1).softmax(-1)[:, None]}

    found = export(Free(run), example=normal(5, W, FEATURES), name="m", models=tmp_path, window=W)
    outputs = {each.name: each.shape for each in found.manifest.spec.outputs}
    assert outputs == {"y": (HIDDEN,), "weights": (1, W)}


def test_axes_choose_among_several(tmp_path: Path) -> None:
    """With axes, a window of as many rows as a row has features is exported."""
    module, example = Free(lambda self, x: self.square(x.flatten(1))), normal(5, W, W)
    found = export(module, example=example, name="m", models=tmp_path, window=W, axes="BT")
    assert found.manifest.spec.inputs[0].shape == (W,)


# Faults of the export -----------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def first_row_of_once(patch: pytest.MonkeyPatch) -> None:
    """An input without time has the value of the window's first row in the graph alone."""
    original = Signature.answer_window

    def answer(self: Signature, run: Any, rows: Any) -> Any:
        if any(isinstance(each.shape[0], torch.SymInt) for each in rows.values()):
            rows = {**rows, "site": rows["site"].flip(1)}
        return original(self, run, rows)

    patch.setattr(Signature, "answer_window", answer)


def exchanged_directions(patch: pytest.MonkeyPatch) -> None:
    """The two directions have each other's weights."""
    original = nodes.LayerWeights.places
    patch.setattr(nodes.LayerWeights, "places", lambda *given: original(*given)[::-1])


def forward_only(patch: pytest.MonkeyPatch) -> None:
    """A Scan never reads backwards."""
    original = sequences.helper.make_node

    def make(op: str, *given: Any, **attributes: Any) -> Any:
        if op == "Scan":
            attributes["scan_input_directions"] = [0]
        return original(op, *given, **attributes)

    patch.setattr(sequences.helper, "make_node", make)


def started_from_zeros(patch: pytest.MonkeyPatch) -> None:
    """The start that forward() gives is lost."""
    patch.setattr(window, "batch_first", lambda *_: None)


FAULTS: Final[dict[str, tuple[str, Plant]]] = {
    "the first row of an input without time": ("several inputs", first_row_of_once),
    "directions of a node": ("bidirectional", exchanged_directions),
    "directions of a Scan": ("RNN both ways", forward_only),
    "start of zeros": ("both ends", started_from_zeros),
}


@pytest.mark.parametrize(("name", "plant"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_export_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, plant: Plant
) -> None:
    """Whatever the export gets wrong, it writes nothing."""
    plant(monkeypatch)
    case = CASES[name]
    torch.manual_seed(3)
    assert refusal(case.make(), case.example, tmp_path / "models", window=W)
