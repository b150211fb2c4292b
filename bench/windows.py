"""What a step costs with a window beside a running state: python -m bench.windows.

It exports an LSTM(32) with a Linear head and a small attention network with windows of 30 and 168
rows, and runs single time steps of 1 and of 32 sessions by the server's kernel, the models in
turns. It prints the median of a run, and the bytes that a session holds. No timing is pass or fail.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from torch import nn

from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.manifest import read_model
from lstmserve_export import export

FEATURES, HIDDEN, WIDTH, HEADS = 8, 32, 32, 4
WINDOWS: Final = (30, 168)
SESSIONS: Final = (1, 32)
SLOTS: Final = 200
ROUNDS: Final = 300


class Recurrent(nn.Module):
    """LSTM(8, 32) and a Linear; the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return answer


class Attention(nn.Module):
    """Attention of 4 heads over rows of width 32, a layer of 64, and a Linear; the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.layer(self.front(x))[:, -1])
        return answer


def kernels(models: Path) -> dict[str, tuple[Kernel, int]]:
    """Each model's kernel, and the bytes of a session's states, by what to call it."""
    torch.manual_seed(0)
    recurrent, attention = Recurrent(), Attention()
    found = {}
    for window in (0, *WINDOWS):
        for name, module in (("LSTM(32)", recurrent), ("attention", attention)):
            if not window and module is attention:
                continue  # it has no running state
            label = f"{name}, window {window}" if window else f"{name}, running state"
            example = torch.randn(4, window or max(WINDOWS), FEATURES)
            model = f"m{len(found)}"
            export(module, example=example, name=model, models=models, window=window)
            files = read_model(models, model, 1)
            kernel = Kernel(files.network, Pool(files.network.layout, SLOTS), "cpu", 1)
            found[label] = kernel, files.manifest.spec.state_bytes
    return found


def medians(kernel_of: dict[str, tuple[Kernel, int]], size: int) -> dict[str, float]:
    """The median microseconds of one time step of `size` sessions, the models in turns."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, size, FEATURES)).astype(np.float32)
    lengths, read = np.ones(size, np.int32), np.arange(1, size + 1)
    run = x, lengths, read, read + SLOTS // 2
    times: dict[str, list[float]] = {name: [] for name in kernel_of}
    for _ in range(ROUNDS):
        for name in rng.permutation(list(kernel_of)):
            start = time.perf_counter()
            kernel_of[name][0].run(*run)
            times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Prints the table."""
    with TemporaryDirectory() as folder:
        found = kernels(Path(folder))
        runs = [medians(found, size) for size in SESSIONS]
    print(f"{'':28}{'bytes':>8}" + "".join(f"{f'{size} sessions':>14}" for size in SESSIONS))
    for name, (_, state_bytes) in found.items():
        row = "".join(f"{run[name]:>11,.0f} us" for run in runs)
        print(f"{name:28}{state_bytes:>8,}{row}")


if __name__ == "__main__":
    main()
