"""A load by stock tritonclient, in its own environment: `TARGET MODEL INPUT SESSIONS MODE`.

It reads lines with a number of seconds, and answers each with the number of steps answered in them.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio


def one_row(width: int) -> list[Any]:
    """The inputs of a step of one row."""
    tensor = sync.InferInput("x", [1, width], "FP32")
    tensor.set_data_from_numpy(np.random.default_rng(0).standard_normal((1, width)).astype("f4"))
    return [tensor]


async def unary(target: str, model: str, width: int, sessions: int) -> None:
    """Runs a task for each sequence, with one infer() under way."""
    inputs = one_row(width)
    loop = asyncio.get_running_loop()
    async with aio.InferenceServerClient(target) as client:

        async def begin(number: int) -> None:
            await client.infer(model, inputs, sequence_id=number, sequence_start=True)

        async def steps(number: int, end_s: float) -> int:
            count = 0
            while time.perf_counter() < end_s:
                await client.infer(model, inputs, sequence_id=number)
                count += 1
            return count

        numbers = range(1, sessions + 1)
        await asyncio.gather(*map(begin, numbers))
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            end_s = time.perf_counter() + float(line)
            counts = await asyncio.gather(*(steps(number, end_s) for number in numbers))
            print(sum(counts), flush=True)


def stream(target: str, model: str, width: int, sessions: int) -> None:
    """Runs one stream with all sequences, each with one request under way."""
    inputs = one_row(width)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with sync.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))

        def receive() -> int:
            result, error = answers.get(timeout=60)
            assert error is None, error
            return int(result.get_response().id)

        def send(number: int, **more: bool) -> None:
            client.async_stream_infer(
                model, inputs, sequence_id=number, request_id=str(number), **more
            )

        for number in range(1, sessions + 1):
            send(number, sequence_start=True)
        for _ in range(sessions):
            receive()
        print("ready", flush=True)
        for line in sys.stdin:
            count, end_s = 0, time.perf_counter() + float(line)
            for number in range(1, sessions + 1):
                send(number)
            waiting = sessions
            while waiting:
                number = receive()
                count, waiting = count + 1, waiting - 1
                if time.perf_counter() < end_s:
                    send(number)
                    waiting += 1
            print(count, flush=True)
        client.stop_stream()


def main() -> None:
    """Runs the mode that the command line names."""
    target, model, width, sessions, mode = sys.argv[1:]
    if mode == "stream":
        stream(target, model, int(width), int(sessions))
    else:
        asyncio.run(unary(target, model, int(width), int(sessions)))


if __name__ == "__main__":
    main()
