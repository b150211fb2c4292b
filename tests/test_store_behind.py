"""Two live owners of one session behind the store: what the stale one says is the store's truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.fleet import fleet_of
from storing import Valkey


async def test_a_step_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    """An owner ahead of the store, whose session is elsewhere now, says gap and not superseded."""
    flags = ("--store-mode", "behind", "--behind-s-max", "3600")
    with Valkey(tmp_path) as valkey, fleet_of(tmp_path, 2, "--store", valkey.url, *flags) as fleet:
        ahead, other = (pod.serving for pod in fleet.pods)
        async with Calls() as calls:
            talk = Conversation(fleet, calls, "a")
            fleet.suspect(other)
            await talk.open()
            for _ in range(5):
                await talk.step(np.random.default_rng(0))
            assert (await calls.step(other, talk.request(1))).y == talk.outputs[0].tobytes()
            with pytest.raises(Refused) as refused:
                await calls.step(ahead, talk.request(2))
    assert refused.value.reason == "STEP_GAP"
    assert refused.value.metadata == {"expected_step": "1"}
