"""The weather demo: python -m examples.weather.demo [--retrain].

It exports the checkpoint, starts a server, streams a year of three stations through it hour by
hour, and compares every reply with torch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.serving import LSTMSERVE, Server, ServerDied, serve
from examples.weather.features import HORIZONS_H, Floats, Year, load_year, rmse_f
from examples.weather.picture import draw
from examples.weather.train import CHECKPOINT, WeatherNet, train_and_save
from lstmserve import Client
from lstmserve.client import LstmServeError

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "examples" / "weather" / "out"
MODEL = "weather"
ROWS = {
    "persistence": "persistence: it stays as it is",
    "served": "LSTM, served",
    "served_without_state": "LSTM, served, state dropped",
}

DIFFERENCE_F_MAX = 1e-4  # between a reply and torch's, on any machine; 1e-5 is usual
NEXT = """
[bold]Next[/bold], after `. .venv/bin/activate`:
  lstmserve serve --models examples/weather/out/models       # keep it running; in another shell:
  python -m examples.weather.stream --seconds 10             # 60 sessions, every reply checked
  lstmserve top                                              # what the server does
  lstmserve export net.pt --name mine                        # your own nn.LSTM (docs/EXPORT.md)"""

console = Console(highlight=False)


def export(checkpoint: Path, models: Path) -> None:
    """Runs `lstmserve export` as a user would, from the repository's root."""
    arguments = ["export", _shown(checkpoint / "weather.pt"), "--model-version", "1", "--force"]
    for flag in ("input-mean", "input-scale", "output-scale"):
        arguments += [f"--{flag}", _shown(checkpoint / f"{flag.replace('-', '_')}.txt")]
    arguments += ["--models", _shown(models)]
    console.print(f"[bold]$ lstmserve {shlex.join(arguments)}[/bold]", soft_wrap=True)
    subprocess.run([LSTMSERVE, *arguments], check=True, cwd=ROOT)


def _shown(path: Path) -> str:
    """The path below the repository's root."""
    return str(path).removeprefix(f"{ROOT}/")


def stream(client: Client, year: Year) -> Floats:
    """The served warming [S, T, 4], with a session per station, hour by hour of all three."""
    replies = []
    sessions = [client.session(MODEL) for _ in year.stations]
    for hour in track(range(len(year.hours)), "streaming, hours", console=console):
        inputs = {session: x[hour] for session, x in zip(sessions, year.x, strict=True)}
        replies.append(list(client.step_many(inputs).values()))
    return np.stack(replies, axis=1)


def forget(client: Client, year: Year) -> Floats:
    """The served warming [S, T, 4] if every hour starts from zeros: predict keeps no state."""
    return np.stack([client.predict(MODEL, list(x)) for x in year.x])


def compute_with_torch(checkpoint: Path, year: Year) -> Floats:
    """torch's warming [S, T, 4], hour by hour, with its own (h, c) carried through the year."""
    torch.set_num_threads(1)  # an LSTM this small only waits for a second thread
    mean, scale, stretch = (
        np.loadtxt(checkpoint / f"{name}.txt", np.float32)
        for name in ("input_mean", "input_scale", "output_scale")
    )
    net = WeatherNet().eval()
    net.load_state_dict(torch.load(checkpoint / "weather.pt"))
    x = torch.from_numpy((year.x - mean) / scale).transpose(0, 1)
    answers, state = [], None
    with torch.inference_mode():
        for hour in x:
            y, state = net(hour[None], state)
            answers.append(y[0].numpy() * stretch)
    return np.stack(answers, axis=1)


def show_errors(rmse: Mapping[str, list[float]]) -> None:
    """Prints the table of errors."""
    table = Table(title="Forecast error in held-out hours, RMSE in °F")
    table.add_column("")
    for ahead in HORIZONS_H:
        table.add_column(f"{ahead} h", justify="right")
    for name, label in ROWS.items():
        table.add_row(label, *(f"{error:.2f}" for error in rmse[name]))
    console.print(table)


def show_metrics(server: Server) -> None:
    """Prints a few of the server's own figures, from what Prometheus would read."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy: it is local
    with direct.open(server.metrics_url, timeout=5) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    total: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        total[sample.name] = total.get(sample.name, 0) + sample.value
    batches, steps = total["lstm_batch_size_count"], total["lstm_step_seconds_count"]
    console.print(
        f"the server says: {total['lstm_steps_total']:,.0f} steps and "
        f"{total['lstm_rows_total']:,.0f} rows in {batches:,.0f} batches, "
        f"{total['lstm_step_seconds_sum'] / steps * 1e6:.0f} us a step inside it, "
        f"{total['lstm_sessions']:.0f} sessions open",
        soft_wrap=True,
    )


def run(checkpoint: Path, year: Year, out: Path) -> dict[str, Any]:
    """Runs the demo, writes into `out`, and returns the content of result.json."""
    out.mkdir(parents=True, exist_ok=True)
    export(checkpoint, out / "models")
    with serve(out / "models") as server, Client(server.target, retry_s_max=2) as client:
        console.print(f"a server listens on {server.target}")
        begin = time.perf_counter()
        served = stream(client, year)
        seconds = time.perf_counter() - begin
        show_metrics(server)
        without_state = forget(client, year)
    warming = {
        "persistence": np.zeros_like(served),
        "served": served,
        "served_without_state": without_state,
    }
    rmse = {name: rmse_f(values, year) for name, values in warming.items()}
    show_errors(rmse)
    difference = float(np.abs(served - compute_with_torch(checkpoint, year)).max())
    steps = served.shape[0] * served.shape[1]
    console.print(f"largest difference from torch in {steps:,} replies: {difference:.1e} °F")
    console.print(f"{steps:,} steps over gRPC in {seconds:.1f} s, three sessions, one hour a time")
    picture = out / "forecast.png"
    draw(picture, year, warming, rmse)
    return {
        "horizons_h": list(HORIZONS_H),
        **rmse,
        "max_abs_diff_torch": difference,
        "steps": steps,
        "seconds": seconds,
        "picture": _shown(picture),
    }


def main() -> None:
    """Runs the demo. Exits with 0, or with 1 and one error on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--retrain", action="store_true", help="train again, into out/checkpoint")
    checkpoint = OUT / "checkpoint" if parser.parse_args().retrain else CHECKPOINT
    if checkpoint != CHECKPOINT:
        train_and_save(checkpoint)
    try:
        result = run(checkpoint, load_year(), OUT)
    except (ServerDied, LstmServeError, subprocess.CalledProcessError) as error:
        sys.exit(f"demo failed: {error}")
    (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"wrote {result['picture']} and result.json beside it")
    if not result["max_abs_diff_torch"] <= DIFFERENCE_F_MAX:  # NaN too
        sys.exit(f"demo failed: a reply is {result['max_abs_diff_torch']} °F from torch's")
    console.print(NEXT, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
