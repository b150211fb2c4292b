"""Silero VAD: where its ONNX file is, how it is imported, and the frames that it takes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.serving import LSTMSERVE
from examples.voice.speech import HOP, RATE, Floats

ROOT = Path(__file__).resolve().parents[2]
MODEL = "silero"
CONTEXT = 64  # samples of before that the network wants in front of the new ones
WIDTH = CONTEXT + HOP
SPEAKING = np.float32(0.5)  # the probability from which on Silero's own code says: speech


def published() -> Path:
    """The file in the wheel silero-vad (MIT), which nothing imports. Ends the program without."""
    try:
        wheel = distribution("silero-vad")
    except PackageNotFoundError:
        sys.exit("no Silero VAD here: pip install --no-deps silero-vad==6.2.3")
    return Path(str(wheel.locate_file("silero_vad/data/silero_vad.onnx")))


def import_model(models: Path) -> None:
    """Runs `lstmserve import` as an operator would, from the repository's root."""
    flags = ["--constant", f"sr={RATE}", "--rows", f"{WIDTH}", "--model-version", "1", "--force"]
    file, folder = (str(path).removeprefix(f"{ROOT}/") for path in (published(), models))
    arguments = ["import", file, "--name", MODEL, *flags, "--models", folder]
    print(f"$ lstmserve {shlex.join(arguments)}", flush=True)
    subprocess.run([LSTMSERVE, *arguments], check=True, cwd=ROOT)


def frames(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Samples [S, T * HOP] of whole calls -> a view [S, T, WIDTH], whose frames overlap."""
    padded = np.pad(samples, ((0, 0), (CONTEXT, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, WIDTH, axis=1)[:, ::HOP]


def as_floats(frame: npt.NDArray[np.int16]) -> Floats:
    """What the network reads: the same shape in float32, -1 to 1."""
    return frame.astype(np.float32) / np.float32(32768)
