"""Scalers around a module as it is: raw inputs, raw outputs, and forward() as the user wrote it.

The oracle is a program of scikit-learn and torch, which runs forward() on each prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from torch import nn

import hostile_modules
from exporting import INPUTS, OUTPUTS, run_export
from lstmserve import Client
from lstmserve.manifest import read_model
from lstmserve_export import export
from lstmserve_export.lstm.network import Norm
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.scaling import Columns
from lstmserve_export.module.signature.sampler import Sampler
from lstmserve_export.module.signature.scaled import probe_scaled
from lstmserve_export.scalers.sides import Scalers
from modules import COUNT, LENGTH, Array, refusal, stream
from scalers import MAKERS, Rows, raw_rows, raw_targets
from serving import COMMAND, Serving

WIND, HIDDEN = 2, 6
Scaler = Any


def series(seed: int, count: int = COUNT, length: int = LENGTH) -> Array:
    """Raw rows float32 [count, length, INPUTS]."""
    rows = raw_rows(count * length, seed).reshape(count, length, INPUTS)
    return rows.astype(np.float32)


def scaled(scaler: Scaler, rows: Array) -> torch.Tensor:
    """What scikit-learn makes of raw rows [..., width]."""
    found = scaler.transform(rows.reshape(-1, rows.shape[-1]).astype(np.float64))
    return torch.from_numpy(found.reshape(rows.shape)).float()


def unscaled(scaler: Scaler, answers: torch.Tensor) -> Rows:
    """What scikit-learn makes of scaled answers [N, width]."""
    found: Rows = scaler.inverse_transform(answers.detach().double().numpy())
    return found


def check(files: Any, rows: dict[str, Array], wanted: dict[str, Rows], width: float) -> None:
    """The served graphs give these answers in pieces and in batches of changing order; `width` is
    the largest scale of the output."""
    for cuts in (range(LENGTH + 1), (0, 2, LENGTH)):
        found = stream(files, rows, list(cuts))
        assert found.keys() == wanted.keys()
        for name, each in wanted.items():
            np.testing.assert_allclose(found[name], each, rtol=2e-5, atol=2e-5 * width)


class Plain(nn.Module):
    """head(lstm(x))."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0])


RECOGNISED: dict[str, tuple[Callable[[Rows], Any] | None, Callable[[Rows], Any] | None]] = {
    "both": (MAKERS["StandardScaler"], MAKERS["MinMaxScaler of parts"]),
    "y alone, without mean": (None, MAKERS["StandardScaler without mean"]),
    "x without a scale": (MAKERS["RobustScaler without scale"], None),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_head_of_lstm_with_scalers_is_the_model_of_the_other_way(tmp_path: Path, name: str) -> None:
    """Whether the export traces the module or takes its parts, the fingerprint is one."""
    net = Plain().eval()
    options = {
        side: maker(rows)
        for side, maker, rows in zip(
            ("input_scaler", "output_scaler"),
            RECOGNISED[name],
            (raw_rows(), raw_targets()),
            strict=True,
        )
        if maker is not None
    }
    parts = export(net.lstm, net.fc, name="parts", models=tmp_path, **options)
    whole = export(net, example=series(1), name="whole", models=tmp_path, **options)
    assert whole.manifest.spec.kind == "lstm"
    assert whole.manifest.fingerprint == parts.manifest.fingerprint
    assert whole.manifest.lstm == parts.manifest.lstm
    assert whole.manifest.lstm.input_norm == ("input_scaler" in options)
    assert whole.manifest.lstm.output_norm == ("output_scaler" in options)


class Weather(nn.Module):
    """Two inputs of floats, one of integers, and two results, one of them an integer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.site = nn.Embedding(4, 3)
        self.front = nn.Linear(INPUTS + WIND + 3, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(
        self, x: torch.Tensor, wind: torch.Tensor, site: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        rows = torch.cat([x, wind, self.site(site)], -1)
        y = self.fc(self.gru(torch.relu(self.front(rows)))[0])[:, -1]
        return {"forecast": y, "best": y.argmax(-1)}


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Scaler]]:
    """The folder with Weather as "net", and its scalers by input and output."""
    folder = tmp_path_factory.mktemp("weather")
    wind = np.random.default_rng(5).normal([12, -300], [4, 90], (99, WIND))
    scalers = {
        "x": StandardScaler().fit(raw_rows()),
        "wind": RobustScaler().fit(wind),
        "forecast": MinMaxScaler((-1, 1)).fit(raw_targets()),
    }
    export(
        Weather().eval(),
        example=weather_rows(7),
        name="net",
        models=folder,
        input_scaler={name: scalers[name] for name in ("x", "wind")},
        output_scaler={"forecast": scalers["forecast"]},
    )
    return folder, scalers


def weather_rows(seed: int) -> dict[str, Array]:
    """Raw rows [COUNT, LENGTH, *shape] of each input."""
    rng = np.random.default_rng(seed)
    wind = rng.normal([12, -300], [4, 90], (COUNT, LENGTH, WIND)).astype(np.float32)
    return {"x": series(seed), "wind": wind, "site": rng.integers(0, 4, (COUNT, LENGTH))}


def weather_answers(scalers: dict[str, Scaler], rows: dict[str, Array]) -> dict[str, Rows]:
    """What scikit-learn and forward() give on each prefix."""
    net, steps = Weather().eval(), []
    x, wind = (scaled(scalers[name], rows[name]) for name in ("x", "wind"))
    site = torch.from_numpy(rows["site"])
    for t in range(1, LENGTH + 1):
        found = net(x[:, :t], wind[:, :t], site[:, :t])
        steps.append((unscaled(scalers["forecast"], found["forecast"]), found["best"].numpy()))
    forecast, best = (np.stack(parts, 1) for parts in zip(*steps, strict=True))
    return {"forecast": forecast, "best": best}


def test_scalers_by_name_stand_around_several_inputs_and_outputs(
    weather: tuple[Path, dict[str, Scaler]],
) -> None:
    """Integers pass as they are, and bits do not depend on the batch."""
    folder, scalers = weather
    files = read_model(folder, "net", 1)
    rows = weather_rows(8)
    wanted = weather_answers(scalers, rows)
    check(files, rows, wanted, 1 / scalers["forecast"].scale_.min())
    manifest = files.manifest
    assert manifest.parity["is_exact"]
    assert [each.name for each in manifest.spec.states] == ["gru.h"]
    assert "send wind as it is measured: the model scales it" in manifest.notes
    assert "forecast is scaled back by the model" in manifest.notes


@pytest.fixture(scope="module")
def client(weather: tuple[Path, dict[str, Scaler]]) -> Iterator[Client]:
    """Of a server of Weather as "net", and of Plain with scalers as "plain"."""
    folder, scalers = weather
    net = Plain().eval()
    ends = {"input_scaler": scalers["x"], "output_scaler": scalers["forecast"]}
    export(net.lstm, net.fc, name="plain", models=folder, **ends)
    serving = Serving(("--models", folder), COMMAND)
    with Client(serving.target) as client:
        yield client
    assert serving.stop() == 0


def test_a_served_model_takes_raw_rows_and_its_bits_do_not_depend_on_the_batch(
    client: Client, weather: tuple[Path, dict[str, Scaler]]
) -> None:
    """A network of two inputs: alone step by step, and in one batch of eight."""
    _, scalers = weather
    rows = weather_rows(9)
    wanted = weather_answers(scalers, rows)
    sessions = {client.session("net"): n % COUNT for n in range(8)}
    inputs = {s: {name: each[n] for name, each in rows.items()} for s, n in sessions.items()}
    found = client.step_many(inputs)
    for session, n in sessions.items():
        forecast, best = found[session]["forecast"], found[session]["best"]
        width = 2e-5 / scalers["forecast"].scale_.min()
        np.testing.assert_allclose(forecast, wanted["forecast"][n], rtol=2e-5, atol=width)
        np.testing.assert_array_equal(best, wanted["best"][n])
        with client.session("net") as alone:
            for t in range(LENGTH):
                one = alone.step({name: each[t] for name, each in inputs[session].items()})
                assert one["forecast"].tobytes() == forecast[t].tobytes()


def test_a_served_lstm_takes_raw_rows_and_its_bits_do_not_depend_on_the_batch(
    client: Client, weather: tuple[Path, dict[str, Scaler]]
) -> None:
    """The graph that is built from weights, means and scales: alone step by step, and in one
    batch of eight."""
    _, scalers = weather
    net, rows = Plain().eval(), series(6, 8)
    answers = net(scaled(scalers["x"], rows)).reshape(-1, OUTPUTS)
    wanted = unscaled(scalers["forecast"], answers).reshape(8, LENGTH, OUTPUTS)
    sessions = [client.session("plain") for _ in range(8)]
    found = client.step_many(dict(zip(sessions, rows, strict=True)))
    width = 2e-5 / scalers["forecast"].scale_.min()
    for session, x, each in zip(sessions, rows, wanted, strict=True):
        np.testing.assert_allclose(found[session], each, rtol=2e-5, atol=width)
        with client.session("plain") as alone:
            steps = np.stack([alone.step(row) for row in x])
        assert steps.tobytes() == found[session].tobytes()


class FeaturesFirst(nn.Module):
    """[B, F, T] in, one number for each time step out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.gru = nn.GRU(INPUTS, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(x.transpose(1, 2))[0]).squeeze(-1)


def test_a_scaler_follows_the_features_wherever_their_axis_is(tmp_path: Path) -> None:
    """Features ahead of time, and a result without an axis of features."""
    net, x = FeaturesFirst().eval(), StandardScaler().fit(raw_rows())
    y = MinMaxScaler().fit(raw_targets()[:, :1])
    example = np.ascontiguousarray(series(1).swapaxes(1, 2))
    options = {"input_scaler": x, "output_scaler": y, "name": "net", "models": tmp_path}
    export(net, example=example, **options)
    rows = series(2)
    answers = net(scaled(x, rows).transpose(1, 2)).reshape(-1, 1)
    wanted = unscaled(y, answers).reshape(COUNT, LENGTH)
    check(read_model(tmp_path, "net", 1), {"x": rows}, {"y": wanted}, 1 / y.scale_.min())


class Policy(nn.Module):
    """One time step at a time: the states are arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.cell = nn.LSTMCell(INPUTS, HIDDEN)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(
        self, obs: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        h, c = self.cell(obs, state)
        return self.fc(h), (h, c)


def test_states_are_no_inputs_of_a_scaler(tmp_path: Path) -> None:
    """Among three tensors of floats one is an input, so its scaler needs no name."""
    net, x = Policy().eval(), StandardScaler().fit(raw_rows())
    y = StandardScaler().fit(raw_targets())
    zeros = torch.zeros(COUNT, HIDDEN), torch.zeros(COUNT, HIDDEN)
    options = {"input_scaler": x, "output_scaler": y, "name": "net", "models": tmp_path}
    export(net, example=(series(1)[:, 0], zeros), **options)
    rows, state, steps = series(2), zeros, []
    for t in range(LENGTH):
        answer, state = net(scaled(x, rows[:, t]), state)
        steps.append(unscaled(y, answer))
    wanted = {"y": np.stack(steps, 1)}
    check(read_model(tmp_path, "net", 1), {"obs": rows}, wanted, y.scale_.max())


class BothWays(nn.Module):
    """Reads its rows in both directions, so it streams by windows alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("make", [BothWays, Plain])
def test_a_window_begins_with_raw_zeros(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    """The rows of a window are raw, and so are the zeros that stand for those that are missing."""
    net, window = make().eval(), 4
    x, y = StandardScaler().fit(raw_rows()), MinMaxScaler().fit(raw_targets())
    options = {"input_scaler": x, "output_scaler": y, "name": "net", "models": tmp_path}
    export(net, example=series(1), window=window, window_fill="zeros", **options)
    rows, steps = series(2), []
    filled = np.concatenate([np.zeros((COUNT, window - 1, INPUTS), np.float32), rows], axis=1)
    for t in range(LENGTH):
        answers = net(scaled(x, filled[:, t : t + window]))
        steps.append(unscaled(y, answers if answers.ndim == 2 else answers[:, -1]))
    files = read_model(tmp_path, "net", 1)
    assert files.manifest.spec.kind == ("network" if make is BothWays else "lstm")
    check(files, {"x": rows}, {"y": np.stack(steps, 1)}, 1 / y.scale_.min())


def test_columns_scale_in_the_precision_of_the_tensor() -> None:
    """The reference in float64 has the mean and the scale of scikit-learn to the last bit."""
    scaler = StandardScaler().fit(raw_rows())
    columns = Columns(Norm(scaler.mean_, scaler.scale_), (-1,))
    rows = torch.from_numpy(raw_rows(9, seed=8))
    assert np.array_equal(columns.scaled(rows).numpy(), scaler.transform(rows.numpy()))
    assert columns.scaled(rows.float()).dtype == columns.raw(rows.float()).dtype == torch.float32


def test_random_rows_deviate_by_feature() -> None:
    """A pressure in pascal must not make noise of its own size in a humidity beside it."""
    example = {"x": torch.from_numpy(series(1, 40))}
    rows = Sampler(example, {"x": Axes(0, 1)}).rows(60, 50)["x"].reshape(-1, INPUTS)
    wanted = raw_rows().std(axis=0)
    assert np.all(rows.numpy()[:, :4].std(axis=0) < 1.5 * wanted[:4])
    assert 0.9 < float(rows[:, 4].std()) < 1.1  # a feature that is constant in the example


def test_the_module_itself_is_not_changed(tmp_path: Path) -> None:
    """forward() of the user's module takes scaled rows, before and after."""
    net, x = Plain().eval(), series(1)
    before = net(torch.from_numpy(x)).detach().numpy()
    scaler = StandardScaler().fit(raw_rows())
    export(net, example=x, name="net", models=tmp_path, input_scaler=scaler, dry_run=True)
    assert np.array_equal(net(torch.from_numpy(x)).detach().numpy(), before)
    assert Forward(net, x).scaling.inputs == {}


# --- refusals and notes

X_SCALER = StandardScaler().fit(raw_rows())
WARM = raw_rows()[:, [0, 2, 3, 0, 2]]  # in float64, its multiples have too many digits
WARM_SCALER = MinMaxScaler().fit(np.pi * WARM)
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "several inputs and no name": (
        Weather,
        weather_rows(1),
        {"input_scaler": X_SCALER},
        "forward() has 2 inputs of floats (x, wind): name those that have a scaler",
    ),
    "a name that is no input": (
        Weather,
        weather_rows(1),
        {"input_scaler": {"winds": X_SCALER}},
        "input_scaler: forward() has no input winds of floats; it has x, wind",
    ),
    "an input of integers": (
        Weather,
        weather_rows(1),
        {"input_scaler": {"site": X_SCALER}},
        "forward() has no input site of floats",
    ),
    "an output of integers": (
        Weather,
        weather_rows(1),
        {"output_scaler": {"best": X_SCALER}},
        "output_scaler: forward() has no output best of floats; it has forecast",
    ),
    "another width": (
        Plain,
        series(1),
        {"input_scaler": StandardScaler().fit(raw_rows()[:, :3])},
        "the input scaler has 3 columns, and a row of x is [5]",
    ),
    "more columns than the output": (
        Plain,
        series(1),
        {"output_scaler": X_SCALER},
        "the output scaler has 5 columns, and a row of y is [3]; choose some with --output-columns",
    ),
    "one column for several outputs": (
        Plain,
        series(1),
        {"output_scaler": StandardScaler().fit(raw_targets()[:, :1])},
        "the output scaler has 1 columns, and a row of y is [3]",
    ),
    "min_ and scale_ that only the example shows": (
        Plain,
        (np.pi * WARM[:21]).reshape(3, 7, INPUTS).astype(np.float32),
        {"input_mean": WARM_SCALER.min_, "input_scale": WARM_SCALER.scale_},
        "its mean as min_ and its scale as scale_ of a MinMaxScaler they fit into its range",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_scaler_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    """The line says which inputs or outputs there are, and what to do."""
    make, example, options, says = REFUSED[name]
    assert says in refusal(make().eval(), example, tmp_path / "models", **options)


def test_an_example_that_was_scaled_before_is_noted() -> None:
    """Rows around 0 are twenty deviations from a temperature in kelvin."""
    norm = Norm(X_SCALER.mean_, X_SCALER.scale_)
    example = np.random.default_rng(1).normal(size=(3, 7, INPUTS)).astype(np.float32)
    signature = probe_scaled(Forward(Plain().eval(), example), Scalers({"": norm}))
    (note,) = (each for each in signature.notes if "scales from the mean" in each)
    assert note.startswith("the example's x is 1")
    assert note.endswith("give rows as they are measured, before the scaler")


# --- the command


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Flags of scalers in files."""
    flags = []
    for side, scaler in (("input", X_SCALER), ("output", MinMaxScaler().fit(raw_targets()))):
        arrays = {name: each for name, each in vars(scaler).items() if each is not None}
        np.savez(tmp_path / f"{side}.npz", **arrays)
        flags += [f"--{side}-scaler", str(tmp_path / f"{side}.npz")]
    return flags


def pairs(folder: Path, x: Any, y: Any) -> list[str]:
    """The flag of pairs."""
    arrays = {"x": np.asarray(x, np.float32), "y": np.asarray(y, np.float32)}
    return ["--golden", str(hostile_modules.arrays(folder, **arrays))]


def test_the_command_puts_scalers_around_the_module(tmp_path: Path, files: list[str]) -> None:
    """Without an example it makes random rows that are raw; pairs are raw, too."""
    path, flags = hostile_modules.write(tmp_path)
    net, targets = hostile_modules.Net().eval(), MinMaxScaler().fit(raw_targets())
    rows = series(3)
    answers = net(scaled(X_SCALER, rows)).reshape(-1, OUTPUTS)
    y = unscaled(targets, answers).reshape(COUNT, LENGTH, OUTPUTS)
    result = run_export(path, *flags, *files, *pairs(tmp_path, rows, y))
    assert result.exit_code == 0, result.output
    assert "forward() gives what" in result.stderr
    check(read_model(tmp_path / "models", "net", 1), {"x": rows}, {"y": y}, 1)
    result = run_export(path, *flags, *files, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "example: random x [3, 8, 5]" in result.stderr
    assert "scales from the mean" not in result.stdout


def test_pairs_that_were_scaled_before_are_recognised(tmp_path: Path, files: list[str]) -> None:
    """They match forward() alone, and the refusal says so."""
    path, flags = hostile_modules.write(tmp_path)
    net, x = hostile_modules.Net().eval(), torch.randn(2, 9, INPUTS)
    result = run_export(path, *flags, *files, *pairs(tmp_path, x, net(x).detach()))
    assert result.exit_code == 1
    words = "as the pairs need raw values and have scaled ones"
    wanted = f"with no input scaler, {words} and with no output scaler, {words} it would"
    assert wanted in result.stderr
    bare = run_export(path, *flags, *files[:2], *pairs(tmp_path, x, net(x).detach()))
    assert f"with no input scaler, {words} it would" in bare.stderr


def test_the_command_takes_a_scaler_for_each_input(tmp_path: Path) -> None:
    """NAME=FILE, with commas between them."""
    from lstmserve_export.cli import export_command

    option = next(each for each in export_command.params if each.name == "input_scaler")
    context = export_command.make_context("export", [__file__])
    one, other = tmp_path / "a,b.npz", tmp_path / "c.npz"
    for file in (one, other):
        file.touch()
    assert option.process_value(context, f"x={one},state.0={other}") == {"x": one, "state.0": other}
    assert option.process_value(context, str(one)) == one
    assert option.process_value(context, "") is None
