"""Writes random networks around recurrent layers: a seed gives one Architecture.

It must not run what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from architectures import Architecture, Given

RNNS = ("LSTM", "GRU", "RNN tanh", "RNN relu")
CELLS = ("LSTMCell", "GRUCell")
ACTIVATIONS = ("GELU()", "ReLU()", "ELU()", "SiLU()", "Softplus()", "Tanh()", "LeakyReLU(0.1)")
ROW_LAYERS = ("Linear", "LayerNorm", "BatchNorm1d", "Conv1d", "residual", "Dropout", "activation")
STARTS = ("no start", "zeros", "learned start")
# The last two take two layers.
ARRANGEMENTS = ("one", "residual around", "called twice", "side by side", "cells in a loop")
RESULTS = ("tensor", "tuple", "dict")
ENDS = ("every step", "last step", "last h")
INPUTS = ("floats", "two floats", "tokens", "floats and tokens")
LAYOUTS = ("batch first", "time first")
# Every choice that the generator has. The long form draws all of them.
VOCABULARY = frozenset(
    (
        *RNNS,
        *CELLS,
        *ACTIVATIONS,
        *ROW_LAYERS,
        *STARTS,
        *ARRANGEMENTS,
        *RESULTS,
        *ENDS,
        *INPUTS,
        *LAYOUTS,
        *("projection", "several layers", "no bias", "softmax", "scalar result"),
        *("given states", "no time axis"),
    )
)


def architecture(seed: int) -> Architecture:
    """The architecture of a seed."""
    return Writer(seed).write()


class Writer:
    """Writes one Net: lines of __init__ and of forward(), whose value so far is x of `width`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._made: list[str] = []
        self._lines: list[str] = []
        self._counts: dict[str, int] = {}
        self._choices: set[str] = set()
        self._states: list[tuple[str, tuple[int, ...]]] = []
        self._is_batch_first = self._choose(LAYOUTS) == "batch first"
        self._has_time = not self._maybe("no time axis", 0.08)
        if not self._has_time:
            self._is_batch_first = True
            self._choices -= set(LAYOUTS)
        self._last_h = ""
        self._width = 0

    def write(self) -> Architecture:
        """The whole file."""
        has_time, inputs = self._has_time, self._inputs()
        self._rows(0, 2)
        if not has_time:
            end = self._given_cell()
        elif self._maybe("given states", 0.12):
            end = self._given_states()
        else:
            self._core()
            end = self._end()
        self._rows(0, 2)
        names, result = self._result()
        return Architecture(
            seed=self._seed,
            source=self._file(inputs, result),
            inputs=inputs,
            names=names,
            states=tuple(self._states),
            is_batch_first=self._is_batch_first,
            has_time=has_time,
            is_last=end != "every step",
            choices=frozenset(self._choices),
        )

    def _file(self, inputs: Sequence[Given], result: str) -> str:
        taken = ", ".join([each.name for each in inputs] + [name for name, _ in self._states])
        lines = [
            *("import torch", "from torch import nn", "", "", "class Net(nn.Module):"),
            "    def __init__(self):",
            *(f"        {line}" for line in ("super().__init__()", *self._made)),
            "",
            f"    def forward(self, {taken}):",
            *(f"        {line}" for line in (*self._lines, result)),
        ]
        return "\n".join(lines) + "\n"

    # Choices --------------------------------------------------------------------------------------

    def _choose(self, choices: Sequence[str], weights: Sequence[float] | None = None) -> str:
        chosen = str(self._rng.choice(choices, p=weights))
        self._choices.add(chosen)
        return chosen

    def _maybe(self, choice: str, share: float) -> bool:
        if self._rng.random() < share:
            self._choices.add(choice)
            return True
        return False

    def _size(self) -> int:
        return int(self._rng.integers(3, 25))

    def _make(self, prefix: str, text: str) -> str:
        """Adds self.PREFIX<n> = text, and returns self.PREFIX<n>."""
        self._counts[prefix] = self._counts.get(prefix, 0) + 1
        name = f"self.{prefix}{self._counts[prefix]}"
        self._made.append(f"{name} = {text}")
        return name

    def _add(self, *lines: str) -> None:
        self._lines += lines

    @property
    def _batch(self) -> str:
        return "x.size(0)" if self._is_batch_first else "x.size(1)"

    @property
    def _steps(self) -> str:
        """The time steps of x."""
        return "x.unbind(1)" if self._is_batch_first else "x"

    # Per row --------------------------------------------------------------------------------------

    def _inputs(self) -> tuple[Given, ...]:
        kind = self._choose(INPUTS, (0.4, 0.2, 0.15, 0.25))
        floats = Given("x", self._size())
        tokens = Given("tokens", tokens=int(self._rng.integers(5, 30)))
        self._width = floats.width
        if kind == "two floats":
            other = Given("gain", int(self._rng.integers(1, 4)))
            self._add("x = torch.cat([x, gain], dim=-1)")
            self._width += other.width
            return floats, other
        if kind == "floats":
            return (floats,)
        width = self._size()
        if kind == "floats and tokens" and self._rng.random() < 0.5:
            width = floats.width
            table = self._make("embed", f"nn.Embedding({tokens.tokens}, {width})")
            self._add(f"x = x + {table}(tokens)")
            return floats, tokens
        table = self._make("embed", f"nn.Embedding({tokens.tokens}, {width})")
        if kind == "tokens":
            self._width = width
            self._add(f"x = {table}(tokens)")
            return (tokens,)
        self._width += width
        self._add(f"x = torch.cat([x, {table}(tokens)], dim=-1)")
        return floats, tokens

    def _rows(self, low: int, high: int) -> None:
        """Some layers that see each row alone."""
        makers: dict[str, Callable[[], None]] = {
            "Linear": self._linear,
            "LayerNorm": self._layer_norm,
            "BatchNorm1d": self._batch_norm,
            "Conv1d": self._conv,
            "residual": self._residual,
            "Dropout": self._dropout,
            "activation": self._activation,
        }
        for _ in range(int(self._rng.integers(low, high + 1))):
            makers[self._choose(ROW_LAYERS)]()

    def _linear(self) -> None:
        width = self._size()
        self._add(f"x = {self._make('fc', f'nn.Linear({self._width}, {width})')}(x)")
        self._width = width

    def _layer_norm(self) -> None:
        self._add(f"x = {self._make('norm', f'nn.LayerNorm({self._width})')}(x)")

    def _batch_norm(self) -> None:
        name = self._make("bn", f"nn.BatchNorm1d({self._width})")
        if not self._has_time:
            self._add(f"x = {name}(x)")
        elif self._is_batch_first and self._rng.random() < 0.5:
            self._add(f"x = {name}(x.transpose(1, 2)).transpose(1, 2)")
        else:
            self._add(f"x = {name}(x.reshape(-1, {self._width})).reshape(x.shape)")

    def _conv(self) -> None:
        """Over the features of a row, which are the last axis."""
        channels, size = int(self._rng.integers(1, 4)), int(self._rng.integers(1, 4))
        name = self._make("conv", f"nn.Conv1d(1, {channels}, {size}, padding={size // 2})")
        lead = "*x.shape[:2]" if self._has_time else "x.size(0)"
        self._add(f"x = {name}(x.reshape(-1, 1, {self._width})).reshape({lead}, -1)")
        self._width = channels * (self._width + 2 * (size // 2) - size + 1)
        if self._width > 30:
            self._linear()

    def _residual(self) -> None:
        name = self._make("fc", f"nn.Linear({self._width}, {self._width})")
        self._add(f"x = x + torch.relu({name}(x))")

    def _dropout(self) -> None:
        self._add(f"x = {self._make('drop', 'nn.Dropout(0.3)')}(x)")

    def _activation(self) -> None:
        self._add(f"x = {self._make('act', f'nn.{self._choose(ACTIVATIONS)}')}(x)")

    # Recurrent ------------------------------------------------------------------------------------

    def _core(self) -> None:
        """One to four recurrent layers."""
        left = int(self._rng.integers(1, 5))
        while left > 0:
            possible = ARRANGEMENTS if left > 1 else ARRANGEMENTS[:3]
            arrangement = self._choose(possible)
            makers: dict[str, Callable[[], object]] = {
                "one": lambda: self._recurrent("x"),
                "residual around": self._residual_around,
                "called twice": self._called_twice,
                "side by side": self._side_by_side,
                "cells in a loop": self._cells_in_a_loop,
            }
            makers[arrangement]()
            left -= 2 if arrangement in ARRANGEMENTS[3:] else 1
            self._rows(0, 1)

    def _recurrent(self, target: str, width_out: int = 0) -> int:
        """TARGET = a recurrent layer of x. Its width is `width_out`, unless that is 0."""
        kind = self._choose((*RNNS, *CELLS), (0.25, 0.2, 0.1, 0.1, 0.2, 0.15))
        if kind in CELLS:
            hidden = width_out or self._size()
            self._cell_loop(target, [(kind, self._make_cell(kind, self._width, hidden), hidden)])
            width = hidden
        else:
            name, layers, hidden, width = self._make_rnn(kind, width_out)
            self._call_rnn(target, kind, name, layers, (width, hidden))
        if target == "x":
            self._width = width
        return width

    def _make_rnn(self, kind: str, width_out: int) -> tuple[str, int, int, int]:
        """Its name, number of layers, hidden size, and width of its output."""
        width = hidden = width_out or self._size()
        layers = int(self._rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))
        given = [str(self._width), str(hidden)]
        if layers > 1:
            self._choices.add("several layers")
            given += [f"num_layers={layers}"] + ["dropout=0.2"] * bool(self._rng.integers(2))
        if kind == "RNN relu":
            given.append('nonlinearity="relu"')
        if kind == "LSTM" and self._maybe("projection", 0.2):
            hidden = width + int(self._rng.integers(1, 9))
            given[1] = str(hidden)
            given.append(f"proj_size={width}")
        if self._maybe("no bias", 0.1):
            given.append("bias=False")
        if self._is_batch_first:
            given.append("batch_first=True")
        torch_name = kind.partition(" ")[0]
        name = self._make(torch_name.lower(), f"nn.{torch_name}({', '.join(given)})")
        return name, layers, hidden, width

    def _call_rnn(
        self, target: str, kind: str, name: str, layers: int, sizes: tuple[int, int]
    ) -> None:
        """`sizes` are those of h and c."""
        count = 2 if kind == "LSTM" else 1
        starts = self._starts(*((layers, size) for size in sizes[:count]))
        given = ", ".join(starts)
        given = f", ({given})" if len(starts) == 2 else f", {given}" if starts else ""
        self._last_h = "h"
        self._add(f"{target}, {'(h, _)' if count == 2 else 'h'} = {name}(x{given})")

    def _starts(self, *shapes: tuple[int, ...]) -> list[str]:
        """Expressions of the starts of a layer, [layers, B, width] or [B, width]; [] for none."""
        style = self._choose(STARTS, (0.4, 0.3, 0.3))
        if style == "no start":
            return []
        zeros = "x.new_zeros" if self._rng.random() < 0.3 else "torch.zeros"
        starts = []
        for *layers, width in shapes:
            sizes = ", ".join([*map(str, layers), self._batch, str(width)])
            if style == "zeros":
                starts.append(f"{zeros}({sizes})")
                continue
            ones = ", ".join(map(str, (*layers, 1, width)))
            name = self._make("start", f"nn.Parameter(torch.zeros({ones}))")
            starts.append(f"{name}.expand({sizes}).contiguous()")
        return starts

    def _make_cell(self, kind: str, width: int, hidden: int) -> str:
        return self._make(kind.lower(), f"nn.{kind}({width}, {hidden})")

    def _cell_loop(self, target: str, cells: Sequence[tuple[str, str, int]]) -> None:
        """A loop over time; each cell reads the one before it. Cells: kind, name, hidden size."""
        updates, shown = [], "row"
        for i, (kind, name, hidden) in enumerate(cells):
            starts = self._starts(*[(hidden,)] * (2 if kind == "LSTMCell" else 1))
            if kind == "GRUCell":
                self._add(f"h{i} = {starts[0] if starts else None}")
                updates.append(f"h{i} = {name}({shown}, h{i})")
                shown = f"h{i}"
            elif starts:
                self._add(f"h{i}, c{i} = {', '.join(starts)}")
                updates.append(f"h{i}, c{i} = {name}({shown}, (h{i}, c{i}))")
                shown = f"h{i}"
            else:
                self._add(f"pair{i} = None")
                updates.append(f"pair{i} = {name}({shown}, pair{i})")
                shown = f"pair{i}[0]"
        self._add(
            "steps = []",
            f"for row in {self._steps}:",
            *(f"    {each}" for each in updates),
            f"    steps.append({shown})",
            f"{target} = torch.stack(steps, dim={1 if self._is_batch_first else 0})",
        )
        self._last_h = ""

    def _cells_in_a_loop(self) -> None:
        kinds = [self._choose(CELLS) for _ in range(2)]
        hidden = [self._size() for _ in kinds]
        widths = [self._width, hidden[0]]
        names = [self._make_cell(*each) for each in zip(kinds, widths, hidden, strict=True)]
        self._cell_loop("x", list(zip(kinds, names, hidden, strict=True)))
        self._width = hidden[1]

    def _side_by_side(self) -> None:
        width = self._recurrent("a") + self._recurrent("b")
        self._add("x = torch.cat([a, b], dim=-1)")
        self._width, self._last_h = width, ""

    def _called_twice(self) -> None:
        kind = self._choose(RNNS)
        name, layers, hidden, width = self._make_rnn(kind, self._width)
        for _ in range(2):
            self._call_rnn("x", kind, name, layers, (width, hidden))

    def _residual_around(self) -> None:
        self._recurrent("y", self._width)
        self._add("x = x + y")
        self._last_h = ""

    def _given_states(self) -> str:
        """One layer whose states forward() takes and returns."""
        kind = self._choose(RNNS)
        name, layers, hidden, width = self._make_rnn(kind, 0)
        self._states.append(("h", (layers, width)))
        if kind == "LSTM":
            self._states.append(("c", (layers, hidden)))
        states = "(h, c)" if kind == "LSTM" else "h"
        self._add(f"x, {states} = {name}(x, {states})")
        self._width = width
        return "every step"

    def _given_cell(self) -> str:
        """A cell and its states, without a loop: forward() has no axis of time."""
        kind, hidden = self._choose(CELLS), self._size()
        name = self._make_cell(kind, self._width, hidden)
        names = ("h", "c") if kind == "LSTMCell" else ("h",)
        self._states += [(each, (hidden,)) for each in names]
        states = ", ".join(names)
        self._add(f"{states} = {name}(x, {f'({states})' if len(names) > 1 else states})", "x = h")
        self._width = hidden
        return "every step"

    # The end --------------------------------------------------------------------------------------

    def _end(self) -> str:
        end = self._choose(ENDS, (0.6, 0.2, 0.2))
        if end == "last h" and not self._last_h_is_x:
            self._choices.discard(end)
            self._choices.add(end := "last step")
        if end == "last step":
            self._add("x = x[:, -1]" if self._is_batch_first else "x = x[-1]")
        elif end == "last h":
            self._add(f"x = {self._last_h}[-1]")
        self._has_time = end == "every step"
        return end

    @property
    def _last_h_is_x(self) -> bool:
        """Whether x is the output of a layer whose h is at hand."""
        return bool(self._last_h) and self._lines[-1].startswith("x, ")

    def _result(self) -> tuple[tuple[str, ...], str]:
        """The names of the results, and the line that returns them."""
        kind = self._choose(RESULTS, (0.5, 0.25, 0.25))
        if self._states:
            self._choices.discard(kind)
            self._choices.add(kind := "tensor")
        count = 1 if kind == "tensor" else int(self._rng.integers(2, 4))
        names = ("y",) if count == 1 else ("policy", "value", "extra")[:count]
        heads = [self._head() for _ in names]
        if kind == "dict":
            pairs = ", ".join(f'"{name}": {each}' for name, each in zip(names, heads, strict=True))
            return names, f"return {{{pairs}}}"
        return names, f"return {', '.join([*heads, *(name for name, _ in self._states)])}"

    def _head(self) -> str:
        """An expression of a result."""
        if self._maybe("scalar result", 0.2):
            return f"{self._make('head', f'nn.Linear({self._width}, 1)')}(x).squeeze(-1)"
        head = f"{self._make('head', f'nn.Linear({self._width}, {self._size()})')}(x)"
        return f"torch.softmax({head}, dim=-1)" if self._maybe("softmax", 0.3) else head
