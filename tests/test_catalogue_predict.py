"""Bad Predict calls, as raw bytes: the documented code and reason, and nothing is disturbed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from grpc import StatusCode

from badsteps import INF, INT32_MAX, INT64_MAX, INVALID, NAN, X
from lstmserve.v1 import lstm_pb2 as pb
from refusals import Refusal, leaks
from wire import SPECS, Wire, serving, tensors

H, C = [[0.5] * 8] * 2, [[0.25] * 8] * 2  # of "m": 2 layers of 8
SECOND = tensors(h=[[[0.5] * 8] * 3] * 2, c=[[[0.5] * 8] * 3] * 2)
FIRST_EDITION = b"\x0a\x01m\x2a\x0c" + bytes(12) + b"%b" + bytes(4)  # model, x, and a float
GONE = StatusCode.NOT_FOUND


class Case(NamedTuple):
    """Fields of a PredictRequest in place of a good one's, or its bytes."""

    name: str
    reason: str
    blamed: list[str]
    fields: dict[str, Any]
    content: bytes | None = None
    code: StatusCode = INVALID


def case(name: str, reason: str, *blamed: str, **rest: Any) -> Case:
    """A case; the further arguments are Case's, or else fields of the request."""
    known = {key: rest.pop(key) for key in ("content", "code") if key in rest}
    return Case(name, reason, list(blamed), rest, **known)


CASES = [
    case("unknown model", "MODEL_NOT_FOUND", "model", model="nobody", code=GONE),
    case("no model", "MODEL_NOT_FOUND", "model", model="", code=GONE),
    case("model with a path", "MODEL_NOT_FOUND", "model", model="../../etc", code=GONE),
    case("model of a megabyte", "MODEL_NOT_FOUND", "model", model="é" * 2**20, code=GONE),
    case("negative version", "MODEL_NOT_FOUND", "model", version=-1, code=GONE),
    case("no rows", "EMPTY_INPUT", "x", x=[]),
    case("a part of a row", "BAD_TENSOR", "x", x=X[:2]),
    case("x too short", "BAD_TENSOR", "x", lengths=[1, 2], x=X * 2),
    case("x too long", "BAD_TENSOR", "x", lengths=[1, 2], x=X * 4),
    case("a length of 0", "EMPTY_INPUT", "lengths", lengths=[1, 0], x=X),
    case("a negative length", "MALFORMED", "lengths", lengths=[2, -1], x=X),
    case("lengths without end", "TOO_LONG", "lengths", lengths=[INT32_MAX] * 2, x=X),
    case("too long", "TOO_LONG", "lengths", lengths=[65], x=X * 65),
    case("too long without lengths", "TOO_LONG", "lengths", x=X * 65),
    case("NaN", "NON_FINITE", "x", x=[NAN, 0.0, 0.0]),
    case("infinity", "NON_FINITE", "x", x=[0.0, 0.0, -INF]),
    case("tokens", "BAD_TENSOR", "tokens", tokens=[1]),
    case("tokens alone", "BAD_TENSOR", "tokens", x=[], tokens=[1]),
    case("x for tokens", "BAD_TENSOR", "x", model="letters", tokens=[1], x=X),
    case("a token too large", "BAD_TENSOR", "tokens", model="letters", tokens=[27], x=[]),
    case("a huge token", "BAD_TENSOR", "tokens", model="letters", tokens=[INT64_MAX], x=[]),
    case("no tokens", "EMPTY_INPUT", "tokens", model="letters", x=[]),
    case("h alone", "BAD_TENSOR", "initial", initial=tensors(h=[H])),
    case("c alone", "BAD_TENSOR", "initial", initial=tensors(c=[C])),
    case("h twice", "BAD_TENSOR", "initial", initial=tensors(h=[H]) * 2),
    case(
        "h and c, then h", "BAD_TENSOR", "initial", initial=tensors(h=[H], c=[C]) + tensors(h=[H])
    ),
    case("h without the batch", "BAD_TENSOR", "initial", initial=tensors(h=H, c=[C])),
    case("h of one layer", "BAD_TENSOR", "initial", initial=tensors(h=[H[1:]], c=[C])),
    case("c of 9", "BAD_TENSOR", "initial", initial=tensors(h=[H], c=[[[0.5] * 9] * 2])),
    case("the batch second", "BAD_TENSOR", "initial", lengths=[1, 1, 1], x=X * 3, initial=SECOND),
    case(
        "h of one for two",
        "BAD_TENSOR",
        "initial",
        lengths=[1, 1],
        x=X * 2,
        initial=tensors(h=[H], c=[C] * 2),
    ),
    case("h as integers", "BAD_TENSOR", "initial", initial=tensors(h=[[[1] * 8] * 2], c=[C])),
    case("h not finite", "NON_FINITE", "initial", initial=tensors(h=[[[NAN] * 8] * 2], c=[C])),
    case("c not finite", "NON_FINITE", "initial", initial=tensors(h=[H], c=[[[INF] * 8] * 2])),
    case("the first edition's h0", "MALFORMED", "initial", content=FIRST_EDITION % b"\x42\x04"),
    case("the first edition's c0", "MALFORMED", "initial", content=FIRST_EDITION % b"\x4a\x04"),
    case("its h0, not packed", "MALFORMED", "initial", content=FIRST_EDITION % b"\x45"),
    case("its c0, not packed", "MALFORMED", "initial", content=FIRST_EDITION % b"\x4d"),
    case("NaN in a later sequence", "NON_FINITE", "x", lengths=[1, 2], x=[*X, *X[:2], NAN, *X]),
    case("a length for nothing", "BAD_TENSOR", "x", lengths=[1, 1], x=X),
    case("the lowest length", "MALFORMED", "lengths", lengths=[-INT32_MAX - 1], x=X),
    case("sequences without end", "TOO_LONG", "lengths", lengths=[1] * 100_000, x=X),
    case("a negative token", "BAD_TENSOR", "tokens", model="letters", tokens=[0, -1], x=[]),
    case("tokens and x", "BAD_TENSOR", "x", model="letters", tokens=[1]),
    case("cut off in x", "MALFORMED", content=b"\x0a\x01m\x22\x7fabc"),
    case("garbage", "MALFORMED", content=b"\xff" * 9),
    case("model not UTF-8", "MALFORMED", content=b"\x0a\x02\xff\xfe"),
]


def request_of(case: Case) -> bytes:
    """The bytes that are sent."""
    if case.content is not None:
        return case.content
    request = pb.PredictRequest(**{"model": "m", "x": X, **case.fields})
    return request.SerializeToString()


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with limits that are soon reached."""
    limits = {"length_max": 64, "predict_rows_max": 100, "pending_steps_max": 40}
    async with serving(tmp_path, message_bytes_max=4 << 20, **limits) as wire:
        yield wire


async def goes_on(wire: Wire) -> None:
    """Asserts that a sequence from zeros gives what the oracle says."""
    x = np.random.default_rng(5).standard_normal((7, 3), np.float32)
    response = await wire.call("Predict", model="m", x=x.reshape(-1))
    wanted, _, _ = wire.oracles["m"].run(x)
    assert np.array_equal(np.array(response.y, np.float32).reshape(wanted.shape), wanted)


def check(said: Refusal, case: Case, wire: Wire) -> None:
    """Asserts that the refusal is the case's."""
    assert (said.code, said.reason) == (case.code, case.reason), said
    assert said.fields == case.blamed
    assert said.retry_s is None
    leaks(said, wire.folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_predict(wire: Wire, case: Case) -> None:
    """A bad Predict is refused as documented, and the next one is right."""
    good = await wire.good()
    check(await wire.refused("Predict", request_of(case)), case, wire)
    await goes_on(wire)
    await good.step()


@pytest.mark.parametrize("model", ["m", "both"])
async def test_a_call_is_bounded_in_rows_and_sequences(wire: Wire, model: str) -> None:
    """A call of predict_rows_max rows or pending_steps_max sequences is served, one more is
    refused."""

    def request(*lengths: int) -> pb.PredictRequest:
        return pb.PredictRequest(model=model, lengths=lengths, x=X * sum(lengths))

    for good, bad, name in (
        ([50, 50], [50, 51], "rows_max"),
        ([1] * 40, [1] * 41, "sequences_max"),
    ):
        response = await wire.call("Predict", request(*good))
        assert list(response.lengths) == good
        assert len(response.y) == sum(good) * SPECS[model].output_size
        said = await wire.refused("Predict", request(*bad).SerializeToString())
        check(said, case("", "TOO_LONG", "lengths"), wire)
        assert said.metadata == {name: str(sum(bad) - 1)}
    await goes_on(wire)


async def test_bidirectional_models_take_no_session(wire: Wire) -> None:
    """OpenSession of a bidirectional model is refused, and the error names Predict."""
    request = pb.OpenSessionRequest(model="both")
    said = await wire.refused("OpenSession", request.SerializeToString())
    assert said.code is StatusCode.FAILED_PRECONDITION
    assert said.reason == "MODEL_NOT_STEPPABLE"
    assert "Predict" in said.message
