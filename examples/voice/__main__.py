"""Voice activity in a hundred calls: python -m examples.voice [--streams N] [--seconds S].

It imports Silero VAD, starts a server, streams calls through it in real time and shows who speaks.
Then it hears a part of the calls in other ways, and compares their answers and what they cost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.serving import ServerDied, serve
from examples.voice import speech
from examples.voice.costs import Cost, compare
from examples.voice.live import Board
from examples.voice.picture import draw
from examples.voice.silero import SPEAKING, frames, import_model
from examples.voice.speech import FRAME_S, Calls
from examples.voice.ways import Gateway, hear
from lstmserve import Client
from lstmserve.client import LstmServeError

OUT = Path(__file__).with_name("out")
COMPARED_S = 10.0  # of the calls, in each way

console = Console(highlight=False)


def run(calls: Calls, out: Path, compared_s: float, *, is_live: bool = True) -> dict[str, Any]:
    """Runs the demo, writes into `out`, and returns the content of result.json.

    If not `is_live`, the calls are heard as fast as the server can.
    """
    out.mkdir(parents=True, exist_ok=True)
    import_model(out / "models")
    x = frames(calls.samples)
    with serve(out / "models") as server:
        with Client(server.target, retry_s_max=2) as client, Board(len(x), console) as board:
            heard = hear(Gateway(client, len(x)).step, x, is_live=is_live, show=board.show)
        console.print(f"\nthe first {compared_s:g} s in five ways, in real time and then at once:")
        part = round(compared_s / FRAME_S)
        costs = list(compare(server, x[:, :part], heard.y[:, :part]))
    show_costs(costs, len(x))
    is_equal = all(each.is_equal for each in costs)
    console.print(f"{'all' if is_equal else 'NOT all'} answers are equal, bit for bit")
    speaks = heard.y >= SPEAKING
    found, mistaken = speaks[calls.speech].mean(), speaks[~calls.speech].mean()
    console.print(f"speech in {found:.1%} of the frames with it, in {mistaken:.2%} of the others")
    picture = out / "calls.png"
    draw(picture, calls, heard.y, {each.way: (each.streams, each.is_served) for each in costs})
    return {
        "streams": len(x),
        "seconds": x.shape[1] * FRAME_S,
        "speech_found": float(found),
        "speech_mistaken": float(mistaken),
        "is_equal": is_equal,
        "costs": [asdict(each) for each in costs],
        "picture": str(picture),
    }


def show_costs(costs: Sequence[Cost], streams: int) -> None:
    """Prints the table of the ways."""
    table = Table("", title=f"Streams of a core, and what {streams} take in real time")
    for head in ("streams", "cores", "client's", "99 % within", "MiB"):
        table.add_column(head, justify="right")
    for each in costs:
        table.add_row(
            each.way,
            f"{each.streams:,.0f}",
            f"{each.cores:.2f}",
            f"{each.client_cores:.2f}" if each.is_served else "",
            f"{each.late_ms:.1f} ms",
            f"{each.mib:,.0f}",
        )
    console.print(table)


def main() -> None:
    """Runs the demo. Exits with 0, or with 1 and one error on stderr."""
    parser = argparse.ArgumentParser(description="Who speaks in a hundred calls.")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--speech", type=Path, default=speech.RECORDINGS, help="WAV files")
    asked = parser.parse_args()
    calls = speech.make_calls(speech.load(asked.speech), asked.streams, asked.seconds)
    try:
        result = run(calls, OUT, COMPARED_S)
    except (ServerDied, LstmServeError, subprocess.CalledProcessError) as error:
        sys.exit(f"demo failed: {error}")
    (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"wrote {result['picture']} and result.json beside it")
    if not result["is_equal"]:
        sys.exit("demo failed: an answer has other bits than onnxruntime gives alone")


if __name__ == "__main__":
    main()
