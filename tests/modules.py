"""What the tests of the module way share: an exported module as a stream, and its own answers.

The oracle takes nothing of the export: it runs the user's module as it is on every prefix.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import INITIAL, RESERVED, Pool
from lstmserve.manifest import ModelFiles, read_model
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec
from lstmserve_export import Refused, export

# torch builds the same registry of 500 functions for each export: a third of its time. The exports
# of these tests in other processes build their own.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))

Array = npt.NDArray[Any]
Tensors = dict[str, torch.Tensor]
Ask = Callable[[nn.Module, Tensors], Any]
FEATURES, HIDDEN, OUTPUTS, VOCABULARY = 4, 6, 2, 7
COUNT, LENGTH = 3, 7  # sequences and time steps that the oracle checks
RELATIVE, ABSOLUTE = 1e-4, 2e-5


@dataclass(frozen=True)
class Case:
    """A module as a user has it, and what must become of it.

    `states` are ("h", "c") where it becomes a model of kind "lstm".
    `ask` runs the module on a prefix [N, t, *shape] of each input, by name, and returns the outputs
    [N, *shape] of its last time step in forward's order. `constant` names inputs that are equal at
    all time steps.
    """

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    ask: Ask
    inputs: Sequence[str] = ("x",)
    outputs: Sequence[str] = ("y",)
    states: Sequence[str] = ("lstm.h", "lstm.c")
    options: Mapping[str, Any] = field(default_factory=dict)
    constant: Sequence[str] = ()


def check(case: Case, models: Path) -> ModelFiles:
    """Exports the case, streams it, and compares it with the module on every prefix."""
    torch.manual_seed(3)
    module = case.make()
    export(module, example=case.example(), name="net", models=models, **case.options)
    files = read_model(models, "net", 1)
    spec = files.manifest.spec
    if spec.kind == "network":  # the other kind has names of its own
        assert [each.name for each in spec.inputs] == list(case.inputs)
        assert [each.name for each in spec.outputs] == list(case.outputs)
    assert [each.name for each in spec.states] == list(case.states)
    rows = random_rows(spec, case.constant)
    named = dict(zip(case.inputs, rows.values(), strict=True))
    wanted = answers(module.float().eval(), case.ask, named, spec)
    for cuts in (range(LENGTH + 1), (0, 2, LENGTH)):
        found = stream(files, rows, list(cuts))
        for name, value in wanted.items():
            where = f"{name}, cut at {list(cuts)}"
            np.testing.assert_allclose(found[name], value, RELATIVE, ABSOLUTE, err_msg=where)
    return files


def refusal(module: nn.Module, example: Any, models: Path, **options: Any) -> str:
    """The one line with which the export refuses; it has written nothing."""
    with pytest.raises(Refused) as error:
        export(module, example=example, name="net", models=models, **options)
    assert not models.exists() or not list(models.iterdir())
    line = str(error.value)
    assert "\n" not in line
    return line


def normal(*shape: int) -> torch.Tensor:
    """Standard normal float32 values, the same in each run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def tokens(*shape: int) -> torch.Tensor:
    """int64 values below VOCABULARY, the same in each run."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(4))


def whole(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Answers of a forward(...) that returns [N, ...] for its last time step."""
    return module(*inputs.values())


def last(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Answers of a forward(...) that returns [N, T, ...]."""
    return module(*inputs.values())[:, -1]


def each_last(module: nn.Module, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    """Answers of a forward(...) that returns several [N, T, ...]: a tuple, list or dict."""
    found = module(*inputs.values())
    return tuple(part[:, -1] for part in (found.values() if isinstance(found, dict) else found))


def time_first(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Answers of a forward(x) from [T, N, ...] to [T, N, ...]."""
    (x,) = inputs.values()
    return module(x.transpose(0, 1))[-1]


def unbatched(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Answers of a forward(x) from [T, ...] to [T, ...]."""
    (x,) = inputs.values()
    return torch.stack([module(sequence)[-1] for sequence in x])


def rolled(step: Callable[..., Any], start: Callable[[int], Any]) -> Ask:
    """Answers of a forward() of one time step: step(module, rows, states) -> (answer, states)."""

    def ask(module: nn.Module, inputs: Tensors) -> Any:
        count, length = next(iter(inputs.values())).shape[:2]
        states, answer = start(count), None
        for t in range(length):
            answer, states = step(module, {n: each[:, t] for n, each in inputs.items()}, states)
        return answer

    return ask


def zeros(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, c) of one LSTM layer."""
    return torch.zeros(1, count, HIDDEN), torch.zeros(1, count, HIDDEN)


def random_rows(spec: ModelSpec, constant: Sequence[str] = ()) -> dict[str, Array]:
    """Random rows [COUNT, LENGTH, *shape] of each input."""
    rng = np.random.default_rng(5)
    found: dict[str, Array] = {}
    for each in spec.inputs:
        shape = (COUNT, LENGTH, *each.shape)
        if each.dtype == "float32":
            found[each.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            found[each.name] = rng.integers(0, VOCABULARY, shape)
        if each.name in constant:
            found[each.name][:] = found[each.name][:, :1]
    return found


def answers(
    module: nn.Module, ask: Ask, rows: Mapping[str, Array], spec: ModelSpec
) -> dict[str, Array]:
    """The module's outputs [COUNT, LENGTH, *shape] by name, from a run for each prefix."""
    tensors = {name: torch.from_numpy(value) for name, value in rows.items()}
    steps = []
    with torch.no_grad():
        for t in range(1, LENGTH + 1):
            found = ask(module, {name: each[:, :t] for name, each in tensors.items()})
            steps.append(found if isinstance(found, tuple) else (found,))
    columns = [np.stack([each.numpy() for each in parts], 1) for parts in zip(*steps, strict=True)]
    for value, output in zip(columns, spec.outputs, strict=True):
        assert value.shape == (COUNT, LENGTH, *output.shape), output
        assert (value.dtype.kind == "f") == (output.dtype == "float32"), output
    return {each.name: value for each, value in zip(spec.outputs, columns, strict=True)}


def stream(files: ModelFiles, rows: Mapping[str, Array], cuts: Sequence[int]) -> dict[str, Array]:
    """Results [N, T, *shape] of the served graphs, which take the rows in these pieces.

    The sequences run in one batch whose order changes from piece to piece.
    """
    spec = files.manifest.spec
    pool = Pool(files.network.layout, 4 * COUNT + RESERVED)
    kernel = Kernel(files.network, pool, "cpu", 1)
    x, outputs = RowFormat(spec.inputs).pack(dict(rows)), RowFormat(spec.results)
    count, length = x.shape[:2]
    y = outputs.unknown(count, length)
    read = np.full(count, INITIAL)
    rng = np.random.default_rng(6)
    for start, stop in itertools.pairwise(cuts):
        order = rng.permutation(count)
        write = pool.take(count)
        part = np.ascontiguousarray(x[order, start:stop].swapaxes(0, 1))
        lengths = np.full(count, stop - start, np.int32)
        y[order, start:stop] = kernel.run(part, lengths, read[order], write).swapaxes(0, 1)
        pool.give(read)
        read = np.empty_like(write)
        read[order] = write
    return outputs.split(y)
