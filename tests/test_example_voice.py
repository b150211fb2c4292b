"""The voice example: who speaks in many calls, by Silero VAD as its authors published it."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from examples.voice import speech
from examples.voice.__main__ import run
from examples.voice.live import Board
from examples.voice.silero import frames, published
from examples.voice.speech import HOP, RATE, Calls, Floats, load, make_calls
from examples.voice.ways import ByHand, hear

STREAMS, SECONDS, COMPARED_S = 12, 8.0, 0.32


@pytest.fixture(scope="module")
def recordings() -> list[Floats]:
    """Debian's recordings. Without them the test is skipped, and fails in CI."""
    if not speech.RECORDINGS.is_dir():
        reason = "no recordings of speech: `sh tests/debian.sh` gets them where there is apt-get"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return load()


@pytest.fixture(scope="module")
def calls(recordings: list[Floats]) -> Calls:
    """A few short ones."""
    return make_calls(recordings, STREAMS, SECONDS)


def write(path: Path, samples: Floats, rate: int = RATE) -> None:
    """A WAV file of samples between -1 and 1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def test_the_demo_hears_who_speaks(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The imported file answers with the bits of onnxruntime in every way, finds the speech and
    takes no silence for it; the terminal has every call, and the picture is made."""
    result = run(calls, tmp_path, COMPARED_S, is_live=False)
    assert list(result) == [
        "streams",
        "seconds",
        "speech_found",
        "speech_mistaken",
        "is_equal",
        "costs",
        "picture",
    ]
    assert result["is_equal"]
    assert 0.1 < calls.speech.mean() < 0.6
    assert result["speech_found"] > 0.85
    assert result["speech_mistaken"] < 0.02
    assert [cost["is_served"] for cost in result["costs"]] == [False, False, False, True, True]
    assert all(cost["streams"] > 0 and cost["is_equal"] for cost in result["costs"])
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{STREAMS} calls" in printed
    assert all(f"{call:2d} " in printed for call in range(STREAMS))
    assert "all answers are equal, bit for bit" in printed


def test_a_frame_is_what_silero_s_own_code_runs(calls: Calls) -> None:
    """Silero's own wrapper, which keeps the samples before a frame, gives the same answers."""
    from silero_vad.utils_vad import OnnxWrapper

    samples = calls.samples[:1]
    own = OnnxWrapper(str(published()), force_onnx_cpu=True)
    sound = torch.from_numpy(samples.astype(np.float32) / 32768)
    expected = own.audio_forward(sound, RATE).numpy()
    found = hear(ByHand(1).step, frames(samples), is_live=False)
    assert np.array_equal(found.y, expected)


def test_calls_differ_and_a_seed_gives_them_again(recordings: list[Floats]) -> None:
    """No two calls sound the same; the same seed gives the same calls, another one gives others."""
    first, again, other = (make_calls(recordings, 5, 4.0, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.samples, again.samples)
    assert np.array_equal(first.speech, again.speech)
    every = np.concatenate([first.samples, other.samples])
    assert len({sound.tobytes() for sound in every}) == len(every) == 10


def test_a_call_is_noise_where_nobody_speaks(calls: Calls) -> None:
    """The frames with speech are those in which more than noise is heard."""
    sound = calls.samples.reshape(*calls.speech.shape, HOP).astype(np.float32) / 32768
    loudness = np.sqrt((sound**2).mean(axis=2))
    assert loudness[~calls.speech].max() < 0.01 < np.median(loudness[calls.speech])


def test_recordings_of_ones_own(tmp_path: Path) -> None:
    """The quiet ends of a recording are left out; another rate and an empty folder are refused
    with what to do."""
    with pytest.raises(SystemExit, match=r"sh examples/voice/speech\.sh, or give --speech FOLDER"):
        load(tmp_path)
    tone = np.sin(np.arange(4 * HOP, dtype=np.float32))
    quiet = np.zeros(3 * HOP, np.float32)
    write(tmp_path / "a.wav", np.concatenate([quiet, 0.25 * tone, quiet]))
    (found,) = load(tmp_path)
    assert len(found) == len(tone)
    np.testing.assert_allclose(found, tone, atol=1e-3)
    write(tmp_path / "b.wav", tone, rate=8000)
    with pytest.raises(SystemExit, match="is not 16 kHz, 16 bit, mono: convert it"):
        load(tmp_path)


def test_the_board_shows_the_likeliest_of_four_frames() -> None:
    """A call has a bar for each four frames, the last of which says whether somebody speaks."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=90)
    with Board(3, console) as board:
        for t, p in enumerate([0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.2, 0.49]):
            board.show(t, np.array([0.0, p, 0.3], np.float32), 0.002)
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().rpartition("0.3 s   3 calls, 1 speak now")[2]
    assert "slowest answer of the last second 2.0 ms" in last
    assert " 0 ▁▁▁▁" in last
    assert "\x1b[1;32m 1 ▁▁█▅\x1b[0m" in last  # green
    assert " 2 ▁▁▃▃" in last
