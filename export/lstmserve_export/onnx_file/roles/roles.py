"""Finds what each input and output of a file is: an input, an output, a state or a constant.

What the operator's flags name is taken, the states are found (state_pairs.py), and the rest are
what each step gives and answers. It runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lstmserve_export.arrays import Array
from lstmserve_export.onnx_file.load.source import Source, Value
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.constants import read_constant
from lstmserve_export.onnx_file.roles.state_pairs import Pairing, StatePair
from lstmserve_export.refusal import Refused, shorten

RATES: Final = frozenset(("sr", "fs", "sample_rate", "samplerate", "sampling_rate"))


@dataclass(frozen=True, slots=True)
class Roles:
    """`constants` have the value of each input that is the same in every run, in the input's dtype
    and with as many axes. An output of `outputs` may be a state's `after` as well, if the operator
    named it. `notes` say what was found and not given."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[StatePair, ...]
    constants: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def find_roles(source: Source, request: Request) -> Roles:
    """Raises Refused, which names candidates, where it is not clear."""
    _check_known("--constant", request.constants, source.inputs, "input")
    _check_known("--input", request.inputs, source.inputs, "input")
    _check_known("--output", request.outputs, source.outputs, "output")
    _check_rates(source, request)
    constants = {
        name: read_constant(source.inputs[name], text) for name, text in request.constants.items()
    }
    pairing = Pairing(source, request)
    pairing.take_given()
    pairing.take_found()
    pairing.ask()
    found = {each.before.name: each for each in pairing.pairs}
    inputs = _choose_inputs(source, request, {*found, *constants})
    return Roles(
        inputs=inputs,
        outputs=_choose_outputs(source, request, [e.after.name for e in found.values()]),
        states=tuple(found[name] for name in source.inputs if name in found),
        constants=constants,
        notes=(*pairing.notes(), *_single_notes(inputs, request)),
    )


def _check_known(flag: str, names: Iterable[str], known: Mapping[str, Value], what: str) -> None:
    """Refuses a name that the graph does not have, and one that is given twice."""
    seen: set[str] = set()
    for name in names:
        if name not in known:
            raise Refused(
                f"{flag} {name}: the graph has no such {what}; it has {shorten(list(known))}"
            )
        if name in seen:
            raise Refused(f"{flag} {name} is given twice")
        seen.add(name)


def _check_rates(source: Source, request: Request) -> None:
    """Refuses a sampling rate that every step would have to give."""
    for name, value in source.inputs.items():
        is_one = all(size in (1, None) for size in value.shape)
        is_rate = name.lower() in RATES and is_one and len(value.shape) < 2
        if is_rate and name not in request.constants and name not in request.inputs:
            raise Refused(
                f"the input {value} is the same in every step, as its name says: give "
                f"--constant {name}=16000 (or the rate of your audio), or --input {name} among the "
                "inputs if each step gives it"
            )


def _choose_inputs(source: Source, request: Request, taken: Collection[str]) -> tuple[Value, ...]:
    """What each step gives, in order. Raises Refused for an input that nothing gives."""
    free = [name for name in source.inputs if name not in taken]
    for name in request.inputs:
        if name in taken:
            raise Refused(f"--input {name}: it is a constant or a state, too")
    if left := [name for name in free if request.inputs and name not in request.inputs]:
        flags = " ".join(f"--constant {name}=VALUE" for name in left)
        raise Refused(
            f"nothing gives the inputs {_described(source.inputs, left)}: give {flags}, "
            "or name them with --input, or with --state"
        )
    if not free:
        raise Refused(
            "every input of the graph is a state or a constant, so that a step has nothing to "
            "give: name one with --input"
        )
    return tuple(source.inputs[name] for name in request.inputs or free)


def _single_notes(inputs: Collection[Value], request: Request) -> list[str]:
    """Of inputs without axes, which are often settings."""
    single = [each.name for each in inputs if not each.shape and each.name not in request.inputs]
    if not single or len(single) == len(inputs):
        return []
    flags = " ".join(f"--constant {name}=VALUE" for name in single)
    return [f"each step gives {shorten(single)}; if that never changes, give {flags}"]


def _choose_outputs(source: Source, request: Request, states: Collection[str]) -> tuple[Value, ...]:
    """What each step answers, in order."""
    names = request.outputs or [name for name in source.outputs if name not in states]
    if not names:
        raise Refused(
            f"every output is a state ({shorten(list(states))}): give --output with the one that "
            "steps also answer"
        )
    return tuple(source.outputs[name] for name in names)


def _described(values: Mapping[str, Value], names: list[str]) -> str:
    return shorten([str(values[name]) for name in names])
