"""Forecasts a wave: layers before an nn.LSTM, dropout, and a head on the last time step.

python forecaster.py train     # trains the network and writes models/forecaster/1
lstmserve serve                # in a second terminal
python forecaster.py stream    # steps a session and compares it with forward()
"""

import sys

import numpy as np
import torch
from torch import nn

from lstmserve import Client


class Forecaster(nn.Module):
    """Readings x [B, T, 3] -> the next two values of the first one, y [B, 2]."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.ReLU())
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.front(x))
        return self.head(self.dropout(out[:, -1]))


def readings(count: int, length: int) -> torch.Tensor:
    """Noisy waves [count, length, 3], each with a phase of its own."""
    phase = 6.3 * torch.rand(count, 1)
    time = phase + 0.3 * torch.arange(length)
    waves = torch.stack([time.sin(), time.cos(), (2 * time).sin()], dim=-1)
    return waves + 0.05 * torch.randn(waves.shape)


def train() -> None:
    from lstmserve_export import export

    torch.manual_seed(0)
    net = Forecaster()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        x = readings(32, 26)
        loss = nn.functional.mse_loss(net(x[:, :24]), x[:, 24:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")
    torch.save(net.state_dict(), "forecaster.pt")
    export(net, example=readings(4, 24), name="forecaster")


def stream(target: str = "127.0.0.1:50051") -> None:
    net = Forecaster().eval()
    net.load_state_dict(torch.load("forecaster.pt"))
    (x,) = readings(1, 100)
    worst = 0.0
    with Client(target) as client, client.session("forecaster") as session, torch.no_grad():
        for t in range(len(x)):
            y = session.step(x[t])  # x [3] -> y [2]
            expected = net(x[None, : t + 1])[0].numpy()  # forward() of all rows so far
            worst = max(worst, float(np.abs(y - expected).max()))
    print(f"100 steps differ from forward() by {worst:.1e} at most")


if __name__ == "__main__":
    {"train": train, "stream": stream}[sys.argv[1]](*sys.argv[2:])
