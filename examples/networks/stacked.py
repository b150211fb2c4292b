"""Two nn.LSTMs of different sizes, with a residual around the second; an answer for each row.

python stacked.py train     # writes models/stacked/1
lstmserve serve             # in a second terminal
python stacked.py stream    # moves a session to another one, and compares it with forward()
"""

import sys

import numpy as np
import torch
from torch import nn

from lstmserve import Client


class Stacked(nn.Module):
    """x [T, B, 5] -> y [T, B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.LSTM(5, 48)
        self.narrow = nn.LSTM(48, 16, num_layers=2, dropout=0.1)
        self.around = nn.Linear(48, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide, _ = self.wide(x)
        narrow, _ = self.narrow(wide)
        return self.head(narrow + self.around(wide))


def train() -> None:
    from lstmserve_export import export

    torch.manual_seed(0)
    net = Stacked()  # your training stands here
    torch.save(net.state_dict(), "stacked.pt")
    export(net, example=torch.randn(30, 4, 5), name="stacked")


def stream(target: str = "127.0.0.1:50051") -> None:
    net = Stacked().eval()
    net.load_state_dict(torch.load("stacked.pt"))
    x = torch.randn(40, 5)
    with torch.no_grad():
        expected = net(x[:, None])[:, 0].numpy()
    with Client(target) as client:
        with client.session("stacked") as session:
            first = session.step(x[:25])  # 25 rows at once: y [25, 2]
            state = session.state()
        for name, tensor in state.tensors.items():
            print(name, tensor.shape)  # wide.h (1, 48), wide.c, narrow.h (2, 16), narrow.c
        with client.session("stacked", state=state) as session:
            rest = [session.step(row) for row in x[25:]]
    np.testing.assert_allclose(np.vstack([first, *rest]), expected, rtol=1e-4, atol=1e-4)
    print("40 rows over two sessions are forward()'s")


if __name__ == "__main__":
    {"train": train, "stream": stream}[sys.argv[1]](*sys.argv[2:])
