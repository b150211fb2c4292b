"""The golden vectors of kind "lstm", as golden.npz has them and as the export makes them.

The arrays have torch's axes and names. The server replays them as Golden (golden.py), by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from lstmserve.golden import (
    AGAIN,
    Array,
    Floats,
    Golden,
    InvalidGolden,
    Number,
    dump_arrays,
    load_cases,
    take_array,
    torch_error_max,
)
from lstmserve.spec import LstmSpec


@dataclass(frozen=True, slots=True)
class LstmGolden:
    """N sequences and the outputs they must give; L is num_layers * directions.

    x float32 [N, T, I] or tokens int64 [N, T]; lengths int32 [N]; h0 float32 [L, N, state] and
    c0 [L, N, H]. y float64 [N, T, O], or [N, O] for the last time step only; hn and cn float64 as
    h0 and c0, or None if they are unknown. `torch_error` is max |torch float32 - float64| over y,
    hn and cn: the error of the reference itself.
    """

    x: Array
    lengths: npt.NDArray[np.int32]
    h0: npt.NDArray[np.float32]
    c0: npt.NDArray[np.float32]
    y: Floats
    hn: Floats | None
    cn: Floats | None
    torch_error: float

    def part(self, rows: slice) -> LstmGolden:
        """Some of the sequences."""
        return LstmGolden(
            x=self.x[rows],
            lengths=self.lengths[rows],
            h0=self.h0[:, rows],
            c0=self.c0[:, rows],
            y=self.y[rows],
            hn=None if self.hn is None else self.hn[:, rows],
            cn=None if self.cn is None else self.cn[:, rows],
            torch_error=self.torch_error,
        )

    def named(self, spec: LstmSpec) -> Golden:
        """The same by name; the axis of the sequences is the first."""
        finals = {"h": self.hn, "c": self.cn}
        return Golden(
            inputs={spec.inputs[0].name: self.x},
            lengths=self.lengths,
            initial={"h": np.swapaxes(self.h0, 0, 1), "c": np.swapaxes(self.c0, 0, 1)},
            outputs={"y": self.y},
            finals={n: np.swapaxes(each, 0, 1) for n, each in finals.items() if each is not None},
            torch_error=self.torch_error,
            last_only=self.y.ndim == 2,
        )


def check_lstm_golden(cases: Mapping[str, LstmGolden], spec: LstmSpec) -> None:
    """Raises InvalidGolden unless the cases fit the spec and prove something."""
    if not cases:
        raise InvalidGolden(f"golden.npz has no rows, so it proves nothing: {AGAIN}")
    for name, case in cases.items():
        for fault in _faults(case, spec):
            raise InvalidGolden(f"golden.npz: {name[:40]!r}: {fault}: {AGAIN}")


def _faults(case: LstmGolden, spec: LstmSpec) -> Iterator[str]:
    """The faults of a case. A check may rely on those before it, as the first fault is raised."""
    if case.x.ndim < 2 or 0 in case.x.shape[:2]:
        yield f"x is {list(case.x.shape)}, must be [N, T, ...] with a row at least"
    count, rows = case.x.shape[:2]
    layers = spec.num_layers * spec.num_directions
    h, c = (layers, count, spec.state_size), (layers, count, spec.hidden_size)
    y = (count, rows, spec.output_size)
    x = (count, rows) if spec.num_embeddings else (count, rows, spec.input_size)
    for name, shapes in {
        "x": (x,),
        "lengths": ((count,),),
        "h0": (h,),
        "c0": (c,),
        "y": (y, (count, spec.output_size)),
        "hn": (h,),
        "cn": (c,),
    }.items():
        array = getattr(case, name)
        if array is not None and array.shape not in shapes:
            yield f"{name} is {list(array.shape)}, must be {' or '.join(map(str, shapes))}"
        if array is not None and not np.isfinite(array).all():
            yield f"{name} has NaN or infinite values"
    if case.lengths.min() < 1 or case.lengths.max() > rows:
        yield f"lengths must be in [1, {rows}]"
    if spec.num_embeddings and not 0 <= case.x.min() <= case.x.max() < spec.num_embeddings:
        yield f"tokens must be in [0, {spec.num_embeddings})"
    limit = torch_error_max(case.y, case.hn, case.cn)
    if not 0 <= case.torch_error <= limit:
        yield f"torch_error is {case.torch_error:.3g}, must be in [0, {limit:.3g}]"


def dump_lstm_golden(cases: Mapping[str, LstmGolden]) -> bytes:
    """The cases as the content of a golden.npz: arrays named CASE/FIELD."""
    return dump_arrays(
        {
            f"{name}/{field.name}": np.asarray(value)
            for name, case in cases.items()
            for field in fields(case)
            if (value := getattr(case, field.name)) is not None
        }
    )


def load_lstm_golden(content: bytes) -> dict[str, LstmGolden]:
    """The cases dump_lstm_golden wrote. Raises InvalidGolden; never unpickles."""
    return load_cases(content, _case)


def _case(arrays: Mapping[str, Array], name: str) -> LstmGolden:
    def get(field: str, dtype: type[Number]) -> npt.NDArray[Number]:
        return take_array(arrays, f"{name}/{field}", dtype)

    def get_optional(field: str) -> Floats | None:
        return get(field, np.float64) if f"{name}/{field}" in arrays else None

    is_tokens = arrays[f"{name}/x"].dtype.kind in "iu"
    return LstmGolden(
        x=get("x", np.int64) if is_tokens else get("x", np.float32),
        lengths=get("lengths", np.int32),
        h0=get("h0", np.float32),
        c0=get("c0", np.float32),
        y=get("y", np.float64),
        hn=get_optional("hn"),
        cn=get_optional("cn"),
        torch_error=float(get("torch_error", np.float64)),
    )
