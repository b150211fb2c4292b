"""Modules that people train on windows of W rows, as they have them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from modules import FEATURES, HIDDEN, OUTPUTS, VOCABULARY

W: Final = 6


class Bidirectional(nn.Module):
    """Two layers that read the window both ways; the answer of each row."""

    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(FEATURES, HIDDEN, 2, batch_first=True, bidirectional=True, **options)
        width = getattr(self.rnn, "proj_size", 0) or HIDDEN
        self.head = nn.Linear(2 * width, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class BothEnds(nn.Module):
    """The last states of both directions, from a learned start; time first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, bidirectional=True)
        self.start = nn.Parameter(torch.randn(2, 1, HIDDEN))
        self.head = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.gru(x, self.start.expand(-1, x.shape[1], -1).contiguous())
        return self.head(torch.cat([h[0], h[1]], -1))


class Attention(nn.Module):
    """Attention over the window, without a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.front(x).tanh()
        return self.head(z + self.attention(z, z, z)[0])


class Transformer(nn.Module):
    """Two layers of a transformer, whose table of positions is longer than a window."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, 8)
        self.positions = nn.Parameter(torch.randn(4 * W, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.front(x) + self.positions[: x.shape[1]]
        return self.head(self.encoder(z)[:, -1])


class Convolution(nn.Module):
    """Convolutions over time with features first, and the mean of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(FEATURES, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 2, dilation=2)
        )
        self.head = nn.Linear(8, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(-1))


class Normalised(nn.Module):
    """An LSTM on rows that the window's own mean and deviation scale, and a head on all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(W * HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, scale = x.mean(1, keepdim=True), 0.1 + x.std(1, keepdim=True)
        out, _ = self.lstm((x - mean) / scale)
        return self.head(out.reshape(x.shape[0], -1)) * scale[:, 0, :OUTPUTS]


class Stepwise(nn.Module):
    """One time step at a time, with the state as an argument and a result."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        h, c = self.cell(x, state)
        return self.head(h.relu()) + x[:, :OUTPUTS], (h, c)


class Mixed(nn.Module):
    """Rows, tokens and a site -> a score and a class; a GRU with both ways and a loop of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 3)
        self.sites = nn.Embedding(VOCABULARY, 3)
        self.gru = nn.GRU(FEATURES + 6, HIDDEN, batch_first=True, bidirectional=True)
        self.cell = nn.RNNCell(2 * HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 3)

    def forward(
        self, x: torch.Tensor, word: torch.Tensor, site: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        places = self.sites(site)[:, None].expand(-1, x.shape[1], -1)
        out, _ = self.gru(torch.cat([x, self.words(word), places], -1))
        h = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(out.shape[1]):
            h = self.cell(out[:, t], h)
        score = self.head(h)
        return {"score": score, "best": score.argmax(-1)}
