"""Reads the parameters of a request: which sequence it is for, and how it is meant. No arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lstmserve.engine.errors import BadSessionId, BadStep, Malformed
from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.kserve.v2 import inference_pb2 as pb

INTEGERS: Final = ("int64_param", "uint64_param")
BOOL: Final = ("bool_param",)
KINDS: Final = {
    "sequence_id": (*INTEGERS, "string_param"),
    "sequence_start": BOOL,
    "sequence_end": BOOL,
    "priority": INTEGERS,
    "timeout": INTEGERS,
    "step": INTEGERS,
    "incarnation": INTEGERS,
    "restart": BOOL,
    "triton_enable_empty_final_response": BOOL,
}
TRITON: Final = "triton_"  # what begins so is not the user's own
SHOWN_MAX: Final = 64
MICROSECOND_NS: Final = 1000


@dataclass(slots=True)
class Parameters:
    """Read once, never changed. `sequence` None: whole sequences, nothing is kept; `timeout_us` and
    `incarnation` 0: none."""

    sequence: int | str | None = None
    is_start: bool = False
    is_end: bool = False
    may_restart: bool = True  # a START of a live sequence ends that one
    timeout_us: int = 0
    step: int | None = None
    incarnation: int = 0

    def deadline_ns(self, arrival_ns: int) -> int:
        """Of the start of compute; 0 for none."""
        return arrival_ns + self.timeout_us * MICROSECOND_NS if self.timeout_us else 0


def read_parameters(sent: Mapping[str, pb.InferParameter]) -> Parameters:
    """Those that mean something; a user's own are let through. Raises Malformed, BadSessionId,
    BadStep."""
    values = _values(sent)
    parameters = Parameters(
        sequence=_sequence(values.get("sequence_id", 0)),
        is_start=values.get("sequence_start", False),
        is_end=values.get("sequence_end", False),
        may_restart=values.get("restart", True),
        timeout_us=values.get("timeout", 0),
        step=values.get("step"),
        incarnation=values.get("incarnation", 0),
    )
    _check_meaning(parameters)
    return parameters


def _values(sent: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values = {}
    for name in sent:
        kinds = KINDS.get(name)
        if kinds is None:
            if name.startswith(TRITON):
                raise Malformed(f"parameter '{name[:SHOWN_MAX]}' is none that is known")
            continue
        parameter = sent[name]
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise Malformed(
                f"invalid value type for '{name}' parameter, expected {' or '.join(kinds)}",
                field=name,
            )
        values[name] = getattr(parameter, kind)
    return values


def _sequence(value: int | str) -> int | str | None:
    """Triton's ids are unsigned: a negative int64 is the uint64 of its bits."""
    if isinstance(value, int):
        return value % (1 << 64) or None
    if len(value) > ID_LENGTH_MAX:
        raise BadSessionId(
            f"sequence_id has {len(value)} characters, at most {ID_LENGTH_MAX}", field="sequence_id"
        )
    return value or None


def _check_meaning(parameters: Parameters) -> None:
    """Raises Malformed, BadStep."""
    step = parameters.step
    if parameters.timeout_us < 0 or parameters.incarnation < 0:
        name = "timeout" if parameters.timeout_us < 0 else "incarnation"
        raise Malformed(f"parameter '{name}' is negative", field=name)
    if parameters.sequence is None:
        if parameters.is_start or parameters.is_end or step is not None:
            raise Malformed(
                "sequence_start, sequence_end and step must specify a non-zero or non-empty "
                "correlation ID (sequence_id)",
                field="sequence_id",
            )
        return
    if step is not None and step < 1:
        raise BadStep(f"step is {step}, must be 1 or more, or unset", field="step")
    if parameters.is_start:
        if step not in (None, 1):
            raise BadStep(f"step is {step}, and a sequence starts with step 1", field="step")
        if parameters.incarnation:
            raise Malformed("a START begins an incarnation: send none", field="incarnation")
