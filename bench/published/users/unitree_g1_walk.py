"""The walk of a humanoid robot; as rsl_rl does it, time is the first axis."""

import torch
from torch import nn


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(47, 64)
        self.actor = nn.Sequential(nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 12))

    def forward(self, x):
        return self.actor(self.memory(x)[0])


def load(folder):
    policy = Policy()
    policy.load_state_dict(torch.load(folder / "unitree_sd.pt"), strict=False)
    return policy


def example(x):
    return x[:64, None]
