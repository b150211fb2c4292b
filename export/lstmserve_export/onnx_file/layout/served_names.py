"""The names and dtypes by which the tensors of a file are served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from lstmserve.spec import INITIAL, LAST, LENGTHS, MISSING, NEXT, TENSOR_NAME, Dtype
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused, shorten

NAME_LEN_MAX: Final = 56  # leaves room for a number and for what the server appends
SERVED: Final[Mapping[str, Dtype]] = {
    "float32": "float32",
    "float64": "float32",
    "float16": "float32",
    "int64": "int64",
    "int32": "int64",
    "int16": "int64",
    "int8": "int64",
    "uint8": "int64",
    "bool": "int64",
}
KEPT: Final[Mapping[str, Dtype]] = {**SERVED, "bool": "bool"}  # of states


def served_dtype(value: Value, is_state: bool = False) -> Dtype:
    """Raises Refused."""
    found = (KEPT if is_state else SERVED).get(value.dtype)
    if found is None:
        raise Refused(f"{value} is {value.dtype}, of which no tensor is served")
    if is_state and value.dtype == "float64":
        raise Refused(
            f"the state {value} is float64, which a session would lose to float32 between steps: "
            "export the network in float32"
        )
    return found


def check_dtypes(roles: Roles) -> None:
    """Raises Refused for a tensor of a dtype that is not served."""
    for value in (*roles.inputs, *roles.outputs):
        served_dtype(value)
    for pair in roles.states:
        served_dtype(pair.before, is_state=True)
        if pair.before.dtype != pair.after.dtype:
            raise Refused(
                f"the state {pair.before} is {pair.after.dtype} after the step ({pair.after.name})"
            )


class ServedNames:
    """Names that fit the server, as near to the file's as they can be: states first, since what
    they are called after a step is reserved."""

    def __init__(self, roles: Roles) -> None:
        self._taken = {LENGTHS, MISSING}
        self._outputs: dict[str, str] = {}
        self._renamed: list[str] = []
        self.before: dict[str, str] = {}
        for pair in roles.states:
            name = self.before[pair.before.name] = self._choose(pair.before.name)
            self._taken |= {name + NEXT, name + INITIAL}
        for value in roles.inputs:
            self.before[value.name] = self._choose(value.name)
        self.after = self._choose_all(each.name for each in roles.outputs)

    @property
    def notes(self) -> list[str]:
        """What is served under another name."""
        return [f"served by another name: {shorten(self._renamed)}"] if self._renamed else []

    def _choose_all(self, names: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in names:
            found[name] = self._choose(name, is_output=True)
            self._taken.add(found[name] + LAST)
        return found

    def _choose(self, name: str, is_output: bool = False) -> str:
        plain = found = _plain(name)
        number = 2
        while found in self._taken or (is_output and found + LAST in self._taken):
            found, number = f"{plain}_{number}", number + 1
        self._taken.add(found)
        if found != name:
            self._renamed.append(f"{name} as {found}")
        return found


def _plain(name: str) -> str:
    name = re.sub(r":0$", "", name)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_") or "tensor"
    if not re.match(r"[A-Za-z_]", name):
        name = f"t{name}"
    name = name[:NAME_LEN_MAX]
    assert TENSOR_NAME.fullmatch(name)
    return name
