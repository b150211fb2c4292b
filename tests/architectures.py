"""A network around recurrent layers as the Python that a user would write, and its own answers.

An Architecture has the text of a file with a class Net, its inputs, and how its results lie. The
weights are random, and scaled so that outputs are neither saturated nor chaotic. Its oracle is
Net's own forward(), run on every prefix where a result is that of the last time step. It must not
know how a module is exported, nor who wrote the text.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Given:
    """An input of forward(): float32 of some width, or tokens below `tokens` if that is not 0."""

    name: str
    width: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Architecture:
    """`source` is the file; `choices` name what is in it.

    `names` of the results, in order, without states; `states` are those that forward() takes after
    its inputs and returns after its results: [layers, B, width], or [B, width] where `has_time` is
    False: then forward() takes one time step without its axis. If `is_last`, a result is that of
    the last time step, [B, *shape].
    """

    seed: int
    source: str
    inputs: tuple[Given, ...]
    names: tuple[str, ...]
    states: tuple[tuple[str, tuple[int, ...]], ...]
    is_batch_first: bool
    has_time: bool
    is_last: bool
    choices: frozenset[str]

    def __repr__(self) -> str:
        return f"seed {self.seed}: {', '.join(sorted(self.choices))}\n{self.source}"

    def build(self, folder: Path) -> nn.Module:
        """Net in eval, from net_SEED.py, which it writes to the folder; weights by the seed."""
        path = folder / f"net_{self.seed}.py"
        path.write_text(self.source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        file = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = file
        spec.loader.exec_module(file)
        net: nn.Module = file.Net().eval()
        randomise(net, self.seed)
        return net

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> dict[str, Array]:
        """Name -> [B, T] or [B, T, width] of each input."""
        return {
            each.name: rng.integers(0, each.tokens, (batch, length))
            if each.tokens
            else rng.standard_normal((batch, length, each.width)).astype(np.float32)
            for each in self.inputs
        }

    def arguments(self, inputs: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        """The inputs [B, T, *shape] as forward() has them, though always with an axis of time, and
        zeros for the states."""
        tensors = [torch.from_numpy(inputs[each.name]) for each in self.inputs]
        batch = len(tensors[0])
        zeros = (torch.zeros(*layers, batch, width) for _, (*layers, width) in self.states)
        return (*(self._laid_out(each).contiguous() for each in tensors), *zeros)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Arguments for the export."""
        rng = np.random.default_rng(self.seed)
        found = self.arguments(self.draw(rng, int(rng.integers(1, 4)), int(rng.integers(5, 10))))
        if self.has_time:
            return found
        count = len(self.inputs)
        return (*(each[:, 0] for each in found[:count]), *found[count:])

    def results(self, net: nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Name -> [B, T, *shape] of each result by Net's own forward(), in float32."""
        return self._results(net, self.arguments(inputs))

    def exact_results(self, net: nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The same in float64."""
        arguments = self.arguments(inputs)
        with default_dtype(torch.float64):
            wide = copy.deepcopy(net).double()
            return self._results(
                wide, [each.double() if each.is_floating_point() else each for each in arguments]
            )

    def _results(self, net: nn.Module, arguments: Sequence[torch.Tensor]) -> dict[str, Array]:
        count, time = len(self.inputs), 1 if self.is_batch_first else 0
        inputs, states = arguments[:count], list(arguments[count:])
        ends = []
        with torch.no_grad():
            if self.has_time and not self.is_last:
                whole = self._named(net(*arguments))
                return {name: self._laid_out(each).numpy() for name, each in whole.items()}
            for t in range(inputs[0].shape[time]):
                if self.has_time:
                    result = net(*(each.narrow(time, 0, t + 1) for each in inputs))
                else:
                    result = net(*(each[:, t] for each in inputs), *states)
                    states = list(result[len(self.names) :])
                ends.append(self._named(result))
        return {name: torch.stack([each[name] for each in ends], 1).numpy() for name in self.names}

    def _named(self, result: Any) -> dict[str, torch.Tensor]:
        """The results by name, without states."""
        if isinstance(result, dict):
            return result
        results = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.names, results, strict=not self.states))

    def _laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """From batch first to forward()'s layout, and back."""
        return tensor if self.is_batch_first else tensor.transpose(0, 1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes torch.zeros() and others give this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randomise(net: nn.Module, seed: int) -> None:
    """Sets every parameter, and the statistics of every BatchNorm1d."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, each in net.named_parameters():
            if "start" in name:
                uniform(each, -0.8, 0.8)
            elif each.ndim == 1:
                center = 1.0 if name.endswith(".weight") else 0.0  # of a norm, or a bias
                uniform(each, center - 0.3, center + 0.3)
            else:
                bound = (1.0 if "_hh" in name else 1.7) / each[0].numel() ** 0.5
                uniform(each, -bound, bound)
        for name, each in net.named_buffers():
            if name.endswith("running_mean"):
                uniform(each, -0.5, 0.5)
            elif name.endswith("running_var"):
                uniform(each, 0.5, 2.0)
