"""A bad model folder stops only itself: it is reported, counted, and refused in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stepgraph
from lstmserve import Client
from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.lstm_golden import dump_lstm_golden, load_lstm_golden
from lstmserve.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    InvalidModelFolder,
    RefusedFolder,
    read_model,
)
from modelmaking import TINY, make_golden, make_model, random_input, random_weights
from serving import COMMAND, FREE_PORTS, Serve, run_serve
from test_manifest import edit_manifest, replace_file
from test_serve_flags import WITHOUT_RIGHTS


def copied(models: Path) -> None:
    """Version 1 copied as version 2."""
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")


def locked(models: Path) -> None:
    """A neighbour that only its owner may read."""
    (models / "neighbour" / "1").mkdir(parents=True)
    (models / "neighbour").chmod(0)


BAD: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a copied version": ("tiny/2", "holds tiny:1", copied),
    "a locked neighbour": ("neighbour", "Permission denied", locked),
    "an empty version": ("tiny/7", "No such file", lambda m: (m / "tiny" / "7").mkdir()),
    "a file for a version": ("tiny/7", "Not a directory", lambda m: (m / "tiny" / "7").touch()),
    "a link to itself": ("odd", "leads nowhere", lambda m: (m / "odd").symlink_to("odd")),
    "a version that links to itself": (
        "tiny/7",
        "Too many levels",
        lambda m: (m / "tiny" / "7").symlink_to("7"),
    ),
    "no version": (
        "flat",
        "no version: move it to",
        lambda m: shutil.copytree(m / "tiny" / "1", m / "flat"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_others_are_served(serve: Serve, tmp_path: Path, name: str) -> None:
    """The log, /readyz and a metric name the refused one; --strict-models refuses to start."""
    folder, says, spoil = BAD[name]
    models = tmp_path / "models"
    make_model(models)
    spoil(models)
    command = WITHOUT_RIGHTS if os.geteuid() == 0 else COMMAND
    serving = serve(models=models, command=command)
    with Client(serving.target) as client, client.session("tiny") as session:
        assert session.version == 1
        session.step(random_input(TINY, (1,), 0))
    (line,) = serving.events("model refused, the others are served")
    assert (line["folder"], line["level"]) == (folder, "error")
    assert says in line["reason"]
    assert serving.get("/readyz") == (200, f"OK\nmodel refused: {folder}: {line['reason']}\n")
    assert serving.metric("lstm_model_folders", state="refused") == 1
    assert serving.metric("lstm_model_folders", state="served") == 1
    assert serving.stop() == 0
    ended = run_serve("--models", models, "--strict-models", *FREE_PORTS, command=command)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr


def test_a_file_that_no_manifest_names_is_not_opened(tmp_path: Path) -> None:
    """Next to a model's own files, or in a folder without a manifest: opening a pipe would hang."""
    stepgraph.make_model(tmp_path)
    for stranger in ("n/1/theirs.onnx", "n/1/model.onnx.data", "n/2/model.onnx", "m/1/model.onnx"):
        (tmp_path / stranger).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / stranger)
    os.mkfifo(tmp_path / "model.onnx")
    refused: list[RefusedFolder] = []
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20), refused.append)
    assert (model.name, model.version) == ("n", 1)
    assert [each.folder for each in refused] == ["m/1", "n/2"]
    assert all("manifest.json" in each.reason for each in refused)


def test_strangers_are_passed_over(tmp_path: Path) -> None:
    """Files, lost+found, hidden folders and folders without versions are not models."""
    make_model(tmp_path)
    (tmp_path / "README.md").touch()
    for stranger in ("lost+found", ".git/1", "docs/img", "tiny/latest"):
        (tmp_path / stranger).mkdir(parents=True)
    refused: list[RefusedFolder] = []
    assert len(load_models(Config(models=tmp_path, pool_bytes=1 << 20), refused.append)) == 1
    assert refused == []


def test_where_nothing_is_left_it_fails(tmp_path: Path) -> None:
    """Without any good model the start fails with the first reason, and a count of the others."""
    for version in (1, 2, 3):
        make_model(tmp_path, version=version)
        (tmp_path / "tiny" / str(version) / MODEL).unlink()
    with pytest.raises(InvalidModelFolder, match=r"tiny/1.*; and 2 more are refused$"):
        load_models(Config(models=tmp_path), lambda refused: None)


def test_a_model_too_large_for_the_pool_stops_no_other(tmp_path: Path) -> None:
    """What has no room for its batches and one session is refused with what it needs."""
    make_model(tmp_path)
    make_model(tmp_path, replace(TINY, hidden_size=300), name="wide")
    refused: list[RefusedFolder] = []
    config = Config(models=tmp_path, pool_bytes=1 << 20)
    (model,) = load_models(config, refused.append)
    assert model.name == "tiny"
    (only,) = refused
    assert only.folder == "wide/1"
    assert "--pool-bytes: wide:1 needs 3700800 bytes of it for its batches" in only.reason
    assert f"and one session, {(1 << 20) - 771 * 80} are left" in only.reason


GOLD = make_golden(TINY, random_weights(TINY, 0), 0)


def huge() -> bytes:
    """An array whose header promises 3e12 values."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (3_000_000_000_000,)}
        np.lib.format.write_array_header_1_0(header, shape)
        archive.writestr("case/x.npy", header.getvalue())
    return buffer.getvalue()


def encrypted() -> bytes:
    """An archive that says it has a password."""
    content = bytearray(dump_lstm_golden({"case": GOLD}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(magic) + offset] |= 1
    return bytes(content)


def bomb() -> bytes:
    """A small file that unpacks to 2 GB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("case/x.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(2048):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def case(**fields: object) -> Callable[[], bytes]:
    """Good vectors except for these fields."""
    return lambda: dump_lstm_golden({"case": replace(GOLD, **fields)})  # type: ignore[arg-type]  # on purpose


WRONG_Y = GOLD.y + 5
GOLDEN_FAULTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no cases": ("has no rows", lambda: dump_lstm_golden({})),
    "no rows": ("with a row at least", lambda: dump_lstm_golden({"case": GOLD.part(slice(0, 0))})),
    "torch_error inf": ("torch_error is inf", case(torch_error=np.inf, y=WRONG_Y)),
    "torch_error NaN": ("torch_error is nan", case(torch_error=np.nan)),
    "torch_error 1e30": ("torch_error is 1e+30", case(torch_error=1e30, y=WRONG_Y)),
    "torch_error below 0": ("torch_error is -1", case(torch_error=-1.0)),
    "torch_error as large as may be": ("as far from", case(torch_error=0.05, y=WRONG_Y)),
    "x of another width": ("x is [3, 7, 2], must be (3, 7, 3)", case(x=GOLD.x[:, :, :2])),
    "x without axes": ("x is [], must be", case(x=np.float32(1))),
    "y of another width": ("y is [3, 7, 1]", case(y=GOLD.y[:, :, :1])),
    "h0 of another layer count": ("h0 is [1, 3, 5]", case(h0=GOLD.h0[:1])),
    "hn of another batch": ("hn is [2, 2, 5]", case(hn=GOLD.hn[:, :2])),  # type: ignore[index]  # known
    "lengths of 0": ("lengths must be in [1, 7]", case(lengths=GOLD.lengths * 0)),
    "lengths too long": ("lengths must be in [1, 7]", case(lengths=GOLD.lengths * 9)),
    "lengths of text": ("must be numbers", case(lengths=np.array(["a"] * 3))),
    "complex y": ("must be numbers", case(y=GOLD.y.astype(np.complex128))),
    "NaN in y": ("y has NaN or infinite", case(y=np.full_like(GOLD.y, np.nan))),
    "y beyond float64": ("y has NaN or infinite", case(y=np.full_like(GOLD.y, np.inf))),
    "torch_error a list": ("cannot be read", case(torch_error=[1.0, 2.0])),
    "a header of 3e12 values": ("[3000000000000] and has", huge),
    "an encrypted archive": ("cannot be read", encrypted),
    "a bomb": ("unpacks to more than", bomb),
}


@pytest.mark.parametrize("name", GOLDEN_FAULTS)
def test_golden_vectors_that_prove_nothing_are_refused(tmp_path: Path, name: str) -> None:
    """They are refused in one line, before anything large is allocated."""
    says, make = GOLDEN_FAULTS[name]
    make_model(tmp_path)
    with np.errstate(invalid="ignore"):
        replace_file(tmp_path / "tiny" / "1", GOLDEN, make())
    with pytest.raises(InvalidModelFolder) as error:
        load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_good_vectors_are_read_as_they_were_written() -> None:
    """The checks change no vector."""
    loaded = load_lstm_golden(dump_lstm_golden({"case": GOLD}))["case"]
    for name in ("x", "lengths", "h0", "c0", "y", "hn", "cn"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(GOLD, name))


@pytest.mark.parametrize("name", [MANIFEST, MODEL, GOLDEN])
def test_a_file_of_20_gb_is_not_read(tmp_path: Path, name: str) -> None:
    """A file of 20 GB is refused by its size, sparse or not."""
    make_model(tmp_path)
    os.truncate(tmp_path / "tiny" / "1" / name, 20 << 30)
    with pytest.raises(InvalidModelFolder, match=f"{name} has 21474836480 bytes, at most"):
        read_model(tmp_path, "tiny", 1)


ODD = [None, True, 0, -1, 1e308, 10**400, "", "x" * 5000, [], [[1]], {}, {"a": {"b": 1}}]


def test_manifests_of_odd_values_are_refused_or_right(tmp_path: Path) -> None:
    """Each field of each kind: one line, or the same model."""
    make_model(tmp_path)
    folder = tmp_path / "tiny" / "1"
    good = (folder / MANIFEST).read_text()
    said = []
    for field in json.loads(good):
        for value in [*ODD, float("nan")]:
            (folder / MANIFEST).write_text(good)
            edit_manifest(folder, **{field: value})
            try:
                read_model(tmp_path, "tiny", 1)
            except InvalidModelFolder as error:
                said.append(str(error))
    assert len(said) > 80
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("kilobytes", [200_000, 300_000, 1_000_000])
def test_too_little_memory_is_one_line(models: Path, kilobytes: int) -> None:
    """Wherever memory runs out, the start neither hangs nor prints a traceback."""
    flags = ["--models", models, *FREE_PORTS, "--pool-bytes", str(1 << 30)]
    limited = ["sh", "-c", f'ulimit -v {kilobytes}; exec "$@"', "sh", *COMMAND]
    ended: subprocess.CompletedProcess[str] = run_serve(*flags, command=limited)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("Error: ")
