"""What the export leaves on disk and prints: versions, atomic folders, summary, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lstmserve_export.sequences
from exporting import Net, exported, models_of, refused, run_export, save
from lstmserve.manifest import GOLDEN, MANIFEST, MODEL, list_versions, read_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A plain state dict in net.pt."""
    return save(Net().state_dict(), tmp_path / "net.pt")


def test_the_folder_has_three_files_that_a_server_reads(checkpoint: Path) -> None:
    """The folder has three files and nothing else, and no scratch folder is left."""
    files = exported(checkpoint)
    folder = models_of(checkpoint) / "net"
    assert sorted(os.listdir(folder)) == ["1"]
    assert sorted(os.listdir(folder / "1")) == sorted([MODEL, MANIFEST, GOLDEN])
    assert set(files.manifest.versions) == {"lstmserve", "torch", "onnx", "onnxruntime", "numpy"}
    assert set(files.manifest.parity["excess"]) == {"whole", "ragged", "chunks", "steps"}
    assert files.manifest.parity["rows"] == 200
    assert sorted(files.golden) == ["parity"]


def test_versions_count_on(checkpoint: Path) -> None:
    """NEXT is one more than the newest version, also after a version that was given."""
    for flags in ([], [], ["--model-version", "7"], ["--model-version", "NEXT"]):
        assert run_export(checkpoint, *flags).exit_code == 0
    models = models_of(checkpoint)
    assert list_versions(models) == [("net", version) for version in (1, 2, 7, 8)]


def test_a_version_that_exists_needs_force(checkpoint: Path) -> None:
    """Without --force the old version stays, and with it the new one replaces it."""
    first = exported(checkpoint).manifest.fingerprint
    save(Net(bias=False).state_dict(), checkpoint)
    again = run_export(checkpoint, "--model-version", "1")
    assert again.exit_code == 1
    assert "exists: give --force" in again.stderr
    assert read_model(models_of(checkpoint), "net", 1).manifest.fingerprint == first
    assert run_export(checkpoint, "--model-version", "1", "--force").exit_code == 0
    assert read_model(models_of(checkpoint), "net", 1).manifest.fingerprint != first
    assert os.listdir(models_of(checkpoint) / "net") == ["1"]


def test_a_dry_run_proves_and_writes_nothing(checkpoint: Path) -> None:
    """The summary is the same except for its end."""
    result = run_export(checkpoint, "--dry-run")
    assert result.exit_code == 0
    assert "passed" in result.stdout
    assert "nothing was written" in result.stdout
    assert not models_of(checkpoint).exists()


def test_a_failed_write_leaves_the_old_version(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle of it costs the new model, not the old one."""
    first = exported(checkpoint).manifest.sha256

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    result = run_export(checkpoint, "--model-version", "1", "--force")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert os.listdir(models_of(checkpoint) / "net") == ["1"]
    assert read_model(models_of(checkpoint), "net", 1).manifest.sha256 == first


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path) -> None:
    """What is under version control can be generated again and compared."""
    first = exported(checkpoint).manifest.sha256
    assert run_export(checkpoint).exit_code == 0
    assert read_model(models_of(checkpoint), "net", 2).manifest.sha256 == first


def test_the_summary_ends_with_the_formula_and_the_next_command(checkpoint: Path) -> None:
    """It ends with what the model computes, how to prove that against forward(), and what to
    type."""
    lines = run_export(checkpoint).stdout.splitlines()
    assert lines[-4] == "computes  y = linear(lstm(x)), at every time step"
    assert "--golden" in lines[-2]
    assert lines[-1].split() == [
        "next",
        "lstmserve",
        "serve",
        "--models",
        str(models_of(checkpoint)),
    ]
    assert "LSTM      5 -> 8, 1 layer(s)" in lines
    assert "head      Linear(8, 3)" in lines


def test_tensors_left_out_are_named(checkpoint: Path) -> None:
    """The summary and the manifest name them, once --drop allows to leave them out."""
    net = Net()
    save({**net.state_dict(), "norm.weight": net.fc.bias}, checkpoint)
    result = run_export(checkpoint, "--drop", "norm")
    assert "note      not exported: norm.weight" in result.stdout
    assert read_model(models_of(checkpoint), "net", 1).manifest.notes == (
        "not exported: norm.weight",
    )


def test_the_environment_sets_flags_and_flags_win(checkpoint: Path) -> None:
    """LSTMSERVE_MODEL_VERSION sets --model-version, and the flag overrides it."""
    env = {"LSTMSERVE_NAME": "other", "LSTMSERVE_MODEL_VERSION": "4"}
    assert run_export(checkpoint, env=env).exit_code == 0
    assert run_export(checkpoint, "--model-version", "5", env=env).exit_code == 0
    assert list_versions(models_of(checkpoint)) == [("other", 4), ("other", 5)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model-version", "0"], "is neither NEXT nor in [1, 999999999]"),
        (["--model-version", "two"], "is neither NEXT nor in [1, 999999999]"),
        (["--pre-head", "gelu"], "'gelu' is not one of"),
        (["--golden", "no-such-file"], "does not exist"),
    ],
)
def test_bad_usage_is_exit_2(checkpoint: Path, flags: list[str], says: str) -> None:
    """The line has the name, the value and what is allowed."""
    result = run_export(checkpoint, *flags)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not models_of(checkpoint).exists()


def test_a_checkpoint_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    """A missing checkpoint and a folder are bad usage."""
    assert run_export(tmp_path / "none.pt").exit_code == 2
    assert run_export(tmp_path).exit_code == 2


def test_without_torch_it_names_the_extra() -> None:
    """If torch cannot be imported the command names the extra, without a traceback."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lstmserve_export.cli import export_command as command\n"
        "command([sys.executable], prog_name='lstmserve export')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert "pip install '.[export]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_export_that_fails_its_proof_is_not_written(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the gates planted in torch's order the proof fails, and nothing is written."""
    monkeypatch.setattr("lstmserve_export.lstm.convert.GATE_ORDER", (0, 1, 2, 3))
    assert "parity failed on whole" in refused(checkpoint)


def test_weights_beyond_two_gigabytes_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger ONNX file than the limit, which is made small here, is refused."""
    monkeypatch.setattr("lstmserve_export.lstm.export.ONNX_BYTES_MAX", 1000)
    assert "larger than the 2 GB" in refused(checkpoint)


def test_wide_models_are_proved_on_fewer_rows(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """golden.npz does not grow with a vocabulary, and every sequence keeps a row."""
    monkeypatch.setattr(lstmserve_export.sequences, "VALUE_COUNT_MAX", 200)
    assert 8 <= exported(checkpoint).manifest.parity["rows"] < 30
