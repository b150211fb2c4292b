"""Scalers around an nn.LSTM: what they compute, their files, and the refusals of docs/EXPORT.md."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from torch import nn

from exporting import INPUTS, OUTPUTS, Net, exported, onnx_answers, refused, run_export, save
from hostile import Case, saved, state
from lstmserve_export import Refused, export
from lstmserve_export.lstm.network import Norm
from lstmserve_export.scalers.files import pickle_lines
from lstmserve_export.scalers.min_max import as_min_max, min_max_data
from lstmserve_export.scalers.sides import Side
from scalers import HYDROLOGY, KINDS, MAKERS, NAMES, Rows, named, raw_rows, raw_targets
from serving import ROOT

DOC = ROOT / "docs" / "EXPORT.md"
X, Y = Side("input", "input_{}".format), Side("output", "output_{}".format)
Maker = Callable[[Path], Case]


def norm_of(scaler: Any, side: Side = X) -> Norm:
    """The only norm of what a user gives."""
    (norm,) = side.norms(scaler).values()
    return norm


def refusal(call: Callable[[], object]) -> str:
    """The one line with which a call refuses."""
    with pytest.raises(Refused) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one: Norm, other: Norm) -> bool:
    """Whether no bit differs."""
    pairs = (one.mean, other.mean), (one.scale, other.scale)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


# --- scikit-learn's own scalers


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_each_scaler_computes_what_scikit_learn_does(maker: Callable[[Rows], Any]) -> None:
    """(x - mean) / scale is transform(), and y * scale + mean is inverse_transform(), also far
    outside of the rows that it was fitted on."""
    scaler = maker(raw_rows())
    norm = norm_of(scaler)
    rows = np.concatenate([raw_rows(9, seed=8), 3 * raw_rows(9, seed=9)])
    np.testing.assert_allclose((rows - norm.mean) / norm.scale, scaler.transform(rows), atol=1e-9)
    norm = norm_of(scaler, Y)
    scaled = np.random.default_rng(1).normal(0, 2, rows.shape)
    wanted = scaler.inverse_transform(scaled)
    np.testing.assert_allclose(scaled * norm.scale + norm.mean, wanted, rtol=1e-12, atol=1e-9)


def test_a_scaler_that_changes_nothing_is_no_norm() -> None:
    """Neither a mean nor a scale gives the model without one, whose fingerprint it has."""
    assert X.norms(StandardScaler(with_mean=False, with_std=False).fit(raw_rows())) == {}
    assert X.norms() == {}


def test_the_inverse_of_a_clipping_scaler_is_taken() -> None:
    """inverse_transform() does not clip, so an output's scaler may."""
    targets = raw_targets()
    for kind in (MinMaxScaler, MaxAbsScaler):
        one, other = kind(clip=True).fit(targets), kind().fit(targets)
        assert same(norm_of(one, Y), norm_of(other, Y))


def test_min_and_scale_that_a_user_set_are_enough() -> None:
    """People make a scaler for one column by min_ and scale_ of another one's."""
    whole = MinMaxScaler().fit(raw_rows())
    one = MinMaxScaler()
    one.min_, one.scale_ = whole.min_[1], whole.scale_[1]
    norm, wanted = norm_of(one, Y), norm_of(whole, Y)
    assert (norm.mean[0], norm.scale[0]) == (wanted.mean[1], wanted.scale[1])


def test_a_scaler_that_gives_tables_is_read() -> None:
    """set_output() changes what transform() returns, and adds an attribute that is no array."""
    scaler = StandardScaler().fit(raw_rows())
    norm = norm_of(scaler)
    assert same(norm, norm_of(scaler.set_output(transform="default")))


def test_the_product_never_imports_scikit_learn() -> None:
    """It knows a scaler by the names of its attributes."""
    for path in (ROOT / "export").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (sklearn|joblib)", path.read_text(), re.M)


class Squared(StandardScaler):
    """A user's own scaler, which computes more than its attributes say."""

    def transform(self, x: Rows) -> Rows:
        return super().transform(x) ** 2

    def inverse_transform(self, x: Rows) -> Rows:
        return super().inverse_transform(np.sqrt(x))


class Renamed(StandardScaler):
    """A user's own scaler, which computes nothing else."""


def test_a_class_of_the_users_own_is_taken_by_what_it_computes() -> None:
    """A subclass may be a StandardScaler under another name."""
    rows = raw_rows()
    assert same(norm_of(Renamed().fit(rows)), norm_of(StandardScaler().fit(rows)))


# --- columns


def test_columns_are_chosen_by_number_and_by_name() -> None:
    """A scaler of x and y together gives the one column that the network forecasts."""
    scaler = MinMaxScaler().fit(raw_rows())
    by_number = norm_of({"scaler": scaler, "columns": [3, 0]})
    norm = norm_of(scaler)
    assert same(by_number, Norm(norm.mean[[3, 0]], norm.scale[[3, 0]]))
    assert by_number.columns == ()
    by_name = norm_of({"scaler": named(scaler), "columns": "wind"})
    assert by_name.columns == ("wind",)
    assert same(by_name, Norm(norm.mean[[3]], norm.scale[[3]]))


def test_columns_may_name_what_had_no_names() -> None:
    """As many names as columns say what they are."""
    norm = norm_of({"scaler": StandardScaler().fit(raw_rows()), "columns": NAMES})
    assert norm.columns == tuple(NAMES)


def test_the_order_of_the_columns_is_in_the_summary_and_the_manifest(tmp_path: Path) -> None:
    """A DataFrame's columns have an order that rows of numbers do not show."""
    net = Net().eval()
    scaler = named(StandardScaler().fit(raw_rows()))
    done = export(net.lstm, net.fc, name="net", models=tmp_path, input_scaler=scaler)
    assert f"the columns of x, in their order: {', '.join(NAMES)}" in done.manifest.notes


def test_a_column_that_float32_cannot_keep_is_noted(tmp_path: Path) -> None:
    """Seconds since 1970, of five hours and of four days."""
    rows, net = raw_rows(), Net().eval()
    options = {"name": "net", "models": tmp_path}
    rows[:, 1] = 1.7e9 + 60 * np.arange(len(rows))
    scaler = StandardScaler().fit(rows)
    line = refusal(lambda: export(net.lstm, net.fc, input_scaler=scaler, **options))
    assert "float32 keeps column 1 (from 0) only to 0.02 of its scale" in line
    rows[:, 1] = 1.7e9 + 1e3 * np.arange(len(rows))
    scaler = StandardScaler().fit(rows)
    done = export(net.lstm, net.fc, input_scaler=scaler, **options)
    (note,) = done.manifest.notes
    assert note.startswith("of x, float32 keeps column 1 (from 0) only to ")
    assert "subtract an offset" in note


# --- whole models


@torch.no_grad()
def answers(net: Net, x: Any, y: Any, rows: Rows) -> Rows:
    """What a program of torch and scikit-learn gives for raw rows [N, T, INPUTS]."""
    count, steps, width = rows.shape
    scaled = x.transform(rows.reshape(-1, width)).reshape(rows.shape)
    out, _ = net.lstm(torch.from_numpy(scaled).float().transpose(0, 1))
    found = net.fc(out).transpose(0, 1).reshape(count * steps, -1).numpy()
    return y.inverse_transform(found).reshape(count, steps, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_scalers_takes_raw_rows_and_gives_raw_answers(
    tmp_path: Path, kind: str
) -> None:
    """onnxruntime on float32 equals scikit-learn in float64 around torch, within the rounding of
    float32; the command reads the same from a file as Python from the scaler."""
    net = Net().eval()
    x, y = MAKERS[kind](raw_rows()), MAKERS[kind](raw_targets())
    scalers = {"input_scaler": x, "output_scaler": y}
    done = export(net.lstm, net.fc, name="net", models=tmp_path / "models", **scalers)
    assert done.manifest.lstm.input_norm
    assert done.manifest.lstm.output_norm
    rows = raw_rows(36, seed=7).reshape(4, 9, INPUTS)
    path = save(net.state_dict(), tmp_path / "net.pt")
    found, _, _ = onnx_answers(path, rows.astype(np.float32))
    wanted = answers(net, x, y, rows)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5 * np.abs(y.scale_).max())
    flags = []
    for side, scaler in (("input", x), ("output", y)):
        file = tmp_path / f"{side}.npz"
        arrays = {n: v for n, v in vars(scaler).items() if v is not None}
        np.savez(file, **arrays)
        flags += [f"--{side}-scaler", str(file)]
    result = run_export(path, "--force", "--model-version", "1", *flags)
    assert result.exit_code == 0, result.output
    assert "(x - mean) / scale" in result.stdout
    assert "* scale + mean" in result.stdout
    assert done.manifest.fingerprint in (done.folder / "manifest.json").read_text()


def test_min_and_range_are_a_mean_and_a_scale(tmp_path: Path) -> None:
    """data_min_ and data_range_ of a MinMaxScaler to (0, 1) give its model, to the bit."""
    net = Net().eval()
    x, y = (MinMaxScaler().fit(rows) for rows in (raw_rows()[:, [0, 1, 2, 3, 0]], raw_targets()))
    path, flags = save(net.state_dict(), tmp_path / "net.pt"), []
    for side, scaler in (("input", x), ("output", y)):
        for part, values in (("min", scaler.data_min_), ("range", scaler.data_range_)):
            np.savetxt(tmp_path / f"{side}_{part}.txt", values)
            flags += [f"--{side}-{part}", str(tmp_path / f"{side}_{part}.txt")]
    exported(path, *flags)
    rows = raw_rows(36, seed=7).reshape(4, 9, INPUTS)
    rows[..., 4] = rows[..., 0]
    found, _, _ = onnx_answers(path, rows.astype(np.float32))
    np.testing.assert_allclose(found, answers(net, x, y, rows), rtol=1e-4, atol=1e-3)


# --- files


FORMS: dict[str, Mapping[str, Any]] = {
    "mean and scale": {"mean": [1.0, 2.0], "scale": [3.0, 4.0]},
    "mean and std": {"mean": [1.0, 2.0], "std": [3.0, 4.0]},
    "center and scale": {"center": [1.0, 2.0], "scale": [3.0, 4.0]},
    "min and range": {"min": [1.0, 2.0], "range": [3.0, 4.0]},
    "min and max": {"min": [1.0, 2.0], "max": [4.0, 6.0]},
    "StandardScaler": {"mean_": [1.0, 2.0], "scale_": [3.0, 4.0]},
    "RobustScaler": {"center_": [1.0, 2.0], "scale_": [3.0, 4.0]},
    "MinMaxScaler": {"min_": [-1.0, -0.5], "scale_": [0.5, 0.25]},
    "by column": {"mean": {"a": 1.0, "b": 2.0}, "scale": {"b": 4.0, "a": 3.0}},
    "columns": {"mean": [1.0, 2.0], "scale": [3.0, 4.0], "columns": ["a", "b"]},
}


@pytest.mark.parametrize("ending", [".npz", ".json", ".yml"])
@pytest.mark.parametrize("form", FORMS)
def test_files_hold_a_scaler_by_names(tmp_path: Path, form: str, ending: str) -> None:
    """Each kind of file holds each pair of names; JSON is YAML, too."""
    arrays, path = dict(FORMS[form]), tmp_path / f"scaler{ending}"
    if ending == ".npz":
        if form == "by column":
            arrays = {**FORMS["columns"]}
        np.savez(path, **arrays)
    else:
        path.write_text(json.dumps(arrays))
    norm = norm_of(path)
    wanted = ([2.0, 2.0], [2.0, 4.0]) if form == "MinMaxScaler" else ([1.0, 2.0], [3.0, 4.0])
    assert (norm.mean.tolist(), norm.scale.tolist()) == wanted
    assert norm.columns == (("a", "b") if "column" in form else ())
    if ending == ".json":
        assert same(norm, norm_of(FORMS[form]))


@pytest.mark.parametrize("dump", [joblib.dump, pickle.dump, "gzip"], ids=["joblib", "pickle", "gz"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_two_lines_turn_a_pickle_into_the_same_scaler(
    tmp_path: Path, name: str, dump: Any
) -> None:
    """No bit of the norm changes, names of columns stay, and a set_output() is no hindrance."""
    scaler = named(MAKERS[name](raw_rows())).set_output(transform="default")
    path = tmp_path / 'it\'s a "scaler".pkl'
    if dump == "gzip":
        path.write_bytes(gzip.compress(pickle.dumps(scaler)))
    else:
        with path.open("wb") as file:
            dump(scaler, file)
    for line in pickle_lines(path):
        exec(line, globals())
    for side in (X, Y):
        norm, wanted = norm_of(path.with_suffix(".npz"), side), norm_of(scaler, side)
        assert same(norm, wanted)
        assert norm.columns == wanted.columns == tuple(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_pickle_names_a_command_that_works(tmp_path: Path, kind: str) -> None:
    """The command is copied out of the refusal into a shell, and the file that it writes passes."""
    net, scaler = Net(), MAKERS[kind](raw_rows())
    joblib.dump(scaler, tmp_path / "scaler.pkl")
    path = save(net.state_dict(), tmp_path / "net.pt")
    result = run_export(path, "--input-scaler", str(tmp_path / "scaler.pkl"))
    assert result.exit_code == 1
    (command,) = re.findall(r"run (python -c .*) and give (?:.*)\.npz$", result.stderr.strip())
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, env=environment, check=True, timeout=100)
    assert same(norm_of(tmp_path / "scaler.npz"), norm_of(scaler))
    assert exported(path, "--input-scaler", str(tmp_path / "scaler.npz")).manifest.lstm.input_norm


def test_the_documented_lines_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/EXPORT.md has the two lines for a file of the reader's own."""
    (lines,) = re.findall(r"```\n(import joblib[^`]*)```", DOC.read_text())
    assert tuple(lines.splitlines()) == pickle_lines(Path("scaler.pkl"))
    monkeypatch.chdir(tmp_path)
    scaler = named(MAKERS["MinMaxScaler"](raw_rows()))
    joblib.dump(scaler, "scaler.pkl")
    exec(lines, globals())
    assert same(norm_of("scaler.npz"), norm_of(scaler))
    assert norm_of("scaler.npz").columns == tuple(NAMES)


def test_the_scaler_of_neuralhydrology_is_read_by_names(tmp_path: Path) -> None:
    """One file has x and y, static attributes apart, and numbers that YAML 1.1 reads as text."""
    path = tmp_path / "train_data_scaler.yml"
    path.write_text(HYDROLOGY)
    columns = ["SPFH_2maboveground", "APCP_surface", "elev_mean", "slope_mean"]
    norm = norm_of({"scaler": path, "columns": columns})
    assert norm.mean.tolist() == [
        *(1e-05, 0.14485099911689758, 715.0357281553398),
        45.73078805825243,
    ]
    assert norm.scale.tolist() == [
        *(5e-05, 0.8656719923019409, 772.9868594812874),
        46.97479379837598,
    ]
    assert norm.columns == tuple(columns)
    assert norm_of({"scaler": path, "columns": "QObs(mm/h)"}, Y).mean == [0.07877858728170395]


def test_the_command_reads_neuralhydrologys_scaler(tmp_path: Path) -> None:
    """The flags name the columns of x and of y in one file."""
    net = nn.ModuleDict({"lstm": nn.LSTM(3, 8), "head": nn.Linear(8, 1)})
    path = save(net.state_dict(), tmp_path / "net.pt")
    file = tmp_path / "train_data_scaler.yml"
    file.write_text(HYDROLOGY)
    columns = "APCP_surface,elev_mean,slope_mean"
    files = exported(
        path,
        *("--input-scaler", str(file), "--input-columns", columns),
        *("--output-scaler", str(file), "--output-columns", "QObs(mm/h)"),
    )
    assert files.manifest.notes == (
        "the columns of x, in their order: APCP_surface, elev_mean, slope_mean",
        "the columns of y, in their order: QObs(mm/h)",
    )


# --- min_ and scale_ in the wrong place


@pytest.mark.parametrize("to", [(0, 1), (-1, 1)], ids=["(0, 1)", "(-1, 1)"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mean", ["min_", "data_min_"])
def test_min_and_scale_are_no_mean_and_scale(mean: str, dtype: Any, to: tuple[int, int]) -> None:
    """Rows of few digits, or of float32, are recognised behind min_ and scale_ in float64."""
    rows = raw_rows()[:, :4].astype(dtype).astype(np.float64)
    scaler = MinMaxScaler(to).fit(rows)
    line = refusal(lambda: X.norms(None, getattr(scaler, mean), scaler.scale_))
    assert "min_ and scale_ of a MinMaxScaler" in line
    assert f"from {scaler.data_min_[0]:.6g}, " in line


HONEST: dict[str, tuple[Any, Any]] = {
    "nothing": ([0.0, 0.0], [1.0, 1.0]),
    "pixels": ([0.0], [255.0]),
    "halves": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "images": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "thirds": ([2 / 3], [1 / 7]),
}


def test_a_mean_and_a_scale_are_not_taken_for_min_and_scale() -> None:
    """Numbers of few digits, and those of every kind of scaler, are what they say."""
    for mean, scale in HONEST.values():
        assert not min_max_data(Norm(np.array(mean), np.array(scale)))
    for seed in range(200):
        rows = np.round(np.random.default_rng(seed).normal(40, 9, (20, 1)), 1)
        for kind in (StandardScaler, RobustScaler, MinMaxScaler, MaxAbsScaler):
            norm = norm_of(kind().fit(rows))
            assert not min_max_data(norm), (seed, kind)
            single = (
                part.astype(np.float32).astype(np.float64) for part in (norm.mean, norm.scale)
            )
            assert not min_max_data(Norm(*single)), (seed, kind)


def test_the_advice_on_min_and_scale_holds_for_every_range(tmp_path: Path) -> None:
    """data_min_ and data_range_ would give a scaler to (-1, 1) another model, with exit code 0."""
    scaler = MinMaxScaler((-1, 1)).fit(raw_rows())
    flags = vectors(tmp_path, input_mean=scaler.min_, input_scale=scaler.scale_)
    line = refused(save(Net().state_dict(), tmp_path / "net.pt"), *flags)
    assert line.endswith("give the scaler itself with --input-scaler")


def test_pairs_recognise_min_and_scale(tmp_path: Path) -> None:
    """Values of many digits show nothing by themselves, and the pairs of a user do."""
    net = Net().eval()
    columns = [0, 2, 3, 0, 2]  # numbers of many digits, which show nothing by themselves
    x = MinMaxScaler().fit(np.pi * raw_rows()[:, columns])
    y = MinMaxScaler().fit(raw_targets())
    raw = np.pi * raw_rows(20, seed=5)[:, columns].reshape(2, 10, INPUTS)
    golden = {"x": raw.astype(np.float32), "y": answers(net, x, y, raw).astype(np.float32)}
    arrays = {"input_mean": x.min_, "input_scale": x.scale_}
    arrays |= {"output_mean": y.min_, "output_scale": y.scale_}
    options = {"name": "net", "models": tmp_path, "golden": golden}
    line = refusal(lambda: export(net.lstm, net.fc, **arrays, **options))
    words = "mean and scale as min_ and scale_ of a MinMaxScaler"
    assert f"with the input's {words} (--input-scaler) and with the output's {words}" in line
    export(net.lstm, net.fc, input_scaler=x, output_scaler=y, **options)


def test_scaled_pairs_are_recognised(tmp_path: Path) -> None:
    """Pairs from beyond the scalers are those of another model."""
    net = Net().eval()
    scaled = np.random.default_rng(1).normal(size=(2, 10, INPUTS)).astype(np.float32)
    with torch.no_grad():
        y = net.fc(net.lstm(torch.from_numpy(scaled).transpose(0, 1))[0]).transpose(0, 1).numpy()
    scaler = StandardScaler().fit(raw_targets())
    options: dict[str, Any] = {"name": "net", "models": tmp_path, "golden": {"x": scaled, "y": y}}
    line = refusal(lambda: export(net.lstm, net.fc, output_scaler=scaler, **options))
    assert "with no output scaler, as the pairs need raw values and have scaled ones it" in line


def test_as_min_max_is_what_min_and_scale_compute() -> None:
    """x * scale_ + min_, as (x - mean) / scale."""
    scaler = MinMaxScaler((-2, 5)).fit(raw_rows())
    norm = as_min_max(Norm(scaler.min_, scaler.scale_))
    rows = raw_rows(5, seed=6)
    np.testing.assert_allclose((rows - norm.mean) / norm.scale, scaler.transform(rows), atol=1e-9)


# --- refusals


ROWS: dict[str, tuple[str, Maker]] = {}


def row(label: str, says: str) -> Callable[[Maker], Maker]:
    """Enters a maker as the row with this label; the refusal must contain `says`."""

    def enter(maker: Maker) -> Maker:
        assert label not in ROWS
        ROWS[label] = (says, maker)
        return maker

    return enter


def with_scaler(folder: Path, name: str, content: Any, *flags: str, side: str = "input") -> Case:
    """A good checkpoint with a file as --input-scaler: an .npz of a dict, or bytes."""
    path = folder / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content)
    return saved(folder, state(), f"--{side}-scaler", str(path), *flags)


def vectors(folder: Path, **arrays: Any) -> list[str]:
    """Flags with a file each, named as the flag; NAME__of__FILE has another file name."""
    flags = []
    for name, values in arrays.items():
        flag, _, file = name.partition("__of__")
        np.save(folder / f"{file or flag}.npy", values)
        flags += [f"--{flag.replace('_', '-')}", str(folder / f"{file or flag}.npy")]
    return flags


GOOD = {"mean": np.zeros(INPUTS), "scale": np.ones(INPUTS) * 2}


@row("a pickle of a scaler", "is a pickle, which can run a program when it is read: if you trust")
def _pickle(folder: Path) -> Case:
    return with_scaler(folder, "scaler.dat", pickle.dumps(StandardScaler().fit(raw_rows())))


@row("a pickle of joblib, compressed", "import joblib, numpy as np; s = joblib.load(")
def _joblib(folder: Path) -> Case:
    case = with_scaler(folder, "scaler.bin", b"")
    joblib.dump(RobustScaler().fit(raw_rows()), folder / "scaler.bin", compress=3)
    return case


@row("a pickle of several scalers", "take the scaler out first, s = s['NAME']")
def _pickled_dict(folder: Path) -> Case:
    return with_scaler(folder, "s.pkl", pickle.dumps({"x": StandardScaler().fit(raw_rows())}))


@row("a pickled Pipeline", "take the scaler out first, s = s.named_steps['NAME']")
def _pickled_pipeline(folder: Path) -> Case:
    pipeline = Pipeline([("scale", StandardScaler())]).fit(raw_rows())
    return with_scaler(folder, "s.pkl", pickle.dumps(pipeline))


@row("a pickled ColumnTransformer", "is no scaler: give mean and scale of all columns")
def _pickled_columns(folder: Path) -> Case:
    columns = ColumnTransformer([("scale", StandardScaler(), [0])]).fit(raw_rows())
    return with_scaler(folder, "s.pkl", pickle.dumps(columns))


@row("an .npz with an array of objects", "docs/EXPORT.md has the lines that write one")
def _objects(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {**GOOD, "columns": np.array(NAMES, object)})


@row("a file of a scaler that has another ending", "give .npz, .json or .yml")
def _csv(folder: Path) -> Case:
    return with_scaler(folder, "s.csv", b"mean,scale\n0,1\n")


@row("a file that is no JSON", "is no JSON: ")
def _json(folder: Path) -> Case:
    return with_scaler(folder, "s.json", b'{"mean": [1,')


@row("a file that is no YAML", "is no YAML: ")
def _yaml(folder: Path) -> Case:
    return with_scaler(folder, "s.yml", b"mean: [1, 2\nscale: !!python/object:os.system {}")


@row("a file without names", "must hold names with numbers")
def _list(folder: Path) -> Case:
    return with_scaler(folder, "s.json", b"[1, 2, 3]")


@row("a scaler with other names", "has deviation, mu: it must be one of StandardScaler,")
def _unknown_names(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {"mu": np.zeros(INPUTS), "deviation": np.ones(INPUTS)})


@row("scale_ without what says whose it is", "scale_ alone does not say whose it is")
def _scale_alone(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {"scale_": np.ones(INPUTS)})


@row("a StandardScaler's attributes without its mean_", "is a StandardScaler without mean_: fit")
def _without_mean(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {"var_": np.ones(INPUTS), "scale_": np.ones(INPUTS)})


@row("min without range or max", "needs min with range, or min with max")
def _min_alone(folder: Path) -> Case:
    return with_scaler(folder, "s.json", b'{"min": [1, 2]}')


@row("a mean and a scale of different lengths", "the mean has 5 columns and the scale 4")
def _lengths(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {**GOOD, "scale": np.ones(4)})


@row("a scaler of text", "mean of --input-scaler")
def _text(folder: Path) -> Case:
    return with_scaler(folder, "s.json", b'{"mean": ["a"], "scale": [1]}')


@row("a scaler with NaN", "must be a vector of finite numbers")
def _nan(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", {**GOOD, "mean": np.full(INPUTS, np.nan)})


@row("a scaler that clips its input", "with clip=True, and a model has no clip in front: set clip")
def _clip(folder: Path) -> Case:
    scaler = MinMaxScaler(clip=True).fit(raw_rows())
    return with_scaler(folder, "s.npz", vars(scaler))


@row(
    "a scaler of another width",
    "has 6 columns, must have 5; choose some",
)
def _wide(folder: Path) -> Case:
    arrays = {"mean": np.zeros(INPUTS + 1), "scale": np.ones(INPUTS + 1)}
    return with_scaler(folder, "s.npz", arrays)


@row("columns that the scaler does not have", "has no column 7, wind; it has 0 to 4")
def _columns(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", GOOD, "--input-columns", "0,7,wind")


@row("columns without a scaler", "--input-columns needs --input-scaler with one file")
def _only_columns(folder: Path) -> Case:
    return saved(folder, state(), "--input-columns", "0")


@row("neuralhydrology's scaler without --input-columns", "then the static attributes from A to Z")
def _hydrology(folder: Path) -> Case:
    return with_scaler(folder, "train_data_scaler.yml", HYDROLOGY.encode())


@row("columns that neuralhydrology's scaler lacks", "has no column QObs; it has APCP_surface,")
def _hydrology_column(folder: Path) -> Case:
    flags = ("--output-columns", "QObs")
    return with_scaler(folder, "s.yml", HYDROLOGY.encode(), *flags, side="output")


@row("a scaler beside a mean", "has a mean and a scale of its own: leave out --input-mean and")
def _beside(folder: Path) -> Case:
    return with_scaler(folder, "s.npz", GOOD, *vectors(folder, input_mean=np.ones(INPUTS)))


@row("a minimum beside a mean", "--input-min and --input-range are a mean and a scale")
def _two_pairs(folder: Path) -> Case:
    flags = vectors(folder, input_mean=np.ones(INPUTS), input_range=np.ones(INPUTS))
    return saved(folder, state(), *flags)


@row("a mean in a file named min_", "is of a MinMaxScaler by its name, which adds")
def _named_min(folder: Path) -> Case:
    flags = vectors(folder, input_mean__of__scaler_min_=np.ones(INPUTS))
    return saved(folder, state(), *flags)


@row("a minimum in a file named min_", "data_min_ with --output-min and data_range_ with")
def _named_minimum(folder: Path) -> Case:
    arrays = {"output_min__of__min_": np.ones(OUTPUTS), "output_range": np.ones(OUTPUTS) * 2}
    return saved(folder, state(), *vectors(folder, **arrays))


@row("data_min_ as mean beside scale_", "or data_min_ with --input-min and data_range_ with")
def _named_data_min(folder: Path) -> Case:
    arrays = {"input_mean__of__data_min_": np.ones(INPUTS)}
    arrays["input_scale__of__scale_"] = np.ones(INPUTS)
    return saved(folder, state(), *vectors(folder, **arrays))


@row("a MinMaxScaler's min_ and scale_ as mean and scale", "and it multiplies by scale_: give the")
def _min_and_scale(folder: Path) -> Case:
    scaler = MinMaxScaler().fit(raw_rows())
    flags = vectors(folder, input_mean=scaler.min_, input_scale=scaler.scale_)
    return saved(folder, state(), *flags)


@row("a scaler by the name of an input", "and the model has only x: give the scaler itself")
def _by_name(folder: Path) -> Case:
    np.savez(folder / "s.npz", **GOOD)
    return saved(folder, state(), "--input-scaler", f"wind={folder / 's.npz'}")


OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "not fitted": (
        MinMaxScaler,
        "input_scaler is a MinMaxScaler that is not fitted: call its fit()",
    ),
    "a Pipeline": (
        lambda: Pipeline([("scale", StandardScaler()), ("power", PowerTransformer())]),
        "is a Pipeline of the steps 'scale', 'power': give the scaler in it",
    ),
    "a ColumnTransformer": (
        lambda: ColumnTransformer([("scale", StandardScaler(), [0])]),
        "is a ColumnTransformer: give the mean and the scale of all columns, in the order of its",
    ),
    "no scale of each column": (
        lambda: PowerTransformer().fit(raw_rows()[:, :4]),
        "is a PowerTransformer, no mean and scale of each column: apply it in the client",
    ),
    "a class that computes more": (
        lambda: Squared().fit(raw_rows()),
        "its transform() computes something else than its attributes say",
    ),
    "one that fails": (
        lambda: _cut(StandardScaler().fit(raw_rows())),
        "its transform() fails on rows of 2 columns (ValueError: ",
    ),
    "a clip": (
        lambda: MaxAbsScaler(clip=True).fit(raw_rows()),
        "input_scaler is a MaxAbsScaler with clip=True",
    ),
    "numbers": (lambda: [1.0, 2.0], "input_scaler is a list: it must be one of StandardScaler"),
    "a dict beside columns": (
        lambda: {"scaler": StandardScaler().fit(raw_rows()), "column": [1]},
        "input_scaler has column beside scaler and columns",
    ),
    "names of other columns": (
        lambda: {"mean": {"a": 1, "b": 2}, "scale": {"a": 1, "c": 2}},
        "scale has other columns than the rest",
    ),
    "a column twice": (
        lambda: {"mean": [1, 2], "scale": [1, 2], "columns": ["a", "a"]},
        "must name each of its 2 once",
    ),
    "a constant column": (
        lambda: {"min": [1, 2], "range": [3, 0]},
        "has a zero as the scale of column 1 (from 0): a column that never changed in training is",
    ),
    "too far for float32": (
        lambda: {"mean": [1e39], "scale": [1]},
        "has a mean or a scale that float32 does not hold",
    ),
    "two means": ({"mean": [1], "center": [1]}.copy, "needs one of mean and center"),
    "two pairs": ({"mean": [1], "min": [1], "max": [2]}.copy, "are a mean and a scale: give one"),
}


def _cut(scaler: StandardScaler) -> StandardScaler:
    scaler.mean_, scaler.scale_ = scaler.mean_[:2], scaler.scale_[:2]
    return scaler


@pytest.mark.parametrize(("make", "says"), OBJECTS.values(), ids=OBJECTS)
def test_what_is_no_scaler_is_refused(make: Callable[[], Any], says: str) -> None:
    """The refusal names the object and a way out."""
    scaler = make()
    assert says in refusal(lambda: X.norms(scaler))


def test_a_constant_column_of_a_scaler_is_no_zero() -> None:
    """scikit-learn divides it by 1."""
    norm = norm_of(StandardScaler().fit(raw_rows()))
    assert norm.scale[4] == 1
    assert norm.mean[4] == 7


def test_the_widths_of_a_scaler_and_a_network_agree(tmp_path: Path) -> None:
    """The output's scaler has the output's width."""
    net = Net().eval()
    scaler = StandardScaler().fit(raw_targets()[:, :2])
    line = refusal(
        lambda: export(net.lstm, net.fc, name="net", models=tmp_path, output_scaler=scaler)
    )
    assert f"the output scaler (or mean and scale) has 2 columns, must have {OUTPUTS}" in line
