"""Builds the network from the tensors of a file. It never guesses: choose.py decides or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from lstmserve.spec import ACTIVATIONS
from lstmserve_export.lstm.checkpoint import Checkpoint
from lstmserve_export.lstm.choose import Choices, Linears, check_unused, choose_head, choose_lstm
from lstmserve_export.lstm.names import Recurrent, find_linears, find_recurrent
from lstmserve_export.lstm.network import Network, make_activation
from lstmserve_export.lstm.takes import Taker
from lstmserve_export.refusal import Refused, shorten

M = TypeVar("M", bound=nn.Module)


def assemble(checkpoint: Checkpoint, choices: Choices) -> Network:
    """The network of the checkpoint. Raises Refused."""
    taker = Taker(checkpoint.tensors)
    linears = find_linears(checkpoint.tensors)
    recurrent = choose_lstm(find_recurrent(checkpoint.tensors), choices.lstm)
    lstm = _build_lstm(recurrent, taker)
    embedding = _build_embedding(linears, choices.embedding, taker)
    chain = choose_head(linears, recurrent, choices)
    layers = [_build_layer(linears, entry, taker) for entry in chain]
    notes = check_unused(recurrent, linears, choices, taker.unused())
    notes = (*checkpoint.notes, *taker.notes(), *notes)
    return Network(lstm, nn.Sequential(*layers).eval(), embedding, notes=notes)


def _build_lstm(r: Recurrent, taker: Taker) -> nn.LSTM:
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
    promised = lstm.state_dict()
    if missing := sorted(set(promised) - set(r.names)):
        raise Refused(
            f"{r.label} lacks {shorten(missing)}: remove weight norm and other parametrizations "
            "(torch.nn.utils.parametrize.remove_parametrizations) and save again"
        )
    if extra := sorted(r.names[own] for own in set(r.names) - set(promised)):
        raise Refused(f"{shorten(extra)} belong to no layer of {r.label}: save a plain nn.LSTM")
    tensors = {own: taker.take(r.names[own], tuple(promised[own].shape)) for own in promised}
    return _fill(lstm, tensors)


def _build_embedding(linears: Linears, flag: str, taker: Taker) -> nn.Embedding | None:
    if not flag:
        return None
    named = linears.get(flag.removesuffix(".weight"))
    if named is None or named.bias:
        candidates = shorten([one.as_table() for one in linears.values() if not one.bias]) or "none"
        raise Refused(f"--embedding {flag}: the file has no such table; candidates: {candidates}")
    shape = (named.out_features, named.in_features)
    table = taker.take(f"{named.label}.weight", shape)
    return _fill(nn.Embedding(*shape, device="meta"), {"weight": table})


def _build_layer(linears: Linears, entry: str, taker: Taker) -> nn.Module:
    if entry in ACTIVATIONS:
        return make_activation(entry)
    if entry not in linears:
        candidates = shorten([str(one) for one in linears.values()]) or "none"
        raise Refused(f"--head: {entry!r} is no Linear of the file; candidates: {candidates}")
    named = linears[entry]
    weight = taker.take(f"{entry}.weight")
    state = {"weight": weight.reshape(named.out_features, named.in_features)}
    if named.bias:
        state["bias"] = taker.take(f"{entry}.bias")
    linear = nn.Linear(named.in_features, named.out_features, named.bias, device="meta")
    return _fill(linear, state)


def _fill(module: M, tensors: Mapping[str, torch.Tensor]) -> M:
    """Gives its tensors to a module that was made on the meta device, and returns it."""
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)
