"""Faults planted in the export itself: each ends in a refusal, and nothing is written.

The proof is only worth as much as the faults that it finds. Torch's own exporter made some of these
(an nn.GRU silently wrong, sizes frozen at the second export of a process).
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lstmserve_export import Refused, export
from lstmserve_export.module import export as module_export
from lstmserve_export.module.graph import nodes, trace
from lstmserve_export.module.signature import probe, signature
from lstmserve_export.streaming import Stream
from modules import refusal
from randomnets import architecture

WIDTH, HIDDEN = 5, 6
Plant = Callable[[pytest.MonkeyPatch], None]
SEEDS = (580, 590)


class Net(nn.Module):
    """Every kind of recurrent layer, a learned start, and two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(WIDTH, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, 2, batch_first=True)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
        self.start = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.left, self.right = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out, _ = self.lstm(torch.relu(self.front(x)))
        out, _ = self.gru(out, self.start.expand(-1, x.shape[0], -1).contiguous())
        h, c = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h, c = self.cell(out[:, t], (h, c))
        return {"left": self.left(h), "right": self.right(h)}


def made() -> tuple[nn.Module, torch.Tensor]:
    """The module and its example."""
    torch.manual_seed(0)
    return Net(), torch.randn(4, 8, WIDTH)


def patched(owner: Any, name: str, change: Callable[..., Any]) -> Plant:
    """Replaces owner.name by change(original)."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, change(getattr(owner, name)))

    return plant


def wrong_gates(kind: str, order: Sequence[int]) -> Plant:
    """The gates of a kind in another order."""
    return lambda patch: patch.setitem(nodes.GATES, kind, tuple(order))


def node(op: str, change: Callable[[Any], None]) -> Plant:
    """Changes each node of a kind as it is made."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = nodes.helper.make_node

        def make(kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> Any:
            found = original(kind, inputs, outputs, **more)
            if kind == op:
                change(found)
            return found

        patch.setattr(nodes.helper, "make_node", make)

    return plant


def swap(names: Any, one: int, other: int) -> None:
    """Exchanges two names of a node."""
    names[one], names[other] = names[other], names[one]


def biasless(original: Any) -> Any:
    """The layers have no bias."""

    def matrices(self: Any, index: int) -> Any:
        return {letter: name for letter, name in original(self, index).items() if letter != "B"}

    return matrices


def reset_first(found: Any) -> None:
    for attribute in found.attribute:
        if attribute.name == "linear_before_reset":
            attribute.i = 0


def transposed(original: Any) -> Any:
    """Each gate's block of the recurrent weights is transposed."""

    def parameter(self: Any, kind: str, place: Any) -> Any:
        found = original(self, kind, place)
        if kind != "weight_hh":
            return found
        return np.concatenate([part.T for part in np.split(found, len(found) // HIDDEN)])

    return parameter


def stale(original: Any) -> Any:
    """The state after a step is that before it."""

    def placeholder(kind: str, number: int, layer: Any, rows: Any, before: Any) -> Any:
        y, after = original(kind, number, layer, rows, before)
        return y, tuple(
            part.expand_as(new) + 0 * new for part, new in zip(before, after, strict=True)
        )

    return placeholder


def forgotten(original: Any) -> Any:
    """The last memory that the probe found is missing."""
    return lambda self, *given: original(self, *given)[:-1]


def another_start(original: Any) -> Any:
    """The initial states are those of other values."""

    def memory(self: Any, *given: Any) -> Any:
        found = original(self, *given)
        return dataclasses.replace(
            found, initial=tuple(value[..., ::-1] for value in found.initial)
        )

    return memory


def exchanged(original: Any) -> Any:
    """The two outputs are exchanged."""

    def run(self: Any, tensors: Any) -> Any:
        left, right, *states = original(self, tensors)
        return right, left, *states

    return run


def neighbours(original: Any) -> Any:
    """Each row gets the outputs of its neighbour in the batch."""

    def run(self: Any, tensors: Any) -> Any:
        left, *rest = original(self, tensors)
        return left.roll(1, 0), *rest

    return run


def frozen(original: Any) -> Any:
    """The size of the batch is that of the trace."""

    def run(self: Any, tensors: Any) -> Any:
        left, *rest = original(self, tensors)
        return left[: trace.BATCH].expand(left.shape[0], -1), *rest

    return run


def first_row_only(original: Any) -> Any:
    """Each row gets what the first row of the batch gets."""

    def run(self: Any, tensors: Any) -> Any:
        left, *rest = original(self, tensors)
        return left[:1].expand_as(left).contiguous(), *rest

    return run


FAULTS: dict[str, Plant] = {
    "gates of the LSTM": wrong_gates("lstm", (0, 1, 2, 3)),
    "gates of the GRU": wrong_gates("gru", (0, 1, 2)),
    "reset before the product": node("GRU", reset_first),
    "no bias": patched(nodes.LayerWeights, "matrices", biasless),
    "h and c exchanged before": node("LSTM", lambda found: swap(found.input, 5, 6)),
    "h and c exchanged after": node("LSTM", lambda found: swap(found.output, 1, 2)),
    "W and R exchanged": node("LSTM", lambda found: swap(found.input, 1, 2)),
    "layers exchanged": node("Split", lambda found: swap(found.output, 0, 1)),
    "layers exchanged after": node("Concat", lambda found: swap(found.input, 0, 1)),
    "recurrent weights transposed": patched(nodes.LayerWeights, "parameter", transposed),
    "stale state": patched(trace, "placeholder", stale),
    "forgotten memory": patched(probe._Probe, "_memories", forgotten),
    "another start": patched(probe._Probe, "_memory", another_start),
    "start of zeros": lambda patch: patch.setattr(
        signature.Signature,
        "initial",
        property(lambda self: {each.name: np.zeros(each.shape) for each in self.spec.states}),
    ),
    "outputs exchanged": patched(trace._Run, "__call__", exchanged),
    "rows exchanged": patched(trace._Run, "__call__", neighbours),
    "first row for all": patched(trace._Run, "__call__", first_row_only),
    "size of the batch frozen": patched(trace._Run, "__call__", frozen),
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_export_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    """Whatever the export gets wrong, it writes nothing."""
    plant(monkeypatch)
    module, example = made()
    assert refusal(module, example, tmp_path / "models")


def test_without_a_fault_it_is_served(tmp_path: Path) -> None:
    """The same module is exported where nothing is planted."""
    module, example = made()
    assert export(module, example=example, name="net", models=tmp_path).manifest.taps


def test_a_wrong_answer_anywhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value that is wrong in one run of the served graphs is enough."""
    original = Stream.run

    def run(self: Stream, case: Any, cuts: Sequence[int]) -> Any:
        found = original(self, case, cuts)
        if len(case.lengths) > 200:  # the large batch
            found["right"][-1, 0, 0] += 1e-2
        return found

    monkeypatch.setattr(Stream, "run", run)
    module, example = made()
    line = refusal(module, example, tmp_path / "models")
    assert "output right differs at time step" in line
    assert "in a batch of" in line


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that ends in an error of ours leaves no folder either."""

    def fail(*_: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(module_export, "prove", fail)
    module, example = made()
    with pytest.raises(AssertionError, match="ours"):
        export(module, example=example, name="net", models=tmp_path / "models")
    assert not (tmp_path / "models").exists()


# One process --------------------------------------------------------------------------------------


class Nested(nn.Module):
    """An LSTM within each time step, which torch's own conversion exports."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(2, WIDTH, batch_first=True)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, steps, length, width = x.shape
        inner = self.inner(x.reshape(count * steps, length, width))[0][:, -1]
        return self.lstm(inner.reshape(count, steps, WIDTH))[0]


def digest(seed: int, folder: Path) -> str:
    """The sha256 of the exported graph of a random module, or with seed 0 of Nested."""
    names: Sequence[str] = ()
    if seed:
        found = architecture(seed)
        net, example = found.build(folder), found.example()
        names = found.names if "tuple" in found.choices else ()
    else:
        torch.manual_seed(0)
        net, example = Nested(), torch.randn(2, 3, 4, 2)
    models = folder / f"models{seed}"
    exported = export(net, example=example, name="m", models=models, output_names=names, force=True)
    return hashlib.sha256((exported.folder / "model.onnx").read_bytes()).hexdigest()


def digests(seeds: Sequence[int], folder: Path) -> dict[int, str]:
    """The digests of several exports in one process of their own."""
    code = (
        "import sys, warnings; from pathlib import Path; warnings.simplefilter('ignore');"
        "from test_modules_faults import digest;"
        "[print(seed, digest(int(seed), Path(sys.argv[1]))) for seed in sys.argv[2:]]"
    )
    folder.mkdir()
    command = [sys.executable, "-c", code, str(folder), *map(str, seeds)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {int(s): found for s, found in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.timeout(600)
def test_exports_of_one_process_do_not_touch_each_other(tmp_path: Path) -> None:
    """In either order they have the same bytes, so none depends on those before it."""
    seeds = (0, *SEEDS)
    forth = digests(seeds, tmp_path / "forth")
    assert len(set(forth.values())) == len(seeds)
    assert digests(seeds[::-1], tmp_path / "back") == forth


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_exports_of_one_process(tmp_path: Path) -> None:
    """The long form: twenty exports of one process have the bytes of twenty fresh processes."""
    seeds = range(580, 600)
    together = digests([*seeds, 0, 0], tmp_path / "together")
    for seed in (*seeds, 0):
        assert digests([seed], tmp_path / f"alone{seed}") == {seed: together[seed]}


def test_an_export_twice_is_the_same(tmp_path: Path) -> None:
    """A second export of one module, which torch's exporter freezes, has the same bytes."""
    module, example = made()
    one, other = (
        export(module, example=example, name="net", models=tmp_path / name) for name in ("a", "b")
    )
    for file in ("model.onnx", "golden.npz"):
        assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes()
    with pytest.raises(Refused, match="exists"):
        export(module, example=example, name="net", version=1, models=tmp_path / "a")
