"""Modules by what their forward() takes and returns: each is exported as it is, streamed, and
compared with its own forward() on every prefix."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import nn

from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.signature.probe import probe
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
    rolled,
    time_first,
    tokens,
    unbatched,
    zeros,
)

# torch's own, as it imports what torch.compile needs
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def x(count: int = 5, length: int = 6) -> torch.Tensor:
    """An example [B, T, F]."""
    return normal(count, length, FEATURES)


class Base(nn.Module):
    """An LSTM and a Linear layer, by the names that people give them."""

    def __init__(self, num_layers: int = 1, *, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers, batch_first=batch_first)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)


class Plain(Base):
    """forward(x) -> y."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0]) * 2 + x[..., :OUTPUTS]


class Stateful(Base):
    """forward(x, state) -> (y, state)."""

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        y, state = self.lstm(x, state)
        return self.fc(y), state


class Apart(Base):
    """forward(x, h, c) -> y, h, c, with zeros by default."""

    def forward(self, x: torch.Tensor, h: Any = None, c: Any = None) -> Any:
        if h is None or c is None:
            h = torch.zeros(self.lstm.num_layers, x.size(0), HIDDEN).to(x.device)
            c = torch.zeros(self.lstm.num_layers, x.size(0), HIDDEN).to(x.device)
        y, (h, c) = self.lstm(x, (h, c))
        return self.fc(y), h, c


class StateFirst(Base):
    """forward(hidden, x) -> hidden, y."""

    def forward(self, hidden: Any, x: torch.Tensor) -> Any:
        y, hidden = self.lstm(x, hidden)
        return hidden, self.fc(y)


class Named(Base):
    """Returns a dict in which a state of the layer is left over."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y, (h, _) = self.lstm(x)
        return {"logits": self.fc(y), "value": y.mean(-1), "hidden": h}


class Normal(NamedTuple):
    """What a distribution head returns."""

    mean: torch.Tensor
    scale: torch.Tensor


class Fields(Base):
    """Returns a NamedTuple."""

    def forward(self, x: torch.Tensor) -> Normal:
        y = self.fc(self.lstm(x)[0])
        return Normal(y[..., :1], F.softplus(y[..., 1:]))


@dataclasses.dataclass
class Answer:
    """A result with a field that is no tensor."""

    mean: torch.Tensor
    loss: Any = None


class Datum(Base):
    """Returns a dataclass."""

    def forward(self, x: torch.Tensor) -> Answer:
        return Answer(self.fc(self.lstm(x)[0]).tanh() + x[..., :OUTPUTS])


class ModelOutput(OrderedDict[str, torch.Tensor]):
    """As in transformers: a dict whose values are attributes and items by number, too."""

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]


class Transformers(Base):
    """Returns a ModelOutput."""

    def forward(self, x: torch.Tensor) -> ModelOutput:
        y, _ = self.lstm(x)
        return ModelOutput(logits=self.fc(y), last_hidden_state=y)


class Nested(Base):
    """Returns lists in tuples."""

    def forward(self, x: torch.Tensor) -> Any:
        y, _ = self.lstm(x)
        return [self.fc(y), (y[..., 0], [y[..., 1:3]])]


def nested(module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The last rows of Nested."""
    one, (other, (third,)) = module(inputs["x"])
    return one[:, -1], other[:, -1], third[:, -1]


class ActorCritic(nn.Module):
    """One time step: forward(obs, hx, cx) -> policy, value, hx, cx."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, HIDDEN)
        self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
        self.actor, self.critic = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 1)

    def forward(self, obs: torch.Tensor, hx: torch.Tensor, cx: torch.Tensor) -> Any:
        hx, cx = self.cell(torch.relu(self.encoder(obs)), (hx, cx))
        return self.actor(hx), self.critic(hx), hx, cx


class Bundle(ActorCritic):
    """The same with all arguments in one tuple: obs, (hx, cx) = inputs."""

    def forward(self, inputs: Any) -> Any:
        obs, (hx, cx) = inputs
        hx, cx = self.cell(torch.relu(self.encoder(obs)), (hx, cx))
        return self.critic(hx), self.actor(hx), (hx, cx)


class Unsqueezed(Base):
    """One time step through an nn.LSTM: lstm(obs.unsqueeze(1), state)."""

    def forward(self, obs: torch.Tensor, state: Any) -> Any:
        y, state = self.lstm(obs.unsqueeze(1), state)
        return self.fc(y.squeeze(1)), state


class Masked(nn.Module):
    """One time step of a GRU whose state a mask of the input resets, as PPO code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor, rnn_hxs: torch.Tensor, masks: torch.Tensor) -> Any:
        y, rnn_hxs = self.gru(x.unsqueeze(0), (rnn_hxs * masks).unsqueeze(0))
        return self.fc(y.squeeze(0)), rnn_hxs.squeeze(0)


class Levels(nn.Module):
    """One time step of two cells, with states as lists in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LSTMCell(FEATURES, HIDDEN), nn.LSTMCell(HIDDEN, 5)
        self.fc = nn.Linear(5, OUTPUTS)

    def forward(self, x: torch.Tensor, states: Any) -> Any:
        h0, c0 = self.one(x, (states[0][0], states[0][1]))
        h1, c1 = self.two(h0, (states[1][0], states[1][1]))
        return F.softmax(self.fc(h1), dim=-1), [[h0, c0], [h1, c1]]


class Tagger(nn.Module):
    """The tagger of PyTorch's tutorial: one sentence [T] without a batch, sized by len()."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, FEATURES)
        self.lstm = nn.LSTM(FEATURES, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, sentence: torch.Tensor) -> torch.Tensor:
        rows = self.table(sentence).view(len(sentence), 1, -1)
        y, _ = self.lstm(rows)
        return F.log_softmax(self.fc(y.view(len(sentence), -1)), dim=1)


class Unbatched(nn.Module):
    """forward(x [T, F]) -> [T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(x)[0])


class TimeFirst(Base):
    """torch's default: x [T, B, F]."""

    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0]) + x[..., :OUTPUTS].abs()


class Several(nn.Module):
    """Rows, tokens, a number per step, features that do not change, and a constant flag."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 3)
        self.lstm = nn.LSTM(FEATURES + 3 + 1, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN + 2, OUTPUTS)

    def forward(
        self,
        x: torch.Tensor,
        kind: torch.Tensor,
        gain: torch.Tensor,
        static: torch.Tensor,
        *,
        scale: float = 1.0,
        flag: bool = False,
    ) -> torch.Tensor:
        y, _ = self.lstm(torch.cat([x, self.table(kind), gain.unsqueeze(-1)], -1))
        wide = static.unsqueeze(1).expand(-1, x.shape[1], -1)
        y = self.fc(torch.cat([y, wide], -1)) * scale
        return y.tanh() if flag else y


def several(module: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last rows of Several."""
    rows, kind, gain, static = inputs.values()
    return module(rows, kind, gain, static[:, 0], scale=2.5, flag=True)[:, -1]


class Weighted(Base):
    """Constants of the example: weights of the outputs and a mask [T, T]."""

    def forward(self, x: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0]) * weights + x[..., :OUTPUTS]


WEIGHTS = torch.tensor([2.0, -1.0])


class Loose(Base):
    """forward(*args, **kwargs), and what a trainer leaves in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.MSELoss()
        self.trainer = {"epoch": 3}
        self.history = [torch.zeros(2)]
        self.optimizer = torch.optim.Adam(self.parameters())

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.fc(self.lstm(args[0])[0]) * kwargs.get("k", 1.0) * args[0][..., :OUTPUTS]


class Batch(Base):
    """forward(batch), a dict of tensors."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.fc(self.lstm(batch["x"])[0]) + batch["bias"].unsqueeze(-1)


class Sines(nn.Module):
    """PyTorch's example of time sequence prediction: numbers [B, T], cells, states in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2 = nn.LSTMCell(1, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, input: torch.Tensor, future: int = 0) -> torch.Tensor:  # noqa: A002  # torch's own name
        outputs = []
        h_t = torch.zeros(input.size(0), HIDDEN, dtype=torch.double)
        c_t = torch.zeros(input.size(0), HIDDEN, dtype=torch.double)
        h_t2 = torch.zeros(input.size(0), HIDDEN, dtype=torch.double)
        c_t2 = torch.zeros(input.size(0), HIDDEN, dtype=torch.double)
        for input_t in input.split(1, dim=1):
            h_t, c_t = self.lstm1(input_t, (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            outputs += [self.linear(h_t2)]
        return torch.cat(outputs, dim=1)


def double(module: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last numbers of Sines, in float64 as it was trained."""
    (numbers,) = inputs.values()
    return module.double()(numbers.double())[:, -1].float()


class Squeezed(Base):
    """Ends in squeeze() without an axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0])[..., :1].squeeze()


class DeepAR(nn.Module):
    """One time step of DeepAR: x [1, B, F], squeezed means and deviations, and states."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 3)
        self.lstm = nn.LSTM(FEATURES + 3, HIDDEN, 2, dropout=0.1)
        self.mu, self.sigma = nn.Linear(2 * HIDDEN, 1), nn.Linear(2 * HIDDEN, 1)

    def forward(
        self, x: torch.Tensor, idx: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> Any:
        rows = torch.cat((x, self.embedding(idx)), dim=2)
        _, (hidden, cell) = self.lstm(rows, (hidden, cell))
        wide = hidden.permute(1, 2, 0).contiguous().view(hidden.shape[1], -1)
        deviation = F.softplus(self.sigma(wide))
        return torch.squeeze(self.mu(wide)), deviation.squeeze(), hidden, cell


def deep_ar(module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """DeepAR's answers, from a loop of its caller."""
    rows, kinds = (each.transpose(0, 1) for each in inputs.values())
    h = c = torch.zeros(2, rows.shape[1], HIDDEN)
    for row, kind in zip(rows, kinds, strict=True):
        mean, deviation, h, c = module(row[None], kind[None], h, c)
    return mean, deviation


class Covariates(Base):
    """A decoder over covariates [B, K, F] of the K time steps to come."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        _, state = self.lstm(past)
        return self.fc(self.decoder(future, state)[0])


class Battery(Base):
    """Numbers whose names are those of states: they are inputs."""

    def forward(
        self, x: torch.Tensor, cell_voltage: torch.Tensor, state_id: torch.Tensor
    ) -> torch.Tensor:
        return self.fc(self.lstm(x * cell_voltage.unsqueeze(-1))[0]) + state_id.unsqueeze(-1)


class CellFirst(Base):
    """forward(x, c, h) -> y, c, h."""

    def forward(self, x: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> Any:
        y, (h, c) = self.lstm(x, (h, c))
        return self.fc(y), c, h


STATE = ("state.h", "state.c")
BATTERY = ("x", "cell_voltage", "state_id")
FLAT = (torch.zeros(5, HIDDEN), torch.zeros(5, HIDDEN))


def flat(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, c) of an LSTMCell."""
    return torch.zeros(count, HIDDEN), torch.zeros(count, HIDDEN)


CASES: dict[str, Case] = {
    "forward(x, state)": Case(
        Stateful, lambda: (x(), zeros(5)), lambda net, i: net(i["x"])[0][:, -1], states=STATE
    ),
    "state=None, by keyword": Case(
        Stateful,
        lambda: {"x": x()},
        lambda net, i: net(i["x"])[0][:, -1],
        states=("h", "c"),
    ),
    "forward(x, h, c)": Case(
        lambda: Apart(2),
        lambda: (x(2, 2), *2 * (torch.zeros(2, 2, HIDDEN),)),
        lambda net, i: net(i["x"])[0][:, -1],
        states=("h", "c"),
    ),
    "state first": Case(
        StateFirst,
        lambda: (zeros(5), x()),
        lambda net, i: net(zeros(len(i["x"])), i["x"])[1][:, -1],
        states=("hidden.h", "hidden.c"),
    ),
    "a dict": Case(
        Named,
        x,
        lambda net, i: tuple(net(i["x"])[key][:, -1] for key in ("logits", "value")),
        outputs=("logits", "value"),
    ),
    "a NamedTuple": Case(Fields, x, each_last, outputs=("mean", "scale")),
    "a dataclass": Case(Datum, x, lambda net, i: net(i["x"]).mean[:, -1], outputs=("mean",)),
    "a ModelOutput": Case(Transformers, x, each_last, outputs=("logits", "last_hidden_state")),
    "a nested list, named": Case(
        Nested,
        x,
        nested,
        outputs=("y", "first", "rest"),
        options={"output_names": ["y", "first", "rest"]},
    ),
    "actor and critic": Case(
        ActorCritic,
        lambda: (normal(5, FEATURES), *FLAT),
        rolled(lambda net, i, s: (lambda a, v, h, c: ((a, v), (h, c)))(*net(i["obs"], *s)), flat),
        inputs=("obs",),
        outputs=("y0", "y1"),
        states=("hx", "cx"),
    ),
    "arguments in one tuple": Case(
        Bundle,
        lambda: ((normal(5, FEATURES), FLAT),),
        rolled(
            lambda net, i, s: (lambda v, a, after: ((v, a), after))(*net((i["inputs.0"], s))), flat
        ),
        inputs=("inputs.0",),
        outputs=("y0", "y1"),
        states=("inputs.1.0", "inputs.1.1"),
    ),
    "one step of an nn.LSTM": Case(
        Unsqueezed,
        lambda: (normal(5, FEATURES), zeros(5)),
        rolled(lambda net, i, s: net(i["obs"], s), zeros),
        inputs=("obs",),
        states=STATE,
    ),
    "masks": Case(
        Masked,
        lambda: (normal(5, FEATURES), normal(5, HIDDEN), torch.ones(5, 1)),
        rolled(lambda net, i, s: net(i["x"], s, i["masks"]), lambda n: torch.zeros(n, HIDDEN)),
        inputs=("x", "masks"),
        states=("rnn_hxs",),
    ),
    "lists of states": Case(
        Levels,
        lambda: (normal(3, FEATURES), [[normal(3, HIDDEN)] * 2, [normal(3, 5)] * 2]),
        rolled(
            lambda net, i, s: net(i["x"], s),
            lambda n: [[torch.zeros(n, HIDDEN)] * 2, [torch.zeros(n, 5)] * 2],
        ),
        states=("states.0.0", "states.0.1", "states.1.0", "states.1.1"),
    ),
    "a sentence": Case(
        Tagger, lambda: tokens(9), unbatched, inputs=("sentence",), states=("h", "c")
    ),
    "no batch": Case(Unbatched, lambda: normal(FEATURES, FEATURES), unbatched, states=("gru.h",)),
    "time first": Case(TimeFirst, lambda: normal(5, 5, FEATURES), time_first),
    "several inputs": Case(
        Several,
        lambda: {
            "x": x(5, 5),
            "kind": tokens(5, 5).int().numpy(),
            "gain": normal(5, 5).double(),
            "static": normal(5, 2),
            "scale": 2.5,
            "flag": True,
        },
        several,
        inputs=("x", "kind", "gain", "static"),
        constant=("static",),
    ),
    "constants": Case(
        Weighted,
        lambda: (x().numpy(), WEIGHTS, torch.ones(6, 6)),
        lambda net, i: net(i["x"], WEIGHTS, None)[:, -1],
    ),
    "*args": Case(lambda: Loose().half(), lambda: x().half(), last, inputs=("args",)),
    "a dict of tensors": Case(
        lambda: Batch().bfloat16(),
        lambda: ({"x": x().bfloat16(), "bias": normal(5, 6)},),
        lambda net, i: net({"x": i["batch.x"], "bias": i["batch.bias"]})[:, -1],
        inputs=("batch.x", "batch.bias"),
    ),
    "float64": Case(
        lambda: Sines().double(),
        lambda: (normal(5, 6).double(), 0),
        double,
        inputs=("input",),
        states=("lstm1.h", "lstm1.c", "lstm2.h", "lstm2.c"),
    ),
    "squeeze()": Case(Squeezed, x, lambda net, i: net(i["x"]).view(len(i["x"]), -1)[:, -1]),
    "DeepAR": Case(
        DeepAR,
        lambda: (normal(1, 5, FEATURES), tokens(1, 5), *2 * (torch.zeros(2, 5, HIDDEN),)),
        deep_ar,
        inputs=("x", "idx"),
        outputs=("y0", "y1"),
        states=("hidden", "cell"),
    ),
    "covariates to come": Case(
        Covariates,
        lambda: (x(), normal(5, 4, FEATURES)),
        lambda net, i: net(i["past"], i["future"][:, -1]),
        inputs=("past", "future"),
        constant=("future",),
    ),
    "inputs called cell and state": Case(
        Battery, lambda: (x(), normal(5, 6), tokens(5, 6)), last, inputs=BATTERY
    ),
    "c before h": Case(
        CellFirst,
        lambda: (x(), *zeros(5)),
        lambda net, i: net(i["x"], *zeros(len(i["x"])))[0][:, -1],
        states=("c", "h"),
    ),
    "an nn.GRU": Case(
        lambda: nn.GRU(FEATURES, HIDDEN, 2),
        lambda: normal(6, 5, FEATURES),
        lambda net, i: net(i["input"].transpose(0, 1))[0][-1],
        inputs=("input",),
        states=("h",),
    ),
    "an nn.LSTM with its state": Case(
        lambda: nn.LSTM(FEATURES, HIDDEN, batch_first=True),
        lambda: (x(), zeros(5)),
        lambda net, i: net(i["input"])[0][:, -1],
        inputs=("input",),
        states=("hx.h", "hx.c"),
    ),
    "an nn.GRUCell": Case(
        lambda: nn.GRUCell(FEATURES, HIDDEN),
        lambda: (normal(5, FEATURES), normal(5, HIDDEN)),
        rolled(lambda net, i, s: (net(i["input"], s),) * 2, lambda n: torch.zeros(n, HIDDEN)),
        inputs=("input",),
        states=("hx",),
    ),
    "DataParallel and compile": Case(
        lambda: nn.DataParallel(torch.compile(Plain())),
        x,
        lambda net, i: net.module._orig_mod(i["x"])[:, -1],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_module_streams_as_its_own_forward(case: Case, tmp_path: Path) -> None:
    """Single steps and chunks of the served graph are forward() on every prefix."""
    check(case, tmp_path)


def test_constants_of_the_example_are_noted() -> None:
    """The notes name the arguments that became constants."""
    notes = " ".join(probe(Forward(Weighted(), CASES["constants"].example())).notes)
    assert "weights of the example is the same for every step" in notes
    assert "mask of the example is the same for every step" in notes


BT, TB = Axes(0, 1), Axes(1, 0)
SIZES = {
    "B == T": (5, 5),
    "B == T == F": (FEATURES, FEATURES),
    "B == 1": (1, 5),
    "T == 1": (5, 1),
    "B == T == 1": (1, 1),
    "T == F": (3, FEATURES),
    "B == H": (HIDDEN, 5),
}


@pytest.mark.parametrize(("count", "length"), SIZES.values(), ids=SIZES)
def test_sizes_that_coincide_mislead_nothing(count: int, length: int) -> None:
    """Batch first and time first are told apart for every example, with states and without."""
    torch.manual_seed(1)
    rows = x(count, length)
    for make, example, axes in (
        (Plain, rows, BT),
        (Stateful, (rows, zeros(count)), BT),
        (TimeFirst, rows.transpose(0, 1), TB),
    ):
        found = probe(Forward(make(), example))
        assert [each.axes for each in found.inputs] == [axes]
        assert [each.axes for each in found.outputs] == [axes]
        assert [each.spec.shape for each in found.outputs] == [(OUTPUTS,)]


@pytest.mark.parametrize("count", [1, 2, 3, FEATURES, HIDDEN])
def test_the_batch_of_a_state_is_found(count: int) -> None:
    """It is torch's second axis, also where the batch has the size of the layers or the width."""
    torch.manual_seed(1)
    states = torch.zeros(3, count, HIDDEN), torch.zeros(3, count, HIDDEN)
    for make, example in (
        (lambda: Stateful(3), (x(count, 3), states)),
        (lambda: Apart(3), (x(count, 3), *states)),
    ):
        found = probe(Forward(make(), example))
        assert [each.batch for each in found.passed] == [1, 1]
        assert [each.spec.shape for each in found.passed] == [(3, HIDDEN)] * 2


class Tokens(nn.Module):
    """forward(tokens [B, T]) -> [B, T, C], or forward(tokens [T, B])."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, FEATURES)
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=batch_first)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.gru(self.table(tokens))[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (5, 5), (1, 5), (5, 1), (1, 1)])
def test_axes_of_tokens_are_found(batch_first: bool, shape: tuple[int, int]) -> None:
    """Tokens [B, T] are not taken for rows [B, F] or [T, F], whatever their sizes."""
    found = probe(Forward(Tokens(batch_first=batch_first), tokens(*shape)))
    assert [each.axes for each in found.inputs] == [BT if batch_first else TB]
    assert found.inputs[0].spec.shape == ()


class Flattened(Base):
    """Returns the rows of all sequences, one below the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0]).view(-1, OUTPUTS)


class Forgetful(Base):
    """Takes a state and returns none."""

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x, (h, c))[0])


class Reflex(nn.Module):
    """A policy of one time step that always begins from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(FEATURES, HIDDEN)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.cell(obs)


class Whole(Base):
    """Its head reads all time steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6 * HIDDEN, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0].flatten(1))


class Latest(Base):
    """Returns the last three rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0])[:, -3:]


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any], str]] = {
    "flat": (Flattened, x, {}, "must be [B, T, ...] or [B, ...]"),
    "last three": (Latest, x, {}, "return one row for each time step, or that of the last"),
    "a function": (lambda: torch.tanh, x, {}, "must be an nn.Module"),
    "no state back": (Forgetful, lambda: (x(), *zeros(5)), {}, "return the state after the step"),
    "no state": (Reflex, lambda: normal(5, FEATURES), {}, "forward(x, state) -> (y, state)"),
    "fixed length": (Whole, x, {}, "takes 6 time steps and no other number"),
    "wrong axes": (Plain, x, {"axes": "TB"}, "the axes of x [5, 6, 4] are not clear (TB:"),
    "bad axes": (Plain, x, {"axes": "BTF"}, "axes is 'BTF', must be one of BT, TB"),
    "bad states": (Plain, x, {"states": ["h"]}, "forward() has no argument h in the example"),
    "a lone string": (Plain, x, {"states": "memory"}, "forward() has no argument memory in the"),
    "names": (
        Plain,
        x,
        {"output_names": ["a", "b"]},
        "2 names (a, b), and forward() returns 1 besides the states: y",
    ),
    "example": (Plain, lambda: (x(), 1, 2), {}, "the example does not fit forward(x"),
    "no tensor": (Plain, lambda: (None,), {}, "the example has no tensor"),
    "NaN": (Plain, lambda: x() * np.nan, {}, "x of the example has NaN"),
    "complex": (Plain, lambda: x() + 0j, {}, "x is torch.complex64"),
    "empty": (Plain, lambda: normal(0, 6, FEATURES), {}, "x"),
}


@pytest.mark.parametrize(("make", "example", "options", "says"), REFUSED.values(), ids=REFUSED)
def test_a_signature_that_cannot_stream_is_refused(
    make: Callable[[], nn.Module],
    example: Callable[[], Any],
    options: dict[str, Any],
    says: str,
    tmp_path: Path,
) -> None:
    """One line names the cause and the way out, and nothing is written."""
    assert says in refusal(make(), example(), tmp_path / "models", **options)
