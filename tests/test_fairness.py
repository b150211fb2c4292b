"""What a tenant's limits spare the others, by counts and not by time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lstmserve.client import StepManyFailed
from tenancy import X, limited


async def test_a_noisy_tenant_starves_nobody(models: Path, tmp_path: Path) -> None:
    """While one tenant sends 20 times its limit, every step of another one is accepted."""
    limits, settings = "pending_steps_max=32", {"pending_steps_max": 64}
    async with limited(models, tmp_path, limits, **settings) as running:
        acme, victim = running.client("acme"), await running.client("other").session("tiny")
        noisy = [
            dict.fromkeys([await acme.session("tiny", id=f"g{i}:{k}") for k in range(32)], X)
            for i in range(20)
        ]
        taken, reasons, is_done = 0, [], False

        async def flood(many: dict[Any, Any]) -> None:
            nonlocal taken
            while not is_done:
                try:
                    await acme.step_many(many)
                    taken += 1
                except StepManyFailed as failed:
                    reasons.append(failed.reason)

        floods = [asyncio.create_task(flood(many)) for many in noisy]
        for _ in range(100):
            await victim.step(X)
        is_done = True
        await asyncio.gather(*floods)
        print("noisy messages taken", taken, "refused", len(reasons))
        assert (await victim.info()).step == 100
        assert taken > 0
        assert set(reasons) == {"QUOTA"}
