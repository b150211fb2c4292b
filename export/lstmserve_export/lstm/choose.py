"""Decides which LSTM, head and embedding of a file the flags mean, by names and shapes alone.

It never guesses: where the file leaves a choice, the refusal lists the candidates and the flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lstmserve.spec import LAYERS_MAX, SIZE_MAX
from lstmserve_export.lstm.names import BROKEN, LinearNames, Recurrent
from lstmserve_export.refusal import MODULE_WAY, Refused, shorten

HEAD_FLAG = "--head NAME[,relu|tanh|sigmoid,NAME...] or --head none"
Linears = Mapping[str, LinearNames]


@dataclass(frozen=True, slots=True)
class Choices:
    """The flags that choose; "" is a flag that was not given. Activations are "none" or a name."""

    lstm: str = ""
    head: str = ""
    embedding: str = ""
    pre_head: str = "none"
    output_activation: str = "none"


def choose_lstm(found: list[Recurrent], flag: str) -> Recurrent:
    """The LSTM that --lstm names, or the only one. Raises Refused."""
    if flag:
        chosen = [r for r in found if r.label == flag.removesuffix(".") or flag == r.label]
    else:
        chosen = [r for r in found if r.kind == "LSTM"] or found
    if len(chosen) == 1:
        return _checked(chosen[0])
    candidates = shorten([str(r) for r in found])
    if not found:
        raise Refused(
            "the file has no LSTM: no tensors named weight_ih_l0 and weight_hh_l0 (nn.LSTM), or "
            f"weight_ih and weight_hh (nn.LSTMCell); if it has cells of your own, {MODULE_WAY}"
        )
    if flag:
        raise Refused(f"--lstm {flag}: the file has no such LSTM; it has {candidates}")
    raise Refused(
        f"the file has several LSTMs: {candidates}; {MODULE_WAY}, or choose one with --lstm NAME"
    )


def _checked(recurrent: Recurrent) -> Recurrent:
    if recurrent.kind == BROKEN:
        names = shorten(sorted(recurrent.names.values()))
        raise Refused(
            f"{recurrent.label} has recurrent tensors that do not form an LSTM ({names}): remove "
            "weight norm (torch.nn.utils.parametrize.remove_parametrizations) and save again"
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


def choose_head(linears: Linears, recurrent: Recurrent, choices: Choices) -> list[str]:
    """The head's entries: activations, and names of Linears. Raises Refused."""
    if choices.head == "none":
        middle = []
    elif choices.head:
        middle = [entry.strip().removesuffix(".weight") for entry in choices.head.split(",")]
    else:
        middle = _infer_head(linears, recurrent, choices)
    ends = choices.pre_head, choices.output_activation
    before, after = ([end] if end != "none" else [] for end in ends)
    return [*before, *middle, *after]


def _infer_head(linears: Linears, recurrent: Recurrent, choices: Choices) -> list[str]:
    """The file's only Linear, if it can only be the head. Raises Refused."""
    others = [one for one in linears.values() if one.label != choices.embedding]
    if not others:
        return []
    one, *more = others
    may_be_embedding = not one.bias and one.in_features == recurrent.input_size
    if more or may_be_embedding or one.in_features != recurrent.output_size:
        flags = _flags(others, recurrent)
        raise Refused(f"the file leaves its head open: {MODULE_WAY}, or choose: {flags}")
    return [one.label]


def _flags(linears: Iterable[LinearNames], recurrent: Recurrent) -> str:
    """What each Linear may be, and the flags that choose."""
    heads, tables, rest = [], [], []
    for one in linears:
        may_be_embedding = not one.bias and one.in_features == recurrent.input_size
        may_be_head = one.in_features == recurrent.output_size
        heads += [str(one)] if may_be_head else []
        tables += [one.as_table()] if may_be_embedding else []
        rest += [str(one)] if not (may_be_head or may_be_embedding) else []
    parts = [
        f"{shorten(heads)} can follow {recurrent.label}" if heads else "",
        f"{shorten(tables)} can be its embedding" if tables else "",
        f"{shorten(rest)} can come later" if rest else "",
    ]
    flags = f"--embedding NAME and {HEAD_FLAG}" if tables else HEAD_FLAG
    return f"{'; '.join(filter(None, parts))}; {flags}"


def check_unused(
    recurrent: Recurrent, linears: Linears, choices: Choices, unused: list[str]
) -> tuple[str, ...]:
    """A note on the tensors left out. Raises Refused unless the flags allow that."""
    if own := [name for name in unused if _is_under(recurrent.prefix, name)]:
        raise Refused(
            f"{recurrent.label} has tensors nn.LSTM does not have ({shorten(own)}): {MODULE_WAY}, "
            "or remove weight norm and other additions "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if not unused:
        return ()
    if choices.lstm and choices.head:
        return (f"not exported: {', '.join(unused)}",)
    labels = {name.removesuffix(".weight") for name in unused}
    open_ = [one for label, one in linears.items() if label in labels]
    hint = f" ({_flags(open_, recurrent)})" if open_ else ""
    raise Refused(
        f"the file has tensors that would be left out: {shorten(unused)}{hint}; {MODULE_WAY}, or "
        "leave them out: name the LSTM and the head with "
        f"--lstm {recurrent.label} --head {choices.head or 'NAME|none'}"
    )


def _is_under(prefix: str, name: str) -> bool:
    if not prefix:
        return "." not in name or name.startswith("parametrizations.")
    return name.startswith(prefix)
