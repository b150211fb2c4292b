"""Trains the two cipher nets: python -m examples.cipher.train. It serves nothing.

It writes checkpoint/shift.pt and checkpoint/key.pt, plain state_dicts. Both nets read a text one
letter at a time, and the text begins with the session. For the shift the letter is enough; for the
repeating key the net must remember where in the key it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.cipher.ciphers import ALPHABET, encrypt_key, encrypt_shift, letters, tokens

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
SEED = 13
TEXTS, LENGTH = 64, 60


class CipherNet(nn.Module):
    """Tokens [T, B] in, scores of the 27 letters [T, B, 27] out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.lstm = nn.LSTM(width, hidden)
        self.head = nn.Linear(hidden, len(ALPHABET))

    def forward(self, encrypted: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(encrypted))[0])


def draw_texts(
    rng: np.random.Generator, encrypt: Callable[[str], str], length: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts: (encrypted, plain), each int64 [length, count]."""
    plain = [letters(rng.integers(len(ALPHABET), size=length)) for _ in range(count)]
    pair = [[tokens(encrypt(text)) for text in plain], [tokens(text) for text in plain]]
    encrypted, target = torch.tensor(pair).transpose(1, 2)
    return encrypted, target


def train(
    net: CipherNet, encrypt: Callable[[str], str], runs: int, learning_rate: float
) -> CipherNet:
    """Trains the net in place and returns it: cross-entropy, on fresh random texts in each run."""
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, runs)
    for _ in range(runs):
        encrypted, plain = draw_texts(rng, encrypt, LENGTH, TEXTS)
        loss = nn.functional.cross_entropy(net(encrypted).flatten(0, 1), plain.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net


def accuracy(net: CipherNet, encrypt: Callable[[str], str]) -> float:
    """The share of right letters in one text of 10,000, far longer than any text in training."""
    encrypted, plain = draw_texts(np.random.default_rng(SEED + 1), encrypt, 10_000, 1)
    with torch.inference_mode():
        return float((net(encrypted).argmax(-1) == plain).float().mean())


def main() -> None:
    """Trains both nets and writes the two checkpoints."""
    CHECKPOINT.mkdir(exist_ok=True)
    for name, width, hidden, encrypt, runs, learning_rate in (
        ("shift", 5, 10, encrypt_shift, 300, 3e-2),
        ("key", 16, 48, encrypt_key, 3000, 1e-2),
    ):
        begin = time.perf_counter()
        torch.manual_seed(SEED)
        net = train(CipherNet(width, hidden), encrypt, runs, learning_rate)
        torch.save(net.state_dict(), CHECKPOINT / f"{name}.pt")
        right = accuracy(net, encrypt)
        print(f"{name}: {right:.2%} right of 10,000 letters, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
