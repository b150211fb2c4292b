"""A network that learned where to start: forward() hands its nn.LSTM a parameter as the state.

python start.py train     # writes models/start/1
lstmserve serve           # in a second terminal
python start.py stream    # looks at a new session's state, and compares steps with forward()
"""

import sys

import numpy as np
import torch
from torch import nn

from lstmserve import Client


class Start(nn.Module):
    """x [B, T, 4] -> y [B, T, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(1, 1, 24))
        self.c0 = nn.Parameter(torch.randn(1, 1, 24))
        self.lstm = nn.LSTM(4, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        start = (
            self.h0.expand(-1, batch, -1).contiguous(),
            self.c0.expand(-1, batch, -1).contiguous(),
        )
        out, _ = self.lstm(x, start)
        return self.head(out)


def train() -> None:
    from lstmserve_export import export

    torch.manual_seed(0)
    net = Start()  # your training stands here
    torch.save(net.state_dict(), "start.pt")
    export(net, example=torch.randn(4, 20, 4), name="start")


def stream(target: str = "127.0.0.1:50051") -> None:
    net = Start().eval()
    net.load_state_dict(torch.load("start.pt"))
    x = torch.randn(60, 4)
    with torch.no_grad():
        expected = net(x[None])[0].numpy()
    with Client(target) as client, client.session("start") as session:
        h, c = session.state()
        np.testing.assert_array_equal(h, net.h0[:, 0].detach())  # a new session begins there
        np.testing.assert_array_equal(c, net.c0[:, 0].detach())
        y = np.stack([session.step(row) for row in x])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    print("the session begins from h0 and c0, and 60 steps are forward()'s")


if __name__ == "__main__":
    {"train": train, "stream": stream}[sys.argv[1]](*sys.argv[2:])
