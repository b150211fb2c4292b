"""Shows in a terminal who speaks. Computes nothing and knows no server."""

from __future__ import annotations

from collections import deque

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.voice.silero import SPEAKING
from examples.voice.speech import FRAME_S, Floats

BARS = "▁▂▃▄▅▆▇█"
SILENT, SPEAKS = "grey50", "bold green"
COLUMNS, HISTORY = 10, 4  # calls beside each other, and bars of each
BAR_FRAMES = 4  # of which the likeliest is shown, so that no word is missed


class Board:
    """A cell for each call: its number, and the probability of speech in its last half second."""

    def __init__(self, streams: int, console: Console) -> None:
        self._streams = streams
        self._bars = deque([np.zeros(streams, np.float32)] * HISTORY, HISTORY)
        self._frames: deque[Floats] = deque(maxlen=BAR_FRAMES)
        self._waits_s: deque[float] = deque(maxlen=round(1 / FRAME_S))
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, t: int, y: Floats, took_s: float) -> None:
        """Takes the probabilities [S] of frame t, which took so long; draws some of the times."""
        self._frames.append(y)
        self._waits_s.append(took_s)
        if (t + 1) % BAR_FRAMES == 0:
            self._bars.append(np.max(self._frames, axis=0))
            self._live.update(self._drawn(t), refresh=True)

    def _drawn(self, t: int) -> Group:
        speaking = int((self._bars[-1] >= SPEAKING).sum())
        head = (
            f"{(t + 1) * FRAME_S:.1f} s   {self._streams} calls, {speaking} speak now   "
            f"slowest answer of the last second {1e3 * max(self._waits_s):.1f} ms"
        )
        table = Table.grid(padding=(0, 1))
        cells = [self._cell(call) for call in range(self._streams)]
        for i in range(0, self._streams, COLUMNS):
            table.add_row(*cells[i : i + COLUMNS])
        return Group(Text(head), table)

    def _cell(self, call: int) -> Text:
        p = [float(bar[call]) for bar in self._bars]
        bars = "".join(BARS[min(int(each * len(BARS)), len(BARS) - 1)] for each in p)
        return Text(f"{call:2d} {bars}", SPEAKS if p[-1] >= SPEAKING else SILENT)
