"""Finds LSTMs, Linears, norms and embeddings by the names and shapes in a file. Reads no values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from lstmserve_export.refusal import Refused, shorten

PARAMETER = re.compile(
    r"(?P<prefix>(?:.*\.)?)"
    r"(?P<part>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
    r"(?:_l(?P<layer>0|[1-9][0-9]?)(?P<reverse>_reverse)?)?"
)
KINDS = {4: "LSTM", 3: "GRU", 1: "RNN"}
BROKEN = "broken"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Recurrent:
    """An RNN of the file: its prefix ("" or ending in a dot), kind and sizes.

    `names` maps nn.LSTM's own names to those of the file: an LSTMCell's have no `_l0`.
    """

    prefix: str
    kind: str
    names: Mapping[str, str]
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    bias: bool

    @property
    def label(self) -> str:
        """The value for --lstm: the prefix without its dot, "." for no prefix."""
        return self.prefix.removesuffix(".") or "."

    @property
    def output_size(self) -> int:
        """Width of its output, what a head reads."""
        return (self.proj_size or self.hidden_size) * (1 + self.bidirectional)

    def __str__(self) -> str:
        """For a list of candidates."""
        if self.kind == BROKEN:
            return f"{self.label} (incomplete)"
        return f"{self.label} ({self.kind} {self.input_size} -> {self.output_size})"


@dataclass(frozen=True, slots=True)
class LinearNames:
    """A Linear, or a Conv1d of kernel 1, of the file: LABEL.weight and perhaps LABEL.bias."""

    label: str
    in_features: int
    out_features: int
    bias: bool
    is_convolution: bool = False

    @property
    def may_be_table(self) -> bool:
        """Whether its weight may as well be the table of an embedding."""
        return not self.bias and not self.is_convolution

    def __str__(self) -> str:
        """For a list of candidates."""
        return f"{self.label} ({self.in_features} -> {self.out_features})"

    def as_table(self) -> str:
        """As __str__, read as an embedding."""
        return f"{self.label} ({self.out_features} tokens -> {self.in_features})"


@dataclass(frozen=True, slots=True)
class NormNames:
    """A LayerNorm or a BatchNorm1d of the file: LABEL.weight and LABEL.bias [width], and for a
    BatchNorm its running_mean and running_var."""

    label: str
    width: int
    is_batch_norm: bool
    affine: bool

    def __str__(self) -> str:
        """For a list of candidates."""
        return f"{self.label} ({'Batch' if self.is_batch_norm else 'Layer'}Norm [{self.width}])"


def find_recurrent(tensors: Tensors) -> list[Recurrent]:
    """Every LSTM, LSTMCell, GRU and RNN, in the file's order; BROKEN where shapes do not fit."""
    groups: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := PARAMETER.fullmatch(name):
            own = name.removeprefix(match["prefix"])
            group = groups.setdefault(match["prefix"], {})
            group[own if match["layer"] else f"{own}_l0"] = name
    return [_recurrent(prefix, names, tensors) for prefix, names in groups.items()]


def _recurrent(prefix: str, names: dict[str, str], tensors: Tensors) -> Recurrent:
    """The sizes of the first layer. The builder checks that all tensors agree with them."""
    rows, input_size = _matrix(tensors, names.get("weight_ih_l0"))
    hh_rows, state_size = _matrix(tensors, names.get("weight_hh_l0"))
    is_projected = "weight_hr_l0" in names
    gates = 4 if is_projected else rows // max(state_size, 1)
    is_whole = rows > 0 and rows == hh_rows and rows % gates == 0 if gates else False
    return Recurrent(
        prefix=prefix,
        kind=KINDS.get(gates, BROKEN) if is_whole else BROKEN,
        names=names,
        input_size=input_size,
        hidden_size=rows // 4 if is_projected else state_size,
        num_layers=1 + max(_layer(own) for own in names),
        proj_size=state_size if is_projected else 0,
        bidirectional=any(own.endswith("_reverse") for own in names),
        bias=any(own.startswith("bias_") for own in names),
    )


def _matrix(tensors: Tensors, name: str | None) -> tuple[int, int]:
    """The shape of a matrix, or zeros for anything else."""
    shape = tensors[name].shape if name else ()
    return (shape[0], shape[1]) if len(shape) == 2 and all(shape) else (0, 0)


def _layer(own: str) -> int:
    return int(own.removesuffix("_reverse").rpartition("_l")[2])


def find_linears(tensors: Tensors) -> dict[str, LinearNames]:
    """Every NAME.weight [out, in] or [out, in, 1] with its NAME.bias [out], by NAME.

    An embedding's table looks like a Linear without bias; a flag must say which it is.
    """
    found = {}
    for name, tensor in tensors.items():
        label, _, last = name.rpartition(".")
        shape = tuple(tensor.shape)
        if last != "weight" or not label or not all(shape) or shape[2:] not in ((), (1,)):
            continue
        if len(shape) >= 2:
            bias = tensors.get(f"{label}.bias")
            has_bias = bias is not None and tuple(bias.shape) == shape[:1]
            found[label] = LinearNames(label, shape[1], shape[0], has_bias, len(shape) > 2)
    return found


def find_norms(tensors: Tensors) -> dict[str, NormNames]:
    """Every LayerNorm with weight and bias, and every BatchNorm, by its name.

    A GroupNorm has the names and shapes of a LayerNorm; a flag must say that it is one.
    """
    found = {}
    for name in tensors:
        label, _, last = name.rpartition(".")
        if not label or last not in ("weight", "running_mean"):
            continue
        widths = {part: _width(tensors.get(f"{label}.{part}")) for part in NORM_PARTS}
        affine = bool(widths["weight"]) and widths["weight"] == widths["bias"]
        running = widths["running_mean"]
        if running and running == widths["running_var"] and widths["weight"] in (0, running):
            found[label] = NormNames(label, running, is_batch_norm=True, affine=affine)
        elif affine and not running:
            found[label] = NormNames(label, widths["weight"], is_batch_norm=False, affine=True)
    return found


def _width(tensor: torch.Tensor | None) -> int:
    """The length of a vector, or 0 for anything else."""
    return tensor.shape[0] if tensor is not None and tensor.dim() == 1 else 0


def resolve(name: str, labels: Iterable[str], flag: str) -> str | None:
    """The label that a flag's value means: the label itself, or the end of one label alone.

    Raises Refused where it is the end of several.
    """
    labels = list(labels)
    if name in labels:
        return name
    ends = [label for label in labels if label.endswith(f".{name}")]
    if len(ends) > 1:
        raise Refused(f"{flag} {name} may be {shorten(ends)}: give one of these")
    return ends[0] if ends else None
