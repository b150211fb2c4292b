"""Modules by what they are made of: each is exported as it is, streamed, and compared with its own
forward() on every prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lstmserve_export import export
from modules import (
    FEATURES,
    HIDDEN,
    OUTPUTS,
    VOCABULARY,
    Case,
    check,
    each_last,
    last,
    normal,
    refusal,
    tokens,
    whole,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, about oneDNN


def x() -> torch.Tensor:
    """An example [B, T, F]."""
    return normal(5, 6, FEATURES)


class Chain(nn.Module):
    """Layers of torch one after the other, with a residual around all of them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.layers:
            y, _ = layer(y)
        return torch.cat([x, y], -1)


class Plain(nn.Module):
    """fc(lstm(x))."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True, **options)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0])


class Cells(nn.Module):
    """A cell of each kind in a Python loop over time, whose outputs are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(FEATURES, HIDDEN)
        self.gru = nn.GRUCell(HIDDEN, HIDDEN, bias=False)
        self.rnn = nn.RNNCell(HIDDEN, OUTPUTS, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = h = z = None
        outputs = []
        for t in range(x.size(1)):
            state = self.lstm(x[:, t], state)
            h = self.gru(state[0], h)
            z = self.rnn(h, z)
            outputs.append(z)
        return torch.stack(outputs, dim=1)


class Stacked(nn.Module):
    """A ModuleList of cells in a loop over time, with zero states from torch.zeros."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (FEATURES, HIDDEN, HIDDEN)
        self.cells = nn.ModuleList([nn.LSTMCell(size, HIDDEN) for size in sizes])
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = [torch.zeros(x.size(0), HIDDEN) for _ in self.cells]
        c = [torch.zeros((x.size(0), HIDDEN)) for _ in self.cells]
        outputs = []
        for row in x.unbind(1):
            value = row
            for index, cell in enumerate(self.cells):
                h[index], c[index] = cell(value, (h[index], c[index]))
                value = h[index]
            outputs.append(self.fc(value))
        return torch.stack(outputs, 1)


class Normed(Plain):
    """weight_norm by parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm(self.lstm, "weight_hh_l0")


class Twice(nn.Module):
    """One layer that each step calls twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, FEATURES, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x + self.lstm(x)[0])[0]


class Beside(nn.Module):
    """Two layers side by side, one batch first and one time first, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.gru = nn.GRU(FEATURES, 3)
        self.fc = nn.Linear(HIDDEN + 3, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, _ = self.lstm(x)
        other, _ = self.gru(x.permute(1, 0, 2))
        return self.fc(torch.cat([one, other.permute(1, 0, 2)], dim=2)) + x


class Channels(nn.Module):
    """An LSTM per channel, as in channel-independent forecasters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, channels = x.shape
        _, (h, _) = self.lstm(x.transpose(1, 2).reshape(count * channels, length, 1))
        return self.fc(h[-1]).view(count, channels, 3)


class Zeros(nn.Module):
    """Zero states, made in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.GRU(FEATURES, FEATURES, batch_first=True) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.a(x, torch.zeros(1, len(x), FEATURES).to(x.device))
        x, _ = self.b(x, x.new_zeros(1, x.size(0), FEATURES))
        weight = next(self.parameters()).data
        return self.c(x, weight.new(1, x.shape[0], FEATURES).zero_())[0]


class Learned(nn.Module):
    """States that begin as a parameter, as a layer's answer to zeros, and as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.h, self.c = (nn.Parameter(torch.randn(2, 1, HIDDEN)) for _ in range(2))
        self.table, self.first = nn.Embedding(2, HIDDEN), nn.Linear(3, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        start = (self.h.expand(-1, count, -1).contiguous(), torch.tanh(self.c).repeat(1, count, 1))
        y, _ = self.lstm(x, start)
        z = self.first(torch.zeros(count, 3)) + self.table(torch.ones(count, dtype=torch.long))
        outputs = []
        for row in y.unbind(1):
            z = self.cell(row, z)
            outputs.append(z)
        return torch.stack(outputs, 1)


class Forecaster(nn.Module):
    """Sequence to sequence: the decoder starts from the encoder's state in each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.GRUCell(OUTPUTS, HIDDEN)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor, future: int = 4) -> torch.Tensor:
        h = self.encoder(x)[1][0]
        value = x[:, -1, :OUTPUTS]
        answer = torch.zeros(x.size(0), future, OUTPUTS)
        for t in range(future):
            h = self.decoder(value, h)
            value = self.fc(h)
            answer[:, t] = value
        return answer


class Rolling(nn.Module):
    """Sequence to sequence with an LSTM as decoder, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(1, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(x)
        value, answer = torch.zeros(x.size(0), 1, 1), []
        for _ in range(3):
            y, state = self.decoder(value, state)
            value = self.fc(y)
            answer.append(value)
        return torch.cat(answer, 1)


class Agents(nn.Module):
    """Attention over the agents of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, 2, batch_first=True)
        self.lstm = nn.LSTM(3 * FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, agents, width = x.shape
        rows = x.reshape(count * length, agents, width)
        rows, _ = self.attention(rows, rows, rows)
        return self.lstm(rows.reshape(count, length, agents * width))[0].mean(dim=-1)


class Frames(nn.Module):
    """Convolutions over each picture, and BatchNorm over [B * T, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten()
        )
        self.lstm = nn.LSTM(2 * 3 * 3, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.front(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.lstm(rows)[0][:, -1]


class Spectrum(nn.Module):
    """x [B, 1, F, T]: a convolution over frequencies only, and BatchNorm before an nn.GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (3, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(2)
        self.lstm = nn.GRU(2 * FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = F.relu(self.norm(self.conv(x))).permute(0, 3, 1, 2).flatten(2)
        return torch.sigmoid(self.fc(self.lstm(rows)[0])).transpose(1, 2)


class Norms(nn.Module):
    """BatchNorm over rows and over transposed axes, LayerNorm, Conv1d over features, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.BatchNorm1d(FEATURES), nn.BatchNorm1d(HIDDEN)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.pool = nn.MaxPool1d(2)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        for each in (self.before, self.after):
            nn.init.normal_(each.running_mean)
            nn.init.uniform_(each.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        rows = self.before(x.reshape(-1, width))
        rows = self.pool(F.silu(self.conv(rows.unsqueeze(1)))).view(count, length, -1)
        y = self.lstm(rows)[0]
        y = self.after(y.transpose(1, 2)).transpose(1, 2)
        return self.norm(y) + y


class Policy(nn.Module):
    """Tokens in; probabilities, the best one (int64) and a flag (bool) out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, FEATURES)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True, dropout=0.3)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = self.fc(self.lstm(self.table(tokens))[0])
        return scores.softmax(-1), scores.argmax(-1), scores[..., 0] > 0


class First(nn.Module):
    """Takes the output of an LSTM out of its tuple, for nn.Sequential."""

    def forward(self, results: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return results[0]


def flags(module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """each_last(), with int64 in place of bool."""
    scores, best, flag = each_last(module, inputs)
    return scores, best, flag.long()


LSTM, GRU = ("lstm.h", "lstm.c"), ("lstm.h",)
CELLS = [f"cells.{index}.{letter}" for index in range(3) for letter in "hc"]
CASES: dict[str, Case] = {
    "LSTM, 3 layers, dropout": Case(
        lambda: Plain(num_layers=3, dropout=0.2), x, last, states=("h", "c")
    ),
    "LSTMs with projections": Case(
        lambda: Chain(
            nn.LSTM(FEATURES, HIDDEN, 2, proj_size=3, batch_first=True),
            nn.LSTM(3, HIDDEN, proj_size=2, bias=False, batch_first=True),
        ),
        x,
        last,
        states=("layers.0.h", "layers.0.c", "layers.1.h", "layers.1.c"),
    ),
    "GRUs and RNNs": Case(
        lambda: Chain(
            nn.GRU(FEATURES, HIDDEN, 2, batch_first=True),
            nn.GRU(HIDDEN, HIDDEN, bias=False, batch_first=True),
            nn.RNN(HIDDEN, HIDDEN, 2, batch_first=True),
            nn.RNN(HIDDEN, 3, nonlinearity="relu", batch_first=True),
        ),
        x,
        last,
        states=[f"layers.{index}.h" for index in range(4)],
    ),
    "cells": Case(Cells, x, last, states=("lstm.h", "lstm.c", "gru.h", "rnn.h")),
    "three cells": Case(Stacked, x, last, states=CELLS),
    "weight norm": Case(Normed, x, last, states=("h", "c")),
    "a layer called twice": Case(Twice, x, last, states=(*LSTM, "lstm.call2.h", "lstm.call2.c")),
    "two layers side by side": Case(Beside, x, last, states=(*LSTM, "gru.h")),
    "an LSTM per channel": Case(Channels, x, whole),
    "zero starts": Case(Zeros, x, last, states=("a.h", "b.h", "c.h")),
    "learned starts": Case(Learned, x, last, states=("lstm.h", "lstm.c", "cell.h")),
    "decoder of cells": Case(Forecaster, x, whole, states=("encoder.h",)),
    "decoder of an LSTM": Case(Rolling, x, whole, states=("encoder.h", "encoder.c")),
    "attention in a row": Case(Agents, lambda: normal(5, 6, 3, FEATURES), last),
    "pictures": Case(Frames, lambda: normal(5, 6, 1, 8, 8), whole),
    "time last": Case(
        Spectrum,
        lambda: normal(5, 1, FEATURES, 6),
        lambda net, given: net(given["x"].permute(0, 2, 3, 1))[:, :, -1],
        states=GRU,
    ),
    "norms": Case(Norms, x, last),
    "tokens, int64 and bool": Case(
        lambda: Policy().train(),
        lambda: tokens(5, 6),
        flags,
        inputs=("tokens",),
        outputs=("y0", "y1", "y2"),
    ),
    "Sequential": Case(
        lambda: nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            nn.LSTM(HIDDEN, HIDDEN, batch_first=True),
            First(),
            nn.ELU(),
        ),
        x,
        last,
        inputs=("input",),
        states=("layer1.h", "layer1.c"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_module_streams_as_its_own_forward(case: Case, tmp_path: Path) -> None:
    """Single steps and chunks of the served graph are forward() on every prefix."""
    check(case, tmp_path)


class Packed(Plain):
    """Packs and pads again inside forward(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((x.shape[0],), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(y)


class Cut(Plain):
    """Takes the size of the batch for a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(1, int(x.shape[0]), HIDDEN)
        return self.fc(self.lstm(x, (h, h))[0])


class Doubling(nn.LSTM):
    """A subclass whose forward() is not torch's."""

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        return super().forward(2 * x, state)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "packed": (Packed, "lstm reads a packed sequence"),
    "int(batch)": (Cut, "use x.shape[0] as it is, without int()"),
    "subclass": (lambda: Doubling(FEATURES, HIDDEN, batch_first=True), "no recurrent layer"),
    "script": (lambda: torch.jit.script(Plain()), "export the nn.Module"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_layer_that_cannot_stream_is_refused(
    make: Callable[[], nn.Module], says: str, tmp_path: Path
) -> None:
    """One line names the cause and the way out, and nothing is written."""
    assert says in refusal(make(), x(), tmp_path / "models")


@pytest.mark.parametrize(("kind", "is_scanned"), [(nn.GRU, False), (nn.RNN, True)])
def test_a_note_says_why_chunks_run_step_by_step(
    kind: Callable[..., nn.Module], is_scanned: bool, tmp_path: Path
) -> None:
    """A GRU runs over time at once; an nn.RNN, which is written out, does not."""
    example = torch.randn(3, 5, 2)
    found = export(kind(2, 3, batch_first=True), example=example, name="net", models=tmp_path)
    lead = "chunks of many rows run one time step after the other, because "
    assert any(note.startswith(lead) for note in found.manifest.notes) == is_scanned
