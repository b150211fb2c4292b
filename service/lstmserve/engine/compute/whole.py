"""Computes whole sequences on the portable graph: what bidirectional models are served by.

Also the oracle of the tests: one plain onnxruntime session, no pool, no slices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.graph import Weights, build_portable
from lstmserve.spec import ModelSpec

Floats = npt.NDArray[np.float32]


class WholeKernel:
    """The portable graph of one model; one thread at a time."""

    def __init__(self, spec: ModelSpec, weights: Weights, device: Device, threads: int) -> None:
        self._input = "tokens" if spec.num_embeddings else "x"
        self._session = open_session(build_portable(spec, weights), device, threads)

    def run(
        self, x: npt.NDArray[np.generic], lengths: npt.NDArray[np.int32], h0: Floats, c0: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """x [B, T, I] or tokens [B, T], lengths [B] in [1, T], h0 and c0 [L*D, B, width].

        -> y [B, T, O], hn, cn. Raises KernelError.
        """
        assert x.shape[0] >= 1
        assert lengths.min() >= 1
        feed = {self._input: x, "lengths": lengths, "h0": h0, "c0": c0}
        try:
            y, hn, cn = self._session.run(["y", "hn", "cn"], feed)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        return y, hn, cn
