"""export(module, example=) of head(lstm(x)) makes the same model as export(lstm, head).

The tests have the ways to write such a forward(), and modules that are nearly it and stay networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lstmserve.golden import Golden
from lstmserve.manifest import read_model
from lstmserve_export import Refused, export
from lstmserve_export.lstm.network import Network
from lstmserve_export.module import export as module_export
from lstmserve_export.module.graph import recognise as recognising
from lstmserve_export.streaming import Stream

INPUTS, HIDDEN, OUTPUTS, TOKENS = 3, 5, 2, 7
COUNT, LENGTH = 3, 6
Run = Callable[[Any, torch.Tensor], Any]

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, about oneDNN


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads cost these small networks more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A module whose forward() is `run`, around the same layers."""

    def __init__(self, run: Run, lstm: nn.Module, width: int = HIDDEN) -> None:
        super().__init__()
        self.run = run
        self.lstm = lstm
        self.fc = nn.Linear(width, 4)
        self.out = nn.Linear(4, OUTPUTS)
        self.no_bias = nn.Linear(width, OUTPUTS, bias=False)
        self.table = nn.Embedding(TOKENS, INPUTS)
        self.norm = nn.LayerNorm(width)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.register_buffer("mean", torch.randn(INPUTS))
        self.register_buffer("scale", torch.rand(INPUTS) + 0.5)
        self.register_buffer("y_mean", torch.randn(OUTPUTS))
        self.register_buffer("y_scale", torch.rand(OUTPUTS) + 0.5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def made(run: Run, lstm: nn.Module | None = None, width: int = HIDDEN) -> Net:
    """The module with weights that are the same each time."""
    torch.manual_seed(1)
    return Net(run, nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True) if lstm is None else lstm, width)


@dataclass(frozen=True)
class Form:
    """A module, and the arguments with which export() makes the same model of its parts."""

    net: Net
    head: nn.Module | None
    options: dict[str, Any] = field(default_factory=dict)
    is_time_first: bool = False


# --- ways to write the same ---


def functions(net: Net, x: torch.Tensor) -> torch.Tensor:
    out, _ = net.lstm(x)
    hidden = functional.dropout(torch.relu(net.fc(out)), 0.5, net.training)
    return torch.sigmoid(net.out(hidden))


def last_row(net: Net, x: torch.Tensor) -> torch.Tensor:
    return functional.softmax(net.fc(net.lstm(x)[0][:, -1, :]), dim=1)


def last_state(net: Net, x: torch.Tensor) -> torch.Tensor:
    _, (h, _) = net.lstm(x)
    return torch.tanh(net.fc(h[-1]))


def state_of_docs(net: Net, x: torch.Tensor) -> torch.Tensor:
    _, (h, _) = net.lstm(x)
    return net.fc(h.view(2, 1, x.shape[0], HIDDEN)[-1, 0])


def squeezed_state(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x)[1][0].squeeze(0))


def with_states(net: Net, x: torch.Tensor) -> Any:
    zeros = x.new_zeros(2, x.shape[0], HIDDEN)
    return net.lstm(x, (zeros, zeros))


def cell_loop(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = c = torch.zeros(x.shape[0], HIDDEN)
    answers = []
    for t in range(x.shape[1]):
        h, c = net.lstm(x[:, t], (h, c))
        answers.append(net.no_bias(h))
    return torch.stack(answers, dim=1)


def of_tokens(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(net.table(x))[0])


def normed(net: Net, x: torch.Tensor) -> torch.Tensor:
    out, _ = net.lstm((x - net.mean) / net.scale)
    return net.out(net.fc(out).relu()) * net.y_scale + net.y_mean


def one_scale(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x / 255.0)[0])


def flattened(net: Net, x: torch.Tensor) -> torch.Tensor:
    batch, steps, _ = x.shape
    return net.fc(net.lstm(x)[0].reshape(batch * steps, -1)).view(batch, steps, -1)


def transposed(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x.transpose(0, 1))[0]).transpose(0, 1)


def learned_start(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.start.expand(2, x.shape[0], HIDDEN).contiguous()
    return net.fc(net.lstm(x, (h, torch.zeros_like(h)))[0])


def many_layers(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = functional.silu(net.fc(net.norm(net.lstm(x)[0])))
    y = functional.softplus(functional.leaky_relu(functional.elu(y, 0.3), 0.2))
    y = functional.hardtanh(functional.gelu(functional.gelu(y, approximate="tanh")))
    return net.out(functional.log_softmax(y, -1))


def residual_of_columns(net: Net, x: torch.Tensor) -> torch.Tensor:
    x = (x - net.mean) / net.scale
    y = net.out(net.norm(net.lstm(x)[0].transpose(1, 2)).transpose(1, 2)[..., :])
    return (y + x[..., [2, 0]]) * net.y_scale + net.y_mean


def residual_of_the_last_row(net: Net, x: torch.Tensor) -> torch.Tensor:
    return x[:, -1, 1:2] + net.no_bias(net.lstm(x)[0][:, -1])


def twice(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.lstm.own(net.lstm.own(net.lstm(x)[0]))


def beside(name: str, layer: nn.Module) -> nn.LSTM:
    """An LSTM that brings another layer."""
    lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True)
    lstm.add_module(name, layer)
    return lstm


def forms() -> dict[str, Form]:
    """Each way with its parts."""
    torch.manual_seed(2)
    one, time_first = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.LSTM(INPUTS, HIDDEN)
    narrow = nn.LSTM(INPUTS, HIDDEN, 2, bias=False, batch_first=True, proj_size=4)
    found = {
        "functions": (net := made(functions), [net.fc, nn.ReLU(), net.out, nn.Sigmoid()]),
        "last row": (net := made(last_row), [net.fc, nn.Softmax(-1)]),
        "last state": (net := made(last_state), [net.fc, nn.Tanh()]),
        "state of the docs": (net := made(state_of_docs), [net.fc]),
        "squeezed state": (net := made(squeezed_state, one), [net.fc]),
        "states returned": (made(with_states), []),
        "cell": (net := made(cell_loop, nn.LSTMCell(INPUTS, HIDDEN)), [net.no_bias]),
        "flattened": (net := made(flattened), [net.fc]),
        "transposed": (net := made(transposed, time_first), [net.fc]),
        "projection": (net := made(last_state, narrow, 4), [net.fc, nn.Tanh()]),
    }
    made_forms = {name: Form(net, nn.Sequential(*head)) for name, (net, head) in found.items()}
    net = made(of_tokens, time_first)
    made_forms["tokens"] = Form(net, net.fc, {"embedding": net.table}, is_time_first=True)
    net = made(normed)
    scales = {"input_mean": net.mean, "input_scale": net.scale}
    scales |= {"output_mean": net.y_mean, "output_scale": net.y_scale}
    head = nn.Sequential(net.fc, nn.ReLU(), net.out)
    made_forms["norms"] = Form(net, head, {n: each.numpy() for n, each in scales.items()})
    net = made(one_scale)
    made_forms["one scale"] = Form(net, net.fc, {"input_scale": np.full(INPUTS, 255.0)})
    net = made(learned_start)
    start = net.start.detach()[0].expand(2, HIDDEN), torch.zeros(2, HIDDEN)
    made_forms["learned start"] = Form(net, net.fc, {"initial_state": start})
    net = made(many_layers)
    layers = [net.norm, net.fc, nn.SiLU(), nn.ELU(0.3), nn.LeakyReLU(0.2), nn.Softplus()]
    layers += [nn.GELU("tanh"), nn.GELU(), nn.Hardtanh(), nn.LogSoftmax(-1), net.out]
    made_forms["many layers"] = Form(net, nn.Sequential(*layers))
    return made_forms | residual_forms()


def residual_forms() -> dict[str, Form]:
    """The same with columns of x added to the head's output."""
    net = made(residual_of_columns)
    net.norm, net.out = nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    with torch.no_grad():
        net.norm(torch.randn(9, HIDDEN, 7))  # running statistics of its own
    scales = {"input_mean": net.mean, "input_scale": net.scale}
    scales |= {"output_mean": net.y_mean, "output_scale": net.y_scale}
    options = {n: each.numpy() for n, each in scales.items()} | {"residual": [2, 0]}
    found = {"residual of columns": Form(net, nn.Sequential(net.norm, net.out), options)}
    net = made(residual_of_the_last_row)
    found["residual of the last row"] = Form(net, net.no_bias, {"residual": [1, 1]})
    return found


FORMS = forms()


def example_of(form: Form, size: int = 4, length: int = 5) -> torch.Tensor:
    """Random rows in the axes of the form."""
    torch.manual_seed(3)
    axes = (length, size) if form.is_time_first else (size, length)
    if "embedding" in form.options:
        return torch.randint(0, TOKENS, axes)
    return torch.randn(*axes, INPUTS)


def check_served(form: Form, models: Path) -> None:
    """Compares the served graphs, fed in pieces, with forward() on each prefix."""
    x = example_of(form, COUNT, LENGTH)
    rows = (x.transpose(0, 1) if form.is_time_first else x).numpy()
    files = read_model(models, "net", 1)
    name = files.manifest.spec.inputs[0].name
    case = Golden({name: rows}, np.full(COUNT, LENGTH, np.int32), None, {}, {}, 0.0)
    found = Stream(files.network).run(case, [0, 1, 2, 5, LENGTH])["y"]
    for t in range(1, LENGTH + 1):
        with torch.no_grad():
            y = form.net.eval()(x[:t] if form.is_time_first else x[:, :t])
        y = y[0] if isinstance(y, tuple) else y
        if y.dim() == 3:
            y = y[-1] if form.is_time_first else y[:, -1]
        np.testing.assert_allclose(found[:, t - 1], y.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_module_and_its_parts_are_one_model(tmp_path: Path, form: Form) -> None:
    """Both have one fingerprint, so sessions may move between them, and both are forward()."""
    live = export(form.net, example=example_of(form), name="net", models=tmp_path / "live")
    parts = export(form.net.lstm, form.head, name="net", models=tmp_path, **form.options)
    manifest = live.manifest
    assert manifest.spec == parts.manifest.spec
    assert manifest.spec.kind == "lstm"
    assert manifest.fingerprint == parts.manifest.fingerprint
    assert recognising.NOTE in manifest.notes
    assert manifest.parity["excess"]["user"] <= 1  # forward() itself is a golden case
    check_served(form, tmp_path / "live")


def test_a_linear_that_is_used_twice_is_two_layers(tmp_path: Path) -> None:
    """Its weights are copied, so y is the same."""
    form = Form(made(twice, beside("own", nn.Linear(HIDDEN, HIDDEN))), None)
    live = export(form.net, example=example_of(form), name="net", models=tmp_path)
    assert [type(layer).__name__ for layer in live.manifest.lstm.head] == ["Linear", "Linear"]
    check_served(form, tmp_path)


class Policy(nn.Module):
    """A module whose argument and result have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.lstm(obs)[0]


def test_the_argument_becomes_x_and_a_note_says_so(tmp_path: Path) -> None:
    """Kind "lstm" has one name for its input."""
    live = export(Policy(), example=torch.randn(2, 4, INPUTS), name="net", models=tmp_path)
    assert live.manifest.spec.kind == "lstm"
    assert "the argument obs of forward() is the input x" in live.manifest.notes


def test_a_name_for_the_output_keeps_the_traced_graph(tmp_path: Path) -> None:
    """Kind "lstm" has one name for its output, and output_names asks for another."""
    options = {"example": torch.randn(2, 4, INPUTS), "name": "net", "models": tmp_path}
    live = export(Policy(), output_names=["score"], **options)
    assert live.manifest.spec.kind == "network"
    assert [each.name for each in live.manifest.spec.outputs] == ["score"]


def test_more_sequences_than_pairs_may_have(tmp_path: Path) -> None:
    """Of an example of many short sequences, only some become golden vectors."""
    example = torch.randn(300, 2, INPUTS)
    live = export(Policy(), example=example, name="net", models=tmp_path)
    assert live.manifest.spec.kind == "lstm"


# --- what is nearly head(lstm(x)) ---


def residual(net: Net, x: torch.Tensor) -> torch.Tensor:
    out = net.lstm(x)[0]
    return net.no_bias(out) + net.out(net.fc(out))


def front(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(torch.tanh(x))[0])


def raw_residual(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.lstm.wide(net.lstm((x - net.mean) / net.scale)[0]) + x


def steep_softplus(net: Net, x: torch.Tensor) -> torch.Tensor:
    return functional.softplus(net.fc(net.lstm(x)[0]), 1.0, 3.0)


def norm_within(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x)[0] * 2.0)


def two_calls(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm.second(net.lstm(x)[0])[0])


def softmax_in_groups(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.fc(net.lstm(x)[0])
    return y.reshape(*y.shape[:2], 2, 2).softmax(2).flatten(2)


def lower_state(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x)[1][0][0])


def cell_state(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x)[1][1][-1])


def without_last_axis(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.lstm.one(net.lstm(x)[0][:, -1]).squeeze(-1)


NEAR: dict[str, Net] = {
    "residual": made(residual),
    "activation before the LSTM": made(front),
    "residual of the raw x": made(raw_residual, beside("wide", nn.Linear(HIDDEN, INPUTS))),
    "softplus with another threshold": made(steep_softplus),
    "norm before the head": made(norm_within),
    "two LSTMs": made(two_calls, beside("second", nn.LSTM(HIDDEN, HIDDEN, batch_first=True))),
    "softmax over another axis": made(softmax_in_groups),
    "state of a lower layer": made(lower_state),
    "the other state": made(cell_state),
    "y without an axis": made(without_last_axis, beside("one", nn.Linear(HIDDEN, 1))),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_nearly_head_of_lstm_stays_a_network(tmp_path: Path, name: str) -> None:
    """Its own graph is served, and is right."""
    form = Form(NEAR[name], None)
    live = export(form.net, example=example_of(form), name="net", models=tmp_path)
    assert live.manifest.spec.kind == "network"
    assert recognising.NOTE not in live.manifest.notes
    check_served(form, tmp_path)


# --- what must not be served ---


def first_row(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x)[0][:, 0])


def backwards(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.fc(net.lstm(x.flip(1))[0])


@pytest.mark.parametrize(
    ("run", "reason"),
    [(first_row, "reads earlier rows by itself"), (backwards, "reads rows that come later")],
)
def test_one_step_is_head_of_lstm_and_more_are_not(tmp_path: Path, run: Run, reason: str) -> None:
    """A trace of one time step cannot tell them apart; forward() on every prefix does."""
    with pytest.raises(Refused, match=reason):
        export(made(run), example=torch.randn(4, 5, INPUTS), name="net", models=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_bidirectional_lstm_is_refused(tmp_path: Path) -> None:
    """A stream has no rows to come."""
    lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
    with pytest.raises(Refused, match="bidirectional"):
        export(
            made(last_row, lstm, 2 * HIDDEN),
            example=torch.randn(4, 5, INPUTS),
            name="net",
            models=tmp_path,
        )


def test_a_wrong_recognition_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the network that was recognised is not forward(), the traced graph is served instead."""

    def wrong(*given: Any) -> Network:
        network = recognising.recognise(*given)
        assert network is not None
        return replace(network, head=nn.Sequential(*network.head, nn.ReLU()))

    monkeypatch.setattr(module_export, "recognise", wrong)
    form = FORMS["last state"]
    live = export(form.net, example=example_of(form), name="net", models=tmp_path)
    assert live.manifest.spec.kind == "network"
    assert any("keeps the traced graph" in note for note in live.manifest.notes)
    check_served(form, tmp_path)
