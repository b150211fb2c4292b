"""A recurrent policy: two heads, and a state that forward() takes and returns; no axis of time.

python policy.py train     # writes models/policy/1
lstmserve serve            # in a second terminal
python policy.py stream    # plays one episode and compares it with forward()
"""

import sys

import numpy as np
import torch
from torch import nn

from lstmserve import Client

State = tuple[torch.Tensor, torch.Tensor]


class Policy(nn.Module):
    """One observation [B, 8] and the state -> logits of 4 actions, the value, the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.cell = nn.LSTMCell(32, 64)
        self.actor = nn.Linear(64, 4)
        self.critic = nn.Linear(64, 1)

    def forward(self, obs: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
        h, c = self.cell(self.encoder(obs), state)
        return self.actor(h), self.critic(h), (h, c)


def train() -> None:
    from lstmserve_export import export

    torch.manual_seed(0)
    net = Policy()  # your training stands here
    torch.save(net.state_dict(), "policy.pt")
    obs, zeros = torch.randn(16, 8), torch.zeros(16, 64)
    export(
        net,
        example=(obs, (zeros, zeros)),
        output_names=("logits", "value"),
        name="policy",
    )


def stream(target: str = "127.0.0.1:50051") -> None:
    net = Policy().eval()
    net.load_state_dict(torch.load("policy.pt"))
    state = torch.zeros(1, 64), torch.zeros(1, 64)
    obs = torch.randn(1, 8)
    with Client(target) as client, client.session("policy") as session, torch.no_grad():
        for _ in range(50):
            y = session.step(obs[0])
            logits, value, state = net(obs, state)
            np.testing.assert_allclose(y["logits"], logits[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(y["value"], value[0], rtol=1e-4, atol=1e-4)
            action = int(y["logits"].argmax())
            obs = obs.roll(action) + 0.1 * torch.randn(1, 8)  # your environment stands here
        h, c = session.state()  # as forward() returned it, without the batch
    np.testing.assert_allclose(h, state[0][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(c, state[1][0], rtol=1e-4, atol=1e-4)
    print(
        f"50 steps are forward()'s, and so is the state {h.shape}; the last value is {y['value']}"
    )


if __name__ == "__main__":
    {"train": train, "stream": stream}[sys.argv[1]](*sys.argv[2:])
