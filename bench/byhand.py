"""What people write by hand: grpc.aio calls torch's nn.LSTM for every request; state in a dict.

`python -m bench.byhand INPUT,HIDDEN,LAYERS,OUTPUT` serves lstmserve's own StepRequest and
StepResponse on a method Step, without batches, step numbers or checks. It prints its port.
"""

from __future__ import annotations

import sys

import grpc
import grpc.aio
import numpy as np
import torch
import uvloop

from bench.arithmetic import parse_spec
from lstmserve.spec import LstmSpec
from lstmserve.wire.v1 import lstm_pb2 as pb

SERVICE = "bench.ByHand"


class Steps:
    """Handles the method Step."""

    def __init__(self, spec: LstmSpec) -> None:
        self._lstm = torch.nn.LSTM(spec.input_size, spec.hidden_size, spec.num_layers)
        self._head = torch.nn.Linear(spec.hidden_size, spec.output_size)
        self._states: dict[str, tuple[torch.Tensor, torch.Tensor] | None] = {}

    async def step(self, request: pb.StepRequest, context: object) -> pb.StepResponse:
        """Computes one row."""
        x = torch.from_numpy(np.frombuffer(request.x, np.float32).copy())
        with torch.inference_mode():
            state = self._states.get(request.session_id)
            hidden, self._states[request.session_id] = self._lstm(x.reshape(1, 1, -1), state)
            y = self._head(hidden).numpy()
        return pb.StepResponse(step=request.step, length=1, y=y.tobytes())


async def serve(spec: LstmSpec) -> None:
    """Prints its port, and serves until it is killed."""
    torch.set_num_threads(1)
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        Steps(spec).step,
        request_deserializer=pb.StepRequest.FromString,
        response_serializer=pb.StepResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Step": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(parse_spec(sys.argv[1])))
