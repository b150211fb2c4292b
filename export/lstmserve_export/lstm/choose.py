"""Decides which LSTM and embedding of a file the flags mean, and what may be left out of it.

It goes by names and shapes alone, and never guesses: where the file leaves a choice, the refusal
lists the candidates and the flag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lstmserve.head_layers import SIZE_MAX
from lstmserve.spec import LAYERS_MAX
from lstmserve_export.lstm.head import Layers, describe_choices
from lstmserve_export.lstm.names import BROKEN, LinearNames, Recurrent, resolve
from lstmserve_export.lstm.takes import check_tensor
from lstmserve_export.refusal import MODULE_WAY, Refused, shorten

PLAIN_WEIGHTS = (
    "remove weight norm, spectral norm and other parametrizations "
    "(torch.nn.utils.parametrize.remove_parametrizations) and save again"
)
# The tensors from which a parametrization makes a weight, in torch's two ways to write them.
PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.|(^|\.)(weight|bias)\w*_(orig|g|v|u|mask)$")
TWINS = {"c": "h", "cell": "hidden", "cx": "hx", "cn": "hn", "cs": "hs", "cstate": "hstate"}
# How people call the tensors by which they scale x and y.
SCALE = re.compile(r"(mean|std|scale|scaler|shift|offset|min|max|mu|sigma)$", re.IGNORECASE)
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Choices:
    """The flags that choose; "" is a flag that was not given. Activations are "none" or a name.

    `drop` has the names of tensors, or of modules with all their tensors, to leave out;
    `initial_state` those of h0 and c0, or nothing.
    """

    lstm: str = ""
    head: str = ""
    embedding: str = ""
    pre_head: str = "none"
    output_activation: str = "none"
    drop: tuple[str, ...] = ()
    initial_state: tuple[str, ...] = ()


class Pair(NamedTuple):
    """The names of two tensors that can only be an LSTM's initial state."""

    h: str
    c: str


def choose_lstm(found: list[Recurrent], flag: str) -> Recurrent:
    """The LSTM that --lstm names, or the only one. Raises Refused."""
    if not found:
        raise Refused(
            "the file has no LSTM: no tensors named weight_ih_l0 and weight_hh_l0 (nn.LSTM), or "
            f"weight_ih and weight_hh (nn.LSTMCell); if it has cells of your own, {MODULE_WAY}"
        )
    by_label = {one.label: one for one in found}
    if flag:
        label = resolve(flag.removesuffix(".") or flag, by_label, "--lstm")
        if label is None:
            candidates = shorten([str(one) for one in found])
            raise Refused(f"--lstm {flag}: the file has no such LSTM; it has {candidates}")
        return _checked(by_label[label])
    lstms = [one for one in found if one.kind == "LSTM"]
    if len(lstms) > 1:
        candidates = shorten([str(one) for one in lstms])
        raise Refused(
            f"the file has several LSTMs: {candidates}; {MODULE_WAY}, or choose one with --lstm "
            "NAME"
        )
    if not lstms and len(found) > 1 and all(one.kind != BROKEN for one in found):
        others = shorten([str(one) for one in found])
        raise Refused(f"the file has no LSTM, but {others}: {MODULE_WAY}")
    return _checked((lstms or found)[0])


def _checked(recurrent: Recurrent) -> Recurrent:
    if recurrent.kind == BROKEN:
        names = sorted(recurrent.names.values())
        raise Refused(
            f"{recurrent.label} has recurrent tensors that do not form an LSTM "
            f"({shorten(names)}): {PLAIN_WEIGHTS}, if it has any; else {MODULE_WAY}"
        )
    if recurrent.kind != "LSTM":
        raise Refused(
            f"{recurrent.label} is an nn.{recurrent.kind}, and its tensors do not say how it is "
            f"used: {MODULE_WAY}"
        )
    sizes = (recurrent.input_size, recurrent.hidden_size)
    if max(sizes) > SIZE_MAX or recurrent.num_layers > LAYERS_MAX:
        raise Refused(f"{recurrent} is too large: {SIZE_MAX} wide, {LAYERS_MAX} layers at most")
    return recurrent


def choose_embedding(linears: Mapping[str, LinearNames], flag: str) -> LinearNames | None:
    """The table that --embedding names; None without the flag. Raises Refused."""
    if not flag:
        return None
    tables = {label: one for label, one in linears.items() if one.may_be_table}
    label = resolve(flag.removesuffix(".weight"), tables, "--embedding")
    if label is None:
        candidates = shorten([one.as_table() for one in tables.values()]) or "none"
        raise Refused(f"--embedding {flag}: the file has no such table; candidates: {candidates}")
    return tables[label]


def choose_dropped(names: Iterable[str], flags: Iterable[str]) -> set[str]:
    """The tensors that --drop names, each by its name or by that of its module. Raises Refused."""
    names = list(names)
    modules = {name[: match.start()] for name in names for match in re.finditer(r"\.", name)}
    dropped: set[str] = set()
    for flag in flags:
        label = resolve(flag, (*names, *sorted(modules)), "--drop")
        if label is None:
            raise Refused(
                f"--drop {flag}: the file has no tensor and no module of that name; it has "
                f"{shorten(names)}"
            )
        dropped |= {name for name in names if name == label or name.startswith(f"{label}.")}
    return dropped


def choose_state(names: Iterable[str], flag: tuple[str, ...]) -> Pair | None:
    """The tensors that --initial-state names; None for a flag that names none. Raises Refused."""
    if not flag:
        return None
    names, found = list(names), []
    for name in flag:
        label = resolve(name, names, "--initial-state")
        if label is None:
            raise Refused(f"--initial-state {name}: the file has no tensor of that name")
        found.append(label)
    return Pair(*found)


def check_dropped(dropped: set[str], taken: Iterable[str]) -> None:
    """Raises Refused for a tensor that is exported and that --drop names."""
    if both := sorted(dropped & set(taken)):
        raise Refused(f"--drop names tensors that are exported: {shorten(both)}: leave them in")


def check_unused(
    recurrent: Recurrent, layers: Layers, tensors: Tensors, unused: list[str]
) -> tuple[str, ...]:
    """A note on an initial state of zeros, which is left out. Raises Refused for other tensors
    that are neither exported nor named by --drop."""
    if parts := [name for name in unused if PARAMETRIZED.search(name)]:
        raise Refused(
            f"the file has parts of a weight in place of the weight ({shorten(parts)}): "
            f"{MODULE_WAY}, or {PLAIN_WEIGHTS}"
        )
    notes: tuple[str, ...] = ()
    pair = find_initial_state(recurrent, tensors, unused)
    for name in pair or ():
        check_tensor(name, tensors[name])
    if pair is not None and not any(tensors[name].count_nonzero() for name in pair):
        notes = (f"{pair.h} and {pair.c} are zeros, as the state of a new session is: left out",)
        unused, pair = [name for name in unused if name not in pair], None
    if not unused:
        return notes
    taken = [name for name in tensors if name not in unused]
    drop = ",".join(_shortest(unused, taken))
    hints = _hints(recurrent, layers, unused, pair)
    raise Refused(
        f"the file has tensors that would be left out: {shorten(unused)}; {MODULE_WAY}, or leave "
        f"them out with --drop {drop}{hints}"
    )


def _hints(recurrent: Recurrent, layers: Layers, unused: list[str], pair: Pair | None) -> str:
    """What the tensors may be."""
    labels = {name.rpartition(".")[0] for name in unused}
    open_ = [one for label, one in layers.linears.items() if label in labels]
    norms = [str(one) for label, one in layers.norms.items() if label in labels]
    parts = [describe_choices(open_, layers, recurrent)] if open_ else []
    if norms and not open_:
        parts.append(f"--head can name {shorten(norms)} where it stands behind the LSTM")
    scales = [
        name
        for name in unused
        if SCALE.search(name) and name.rpartition(".")[0] not in layers.norms
    ]
    if scales:
        parts.append(f"{shorten(scales)} may scale x or y: see --input-scale and --output-scale")
    if pair is not None:
        parts.append(
            f"{pair.h} and {pair.c} can be its initial state: --initial-state {pair.h},{pair.c}"
        )
    return "".join(f"; {part}" for part in parts)


def _shortest(unused: list[str], taken: list[str]) -> list[str]:
    """The tensors by as few names as --drop needs: a module's where nothing of it is taken."""
    found: dict[str, None] = {}
    for name in unused:
        label, parent = name, name.rpartition(".")[0]
        while parent and not any(each.startswith(f"{parent}.") for each in taken):
            label, parent = parent, parent.rpartition(".")[0]
        found.setdefault(label)
    return list(found)


def find_initial_state(recurrent: Recurrent, tensors: Tensors, names: Iterable[str]) -> Pair | None:
    """The only two of the tensors whose shapes and names are those of h0 and c0."""
    layers = recurrent.num_layers * (1 + recurrent.bidirectional)
    h_size = recurrent.proj_size or recurrent.hidden_size
    fits = {}
    for name in names:
        shape = [size for size in tensors[name].shape if size != 1]
        if tensors[name].is_floating_point():
            fits[name] = [
                shape == [size for size in (layers, width) if size != 1]
                for width in (h_size, recurrent.hidden_size)
            ]
    pairs = [
        Pair(h, c)
        for h in fits
        for c in fits
        if h != c and fits[h][0] and fits[c][1] and _twin(c) == _words(h) != _words(c)
    ]
    return pairs[0] if len(pairs) == 1 else None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", name.lower())


def _twin(name: str) -> list[str]:
    """The words of the name that the h beside this c would have."""
    return [TWINS.get(word, word) for word in _words(name)]
