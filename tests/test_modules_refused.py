"""Modules whose stream would not be their forward(): each is refused, with its reason.

Every row is a module that people have, or one that changes its answers where a check might not
look: on long sequences, for other values, in other batches, after many calls.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as users write it
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmserve_export import Refused, export
from lstmserve_export.module.graph import lower
from modules import refusal

BATCH, LENGTH, WIDTH, HIDDEN, OUTPUTS = 4, 8, 5, 6, 3
HEADS = 2
Forward = Callable[..., Any]
Layers = Callable[[], dict[str, Any]]


def net(forward: Forward, **parts: Any) -> nn.Module:
    """A module with lstm, fc and these parts, whose forward() is the function."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    module.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
    module.fc = nn.Linear(HIDDEN, OUTPUTS)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def floats(*shape: int) -> torch.Tensor:
    """Normal values, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def causal(length: int) -> torch.Tensor:
    """A mask that lets each row see itself and those before."""
    return torch.triu(torch.ones(length, length, dtype=torch.bool), 1)


# Looking along time -------------------------------------------------------------------------------


def attends(self: Any, x: torch.Tensor) -> torch.Tensor:
    out = self.lstm(x)[0]
    return self.fc(self.attention(out, out, out)[0])


def attends_back(self: Any, x: torch.Tensor) -> torch.Tensor:
    out = self.lstm(x)[0]
    return self.fc(self.attention(out, out, out, attn_mask=causal(x.shape[1]))[0])


def attends_by_hand(self: Any, x: torch.Tensor) -> torch.Tensor:
    out = self.lstm(x)[0]
    scores = self.query(out) @ out.transpose(1, 2) / math.sqrt(HIDDEN)
    return self.fc(torch.softmax(scores, -1) @ out)


def weighs(self: Any, x: torch.Tensor) -> torch.Tensor:
    out = self.lstm(x)[0]
    weights = torch.softmax(self.score(out), 1)
    return self.fc((weights * out).sum(1))


def encodes(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.encoder(self.lstm(x)[0]))


def encodes_back(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.encoder(self.lstm(x)[0], src_mask=causal(x.shape[1])))


def convolves(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.lstm(self.conv(x.transpose(1, 2)).transpose(1, 2))[0])


def convolves_back(self: Any, x: torch.Tensor) -> torch.Tensor:
    padded = F.pad(x.transpose(1, 2), (2, 0))
    return self.fc(self.lstm(self.conv(padded).transpose(1, 2))[0])


def normalises(self: Any, x: torch.Tensor) -> torch.Tensor:
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=False)
    return self.fc(self.lstm((x - mean) / (deviation + 1e-5))[0])


def normalises_instances(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))[0])


def normalises_after(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.norm(self.lstm(x)[0]))


def pools(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.pool(self.lstm(x)[0].transpose(1, 2)).squeeze(-1))


def flattens(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.wide(self.lstm(x)[0].flatten(1))


def differences(self: Any, x: torch.Tensor) -> torch.Tensor:
    changes = torch.cat([x[:, :1], x[:, 1:] - x[:, :-1]], 1)
    return self.fc(self.lstm(changes)[0])


def feeds_back(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = c = x.new_zeros(x.shape[0], HIDDEN)
    y, steps = x.new_zeros(x.shape[0], OUTPUTS), []
    for t in range(x.shape[1]):
        h, c = self.cell(torch.cat([x[:, t], y], 1), (h, c))
        y = self.fc(h)
        steps.append(y)
    return torch.stack(steps, 1)


ALONG_TIME: dict[str, tuple[Forward, Layers, Sequence[str]]] = {
    "attention": (
        attends,
        lambda: {"attention": nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)},
        ["attention (MultiheadAttention) reads rows that come later"],
    ),
    "causal attention": (
        attends_back,
        lambda: {"attention": nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)},
        ["attention (MultiheadAttention) reads earlier rows", "(--window W)"],
    ),
    "attention by hand": (
        attends_by_hand,
        lambda: {"query": nn.Linear(HIDDEN, HIDDEN)},
        ["matmul()", "scores = self.query(out) @", "rows that come later"],
    ),
    "attention for the last row": (
        weighs,
        lambda: {"score": nn.Linear(HIDDEN, 1)},
        ["softmax()", "weights = torch.softmax(", "reads earlier rows"],
    ),
    "encoder": (
        encodes,
        lambda: {"encoder": nn.TransformerEncoderLayer(HIDDEN, HEADS, 12, batch_first=True)},
        ["encoder.self_attn (MultiheadAttention) reads rows that come later"],
    ),
    "causal encoder": (
        encodes_back,
        lambda: {"encoder": nn.TransformerEncoderLayer(HIDDEN, HEADS, 12, batch_first=True)},
        ["encoder.self_attn (MultiheadAttention) reads earlier rows"],
    ),
    "convolution": (
        convolves,
        lambda: {"conv": nn.Conv1d(WIDTH, WIDTH, 3, padding=1)},
        ["conv (Conv1d) reads rows that come later"],
    ),
    "causal convolution": (
        convolves_back,
        lambda: {"conv": nn.Conv1d(WIDTH, WIDTH, 3)},
        ["conv (Conv1d) reads earlier rows", "as an argument and return them"],
    ),
    "convolution without padding": (
        convolves,
        lambda: {"conv": nn.Conv1d(WIDTH, WIDTH, 3)},
        ["fails on one time step in conv (Conv1d)", "one row at a time"],
    ),
    "normalisation by hand": (
        normalises,
        dict,
        ["mean()", "mean, deviation = ", "rows that come later", "normalise over the features"],
    ),
    "InstanceNorm": (
        normalises_instances,
        lambda: {"norm": nn.InstanceNorm1d(WIDTH)},
        ["norm (InstanceNorm1d)", "one row at a time"],
    ),
    "GroupNorm": (
        normalises_instances,
        lambda: {"norm": nn.GroupNorm(1, WIDTH)},
        ["norm (GroupNorm) reads rows that come later", "normalise over the features"],
    ),
    "LayerNorm over time": (
        normalises_after,
        lambda: {"norm": nn.LayerNorm([LENGTH, HIDDEN])},
        ["takes 8 time steps and no other number", "norm (LayerNorm)"],
    ),
    "pooling": (
        pools,
        lambda: {"pool": nn.AdaptiveAvgPool1d(1)},
        ["pool (AdaptiveAvgPool1d) reads earlier rows", "out[:, -1]"],
    ),
    "mean": (
        lambda self, x: self.fc(self.lstm(x)[0].mean(1)),
        dict,
        ["mean()", "reads earlier rows", "out[:, -1]"],
    ),
    "max": (
        lambda self, x: self.fc(self.lstm(x)[0].amax(1)),
        dict,
        ["amax()", "reads earlier rows", "the largest so far"],
    ),
    "flattened window": (
        flattens,
        lambda: {"wide": nn.Linear(LENGTH * HIDDEN, OUTPUTS)},
        ["takes 8 time steps and no other number", "wide (Linear)", "(--window 8)"],
    ),
    "reversed": (
        lambda self, x: self.fc(self.lstm(x.flip(1))[0]),
        dict,
        ["flip()", "rows that come later", "in which rows come"],
    ),
    "differences": (differences, dict, ["a slice", "reads earlier rows"]),
    "cumulative sum": (
        lambda self, x: self.fc(self.lstm(x.cumsum(1))[0]),
        dict,
        ["cumsum()", "the sum so far"],
    ),
    "feeds its output back": (
        feeds_back,
        lambda: {"cell": nn.LSTMCell(WIDTH + OUTPUTS, HIDDEN)},
        ["such as its own output", "as an argument of forward() and return it"],
    ),
    "two directions": (
        lambda self, x: self.wide(self.both(x)[0]),
        lambda: {
            "both": nn.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True),
            "wide": nn.Linear(2 * HIDDEN, OUTPUTS),
        },
        ["both (LSTM) is bidirectional", "export it with --window W"],
    ),
    "positions": (
        lambda self, x: self.fc(self.lstm(x + self.table[: x.shape[1]])[0]),
        lambda: {"table": nn.Parameter(floats(2000, WIDTH))},
        ["how many rows came before", "as an input of each row"],
    ),
    "relative positions": (
        lambda self, x: self.fc(self.lstm(x + self.places(torch.arange(x.shape[1])))[0]),
        lambda: {"places": nn.Embedding(2000, WIDTH)},
        ["how many rows came before"],
    ),
    "one row fewer": (
        lambda self, x: self.fc(self.lstm(x)[0][:, 1:]),
        dict,
        ["y has 0 time steps for one of the input: return one for each row"],
    ),
    "two rows for one": (
        lambda self, x: self.fc(self.lstm(x.repeat_interleave(2, 1))[0][:, -1]),
        dict,
        ["lstm makes more than one time step, or none, for a row"],
    ),
}


@pytest.mark.parametrize(("forward", "layers", "says"), ALONG_TIME.values(), ids=ALONG_TIME)
def test_looking_along_time(
    tmp_path: Path, forward: Forward, layers: Layers, says: Sequence[str]
) -> None:
    """It is refused with the layer or the line that looks, and nothing is written."""
    torch.manual_seed(0)
    line = refusal(net(forward, **layers()), floats(BATCH, LENGTH, WIDTH), tmp_path / "models")
    assert all(part in line for part in says), line


# Not a function of its arguments ------------------------------------------------------------------


def answer(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.lstm(x)[0])


def keeps_hidden(self: Any, x: torch.Tensor) -> torch.Tensor:
    out, self.hidden = self.lstm(x, self.hidden)
    return self.fc(out)


def counts_in_a_buffer(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.total += 1
    return answer(self, x) + self.total


def differs_at_first(self: Any, x: torch.Tensor) -> torch.Tensor:
    is_first, self.is_first = self.is_first, False
    return answer(self, x) * (0 if is_first else 1)


def differs_after_many_calls(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    return answer(self, x) if self.calls < 1000 else -answer(self, x)


def remembers_the_first_batch(self: Any, x: torch.Tensor) -> torch.Tensor:
    if "scale" not in self.memory:
        self.memory["scale"] = 1 / x.std()
    return answer(self, x * self.memory["scale"])


def sets_its_weights(self: Any, x: torch.Tensor) -> torch.Tensor:
    if self.scale[0] == 0:
        self.scale.data.fill_(1 / float(x.std()))
    return answer(self, x * self.scale)


def trains_its_dropout(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.drop.train()
    return self.fc(self.drop(self.lstm(x)[0]))


def trains_its_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.norm.train()
    return self.fc(self.norm(self.lstm(x)[0][:, -1]))


def forces_a_teacher(self: Any, x: torch.Tensor) -> torch.Tensor:
    return answer(self, x * 0 if random.random() < 1e-9 else x)


def draws_noise(self: Any, x: torch.Tensor) -> torch.Tensor:
    return answer(self, x + 0 * torch.randn(x.shape))


def draws_from_numpy(self: Any, x: torch.Tensor) -> torch.Tensor:
    return answer(self, -x if np.random.rand() < 1e-9 else x)


def writes_to_its_input(self: Any, x: torch.Tensor) -> torch.Tensor:
    x.clamp_(-1, 1)
    return answer(self, x)


def tells_the_time(self: Any, x: torch.Tensor) -> torch.Tensor:
    return answer(self, x) + time.perf_counter_ns() % 1000


NO_FUNCTION: dict[str, tuple[Forward, Layers, str]] = {
    "hidden state": (
        keeps_hidden,
        lambda: {"hidden": None},
        "keeps state between calls, in hidden",
    ),
    "buffer": (
        counts_in_a_buffer,
        lambda: {"total": nn.Buffer(torch.zeros(1))},
        "keeps state between calls, in total",
    ),
    "first call": (differs_at_first, lambda: {"is_first": True}, "between calls, in is_first"),
    "many calls": (differs_after_many_calls, lambda: {"calls": 0}, "between calls, in calls"),
    "first batch": (remembers_the_first_batch, lambda: {"memory": {}}, "between calls, in memory"),
    "weights": (
        sets_its_weights,
        lambda: {"scale": nn.Parameter(torch.zeros(1))},
        "between calls, in scale",
    ),
    "dropout in training": (
        trains_its_dropout,
        lambda: {"drop": nn.Dropout(0.2)},
        "puts drop (Dropout) into training mode",
    ),
    "BatchNorm in training": (
        trains_its_norm,
        lambda: {"norm": nn.BatchNorm1d(HIDDEN)},
        "puts norm (BatchNorm1d) into training mode",
    ),
    "dropout function": (
        lambda self, x: self.fc(F.dropout(self.lstm(x)[0], 0.2)),
        lambda: {"drop": nn.Dropout(0.2)},
        "write F.dropout(x, p, self.training)",
    ),
    "random of Python": (forces_a_teacher, dict, "draws random numbers"),
    "random of torch": (draws_noise, dict, "draws random numbers"),
    "random of numpy": (draws_from_numpy, dict, "draws random numbers"),
    "in place": (writes_to_its_input, dict, "changes its argument x in place"),
    "clock": (tells_the_time, dict, "gives other results for the same input, by a clock"),
}


@pytest.mark.parametrize(("forward", "layers", "says"), NO_FUNCTION.values(), ids=NO_FUNCTION)
def test_what_is_no_function_of_its_arguments(
    tmp_path: Path, forward: Forward, layers: Layers, says: str
) -> None:
    """It is refused with the attribute or the habit, and the user's module and example stay."""
    module, example = net(forward, **layers()), floats(BATCH, LENGTH, WIDTH)
    before = example.clone()
    assert says in refusal(module, example, tmp_path / "models")
    assert torch.equal(example, before)
    assert module.training


def test_what_is_only_written_is_no_state(tmp_path: Path) -> None:
    """A module that leaves its last features for a plot is served."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.features = self.lstm(x)[0]
        return self.fc(self.features)

    assert export(net(forward), example=floats(2, 4, WIDTH), name="net", models=tmp_path).bytes


# Beyond what a few random rows show ---------------------------------------------------------------


def last_that_is_not_zero(self: Any, x: torch.Tensor) -> torch.Tensor:
    count = (x.abs().sum(-1) > 0).sum(1)
    return self.fc(self.lstm(x)[0][torch.arange(x.shape[0]), (count - 1).clamp(min=0)])


def starts_by_a_station(self: Any, x: torch.Tensor, station: torch.Tensor) -> torch.Tensor:
    h = self.starts(station)[None]
    return self.fc(self.lstm(x, (h, torch.zeros_like(h)))[0])


def starts_by_a_bucket(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = self.starts((x[:, 0, 0] > 6).long())[None]
    return self.fc(self.lstm(x, (h, torch.zeros_like(h)))[0])


def begins_again(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([answer(self, part) for part in x.split(100, 1)], 1)


def last_tokens(self: Any, tokens: torch.Tensor) -> torch.Tensor:
    count = (tokens != 0).sum(1)
    out = self.lstm(self.table(tokens))[0]
    return self.fc(out[torch.arange(tokens.shape[0]), (count - 1).clamp(min=0)])


X = floats(BATCH, LENGTH, WIDTH)
RARE: dict[str, tuple[Forward, Layers, Any, Sequence[str]]] = {
    "longer than 100": (
        lambda self, x: answer(self, x) + (x.shape[1] > 100),
        dict,
        X,
        ["time step 101 of the long rows"],
    ),
    "begins again after 100": (begins_again, dict, X, ["a state that it begins again"]),
    "scale of the batch": (
        lambda self, x: answer(self, x) * torch.clamp(100 / x.abs().amax((0, 1, 2)), max=1),
        dict,
        X,
        ["unusual rows"],
    ),
    "row 64 of a batch": (
        lambda self, x: answer(self, x) + (torch.arange(x.shape[0]) >= 64)[:, None, None],
        dict,
        X,
        ["in a batch of"],
    ),
    "padding of zeros": (last_that_is_not_zero, dict, X, ["sum()", "reads earlier rows"]),
    "padding tokens": (
        last_tokens,
        lambda: {"table": nn.Embedding(10, WIDTH)},
        torch.tensor([[3, 1, 2, 1], [2, 2, 1, 3]]),
        ["sum()", "reads earlier rows"],
    ),
    "one station in the example": (
        starts_by_a_station,
        lambda: {"starts": nn.Embedding(10, HIDDEN)},
        (X, torch.full((BATCH,), 3)),
        ["lstm (LSTM) begins from a state", "send the computed one when the client opens"],
    ),
    "start by a bucket": (
        starts_by_a_bucket,
        lambda: {"starts": nn.Embedding(2, HIDDEN)},
        X,
        ["lstm (LSTM) begins from a state"],
    ),
}


@pytest.mark.parametrize(("forward", "layers", "example", "says"), RARE.values(), ids=RARE)
def test_what_a_few_random_rows_do_not_show(
    tmp_path: Path, forward: Forward, layers: Layers, example: Any, says: Sequence[str]
) -> None:
    """Long sequences, a large batch and values unlike the example's are part of the proof."""
    torch.manual_seed(0)
    line = refusal(net(forward, **layers()), example, tmp_path / "models")
    assert all(part in line for part in says), line


# All else -----------------------------------------------------------------------------------------


def packs(self: Any, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return self.fc(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


def packs_by_itself(self: Any, x: torch.Tensor) -> torch.Tensor:
    return packs(self, x, torch.full((x.shape[0],), x.shape[1]))


def own_cell(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = x.new_zeros(x.shape[0], OUTPUTS)
    for t in range(x.shape[1]):
        h = torch.tanh(self.step(torch.cat([x[:, t], h], 1)))
    return h


def starts_from_the_first_row(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = self.start(x[:, 0])[None]
    return self.fc(self.lstm(x, (h, torch.zeros_like(h)))[0])


def starts_from_features(self: Any, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    h = self.start(features)[None]
    return self.fc(self.lstm(x, (h, torch.zeros_like(h)))[0])


def starts_a_second_layer(self: Any, x: torch.Tensor) -> torch.Tensor:
    out, state = self.lstm(x)
    return self.fc(out + self.second(x, state)[0])


def branches(self: Any, x: torch.Tensor) -> torch.Tensor:
    return answer(self, x) if x.abs().max() < 1e6 else answer(self, -x)


def fixed_zeros(self: Any, x: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(1, BATCH, HIDDEN)
    return self.fc(self.lstm(x, (zeros, zeros))[0])


def normalises_a_batch(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.norm(self.lstm(x)[0][:, -1]))


def averages(self: Any, x: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    levels = []
    for row in answer(self, x).unbind(1):
        level = 0.9 * level + 0.1 * row
        levels.append(level)
    return torch.stack(levels, 1), level


def without_lstm(forward: Forward, **parts: Any) -> nn.Module:
    """A module with these parts and no recurrent layer."""
    module = net(forward, **parts)
    del module.lstm
    return module


def diverged(name: str) -> nn.Module:
    """A module with NaN in one of its tensors."""
    module = net(answer, seen=nn.Buffer(torch.zeros(2)))
    with torch.no_grad():
        module.get_parameter(name)[0] = math.nan if name != "seen" else 0
    return module


OTHERS: dict[str, tuple[Callable[[], nn.Module], Any, Sequence[str]]] = {
    "lengths": (
        lambda: net(packs),
        (X, torch.tensor([8, 7, 5, 3])),
        ["takes lengths (lengths)", "a stream has no padding"],
    ),
    "packed": (lambda: net(packs_by_itself), X, ["lstm reads a packed sequence"]),
    "start from the first row": (
        lambda: net(starts_from_the_first_row, start=nn.Linear(WIDTH, HIDDEN)),
        X,
        ["lstm begins from a state that forward() computes from its input"],
    ),
    "start from features": (
        lambda: net(starts_from_features, start=nn.Linear(2, HIDDEN)),
        (X, floats(BATCH, 2)),
        ["lstm begins from a state that forward() computes from its input"],
    ),
    "state of another layer": (
        lambda: net(starts_a_second_layer, second=nn.LSTM(WIDTH, HIDDEN, batch_first=True)),
        X,
        ["second (LSTM) begins from a state"],
    ),
    "branch": (
        lambda: net(branches),
        X,
        ["decides by the values of a tensor", "if x.abs().max() < 1e6", "torch.where"],
    ),
    "item": (
        lambda: net(lambda self, x: answer(self, x) * x.max().item()),
        X,
        ["rows of a batch influence each other", "without mean, max or sort over the batch"],
    ),
    "numpy": (
        lambda: net(lambda self, x: answer(self, torch.from_numpy(np.tanh(x.numpy())))),
        X,
        ["leaves torch for numpy", "np.tanh(x.numpy())"],
    ),
    "zeros for one batch": (
        lambda: net(fixed_zeros),
        X,
        ["takes a batch of 4 rows and no other in lstm (LSTM)", "x.shape[0]"],
    ),
    "batch statistics": (
        lambda: net(normalises_a_batch, norm=nn.BatchNorm1d(HIDDEN, track_running_stats=False)),
        X,
        ["norm (BatchNorm1d) normalises by the statistics of a batch", "track_running_stats=True"],
    ),
    "mean of the batch": (
        lambda: net(lambda self, x: answer(self, x - x.mean(0, keepdim=True))),
        X,
        ["rows of a batch influence each other"],
    ),
    "loss": (
        lambda: net(lambda self, x: answer(self, x).square().mean()),
        X,
        ["has no axis of the batch, such as a loss"],
    ),
    "loss besides": (
        lambda: net(lambda self, x: (answer(self, x), answer(self, x).mean())),
        X,
        ["result 1 [] has no axis of the batch"],
    ),
    "NaN weight": (lambda: diverged("fc.bias"), X, ["fc.bias has NaN or infinite values"]),
    "NaN in a recurrent layer": (
        lambda: diverged("lstm.weight_hh_l0"),
        X,
        ["lstm.weight_hh_l0 has NaN or infinite values", "the training diverged"],
    ),
    "NaN in the example": (
        lambda: net(answer),
        X * math.nan,
        ["x of the example has NaN or infinite values"],
    ),
    "complex": (lambda: net(answer), X + 1j, ["x is torch.complex64", "float32 or int64"]),
    "bool": (lambda: net(answer), X > 0, ["x is torch.bool", "float32 or int64"]),
    "no memory": (
        lambda: without_lstm(lambda self, x: self.fc(x), fc=nn.Linear(WIDTH, OUTPUTS)),
        X,
        ["has no recurrent layer", "as an argument and return it"],
    ),
    "own cell": (
        lambda: without_lstm(own_cell, step=nn.Linear(WIDTH + OUTPUTS, OUTPUTS)),
        X,
        ["has no recurrent layer", "as an argument and return it"],
    ),
    "own cell besides": (
        lambda: net(
            lambda self, x: answer(self, x)[:, -1] + own_cell(self, x),
            step=nn.Linear(WIDTH + OUTPUTS, OUTPUTS),
        ),
        X,
        ["a cell written by hand", "as an argument of forward() and return it"],
    ),
    "a state that no name shows": (
        lambda: net(averages),
        (X, torch.zeros(BATCH, OUTPUTS)),
        ["forward() takes level once for a sequence", "name it with states="],
    ),
    "max_norm": (
        lambda: net(
            lambda self, tokens: answer(self, self.table(tokens)),
            table=nn.Embedding(10, WIDTH, max_norm=1.0),
        ),
        torch.ones(2, 4, dtype=torch.int64),
        ["table (Embedding) has max_norm"],
    ),
    "no weights yet": (
        lambda: net(lambda self, x: self.lazy(self.lstm(x)[0]), lazy=nn.LazyLinear(OUTPUTS)),
        X,
        ["lazy", "call the module once"],
    ),
    "fails": (
        lambda: net(lambda self, x: self.missing(x)),
        X,
        ["forward() fails on the example", "missing"],
    ),
}


@pytest.mark.parametrize(("make", "example", "says"), OTHERS.values(), ids=OTHERS)
def test_what_else_no_stream_can_be(
    tmp_path: Path, make: Callable[[], nn.Module], example: Any, says: Sequence[str]
) -> None:
    """It is refused with its reason and a way out in one line, and nothing is written."""
    torch.manual_seed(0)
    line = refusal(make(), example, tmp_path / "models")
    assert all(part in line for part in says), line


def test_a_refusal_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's reports of a failed trace, and its graph, do not reach the terminal."""
    refusal(net(branches), X, tmp_path / "models")
    assert capfd.readouterr() == ("", "")


def test_weights_above_2_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused, since an ONNX file cannot hold them."""
    monkeypatch.setattr(lower, "ONNX_BYTES_MAX", 1000)
    assert "larger than the 2 GB" in refusal(net(answer), X, tmp_path / "models")


SERVED: dict[str, tuple[Forward, Layers, Any]] = {
    "a number of its weights": (
        lambda self, x: answer(self, x) * self.gain.item(),
        lambda: {"gain": nn.Parameter(torch.tensor(2.0))},
        X,
    ),
    "time as an input": (lambda self, x, t: answer(self, x + t[..., None]), dict, (X, X[..., 0])),
    "BatchNorm": (normalises_a_batch, lambda: {"norm": nn.BatchNorm1d(HIDDEN)}, X),
    "argmax": (lambda self, x: (answer(self, x), self.lstm(x)[0].argmax(-1)), dict, X),
    "tokens of one kind": (
        lambda self, tokens: answer(self, self.table(tokens)),
        lambda: {"table": nn.Embedding(10, WIDTH)},
        torch.zeros(1, 8, dtype=torch.int64),
    ),
    "sorts its features": (lambda self, x: answer(self, x.sort(-1).values), dict, X),
}


@pytest.mark.parametrize(("forward", "layers", "example"), SERVED.values(), ids=SERVED)
def test_what_only_looks_like_it_is_served(
    tmp_path: Path, forward: Forward, layers: Layers, example: Any
) -> None:
    """The checks refuse none of these."""
    torch.manual_seed(0)
    try:
        found = export(net(forward, **layers()), example=example, name="net", models=tmp_path)
    except Refused as error:
        pytest.fail(str(error))
    assert (found.folder / "model.onnx").exists()
