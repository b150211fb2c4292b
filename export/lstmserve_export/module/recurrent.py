"""The recurrent layers of a module, and how their calls are watched and replaced.

Only layers whose forward() is torch's own count; a subclass that changes it is a module like any
other. A call is named by its layer and its number within one run of the module's forward(), since
one layer may be called several times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from lstmserve.spec import LayerKind
from lstmserve_export.refusal import Refused

SEQUENCES: Final = (nn.LSTM, nn.GRU, nn.RNN)
CELLS: Final = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
KINDS: Final[dict[LayerKind, tuple[type, type]]] = {
    "lstm": (nn.LSTM, nn.LSTMCell),
    "gru": (nn.GRU, nn.GRUCell),
    "rnn": (nn.RNN, nn.RNNCell),
}
Layer = Any  # one of the above; torch has no class for them all
State = tuple[torch.Tensor, ...]


class CallId(NamedTuple):
    """The `number`-th call (from 0) of the layer at the path `layer` in one run."""

    layer: str
    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was watched.

    `length`: time steps of its sequence, 1 for a cell. `rows`: sequences in its batch. `handed`:
    the state that the caller gave, [rows, *shape] each with the shape of state_shapes(), or None.
    `given` are the tensors of the handed state themselves, and `after` those that it returned.
    """

    id: CallId
    length: int
    rows: int
    handed: State | None
    given: State
    after: State


def find_layers(module: nn.Module) -> dict[str, Layer]:
    """The recurrent layers by path; "" is the module itself."""
    found = {}
    for path, each in module.named_modules():
        kinds = [kind for kind in (*SEQUENCES, *CELLS) if isinstance(each, kind)]
        if kinds and type(each).forward is kinds[0].forward:
            found[path] = each
    return found


def kind_of(layer: Layer) -> LayerKind:
    """ "lstm", "gru" or "rnn"."""
    return next(name for name, classes in KINDS.items() if isinstance(layer, classes))


def state_names(layer: Layer) -> tuple[str, ...]:
    """h, and for an LSTM c."""
    return ("h", "c") if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else ("h",)


def state_shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """torch's shapes without the batch: [num_layers, width] for a sequence layer, [width] for a
    cell."""
    if isinstance(layer, CELLS):
        return ((layer.hidden_size,),) * len(state_names(layer))
    count = layer.num_layers * (1 + layer.bidirectional)
    h = (count, layer.proj_size or layer.hidden_size)
    return (h, (count, layer.hidden_size)) if isinstance(layer, nn.LSTM) else (h,)


def batch_first(layer: Layer, state: State | torch.Tensor | None) -> State | None:
    """A state in torch's layout -> [rows, *shape] each."""
    if state is None:
        return None
    parts = state if isinstance(state, (tuple, list)) else (state,)
    if isinstance(layer, CELLS):
        return tuple(part if part.dim() == 2 else part[None] for part in parts)
    return tuple(part.transpose(0, 1) if part.dim() == 3 else part[None] for part in parts)


def torch_layout(layer: Layer, state: State) -> State | torch.Tensor:
    """[rows, *shape] each -> the state as the layer returns it for a batch."""
    if isinstance(layer, SEQUENCES):
        state = tuple(part.transpose(0, 1) for part in state)
    return state if len(state) > 1 else state[0]


def sequence_axis(layer: Layer, x: torch.Tensor) -> int | None:
    """The axis of time in a layer's input; None for a cell."""
    if isinstance(layer, CELLS):
        return None
    return 0 if x.dim() == 2 or not layer.batch_first else 1


@contextmanager
def replaced(
    layers: dict[str, Layer], call: Callable[[CallId, Layer, torch.Tensor, Any], Any]
) -> Iterator[None]:
    """Meanwhile each layer's forward() is call(id, layer, input, state as it was given)."""
    numbers: Counter[str] = Counter()

    def replacement(path: str, layer: Layer) -> Callable[..., Any]:
        def forward(input: torch.Tensor, hx: Any = None) -> Any:  # noqa: A002  # torch's own names
            number = numbers[path]
            numbers[path] += 1
            return call(CallId(path, number), layer, input, hx)

        return forward

    for path, layer in layers.items():
        layer.forward = replacement(path, layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def call_original(layer: Layer, x: torch.Tensor, state: Any) -> Any:
    """What torch's own forward() of the layer returns."""
    kinds = [kind for kind in (*SEQUENCES, *CELLS) if isinstance(layer, kind)]
    return kinds[0].forward(layer, x, state)


@contextmanager
def watched(layers: dict[str, Layer]) -> Iterator[list[Call]]:
    """Collects the calls of a run, which goes on as it would. Raises Refused in the run where a
    layer reads a packed sequence."""
    calls: list[Call] = []

    def call(call_id: CallId, layer: Layer, x: torch.Tensor, state: Any) -> Any:
        found = call_original(layer, x, state)
        after = found if isinstance(layer, CELLS) else found[1]
        after = after if isinstance(after, tuple) else (after,)
        calls.append(_watch(call_id, layer, x, state, after))
        return found

    with replaced(layers, call):
        yield calls


def _watch(call_id: CallId, layer: Layer, x: Any, state: Any, after: State) -> Call:
    if isinstance(x, nn.utils.rnn.PackedSequence):
        raise Refused(
            f"{call_id.layer or 'the module'} reads a packed sequence: a stream has no "
            "padding, so call the layer with the tensor itself, without pack_padded_sequence"
        )
    axis = sequence_axis(layer, x)
    length = 1 if axis is None else x.shape[axis]
    is_batched = x.dim() == (3 if axis is not None else 2)
    rows = x.shape[0 if axis is None else 1 - axis] if is_batched else 1
    handed = batch_first(layer, state)
    if handed is not None:
        handed = tuple(part.detach().clone() for part in handed)
    given = () if state is None else tuple(state) if isinstance(state, (tuple, list)) else (state,)
    return Call(call_id, length, rows, handed, given, after)
