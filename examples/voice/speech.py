"""Makes many phone calls out of a few recordings of speech. Knows no model and no server.

One side of a call is mostly silent: utterances with long gaps between them, and noise all the time.
"""

from __future__ import annotations

import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

RATE = 16_000  # samples a second
HOP = 512  # new samples of a frame, 32 ms
FRAME_S = HOP / RATE
RECORDINGS = Path(__file__).with_name("out") / "speech"
GAP_S = 7.0  # silence between two utterances, on average
GAP_S_MIN = 1.0
QUIET = 0.05  # of the loudest frame: quieter ones at the ends of a recording are no speech
GET = "run sh examples/voice/speech.sh, or give --speech FOLDER"


@dataclass(frozen=True, slots=True)
class Calls:
    """`samples` int16 [S, T * HOP] of S calls, and `speech` bool [S, T]: whether somebody speaks
    in a frame, pauses between words included."""

    samples: npt.NDArray[np.int16]
    speech: npt.NDArray[np.bool_]


def load(folder: Path = RECORDINGS) -> list[Floats]:
    """The recordings of a folder, without the silence around them: [N] each, loudest value 1.

    Ends the program where there is none, or one that is not 16 kHz, 16 bit, mono.
    """
    if not (paths := sorted(folder.glob("*.wav"))):
        sys.exit(f"no recordings of speech in {folder}: {GET}")
    return [_trimmed(_read(path)) for path in paths]


def make_calls(recordings: list[Floats], streams: int, seconds: float, seed: int = 0) -> Calls:
    """Every call has its own voice, loudness, noise and gaps, which the seed decides."""
    count = round(seconds / FRAME_S)
    samples = np.empty((streams, count * HOP), np.int16)
    speech = np.zeros((streams, count), np.bool_)
    for call, rng in enumerate(np.random.default_rng(seed).spawn(streams)):
        values = rng.standard_normal(count * HOP, np.float32) * 10 ** rng.uniform(-4, -2.5)
        loudness, speed = rng.uniform(0.2, 0.8), rng.uniform(0.9, 1.1)
        at = int(rng.uniform(0, GAP_S) / FRAME_S)
        while at < count:
            spoken = _played(recordings[rng.integers(len(recordings))], speed)
            spoken = spoken[: (count - at) * HOP]
            values[at * HOP : at * HOP + len(spoken)] += loudness * spoken
            speech[call, at : (end := at + -(-len(spoken) // HOP))] = True
            at = end + int((GAP_S_MIN + rng.exponential(GAP_S - GAP_S_MIN)) / FRAME_S)
        samples[call] = np.clip(values, -1, 1) * 32767
    return Calls(samples, speech)


def _read(path: Path) -> Floats:
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (RATE, 2, 1):
            sys.exit(f"{path} is not 16 kHz, 16 bit, mono: convert it")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)


def _trimmed(samples: Floats) -> Floats:
    frames = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    loud = np.sqrt((frames**2).mean(axis=1))
    spoken = np.flatnonzero(loud > QUIET * loud.max())
    kept = frames[spoken[0] : spoken[-1] + 1].reshape(-1)
    return kept / np.float32(np.abs(kept).max())


def _played(samples: Floats, speed: float) -> Floats:
    """Faster is also higher, so that it sounds like another person."""
    at = np.arange(0, len(samples) - 1, speed)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
