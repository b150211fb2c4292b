"""Builds the network from the tensors of a file. It never guesses: choose.py decides or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from lstmserve_export.lstm.checkpoint import Checkpoint
from lstmserve_export.lstm.choose import (
    PARAMETRIZED,
    PLAIN_WEIGHTS,
    Choices,
    Pair,
    check_dropped,
    check_unused,
    choose_dropped,
    choose_embedding,
    choose_lstm,
    choose_state,
    find_initial_state,
)
from lstmserve_export.lstm.head import (
    Entry,
    Layers,
    Norm,
    check_widths,
    infer_head,
    read_head,
)
from lstmserve_export.lstm.names import (
    LinearNames,
    Recurrent,
    find_linears,
    find_norms,
    find_recurrent,
)
from lstmserve_export.lstm.network import Network, make_activation, take_state
from lstmserve_export.lstm.takes import Taker, check_shape
from lstmserve_export.refusal import Faults, Refused, shorten

M = TypeVar("M", bound=nn.Module)


def assemble(checkpoint: Checkpoint, choices: Choices) -> Network:
    """The network of the checkpoint. Raises Refused, with all that is wrong."""
    tensors = checkpoint.tensors
    layers = _find_layers(checkpoint)
    faults = Faults()
    entries: list[Entry] = []
    with faults.collect():
        recurrent = choose_lstm(find_recurrent(tensors), choices.lstm)
        lstm = _plan_lstm(recurrent, tensors)
    with faults.collect():
        embedding = choose_embedding(layers.linears, choices.embedding)
    with faults.collect():
        entries = read_head(choices.head, layers) if choices.head else []
    with faults.collect():
        dropped = choose_dropped(tensors, choices.drop)
    with faults.collect():
        state = choose_state(tensors, choices.initial_state)
    faults.refuse()
    if not choices.head:
        open_ = _without(layers, dropped, embedding)
        entries = infer_head(open_, recurrent)
    check_widths(entries, recurrent, layers)
    ends = choices.pre_head, choices.output_activation
    before, after = ([make_activation(e)] if e != "none" else [] for e in ends)
    plan = _Plan(recurrent, lstm, embedding, [*before, *entries, *after], state, dropped)
    return _build(checkpoint, plan)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What of a file becomes the network; `lstm` is on the meta device."""

    recurrent: Recurrent
    lstm: nn.LSTM
    embedding: LinearNames | None
    entries: list[Entry]
    state: Pair | None
    dropped: set[str]


def _find_layers(checkpoint: Checkpoint) -> Layers:
    tensors = checkpoint.tensors
    return Layers(find_linears(tensors), find_norms(tensors), checkpoint.functions)


def _without(layers: Layers, dropped: set[str], embedding: LinearNames | None) -> Layers:
    """The layers that neither --drop nor --embedding names."""

    def is_open(label: str) -> bool:
        return not {f"{label}.weight", f"{label}.running_mean"} & dropped

    return Layers(
        {k: one for k, one in layers.linears.items() if is_open(k) and one != embedding},
        {k: one for k, one in layers.norms.items() if is_open(k)},
        layers.functions,
    )


def _build(checkpoint: Checkpoint, plan: _Plan) -> Network:
    """Takes the tensors, and accounts for those that are not taken. Raises Refused."""
    tensors, faults = checkpoint.tensors, Faults()
    taker = Taker(tensors)
    with faults.collect():
        names = {own: plan.recurrent.names[own] for own in plan.lstm.state_dict()}
        lstm = _fill(plan.lstm, taker.take_all(names))
    with faults.collect():
        table = None if plan.embedding is None else _build_embedding(plan.embedding, taker)
    modules: list[nn.Module] = []
    for entry in plan.entries:
        with faults.collect():
            modules.append(_build_layer(entry, taker))
    with faults.collect():
        state = None if plan.state is None else _take_state(plan.state, plan.recurrent, taker)
        if (
            plan.state
            and find_initial_state(plan.recurrent, tensors, plan.state) == plan.state[::-1]
        ):
            h, c = reversed(plan.state)
            raise Refused(f"--initial-state has c before h by their names: give {h},{c}")
    with faults.collect():
        check_dropped(plan.dropped, taker.taken())
    unused = [name for name in taker.unused() if name not in plan.dropped]
    layers = _find_layers(checkpoint)
    notes: tuple[str, ...] = ()
    with faults.collect():
        notes = check_unused(plan.recurrent, layers, tensors, unused)
    faults.refuse()
    left_out = [name for name in tensors if name in plan.dropped]
    notes += (f"not exported: {', '.join(left_out)}",) if left_out else ()
    if checkpoint.functions:
        others = shorten(list(checkpoint.functions))
        notes += (f"the program has {others}; the model has only those that --head names",)
    notes += tuple(_norm_note(each) for each in plan.entries if isinstance(each, Norm))
    notes = (*checkpoint.notes, *taker.notes(), *notes)
    head = nn.Sequential(*modules).eval()
    return Network(lstm, head, table, initial_state=take_state(state, lstm), notes=notes)


def _norm_note(norm: Norm) -> str:
    kind = "BatchNorm1d" if norm.names.is_batch_norm else "LayerNorm"
    return f"{norm.names.label} is served as nn.{kind} with eps {norm.eps:g}: no file says its eps"


def _plan_lstm(r: Recurrent, tensors: Mapping[str, torch.Tensor]) -> nn.LSTM:
    """An nn.LSTM without values, whose tensors the file has. Raises Refused."""
    try:
        lstm = nn.LSTM(
            r.input_size,
            r.hidden_size,
            r.num_layers,
            bias=r.bias,
            batch_first=True,
            bidirectional=r.bidirectional,
            proj_size=r.proj_size,
            device="meta",
        )
    except (ValueError, AssertionError) as error:
        raise Refused(f"{r.label} is not an nn.LSTM: {error}") from error
    shapes = {own: tuple(tensor.shape) for own, tensor in lstm.state_dict().items()}
    if missing := sorted(set(shapes) - set(r.names)):
        is_parametrized = any(PARAMETRIZED.search(name) for name in tensors)
        advice = PLAIN_WEIGHTS if is_parametrized else "save the whole model.state_dict() again"
        raise Refused(f"{r.label} lacks {shorten(missing)}: {advice}")
    if extra := sorted(r.names[own] for own in set(r.names) - set(shapes)):
        raise Refused(f"{shorten(extra)} belong to no layer of {r.label}: save a plain nn.LSTM")
    faults = Faults()
    for own, shape in shapes.items():
        with faults.collect():
            check_shape(r.names[own], tensors[r.names[own]], shape)
    faults.refuse()
    return lstm


def _take_state(pair: Pair, r: Recurrent, taker: Taker) -> tuple[torch.Tensor, torch.Tensor]:
    """h0 [L, state] and c0 [L, H] of tensors that may have axes of length 1 besides. Raises
    Refused."""
    layers, found = r.num_layers * (1 + r.bidirectional), []
    for name, width in zip(pair, (r.proj_size or r.hidden_size, r.hidden_size), strict=True):
        tensor = taker.take(name)
        if [n for n in tensor.shape if n != 1] != [n for n in (layers, width) if n != 1]:
            raise Refused(
                f"--initial-state: {name} is {list(tensor.shape)}, must be {[layers, width]}"
            )
        found.append(tensor.reshape(layers, width))
    return found[0], found[1]


def _build_embedding(table: LinearNames, taker: Taker) -> nn.Embedding:
    shape = (table.out_features, table.in_features)
    weight = taker.take(f"{table.label}.weight")
    return _fill(nn.Embedding(*shape, device="meta"), {"weight": weight})


def _build_layer(entry: Entry, taker: Taker) -> nn.Module:
    if isinstance(entry, LinearNames):
        return _build_linear(entry, taker)
    return _build_norm(entry, taker) if isinstance(entry, Norm) else entry


def _build_linear(names: LinearNames, taker: Taker) -> nn.Linear:
    parts = ("weight", "bias") if names.bias else ("weight",)
    tensors = taker.take_all({part: f"{names.label}.{part}" for part in parts})
    tensors["weight"] = tensors["weight"].reshape(names.out_features, names.in_features)
    linear = nn.Linear(names.in_features, names.out_features, names.bias, device="meta")
    return _fill(linear, tensors)


def _build_norm(norm: Norm, taker: Taker) -> nn.Module:
    names = norm.names
    parts: tuple[str, ...] = ("weight", "bias") if names.affine else ()
    module: nn.Module = nn.LayerNorm(names.width, norm.eps, device="meta")
    if names.is_batch_norm:
        parts += ("running_mean", "running_var")
        module = nn.BatchNorm1d(names.width, norm.eps, affine=names.affine, device="meta")
    tensors = taker.take_all({part: f"{names.label}.{part}" for part in parts})
    if names.is_batch_norm:
        # It counts the batches of training, and nothing that is served reads it.
        taker.ignore(f"{names.label}.num_batches_tracked")
        tensors["num_batches_tracked"] = torch.tensor(0)
    return _fill(module, tensors)


def _fill(module: M, tensors: Mapping[str, torch.Tensor]) -> M:
    """Gives its tensors to a module that was made on the meta device, and returns it."""
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)
