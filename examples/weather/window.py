"""Serves a network that was trained on windows, with a window and with a running state.

Run it with python -m examples.weather.window. It trains an nn.LSTM on windows of 24 hours of the
temperature at JFK, where forward() answers for the last hour alone: out[:, -1]. It serves the same
weights as two models, and prints the error of the forecasts of both.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import lstmserve
from examples.serving import serve
from examples.weather.features import load_year
from lstmserve_export import export

STATION = "JFK"
WINDOW = 24
SEED, RUNS, WINDOWS, LEARNING_RATE = 4, 1500, 128, 5e-3
STEP_ROWS = 1000  # of one step to the server

Floats = npt.NDArray[np.float32]


class Net(nn.Module):
    """Temperatures [B, T, 1] -> the temperature one hour after the last of them [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(x)
        answer: torch.Tensor = self.head(out[:, -1])
        return answer


def temperatures() -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The year's temperatures [T] in deviations from their mean, and which hours are held out."""
    year = load_year()
    degrees = year.temp_f[year.stations.index(STATION)]
    known = degrees[~year.held_out]
    return (degrees - known.mean()) / known.std(), year.held_out


def windows_of(x: Floats) -> Floats:
    """Every whole window of the hours [T]: [T - 23, 24, 1]."""
    return np.lib.stride_tricks.sliding_window_view(x, WINDOW)[..., np.newaxis]


def train(runs: int = RUNS) -> Net:
    """Trains on windows that, with their target, lie outside the hours that are held out."""
    torch.manual_seed(SEED)
    x, held_out = temperatures()
    x_windows = torch.from_numpy(windows_of(x)[:-1].copy())
    targets = torch.from_numpy(x[WINDOW:].copy())
    is_known = ~np.lib.stride_tricks.sliding_window_view(held_out, WINDOW + 1).any(axis=1)
    known = torch.from_numpy(np.flatnonzero(is_known))
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, runs)
    for _ in range(runs):
        chosen = known[torch.randint(len(known), (WINDOWS,))]
        loss = (net(x_windows[chosen])[:, 0] - targets[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def export_both(net: Net, models: Path) -> None:
    """Writes the models `running` and `windows`, which have the same weights."""
    export(net.lstm, net.head, name="running", models=models)
    export(net.lstm, net.head, name="windows", models=models, window=WINDOW)


def forecasts(target: str, model: str, x: Floats) -> Floats:
    """What the server forecasts after each of the hours [T]: [T], NaN while it waits for more."""
    rows = x[:, np.newaxis]
    with lstmserve.Client(target) as client, client.session(model) as session:
        parts = [session.step(rows[i : i + STEP_ROWS]) for i in range(0, len(x), STEP_ROWS)]
    given = np.concatenate(parts)[:, 0]
    return np.concatenate([np.full(len(x) - len(given), np.nan, np.float32), given])


def rmse(forecast: Floats) -> float:
    """Root mean square error over the hours that are held out, in deviations."""
    x, held_out = temperatures()
    error = (forecast[:-1] - x[1:])[held_out[:-1]].astype(np.float64)
    return float(np.sqrt(np.nanmean(error**2)))


def main() -> None:
    """Trains, serves and prints."""
    begin = time.perf_counter()
    net = train()
    print(f"trained on windows of {WINDOW} hours in {time.perf_counter() - begin:.0f} s")
    x, _ = temperatures()
    with TemporaryDirectory() as folder:
        export_both(net, Path(folder))
        with serve(Path(folder)) as server:
            found = {name: forecasts(server.target, name, x) for name in ("windows", "running")}
    apart = np.nanmax(np.abs(found["windows"] - found["running"]))
    best, worse = rmse(found["windows"]), rmse(found["running"])
    print(f"error of the forecasts, windows of {WINDOW} hours: {best:.4f}")
    print(f"error with a state that runs on: {worse:.4f}, {worse / best - 1:.0%} more")
    print(f"largest difference between two forecasts: {apart:.2f}")


if __name__ == "__main__":
    main()
