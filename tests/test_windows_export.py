"""--window of the state_dict way: every answer is torch's own to the last W rows, from the initial
state; pairs are windows; and pairs of a fixed length ask for the choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporting import (
    HIDDEN,
    INPUTS,
    OUTPUTS,
    Net,
    exported,
    models_of,
    refused,
    rows,
    run_export,
    save,
)
from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import INITIAL, Pool
from lstmserve.golden import excess
from lstmserve.graph.builder import GraphBuilder
from lstmserve.manifest import ModelFiles, read_model
from lstmserve.rows import RowFormat
from lstmserve.spec import KNOWN, MISSING, WINDOW_FILLS, WINDOW_MAX, WindowFill
from lstmserve_export import Refused, export

Arrays = dict[str, np.ndarray[Any, Any]]
WINDOW = 6


class Whole(nn.Module):
    """A module with one of everything around an nn.LSTM, and what export() is given for it."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, **sizes)
        width = (self.lstm.proj_size or HIDDEN) * (1 + self.lstm.bidirectional)
        self.head = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, OUTPUTS))
        self.parts: dict[str, Any] = {}
        self.embed: nn.Embedding | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, T, I] or tokens [N, T] -> y [N, O] of the last row."""
        parts, dtype = self.parts, self.lstm.weight_hh_l0.dtype
        x = x.to(dtype) if self.embed is None else self.embed(x)
        if "input_mean" in parts:
            x = (x - torch.tensor(parts["input_mean"])) / torch.tensor(parts["input_scale"])
        state = None
        if "initial_state" in parts:
            state = tuple(
                torch.tensor(each, dtype=dtype)[:, None].repeat(1, len(x), 1)
                for each in parts["initial_state"]
            )
        y = self.head(self.lstm(x, state)[0][:, -1])
        if "residual" in parts:
            y = y + x[:, -1, list(parts["residual"])]
        if "output_scale" in parts:
            y = y * torch.tensor(parts["output_scale"])
        return y


def two_layers() -> Whole:
    """Two layers and a head."""
    return Whole(num_layers=2)


def both_ways() -> Whole:
    """A bidirectional network, which without a window takes whole sequences only."""
    return Whole(bidirectional=True, num_layers=2)


def projected() -> Whole:
    """Projections in both directions."""
    return Whole(bidirectional=True, proj_size=3)


def tokens() -> Whole:
    """A table of tokens in front."""
    net = Whole()
    net.embed = nn.Embedding(7, INPUTS)
    net.parts["embedding"] = net.embed
    return net


def everything() -> Whole:
    """Means and scales, a residual and a learned initial state."""
    net, rng = Whole(), np.random.default_rng(2)
    net.parts = {
        "input_mean": np.arange(INPUTS) - 1.5,
        "input_scale": np.arange(INPUTS) + 0.5,
        "output_scale": np.full(OUTPUTS, 3.0),
        "residual": (4, 0, 1),
        "initial_state": tuple(rng.uniform(-0.9, 0.9, (2, 1, HIDDEN))),
    }
    return net


NETS = (two_layers, both_ways, projected, tokens, everything)
WAYS = [
    (net, fill) for n, net in enumerate(NETS) for fill in WINDOW_FILLS if n < 1 or fill != "wait"
]
WAYS += [(both_ways, "wait")]


def write(folder: Path, net: Whole, window: int, fill: WindowFill | None) -> ModelFiles:
    """Exports the net with a window and reads the folder as a server does."""
    parts = {"models": folder, "window": window, "window_fill": fill, **net.parts}
    done = export(net.lstm, net.head, name="net", **parts)
    return read_model(folder, "net", done.manifest.version)


@torch.no_grad()
def of_windows(net: Whole, x: np.ndarray, window: int, fill: WindowFill) -> np.ndarray:
    """y [T, O] of torch in float64 for each of the rows x [T, ...]; NaN where none is given."""
    net.double()
    answers = np.full((len(x), OUTPUTS), np.nan)
    for t in range(len(x)):
        part = x[max(0, t + 1 - window) : t + 1]
        if fill == "zeros":
            part = np.pad(part, [(window - len(part), 0), *[(0, 0)] * (x.ndim - 1)])
        if fill != "wait" or len(part) == window:
            answers[t] = net(torch.from_numpy(part[None])).numpy()[0]
    return answers


def streamed(files: ModelFiles, x: np.ndarray, cuts: list[int]) -> Arrays:
    """The results [T, ...] of a new session of the server's own pool and kernel, which gives the
    rows x [T, ...] in chunks that end at `cuts`, beside another session."""
    network, spec = files.network, files.manifest.spec
    pool = Pool(network.layout, 64)
    kernel, inputs = Kernel(network, pool, "cpu", 1), RowFormat(spec.inputs)
    slots, found, start = np.array([INITIAL, INITIAL]), [], 0
    for stop in cuts:
        part = np.stack([x[start:stop], x[:1].repeat(stop - start, axis=0)], axis=1)
        write = pool.take(2)
        y = kernel.run(
            inputs.pack({spec.inputs[0].name: part}),
            np.array([stop - start, 1], np.int32),
            slots,
            write,
        )
        found.append(y[:, 0])
        slots, start = write, stop
    return RowFormat(spec.results).split(np.concatenate(found))


@pytest.mark.parametrize(("make", "fill"), WAYS)
def test_every_answer_is_torchs_to_its_window(
    tmp_path: Path, make: Callable[[], Whole], fill: WindowFill
) -> None:
    """Whatever stands around the LSTM, a stream in single steps, in chunks and at once gives what
    torch gives for the last rows alone; a row that waits says how many rows are missing."""
    net = make()
    files = write(tmp_path, net, WINDOW, fill)
    x = rows(1, 20)[0] * 2
    if net.embed is not None:
        x = np.random.default_rng(3).integers(1, 7, 20)
    wanted = of_windows(net, x, WINDOW, fill)
    for cuts in (list(range(1, 21)), [3, 4, 11, 20], [20]):
        found = streamed(files, x, cuts)
        has_answer = ~np.isnan(wanted[:, 0])
        assert excess(found["y"][has_answer], wanted[has_answer], 0.0) <= 1
        if fill == "wait":
            assert found[MISSING].tolist() == [5, 4, 3, 2, 1, *[0] * 15]
            assert has_answer.tolist() == [False] * 5 + [True] * 15
        else:
            assert has_answer.all()


def test_a_server_loads_what_was_exported(tmp_path: Path) -> None:
    """Its self-test replays the golden vectors, of whole windows and of others, and finds that no
    bit depends on the batch."""
    net = both_ways()
    files = write(tmp_path, net, WINDOW, None)
    assert files.manifest.spec.window_fill == "wait"
    assert files.manifest.parity["is_exact"]
    assert sorted(files.golden) == ["new", "parity"]
    assert files.golden["new"].initial is None
    known = files.golden["parity"].initial[KNOWN]
    assert known.min() == 0
    assert known.max() == WINDOW - 1
    lacks = files.golden["parity"].outputs[MISSING]
    assert lacks.max() > 0
    assert not files.golden["parity"].outputs["y"][lacks > 0].any()
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 26))
    assert model.is_exact
    assert model.spec.is_streaming


def test_a_long_window_of_a_large_network_has_small_golden_vectors(tmp_path: Path) -> None:
    """golden.npz and the checks do not grow with the window as its rows do."""
    lstm = nn.LSTM(24, 200)
    files = export(lstm, name="net", models=tmp_path, window=168)
    assert files.bytes < 4_000_000


@pytest.mark.parametrize("window", [2, 40, 300])
def test_windows_of_any_size(tmp_path: Path, window: int) -> None:
    """Two rows, and more rows than the random sequences of a new session have."""
    net = two_layers()
    files = write(tmp_path, net, window, "grow")
    x = rows(1, window + 3)[0]
    found, wanted = streamed(files, x, [len(x)]), of_windows(net, x, window, "grow")
    assert excess(found["y"], wanted, 0.0) <= 1


def test_the_fingerprint_has_window_and_fill(tmp_path: Path) -> None:
    """Sessions must not move between models that read their states otherwise."""
    net, found = two_layers(), set()
    for window in (0, 4, 5):
        for fill in WINDOW_FILLS if window else (None,):
            found.add(write(tmp_path, net, window, fill).manifest.fingerprint)
    assert len(found) == 7


FAULTS = {
    "another answer than the last row's": ("window/last_row", np.array(WINDOW - 2)),
    "rows kept that are one too old": ("window/kept", np.maximum(np.arange(WINDOW - 1) - 1, 0)),
    "windows one row late": ("window/within", np.arange(-1, WINDOW - 1)[:, None]),
    "a row that waits too long": ("window/most", np.array(WINDOW)),
}


@pytest.mark.parametrize(("constant", "value"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_graph_fails_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: np.ndarray
) -> None:
    """The export compares the pool's graph with torch, so it finds a window that is off by one."""
    right = GraphBuilder.constant
    wrong: list[str] = []

    def planted(self: GraphBuilder, name: str, array: np.ndarray) -> str:
        if name == constant:
            wrong.append(name)
            array = value.astype(array.dtype)
        return right(self, name, array)

    monkeypatch.setattr(GraphBuilder, "constant", planted)
    with pytest.raises(
        Refused, match=r"parity failed: .* the allowed difference; nothing was written"
    ):
        write(tmp_path, two_layers(), WINDOW, "wait")
    assert wrong
    assert not (tmp_path / "net").exists()


# Pairs --------------------------------------------------------------------------------------------


@torch.no_grad()
def pairs(net: Net, x: np.ndarray) -> Arrays:
    """x [N, T, I], and y [N, T, O] of a forward() that reads each sequence from the start."""
    y = net.fc(net.lstm(torch.from_numpy(x).transpose(0, 1))[0]).transpose(0, 1)
    return {"x": x, "y": y.numpy()}


def windowed(net: Net, x: np.ndarray, window: int) -> np.ndarray:
    """y [N, T, O] of the last rows of each window, of which the first lack rows."""
    parts = [
        pairs(net, x[:, max(0, t + 1 - window) : t + 1])["y"][:, -1] for t in range(x.shape[1])
    ]
    return np.stack(parts, axis=1)


def with_pairs(folder: Path, net: nn.Module, arrays: Arrays, *flags: str) -> tuple[Path, list[str]]:
    """The checkpoint and the flags."""
    np.savez(folder / "pairs.npz", **arrays)
    return save(net.state_dict(), folder / "net.pt"), [
        "--golden",
        str(folder / "pairs.npz"),
        *flags,
    ]


GOOD: dict[str, tuple[str, Callable[[Net], Arrays]]] = {
    "windows and their last answers": (
        "wait",
        lambda net: {"x": (x := rows(9, WINDOW)), "y": pairs(net, x)["y"][:, -1]},
    ),
    "longer sequences and their last answers": (
        "zeros",
        lambda net: {"x": (x := rows(3, 11)), "y": windowed(net, x, WINDOW)[:, -1]},
    ),
    "an answer for each row": (
        "wait",
        lambda net: {"x": (x := rows(3, 11)), "y": windowed(net, x, WINDOW)},
    ),
    "an answer for each row, where those of the first rows have no meaning": (
        "wait",
        lambda net: {
            "x": (x := rows(3, 11)),
            "y": windowed(net, x, WINDOW) * (np.arange(11) >= WINDOW - 1)[:, None],
        },
    ),
    "windows that grow": (
        "grow",
        lambda net: {"x": (x := rows(3, 11)), "y": windowed(net, x, WINDOW)},
    ),
    "one sequence that is shorter than a window": ("grow", lambda net: one(pairs(net, rows(2, 4)))),
    "many windows": (
        "grow",
        lambda net: {"x": (x := rows(30, 20)), "y": windowed(net, x, WINDOW)},
    ),
}


def one(arrays: Arrays) -> Arrays:
    """The first sequence alone."""
    return {name: array[0] for name, array in arrays.items()}


@pytest.mark.parametrize(("fill", "make"), GOOD.values(), ids=GOOD)
def test_pairs_of_windows_pass_and_are_kept(
    tmp_path: Path, fill: str, make: Callable[[Net], Arrays]
) -> None:
    """Every y whose window has its rows is compared, and golden.npz keeps some of them."""
    net = Net()
    window = ("--window", str(WINDOW), "--window-fill", fill)
    path, flags = with_pairs(tmp_path, net, make(net), *window)
    files = exported(path, *flags)
    assert sorted(files.golden) == ["new", "parity", "user"]
    assert 0 <= files.manifest.parity["excess"]["user"] <= 1
    case = files.golden["user"]
    assert 1 <= len(case.lengths) <= 64
    assert set(case.lengths) == {1}
    assert files.manifest.notes == ()


SHORT = "give sequences of 6 rows or more, each with the y of its last row"
ROWS: dict[str, tuple[str, Callable[[Net], Arrays]]] = {
    "pairs of a running state": (
        "; without --window it would match: each y is of all rows of its sequence so far",
        lambda net: pairs(net, rows(3, 11)),
    ),
    "sequences that are shorter than the window": (
        f"--golden: a sequence has 5 rows, a window has 6: {SHORT}",
        lambda net: pairs(net, rows(3, 5)),
    ),
    "a last answer of too few rows": (
        f"--golden: a sequence has 4 rows, a window has 6: {SHORT}",
        lambda net: {
            "x": (x := rows(3, 7)),
            "lengths": np.array([7, 4, 7]),
            "y": pairs(net, x)["y"][:, -1],
        },
    ),
    "a final state beside a window": (
        "with --window a step leaves no hn: leave it out",
        lambda net: {**pairs(net, rows(3, 6)), "hn": np.zeros((1, 3, HIDDEN))},
    ),
    "an initial state beside a window": (
        "with --window every window begins from the model's initial state: leave h0 and c0 out",
        lambda net: {**pairs(net, rows(3, 6)), "h0": np.ones((1, 3, HIDDEN))},
    ),
    "windows with a forgotten activation": (
        "; with relu before the head (--pre-head) it would match; nothing was written",
        lambda net: {
            "x": (x := rows(9, 6)),
            "y": net.fc(net.lstm(torch.from_numpy(x).transpose(0, 1))[0][-1].relu())
            .detach()
            .numpy(),
        },
    ),
}


@pytest.mark.parametrize(("says", "make"), ROWS.values(), ids=ROWS)
def test_pairs_that_are_not_of_windows_are_refused(
    tmp_path: Path, says: str, make: Callable[[Net], Arrays]
) -> None:
    """One line says what is wrong and what to do, and nothing is written."""
    net = Net()
    path, flags = with_pairs(tmp_path, net, make(net), "--window", str(WINDOW))
    assert says in refused(path, *flags)


def test_a_forgotten_window_is_named(tmp_path: Path) -> None:
    """If each y is of the last rows alone, the refusal says how many these are."""
    net, x = Net(), rows(3, 20)
    path, flags = with_pairs(tmp_path, net, {"x": x, "y": windowed(net, x, 7)})
    assert "; with --window 7 --window-fill grow it would match" in refused(path, *flags)


def test_a_network_that_is_chaotic_on_long_sequences_has_windows(tmp_path: Path) -> None:
    """Rounding grows with the rows of a window alone, so no note speaks of long streams; where a
    window is too long, the refusal says so, and rows of the user's decide."""
    net = Net()
    with torch.no_grad():
        net.lstm.weight_hh_l0.mul_(30)
    parts = {"models": tmp_path, "name": "net"}
    assert export(net.lstm, net.fc, window=4, **parts).manifest.notes == ()
    with pytest.raises(Refused, match=r"on random windows of 64 rows: .* or a shorter window"):
        export(net.lstm, net.fc, window=64, **parts)
    x = rows(3, 64) * 30
    golden = {"x": x, "y": pairs(net, x)["y"][:, -1]}
    (note,) = export(net.lstm, net.fc, window=64, golden=golden, **parts).manifest.notes
    assert note.endswith("the export checked the model on rows of your pairs instead")


# Flags --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--window", "1"), "'--window': 1 is not in the range 2<=x<=65536"),
        (("--window-fill", "grow"), "--window-fill needs --window W"),
        (("--window", "3", "--window-fill", "mean"), "'wait', 'zeros', 'grow'"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    """They end with exit code 2 and name the flag."""
    result = run_export(save(Net().state_dict(), tmp_path / "net.pt"), *flags)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not models_of(tmp_path / "net.pt").exists()


@pytest.mark.parametrize(
    ("window", "fill", "says"),
    [
        (1, None, "window is 1, must be an integer in"),
        (WINDOW_MAX + 1, None, "must be an integer in"),
        (3, "mean", "window_fill is 'mean', must be one of wait, zeros, grow"),
        (0, "wait", "a window fill has a meaning only with a window"),
    ],
)
def test_bad_arguments(tmp_path: Path, window: int, fill: Any, says: str) -> None:
    """export() refuses them by their names."""
    with pytest.raises(Refused, match=says):
        export(nn.LSTM(2, 3), name="net", models=tmp_path, window=window, window_fill=fill)


def test_the_summary_says_what_a_step_is_answered_from(tmp_path: Path) -> None:
    """It names the window and its fill, and does not call a bidirectional model Predict's."""
    path = save(Net(bidirectional=True).state_dict(), tmp_path / "net.pt")
    out = run_export(path, "--window", "24").stdout
    assert "window    24 rows; a session that has given fewer gets no answer (wait)" in out
    assert "computes  y = linear(lstm(x)), of the last 24 rows alone, at every time step" in out
    assert "bidirectional\n" in out
    assert "Predict" not in out


# The choice ---------------------------------------------------------------------------------------


def trained_on_windows(window: int, stride: int, count: int) -> tuple[Net, Arrays, np.ndarray]:
    """A network with a long memory, windows of one series as its pairs, and the series."""
    net = Net()
    with torch.no_grad():
        net.lstm.bias_ih_l0[HIDDEN : 2 * HIDDEN] = 4  # the forget gate
    series = rows(1, window + stride * (count - 1))[0] + 0.5
    x = np.stack([series[n * stride : n * stride + window] for n in range(count)])
    return net, {"x": x, "y": pairs(net, x)["y"][:, -1]}, series


def choices(path: Path, *flags: str) -> list[str]:
    """The notes that ask for the choice."""
    exported_ = exported(path, *flags)
    return [note for note in exported_.manifest.notes if note.startswith("choose: ")]


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_pairs_of_a_fixed_length_ask_for_the_choice(tmp_path: Path, stride: int) -> None:
    """The note says how far the answers of a running state are from those of the windows, on the
    series that the windows are of, and with which flag to export again."""
    net, arrays, series = trained_on_windows(8, stride, 20)
    (note,) = choices(*_unpack(with_pairs(tmp_path, net, arrays)))
    running = pairs(net, series[None])["y"][0, 7::stride][1:]
    wanted = arrays["y"][1:]
    far = np.sqrt(np.mean((running - wanted) ** 2) / np.mean((wanted - wanted.mean(axis=0)) ** 2))
    assert far > 0.2
    how = "which follow each other" if stride < 8 else "one sequence behind the other"
    assert f"on yours, {how}, the answers then differ from yours by {100 * far:.0f} %" in note
    assert note.startswith("choose: your forward() answers for the last of 8 rows.")
    assert "export again with --window 8 (window=8 in Python)" in note


def _unpack(case: tuple[Path, list[str]]) -> tuple[Any, ...]:
    return (case[0], *case[1])


def test_windows_in_no_order_are_put_one_behind_the_other(tmp_path: Path) -> None:
    """Pairs that were drawn at random still show what a running state changes; one sequence alone
    shows nothing, so the note has no figure."""
    net, arrays, _ = trained_on_windows(8, 1, 20)
    order = np.random.default_rng(0).permutation(20)
    drawn = {name: each[order] for name, each in arrays.items()}
    (note,) = choices(*_unpack(with_pairs(tmp_path, net, drawn)))
    assert "on yours, one sequence behind the other, the answers then differ from yours by" in note
    (alone,) = choices(
        *_unpack(with_pairs(tmp_path, net, one(arrays), "--force", "--model-version", "1"))
    )
    assert "%" not in alone
    assert "--window 8" in alone


def test_pairs_that_show_no_fixed_length_ask_nothing(tmp_path: Path) -> None:
    """Answers for every row, and sequences of several lengths, are of a state that runs on."""
    net, x = Net(), rows(4, 8)
    whole = pairs(net, x)
    lengths = np.array([8, 5, 8, 2])
    ragged = {"x": x, "lengths": lengths, "y": whole["y"][np.arange(4), lengths - 1]}
    short = {"x": x[:, :1], "y": pairs(net, x[:, :1])["y"][:, -1]}
    for number, arrays in enumerate((whole, ragged, short), 1):
        path, flags = with_pairs(tmp_path, net, arrays, "--model-version", "1", "--force")
        assert choices(path, *flags) == [], number


def test_a_bidirectional_network_is_offered_a_window(tmp_path: Path) -> None:
    """It has no running state at all, and with a window it takes steps."""
    net = Net(bidirectional=True)
    x = rows(4, 8)
    path, flags = with_pairs(tmp_path, net, {"x": x, "y": pairs(net, x)["y"][:, -1]})
    (note,) = exported(path, *flags).manifest.notes
    assert "with --window 8 (window=8 in Python) a session answers so at each step" in note
