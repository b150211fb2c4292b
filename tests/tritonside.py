"""The Triton client of tests/tritonserving.py: runs in .venv/triton, never imported by a test.

It reads a function's name and arguments per line, and writes {"answers": ...} or {"bug": ...}. A
request has what infer() takes: "inputs" by name, "outputs" as names, and its other arguments. An
answer has "error" and "status", or "outputs" by name, "id", "model" and "parameters".
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Json = dict[str, Any]

WAIT_S_MAX = 60


def arguments(request: Json, **others: Any) -> Json:
    """The arguments of infer()."""
    given = []
    for name, (dtype, shape, values) in request.get("inputs", {}).items():
        array = np.array(values, dtype).reshape(shape)
        given.append(sync.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        given[-1].set_data_from_numpy(array)
    names = request.get("outputs")
    wanted = None if names is None else [sync.InferRequestedOutput(name) for name in names]
    rest = {name: value for name, value in request.items() if name not in ("inputs", "outputs")}
    return {"inputs": given, "outputs": wanted, **rest, **others}


def answer(result: Any, error: InferenceServerException | None = None) -> Json:
    """The answer to one request."""
    if error is not None:
        return {"error": error.message(), "status": error.status()}
    response = result.get_response()
    return {
        "id": response.id,
        "model": [response.model_name, response.model_version],
        "parameters": {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in response.parameters.items()
        },
        "outputs": {output.name: values(result, output) for output in response.outputs},
    }


def values(result: Any, output: Any) -> list[Any]:
    """An output as as_numpy() gives it, in the shape that the response names."""
    array = result.as_numpy(output.name)
    return [str(array.dtype), list(output.shape), array.ravel().tolist()]


def one_by_one(client: Any, requests: list[Json], call: Json) -> list[Json]:
    """Calls infer() for each request."""
    answers = []
    for request in requests:
        try:
            answers.append(answer(client.infer(**arguments(request, **call))))
        except InferenceServerException as error:
            answers.append(answer(None, error))
    return answers


def rounds(requests: list[Json]) -> list[list[Json]]:
    """The requests in rounds with one of each sequence, as gRPC does not order calls in flight."""
    cut: list[list[Json]] = [[]]
    for request in requests:
        if request["sequence_id"] in [each["sequence_id"] for each in cut[-1]]:
            cut.append([])
        cut[-1].append(request)
    return cut


def callbacks(client: Any, requests: list[Json], call: Json) -> list[Json]:
    """Calls async_infer() for a round at once; the answers have the order of the requests."""
    answers: list[Json] = []
    for together in rounds(requests):
        done: queue.Queue[tuple[int, Json]] = queue.Queue()
        for i, request in enumerate(together):
            client.async_infer(
                callback=lambda result, error, i=i, to=done: to.put((i, answer(result, error))),
                **arguments(request, **call),
            )
        pairs = [done.get(timeout=WAIT_S_MAX) for _ in together]
        answers += [each for _, each in sorted(pairs, key=lambda pair: pair[0])]
    return answers


def stream(client: Any, requests: list[Json], call: Json) -> list[Json]:
    """Calls async_stream_infer() for all; the answers have the order of arrival."""
    answers: list[Json] = []
    client.start_stream(lambda result, error: answers.append(answer(result, error)), **call)
    for request in requests:
        try:
            client.async_stream_infer(**arguments(request))
        except InferenceServerException as error:  # the stream has ended already
            print(error, file=sys.stderr)
    client.stop_stream()
    return answers


async def asyncio_calls(client: Any, requests: list[Json], call: Json) -> list[Json]:
    """Calls asyncio's infer() for a round at once; the answers have the order of the requests."""

    async def infer(request: Json) -> Json:
        try:
            return answer(await client.infer(**arguments(request, **call)))
        except InferenceServerException as error:
            return answer(None, error)

    answers: list[Json] = []
    for together in rounds(requests):
        answers += await asyncio.gather(*map(infer, together))
    return answers


async def asyncio_stream(client: Any, requests: list[Json], call: Json) -> list[Json]:
    """Calls stream_infer(); the answers have the order of arrival."""

    async def each() -> AsyncIterator[Json]:
        for request in requests:
            yield arguments(request)

    answers: list[Json] = []
    try:
        async for result, error in client.stream_infer(each(), **call):
            answers += [answer(result, error)]
    except grpc.aio.AioRpcError as error:  # the library lets gRPC's own error through
        answers.append({"error": error.details(), "status": str(error.code())})
    return answers


SYNC = {"one_by_one": one_by_one, "callbacks": callbacks, "stream": stream}
ASYNC = {"asyncio": asyncio_calls, "asyncio_stream": asyncio_stream}


async def in_asyncio(mode: str, url: str, requests: list[Json], options: Json, call: Json) -> Any:
    """run() for the modes of asyncio."""
    async with aio.InferenceServerClient(url, **options) as client:
        return await ASYNC[mode](client, requests, call)


def tell(url: str, calls: list[tuple[str, Json]]) -> list[Json]:
    """What the client's other methods return, as JSON."""
    with sync.InferenceServerClient(url) as client:
        answers: list[Json] = []
        for name, given in calls:
            if name.startswith("get_"):
                given["as_json"] = True
            try:
                said = getattr(client, name)(**given)
            except InferenceServerException as error:
                said = answer(None, error)
            answers.append(said)
        return answers


def beside(url: str, rows: list[list[float]]) -> Json:
    """Runs tritonclient and lstmserve's own client in one process, each with a session of tiny."""
    import google.protobuf

    from lstmserve.client import Client

    x = np.array(rows, np.float32)
    requests = [
        {"model_name": "tiny", "inputs": {"x": ["float32", row.shape, row]}, "sequence_id": 1}
        for row in x
    ]
    requests[0]["sequence_start"] = True
    with sync.InferenceServerClient(url) as client:
        theirs = [each["outputs"]["y"][2] for each in one_by_one(client, requests, {})]
    with Client(url) as own, own.session("tiny") as session:
        ours = [session.step(row).tolist() for row in x]
    return {"protobuf": google.protobuf.__version__, "theirs": theirs, "ours": ours}


def run(mode: str, url: str, requests: list[Json], options: Json, call: Json) -> Any:
    """The answers to the requests; `options` are the client's, `call` those of each call."""
    if mode in ASYNC:
        return asyncio.run(in_asyncio(mode, url, requests, options, call))
    with sync.InferenceServerClient(url, **options) as client:
        return SYNC[mode](client, requests, call)


def main() -> None:
    """Answers lines until the input ends."""
    functions = {each.__name__: each for each in (run, tell, beside)}
    for line in sys.stdin:
        name, given = json.loads(line)
        try:
            said = {"answers": functions[name](**given)}
        except Exception:
            said = {"bug": traceback.format_exc()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
