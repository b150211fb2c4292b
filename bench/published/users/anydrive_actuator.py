"""The drive of a robot's joint: forward() takes and returns the state as a pair."""

import torch
from torch import nn


class Drive(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 8, 2, batch_first=True)
        self.linear = nn.Linear(8, 1)
        self.register_buffer("in_scale", torch.ones(1, 1, 2))
        self.register_buffer("out_scale", torch.ones(1))

    def forward(self, x, state):
        y, state = self.lstm(x * self.in_scale, state)
        return self.out_scale * self.linear(y), state


def load(folder):
    drive = Drive()
    drive.load_state_dict(torch.load(folder / "anydrive_sd.pt"))
    return drive


def example(x):
    return x[None, :64], (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8))
