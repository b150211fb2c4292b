"""What the export's tests share: networks, files, the command, and onnxruntime on its output."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from click.testing import CliRunner, Result
from torch import nn

from lstmserve.manifest import ModelFiles, read_model
from lstmserve_export.cli import export_command

INPUTS, HIDDEN, OUTPUTS = 5, 8, 3


class Net(nn.Module):
    """lstm, then fc; what most checkpoints hold."""

    def __init__(self, **sizes: object) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(INPUTS, HIDDEN, **sizes)
        width = (self.lstm.proj_size or HIDDEN) * (1 + self.lstm.bidirectional)
        self.fc = nn.Linear(width, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y of every time step; x is [T, N, INPUTS]."""
        y: torch.Tensor = self.fc(self.lstm(x)[0])
        return y


def save(content: object, path: Path, **options: object) -> Path:
    """Saves the content by torch.save. Returns the path."""
    torch.save(content, path, **options)
    return path


def save_script(module: nn.Module, path: Path, *, freeze: bool = False) -> Path:
    """Saves the module as a TorchScript program. Returns the path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its files are about
        program = torch.jit.script(module.eval())
        (torch.jit.freeze(program) if freeze else program).save(str(path))
    return path


def run_export(checkpoint: Path, *flags: str, env: dict[str, str] | None = None) -> Result:
    """Runs the command; the models lie beside the checkpoint unless a flag says otherwise."""
    args = [str(checkpoint), *flags]
    if "--models" not in flags:
        args += ["--models", str(models_of(checkpoint))]
    return CliRunner().invoke(export_command, args, env=env)


def models_of(checkpoint: Path) -> Path:
    """The folder into which run_export puts models."""
    return checkpoint.parent / "models"


def exported(checkpoint: Path, *flags: str) -> ModelFiles:
    """What the command wrote, read as the server reads it."""
    result = run_export(checkpoint, *flags)
    assert result.exit_code == 0, result.output
    return read_model(models_of(checkpoint), checkpoint.stem, 1)


def refused(checkpoint: Path, *flags: str) -> str:
    """The one line of a refusal. The command must have written nothing."""
    result = run_export(checkpoint, *flags)
    assert result.exit_code == 1, result.output
    assert not models_of(checkpoint).exists()
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def onnx_answers(
    checkpoint: Path, x: np.ndarray, lengths: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, hn, cn of the written model.onnx in a plain onnxruntime, on x [N, T, ...].

    Each sequence begins from zeros, or from the file's own initial state where it has one.
    """
    folder = models_of(checkpoint) / checkpoint.stem / "1"
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    count, rows = x.shape[:2]
    feed = {
        session.get_inputs()[0].name: x,
        "lengths": np.array(lengths or [rows] * count, np.int32),
        **{
            name: np.zeros((shapes[name][0], count, shapes[name][2]), np.float32)
            for name in ("h0", "c0")
        },
    }
    for name in ("h", "c"):
        if f"initial.{name}" in [value.name for value in session.get_outputs()]:
            (own,) = session.run([f"initial.{name}"], feed)
            feed[f"{name}0"] = np.repeat(own[:, np.newaxis], count, axis=1)
    y, hn, cn = session.run(["y", "hn", "cn"], feed)
    return y, hn, cn


def rows(count: int = 4, length: int = 9, seed: int = 0) -> np.ndarray:
    """x float32 [count, length, INPUTS], standard normal."""
    return np.random.default_rng(seed).standard_normal((count, length, INPUTS)).astype(np.float32)


Edit = Callable[[bytes], bytes | None]


def patch_zip(path: Path, edits: Mapping[str, Edit]) -> None:
    """Rewrites entries of a zip, checksums and all; None leaves an entry out."""
    with zipfile.ZipFile(path) as source:
        contents = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, content in contents.items():
            edit = edits.get(name.partition("/")[2])
            changed = edit(content) if edit else content
            assert edit is None or changed != content
            if changed is not None:
                target.writestr(name, changed)
