"""The ways to find out who speaks in many calls: onnxruntime in the program itself, and a server.

InTurns with a session per call is what most programs do. It and ByHand keep the states in the
program; Gateway and hear_each leave them to the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from examples.voice.silero import MODEL, as_floats, published
from examples.voice.speech import FRAME_S, RATE, Floats
from lstmserve import AsyncClient, Client
from lstmserve.client import AsyncSession

Step = Callable[[Floats], Floats]  # x [S, WIDTH] -> probabilities [S]
Show = Callable[[int, Floats, float], None]  # frame, probabilities [S], seconds that they took
Frames = npt.NDArray[np.int16]  # [S, T, WIDTH]
STATE = (2, 1, 128)  # of one call; axis 1 is the batch


@dataclass(frozen=True, slots=True)
class Heard:
    """`y` [S, T]: the probability of speech in each frame of each call; `late_s` [S, T]: how long
    after the frame's last sample it was known."""

    y: Floats
    late_s: Floats


def load() -> ort.InferenceSession:
    """Silero's file as Silero's own code loads it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(published(), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, x: Floats, state: Floats) -> tuple[Floats, Floats]:
    """x [B, WIDTH] and state [2, B, 128] -> probabilities [B], and the next state."""
    feed = {"input": x, "state": state, "sr": np.array(RATE)}
    y, after = session.run(None, feed)
    return y[:, 0], after


class InTurns:
    """A call after the other, each through its own onnxruntime session, or all through one."""

    def __init__(self, streams: int, *, is_shared: bool) -> None:
        one = load()
        self._sessions = [one if is_shared else load() for _ in range(streams)]
        self._states = [np.zeros(STATE, np.float32) for _ in range(streams)]

    def step(self, x: Floats) -> Floats:
        """x [S, WIDTH] -> probabilities [S]."""
        y = np.empty(len(x), np.float32)
        for i, session in enumerate(self._sessions):
            (y[i],), self._states[i] = run(session, x[i : i + 1], self._states[i])
        return y


class ByHand:
    """All calls as one batch of one onnxruntime session, which is possible while none comes or
    goes and every frame is there in time."""

    def __init__(self, streams: int) -> None:
        self._session = load()
        self._state = np.zeros((2, streams, 128), np.float32)

    def step(self, x: Floats) -> Floats:
        """x [S, WIDTH] -> probabilities [S]."""
        y, self._state = run(self._session, x, self._state)
        return y


class Gateway:
    """One program with all calls, which sends their frames to the server in one message."""

    def __init__(self, client: Client, streams: int) -> None:
        self._client = client
        self._sessions = [client.session(MODEL) for _ in range(streams)]

    def step(self, x: Floats) -> Floats:
        """x [S, WIDTH] -> probabilities [S]."""
        replies = self._client.step_many(dict(zip(self._sessions, x, strict=True)))
        return np.concatenate(list(replies.values()))


def hear(step: Step, frames: Frames, *, is_live: bool, show: Show | None = None) -> Heard:
    """Takes a frame of every call as soon as it has been spoken; if not `is_live`, at once."""
    y, late_s = np.empty((2, *frames.shape[:2]), np.float32)
    begin_s = time.perf_counter()
    for t in range(frames.shape[1]):
        due_s = begin_s + t * FRAME_S if is_live else time.perf_counter()
        time.sleep(max(0.0, due_s - time.perf_counter()))
        y[:, t] = step(as_floats(frames[:, t]))
        late_s[:, t] = took_s = time.perf_counter() - due_s
        if show:
            show(t, y[:, t], took_s)
    return Heard(y, late_s)


async def hear_each(target: str, frames: Frames, *, is_live: bool) -> Heard:
    """As hear(), but every call is a gRPC stream of its own, and frames end at different times."""
    heard = Heard(*np.empty((2, *frames.shape[:2]), np.float32))
    async with AsyncClient(target) as client:
        sessions = [await client.session(MODEL) for _ in frames]
        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for call, session in enumerate(sessions):
                start_s = begin_s + FRAME_S * call / len(sessions) if is_live else None
                tasks.create_task(_hear_one(session, frames[call], start_s, heard, call))
    return heard


async def _hear_one(
    session: AsyncSession, frames: Frames, begin_s: float | None, heard: Heard, call: int
) -> None:
    due_s: list[float] = []

    async def spoken() -> AsyncIterator[Floats]:
        for t, frame in enumerate(frames):
            now_s = time.perf_counter()
            due_s.append(now_s if begin_s is None else begin_s + t * FRAME_S)
            await asyncio.sleep(max(0.0, due_s[t] - now_s))
            yield as_floats(frame)

    t = 0
    async for y in session.stream(spoken()):
        heard.y[call, t] = y.item()
        heard.late_s[call, t] = time.perf_counter() - due_s[t]
        t += 1
