"""A guitar amplifier, whose published file is JSON: it starts from a learned state."""

import json

import torch
from torch import nn


class Amplifier(nn.Module):
    def __init__(self, weights):
        super().__init__()
        gates, bias, self.h0, self.c0, self.weight, self.bias = weights.split([48, 12, 3, 3, 3, 1])
        self.lstm = nn.LSTM(1, 3, batch_first=True)
        ih, hh = gates.view(12, 4).split([1, 3], dim=1)
        for own, each in zip(self.lstm.parameters(), (ih, hh, bias, 0 * bias), strict=True):
            own.data = each.contiguous()

    def forward(self, x):
        h0, c0 = (each.expand(1, x.size(0), 3).contiguous() for each in (self.h0, self.c0))
        return self.lstm(x, (h0, c0))[0] @ self.weight.view(3, 1) + self.bias


def load(folder):
    return Amplifier(torch.tensor(json.loads((folder / "lstm.nam").read_text())["weights"]))


def example(x):
    return x[None, :64]
