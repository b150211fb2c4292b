"""Trains the weather model: python -m examples.weather.train. It serves nothing.

It writes checkpoint/weather.pt (a plain state_dict) and, beside it, the lists of numbers that turn
physical units into the network's and back: input_mean.txt, input_scale.txt, output_scale.txt (the
mean warming of a year is 0). `lstmserve export` reads these four files.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.weather.features import FEATURES, HORIZONS_H, Year, load_year, rmse_f

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
SEED = 4
RUNS, WINDOWS, WINDOW_H = 250, 64, 240
LEARNING_RATE, WEIGHT_DECAY = 8e-3, 1e-2


class WeatherNet(nn.Module):
    """Eight readings [T, B, 8] in, four temperature changes [T, B, 4] out, in scaled units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(FEATURES), 32)
        self.dropout = nn.Dropout(0.4)  # one year is little to learn from
        self.head = nn.Linear(32, len(HORIZONS_H))

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        out, state = self.lstm(x, state)
        return self.head(self.dropout(out)), state


def training_targets(year: Year) -> np.ndarray:
    """The warming [S, T, 4], NaN wherever the forecast or its target is in a held-out block."""
    targets = year.warming()
    targets[:, year.held_out] = np.nan
    for index, ahead in enumerate(HORIZONS_H):
        targets[:, :-ahead][:, year.held_out[ahead:], index] = np.nan
    return targets


def scales(year: Year, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation of the inputs, deviation of the targets, over the training hours."""
    x = year.x[:, ~year.held_out].astype(np.float64)
    y = targets.astype(np.float64)
    return {
        "input_mean": x.mean(axis=(0, 1)).astype(np.float32),
        "input_scale": x.std(axis=(0, 1)).astype(np.float32),
        "output_scale": np.sqrt(np.nanmean(y**2, axis=(0, 1))).astype(np.float32),
    }


def train(x: torch.Tensor, y: torch.Tensor) -> WeatherNet:
    """Trains a net on x [T, S, 8] and y [T, S, 4], in scaled units; it does not learn from NaN."""
    torch.manual_seed(SEED)
    net = WeatherNet()
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, RUNS)
    hours = torch.arange(WINDOW_H)[:, None]
    for run in range(RUNS):
        start = torch.randint(len(x) - WINDOW_H + 1, (WINDOWS,))
        station = torch.randint(x.shape[1], (WINDOWS,))
        predicted, _ = net(x[start + hours, station])
        error = predicted - y[start + hours, station]
        loss = error[~error.isnan()].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if run % 50 == 49:
            print(f"{run + 1} of {RUNS} runs, loss {loss.item():.3f}", flush=True)
    return net.eval()


def train_and_save(folder: Path) -> None:
    """Trains a net, prints its held-out error, and writes the four files."""
    print(f"training on this machine's CPU, seed {SEED}", flush=True)
    begin = time.perf_counter()
    year = load_year()
    targets = training_targets(year)
    norm = scales(year, targets)
    x = torch.from_numpy((year.x - norm["input_mean"]) / norm["input_scale"]).transpose(0, 1)
    y = torch.from_numpy(targets / norm["output_scale"]).transpose(0, 1)
    net = train(x, y)
    with torch.inference_mode():
        predicted = net(x)[0].transpose(0, 1).numpy()
    error = rmse_f(predicted * norm["output_scale"], year)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "weather.pt")
    for name, numbers in norm.items():
        np.savetxt(folder / f"{name}.txt", numbers, fmt="%.9g")
    print(f"held-out error, °F at {HORIZONS_H} h: {', '.join(f'{e:.2f}' for e in error)}")
    print(f"wrote {folder} in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    train_and_save(CHECKPOINT)
