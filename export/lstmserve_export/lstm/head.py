"""Decides which layers the head has: by --head, or where the file leaves no choice.

It goes by names and shapes alone, and never guesses: a refusal lists what fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lstmserve_export.lstm.names import LinearNames, NormNames, Recurrent, resolve
from lstmserve_export.lstm.network import ACTIVATIONS, make_activation
from lstmserve_export.refusal import MODULE_WAY, Faults, Refused, shorten

# The activations with a number, =NUMBER; the others of network.ACTIVATIONS have none.
PARAMETERS: Mapping[str, Callable[[float], nn.Module]] = {"elu": nn.ELU, "leaky_relu": nn.LeakyReLU}
# How the names of torch's classes end up in small letters, where an activation has another name.
CLASSES = {"leakyrelu": "leaky_relu", "logsoftmax": "log_softmax"}
EPS = 1e-5  # of torch's norms
HEAD_FLAG = "--head NAME[,ACTIVATION,NAME...] or --head none"


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the file, with the eps that --head gives it: the file has none."""

    names: NormNames
    eps: float = EPS


Entry = LinearNames | Norm | nn.Module


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a file that a head may have, by name.

    `functions` are the activations of which the file tells, as NAME (CLASS).
    """

    linears: Mapping[str, LinearNames]
    norms: Mapping[str, NormNames]
    functions: tuple[str, ...] = ()

    def find(self, name: str) -> LinearNames | NormNames | None:
        """The layer of that name, or with that end of a name. Raises Refused for several."""
        label = resolve(name, (*self.linears, *self.norms), "--head:")
        return None if label is None else self.linears.get(label) or self.norms[label]


def read_head(flag: str, layers: Layers) -> list[Entry]:
    """The entries that --head names. Raises Refused, with all that is wrong in it."""
    is_none = flag.removesuffix("()") == "none"
    if is_none and not (flag == "none" and layers.find("none")):
        return []
    entries: list[Entry] = []
    faults = Faults()
    for text in flag.split(","):
        with faults.collect():
            entries.append(_entry(text.strip(), layers))
    faults.refuse()
    return entries


def _entry(text: str, layers: Layers) -> Entry:
    """The activation or the layer that an entry of --head names. Raises Refused."""
    name, has_number, number = text.partition("=")
    layer = None if name.endswith("()") else layers.find(name.removesuffix(".weight"))
    short = name.removesuffix("()").lower()
    short = CLASSES.get(short, short)
    is_function = short in ACTIVATIONS or short == "none"
    if is_function and layer is not None and not name.endswith(".weight"):
        what = "no head" if short == "none" else "the activation"
        raise Refused(
            f"--head: {short} is {what}, and {layer} is a layer of the file: write "
            f"{layer.label}.weight for the layer and {short}() for {what}"
        )
    value = _number(text, number) if has_number else None
    if isinstance(layer, NormNames):
        return Norm(layer, EPS if value is None else value)
    if isinstance(layer, LinearNames):
        if value is not None:
            raise Refused(f"--head: {text}: {layer} takes no number")
        return layer
    return _activation(short, value, layers)


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(f"--head: {text}: give a number behind =")
    return value


def _activation(name: str, value: float | None, layers: Layers) -> nn.Module:
    """The module of an activation, with its number if it has one. Raises Refused."""
    if name in PARAMETERS and value is not None:
        return PARAMETERS[name](value)
    if name in ACTIVATIONS and value is None:
        return make_activation(name)
    known = ", ".join(ACTIVATIONS)
    if name in ACTIVATIONS:
        raise Refused(f"--head: {name}={value:g}: {name} takes no number")
    plain = name.replace("_", "")
    if any(plain == each.lower() for each in nn.modules.activation.__all__) or plain == "swish":
        raise Refused(f"--head: the activation {name} is not one of {known}: {MODULE_WAY}")
    candidates = [*map(str, layers.linears.values()), *map(str, layers.norms.values())]
    raise Refused(
        f"--head: {name!r} is no layer of the file and no activation; layers: "
        f"{shorten(candidates) or 'none'}; activations: {known}"
    )


def infer_head(layers: Layers, recurrent: Recurrent) -> list[Entry]:
    """The file's only Linear, if it can only be the head, with no activation. Raises Refused."""
    linears = list(layers.linears.values())
    may_be_embedding = any(
        each.may_be_table and each.in_features == recurrent.input_size for each in linears
    )
    is_odd = any(each.in_features != recurrent.output_size for each in linears)
    if len(linears) > 1 or may_be_embedding or is_odd or layers.functions:
        flags = describe_choices(linears, layers, recurrent)
        raise Refused(f"the file leaves its head open: {MODULE_WAY}, or choose: {flags}")
    return [*linears]


def check_widths(entries: Iterable[Entry], recurrent: Recurrent, layers: Layers) -> None:
    """Raises Refused for a layer that cannot read what comes to it."""
    width = recurrent.output_size
    for entry in entries:
        layer = entry.names if isinstance(entry, Norm) else entry
        if isinstance(layer, nn.Module):
            continue
        reads = layer.width if isinstance(layer, NormNames) else layer.in_features
        if reads != width:
            fits = [str(each) for each in layers.linears.values() if each.in_features == width]
            raise Refused(
                f"--head: {layer} reads {reads} values, but {width} come to it: what fits here is "
                f"{shorten(fits) or 'no Linear of the file'}"
            )
        width = layer.out_features if isinstance(layer, LinearNames) else width


def describe_choices(open_: Iterable[LinearNames], layers: Layers, recurrent: Recurrent) -> str:
    """What each of these Linears may be, and the flags that choose."""
    reachable = _reachable(layers.linears.values(), recurrent.output_size)
    groups: dict[str, list[str]] = {"head": [], "table": [], "later": [], "none": []}
    for one in open_:
        is_table = one.may_be_table and one.in_features == recurrent.input_size
        is_head = one.in_features == recurrent.output_size
        if is_head:
            groups["head"].append(str(one))
        if is_table:
            groups["table"].append(one.as_table())
        if not is_head and not is_table:
            groups["later" if one.in_features in reachable else "none"].append(str(one))
    norms = [str(each) for each in layers.norms.values() if each.width in reachable]
    words = (
        (groups["head"], f"can follow {recurrent.label}"),
        (groups["table"], "can be its embedding"),
        (groups["later"], "can come later"),
        (groups["none"], f"cannot follow {recurrent.label} at all"),
        (norms, "can stand in the head too"),
        (list(layers.functions), "may stand among them"),
    )
    parts = [f"{shorten(names)} {what}" for names, what in words if names]
    flags = f"--embedding NAME and {HEAD_FLAG}" if groups["table"] else HEAD_FLAG
    return f"{'; '.join(parts)}; {flags}"


def _reachable(linears: Iterable[LinearNames], start: int) -> set[int]:
    """The widths that some chain of Linears behind the LSTM has."""
    linears = list(linears)
    widths, count = {start}, 0
    while len(widths) > count:
        count = len(widths)
        widths |= {one.out_features for one in linears if one.in_features in widths}
    return widths
