"""The metric of lag behind a store: exactly as old as the oldest step that the store lacks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gated import Gate, gated
from wire import Good, Wire

HOURS = {"store_mode": "behind", "behind_s_max": 3600}


async def flush_beside_a_step(wire: Wire, gate: Gate, good: Good) -> float:
    """Flushes while the session steps on. Returns when the flush began."""
    began_s = time.monotonic()
    count = len(gate.puts)
    gate.answering.clear()
    flush = asyncio.create_task(wire.engine._stage.flush())
    await wire.until(lambda: len(gate.puts) > count)
    await good.step()
    gate.answering.set()
    await flush
    return began_s


async def test_a_session_that_steps_during_a_flush_is_as_late_as_that_step(tmp_path: Path) -> None:
    """Stored steps do not count any more, even if the session was never stored completely."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        good = await wire.good()
        await good.step()
        for _ in range(3):
            began_s = await flush_beside_a_step(wire, gate, good)
            assert 0 < wire.engine.durable_lag_s() < time.monotonic() - began_s
        await wire.engine._stage.flush()
        assert wire.engine.durable_lag_s() == 0
